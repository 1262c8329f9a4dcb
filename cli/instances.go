package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

func (a *app) instancesCommand() *cobra.Command {
	var address string
	c := &cobra.Command{
		Use:   "instances SERVICE|PATH",
		Short: "List a service's instances as they stand in ZooKeeper, rejected ones with the reason",
		Long: "Lists a service's instances as they stand in ZooKeeper, rejected ones with the reason. Where ZooKeeper is not given, or\n" +
			"does not answer, the agent of this host is asked what it knows, and then the sets that it keeps on disk are read. Which\n" +
			"of them it was, and how old it is, is said on stderr.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.registry()
			if err != nil {
				return err
			}
			infos, _, err := factsOf(c.Context(), a, address, a.instancesOf(r, args[0]))
			if err != nil {
				return err
			}
			return a.printInstances(infos)
		},
	}
	factFlags(c, &address)
	return c
}

// instancesOf asks for the registrations of a service, by its name or its path.
func (a *app) instancesOf(r registry, name string) question[[]*nodeInfo] {
	path, zk := r.path(name)
	return question[[]*nodeInfo]{
		hosts: zk.Hosts,
		zookeeper: func(ctx context.Context) (infos []*nodeInfo, err error) {
			err = a.ask(ctx, zk, func(ctx context.Context, s *zookeeper.Session) error {
				read := a.watching(s)
				infos, err = snapshot(ctx, s, name, path)
				read()
				if errors.Is(err, zookeeper.ErrNoPath) {
					return noSuchService(ctx, s, r, name, path)
				}
				return err
			})
			return infos, err
		},
		agent: func(ctx context.Context, address string) ([]*nodeInfo, time.Time, error) {
			service, err := agentService(ctx, address, name)
			if err != nil {
				return nil, time.Time{}, err
			}
			var l agent.Listing
			if err := fromAgentAt(ctx, address, "/api/v1/services/"+url.PathEscape(service)+"/instances", &l); err != nil {
				return nil, time.Time{}, err
			}
			if !l.Known {
				return nil, time.Time{}, fmt.Errorf("the agent at %s has heard nothing of service %s yet", address, printable(service))
			}
			return nodesOfListing(l), l.AsOf, nil
		},
		disk: func(stateDir string) ([]*nodeInfo, time.Time, error) {
			l, err := agent.KeptListing(stateDir, name)
			return nodesOfListing(l), l.AsOf, err
		},
	}
}

// nodesOfListing are the instances of an agent's, or a kept, list.
func nodesOfListing(l agent.Listing) []*nodeInfo {
	infos := make([]*nodeInfo, len(l.Instances))
	for i, in := range l.Instances {
		infos[i] = &nodeInfo{
			Service: in.Service, Node: in.Node, Host: in.Host, Port: in.Port, Name: in.Name, Weight: in.Weight, Labels: in.Labels,
			Session: in.Session, Created: in.Created, Modified: in.Modified, State: in.State, Reason: in.Reason, options: in.Options,
		}
	}
	return infos
}

// agentService is what the agent calls the service that is meant by a name or a path.
func agentService(ctx context.Context, address, name string) (string, error) {
	if !strings.HasPrefix(name, "/") {
		return name, nil
	}
	var all []agent.ServiceStatus
	if err := fromAgentAt(ctx, address, "/api/v1/services", &all); err != nil {
		return "", err
	}
	for _, s := range all {
		if s.Path == name {
			return s.Service, nil
		}
	}
	return "", &unknownError{"the agent has no service at " + printable(name)}
}

// noSuchService is the error about a service whose path does not exist, with one that was probably meant.
func noSuchService(ctx context.Context, s *zookeeper.Session, r registry, name, path string) error {
	var names []string
	for _, service := range r.services {
		names = append(names, service.Name)
	}
	if near := config.Nearest(name, names); near != "" && near != name {
		return fmt.Errorf("there is no %s in ZooKeeper; did you mean %s?", printable(path), printable(near))
	}
	return noSuchPath(ctx, s, path, zookeeper.ErrNoPath)
}

func (a *app) printInstances(infos []*nodeInfo) error {
	if a.output == "json" {
		return writeNodes(a.out, infos)
	}
	now := time.Now()
	columns := []string{"ADDRESS", "NAME", "WEIGHT", "ZONE", "AGE", "SESSION", "LABELS", "STATE"}
	if a.output == "wide" {
		columns = append(columns, "NODE", "OPTIONS")
	}
	t, texts := newTable(a.out, columns...), labelTexts{}
	t.expect(len(infos))
	for _, i := range infos {
		address, name, weight, state := "-", i.Name, "-", i.State
		if i.State == "rejected" {
			state += ": " + i.Reason
			if a.output != "wide" {
				name = printable(i.Node)
			}
		} else {
			address = net.JoinHostPort(i.Host, strconv.Itoa(int(i.Port)))
		}
		if i.State == agent.StateHeld {
			state += ": " + i.Reason
		}
		if i.Weight != nil {
			weight = strconv.Itoa(*i.Weight)
		}
		l := texts.of(i.Labels)
		for _, word := range [...]string{address, name, weight, l.zone, age(now, i.Created), i.Session, l.all} {
			t.cell(word, plain)
		}
		t.cell(state, stateTint(i.State))
		if a.output == "wide" {
			t.cell(printable(i.Node), plain)
			t.cell(strings.Join(i.options, " "), plain)
		}
		t.end()
	}
	t.flush()
	return nil
}

// stateTint is how the state of a registration looks.
func stateTint(state string) tint {
	switch state {
	case "ok":
		return good
	case "leaving", agent.StateHeld:
		return warn
	}
	return bad
}

func zone(l map[string]any) string {
	if z, ok := l["zone"]; ok {
		return printable(fmt.Sprint(z))
	}
	return ""
}

// printable keeps text of the registry from moving the cursor or forging a line.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return strconv.QuoteToASCII(s)
	}
	return s
}

// labelTexts are the texts of labels that were written already: instances share their labels where these are alike.
type labelTexts map[uintptr]labelText

// labelText is labels as a table shows them.
type labelText struct{ zone, all string }

func (t labelTexts) of(l map[string]any) labelText {
	at := reflect.ValueOf(l).Pointer()
	text, ok := t[at]
	if !ok {
		text = labelText{zone(l), labels(l)}
		t[at] = text
	}
	return text
}

func labels(l map[string]any) string {
	var words []string
	for _, k := range slices.Sorted(maps.Keys(l)) {
		words = append(words, printable(fmt.Sprintf("%s=%v", k, l[k])))
	}
	return strings.Join(words, ",")
}
