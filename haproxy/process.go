package haproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
)

// Pacing of a Process.
const (
	startLeast    = 100 * time.Millisecond // back-off between starts
	startMost     = 5 * time.Second
	startTimeout  = 30 * time.Second       // a start, a check or a reload that takes longer has failed
	settleTimeout = 5 * time.Second        // between the end of the starting program and an answer of the master
	lookEvery     = 100 * time.Millisecond // is HAProxy alive, where the master socket does not tell
	fileEvery     = 50 * time.Millisecond
	execEvery     = time.Millisecond       // while a process has no command line
	execTimeout   = 200 * time.Millisecond // and the end of that
	askEvery      = 10 * time.Millisecond  // while a start or a reload is under way
	askTimeout    = 2 * time.Second        // one question to the master
	logMost       = 1 << 20                // bytes of LogPath that are kept over a start
)

// ErrNotRunning is what Reload returns when there is no HAProxy. The next one starts with the file as it is then.
var ErrNotRunning = errors.New("HAProxy is not running")

// errNoFile is a start without a configuration file: it has not been written yet.
var errNoFile = errors.New("there is no configuration file yet")

// errOrphan is a worker whose master was killed. It ends by itself when it notices (2.6: within milliseconds).
var errOrphan = errors.New("the worker of a dead master still serves")

// ProcessOptions are the program and the files of the HAProxy that a Process looks after.
type ProcessOptions struct {
	Binary       string // empty: "haproxy" of the PATH
	ConfigPath   string
	PidPath      string // HAProxy writes its master's pid there
	MasterSocket string // unix socket of the master CLI
	AdminSocket  string // unix socket of the worker, as the file has it: where a HAProxy answers, no second one is started
	LogPath      string // HAProxy's own output is added to it; empty: it is thrown away
	Log          logrus.FieldLogger
}

// Process starts a HAProxy in master-worker mode, adopts the one that runs from its files already, and starts it again
// when it dies. HAProxy is a daemon in a session of its own: it outlives this program, and the next one adopts it.
type Process struct {
	o       ProcessOptions
	check   Check
	started chan struct{}

	mu     sync.Mutex
	status ProcessStatus
}

// ProcessStatus tells about a Process.
type ProcessStatus struct {
	Pid     int       `json:"pid"`             // of the master; 0: not running
	Adopted bool      `json:"adopted"`         // it ran before we looked after it
	Since   time.Time `json:"since,omitzero"`  // of Pid
	Starts  uint64    `json:"starts"`          // by us
	Deaths  uint64    `json:"deaths"`          // that we saw
	Error   string    `json:"error,omitempty"` // why it is not running
}

// NewProcess returns a Process that does nothing until Run is called. Relative paths are relative to the current
// folder of now.
func NewProcess(o ProcessOptions) *Process {
	o.Binary = cmp.Or(o.Binary, "haproxy")
	if o.LogPath == "" {
		o.LogPath = os.DevNull
	}
	for _, path := range []*string{&o.ConfigPath, &o.PidPath, &o.MasterSocket, &o.AdminSocket, &o.LogPath} {
		// A daemon may change its folder, and finds itself again by the paths on its command line.
		if abs, err := filepath.Abs(*path); err == nil && *path != "" {
			*path = abs
		}
	}
	return &Process{o: o, check: CheckWith(o.Binary, startTimeout), started: make(chan struct{}, 1)}
}

// Started gets a value after HAProxy was started or adopted, and when it begins and ends a reload, whoever asked for
// it: it is time to look at its state again. There may be one too many, never one too few. Its capacity is one; what is
// not taken is merged.
func (p *Process) Started() <-chan struct{} { return p.started }

// MasterSocket is the absolute path of the master CLI's socket.
func (p *Process) MasterSocket() string { return p.o.MasterSocket }

// Pid is the pid of HAProxy's master, 0 when none is known to run.
func (p *Process) Pid() int { return p.Status().Pid }

// Status returns a copy.
func (p *Process) Status() ProcessStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

func (p *Process) setStatus(f func(*ProcessStatus)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.status)
}

func (p *Process) signal() {
	select {
	case p.started <- struct{}{}:
	default:
	}
}

// Run keeps HAProxy running until ctx is done, and then leaves it as it is. A configuration file that is missing or
// refused is waited for; nothing is started from it, and nothing that runs is touched.
func (p *Process) Run(ctx context.Context) {
	backoff := startLeast
	for ctx.Err() == nil {
		seen := lookAt(p.o.ConfigPath)
		pid, err := p.find(ctx)
		adopted := pid != 0
		if err == nil && !adopted {
			pid, err = p.start(ctx)
		}
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			p.noteFailure(err)
			p.awaitChange(ctx, seen, backoff/2+rand.N(backoff/2))
			backoff = min(backoff*2, startMost)
			continue
		}
		began := time.Now()
		p.noteRunning(pid, adopted, began)
		p.watch(ctx, pid)
		if ctx.Err() != nil {
			return
		}
		p.o.Log.WithField("pid", pid).Warn("HAProxy ended")
		p.setStatus(func(s *ProcessStatus) { s.Pid = 0; s.Deaths++ })
		if time.Since(began) > startMost {
			backoff = startLeast
			continue
		}
		p.awaitChange(ctx, seen, backoff/2+rand.N(backoff/2)) // it dies at once: do not spin
		backoff = min(backoff*2, startMost)
	}
}

