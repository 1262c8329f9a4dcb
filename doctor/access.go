package doctor

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// User is who a role runs as.
type User struct {
	UID    int
	Groups []int // with its own first
	Super  bool  // it may read and write whatever the modes say (root, or CAP_DAC_OVERRIDE)
	Guess  bool  // the role does not run: it is the caller
}

func (u User) String() string {
	text := fmt.Sprintf("uid %d", u.UID)
	if u.Guess {
		text += " (whoever asks: the role does not run here)"
	}
	return text
}

// Entry of a path: a folder on the way, or what is at its end.
type PathEntry struct {
	Path     string
	Mode     fs.FileMode
	UID, GID int
	ReadOnly bool // it lies in a file system that is mounted read-only for the role
}

// Need is what a role does with a path.
type Need int

// What a role does with paths.
const (
	ToRead    Need = iota // a file
	ToReplace             // a file: written beside and renamed, so that its folder counts
	ToWrite               // into a folder
	ToConnect             // to a unix socket
)

// Path is a file or folder that a role needs.
type Path struct {
	What string // in words, with the key: "state_dir"
	Path string
	Need Need
	User User

	// Chain is the folders from the root down to what was found, in order, with the path itself last where it is there.
	Chain   []PathEntry
	Missing bool   // the path itself is not there
	Unknown string // it could not be looked at
}

const whyPath = "what cannot be read or written there does not come into force, or is lost at a restart"

func (p Path) examine() Finding {
	const id = "permission.path"
	subject := p.What + " " + p.Path
	if p.Unknown != "" {
		return NotKnown(id, subject, p.Unknown, whyPath)
	}
	f := Finding{ID: id, Subject: subject, Why: whyPath, Found: p.User.String() + " can " + p.Need.verb()}
	problem, fix := p.problem()
	if problem == "" {
		return f
	}
	f.Severity, f.Found, f.Fix = Critical, problem, fix
	if p.User.Guess {
		f.Severity = Warning // the role may run as somebody else
	}
	return f
}

func (n Need) verb() string {
	return [...]string{"read it", "replace it", "write there", "connect to it"}[n]
}

// problem says what is in the way; empty: nothing.
func (p Path) problem() (problem, fix string) {
	if len(p.Chain) == 0 {
		return "", ""
	}
	last := p.Chain[len(p.Chain)-1]
	for i, e := range p.Chain {
		folder := e.Mode.IsDir() && (i < len(p.Chain)-1 || p.Need == ToWrite || p.Missing)
		if folder && !p.User.may(e, 1) {
			return fmt.Sprintf("%s cannot enter %s (%s)", p.User, e.Path, e.rights()), p.grant(e, "x")
		}
	}
	switch p.Need {
	case ToRead:
		if p.Missing {
			return "it is not there", "create it, or take the key out of the file"
		}
		if !p.User.may(last, 4) {
			return fmt.Sprintf("%s cannot read it (%s)", p.User, last.rights()), p.grant(last, "r")
		}
	case ToConnect:
		if p.Missing {
			return "", "" // said by what asks there
		}
		if !p.User.may(last, 2) {
			return fmt.Sprintf("%s cannot connect to it (%s)", p.User, last.rights()),
				`write "mode 660 group NAME" with a group of that user on the stats socket line of HAProxy's global section, then reload HAProxy`
		}
	case ToReplace, ToWrite:
		folder := last
		if p.Need == ToReplace && !p.Missing && len(p.Chain) > 1 {
			folder = p.Chain[len(p.Chain)-2]
		}
		switch {
		case !folder.Mode.IsDir():
			return folder.Path + " is no folder", "name a folder, or remove that file"
		case folder.ReadOnly:
			return folder.Path + " is in a file system that is read-only for the process",
				"ReadWritePaths=" + folder.Path + " in the [Service] section of its unit, or mount it writable"
		case !p.User.may(folder, 2|1):
			return fmt.Sprintf("%s cannot write to %s (%s)", p.User, folder.Path, folder.rights()), p.grant(folder, "wx")
		}
	}
	return "", ""
}

