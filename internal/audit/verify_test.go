package audit

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// readLines returns the lines of a file, with their line feeds.
func readLines(t *testing.T, dir string, number int) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, fileName(number)))
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(strings.Lines(string(data)))
}

func writeLines(t *testing.T, dir string, number int, lines []string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, fileName(number)), []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestVerify finds whatever is done to a log.
func TestVerify(t *testing.T) {
	edit := func(f func(lines []string) []string) func(*testing.T, string) {
		return func(t *testing.T, dir string) { writeLines(t, dir, 2, f(readLines(t, dir, 2))) }
	}
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		what string
		do   func(t *testing.T, dir string)
		want string
	}{
		{"nothing", func(*testing.T, string) {}, ""},
		{"a bit flipped", edit(func(l []string) []string { l[2] = strings.Replace(l[2], `"status":200`, `"status":201`, 1); return l }), "000002.jsonl, line 3: its hash is not the one that it says"},
		{"a hash changed", edit(func(l []string) []string {
			b := []byte(l[2])
			b[len(b)-5] ^= 1
			l[2] = string(b)
			return l
		}), "000002.jsonl, line 3: its hash is not"},
		{"a line removed", edit(func(l []string) []string { return slices.Delete(l, 2, 3) }), "000002.jsonl, line 3: it does not follow the line before"},
		{"the first line removed", edit(func(l []string) []string { return l[1:] }), "000002.jsonl, line 1: it does not follow the line before"},
		{"a line twice", edit(func(l []string) []string { return slices.Insert(l, 2, l[1]) }), "000002.jsonl, line 3: it does not follow the line before"},
		{"lines swapped", edit(func(l []string) []string { l[1], l[2] = l[2], l[1]; return l }), "000002.jsonl, line 2: it does not follow the line before"},
		{"a line inserted with a hash of its own", edit(func(l []string) []string {
			r, err := unseal([]byte(strings.TrimSpace(l[1])))
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			r.Prev, r.Seq = r.Hash, r.Seq+1
			seal(&b, r)
			return slices.Insert(l, 2, b.String())
		}), "000002.jsonl, line 4: it does not follow the line before"},
		{"a line changed with its hash", edit(func(l []string) []string {
			r, err := unseal([]byte(strings.TrimSpace(l[1])))
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			r.Actor.ID = "tok_2"
			seal(&b, r)
			l[1] = b.String()
			return l
		}), "000002.jsonl, line 3: it does not follow the line before"},
		{"a number left out with its hash", edit(func(l []string) []string {
			r, err := unseal([]byte(strings.TrimSpace(l[1])))
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			r.Seq++
			seal(&b, r)
			l[1] = b.String()
			return l
		}), "000002.jsonl, line 2: record"},
		{"words inserted", edit(func(l []string) []string { return slices.Insert(l, 2, "hello\n") }), "000002.jsonl, line 3: it is not a record"},
		{"an empty line", edit(func(l []string) []string { return slices.Insert(l, 2, "\n") }), "000002.jsonl, line 3: it is not a record"},
		{"a long line", edit(func(l []string) []string { return slices.Insert(l, 2, strings.Repeat("x", 300<<10)+"\n") }), "000002.jsonl, line 3: it is not a record"},
		{"a file cut", edit(func(l []string) []string { return l[:2] }), "000003.jsonl, line 1: it does not follow the line before"},
		{"a file cut in a line", edit(func(l []string) []string { l[2] = l[2][:50]; return l[:3] }), "000002.jsonl, line 3: it is a part of a line"},
		{"a file emptied", edit(func([]string) []string { return nil }), "the file 000002.jsonl is missing or empty"},
		{"a file removed", remove(fileName(2)), "the file 000002.jsonl is missing or empty"},
		{"the first file removed", remove(fileName(1)), "000002.jsonl, line 1: the records before"},
		{"the last file removed", func(t *testing.T, dir string) {
			numbers, err := fileNumbers(dir)
			if err != nil {
				t.Fatal(err)
			}
			remove(fileName(numbers[len(numbers)-1]))(t, dir)
		}, "the end is missing"},
		{"the head removed", remove(headFile), "the file head is missing"},
		{"the head emptied", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, headFile), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "the file head cannot be understood"},
		{"the head changed", func(t *testing.T, dir string) {
			if err := writeHead(dir, head{Seq: 3, Hash: noHash}); err != nil {
				t.Fatal(err)
			}
		}, "line 3: the file head names another record 3"},
		{"everything removed", func(t *testing.T, dir string) {
			numbers, err := fileNumbers(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range numbers {
				remove(fileName(n))(t, dir)
			}
		}, "there is no audit log in"},
	} {
		t.Run(c.what, func(t *testing.T) {
			o := options(t.TempDir())
			o.FileBytes = 2000
			l := open(t, o)
			record(t, l, 0, 30)
			closeLog(t, l)
			c.do(t, o.Dir)
			r, err := Verify(o.Dir)
			if c.want == "" {
				if err != nil || r.Records != 32 || r.First != 1 || len(r.Notes) != 0 {
					t.Errorf("%+v, %v", r, err)
				}
				return
			}
			wrong, is := errors.AsType[*WrongError](err)
			if !is || !strings.Contains(wrong.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

// TestRewritten has a log that was made anew not be the one of which somebody kept a hash.
func TestRewritten(t *testing.T) {
	anchor := ""
	for n := range 2 {
		o := options(t.TempDir())
		l := open(t, o)
		record(t, l, n, 3)
		closeLog(t, l)
		got := all(t, o.Dir)
		if n == 0 {
			anchor = got[2].Hash
			verified(t, o.Dir, anchor)
			continue
		}
		if _, err := Verify(o.Dir, anchor); err == nil || !strings.Contains(err.Error(), "no record has the hash "+anchor) {
			t.Errorf("%v", err)
		}
	}
}

// TestVerifyWhileWriting has a log be intact at any time.
func TestVerifyWhileWriting(t *testing.T) {
	o := options(t.TempDir())
	o.MaxBytes = 60 << 10
	l := open(t, o)
	record(t, l, 0, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range 1500 {
			if err := l.Record(event(n), true); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		if _, err := Verify(o.Dir); err != nil {
			// Files were removed in three attempts on end.
			if w, is := errors.AsType[*WrongError](err); !is || strings.Contains(w.Why, "hash") {
				t.Error(err)
			}
		}
	}
	closeLog(t, l)
	verified(t, o.Dir)
}

// FuzzUnseal has nothing but a sealed record be taken for one.
func FuzzUnseal(f *testing.F) {
	var b bytes.Buffer
	r := Record{Seq: 1, Operation: "a", Prev: noHash}
	seal(&b, &r)
	f.Add(bytes.TrimSpace(b.Bytes()))
	f.Add([]byte(`{}`))
	f.Add([]byte(`,"hash":"` + noHash + `"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := unseal(line)
		if err != nil {
			return
		}
		if !bytes.Contains(line, []byte(r.Hash)) {
			t.Errorf("a record with another hash: %q", line)
		}
	})
}
