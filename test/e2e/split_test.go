package e2e

import (
	"errors"
	"syscall"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

// TestHalvesRestart runs a server as two processes and ends one at a time, by a
// signal and by a crash. Sandboxes and their commands go on, and the other half takes
// up the new one.
func TestHalvesRestart(t *testing.T) {
	s := prepareServer(t)
	s.split = true
	s.start()
	sb := s.create(client.CreateOptions{Name: "box"})
	session := sb.Session().ID
	cmd := s.detach(sb, "while [ ! -e end ]; do echo tick; sleep 0.05; done; exit 7")
	for _, end := range []struct {
		what string
		pid  func() int
		sig  syscall.Signal
		next func()
	}{
		// It writes the command to the store first.
		{"the server is ended", s.pid, syscall.SIGTERM, s.startServe},
		{"the server is killed", s.pid, syscall.SIGKILL, s.startServe},
		{"the node is ended", s.nodePID, syscall.SIGTERM, s.startNode},
		{"the node is killed", s.nodePID, syscall.SIGKILL, s.startNode},
	} {
		s.signal(end.pid(), end.sig)
		end.next()
		sb = s.get("box")
		// Until the halves have found each other, calls are told to try again.
		var out []byte
		var err error
		s.waitFor("a command after "+end.what, func() bool {
			out, err = sb.Command(t.Context(), "echo", "here").CombinedOutput()
			return err == nil
		})
		if string(out) != "here\n" || sb.Session().ID != session {
			t.Errorf("%s: %q in session %s, want %s", end.what, out, sb.Session().ID, session)
		}
	}
	s.output(sb, "touch", "end")
	again, err := sb.FindCommand(t.Context(), cmd.ID())
	if err != nil {
		t.Fatal(err)
	}
	if exit, ok := errors.AsType[*client.ExitError](again.Wait()); !ok || exit.Code != 7 {
		t.Errorf("the command ended with %v", exit)
	}
}

func (s *server) signal(pid int, sig syscall.Signal) {
	s.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		s.t.Fatal(err)
	}
	s.awaitEnd(pid)
}
