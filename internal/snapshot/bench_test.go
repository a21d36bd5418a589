package snapshot

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

const benchSize = 100 << 20

// benchTree is 100 MB, half of which compresses.
func benchTree() tree {
	return tree{"checkpoint.img": []byte("{}"), "pages_meta.img": text(9, 200<<10), "pages.img": mixed(1, benchSize)}
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
	tr := benchTree()
	b.SetBytes(benchSize)
	for range b.N {
		b.StopTimer()
		l := newLab(b)
		dir := tr.write(b, filepath.Join(l.dir, "new"))
		b.StartTimer()
		ref, err := l.Add(context.Background(), dir)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(ref.Added)/1e6, "stored-MB")
		b.StopTimer()
		os.RemoveAll(l.dir)
		b.StartTimer()
	}
}

func BenchmarkAddChanged(b *testing.B) {
	tr := benchTree()
	l := newLab(b)
	l.add(tr)
	b.SetBytes(benchSize)
	for i := range b.N {
		b.StopTimer()
		dir := tr.changed(uint64(100+i)).write(b, filepath.Join(l.dir, randomName()))
		b.StartTimer()
		ref, err := l.Add(context.Background(), dir)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(ref.Added)/1e6, "stored-MB")
	}
}

func BenchmarkLoadWarm(b *testing.B) {
	l := newLab(b)
	benchLoad(b, l, l.add(benchTree()), func() {})
}

func BenchmarkLoadCold(b *testing.B) {
	l := newLab(b)
	ref := l.add(benchTree())
	benchLoad(b, l, ref, func() {
		l.cache.retain(func(sum) bool { return false })
	})
}

func benchLoad(b *testing.B, l *lab, ref Ref, before func()) {
	b.SetBytes(benchSize)
	for range b.N {
		b.StopTimer()
		before()
		b.StartTimer()
		f, err := l.Load(context.Background(), ref.Manifest)
		if err != nil {
			b.Fatal(err)
		}
		f.Release()
	}
}
