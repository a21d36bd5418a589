package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/client"
)

// TestNothingIsInherited looks for descriptors of the server that a program inherits
// which it starts: a sentry must not have another sandbox's.
func TestNothingIsInherited(t *testing.T) {
	s := newServer(t)
	for i := range 4 {
		sb := s.create(client.CreateOptions{Name: fmt.Sprintf("one-%d", i)})
		s.assertAlive(sb)
		s.assertNothingIsInherited(s.nodePID())
	}
}

// assertNothingIsInherited checks the descriptors of a process.
func (s *server) assertNothingIsInherited(pid int) {
	s.t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	names := s.list(dir + "fdinfo")
	if len(names) < 20 {
		s.t.Fatalf("the server has only %d descriptors", len(names))
	}
	for _, name := range names {
		b, err := os.ReadFile(dir + "fdinfo/" + name)
		if err != nil {
			continue // it is closed by now
		}
		_, rest, _ := strings.Cut(string(b), "flags:")
		flags, err := strconv.ParseInt(strings.Fields(rest)[0], 8, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		if n, _ := strconv.Atoi(name); n > 2 && flags&unix.O_CLOEXEC == 0 {
			file, _ := os.Readlink(dir + "fd/" + name)
			s.t.Errorf("a program that the server starts inherits descriptor %s, %s", name, file)
		}
	}
}
