package config

import "time"

// ZooKeeper says how to reach an ensemble.
type ZooKeeper struct {
	Hosts          []string // each "host:port"; comma lists are split and :2181 is added where no port is given
	Chroot         string   // "/chroot" from the end of the host list, or empty
	SessionTimeout time.Duration
	Auth           *ZooKeeperAuth // nil: no login
	TLS            *TLS           // nil: plain connections
	Classic        bool           // watch = "classic": keep to what servers before 3.6 understand
}

// ZooKeeperAuth is a login. Exactly one of CredentialsFile and Credentials is set.
type ZooKeeperAuth struct {
	Scheme          string // "digest"
	CredentialsFile string // holds user:password; read again whenever it is needed
	Credentials     Secret // user:password
}

// Secret is a text that formats and encodes as "(not shown)". Convert it to a string where it is used.
type Secret string

// String does not return the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(not shown)"
}

// GoString does not return the secret.
func (s Secret) GoString() string { return s.String() }

// MarshalText does not return the secret, so that no JSON shows it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// TLS says how to speak TLS to a server.
type TLS struct {
	CAFile            string // PEM; empty: the system's authorities are trusted
	CA                []byte // CAFile's text when the configuration was read
	CertFile, KeyFile string // PEM, both or none: who we are
	ServerName        string // in the server's certificate; empty: the name of the host that is dialled
	NoVerify          bool   // verify = false: any certificate will do
}
