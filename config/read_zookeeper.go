package config

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// zookeeper reads the top-level zookeeper section. hosts from outside the file take the place of the file's.
func (r *reader) zookeeper(root *table, hosts []string) ZooKeeper {
	z := ZooKeeper{SessionTimeout: 12 * time.Second}
	if t := root.sub("zookeeper"); t != nil {
		z.Hosts, z.Chroot = t.hosts("hosts")
		r.wrongHosts = t.given("hosts") != nil && z.Hosts == nil
		z.SessionTimeout = t.duration("session_timeout", z.SessionTimeout, positive)
		z = t.access("", z)
		t.done()
	}
	if len(hosts) > 0 {
		var err error
		if z.Hosts, z.Chroot, err = ParseHosts(hosts...); err != nil {
			r.wrongHosts = true
			r.problems = append(r.problems, Problem{File: root.n.file, Key: "zookeeper.hosts",
				Text: "the hosts given outside the file are wrong: " + err.Error(), Remedy: "write for example zk1:2181,zk2:2181"})
		}
	}
	return z
}

// serviceZooKeeper is the ensemble of one service: the file's, but for what the service says itself. prefix stands
// before each key, "zk_" in Nerve's schema.
func (t *table) serviceZooKeeper(prefix string, file ZooKeeper) ZooKeeper {
	z := t.access(prefix, file)
	key := prefix + "hosts"
	switch n := t.given(key); {
	case n != nil && n.kind != null:
		if hosts, chroot := t.hosts(key); hosts != nil {
			z.Hosts, z.Chroot = hosts, chroot
		}
	case len(z.Hosts) == 0 && !t.r.wrongHosts:
		t.fail(key, "there are no ZooKeeper hosts", fmt.Sprintf("write %s here, or zookeeper.hosts once for all services", key))
	}
	return z
}

// access reads how an ensemble is spoken to. What is not given stays as it is in z.
func (t *table) access(prefix string, z ZooKeeper) ZooKeeper {
	if s, set := t.optional(prefix + "auth"); set {
		z.Auth = s.auth()
	}
	if s, set := t.optional(prefix + "tls"); set {
		z.TLS = s.tls()
	}
	if key := prefix + "watch"; t.value(key) != nil {
		z.Classic = t.choice(key, "auto", "auto", "classic") == "classic"
	}
	return z
}

// optional is the table below a key, nil when it is false: how a service does without what the file has for all. set
// is false when there is nothing to read.
func (t *table) optional(key string) (s *table, set bool) {
	if n := t.value(key); n != nil && (n.kind == boolean || n.kind == text) && n.text == "false" {
		return nil, true
	}
	s = t.sub(key)
	return s, s != nil
}

const credentialsForm = "user:password"

func (t *table) auth() *ZooKeeperAuth {
	if t == nil {
		return nil
	}
	defer t.done()
	a := &ZooKeeperAuth{Scheme: t.choice("scheme", "digest", "digest")}
	inline, inFile := t.given("credentials"), t.given("credentials_file")
	switch {
	case inFile == nil && inline == nil:
		t.fail("credentials_file", "is missing", "write the path of a file that holds "+credentialsForm)
	case inFile != nil && inline != nil:
		t.fail("credentials", "is given beside credentials_file", "keep one of them")
	case inline != nil:
		a.Credentials = t.credentials("credentials")
	default:
		t.require("credentials_file", "write the path of a file that holds "+credentialsForm)
		a.CredentialsFile = t.beside("credentials_file")
		t.checkCredentials("credentials_file", a.CredentialsFile)
	}
	return a
}

// credentials are a login in the file itself. Text from the environment is no part of the file.
func (t *table) credentials(key string) Secret {
	if !t.require(key, `write "`+credentialsForm+`"`) {
		return ""
	}
	s := t.str(key, "")
	n := t.value(key)
	if n == nil {
		return ""
	}
	if !validCredentials(s) {
		t.mismatch(key, credentialsForm, "write the user's name, a colon and the password")
		return ""
	}
	if n.expanded() || t.r.disk.secret == nil {
		return Secret(s)
	}
	if _, mode, err := t.r.disk.secret(n.file); err == nil && mode.Perm()&0o077 != 0 {
		t.warn(key, fmt.Sprintf("stands in a file that others may read (its mode is %04o)", mode.Perm()),
			"chmod it to 0600, or use credentials_file or ${NAME}")
	}
	return Secret(s)
}

// checkCredentials complains about a file that a login could not use, without a word of what it holds.
func (t *table) checkCredentials(key, path string) {
	data, mode, ok := t.secret(key, path, "give the path of a file that holds "+credentialsForm)
	if !ok {
		return
	}
	if !validCredentials(strings.TrimRight(string(data), "\r\n")) {
		t.fail(key, "the file does not hold "+credentialsForm, "write the user's name, a colon and the password into it, in one line")
	}
	if mode.Perm()&0o077 != 0 {
		t.warn(key, fmt.Sprintf("others may read the file (its mode is %04o)", mode.Perm()), "chmod it to 0600")
	}
}

