package gvisor

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMainThreadIsKept: no goroutine but the main one runs on the main thread.
func TestMainThreadIsKept(t *testing.T) {
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			for range 50 {
				if unix.Gettid() == os.Getpid() {
					t.Error("a goroutine runs on the main thread")
					return
				}
				runtime.Gosched()
			}
		})
	}
	wg.Wait()
}

// TestThreadsStayAtHome starts many machines with networks at once. No thread of
// this process is in one of their namespaces afterwards.
func TestThreadsStayAtHome(t *testing.T) {
	l := newLab(t)
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 12 {
		spec := l.spec(fmt.Sprint("crew", i))
		ns := filepath.Join(dir, spec.ID)
		spec.Interfaces = veth(ns)
		makeNetNS(t, ns)
		wg.Go(func() {
			m, err := l.Start(t.Context(), spec)
			if err != nil {
				t.Error(err)
				return
			}
			if err := m.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// runsc brings some of its threads back after a start has returned.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var away []string
		threads, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil || len(threads) == 0 {
			t.Fatal(threads, err)
		}
		for _, path := range threads {
			if ns, err := os.Readlink(path); err == nil && ns != home {
				away = append(away, path+" "+ns)
			}
		}
		if len(away) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("threads are in other network namespaces: %v", away)
		}
	}
}
