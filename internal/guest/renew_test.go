package guest_test

import (
	"os"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/internal/guest"
)

// renew gives the sandbox the identity of a new session.
func (s *sandbox) renew(t *testing.T) *guest.Client {
	t.Helper()
	c, _, err := guest.Renew(testContext(t), s.attach(), guest.Setup{
		Hostname: "dinghy", Env: map[string]string{"FROM_RENEW": "yes"},
		Resolv: []string{"nameserver 192.0.2.2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRenewChangesIdentity(t *testing.T) {
	s, old := start(t)
	old.Close()
	c := s.renew(t)
	want := "dinghy dinghy yes  nameserver 192.0.2.2"
	if got := sh(t, c, `echo $(hostname) $(cat /etc/hostname) $FROM_RENEW "$FROM_SETUP" $(cat /etc/resolv.conf)`); got != want {
		t.Errorf("the sandbox says %q, want %q", got, want)
	}
	if got := sh(t, c, "grep -c dinghy /etc/hosts"); got != "2" {
		t.Errorf("/etc/hosts has its name %s times", got)
	}
}

// TestRenewLetsProcessesGoOn has three processes. One prints without end, and must not
// block. One is on a terminal, and is hung up. One reads its input, which ends.
func TestRenewLetsProcessesGoOn(t *testing.T) {
	s, old := start(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	mustStart(t, old, guest.StartSpec{ID: "printer", Name: "sh", Args: []string{"-c",
		"cd " + dir + "; i=0; while :; do i=$((i+1)); head -c 100000 /dev/zero; echo $i >count.new; mv count.new count; done"}})
	mustStart(t, old, guest.StartSpec{ID: "typist", Name: "sh", Args: []string{"-c", "cd " + dir + "; trap 'touch hungup; exit' HUP; touch typing; while :; do sleep 0.1; done"},
		TTY: &guest.Size{Cols: 80, Rows: 24}})
	mustStart(t, old, guest.StartSpec{ID: "reader", Name: "sh", Args: []string{"-c", "cd " + dir + "; cat >/dev/null; touch ended"}, Stdin: true})
	ready := "cd " + dir + `; i=0; while [ $i -lt 300 ] && ! [ -e typing -a -s count ]; do sleep 0.1; i=$((i+1)); done; ls typing`
	if got := sh(t, old, ready); got != "typing" {
		t.Fatalf("the processes do not run: %q", got)
	}
	old.Close()
	c := s.renew(t)
	if left, err := c.Processes(testContext(t)); err != nil || len(left) != 0 {
		t.Errorf("the agent lists %v, %v", left, err)
	}
	moves := "cd " + dir + `; a=$(cat count); i=0; while [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); b=$(cat count); [ $b -gt $((a+20)) ] && break; done; [ $b -gt $((a+20)) ] && echo yes`
	if got := sh(t, c, moves); got != "yes" {
		t.Errorf("the printing process stands still: %q", got)
	}
	over := "cd " + dir + `; i=0; while [ $i -lt 100 ] && ! [ -e hungup -a -e ended ]; do sleep 0.1; i=$((i+1)); done; ls`
	if got := sh(t, c, over); !strings.Contains(got, "hungup") || !strings.Contains(got, "ended") {
		t.Errorf("there is %q", got)
	}
	// Ids start again, and do not collide with the old processes.
	for range 5 {
		if got := sh(t, c, "echo works"); got != "works" {
			t.Errorf("a command after all that: %q", got)
		}
	}
}
