// Command demo plays Myelin's main job with real processes: a ZooKeeper, instances of a small service with a
// registrar beside each, an agent with its HAProxy, and a steady stream of requests through the local port. It shows
// what happens when instances fail, die, join and change, when ZooKeeper goes away, and when HAProxy is reloaded by
// hand. "make demo" runs it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/myelin-sd/myelin/cli/clitest"
)

func main() {
	clitest.ServeIfAsked()
	keep := flag.Bool("keep", false, "leave everything running and say what to try next")
	bin := flag.String("bin", "bin/myelin", "the myelin `binary`")
	configs := flag.String("configs", "testdata/demo", "`directory` of the demo's configuration files")
	flag.Parse()
	if err := play(*bin, *configs, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

const (
	rate    = 100 // requests a second
	outage  = 10 * time.Second
	patient = 30 * time.Second // how long a step may take to converge
)

// play sets the stage, runs the steps and shows the table. Its error says what did not go as promised.
func play(bin, configs string, keep bool) (err error) {
	s, err := setStage(bin, configs)
	if s != nil {
		defer func() {
			if !keep || err != nil {
				s.strike()
			}
		}()
	}
	if err != nil {
		return err
	}
	for _, st := range steps() {
		if err := s.play(st); err != nil {
			return err
		}
	}
	s.load.Stop()
	s.printTable()
	if err := s.judge(); err != nil {
		return err
	}
	if keep {
		return s.handOver()
	}
	return nil
}

// step is one thing that happens on the stage.
type step struct {
	title      string
	act        func(*stage) error
	inRotation []string           // who is to be in rotation afterwards; nil: as before
	until      func(*stage) error // what else must be true; nil: nothing
	then       func(*stage) error // what follows once it is true; nil: nothing
	mayFail    bool               // requests may fail: an instance died with requests in its hands
	newWorker  bool               // HAProxy's process is meant to change
}

func steps() []step {
	return []step{
		{
			title:      "the agent starts, four instances serve",
			act:        (*stage).startAgent,
			inRotation: []string{"web-1", "web-2", "web-3", "web-4"},
		},
		{
			title:      "web-4 fails its health check",
			act:        func(s *stage) error { return s.instances["web-4"].service.Fail() },
			inRotation: []string{"web-1", "web-2", "web-3"},
		},
		{
			title:      "web-4 is well again",
			act:        func(s *stage) error { return s.instances["web-4"].service.Recover() },
			inRotation: []string{"web-1", "web-2", "web-3", "web-4"},
		},
		{
			title:      "web-3's host dies (kill -9)",
			act:        func(s *stage) error { s.instances["web-3"].kill(); return nil },
			inRotation: []string{"web-1", "web-2", "web-4"},
			mayFail:    true,
		},
		{
			title:      "web-5 joins",
			act:        func(s *stage) error { return s.addInstance("web-5") },
			inRotation: []string{"web-1", "web-2", "web-4", "web-5"},
		},
		{
			title: "web-2's weight goes from 10 to 30",
			act:   func(s *stage) error { return s.instances["web-2"].reweigh(10, 30) },
			until: func(s *stage) error { return s.hasWeight("web-2", 30) },
		},
		{
			title: fmt.Sprintf("ZooKeeper is away for %s", outage),
			act: func(s *stage) error {
				s.zk.Stop()
				time.Sleep(outage)
				if err := s.inRotation(s.expected); err != nil {
					return fmt.Errorf("without ZooKeeper: %w", err)
				}
				s.began = time.Now()
				return s.zk.Restart()
			},
			until: (*stage).agentConnected,
		},
		{
			title:     "a colleague reloads HAProxy",
			act:       func(s *stage) error { return clitest.Reload(s.master()) },
			until:     (*stage).otherWorker,
			newWorker: true,
		},
		{
			title:      "web-1 leaves in order (SIGTERM)",
			act:        func(s *stage) error { return s.instances["web-1"].registrar.Stop() },
			then:       func(s *stage) error { return s.instances["web-1"].service.Stop() },
			inRotation: []string{"web-2", "web-4", "web-5"},
		},
	}
}

// judge says what was promised and did not hold.
func (s *stage) judge() error {
	var broken []error
	for _, r := range s.results {
		if r.failed > 0 && !r.step.mayFail {
			broken = append(broken, fmt.Errorf("%s: %d requests failed", r.step.title, r.failed))
		}
		if r.workerChanged && !r.step.newWorker {
			broken = append(broken, fmt.Errorf("%s: HAProxy's process changed", r.step.title))
		}
	}
	reloads, err := s.reloads()
	if err != nil {
		broken = append(broken, err)
	} else if reloads > 0 {
		broken = append(broken, fmt.Errorf("the agent reloaded HAProxy %d times", reloads))
	}
	for _, f := range s.load.Failures() {
		fmt.Println("failed request:", f)
	}
	return errors.Join(broken...)
}
