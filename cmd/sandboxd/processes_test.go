package main

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/internal/cgroup"
)

// TestBoundProcesses: one sandbox may have a quarter of the processes and
// threads that the machine may have, all together three quarters; and they have one service's share of the CPU.
func TestBoundProcesses(t *testing.T) {
	parent := fmt.Sprintf("skerry-sandboxd-test-%d", os.Getpid())
	groups, err := cgroup.New(parent)
	if err != nil {
		t.Fatal(err)
	}
	defer groups.Close()
	most := math.MaxInt
	for _, name := range []string{"pid_max", "threads-max"} {
		n, err := kernelLimit(name)
		if err != nil {
			t.Fatal(err)
		}
		most = min(most, n)
	}
	each, err := boundProcesses(groups, slog.New(slog.DiscardHandler))
	if err != nil || each != most/4 {
		t.Errorf("one sandbox may have %d of %d, %v", each, most, err)
	}
	weight, inKernel := "cpu.weight", sandboxesWeight
	if groups.Version() == 1 {
		weight, inKernel = "cpu.shares", 1024
	}
	for file, want := range map[string]int{"pids.max": each * 3, weight: inKernel} {
		paths, err := filepath.Glob("/sys/fs/cgroup/*/" + parent + "/" + file) // version 1
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(append(paths, "/sys/fs/cgroup/"+parent+"/"+file)[0])
		if got := strings.TrimSpace(string(b)); err != nil || got != strconv.Itoa(want) {
			t.Errorf("%s is %s, %v, want %d", file, got, err, want)
		}
	}
}

func TestProcessShares(t *testing.T) {
	for _, c := range []struct{ ids, threads, all, each int }{
		{32768, 192730, 24576, 8192},
		{4194304, 192730, 144546, 48182}, // threads run out before ids
	} {
		if all, each := processShares(c.ids, c.threads); all != c.all || each != c.each {
			t.Errorf("of %d ids and %d threads: %d and %d, want %d and %d", c.ids, c.threads, all, each, c.all, c.each)
		}
	}
}
