package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"syscall"
	"time"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
)

// awaited is what the agents are to have of one instance.
type awaited struct {
	service  string
	instance discovery.Endpoint
	node     string // of the override that counts for it; empty: it is as registered
	revision int32
	ends     bool      // its sessions are to end
	created  time.Time // of the override: one that was removed and made anew begins with the same revision
}

// expect notes what agents have to tell before the deed is in force. Instances with a narrower override of their own
// are none of its business.
func (d *deed) expect(known standing, now time.Time) {
	all := d.after(known, now)
	instances := 0
	for _, s := range known.services {
		of := all.Of(s.service, now)
		for _, e := range s.instances {
			if covers(d.override.Target, s.service, e) {
				d.expectOne(of, s.service, e)
				instances++
			}
		}
	}
	if t := d.override.Target; instances == 0 && t.Service != "" && t.Port != 0 { // it may be there for an agent
		if e, err := discovery.ParseEndpoint(t.Host, int(t.Port)); err == nil {
			d.expectOne(all.Of(t.Service, now), t.Service, e)
		}
	}
}

func (d *deed) expectOne(of discovery.ServiceOverrides, service string, e discovery.Endpoint) {
	w := awaited{service: service, instance: e}
	if o := of.For(e); o != nil {
		if o.Target.Narrowness() > d.override.Target.Narrowness() {
			return
		}
		w.node, w.revision, w.created = o.Node, o.Revision, o.Created
		w.ends = o.Action == discovery.ActionDrain || o.Action == discovery.ActionMaint
	}
	d.awaited = append(d.awaited, w)
}

// Words of agent.ServerStatus about servers that HAProxy does not have, and of what nobody could tell.
const (
	absentServer  = "absent"
	unknownServer = "unknown"
)

// lacks says what is missing until a server is as it is to be; empty: nothing.
func (w awaited) lacks(s agent.ServerStatus) string {
	switch {
	case s.Admin == absentServer && s.Wanted == absentServer:
		return ""
	case s.Admin == absentServer && s.Wanted == unknownServer: // it may join in a moment, and not as the override says
		return "the agent has heard nothing of the service yet"
	case s.Wanted == unknownServer && s.Foreign != "" && s.Error == "":
		return "the agent leaves it alone: " + printable(s.Foreign)
	case s.Error != "":
		return "HAProxy does not tell: " + printable(s.Error)
	case s.Admin == unknownServer:
		return "HAProxy does not tell"
	case w.node != "" && (s.Override != w.node || s.OverrideRevision < w.revision || s.OverrideCreated != nil && s.OverrideCreated.Before(w.created)):
		return "the agent has not heard of it yet"
	case w.node == "" && s.Override != "":
		return "the agent has not heard of its end yet"
	case s.Admin != s.Wanted:
		return printable(s.Admin) + " yet, and not " + printable(s.Wanted)
	case w.ends && s.Sessions < 0:
		return "HAProxy does not tell its sessions"
	case w.ends && s.Sessions > 0:
		return counted(s.Sessions, "session")
	case !w.ends && s.Admin == "ready" && s.WeightWanted >= 0 && s.Weight >= 0 && s.Weight != s.WeightWanted:
		return fmt.Sprintf("weight %d yet, and not %d", s.Weight, s.WeightWanted)
	}
	return ""
}

// agentAddress is an agent to be asked.
type agentAddress struct {
	address string
	maybe   bool // it is only supposed that there is one
}

// agentsToAsk are that of this host, and the others that are named. Where others are named and no file is given, there
// may be none on this host: commands are given on hosts without one, too.
func (a *app) agentsToAsk(others []string) ([]agentAddress, error) {
	address, err := a.agentListen()
	if err != nil {
		return nil, err
	}
	all := []agentAddress{{address, a.configFile == "" && len(others) > 0}}
	for _, o := range others {
		if _, port, err := parsePlace(o); err != nil || port == 0 {
			return nil, usage("--agent %s: write HOST:PORT of its pages", printable(o))
		}
		if !slices.Contains(all, agentAddress{o, false}) {
			all = append(all, agentAddress{o, false})
		}
	}
	return all, nil
}

