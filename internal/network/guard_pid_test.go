package network

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestIDsInAContainer looks at a process in a PID namespace of its own.
func TestIDsInAContainer(t *testing.T) {
	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child", "sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	child := ""
	eventually(t, "the process", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		child = strings.TrimSpace(string(b))
		return err == nil && child != ""
	})
	if !idsAreForeign("/proc/" + child + "/ns/pid") {
		t.Error("the ids of another PID namespace are taken for the kernel's")
	}
	if !idsAreForeign("/proc/" + child + "/ns/nothing") {
		t.Error("what cannot be looked at is believed")
	}
	if !idsAreForeign("/proc/self/ns/pid") && os.Getpid() == 1 {
		t.Error("the ids of a container are taken for the kernel's")
	}
}
