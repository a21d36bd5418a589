// Command skerry-agent is the first process of a sandbox. It serves the host over
// the pipes that it inherits as descriptors 3 to 5.
//
// The same program has two other uses, each in a process of its own. With the
// argument "relieve" it kills the process that holds the most memory. With
// "dial PORT" it connects its standard input and output to a port of the loopback
// interface.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/skerry-dev/skerry/internal/guest/agent"
)

// The descriptors of the pipes to the host. door is package agent's.
const (
	fromHost = 3
	toHost   = 4
	door     = 5
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "relieve" {
		exit(agent.Relieve(os.Stdout))
	}
	if len(os.Args) == 3 && os.Args[1] == "dial" {
		exit(agent.Dial(os.Args[2]))
	}
	if len(os.Args) != 1 {
		exit(fmt.Errorf("usage: %s [relieve | dial PORT]", os.Args[0]))
	}
	limitFootprint()
	pipes, err := agent.OpenPipes(fromHost, toHost, door)
	if err != nil {
		exit(err)
	}
	exit(agent.Run(context.Background(), pipes, agent.OwnKernel{}))
}

// limitFootprint keeps the agent small. Every sandbox has one, and most are idle.
func limitFootprint() {
	// The agent copies bytes between descriptors, by system calls, which do not count.
	// With more threads for Go code it would hand every piece of work to another
	// one, and each wake-up of a thread costs more than the work.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(50)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "skerry-agent:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