// agentListen is where the agent of this host answers: at admin.listen of -c FILE, if that is an agent's.
func (a *app) agentListen() (string, error) {
	if a.configFile != "" {
		kind, err := config.Detect(a.configFile, a.options(false))
		if err != nil {
			return "", err
		}
		if kind == config.KindRegistrar {
			return config.DefaultAdminListen, nil
		}
	}
	return a.statusAddress()
}

// Pauses and bounds of waiting.
const (
	lookPause   = 250 * time.Millisecond // between two rounds of questions, or longer where these take long
	lookMost    = 5 * time.Second        // for one question
	askSingly   = 8                      // instances of a service; more are asked for together
	firstAnswer = 3 * time.Second        // for an agent that has never answered
	lineEvery   = 10 * time.Second       // between two lines of progress where nobody sees the line that is written over
)

// peer is an agent while it is asked.
type peer struct {
	agentAddress
	heard   bool  // it has answered
	given   bool  // it is not asked any more: the reason is err
	err     error // of the last question
	waiting []lacking
}

// none tells that there is no agent where one was only supposed.
func (p *peer) none() bool {
	return p.maybe && !p.heard && errors.Is(p.err, syscall.ECONNREFUSED)
}

// lacking is a server that is not as it is to be, and why.
type lacking struct {
	awaited
	server agent.ServerStatus
	why    string
}

// outcome is what became of waiting.
type outcome struct {
	servers int      // that are as they are to be
	agents  int      // that have told so
	missing []string // in words
	err     error    // with its exit code; nil: confirmed
}

// await asks the agents over and over, until all that is wanted is in force and sessions have ended, or the time is
// over. It tells how far that is.
func (a *app) await(ctx context.Context, all []awaited, agents []agentAddress) *outcome {
	peers := make([]*peer, len(agents))
	for i, p := range agents {
		peers[i] = &peer{agentAddress: p}
	}
	tell := a.teller()
	defer tell.progress.done()
	began, last := time.Now(), &outcome{}
	for {
		round, out := time.Now(), &outcome{}
		pending := false
		for _, p := range peers {
			if p.given {
				continue
			}
			out.servers += p.look(ctx, all)
			if p.err != nil && !p.heard && (p.none() || time.Since(began) >= firstAnswer) {
				p.given = true
			}
			pending = pending || !p.given && (p.err != nil || len(p.waiting) > 0)
		}
		if ctx.Err() != nil { // this round is not whole
			var stop stopSignal
			if last.agents == 0 && len(last.missing) == 0 && !errors.As(context.Cause(ctx), &stop) { // it is all there is
				out.count(peers)
				last = out
			}
			return last.ended(ctx)
		}
		out.count(peers)
		if last = out; !pending {
			return out.settled()
		}
		tell.say(out)
		select {
		case <-ctx.Done():
			return last.ended(ctx)
		case <-time.After(max(lookPause, min(4*time.Since(round), lookMost))):
		}
	}
}

// look asks one agent about all that is awaited, and returns how many servers are as they are to be.
func (p *peer) look(ctx context.Context, all []awaited) (settled int) {
	p.err, p.waiting = nil, nil
	for service, of := range byService(all) {
		n, err := p.lookAt(ctx, service, of)
		settled += n
		var none *unknownError
		switch {
		case errors.As(err, &none): // it does not have the service: there is nothing to wait for
		case err != nil:
			p.err = err
			return settled
		}
	}
	p.heard = true
	return settled
}

// lookAt asks about the instances of one service. Where there are many they are asked for together; those that HAProxy
// knows at another address are asked for one by one.
func (p *peer) lookAt(ctx context.Context, service string, of []awaited) (settled int, err error) {
	together := map[string][]agent.ServerStatus{}
	if len(of) > askSingly {
		servers, err := p.ask(ctx, service, "")
		if err != nil {
			return 0, err
		}
		for _, s := range servers {
			together[s.Address] = append(together[s.Address], s)
		}
	}
	for _, w := range of {
		servers := together[w.instance.String()]
		if len(servers) == 0 {
			if servers, err = p.ask(ctx, service, w.instance.String()); err != nil {
				return settled, err
			}
		}
		for _, s := range servers {
			if why := w.lacks(s); why != "" {
				p.waiting = append(p.waiting, lacking{w, s, why})
			} else if s.Admin != absentServer {
				settled++
			}
		}
	}
	return settled, nil
}

