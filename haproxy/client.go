package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// ClientOptions are the limits of a Client. The zero value is good.
type ClientOptions struct {
	Timeout time.Duration // longest wait for one reply; 0: 5 s
	Window  int           // commands that may be unanswered at a time, at most; 0: 16

	// ReadOnly has Apply send nothing: each step fails with ErrReadOnly.
	ReadOnly bool
}

const (
	defaultTimeout = 5 * time.Second
	// defaultWindow: many small commands are fastest so; more at a time bring nothing.
	defaultWindow = 16
	// burst is how long HAProxy may be busy with what is queued. Every add and delete stops all of its threads, and what
	// is queued runs without a pause, so that traffic waits for all of it: beside 10,000 servers, where an add takes 0.1
	// ms, a window of 16 raised the p99 of 300 requests a second five to ten times, one of 2 hardly (2.6.12).
	burst = 500 * time.Microsecond
	// maxReply bounds one reply: 10,000 servers are 0.7 MB of "show servers state".
	maxReply = 256 << 20
	// idTries bounds the search for a free id when one that was thought free is taken.
	idTries = 16
)

// Identity tells which HAProxy process is behind a connection. A connection that was open before a reload stays with
// the old worker for as long as it lives, without a sign: compare Pid and Started with those of a fresh connection.
type Identity struct {
	Pid      int
	Started  int64 // Start_time_sec; 0 before 2.4
	Version  string
	Stopping bool // an old worker that finishes its connections; changes made there are lost
}

// Client is one connection to HAProxy's admin socket, in prompt mode: one command a line, and each reply ends in
// "\n> " on every version. It is used by one goroutine at a time. After an error of the connection itself, and after
// a context that ended during a call, it cannot be used any more (ErrConnectionUnusable): what became of the last
// command is not known.
type Client struct {
	conn     net.Conn
	options  ClientOptions
	identity Identity

	unread []byte // read from conn, not yet part of a reply; it lies in space
	space  []byte // kept from reply to reply, unless a dump made it large
	failed error  // why the connection cannot be used
}

// prompt ends each reply.
const prompt = "\n> "

// Dial connects to the admin socket at path and asks who is there. The caller closes the client.
func Dial(ctx context.Context, path string, o ClientOptions) (*Client, error) {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Window <= 0 {
		o.Window = defaultWindow
	}
	// A backlog that nobody accepts from (HAProxy's "stats maxconn", 10 by default) accepts and stays silent, or
	// blocks: both are bounded.
	dialer := net.Dialer{Timeout: o.Timeout}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to HAProxy: %w", err)
	}
	c := &Client{conn: conn, options: o}
	if err := c.hello(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet HAProxy at %s: %w", path, err)
	}
	return c, nil
}

// hello sets the connection up. "set timeout cli" keeps it open over an idle minute instead of "stats timeout" (10 s).
func (c *Client) hello(ctx context.Context) error {
	var info string
	err := c.exchange(ctx, func() error {
		// The prompt's reply is waited for: from 3.0 on, lines behind the first are only read in prompt mode. The
		// others travel together.
		reply, err := c.roundTrip(ctx, "prompt")
		if err == nil {
			err = judge("prompt", reply, expectNothing)
		}
		if err != nil {
			return err
		}
		settings := []string{"set severity-output number", "set timeout cli 60s"}
		if err := c.write(ctx, []byte(strings.Join(settings, "\n")+"\nshow info\n")); err != nil {
			return err
		}
		for _, command := range settings {
			reply, err := c.read(ctx, command)
			if err == nil {
				err = judge(command, reply, expectNothing)
			}
			if err != nil {
				return err
			}
		}
		info, err = c.read(ctx, "show info")
		return err
	})
	if err != nil {
		return err
	}
	c.identity, err = identityOf(parseInfo(info))
	return err
}

func parseInfo(reply string) map[string]string {
	info := map[string]string{}
	for line := range strings.Lines(reply) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ": "); ok {
			info[name] = value
		}
	}
	return info
}

func identityOf(info map[string]string) (Identity, error) {
	id := Identity{Version: info["Version"], Stopping: info["Stopping"] == "1"}
	var err error
	if id.Pid, err = strconv.Atoi(info["Pid"]); err != nil || id.Version == "" {
		return Identity{}, fmt.Errorf("show info: no Pid or no Version in the reply: %w", ErrUnknownReply)
	}
	if started, ok := info["Start_time_sec"]; ok {
		if id.Started, err = strconv.ParseInt(started, 10, 64); err != nil {
			return Identity{}, fmt.Errorf("show info: Start_time_sec is %q: %w", clip(started), ErrUnknownReply)
		}
	}
	return id, nil
}

// Identity is that of the process at the time of Dial.
func (c *Client) Identity() Identity { return c.identity }

