package config

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// pair makes a certificate and its key.
func pair(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "host"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	require.NoError(t, err)
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", keyDER)
}

// TestSecretFiles: what is said about files of logins and keys, and about who may read them.
func TestSecretFiles(t *testing.T) {
	cert, key := pair(t)
	_, otherKey := pair(t)
	encrypted := "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
	type mode = os.FileMode
	for name, tc := range map[string]struct {
		keys  string // of [zookeeper]
		files map[string]string
		modes map[string]mode
		main  mode // of the agent's file itself; 0: 0644
		want  []string
	}{
		"login in its file":        {keys: `auth = { credentials_file = "login" }`, files: map[string]string{"login": "me:hidden\n"}, modes: map[string]mode{"login": 0o600}},
		"login with Windows":       {keys: `auth = { credentials_file = "login" }`, files: map[string]string{"login": "me:hid:den\r\n"}, modes: map[string]mode{"login": 0o400}},
		"login for the group":      {keys: `auth = { credentials_file = "login" }`, files: map[string]string{"login": "me:hidden"}, modes: map[string]mode{"login": 0o640}, want: []string{`warning: zookeeper.auth.credentials_file: others may read the file (its mode is 0640); chmod it to 0600`}},
		"login of two lines":       {keys: `auth = { credentials_file = "login" }`, files: map[string]string{"login": "me:hidden\nyou:hidden\n"}, modes: map[string]mode{"login": 0o600}, want: []string{`zookeeper.auth.credentials_file: the file does not hold user:password; write the user's name, a colon and the password into it, in one line`}},
		"login is a folder":        {keys: `auth = { credentials_file = "login" }`, files: map[string]string{"login/x": ""}, want: []string{`zookeeper.auth.credentials_file: the file "login" cannot be read: is a directory; give the path of a file that holds user:password`}},
		"login in the open":        {keys: `auth = { credentials = "me:hidden" }`, want: []string{`warning: zookeeper.auth.credentials: stands in a file that others may read (its mode is 0644); chmod it to 0600, or use credentials_file or ${NAME}`}},
		"login in a shut file":     {keys: `auth = { credentials = "me:hidden" }`, main: 0o600},
		"login of the environment": {keys: `auth = { credentials = "me:${SECRET}" }`},
		"no login there":           {keys: `auth = { credentials = "${SECRET}" }`, want: []string{`zookeeper.auth.credentials: a value that is not shown is not user:password; write the user's name, a colon and the password`}},

		"certificate and key":     {keys: `tls = { cert_file = "c", key_file = "k" }`, files: map[string]string{"c": cert, "k": key}, modes: map[string]mode{"k": 0o640}},
		"key for everybody":       {keys: `tls = { cert_file = "c", key_file = "k" }`, files: map[string]string{"c": cert, "k": key}, modes: map[string]mode{"k": 0o644}, want: []string{`warning: zookeeper.tls.key_file: others may read the file (its mode is 0644); chmod it to 0600, or 0640`}},
		"another's key":           {keys: `tls = { cert_file = "c", key_file = "k" }`, files: map[string]string{"c": cert, "k": otherKey}, modes: map[string]mode{"k": 0o600}, want: []string{`zookeeper.tls.cert_file: the certificate and the key cannot be used: private key does not match public key; give the files of one certificate and its key, in PEM`}},
		"key with a password":     {keys: `tls = { cert_file = "c", key_file = "k" }`, files: map[string]string{"c": cert, "k": encrypted}, modes: map[string]mode{"k": 0o600}, want: []string{"zookeeper.tls.cert_file: the certificate and the key cannot be used: failed to parse private key; take the password off the key, and protect its file with the mode 0600"}},
		"authority is a key":      {keys: `tls = { ca_file = "k" }`, files: map[string]string{"k": key}, want: []string{`zookeeper.tls.ca_file: the file holds no certificate in PEM; give the file with the certificate of the authority, -----BEGIN CERTIFICATE-----`}},
		"authorities of the host": {keys: `tls = {}`},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"agent.toml": "[zookeeper]\nhosts = [\"zk1\"]\n" + tc.keys + "\n[services.a]\ndiscovery = { method = \"zookeeper\", path = \"/a\" }\n"}
			for name, text := range tc.files {
				files[name] = text
			}
			dir := write(t, files)
			for name, mode := range tc.modes {
				require.NoError(t, os.Chmod(filepath.Join(dir, name), mode))
			}
			main := filepath.Join(dir, "agent.toml")
			require.NoError(t, os.Chmod(main, cmp.Or(tc.main, 0o644)))
			a, problems, err := LoadAgent(main, Options{LookupEnv: environment})
			var got []string
			for _, s := range sentences(problems, dir) {
				got = append(got, strings.TrimPrefix(s, "agent.toml:3: "))
				require.NotContains(t, s, "hidden")
				require.NotContains(t, s, "hunter2")
			}
			if len(tc.want) > 0 && strings.Contains(tc.want[0], "failed to parse private key") {
				require.Len(t, got, 1) // the rest of the sentence is the library's
				require.Contains(t, got[0], "take the password off the key")
			} else {
				require.Equal(t, tc.want, got)
			}
			if len(problems.Errors()) == 0 {
				require.NoError(t, err)
				require.Equal(t, a.ZooKeeper, a.Services[0].Discovery.ZooKeeper)
			}
		})
	}
}

