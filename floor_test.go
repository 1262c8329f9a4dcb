package main_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
)

const floorVariable = "MYELIN_BENCH_FLOOR"

// floorIfAsked makes this process the floor that the benchmarks measure against: the least program that does the
// agent's job, with nothing else. It watches children, reads new ones in parallel and pipelines the commands. It
// handles no error, no restart, no change of data, no hostile text, and it writes no file.
func floorIfAsked() {
	args := strings.Split(os.Getenv(floorVariable), "|")
	if len(args) != 4 {
		return
	}
	floor(args[0], args[1], args[2], args[3])
	os.Exit(0)
}

func floor(server, path, socket, backend string) {
	conn, _, err := zk.Connect([]string{server}, 10*time.Second, zk.WithLogInfo(false))
	must(err)
	sock, err := net.Dial("unix", socket)
	must(err)
	replies := bufio.NewReader(sock)
	fmt.Fprintf(sock, "prompt\nset timeout cli 1h\n")
	prompt(replies)
	prompt(replies)

	names := map[string]string{} // child -> server
	id := 1
	for {
		children, _, changed, err := conn.ChildrenW(path)
		must(err)
		var out strings.Builder
		commands := 0
		seen := map[string]bool{}
		var added []string
		for _, c := range children {
			seen[c] = true
			if names[c] == "" {
				added = append(added, c)
			}
		}
		lines := make([]string, len(added))
		var wg sync.WaitGroup
		slots := make(chan struct{}, 64)
		for i, c := range added {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				data, _, err := conn.Get(path + "/" + c)
				if err != nil {
					return
				}
				var p struct {
					Host string `json:"host"`
					Port int    `json:"port"`
					Name string `json:"name"`
				}
				must(json.Unmarshal(data, &p))
				lines[i] = fmt.Sprintf("%s_%s:%d %s:%d", p.Name, p.Host, p.Port, p.Host, p.Port)
			})
		}
		wg.Wait()
		for i, c := range added {
			if lines[i] == "" {
				continue
			}
			server, _, _ := strings.Cut(lines[i], " ")
			names[c] = server
			fmt.Fprintf(&out, "add server %s/%s id %d pool-purge-delay 5s pool-max-conn -1\nset server %s/%s state ready\n", backend, lines[i], id, backend, server)
			id++
			commands += 2
		}
		for c, server := range names {
			if !seen[c] {
				fmt.Fprintf(&out, "set server %s/%s state maint\n", backend, server)
				commands++
				delete(names, c)
			}
		}
		go sock.Write([]byte(out.String()))
		for range commands {
			prompt(replies)
		}
		<-changed
	}
}

func prompt(r *bufio.Reader) {
	for last := byte(0); ; {
		b, err := r.ReadByte()
		must(err)
		if last == '>' && b == ' ' {
			return
		}
		last = b
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}
