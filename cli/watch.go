package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

func (a *app) watchCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "watch SERVICE|PATH...",
		Short: "Print joins, leaves and changes of instances as they happen",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.registry()
			if err != nil {
				return err
			}
			return a.watch(c.Context(), r, args)
		},
	}
}

// event is one line of watch. The JSON names are part of the interface; with -o json each is one line.
type event struct {
	At      time.Time `json:"at"`
	Event   string    `json:"event"` // join, leave, change, reject, missing, present
	Service string    `json:"service"`
	Address string    `json:"address,omitempty"`
	Name    string    `json:"name,omitempty"`
	Detail  string    `json:"detail,omitempty"`
}

func (a *app) watch(ctx context.Context, r registry, names []string) error {
	log, err := a.logger(config.Log{Level: "warning"})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	snapshots := make(chan discovery.Snapshot)
	pool := agent.NewSessions(log)
	defer pool.Close()
	sessions := map[string]*zookeeper.Session{}
	for _, name := range names {
		path, zk := r.path(name)
		s, err := a.open(pool, zk)
		if err != nil {
			return err
		}
		src := s.Source(name, path, zookeeper.SourceOptions{
			Log: log.WithFields(logrus.Fields{"service": name}),
		})
		running.Go(func() { src.Run(ctx, snapshots) })
		sessions[name] = s
	}
	latest := map[string]*discovery.Snapshot{}
	for {
		select {
		case <-ctx.Done():
			return nil // Ctrl-C is how one stops watching
		case s := <-snapshots:
			for _, e := range changes(latest[s.Service], s) {
				a.printEvent(e)
			}
			if s.Missing && latest[s.Service] == nil { // it may come yet, or the name is wrong
				path, _ := r.path(s.Service)
				asking, cancel := context.WithTimeout(ctx, a.timeout)
				fmt.Fprintln(a.errs, "myelin:", noSuchService(asking, sessions[s.Service], r, s.Service, path))
				cancel()
			}
			latest[s.Service] = &s
		}
	}
}

// changes says what happened between two snapshots of a service. With no earlier one every instance joins.
func changes(before *discovery.Snapshot, now discovery.Snapshot) []event {
	var out []event
	add := func(kind string, in discovery.Instance, detail string) {
		out = append(out, event{now.At, kind, now.Service, in.Endpoint.String(), in.Name, detail})
	}
	old := map[string]discovery.Instance{}
	rejected := map[string]string{}
	if before != nil {
		for _, in := range before.Instances {
			old[in.Node] = in
		}
		for _, r := range before.Rejected {
			rejected[r.Node] = r.Detail
		}
	}
	wasMissing := before != nil && before.Missing
	if now.Missing && !wasMissing {
		out = append(out, event{At: now.At, Event: "missing", Service: now.Service, Detail: "the path does not exist"})
	} else if !now.Missing && wasMissing {
		out = append(out, event{At: now.At, Event: "present", Service: now.Service, Detail: "the path exists"})
	}
	for _, in := range now.Instances {
		was, there := old[in.Node]
		delete(old, in.Node)
		if !there {
			add("join", in, describe(in))
		} else if d := difference(was, in); d != "" {
			add("change", in, d)
		}
	}
	for _, node := range slices.Sorted(maps.Keys(old)) {
		add("leave", old[node], "")
	}
	for _, r := range now.Rejected {
		if rejected[r.Node] != r.Detail {
			out = append(out, event{At: now.At, Event: "reject", Service: now.Service, Name: r.Node, Detail: r.Reason + ": " + r.Detail})
		}
	}
	return out
}

// difference says what is another in a registration; empty: nothing that matters to those who use it.
func difference(was, in discovery.Instance) string {
	var parts []string
	if was.Endpoint != in.Endpoint {
		parts = append(parts, was.Endpoint.String()+" -> "+in.Endpoint.String())
	}
	if a, b := describe(was), describe(in); a != b {
		parts = append(parts, cmp.Or(a, "-")+" -> "+cmp.Or(b, "-"))
	}
	return strings.Join(parts, ", ")
}

func describe(in discovery.Instance) string {
	var words []string
	if in.Weight != nil {
		words = append(words, fmt.Sprintf("weight=%d", *in.Weight))
	}
	if l := labels(in.Labels); l != "" {
		words = append(words, l)
	}
	if len(in.ServerOptions) > 0 {
		words = append(words, "options="+strings.Join(in.ServerOptions, " "))
	}
	if in.Leaving {
		words = append(words, "leaving")
	}
	return strings.Join(words, " ")
}

func (a *app) printEvent(e event) {
	if a.output == "json" {
		enc := json.NewEncoder(a.out)
		enc.SetEscapeHTML(false)
		enc.Encode(e)
		return
	}
	fmt.Fprintf(a.out, "%s  %-7s %s  %s  %s  %s\n", e.At.Format("15:04:05.000"), e.Event, e.Service, e.Address, e.Name, e.Detail)
}