// Close ends the connection. It may be called at any time, more than once.
func (c *Client) Close() error {
	if err := c.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close connection to HAProxy: %w", err)
	}
	return nil
}

// Exec sends one command that reads ("show ...", "get ...") and returns its reply without the prompt. A refusal is
// a *ReplyError. The command's words must be in the alphabet of commands, separated by single blanks.
func (c *Client) Exec(ctx context.Context, command string) (string, error) {
	if _, err := commandLine(strings.Split(command, " ")); err != nil {
		return "", fmt.Errorf("send command: %w", err)
	}
	if expectationOf(command) != expectData {
		return "", fmt.Errorf("send command %q: only show and get are for reading: %w", command, ErrUnsafe)
	}
	var reply string
	err := c.exchange(ctx, func() (err error) {
		reply, err = c.roundTrip(ctx, command)
		return err
	})
	if err != nil {
		return "", err
	}
	if err := judge(command, reply, expectData); err != nil {
		return "", err
	}
	return reply, nil
}

// Info is "show info", by name.
func (c *Client) Info(ctx context.Context) (map[string]string, error) {
	reply, err := c.Exec(ctx, "show info")
	if err != nil {
		return nil, fmt.Errorf("read info: %w", err)
	}
	return parseInfo(reply), nil
}

// Env is the value of a variable in HAProxy's environment; false when it is not set.
func (c *Client) Env(ctx context.Context, name string) (string, bool, error) {
	reply, err := c.Exec(ctx, "show env "+name)
	switch {
	case errors.Is(err, ErrVariableNotFound):
		return "", false, nil
	case err != nil:
		return "", false, fmt.Errorf("read environment: %w", err)
	}
	value, ok := strings.CutPrefix(strings.TrimRight(reply, "\n"), name+"=")
	if !ok {
		return "", false, fmt.Errorf("read environment: %w", &ReplyError{"show env " + name, clip(reply), ErrUnknownReply})
	}
	return value, true, nil
}

// Unpublished names the backends that take no traffic, because they were never published or are no more (3.4). Unlike
// State it waits for a dump of the statistics, one line a backend; not for every round.
func (c *Client) Unpublished(ctx context.Context) ([]string, error) {
	reply, err := c.Exec(ctx, "show stat -1 2 -1")
	if err != nil {
		return nil, fmt.Errorf("read unpublished backends: %w", err)
	}
	names, err := parseUnpublished(reply)
	if err != nil {
		return nil, fmt.Errorf("read unpublished backends: %w", err)
	}
	return names, nil
}

// State reads all backends and their servers. 10,000 servers take HAProxy 10 to 15 ms.
func (c *Client) State(ctx context.Context) (State, error) {
	reply, err := c.Exec(ctx, "show backend")
	if err != nil {
		return nil, fmt.Errorf("read backends: %w", err)
	}
	backends, err := ParseBackends(reply)
	if err != nil {
		return nil, err
	}
	if reply, err = c.Exec(ctx, "show servers state"); err != nil {
		return nil, fmt.Errorf("read servers: %w", err)
	}
	state, err := ParseState(reply)
	if err != nil {
		return nil, err
	}
	for _, b := range backends {
		if _, ok := state[b]; !ok {
			state[b] = nil
		}
	}
	return state, nil
}

// StateOf reads the named backends only. Those that do not exist have no entry.
func (c *Client) StateOf(ctx context.Context, backends ...string) (State, error) {
	state := make(State, len(backends))
	for _, b := range backends {
		if err := CheckName(b); err != nil {
			return nil, fmt.Errorf("read servers: %w", err)
		}
		reply, err := c.Exec(ctx, "show servers state "+b)
		if errors.Is(err, ErrNoBackend) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read servers: %w", err)
		}
		part, err := ParseState(reply)
		if err != nil {
			return nil, err
		}
		state[b] = part[b]
	}
	return state, nil
}

// Result is what became of a step.
type Result struct {
	Step Step // as carried out: an add may have got another id
	Err  error
}

