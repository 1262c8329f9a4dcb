package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// A service's haproxy keys may also come from the registry: from the data of the znode that generator_config_path
// names. Whoever can write that znode then writes lines of haproxy.cfg, so that they are judged here, by our own rules
// first and by HAProxy second, and what is bad costs only itself.

// allowedRemotely judges lines and server options that come from the registry. What is allowed says how a service is
// balanced, checked and routed; it names no file, no address, no program and no variable.
func allowedRemotely(key string, lines []string) error {
	for _, line := range lines {
		var err error
		if key == "server_options" {
			err = allowedOptions(line)
		} else {
			err = allowedLine(line)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func allowedOptions(text string) error {
	words := splitWords(text)
	for i, w := range words { // a template's value is as harmless as the server that it is about
		words[i] = strings.NewReplacer("%{host}", "h", "%{name}", "n", "%{port}", "1").Replace(w)
	}
	v := haproxy.RegistryOptions(words, allowedWords(config.RegistryWords()))
	if bad := append(v.Ignored, v.Refused...); len(bad) > 0 {
		return fmt.Errorf("%q cannot come from the registry", strings.Join(bad, ", "))
	}
	return nil
}

func allowedLine(line string) error {
	// Quotes join what they stand beside: HAProxy reads "-"f as -f and e"nv"(X) as env(X).
	words := strings.Fields(strings.NewReplacer(`"`, "", "'", "").Replace(strings.ToLower(line)))
	if len(words) == 0 {
		return nil
	}
	if words[0] == "no" {
		words = words[1:]
	}
	second := ""
	if len(words) > 1 {
		second = words[1]
	}
	if len(words) == 0 || !remoteKeyword(words[0], second) {
		return fmt.Errorf("the line %q cannot come from the registry", line)
	}
	for _, w := range words {
		for _, part := range []string{"$", `\`, "file", "lua", "map", "env(", "exec", "jwt", "proc."} {
			if strings.Contains(w, part) {
				return fmt.Errorf("the line %q cannot come from the registry: it has %q", line, part)
			}
		}
		// A check that goes to an address may go to any socket of the host, HAProxy's own among them, and send it commands.
		elsewhere := w == "addr" && (words[0] == "http-check" || words[0] == "tcp-check")
		if w == "-f" || w == "-m" && words[0] != "acl" || elsewhere {
			return fmt.Errorf("the line %q cannot come from the registry: it has %q", line, w)
		}
	}
	return nil
}

// remoteKeyword tells whether the registry may use a keyword of HAProxy's configuration, by its first two words.
func remoteKeyword(first, second string) bool {
	switch first {
	case "acl", "backlog", "balance", "capture", "compression", "cookie", "fullconn", "hash-balance-factor", "hash-type",
		"http-check", "http-reuse", "max-keep-alive-queue", "max-session-srv-conns", "maxconn", "mode", "monitor-uri",
		"rate-limit", "redirect", "retries", "retry-on", "tcp-check", "timeout", "use_backend":
		return true
	case "option":
		return second != "external-check" && second != "transparent" && second != "http_proxy"
	case "http-request", "http-response":
		action, _, _ := strings.Cut(second, "(")
		return slices.Contains([]string{"add-header", "allow", "del-header", "deny", "redirect", "replace-header", "replace-path",
			"replace-value", "set-header", "set-method", "set-path", "set-query", "set-status", "set-timeout", "tarpit"}, action)
	}
	return false
}

// remotely is a configuration with what the registry holds for its services laid over it, and what is wrong with that, by
// service. data is by service. base is not changed.
func remotely(base *config.Agent, data map[string][]byte) (*config.Agent, map[string][]string) {
	c := *base
	c.Services = slices.Clone(base.Services)
	problems := map[string][]string{}
	for i, s := range base.Services {
		text := data[s.Name]
		if len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		laid, wrong, err := s.Remote(s.Discovery.GeneratorConfigPath, text, allowedRemotely)
		if err != nil {
			problems[s.Name] = append(problems[s.Name], err.Error())
			continue
		}
		for _, p := range wrong {
			problems[s.Name] = append(problems[s.Name], p.Key+": "+p.Text)
		}
		if !base.HAProxy.DoWrites && laid.HAProxy.BackendName != s.HAProxy.BackendName {
			laid.HAProxy.BackendName = s.HAProxy.BackendName // it would choose among the sections of people's file
			problems[s.Name] = append(problems[s.Name], "haproxy.backend_name: cannot come from the registry where do_writes is off")
		}
		c.Services[i] = laid
		if clash := c.Clash(i); clash != "" {
			c.Services[i].HAProxy = s.HAProxy
			problems[s.Name] = append(problems[s.Name], "haproxy: "+clash)
		}
	}
	return &c, problems
}

const (
	remoteGap   = 10 * time.Second
	remoteMost  = 5 * time.Minute  // the gap, for who changes it again and again: it doubles each time
	remoteCalm  = 10 * time.Minute // without a change, until the gap is the least one again
	remoteRetry = time.Second      // until what may be acceptable later is judged again, at least
)

var (
	errNotAsked  = errors.New("HAProxy cannot be asked whether it would take it")
	errPortInUse = errors.New("another program listens on the port")
)

// remotes looks after the configuration that the registry holds. Its goroutine judges; what it accepts is put in force by
// the one that collects the views.
type remotes struct {
	base     *config.Agent
	path     string                                           // where what is accepted is kept, for a start without the registry; empty: nowhere
	judge    func(ctx context.Context, c *config.Agent) error // errNotAsked: it is not known
	wake     chan struct{}                                    // capacity one
	accepted chan *config.Agent                               // to be put in force; unbuffered
	gap      time.Duration                                    // least time between two that are put in force: each may cost a reload
	log      logrus.FieldLogger

	mu       sync.Mutex
	heard    map[string][]byte // by service, the latest
	applied  map[string][]byte // what was accepted
	problems map[string][]string
}

// newRemotes takes up what was accepted last, by before or else by the process before, and returns the configuration to
// begin with.
func newRemotes(c *config.Agent, before *remotes, judge func(context.Context, *config.Agent) error, log logrus.FieldLogger) (*remotes, *config.Agent) {
	r := &remotes{
		base: c, path: remotePath(c), judge: judge, gap: remoteGap, log: log, wake: make(chan struct{}, 1), accepted: make(chan *config.Agent),
		heard: map[string][]byte{}, applied: map[string][]byte{}, problems: map[string][]string{},
	}
	kept := before.inForce(c)
	if before == nil {
		var err error
		if kept, err = readRemotes(c); err != nil {
			log.WithField("err", err).Warn("the kept configuration of the registry cannot be read; the registry is waited for")
		}
	}
	if len(kept) == 0 {
		return r, c
	}
	ctx := context.Background()
	begin, problems := remotely(c, kept)
	if err := judge(ctx, begin); err == nil || errors.Is(err, errNotAsked) { // it was in force, so HAProxy took it once
		r.applied, r.problems = kept, problems
		return r, begin
	}
	// Something of it does not go with the file. The others are not to suffer.
	r.heard = kept
	defer func() { r.heard = map[string][]byte{} }()
	if next, _ := r.consider(ctx); next != nil {
		return r, next
	}
	return r, c
}

// inForce is what was accepted for services that still look for it where it was found.
func (r *remotes) inForce(c *config.Agent) map[string][]byte {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string][]byte{}
	for _, s := range c.Services {
		was := indexOf(r.base, s.Name)
		if was >= 0 && len(r.applied[s.Name]) > 0 && looksForRemote(s) && r.base.Services[was].Discovery.GeneratorConfigPath == s.Discovery.GeneratorConfigPath {
			out[s.Name] = r.applied[s.Name]
		}
	}
	return out
}

func remotePath(c *config.Agent) string {
	if c.StateDir == "" {
		return ""
	}
	return filepath.Join(c.StateDir, "generator-config.json")
}

// readRemotes reads what was kept for services that still look for it where it was found.
func readRemotes(c *config.Agent) (map[string][]byte, error) {
	if remotePath(c) == "" {
		return nil, nil
	}
	text, err := os.ReadFile(remotePath(c))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	var kept map[string]keptRemote
	if err := json.Unmarshal(text, &kept); err != nil {
		return nil, fmt.Errorf("read %s: %w", remotePath(c), err)
	}
	out := map[string][]byte{}
	for _, s := range c.Services {
		if k, ok := kept[s.Name]; ok && looksForRemote(s) && k.Path == s.Discovery.GeneratorConfigPath {
			out[s.Name] = k.Data
		}
	}
	return out, nil
}

// keptRemote is one service's in the file of what was accepted.
type keptRemote struct {
	Path string `json:"path"`
	Data []byte `json:"data"`
}

// looksForRemote tells whether a service's configuration may come from the registry.
func looksForRemote(s config.Service) bool {
	d := s.Discovery
	return strings.HasPrefix(d.Method, "zookeeper") && d.GeneratorConfigPath != "" && d.GeneratorConfigPath != "disabled"
}

// hear takes in what the registry holds for a service now.
func (r *remotes) hear(service string, data []byte) {
	r.mu.Lock()
	old, known := r.heard[service]
	r.heard[service] = data
	r.mu.Unlock()
	if !known || !bytes.Equal(old, data) {
		signal(r.wake)
	}
}

// run judges what was heard, until ctx is done.
func (r *remotes) run(ctx context.Context) {
	var again <-chan time.Time // nil: nothing waits for better days
	var last time.Time         // when something was put in force
	var pause time.Duration
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-again:
		}
		next, later := r.consider(ctx)
		if again = nil; later {
			again = time.After(max(r.gap, remoteRetry))
		}
		if next == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case r.accepted <- next:
		}
		if pause = min(2*pause, remoteMost); time.Since(last) > remoteCalm {
			pause = r.gap
		}
		last = time.Now()
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// consider tries each service's news by itself, on top of what is in force: one that HAProxy refuses costs no other its
// own. It returns what is to be in force, nil when that is what is, and whether some may be acceptable later.
func (r *remotes) consider(ctx context.Context) (next *config.Agent, later bool) {
	r.mu.Lock()
	heard, applied, problems := maps.Clone(r.heard), maps.Clone(r.applied), maps.Clone(r.problems)
	r.mu.Unlock()
	changed := false
	for _, service := range slices.Sorted(maps.Keys(heard)) {
		if bytes.Equal(heard[service], applied[service]) || len(applied[service]) == 0 && unmeant(r.base, service, heard[service]) {
			delete(problems, service)
			if _, wrong := remotely(r.base, applied); len(wrong[service]) > 0 {
				problems[service] = wrong[service]
			}
			continue
		}
		try := maps.Clone(applied)
		try[service] = heard[service]
		c, wrong := remotely(r.base, try)
		if err := r.acceptable(ctx, c, service, try, applied); err != nil {
			if ctx.Err() != nil {
				return nil, false
			}
			later = later || errors.Is(err, errNotAsked) || errors.Is(err, errPortInUse)
			problems[service] = []string{err.Error() + "; what was in force before stays"}
			continue
		}
		applied, changed = try, true
		if delete(problems, service); len(wrong[service]) > 0 {
			problems[service] = wrong[service]
		}
	}
	r.note(problems)
	if !changed {
		return nil, later
	}
	r.mu.Lock()
	r.applied = applied
	r.mu.Unlock()
	if err := r.keep(applied); err != nil {
		r.log.WithField("err", err).Warn("the registry's configuration cannot be kept on disk; a start without the registry would not know it")
	}
	next, _ = remotely(r.base, applied)
	return next, later
}

// unmeant tells of data that nobody wrote as a configuration: other programs leave their host's address, or a word, in the
// parents that they make.
func unmeant(c *config.Agent, service string, data []byte) bool {
	i := indexOf(c, service)
	if i < 0 || bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		return false
	}
	d := c.Services[i].Discovery
	return d.GeneratorConfigPath == d.Path
}

func indexOf(c *config.Agent, service string) int {
	return slices.IndexFunc(c.Services, func(s config.Service) bool { return s.Name == service })
}

// unusableRemote tells why nothing of data can be laid over a service.
func unusableRemote(c *config.Agent, service string, data []byte) error {
	i := indexOf(c, service)
	if i < 0 || len(bytes.TrimSpace(data)) == 0 {
		return nil
	}
	_, _, err := c.Services[i].Remote(c.Services[i].Discovery.GeneratorConfigPath, data, allowedRemotely)
	return err
}

// acceptable tells why c, which try leads to, is not to take the place of what applied leads to. They differ in service.
func (r *remotes) acceptable(ctx context.Context, c *config.Agent, service string, try, applied map[string][]byte) error {
	if err := unusableRemote(r.base, service, try[service]); err != nil {
		return err
	}
	now, _ := remotely(r.base, applied)
	i := indexOf(c, service)
	if i >= 0 && len(try[service]) > 0 && c.HAProxy.DoWrites && c.Services[i].HAProxy.PortSet && c.Bind(i) != now.Bind(i) {
		if err := portFree(c.Bind(i)); err != nil {
			return err
		}
	}
	return r.judge(ctx, c)
}

// portFree tells whether HAProxy could bind to an address that it does not have yet. Its own check of a file does not
// try, and a port that another program has would keep it from every reload, and from its next start.
func portFree(bind string) error {
	l, err := net.Listen("tcp", strings.TrimPrefix(bind, "*"))
	if err == nil {
		return l.Close()
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("haproxy.port: %w: %s; stop that program or choose another port", errPortInUse, bind)
	}
	return nil // HAProxy may have other rights, or another name for the address
}

func (r *remotes) keep(applied map[string][]byte) error {
	if r.path == "" {
		return nil
	}
	kept := map[string]keptRemote{}
	for _, s := range r.base.Services {
		if data := applied[s.Name]; len(data) > 0 {
			kept[s.Name] = keptRemote{s.Discovery.GeneratorConfigPath, data}
		}
	}
	text, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	return replaceFile(r.path, r.path+".tmp", text)
}

// note says each new problem once.
func (r *remotes) note(problems map[string][]string) {
	r.mu.Lock()
	before := r.problems
	r.problems = problems
	r.mu.Unlock()
	for _, service := range slices.Sorted(maps.Keys(problems)) {
		for _, p := range problems[service] {
			if !slices.Contains(before[service], p) {
				r.log.WithFields(logrus.Fields{"service": service, "err": p}).Error("configuration from the registry is not used; correct the data of generator_config_path")
			}
		}
	}
}

// status is a service's part of it.
func (r *remotes) status(service string) (applied bool, problems []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.applied[service]) > 0, slices.Clone(r.problems[service])
}

// paired is the source of a service whose configuration lies elsewhere in the registry than its instances: the first
// one's snapshots with the second one's data. While nothing is known of the second, the first goes on without.
type paired struct{ instances, data discovery.Source }

// Run implements discovery.Source. Either source's end is its end.
func (p paired) Run(ctx context.Context, out chan<- discovery.Snapshot) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	defer running.Wait()
	start := func(s discovery.Source) <-chan discovery.Snapshot {
		c := make(chan discovery.Snapshot)
		running.Go(func() { cancel(s.Run(ctx, c)) })
		return c
	}
	first, second := start(p.instances), start(p.data)
	var latest, data discovery.Snapshot
	var send chan<- discovery.Snapshot // out while latest has not been taken
	known := false
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case send <- latest:
			send = nil
			continue
		case s := <-first:
			s.Version = latest.Version
			latest, known = s, true
		case data = <-second:
		}
		if known {
			latest.Data, latest.DataRead = data.Data, data.DataRead
			if send == nil {
				latest.Version++
			}
			send = out
		}
	}
}
