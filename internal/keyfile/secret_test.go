package keyfile

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestSecret(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "some.key")
	if _, err := Secret(path, true); !errors.Is(err, ErrMissing) {
		t.Errorf("a key that was used before and is gone: %v", err)
	}
	key, err := Secret(path, false)
	if err != nil || len(key) != SecretBytes || bytes.Equal(key, make([]byte, SecretBytes)) {
		t.Fatalf("a new key: %x, %v", key, err)
	}
	for _, used := range []bool{false, true} {
		again, err := Secret(path, used)
		if err != nil || !bytes.Equal(key, again) {
			t.Errorf("the key became %x, %v", again, err)
		}
	}
	only(t, dir, "some.key")
	if other, err := Secret(path+"2", false); err != nil || bytes.Equal(key, other) {
		t.Errorf("another key: %x, %v", other, err)
	}
	if err := os.WriteFile(path, key[:16], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Secret(path, false); err == nil {
		t.Error("half a key was taken")
	}
}