// grant gives a file or folder to the role: all of it where it is its own, a right of its group otherwise.
func (p Path) grant(e PathEntry, rights string) string {
	if e.UID == p.User.UID {
		return fmt.Sprintf("chmod u+%s %s", rights, e.Path)
	}
	group := p.User.UID
	if len(p.User.Groups) > 0 {
		group = p.User.Groups[0]
	}
	if e.Path == "/" || strings.Count(e.Path, "/") == 1 {
		return fmt.Sprintf("name a folder of this user instead; %s belongs to the system", e.Path)
	}
	return fmt.Sprintf("chgrp %d %s && chmod g+%s %s", group, e.Path, rights, e.Path)
}

func (e PathEntry) rights() string {
	return fmt.Sprintf("%s, uid %d, gid %d", e.Mode, e.UID, e.GID)
}

// may tells whether the user has all of the bits 4 (read), 2 (write) and 1 (execute, or enter).
func (u User) may(e PathEntry, bits fs.FileMode) bool {
	if u.Super {
		return true
	}
	mode := e.Mode.Perm()
	switch {
	case e.UID == u.UID:
		mode >>= 6
	case slices.Contains(u.Groups, e.GID):
		mode >>= 3
	}
	return mode&bits == bits
}

// Secret is a file that holds a password, a key or credentials.
type Secret struct {
	What    string // in words, with the key
	Path    string
	Mode    fs.FileMode
	Unknown string // it could not be looked at
}

const whySecret = "whoever reads it can do to the registry, or to a service, what Myelin can"

func (s Secret) examine() Finding {
	const id = "permission.secret"
	subject := s.What + " " + s.Path
	if s.Unknown != "" {
		return NotKnown(id, subject, s.Unknown, whySecret)
	}
	f := Finding{ID: id, Subject: subject, Why: whySecret, Found: "mode " + octal(s.Mode)}
	switch {
	case s.Mode.Perm()&0o004 != 0:
		f.Severity, f.Found = Critical, f.Found+": every user of the host can read it"
	case s.Mode.Perm()&0o022 != 0:
		f.Severity, f.Found = Warning, f.Found+": others than its owner can change it"
	}
	if f.Severity > OK {
		f.Fix = "chmod 600 " + s.Path
	}
	return f
}

func octal(m fs.FileMode) string { return fmt.Sprintf("%04o", m.Perm()) }

// Certificate is one that somebody shows to somebody.
type Certificate struct {
	Whose   string // in words: "client of zookeeper.tls", "server zk1:2181"
	File    string // empty: it was shown over the wire
	Name    string // of its subject
	From    time.Time
	Until   time.Time
	Unknown string
}

const whyCertificate = "from that moment on no connection comes about, and sessions end one by one"

func (c Certificate) examine(now time.Time) Finding {
	const id = "tls.expiry"
	subject := strings.TrimSpace(c.Whose + " " + c.File)
	if c.Unknown != "" {
		return NotKnown(id, subject, c.Unknown, whyCertificate)
	}
	left := c.Until.Sub(now)
	f := Finding{ID: id, Subject: subject, Why: whyCertificate,
		Found: fmt.Sprintf("%s is good until %s, for another %s", clip(c.Name), c.Until.UTC().Format("2006-01-02 15:04 MST"), days(left))}
	switch {
	case left <= 0:
		f.Severity, f.Found = Critical, fmt.Sprintf("%s has been out of date for %s, since %s", clip(c.Name), days(-left), c.Until.UTC().Format("2006-01-02 15:04 MST"))
	case now.Before(c.From):
		f.Severity, f.Found = Critical, fmt.Sprintf("%s is not good before %s; look at the clock", clip(c.Name), c.From.UTC().Format("2006-01-02 15:04 MST"))
	case left < 7*24*time.Hour:
		f.Severity = Critical
	case left < 30*24*time.Hour:
		f.Severity = Warning
	}
	if f.Severity > OK {
		f.Fix = "have it renewed by who issued it"
		if c.File != "" {
			f.Fix += ", and put in the place of " + filepath.Base(c.File) + "; a client's certificate is read again at each connection, authorities at a restart"
		}
	}
	return f
}

func days(d time.Duration) string {
	if d < 48*time.Hour {
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
