package main

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/store"
)

// TestSocketIsRoots has the socket never be there with the mode of the umask.
func TestSocketIsRoots(t *testing.T) {
	dir := t.TempDir()
	defer syscall.Umask(syscall.Umask(0))
	// What a server leaves that is killed in between.
	if err := os.MkdirAll(filepath.Join(dir, ".socket", socketFile), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is one of an earlier server
		ln, err := listenUnix(dir, socketFile)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, socketFile))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the socket has the mode %v, %v", info.Mode(), err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Errorf("in the folder are %v, %v", entries, err)
		}
		var conn net.Conn
		if err := inFolder(dir, socketFile, func(short string) error {
			conn, err = net.Dial("unix", short)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		ln.Close()
	}
}

// TestHealth asks a server about its database.
func TestHealth(t *testing.T) {
	dir := t.TempDir()
	db, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	stop, err := serveSocket(dir, socketHandler(nil, auth.New(db), nil, db, newSampler(), "http://example.com"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := ask(t.Context(), dir, http.MethodGet, "/health", nil, nil); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ask(t.Context(), dir, http.MethodGet, "/health", nil, nil); err == nil || !strings.Contains(err.Error(), "database") {
		t.Errorf("without its database: %v", err)
	}
}
