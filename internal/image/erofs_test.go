package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuildEROFSFails(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out.erofs")
	err := BuildEROFS(t.Context(), filepath.Join(t.TempDir(), "missing"), out)
	if err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("packing a folder that is not there: %v", err)
	}
	if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed packing left its file: %v", err)
	}
}

func TestLineTail(t *testing.T) {
	var seen []string
	tail := &lineTail{line: func(s string) { seen = append(seen, s) }}
	for _, s := range []string{"one\ntw", "o\r\n\n", strings.Repeat("x", 3*tailWidth), "\nlast"} {
		if n, err := tail.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(seen) < 4 || seen[0] != "one" || seen[1] != "two" || len(seen[2]) > tailWidth {
		t.Errorf("the lines are %q", seen)
	}
	if !strings.HasSuffix(tail.String(), "\nlast") {
		t.Errorf("the tail is %q", tail)
	}
}
