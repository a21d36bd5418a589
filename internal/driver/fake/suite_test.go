package fake

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/driver/drivertest"
)

func TestDriver(t *testing.T) {
	tool := filepath.Join(t.TempDir(), "tool")
	if err := drivertest.BuildTool(tool); err != nil {
		t.Fatal(err)
	}
	drivertest.Run(t, func(t *testing.T) *drivertest.Lab {
		t.Parallel() // the suite waits more than it computes
		dir := t.TempDir()
		return &drivertest.Lab{
			Driver: newDriver(t, dir),
			Reopen: func(t *testing.T) driver.Driver { return newDriver(t, dir) },
			Spec:   func(id string) driver.Spec { return driver.Spec{ID: id} },
			Tool:   tool,
			Broken: func(t *testing.T, id string) map[string]driver.Spec {
				empty := t.TempDir()
				return map[string]driver.Spec{
					"files that are not there": {ID: id, Source: driver.Source{Files: empty}},
					"no volume":                {ID: id, Volumes: []driver.Volume{{Kind: driver.Tree, Path: "/x", Source: os.NewFile(1<<20, "none")}}},
				}
			},
			Kill: func(t *testing.T, m drivertest.Running) { signal(t, m, unix.SIGKILL) },
			Hang: func(t *testing.T, m drivertest.Running) { signal(t, m, unix.SIGSTOP) },
			Left: func(t *testing.T, id string) (left []string) {
				if _, err := os.Lstat(filepath.Join(dir, id)); err == nil {
					left = append(left, "its folder")
				}
				pids, err := marked(filepath.Join(dir, id))
				if err != nil {
					t.Fatal(err)
				}
				if len(pids) > 0 {
					left = append(left, fmt.Sprint("processes ", pids))
				}
				return left
			},
		}
	})
}

func signal(t *testing.T, m drivertest.Running, sig unix.Signal) {
	t.Helper()
	if err := m.(interface{ Signal(syscall.Signal) error }).Signal(sig); err != nil {
		t.Fatal(err)
	}
}
