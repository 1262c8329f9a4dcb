package registrar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ZooKeeperOptions describe a check of a ZooKeeper server.
type ZooKeeperOptions struct {
	Host string      // an IP (IPv6 with or without brackets) or a name, resolved anew for each check
	Port uint16      // the port of clients
	TLS  *TLSOptions // nil: plain TCP
	Word string      // "srvr", or "ruok" that asks only whether the process runs; empty: srvr
}

// ZooKeeper passes when the server says that it serves requests: as leader, follower, observer or alone.
//
// It asks with one of the four-letter words, which open no session and leave nothing in the server's log but a line of
// the level debug or info.
type ZooKeeper struct{ o ZooKeeperOptions }

// NewZooKeeper refuses words that it does not know the answer to.
func NewZooKeeper(o ZooKeeperOptions) (ZooKeeper, error) {
	if o.Word == "" {
		o.Word = "srvr"
	}
	if o.Word != "srvr" && o.Word != "ruok" {
		return ZooKeeper{}, fmt.Errorf("make zookeeper check: word %q is neither srvr nor ruok", o.Word)
	}
	if err := o.TLS.valid(); err != nil {
		return ZooKeeper{}, fmt.Errorf("make zookeeper check: %w", err)
	}
	return ZooKeeper{o}, nil
}

// Check asks once, over a connection of its own.
func (c ZooKeeper) Check(ctx context.Context) error {
	return converse(ctx, place{host: c.o.Host, port: c.o.Port}, c.o.TLS, func(t *conversation) error {
		if err := t.send([]byte(c.o.Word)); err != nil {
			return err
		}
		answer, err := io.ReadAll(readerFunc(t.readSome)) // the server closes behind its answer
		if err != nil {
			return err
		}
		return zooKeeperAnswer(c.o.Word, string(answer))
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// zooKeeperAnswer says what is wrong with a server that answers a word thus. To srvr a server that works says lines of
// "key: value", one of them "Mode: leader" and the like.
func zooKeeperAnswer(word, answer string) error {
	switch {
	case answer == "":
		return fmt.Errorf("read answer: %w", errClosed)
	case strings.Contains(answer, "is not in the whitelist"):
		return fmt.Errorf("the server does not answer %s; add it to 4lw.commands.whitelist in its zoo.cfg", word)
	case strings.HasPrefix(answer, "This ZooKeeper instance is not currently serving requests"):
		return errors.New("the server is not serving requests: it has no quorum, or has just started")
	case word == "ruok":
		if answer != "imok" {
			return stranger("ZooKeeper", []byte(answer))
		}
		return nil
	case !strings.HasPrefix(answer, "Zookeeper version:"):
		return stranger("ZooKeeper", []byte(answer))
	}
	for line := range strings.Lines(answer) {
		mode, found := strings.CutPrefix(strings.TrimRight(line, "\r\n"), "Mode: ")
		if !found {
			continue
		}
		switch mode {
		case "leader", "follower", "observer", "standalone":
			return nil
		case "read-only":
			return errors.New("the server is read-only: it has no quorum")
		}
		return fmt.Errorf("the server's mode is %q", plain(mode))
	}
	return errors.New("the server does not say its mode")
}
