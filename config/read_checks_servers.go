package config

import (
	"fmt"
	"strings"
)

// serverCheck reads the keys of a check that speaks a server's own protocol. It reports whether the type is one.
func (t *table) serverCheck(c *Check) bool {
	switch c.Type {
	case "redis":
		c.Socket = t.socket()
		t.checkTLS(c)
		t.login(c)
		c.Role = t.choice("role", "", "master", "replica")
		if c.Username != "" && c.Password == "" && c.PasswordFile == "" {
			t.fail("username", "is given without a password", "write password or password_file too, or remove it")
		}
	case "mysql":
		c.Socket = t.socket()
		c.Username = t.str("username", "")
	case "postgres":
		c.Socket = t.socket()
		t.checkTLS(c)
		c.Username, c.Database = t.str("username", ""), t.str("database", "")
	case "rabbitmq": // Nerve's name and defaults; it always logs in
		c.Type = "amqp"
		t.login(c)
		if c.Username == "" {
			c.Username = "guest"
		}
		if c.Password == "" && c.PasswordFile == "" {
			c.Password = "guest"
		}
		c.VirtualHost = t.virtualHost()
		t.checkTLS(c)
	case "amqp":
		t.checkTLS(c)
		t.login(c)
		c.VirtualHost = t.virtualHost()
		if c.Username == "" && (c.Password != "" || c.PasswordFile != "") {
			t.fail("username", "is missing beside the password", "write the user to log in as")
		}
	case "zookeeper":
		t.checkTLS(c)
		c.Word = t.choice("word", "srvr", "srvr", "ruok")
	default:
		return false
	}
	return true
}

func (t *table) virtualHost() string {
	s := t.str("vhost", "/")
	if len(s) > 255 || s == "" {
		t.mismatch("vhost", "the name of a virtual host", `write for example "/"`)
	}
	return s
}

// login reads a user's name and password, the latter here or in a file.
func (t *table) login(c *Check) {
	c.Username = t.str("username", "")
	if len(c.Username) > 255 {
		t.mismatch("username", "the name of a user", "write at most 255 bytes")
	}
	inline, inFile := t.given("password"), t.given("password_file")
	if inline != nil && inFile != nil {
		t.fail("password", "is given beside password_file", "keep one of them")
		return
	}
	c.Password = t.password("password")
	c.PasswordFile = t.beside("password_file")
	t.checkPassword("password_file", c.PasswordFile)
}

// password is one in the file itself. Text from the environment is no part of the file.
func (t *table) password(key string) Secret {
	s := t.str(key, "")
	n := t.value(key)
	if n == nil || s == "" || n.expanded() || t.r.disk.secret == nil {
		return Secret(s)
	}
	if _, mode, err := t.r.disk.secret(n.file); err == nil && mode.Perm()&0o077 != 0 {
		t.warn(key, fmt.Sprintf("stands in a file that others may read (its mode is %04o)", mode.Perm()),
			"chmod it to 0600, or use "+key+"_file or ${NAME}")
	}
	return Secret(s)
}

// checkPassword complains about a file that a login could not use, without a word of what it holds.
func (t *table) checkPassword(key, path string) {
	data, mode, ok := t.secret(key, path, "give the path of a file that holds the password")
	if !ok {
		return
	}
	s := strings.TrimRight(string(data), "\r\n")
	if s == "" || strings.ContainsFunc(s, isControl) {
		t.fail(key, "the file does not hold a password", "write the password into it, in one line")
	}
	if mode.Perm()&0o077 != 0 {
		t.warn(key, fmt.Sprintf("others may read the file (its mode is %04o)", mode.Perm()), "chmod it to 0600")
	}
}