// noteFailure says why there is no HAProxy, once for each reason.
func (p *Process) noteFailure(err error) {
	old := p.Status().Error
	p.setStatus(func(s *ProcessStatus) { s.Error = err.Error() })
	if old == err.Error() {
		return
	}
	switch log := p.o.Log.WithFields(logrus.Fields{"err": err, "path": p.o.ConfigPath}); {
	case errors.Is(err, errNoFile):
		log.Info("HAProxy waits for its file")
	case errors.Is(err, errOrphan):
		log.Warn("HAProxy waits for the end of the former one")
	default:
		log.Error("HAProxy not started")
	}
}

func (p *Process) noteRunning(pid int, adopted bool, now time.Time) {
	p.setStatus(func(s *ProcessStatus) {
		s.Pid, s.Adopted, s.Since, s.Error = pid, adopted, now, ""
		if !adopted {
			s.Starts++
		}
	})
	if adopted {
		p.o.Log.WithField("pid", pid).Info("HAProxy adopted")
	} else {
		p.o.Log.WithField("pid", pid).Info("HAProxy started")
	}
	p.signal()
}

// fileIdentity tells two versions of a file apart. Nil: there is no file.
type fileIdentity struct{ info fs.FileInfo }

func lookAt(path string) fileIdentity {
	info, err := os.Stat(path)
	if err != nil {
		return fileIdentity{}
	}
	return fileIdentity{info}
}

func (a fileIdentity) same(b fileIdentity) bool {
	if a.info == nil || b.info == nil {
		return a.info == b.info
	}
	return os.SameFile(a.info, b.info) && a.info.ModTime().Equal(b.info.ModTime()) && a.info.Size() == b.info.Size()
}

// awaitChange waits for at most d, for less when the configuration file is no longer the one seen.
func (p *Process) awaitChange(ctx context.Context, seen fileIdentity, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for lookAt(p.o.ConfigPath).same(seen) && sleep(ctx, fileEvery) {
	}
}

// sleep waits for d and returns whether ctx is still alive then.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// find returns the pid of the master that runs from our files, 0 when there is none. What the files of a dead one say
// does not count: a socket must answer, and the process of a pid file must be what we would have started. It is an
// error when another HAProxy has our admin socket: a second one would share its ports with it (SO_REUSEPORT).
func (p *Process) find(ctx context.Context) (int, error) {
	if m, err := askMaster(ctx, p.o.MasterSocket); err == nil {
		return m.pid, nil
	}
	if text, err := os.ReadFile(p.o.PidPath); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && p.isOurs(ctx, pid) {
			return pid, nil
		}
	}
	worker := p.workerPid(ctx)
	if worker == 0 {
		return 0, nil
	}
	if pid := parent(worker); p.isOurs(ctx, pid) {
		return pid, nil // someone removed the pid file and the master's socket
	}
	if p.isOurs(ctx, worker) {
		return 0, fmt.Errorf("find HAProxy: %w", errOrphan)
	}
	return 0, fmt.Errorf("find HAProxy: process %d, which was not started from %s, answers on %s; stop it, or leave "+
		"it to whoever runs it by giving haproxy.reload_command", worker, p.o.ConfigPath, p.o.AdminSocket)
}

// workerPid asks the admin socket which process answers on it, 0 when none does.
func (p *Process) workerPid(ctx context.Context) int {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reply, err := ask(ctx, p.o.AdminSocket, "show info")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(reply) {
		if value, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, _ := strconv.Atoi(strings.TrimSpace(value))
			return pid
		}
	}
	return 0
}

// parent is the pid of a process's parent, 0 where that cannot be told.
func parent(pid int) int {
	ppid, _ := strconv.Atoi(procStatus(pid, "PPid:"))
	return ppid
}

// procStatus is a value of /proc/PID/status, empty where there is none.
func procStatus(pid int, key string) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, key); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// isOurs tells whether pid is a living HAProxy started with our files. Pids are reused, so its command line decides,
// which a reload keeps. Where there is no /proc the answer is no, and the master socket is the only witness.
func (p *Process) isOurs(ctx context.Context, pid int) bool {
	if pid <= 1 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, execTimeout) // a kernel thread never has a command line
	defer cancel()
	for {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			return false
		}
		if len(text) > 0 {
			args := strings.Split(string(text), "\x00")
			return follows(args, "-f", p.o.ConfigPath) && follows(args, "-p", p.o.PidPath)
		}
		// Linux shows no command line of a dead process whose parent has not asked for it yet, nor, for a moment, of
		// one that is executing itself anew, as the master does for a reload.
		if state := procStatus(pid, "State:"); state == "" || strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X") {
			return false
		}
		if !sleep(ctx, execEvery) {
			return false
		}
	}
}

