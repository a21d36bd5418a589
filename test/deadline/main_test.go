package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRun has tests that pass, fail and hang.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example.com/tests\n\ngo 1.26\n")
	head := "import (\"testing\"; \"time\")\n\nvar _ = time.Second\n\n"
	write("good/a_test.go", "package good\n"+head+"func TestGood(t *testing.T) { t.Log(\"quiet\") }\n")
	write("bad/a_test.go", "package bad\n"+head+"func TestBad(t *testing.T) { t.Error(\"it is bad\") }\n")
	write("hung/a_test.go", "package hung\n"+head+"func TestFine(t *testing.T) {}\nfunc TestHung(t *testing.T) { stuck() }\nfunc stuck() { select {} }\n"+
		"func init() { go func() { for { time.Sleep(time.Second) } }() }\n")
	t.Chdir(dir)
	t.Setenv("GOFLAGS", "-mod=mod")
	for _, test := range []struct {
		pkg     string
		each    time.Duration
		code    int
		has, no []string
	}{
		{"./good", time.Minute, 0, []string{"ok  \texample.com/tests/good"}, []string{"quiet", "no progress"}},
		{"./bad", time.Minute, 1, []string{"it is bad", "FAIL\texample.com/tests/bad"}, []string{"no progress"}},
		{"./hung", time.Second, 1, []string{"example.com/tests/hung: TestHung has made no progress", "hung.stuck"}, []string{"TestFine has"}},
	} {
		var out strings.Builder
		code, err := run(test.each, []string{"-count=1", "-timeout", "5m", test.pkg}, &out)
		if err != nil || code != test.code {
			t.Errorf("%s: code %d, %v, want %d", test.pkg, code, err, test.code)
		}
		for _, has := range test.has {
			if !strings.Contains(out.String(), has) {
				t.Errorf("%s does not say %q:\n%s", test.pkg, has, &out)
			}
		}
		for _, no := range test.no {
			if strings.Contains(out.String(), no) {
				t.Errorf("%s says %q:\n%s", test.pkg, no, &out)
			}
		}
	}
}
