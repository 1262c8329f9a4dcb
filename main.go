// Myelin keeps a local HAProxy in step with ZooKeeper, and healthy services in ZooKeeper.
package main

import (
	"os"

	"github.com/myelin-sd/myelin/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
}
