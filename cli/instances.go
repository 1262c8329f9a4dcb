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
	for _, i := range infos {
		address, weight, state := "-", "-", tinted{i.State, stateTint(i.State)}
		if i.State != "rejected" {
			address = net.JoinHostPort(i.Host, strconv.Itoa(int(i.Port)))
		} else {
			state.text = i.State + ": " + i.Reason
		}
		if i.Weight != nil {
			weight = strconv.Itoa(*i.Weight)
		}
		cells := []any{address, i.Name, weight, zone(i.Labels), age(now, i.Created), i.Session, texts.of(i.Labels), state}
		if a.output == "wide" {
			cells = append(cells, printable(i.Node), strings.Join(i.options, " "))
		} else if i.State == "rejected" {
			cells[1] = printable(i.Node)
		}
		t.row(cells...)
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
type labelTexts map[uintptr]string

func (t labelTexts) of(l map[string]any) string {
	at := reflect.ValueOf(l).Pointer()
	text, ok := t[at]
	if !ok {
		text = labels(l)
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
