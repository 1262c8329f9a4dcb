package cli

import (
	"context"
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

func (a *app) instancesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "instances SERVICE|PATH",
		Short: "List a service's instances as they stand in ZooKeeper, rejected ones with the reason",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.registry()
			if err != nil {
				return err
			}
			path, zk := r.path(args[0])
			return a.ask(c.Context(), zk, func(ctx context.Context, s *zookeeper.Session) error {
				read := a.watching(s)
				infos, err := snapshot(ctx, s, args[0], path)
				read()
				if err != nil {
					return err
				}
				return a.printInstances(infos)
			})
		},
	}
}

func (a *app) printInstances(infos []nodeInfo) error {
	if a.output == "json" {
		text, err := nodesJSON(infos)
		if err == nil {
			_, err = a.out.Write(text)
		}
		return err
	}
	now := time.Now()
	columns := []string{"ADDRESS", "NAME", "WEIGHT", "ZONE", "AGE", "SESSION", "LABELS", "STATE"}
	if a.output == "wide" {
		columns = append(columns, "NODE", "OPTIONS")
	}
	t, texts := newTable(a.out, columns...), labelTexts{}
	t.expect(len(infos))
	for n := range infos {
		i := &infos[n]
		address, name, weight, state := "-", i.Name, "-", i.State
		if i.State == "rejected" {
			state += ": " + i.Reason
			if a.output != "wide" {
				name = printable(i.Node)
			}
		} else {
			address = net.JoinHostPort(i.Host, strconv.Itoa(int(i.Port)))
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
	case "leaving":
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