// Apply carries a plan out and reports each step, in the plan's order; an error of one costs no other its chance,
// but for these:
//
// Maint, drain and delete steps of a backend are held back (ErrHeldBack) when an add or ready of that backend
// failed: a server is only taken away when what stands in for it is there. A backend is made before its servers, and
// published behind them; without it they are held back. Deletes are sent one at a time, with
// nothing else on the connection: 2.6.12 crashes when servers are deleted while a dump waits for its reader, so no
// dump of ours may be under way, on this connection or another. A server whose deletion finds it gone counts as
// deleted. An add whose id turns out to be taken is tried again with the ids that follow, 16 at most.
//
// When the connection fails, or ctx ends, steps not yet sent carry that error, and those without a reply too.
func (c *Client) Apply(ctx context.Context, plan Plan) []Result {
	results := make([]Result, len(plan))
	var opening, gain, open, loss, deletes []*job
	for i, s := range plan {
		results[i].Step = s
		j := &job{result: &results[i]}
		switch s.Op {
		case StepAddBackend:
			opening = append(opening, j)
		case StepPublish:
			open = append(open, j)
		case StepMaint, StepDrain, StepUnpublish:
			loss = append(loss, j)
		case StepDelete, StepShutdown, StepDeleteBackend:
			deletes = append(deletes, j)
		default:
			gain = append(gain, j)
		}
	}

	failed := map[string]bool{}
	note := func(jobs []*job) {
		for _, j := range jobs {
			if r := j.result; r.Err != nil && r.Step.Op != StepWeight && r.Step.Op != StepMaxconn {
				failed[r.Step.Backend] = true
			}
		}
	}
	err := c.run(ctx, nil, opening, c.options.Window)
	note(opening)
	hold := func(jobs []*job) []*job {
		if err != nil || len(failed) == 0 {
			return jobs // or they have a better reason not to be sent
		}
		var kept []*job
		for _, j := range jobs {
			if s := j.result.Step; failed[s.Backend] && !s.Wanted {
				j.result.Err = s.failed(fmt.Errorf("%w: an add to this backend failed", ErrHeldBack))
				continue
			}
			kept = append(kept, j)
		}
		return kept
	}
	err = c.run(ctx, err, hold(gain), c.options.Window)
	note(gain)
	err = c.run(ctx, err, hold(open), c.options.Window)
	err = c.run(ctx, err, hold(loss), c.options.Window)
	c.run(ctx, err, hold(deletes), 1)
	return results
}

// job is a step under way.
type job struct {
	result   *Result
	commands [][]string
	next     int    // the command to send
	line     string // the command sent last
	tries    int    // other ids tried
}

// prepare checks the whole step before its first command is sent.
func (j *job) prepare() error {
	if err := j.result.Step.check(); err != nil {
		return err
	}
	j.commands = j.result.Step.words()
	if len(j.commands) == 0 {
		return fmt.Errorf("no commands for the action %d", j.result.Step.Op)
	}
	for _, words := range j.commands {
		if _, err := commandLine(words); err != nil {
			return err
		}
	}
	return nil
}

// answered takes the reply to the command sent last; done says that the step is over.
func (j *job) answered(reply string) (done bool, err error) {
	s := &j.result.Step
	err = judge(j.line, reply, expectationOf(j.line))
	if errors.Is(err, ErrIDTaken) && s.Op == StepAdd && j.next == 0 && j.tries < idTries {
		j.tries++
		s.Server.ID = nextID(s.Server.ID)
		j.commands = s.words()
		return false, nil
	}
	if err != nil {
		return true, err
	}
	j.next++
	return j.next == len(j.commands), nil
}

// run carries jobs out with at most window commands unanswered. A job's next command is sent when its last one
// worked, before jobs that have not begun, so that each server is live as early as can be. Commands of different
// jobs reach HAProxy in the order of jobs as long as each has one command.
//
// The same goroutine writes and reads: what is unanswered is at most 16 times 4 KB, which the socket's buffer takes
// even from a HAProxy that reads nothing, so a write does not wait for a reply to be read.
//
// The error is that of the connection; the jobs it cost carry it too. With an error to begin with nothing is sent.
func (c *Client) run(ctx context.Context, err error, jobs []*job, window int) error {
	var begun, sent []*job
	talk := func() error {
		var out []byte
		pace := pacer{window: window, most: window}
		for {
			out = out[:0]
			for len(sent) < pace.window && len(begun)+len(jobs) > 0 {
				var j *job
				if len(begun) > 0 {
					j, begun = begun[0], begun[1:]
				} else {
					j, jobs = jobs[0], jobs[1:]
					if err := j.prepare(); err != nil {
						j.result.Err = j.result.Step.failed(err)
						continue
					}
				}
				j.line = strings.Join(j.commands[j.next], " ")
				out = append(append(out, j.line...), '\n')
				sent = append(sent, j)
			}
			if len(sent) == 0 {
				return nil
			}
			if err := c.write(ctx, out); err != nil {
				return err
			}
			// All replies that are here already are taken before more is written.
			asked := time.Now()
			unanswered := len(sent)
			for first := true; len(sent) > 0 && (first || c.pending()); first = false {
				reply, err := c.read(ctx, sent[0].line)
				if err != nil {
					return err
				}
				j := sent[0]
				sent = sent[1:]
				done, err := j.answered(reply)
				if err != nil {
					j.result.Err = j.result.Step.failed(err)
				}
				if !done {
					begun = append(begun, j)
				}
			}
			pace.answered(unanswered-len(sent), time.Since(asked))
		}
	}
	if err == nil && len(jobs) > 0 {
		// Whatever changes HAProxy comes by here: Exec sends only what reads.
		if err = ErrReadOnly; !c.options.ReadOnly {
			err = c.exchange(ctx, talk)
		}
	}
	if err != nil {
		for _, group := range [][]*job{sent, begun, jobs} {
			for _, j := range group {
				j.result.Err = j.result.Step.failed(err)
			}
		}
	}
	return err
}

