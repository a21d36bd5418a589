package gvisor

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// TestMemoryWithoutProcess: what no process's end frees is bounded by the
// sandbox's memory, in sum, and can be given back.
func TestMemoryWithoutProcess(t *testing.T) {
	l := newLab(t)
	spec := l.spec("pins")
	spec.MemoryBytes = 64 << 20
	m, g := l.start(t, spec)

	const mib, nodes = 64, 64 << 20 / 8192
	for _, dir := range []string{"/dev/shm", "/dev"} {
		if got, want := g.ask("room %s", dir), fmt.Sprintf("%d %d <nil>", mib/2, nodes); got != want {
			t.Errorf("room of %s: %s, want %s", dir, got, want)
		}
	}
	if got, want := g.ask("room /"), fmt.Sprintf("%d %d <nil>", spec.DiskBytes>>20, nodes); got != want {
		t.Errorf("room of /: %s, want %s", got, want)
	}
	if got := g.ask("tmpfs /big size=1g,nr_inodes=1000000"); got != "<nil>" {
		t.Fatalf("mount: %s", got)
	}
	// pinned asks for more than there may be and returns what there was.
	pinned := func(kind, dir string, most int) int {
		t.Helper()
		said := g.ask("pin %s %s %d", kind, dir, most)
		n, err := strconv.Atoi(strings.Fields(said)[0])
		if err != nil || !strings.HasSuffix(said, "no space left on device") {
			t.Fatalf("pin %s %s: %s, want an end for want of space", kind, dir, said)
		}
		return n
	}
	within := func(what string, got, want int) {
		t.Helper()
		if got < want*9/10 || got > want {
			t.Errorf("%s: %d, want %d or a little less", what, got, want)
		}
	}
	within("MiB in /dev/shm", pinned("mib", "/dev/shm", 2*mib), mib/2)
	within("MiB in another tmpfs beside it", pinned("mib", "/big", 2*mib), mib/4)
	g.ask("clear /big")
	within("MiB in memfds beside it", pinned("memfd", "-", 2*mib), mib/4)
	g.ask("unpin")
	within("MiB in segments beside it", pinned("segment", "-", 2*mib), mib/4)
	g.ask("unpin")
	var written int
	said := g.ask("child mapped %d", 2*mib)
	if _, err := fmt.Sscanf(said, `"%d`, &written); err != nil || !strings.Contains(said, "invalid memory address") {
		t.Errorf("a memfd written through a mapping: %s", said)
	}
	within("MiB of a memfd written through a mapping beside it", written, mib/4)
	within("MiB in another tmpfs after that was given back", pinned("mib", "/big", 2*mib), mib/4)
	g.ask("clear /big")

	within("files on the disk", pinned("file", "/tmp", 2*nodes), nodes-mib/2)
	if n := pinned("file", "/big", 2*nodes); n > 16 {
		t.Errorf("%d files in a tmpfs beside the files on the disk", n)
	}
	g.ask("clear /tmp")
	within("files with two names", pinned("hardlink", "/tmp", nodes), (nodes-mib/2)/2)
	g.ask("clear /tmp")
	within("files on the disk after all were removed", pinned("file", "/tmp", 2*nodes), nodes-mib/2)

	usage, err := m.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if usage.OOMKills != 0 {
		t.Errorf("%d processes were killed for want of memory", usage.OOMKills)
	}
}

// TestRelieve: the sentry runs the program that ends the greediest process
// without the agent's help.
func TestRelieve(t *testing.T) {
	l := newLab(t)
	m, _ := l.start(t, l.spec("greedy"))
	memory, err := m.Memory()
	if err != nil || memory.Size != l.spec("").MemoryBytes || memory.Limit <= memory.Size || memory.Used <= 0 {
		t.Fatalf("memory: %+v, %v", memory, err)
	}
	said, err := m.Relieve(t.Context())
	if err != nil || said != "relieved" {
		t.Fatalf("the program said %q, %v", said, err)
	}
}
