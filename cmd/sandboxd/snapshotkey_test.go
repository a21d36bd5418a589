package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSnapshotKey(t *testing.T) {
	state := t.TempDir()
	if err := os.Mkdir(filepath.Join(state, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(state, "db", "snapshots.key")
	mark := filepath.Join(state, "snapshots", "key.json")
	key, err := snapshotKey(state)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := snapshotKey(state); err != nil || !bytes.Equal(again, key) {
		t.Errorf("the key became %x, %v", again, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the key's file: %v, %v", info.Mode(), err)
	}
	refuses := func(how, want string) {
		t.Helper()
		if _, err := snapshotKey(state); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), string(key)) {
			t.Errorf("%s: %v", how, err)
		}
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte{1}, len(key)), 0o600); err != nil {
		t.Fatal(err)
	}
	refuses("another key", mark)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	refuses("no key", path)
	if _, err := os.Stat(path); err == nil {
		t.Error("a key was made in the place of one that is lost")
	}
	if err := os.WriteFile(mark, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	refuses("no mark", mark)
	// Whoever gives the snapshots up begins anew.
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	if again, err := snapshotKey(state); err != nil || bytes.Equal(again, key) {
		t.Errorf("a new key: %x, %v", again, err)
	}
	// One that was made before a crash, and not marked, stays.
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := snapshotKey(state); err != nil || !bytes.Equal(again, made) {
		t.Errorf("a key without a mark became %x, %v", again, err)
	}
}
