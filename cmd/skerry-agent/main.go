// Command skerry-agent is the first process of a sandbox. It serves the host
// on the pipes that it was started with as descriptors 3 to 5. Executed once
// more with the argument "describe", it tells of files what a snapshot needs to
// know.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/skerry-dev/skerry/internal/guest/agent"
)

// The descriptors of the pipes to the host.
const (
	fromHost = 3
	toHost   = 4
	door     = 5
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "describe" {
		exit(agent.Describe(os.Stdin, os.Stdout))
	}
	if len(os.Args) != 1 {
		exit(fmt.Errorf("usage: %s [describe]", os.Args[0]))
	}
	limitFootprint()
	exit(agent.Run(context.Background(), fromHost, toHost, door))
}

// limitFootprint keeps the agent small: there is one in every sandbox, and
// most of them are idle.
func limitFootprint() {
	// The agent moves bytes between descriptors; more than a few threads at a
	// time would only take the commands' processors.
	const maxProcs = 4
	if runtime.GOMAXPROCS(0) > maxProcs {
		runtime.GOMAXPROCS(maxProcs)
	}
	debug.SetGCPercent(50)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "skerry-agent:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
