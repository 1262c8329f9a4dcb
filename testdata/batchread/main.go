// Batchread is the floor of the question commands in BenchmarkQuestions: it reads the children of each path that it is
// given, over one session, in batches and several paths at a time, and ends. It decodes nothing, keeps nothing and prints
// nothing.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

func main() {
	nodes := 0
	s := zookeeper.New(zookeeper.Options{Hosts: []string{os.Args[1]}, SessionTimeout: 10 * time.Second})
	err := s.Walk(context.Background(), os.Args[2:], zookeeper.Walk{
		Node:  func(string, zookeeper.Node) { nodes++ },
		Enter: func(string) bool { return false },
	})
	s.Close()
	if err != nil || nodes == 0 {
		fmt.Fprintln(os.Stderr, "batchread:", err, nodes, "nodes")
		os.Exit(1)
	}
}