// follows tells whether value stands behind flag.
func follows(args []string, flag, value string) bool {
	i := slices.Index(args, flag)
	return i >= 0 && i+1 < len(args) && args[i+1] == value
}

// start starts HAProxy and returns the master's pid. The error has HAProxy's own words.
func (p *Process) start(ctx context.Context) (int, error) {
	if _, err := os.Stat(p.o.ConfigPath); errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("start HAProxy: %w", errNoFile)
	}
	if err := p.check(ctx, p.o.ConfigPath); err != nil {
		return 0, fmt.Errorf("start HAProxy: %w", err)
	}
	log, offset, err := openLog(p.o.LogPath)
	if err != nil {
		return 0, fmt.Errorf("start HAProxy: open the file of its output: %w", err)
	}
	defer log.Close()

	// From here to the end: a stop of this program must not leave half a HAProxy.
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(bounded, findBinary(p.o.Binary), "-W", "-D", "-f", p.o.ConfigPath, "-p", p.o.PidPath,
		"-S", p.o.MasterSocket+",level,admin,mode,600")
	// A file and not a pipe: HAProxy keeps it for longer than we live.
	cmd.Stdout, cmd.Stderr = log, log
	// HAProxy makes itself a session too, but a Ctrl-C before that would hit it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("start HAProxy: %w", withOutput(err, complaints(readFrom(p.o.LogPath, offset))))
	}
	// Between the fork of the worker and its own loop the master refuses connections and loses signals (2.6.12), so
	// its answer is waited for; the pid file alone says less.
	settled, cancel := context.WithTimeout(bounded, settleTimeout)
	defer cancel()
	for again := true; again; again = sleep(settled, askEvery) {
		if m, err := askMaster(settled, p.o.MasterSocket); err == nil {
			return m.pid, nil
		}
	}
	pid, err := p.find(bounded)
	if err == nil && pid == 0 {
		err = withOutput(errors.New("it ended at once"), tail(readFrom(p.o.LogPath, offset)))
	}
	if err != nil {
		return 0, fmt.Errorf("start HAProxy: %w", err)
	}
	return pid, nil
}

// openLog opens the file of HAProxy's output and returns where the next line goes. One that has grown large begins
// anew.
func openLog(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	if !info.Mode().IsRegular() {
		return f, 0, nil
	}
	if info.Size() <= logMost {
		return f, info.Size(), nil
	}
	if err := f.Truncate(0); err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, 0, nil
}

// readFrom reads what was added to a file, for an error message: what cannot be read is not there.
func readFrom(path string, offset int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, _ := io.ReadAll(io.NewSectionReader(f, offset, outputLimit))
	return string(text)
}

// watch returns when the HAProxy with this pid is gone, or ctx is done. The held master connection tells at once; the
// regular look is for a HAProxy whose socket someone removed.
func (p *Process) watch(ctx context.Context, pid int) {
	for {
		held := p.hold(ctx, pid)
		if ctx.Err() != nil || !p.alive(ctx, pid) {
			return
		}
		if held {
			p.signal()
		}
	}
}

// hold returns when the master ends its connections, or when it cannot be held and a look is due or shows that
// HAProxy is gone. It returns whether it was held.
func (p *Process) hold(ctx context.Context, pid int) bool {
	return holdMaster(ctx, p.o.MasterSocket, func() bool {
		// The connection does not tell what happened before it was there: a death is looked for, a reload assumed.
		if !p.alive(ctx, pid) {
			return false
		}
		p.signal()
		return true
	})
}

// alive tells whether the master is still this one. Between the end of a held connection and the first answer of a
// master that executes itself anew are milliseconds in which only its pid speaks for it.
func (p *Process) alive(ctx context.Context, pid int) bool {
	if p.isOurs(ctx, pid) {
		return true
	}
	m, err := askMaster(ctx, p.o.MasterSocket)
	return err == nil && m.pid == pid
}

// Reload lets HAProxy read its file again without closing a connection, and waits until the new worker serves. A file
// that HAProxy refuses is not tried: the old worker stays, and the error has HAProxy's own words. It takes at most a
// minute; calls must not overlap.
func (p *Process) Reload(ctx context.Context) error {
	before, masterErr := askMaster(ctx, p.o.MasterSocket)
	pid := before.pid
	if masterErr != nil {
		var err error
		if pid, err = p.find(ctx); err != nil {
			return fmt.Errorf("reload HAProxy: %w", err)
		}
		if pid == 0 {
			return fmt.Errorf("reload HAProxy: %w", ErrNotRunning)
		}
	}
	if err := p.check(ctx, p.o.ConfigPath); err != nil {
		return fmt.Errorf("reload HAProxy: %w", err)
	}
	if masterErr != nil {
		// No socket, no answer: the master has a signal for it, and the check was all the certainty there is.
		if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
			return fmt.Errorf("reload HAProxy: signal master %d: %w", pid, err)
		}
		return nil
	}

	if err := reloadMaster(ctx, p.o.MasterSocket, before); err != nil {
		return fmt.Errorf("reload HAProxy: %w", err)
	}
	return nil
}
