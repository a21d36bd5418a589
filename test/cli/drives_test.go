package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestDrives(t *testing.T) {
	drive := fmt.Sprintf("drive-%d-%d", os.Getpid(), time.Now().UnixNano())
	if got := sandbox(t, "create", "--mount", drive+":/data"); got.code != 1 || !strings.Contains(got.err, drive) {
		t.Errorf("a drive that is not there: %+v", got)
	}
	must(t, "drives", "create", drive, "--max-size", "64MiB")
	t.Cleanup(func() { // when the test's context has ended
		if out, err := exec.Command(os.Getenv("SKERRY_CLI"), "drives", "delete", drive).CombinedOutput(); err != nil {
			t.Errorf("drives delete: %v: %s", err, out)
		}
	})
	var made struct {
		Name      string `json:"name"`
		SizeBytes int64  `json:"sizeBytes"`
	}
	out := must(t, "drives", "get", drive, "--json").out
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.Name != drive {
		t.Errorf("the drive is %s, %v", out, err)
	}

	writer := create(t, "--mount", drive+":/data")
	sh(t, writer, "echo kept > /data/file")
	if got := must(t, "drives", "ls").out; !strings.Contains(got, drive) || !strings.Contains(got, writer) {
		t.Errorf("the list while %s has it: %s", writer, got)
	}
	if got := sandbox(t, "create", "--mount", drive+":/data"); got.code != 1 || !strings.Contains(got.err, writer) {
		t.Errorf("a second writer: %+v", got)
	}
	if got := sandbox(t, "drives", "delete", drive); got.code != 1 {
		t.Errorf("deletion of a drive in use: %+v", got)
	}
	reader := create(t, "--mount", drive+":/data:snapshot")
	if got := sh(t, reader, "cat /data/file"); got != "kept" {
		t.Errorf("the frozen copy has %q", got)
	}
	sh(t, writer, "sync; echo changed > /data/file")
	if got := sh(t, reader, "cat /data/file; ! touch /data/new 2>/dev/null && echo read-only"); got != "kept\nread-only" {
		t.Errorf("the frozen copy after a change to the drive: %q", got)
	}

	remove(t, reader)
	remove(t, writer)
	if got := sh(t, create(t, "--mount", drive+":/data"), "cat /data/file"); got != "changed" {
		t.Errorf("the drive has %q for the next sandbox", got)
	}
}

// TestDeletedDrive: a drive can be deleted although a stopped sandbox mounts it,
// and both commands say what that means.
func TestDeletedDrive(t *testing.T) {
	drive := fmt.Sprintf("deleted-%d-%d", os.Getpid(), time.Now().UnixNano())
	must(t, "drives", "create", drive, "--max-size", "64MiB")
	box := create(t, "--mount", drive+":/data")
	if got := sandbox(t, "drives", "rm", drive); got.code != 1 || !strings.Contains(got.err, "stop that sandbox first") {
		t.Errorf("deletion of a drive in use: %+v", got)
	}
	must(t, "stop", box)
	if got := must(t, "drives", "rm", drive); !strings.Contains(got.err, drive+" is mounted by "+box) {
		t.Errorf("deletion of a drive that is mounted: %+v", got)
	}
	if got := sandbox(t, "exec", box, "--", "true"); got.code != 125 || !strings.Contains(got.err, "sandbox config mounts NAME") {
		t.Errorf("a command in a sandbox whose drive was deleted: %+v", got)
	}
	must(t, "config", "mounts", box, "--none")
	must(t, "exec", box, "--", "true")
}
