package gvisor

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSnapshot(t *testing.T) {
	l := newLab(t)
	spec := l.spec("before")
	spec.DiskBytes = 1 << 30
	m, g := l.start(t, spec)
	g.ask("write /data 100")
	dir := filepath.Join(t.TempDir(), "snapshot")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := m.Snapshot(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	t.Log("snapshot", time.Since(start))
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		i, _ := e.Info()
		t.Log(e.Name(), i.Size())
	}
	t.Log(g.ask("size /data"))
	spec = l.spec("after")
	spec.DiskBytes = 1 << 30
	spec.Snapshot = dir
	start = time.Now()
	_, g2 := l.start(t, spec)
	t.Log(g2.ask("size /data"))
	t.Log("restore", time.Since(start))
	start = time.Now()
	t.Log(g2.ask("sum /data"))
	t.Log("sum", time.Since(start))
}
