package guest_test

import (
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/internal/guest"
)

// renew makes the sandbox another one's.
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

// TestRenewLetsProcessesGoOn has one process that prints without end, which
// must not come to a halt, one that is at a terminal, which is hung up, and one
// that reads its input, which ends.
func TestRenewLetsProcessesGoOn(t *testing.T) {
	s, old := start(t)
	mustStart(t, old, guest.StartSpec{ID: "printer", Name: "sh", Args: []string{"-c",
		"i=0; while :; do i=$((i+1)); head -c 100000 /dev/zero; echo $i > /tmp/count.new; mv /tmp/count.new /tmp/count; done"}})
	mustStart(t, old, guest.StartSpec{ID: "typist", Name: "sh", Args: []string{"-c", "trap 'touch /tmp/hungup; exit' HUP; while :; do sleep 0.1; done"},
		TTY: &guest.Size{Cols: 80, Rows: 24}})
	mustStart(t, old, guest.StartSpec{ID: "reader", Name: "sh", Args: []string{"-c", "cat >/dev/null; touch /tmp/ended"}, Stdin: true})
	old.Close()
	c := s.renew(t)
	if left, err := c.Processes(testContext(t)); err != nil || len(left) != 0 {
		t.Errorf("the agent lists %v, %v", left, err)
	}
	const moves = `a=$(cat /tmp/count); i=0; while [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); b=$(cat /tmp/count); [ $b -gt $((a+20)) ] && break; done; [ $b -gt $((a+20)) ] && echo yes`
	if got := sh(t, c, moves); got != "yes" {
		t.Errorf("the printing process stands still: %q", got)
	}
	const over = `i=0; while [ $i -lt 100 ] && ! [ -e /tmp/hungup -a -e /tmp/ended ]; do sleep 0.1; i=$((i+1)); done; ls /tmp`
	if got := sh(t, c, over); !strings.Contains(got, "hungup") || !strings.Contains(got, "ended") {
		t.Errorf("there is %q in /tmp", got)
	}
	// Ids begin anew, and meet none of the old processes'.
	for range 5 {
		if got := sh(t, c, "echo works"); got != "works" {
			t.Errorf("a command after all that: %q", got)
		}
	}
}