func byService(all []awaited) map[string][]awaited {
	out := map[string][]awaited{}
	for _, w := range all {
		out[w.service] = append(out[w.service], w)
	}
	return out
}

// ask asks for the servers of one service: those of an instance, or all.
func (p *peer) ask(ctx context.Context, service, instance string) (servers []agent.ServerStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookMost)
	defer cancel()
	question := "/api/v1/services/" + url.PathEscape(service) + "/servers"
	if instance != "" {
		question += "?instance=" + url.QueryEscape(instance)
	}
	err = pageJSON(ctx, p.address, question, &servers)
	return servers, err
}

// count gathers what is missing from the agents.
func (o *outcome) count(peers []*peer) {
	for _, p := range peers {
		switch {
		case p.none():
		case p.err != nil:
			o.missing = append(o.missing, fmt.Sprintf("agent %s cannot be asked: %s", p.address, p.err))
		default:
			o.agents++
		}
		for _, l := range p.waiting {
			where := "agent " + p.address
			if l.server.Socket != "" {
				where += ", " + printable(l.server.Socket)
			}
			o.missing = append(o.missing, fmt.Sprintf("%s %s: %s (%s)", printable(l.service), l.instance, l.why, where))
		}
	}
}

// settled is the outcome when there is nothing more to wait for.
func (o *outcome) settled() *outcome {
	if o.agents == 0 && len(o.missing) == 0 {
		o.missing = []string{"there is no agent that could be asked"}
	}
	if len(o.missing) > 0 {
		o.err = &codeError{exitUnconfirmed, fmt.Errorf("it is stored, but not confirmed: %s", listed(o.missing, 5))}
	}
	return o
}

// ended is the outcome when the time was over, or somebody did not want to wait any longer. What is stored stays.
func (o *outcome) ended(ctx context.Context) *outcome {
	var stop stopSignal
	if errors.As(context.Cause(ctx), &stop) {
		code := exitFailed
		if s, ok := stop.Signal.(syscall.Signal); ok {
			code = 128 + int(s)
		}
		o.err = &codeError{code, fmt.Errorf("stopped waiting; it is stored and stays: %s", o.lately())}
		return o
	}
	o.err = &codeError{exitUnconfirmed, fmt.Errorf("it is stored, but %w: %s", context.Cause(ctx), o.lately())}
	return o
}

func (o *outcome) lately() string {
	if len(o.missing) == 0 {
		return "no agent has told yet"
	}
	return listed(o.missing, 5)
}

// confirmed is one line about what agents have told.
func (o *outcome) confirmed() string {
	return fmt.Sprintf("confirmed by %s for %s", counted(o.agents, "agent"), counted(o.servers, "server"))
}

// outcomeInfo is what became of --wait, for programs. The JSON names are part of the interface.
type outcomeInfo struct {
	Confirmed bool     `json:"confirmed"`
	Agents    int      `json:"agents"`  // that have told
	Servers   int      `json:"servers"` // in their HAProxys, that are as they are to be
	Missing   []string `json:"missing"`
}

func (o *outcome) info() *outcomeInfo {
	return &outcomeInfo{o.err == nil, o.agents, o.servers, append([]string{}, o.missing...)}
}

// teller says how far waiting is: on a terminal in one line that is written over, elsewhere in a line now and then.
type teller struct {
	progress *progress
	out      io.Writer
	next     time.Time
}

func (a *app) teller() *teller {
	t := &teller{progress: a.progress(), out: a.errs, next: time.Now().Add(lineEvery)}
	t.progress.next = time.Now() // what there is to say is new at once
	return t
}

func (t *teller) say(o *outcome) {
	line := fmt.Sprintf("waiting: %s done; %s", counted(o.servers, "server"), o.lately())
	if !t.progress.quiet {
		t.progress.say("%s", line)
		return
	}
	if now := time.Now(); !now.Before(t.next) {
		fmt.Fprintln(t.out, line)
		t.next = now.Add(lineEvery)
	}
}