// validCredentials: a user's name, a colon, and a password that may hold anything else of one line.
func validCredentials(s string) bool {
	user, _, found := strings.Cut(s, ":")
	return found && user != "" && !strings.ContainsFunc(s, isControl)
}

// secret reads a file that the configuration names. ok is false when there is nothing to look at: no path, no disk, or
// a complaint.
func (t *table) secret(key, path, remedy string) (data []byte, mode fs.FileMode, ok bool) {
	if path == "" || t.r.disk.secret == nil || t.at(key).broken {
		return nil, 0, false
	}
	data, mode, err := t.r.disk.secret(path)
	if err != nil {
		t.fail(key, fmt.Sprintf("the file %s cannot be read: %v", t.name(key, path), err), remedy)
		return nil, 0, false
	}
	return data, mode, true
}

// name is a path as a complaint may show it.
func (t *table) name(key, path string) string {
	if n := t.at(key); n.expanded() {
		return n.describe(join(t.path, key))
	}
	return quote(path)
}

func (t *table) tls() *TLS {
	if t == nil {
		return nil
	}
	defer t.done()
	c := &TLS{
		CAFile: t.beside("ca_file"), CertFile: t.beside("cert_file"), KeyFile: t.beside("key_file"),
		ServerName: t.host("server_name", ""), NoVerify: !t.flag("verify", true),
	}
	if c.NoVerify {
		t.warn("verify", "the servers' certificates are not checked, so anybody can be the registry", "remove it as soon as ca_file is there")
	}
	c.CA = t.authorities("ca_file", c.CAFile)
	t.ownCertificate(*c)
	return c
}

// ownCertificate looks at the certificate and the key that say who we are.
func (t *table) ownCertificate(c TLS) {
	if (c.CertFile == "") != (c.KeyFile == "") {
		key, other := "cert_file", "key_file"
		if c.CertFile == "" {
			key, other = other, key
		}
		if t.value(other) == nil && !t.at(other).broken {
			t.fail(key, "is given without "+other, "give both, or none")
		}
		return
	}
	t.checkPair(c.CertFile, c.KeyFile)
}

// authorities reads the certificates of those who are trusted to vouch for servers.
func (t *table) authorities(key, path string) []byte {
	data, _, ok := t.secret(key, path, "give the path of a PEM file with the certificate of the authority")
	if ok && !x509.NewCertPool().AppendCertsFromPEM(data) {
		t.fail(key, "the file holds no certificate in PEM", "give the file with the certificate of the authority, -----BEGIN CERTIFICATE-----")
	}
	return data
}

// checkPair complains about a certificate and a key that no handshake could use.
func (t *table) checkPair(certFile, keyFile string) {
	cert, _, certOK := t.secret("cert_file", certFile, "give the path of a PEM file with this host's certificate")
	key, mode, keyOK := t.secret("key_file", keyFile, "give the path of a PEM file with the key of cert_file")
	if keyOK && mode.Perm()&0o007 != 0 {
		t.warn("key_file", fmt.Sprintf("others may read the file (its mode is %04o)", mode.Perm()), "chmod it to 0600, or 0640")
	}
	if !certOK || !keyOK {
		return
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		remedy := "give the files of one certificate and its key, in PEM"
		if bytes.Contains(key, []byte("ENCRYPTED")) {
			remedy = "take the password off the key, and protect its file with the mode 0600"
		}
		t.fail("cert_file", "the certificate and the key cannot be used: "+strings.TrimPrefix(err.Error(), "tls: "), remedy)
	}
}

// hosts reads a list of ZooKeeper hosts; nil when the key is absent or wrong.
func (t *table) hosts(key string) (hosts []string, chroot string) {
	n := t.value(key)
	if n == nil {
		return nil, ""
	}
	if n.kind == list && len(n.items) == 0 {
		n.broken = true
		t.fail(key, "the list is empty", `write ["zk1:2181", "zk2:2181"]`)
		return nil, ""
	}
	texts := t.lines(key)
	if n.broken || len(texts) == 0 {
		return nil, ""
	}
	hosts, chroot, err := ParseHosts(texts...)
	if err != nil {
		n.broken = true
		wrong := err.Error()
		if n.expanded() {
			wrong = n.describe(join(t.path, key)) + " does not come out as a list of hosts"
		}
		t.fail(key, wrong, `write ["zk1:2181", "zk2:2181"] or "zk1:2181,zk2:2181/chroot"`)
		return nil, ""
	}
	return hosts, chroot
}
