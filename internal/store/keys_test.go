package store

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func TestSigningKeys(t *testing.T) {
	onEach(t, func(t *testing.T, openIn opener) {
		dir := t.TempDir()
		s := openIn(t, dir)
		created := time.UnixMilli(1_700_000_000_123)
		newer := SigningKey{ID: "a", Created: created.Add(time.Hour), PEM: []byte("the newer private key")}
		older := SigningKey{ID: "b", Created: created, PEM: []byte("the older private key")}
		for _, k := range []SigningKey{newer, older, {ID: "b", Created: created.Add(time.Minute), PEM: []byte("another")}} {
			if err := s.AddSigningKey(t.Context(), k); err != nil {
				t.Fatal(err)
			}
		}
		want := func(want ...SigningKey) {
			t.Helper()
			got, err := s.SigningKeys(t.Context())
			if err != nil || len(got) != len(want) {
				t.Fatalf("%v, %v", got, err)
			}
			for n := range got {
				if !got[n].Created.Equal(want[n].Created) {
					t.Errorf("%v, want %v", got[n].Created, want[n].Created)
				}
				got[n].Created = want[n].Created
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		}
		want(older, newer)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte("private key")) {
				t.Errorf("%s has a private key in it", f)
			}
		}
		s = openIn(t, dir)
		want(older, newer)
		for range 2 { // the second time there is none
			if err := s.DeleteSigningKey(t.Context(), "b"); err != nil {
				t.Fatal(err)
			}
		}
		want(newer)
	})
}