// pacer keeps the window as wide as HAProxy can empty in a burst.
type pacer struct {
	window, most int
	cost         time.Duration // of one command, lately
}

// answered takes in that n commands were answered in d.
func (p *pacer) answered(n int, d time.Duration) {
	each := d / time.Duration(n)
	if p.cost == 0 {
		p.cost = each
	}
	p.cost += (each - p.cost) / 8
	p.window = min(max(int(burst/max(p.cost, 1)), 1), p.most)
}

// exchange runs a conversation under ctx. When it fails the connection is closed: a reply that is still to come
// would be taken for that of a later command.
func (c *Client) exchange(ctx context.Context, talk func() error) error {
	if c.failed != nil {
		return fmt.Errorf("%w: %w", ErrConnectionUnusable, c.failed)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	err := talk()
	if err == nil && len(c.unread) > 0 {
		err = fmt.Errorf("%d bytes behind the last reply: %w", len(c.unread), ErrUnknownReply)
	}
	if !stop() {
		// The deadline of the past may yet be set: the connection is spent even where all went well.
		c.failed = context.Cause(ctx)
		c.conn.Close()
	}
	if err != nil {
		c.failed = err
		c.conn.Close()
	}
	return err
}

func (c *Client) roundTrip(ctx context.Context, command string) (string, error) {
	if err := c.write(ctx, append([]byte(command), '\n')); err != nil {
		return "", err
	}
	return c.read(ctx, command)
}

// arm sets the deadline for what follows. ctx is looked at afterwards, so that an end of ctx is never overwritten.
func (c *Client) arm(ctx context.Context) error {
	if err := c.conn.SetDeadline(time.Now().Add(c.options.Timeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	return ctx.Err()
}

func (c *Client) write(ctx context.Context, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := c.arm(ctx); err != nil {
		return err
	}
	if _, err := c.conn.Write(b); err != nil {
		return fmt.Errorf("send command: %w", orCause(ctx, err))
	}
	return nil
}

// pending tells whether a whole reply has been read from the connection already.
func (c *Client) pending() bool { return bytes.Contains(c.unread, []byte(prompt)) }

// read takes one reply, without its prompt. The wait is bounded as a whole: a HAProxy that sends a byte now and then
// is no better than one that is silent.
func (c *Client) read(ctx context.Context, command string) (string, error) {
	if i := bytes.Index(c.unread, []byte(prompt)); i >= 0 {
		return c.take(i), nil
	}
	if err := c.arm(ctx); err != nil {
		return "", err
	}
	for {
		searched := max(0, len(c.unread)-len(prompt)+1)
		c.makeRoom()
		n, err := c.conn.Read(c.unread[len(c.unread):cap(c.unread)])
		c.unread = c.unread[:len(c.unread)+n]
		if i := bytes.Index(c.unread[searched:], []byte(prompt)); i >= 0 {
			return c.take(searched + i), nil
		}
		switch {
		case errors.Is(err, io.EOF):
			return "", fmt.Errorf("read reply to %q: %w", command, io.ErrUnexpectedEOF)
		case err != nil:
			return "", fmt.Errorf("read reply to %q: %w", command, orCause(ctx, err))
		case len(c.unread) > maxReply:
			return "", fmt.Errorf("read reply to %q: more than %d bytes: %w", command, maxReply, ErrUnknownReply)
		}
	}
}

// take cuts the reply of n bytes and its prompt off what was read.
func (c *Client) take(n int) string {
	reply := string(c.unread[:n])
	c.unread = c.unread[n+len(prompt):]
	return reply
}

// usualSpace takes any reply but a dump, and what a window of small ones adds up to.
const usualSpace = 16 << 10

// makeRoom has at least 4 KB behind what is unread.
func (c *Client) makeRoom() {
	const room = 4 << 10
	switch n := len(c.unread); {
	case n == 0 && cap(c.space) != usualSpace: // the first reply, or a dump came before
		c.space = make([]byte, 0, usualSpace)
		c.unread = c.space
	case cap(c.unread)-n >= room:
	case n+room <= cap(c.space):
		c.unread = append(c.space[:0], c.unread...) // its own bytes, moved to the front
	default:
		c.space = append(make([]byte, 0, max(usualSpace, 2*n+room)), c.unread...)
		c.unread = c.space
	}
}

// orCause is ctx's own error when it is what ended the conversation.
func orCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
