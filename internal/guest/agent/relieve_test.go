package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// fakeProc creates a folder like /proc with processes.
func fakeProc(t *testing.T, processes map[int][2]string) string {
	t.Helper()
	dir := t.TempDir()
	for pid, files := range processes {
		p := filepath.Join(dir, fmt.Sprint(pid))
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
		for i, name := range []string{"stat", "oom_score_adj"} {
			if err := os.WriteFile(filepath.Join(p, name), []byte(files[i]), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// stat is a line of /proc/PID/stat.
func stat(pid int, name string, session, mib int) string {
	pages := mib << 20 / os.Getpagesize()
	return fmt.Sprintf("%d (%s) S 1 7 %d 0 -1%s %d 0 0\n", pid, name, session, strings.Repeat(" 0", 15), pages)
}

func TestGreediest(t *testing.T) {
	proc := fakeProc(t, map[int][2]string{
		1:           {stat(1, "init", 1, 900), "0"},
		os.Getpid(): {stat(os.Getpid(), "agent", 1, 900), "0"},
		70001:       {stat(70001, "small", 70001, 100), "0"},
		70002:       {stat(70002, "a) S 1 (b", 70005, 300), "0\n"},
		70003:       {stat(70003, "precious", 70003, 800), "-1000\n"},
		70004:       {"garbage", "0"},
	})
	victim, session, err := greediest(proc, nil)
	if err != nil || victim.PID != 70002 || victim.Name != "a) S 1 (b" || victim.Bytes != 300<<20 || session != 70005 {
		t.Errorf("victim %+v in session %d, %v", victim, session, err)
	}
	proc = fakeProc(t, map[int][2]string{
		70001: {stat(70001, "offered", 70001, 100), "500"},
		70002: {stat(70002, "greedy", 70002, 300), "0"},
	})
	if victim, _, err = greediest(proc, nil); err != nil || victim.PID != 70001 {
		t.Errorf("victim %+v, %v; want the one that offers itself", victim, err)
	}
	proc = fakeProc(t, map[int][2]string{70001: {stat(70001, "tiny", 70001, 1), "0"}})
	if _, _, err = greediest(proc, nil); !errors.Is(err, errNoVictim) {
		t.Errorf("one tiny process: %v, want no victim", err)
	}
	if _, _, err = greediest(filepath.Join(proc, "missing"), nil); err == nil || errors.Is(err, errNoVictim) {
		t.Errorf("without a folder: %v", err)
	}
}

// TestVictimsAreBounded: the agent keeps at most MaxVictims for a command.
func TestVictimsAreBounded(t *testing.T) {
	p := &process{pid: 7}
	for i := range wire.MaxVictims + 1 {
		p.loses(7, wire.Victim{PID: i})
		p.loses(8, wire.Victim{PID: 1000}) // of another command
	}
	if got := p.exit.Killed; len(got) != wire.MaxVictims || got[len(got)-1].PID != wire.MaxVictims-1 {
		t.Errorf("%d are kept: %v", len(got), got)
	}
}