// TestSecretIsNotShown: no way to print a configuration prints a login.
func TestSecretIsNotShown(t *testing.T) {
	a, _, err := ParseAgent("x.toml", []byte("[zookeeper]\nhosts = \"zk\"\nauth = { credentials = \"me:hidden\" }\n[services]\n"), Options{})
	require.NoError(t, err)
	require.Equal(t, "me:hidden", string(a.ZooKeeper.Auth.Credentials))
	encoded, err := json.Marshal(a)
	require.NoError(t, err)
	auth := *a.ZooKeeper.Auth
	for _, text := range []string{
		string(encoded), fmt.Sprint(auth), fmt.Sprintf("%v %+v %#v %s %q", auth, auth, auth, auth.Credentials, auth.Credentials),
	} {
		require.NotContains(t, text, "hidden")
		require.Contains(t, text, "(not shown)")
	}
	require.Empty(t, Secret("").String())
}

// TestPathsBeside: a path in the main file is meant from the main file's folder, in files of single services as well.
func TestPathsBeside(t *testing.T) {
	dir := write(t, map[string]string{
		"etc/agent.toml":       "registrar = \"registrar.toml\"\nservice_conf_dir = \"services\"\n",
		"etc/login":            "me:hidden",
		"etc/services/a.toml":  "[discovery]\nmethod = \"zookeeper\"\npath = \"/a\"\nhosts = \"zk\"\nauth = { credentials_file = \"login\" }\n",
		"somewhere/else/login": "",
	})
	t.Chdir(filepath.Join(dir, "somewhere/else"))
	a, _, err := LoadAgent("../../etc/agent.toml", Options{})
	require.NoError(t, err)
	require.Equal(t, "../../etc/registrar.toml", a.Registrar)
	require.Equal(t, "../../etc/login", a.Services[0].Discovery.ZooKeeper.Auth.CredentialsFile)

	g, _, err := ParseRegistrar("x.toml", []byte("instance_id = \"a\"\n"), Options{StateDir: "/of/the/agent"})
	require.NoError(t, err)
	require.Equal(t, "/of/the/agent", g.StateDir)
	g, _, err = ParseRegistrar("x.toml", []byte("instance_id = \"a\"\nstate_dir = \"/own\""), Options{StateDir: "/of/the/agent"})
	require.NoError(t, err)
	require.Equal(t, "/own", g.StateDir)
}
