package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestConnectionsFitTheFiles(t *testing.T) {
	for _, c := range []struct{ most, files, connections, open int }{
		{16384, 1 << 20, 16384, 4000},
		{16384, 65536, 16384, 4000},
		{16384, 4096, 1024, 512},
		{100, 1 << 20, 100, 50},
	} {
		o := apiOptions{maxConnections: c.most}
		if connections, open := o.bound(c.files); connections != c.connections || open != c.open {
			t.Errorf("%d of %d files: %d connections and %d open calls, want %d and %d", c.most, c.files, connections, open, c.connections, c.open)
		}
	}
}

func TestProxyConnectionsFitTheFiles(t *testing.T) {
	for files, want := range map[int]int{1 << 20: 131072, 65536: 8192, 4096: 512, 100: 64} {
		if got := connectionsFor(files); got != want {
			t.Errorf("%d files: %d connections, want %d", files, got, want)
		}
	}
}

func TestFilesAreRaised(t *testing.T) {
	var before, after unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	few := unix.Rlimit{Cur: 1024, Max: before.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	got, err := raiseFiles()
	if err == nil {
		err = unix.Getrlimit(unix.RLIMIT_NOFILE, &after)
	}
	if err != nil || uint64(got) != after.Cur || after.Cur < few.Max && after.Cur < wantFiles {
		t.Errorf("raised to %d, and the limit is %d of %d: %v", got, after.Cur, before.Max, err)
	}
}
