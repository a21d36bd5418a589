package snapshot

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/nodeapi"
)

const benchSize = 100 << 20

// benchTree is 100 MB, every second of which compresses as what people keep in
// sandboxes does: sources and programs, each starting at a page boundary.
func benchTree(b *testing.B) tree {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	dir := strings.TrimSpace(string(root))
	sources := filePages(b, filepath.Join(dir, "src"), benchSize/4)
	programs := filePages(b, filepath.Join(dir, "pkg", "tool"), benchSize/4)
	var pages []byte
	for i := 0; len(pages) < benchSize; i++ {
		pages = append(pages, random(uint64(i), 1<<20)...)
		from := &sources
		if i%2 == 1 {
			from = &programs
		}
		n := min(1<<20, len(*from))
		pages = append(pages, (*from)[:n]...)
		*from = (*from)[n:]
	}
	return tree{"checkpoint.img": []byte("{}"), "pages_meta.img": text(9, 200<<10), "pages.img": pages[:benchSize]}
}

// filePages returns n bytes of the files below a folder.
func filePages(b *testing.B, dir string, n int) []byte {
	var pages []byte
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		pages = append(pages, data...)
		pages = append(pages, make([]byte, -len(pages)&(pageSize-1))...)
		if len(pages) >= n {
			return fs.SkipAll
		}
		return err
	})
	if err != nil || len(pages) < n {
		b.Fatalf("%d bytes in %s: %v", len(pages), dir, err)
	}
	return pages[:n]
}

// cpuTime returns what the process has used up.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// meter reports the processor time beside the time: the first is the same on a
// machine that does other things too.
type meter struct {
	*testing.B
	used, since time.Duration
}

func newMeter(b *testing.B) *meter {
	b.SetBytes(benchSize)
	b.StopTimer()
	b.ResetTimer()
	return &meter{B: b}
}

func (m *meter) start() {
	m.since = cpuTime(m.B)
	m.StartTimer()
}

func (m *meter) stop() {
	m.StopTimer()
	m.used += cpuTime(m.B) - m.since
	m.ReportMetric(float64(m.used.Milliseconds())/float64(m.N), "cpu-ms/op")
}

// changed returns a copy of a tree of which one percent of the pages, in eight
// runs, are others.
func (tr tree) changed(seed uint64) tree {
	pages := append([]byte(nil), tr["pages.img"]...)
	run := len(pages) / 100 / 8 / pageSize * pageSize
	for i := range 8 {
		at := (len(pages)/8*i + 300<<10) / pageSize * pageSize
		copy(pages[at:], random(seed+uint64(i), run))
	}
	return tree{"checkpoint.img": tr["checkpoint.img"], "pages_meta.img": text(seed, 200<<10), "pages.img": pages}
}

func BenchmarkAdd(b *testing.B) {
	tr := benchTree(b)
	m := newMeter(b)
	for range b.N {
		l := newLab(b)
		benchAdd(m, l, tr)
		os.RemoveAll(l.dir)
	}
}

func BenchmarkAddChanged(b *testing.B) {
	tr := benchTree(b)
	l := newLab(b)
	l.add(tr)
	m := newMeter(b)
	for i := range b.N {
		benchAdd(m, l, tr.changed(uint64(100+i)))
	}
}

func benchAdd(m *meter, l *lab, tr tree) {
	dir := tr.write(m, filepath.Join(l.dir, randomName()))
	// Sync now, so that Add is not charged for writing the folder.
	syscall.Sync()
	m.start()
	ref, err := l.db.save(context.Background(), l.Store, dir)
	m.stop()
	if err != nil {
		m.Fatal(err)
	}
	m.ReportMetric(float64(ref.Added)/1e6, "stored-MB")
}

func BenchmarkLoadWarm(b *testing.B) {
	l := newLab(b)
	benchLoad(b, l, l.add(benchTree(b)), func() {})
}

func BenchmarkLoadCold(b *testing.B) {
	l := newLab(b)
	ref := l.add(benchTree(b))
	benchLoad(b, l, ref, func() {
		l.cache.retain(func(id) bool { return false })
		syscall.Sync()
	})
}

func benchLoad(b *testing.B, l *lab, ref nodeapi.SavedFiles, before func()) {
	m := newMeter(b)
	for range b.N {
		before()
		m.start()
		f, err := l.Load(context.Background(), ref.Manifest, anyFormat)
		m.stop()
		if err != nil {
			b.Fatal(err)
		}
		f.Release()
	}
}

// BenchmarkTools is what other programs take for the same data: the time to
// beat. zstd -T0 uses all cores, as Add does; sync is what makes it durable.
func BenchmarkTools(b *testing.B) {
	dir := benchTree(b).write(b, filepath.Join(b.TempDir(), "data"))
	pages := filepath.Join(dir, "pages.img")
	for _, tool := range []struct{ name, line string }{
		{"zstd-1", "zstd -q -f -1 -T1 pages.img -o new"},
		{"zstd-1-T0-sync", "zstd -q -f -1 -T0 pages.img -o new && sync new"},
		{"unzstd", "zstd -q -f -d packed.zst -o new"},
		{"cp", "cp pages.img new"},
		{"cp-sync", "cp pages.img new && sync new"},
		{"sha256sum", "sha256sum pages.img"},
	} {
		b.Run(tool.name, func(b *testing.B) {
			if out, err := exec.Command("zstd", "-q", "-f", "-1", pages, "-o", filepath.Join(dir, "packed.zst")).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			b.SetBytes(benchSize)
			b.ResetTimer()
			var used time.Duration
			for range b.N {
				b.StopTimer()
				os.Remove(filepath.Join(dir, "new"))
				syscall.Sync()
				cmd := exec.Command("sh", "-c", tool.line)
				cmd.Dir = dir
				b.StartTimer()
				out, err := cmd.CombinedOutput()
				if err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				used += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			}
			b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
		})
	}
}
