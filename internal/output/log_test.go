package output

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// readAll reads a follower to its end and returns both streams.
func readAll(t testing.TB, r skerry.OutputReader) (stdout, stderr string) {
	t.Helper()
	var got [2]bytes.Buffer
	for {
		piece, err := r.Next()
		if err == io.EOF {
			return got[0].String(), got[1].String()
		}
		if err != nil {
			t.Fatal(err)
		}
		i, err := streamIndex(piece.Stream)
		if err != nil {
			t.Fatal(err)
		}
		if offset := int64(got[i].Len()); piece.Offset < offset {
			t.Fatalf("%s at offset %d after %d bytes", piece.Stream, piece.Offset, offset)
		}
		got[i].Write(piece.Data)
	}
}

func mustAppend(t testing.TB, l *Log, s skerry.Stream, off int64, b string) {
	t.Helper()
	if err := l.Append(t.Context(), s, off, []byte(b)); err != nil {
		t.Fatal(err)
	}
}

// finished opens the log of a command that has ended.
func finished(t testing.TB, dir, id string) *Log {
	t.Helper()
	l, err := Open(dir, id, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	return l
}

func diskUse(t testing.TB, dir string) (n int64) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		n += fi.Size()
	}
	return n
}

func TestSmallOutputReachesDiskAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	l := New(dir, "cmd_a", Config{})
	mustAppend(t, l, skerry.Stdout, 0, "one ")
	mustAppend(t, l, skerry.Stderr, 0, "bad")
	mustAppend(t, l, skerry.Stdout, 4, "two")
	if n := diskUse(t, dir); n != 0 {
		t.Fatalf("%d bytes on disk before the end", n)
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*Log{l, finished(t, dir, "cmd_a")} {
		r := l.Follow()
		out, errOut := readAll(t, r)
		r.Close()
		if out != "one two" || errOut != "bad" {
			t.Fatalf("got %q and %q", out, errOut)
		}
		if a, b := l.Offsets(); a != 7 || b != 3 || l.Dropped() != 0 {
			t.Fatalf("offsets %d %d, dropped %d", a, b, l.Dropped())
		}
	}
	if err := Remove(dir, "cmd_a"); err != nil {
		t.Fatal(err)
	}
	if n := diskUse(t, dir); n != 0 {
		t.Fatalf("%d bytes on disk after Remove", n)
	}
	if err := Remove(dir, "cmd_a"); err != nil {
		t.Fatalf("removing nothing: %v", err)
	}
}

// TestOutputSpills: with one byte more than the log holds in memory, everything is on
// disk.
func TestOutputSpills(t *testing.T) {
	dir := t.TempDir()
	l := New(dir, "cmd_a", Config{})
	most := strings.Repeat("x", MemoryBytes-recordHeader)
	mustAppend(t, l, skerry.Stdout, 0, most)
	if n := diskUse(t, dir); n != 0 {
		t.Errorf("%d bytes on disk", n)
	}
	mustAppend(t, l, skerry.Stdout, int64(len(most)), "y")
	if n := diskUse(t, dir); n <= MemoryBytes {
		t.Errorf("%d bytes on disk, want all", n)
	}
	// As if the process had died.
	r := finished(t, dir, "cmd_a").Follow()
	defer r.Close()
	if out, _ := readAll(t, r); out != most+"y" {
		t.Errorf("%d bytes are kept", len(out))
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestSilentCommandMakesNoFile(t *testing.T) {
	dir := t.TempDir()
	l := New(dir, "cmd_a", Config{})
	mustAppend(t, l, skerry.Stdout, 0, "")
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Fatalf("files: %v", list)
	}
	r := finished(t, dir, "cmd_a").Follow()
	defer r.Close()
	if out, errOut := readAll(t, r); out+errOut != "" {
		t.Fatalf("got %q %q", out, errOut)
	}
}

func TestAppendOffsets(t *testing.T) {
	l := New(t.TempDir(), "cmd_a", Config{})
	mustAppend(t, l, skerry.Stdout, 0, "abcdef")
	mustAppend(t, l, skerry.Stdout, 0, "abc")    // all known
	mustAppend(t, l, skerry.Stdout, 3, "defghi") // first half known
	mustAppend(t, l, skerry.Stderr, 0, "on its own")
	for _, c := range []struct {
		stream skerry.Stream
		offset int64
	}{{skerry.Stdout, 10}, {skerry.Stdout, -1}, {skerry.Stderr, 11}, {"stdlog", 0}} {
		if err := l.Append(t.Context(), c.stream, c.offset, []byte("x")); err == nil {
			t.Errorf("%s at %d was accepted", c.stream, c.offset)
		}
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, skerry.Stdout, 6, "ghi") // re-sent after the end
	if err := l.Append(t.Context(), skerry.Stdout, 9, []byte("x")); err == nil {
		t.Error("output after the end was accepted")
	}
	r := l.Follow()
	defer r.Close()
	if out, errOut := readAll(t, r); out != "abcdefghi" || errOut != "on its own" {
		t.Fatalf("got %q %q", out, errOut)
	}
}

// TestSlowFollowerIsExact: a slow follower reads all 200 MB through files of 512 KiB,
// while the writer is as fast as it can be.
func TestSlowFollowerIsExact(t *testing.T) {
	const total = 200 << 20
	dir := t.TempDir()
	l := New(dir, "cmd_a", Config{Keep: 1 << 20})
	r := l.Follow()
	defer r.Close()
	wrote := make(chan [32]byte, 1)
	go func() {
		defer l.Finish()
		sum, rng := sha256.New(), rand.NewChaCha8([32]byte{1})
		buf := make([]byte, 200<<10)
		for at := 0; at < total; {
			n := min(1+int(rng.Uint64()%uint64(len(buf))), total-at)
			rng.Read(buf[:n])
			sum.Write(buf[:n])
			if err := l.Append(t.Context(), skerry.Stdout, int64(at), buf[:n]); err != nil {
				t.Error(err)
				break
			}
			at += n
		}
		wrote <- [32]byte(sum.Sum(nil))
	}()
	sum, n, pause := sha256.New(), 0, time.NewTicker(time.Millisecond)
	defer pause.Stop()
	for i := 0; ; i++ {
		piece, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sum.Write(piece.Data)
		if n += len(piece.Data); i%16 == 0 {
			<-pause.C // slower than the writer
		}
	}
	if got := [32]byte(sum.Sum(nil)); n != total || got != <-wrote {
		t.Fatalf("read %d bytes of %d, or other bytes than were written", n, total)
	}
	if used := diskUse(t, dir); used > 1<<20 {
		t.Errorf("%d bytes on disk", used)
	}
}

func TestBoundedWithoutFollowers(t *testing.T) {
	dir := t.TempDir()
	const keep = 1 << 20
	l := New(dir, "cmd_a", Config{Keep: keep})
	mustAppend(t, l, skerry.Stderr, 0, "early")
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 4000)
	var at int64
	for range 200 {
		if err := l.Append(t.Context(), skerry.Stdout, at, chunk); err != nil {
			t.Fatal(err)
		}
		at += int64(len(chunk))
		if used := diskUse(t, dir); used > keep {
			t.Fatalf("%d bytes on disk", used)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = finished(t, dir, "cmd_a")
	if a, b := l.Offsets(); a != at || b != 5 {
		t.Fatalf("offsets %d %d, want %d 5", a, b, at)
	}
	r := l.Follow()
	defer r.Close()
	out, errOut := readAll(t, r)
	if int64(len(out))+l.Dropped() != at+5 || len(out) < keep/3 || errOut != "" {
		t.Fatalf("kept %d, dropped %d of %d", len(out), l.Dropped(), at)
	}
	if want := bytes.Repeat(chunk, 200)[at-int64(len(out)):]; out != string(want) {
		t.Fatal("what is kept is not the newest")
	}
}

// fill appends until the next chunk would replace the oldest segment.
func fill(t *testing.T, l *Log, chunk []byte) (at int64) {
	t.Helper()
	for len(l.segs) < 2 || l.fits(record{data: chunk}) {
		if err := l.Append(t.Context(), skerry.Stdout, at, chunk); err != nil {
			t.Fatal(err)
		}
		at += int64(len(chunk))
	}
	return at
}

func TestAppendWaitsForFollower(t *testing.T) {
	l := New(t.TempDir(), "cmd_a", Config{Keep: 1})
	chunk := make([]byte, 32<<10)
	r := l.Follow()
	at := fill(t, l, chunk)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.Append(ctx, skerry.Stdout, at, chunk); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("appended over unread output: %v", err)
	}
	res := make(chan error, 2)
	for range 2 { // the same chunk sent twice at once is kept once
		go func() { res <- l.Append(t.Context(), skerry.Stdout, at, chunk) }()
	}
	r.Close()
	for range 2 {
		if err := <-res; err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := l.Offsets(); got != at+int64(len(chunk)) || l.Dropped() == 0 {
		t.Fatalf("offset %d, dropped %d", got, l.Dropped())
	}
}

func TestCloseWakes(t *testing.T) {
	t.Run("a waiting follower", func(t *testing.T) {
		l := New(t.TempDir(), "cmd_a", Config{})
		a, b := l.Follow(), l.Follow()
		res := make(chan error, 2)
		go func() { _, err := a.Next(); res <- err }()
		a.Close()
		go func() { _, err := b.Next(); res <- err }()
		l.Close()
		for range 2 {
			if err := <-res; !errors.Is(err, ErrClosed) {
				t.Errorf("Next: %v", err)
			}
		}
		b.Close()
	})
	t.Run("a follower that is behind", func(t *testing.T) {
		for _, size := range []int{0, 10, 3 * spillSize} {
			l := New(t.TempDir(), "cmd_a", Config{})
			r := l.Follow()
			if size > 0 {
				if err := l.Append(t.Context(), skerry.Stdout, 0, make([]byte, size)); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(l.Finish(), l.Close()); err != nil {
				t.Fatal(err)
			}
			got := 0
			for {
				out, err := r.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatalf("after %d of %d bytes: %v", got, size, err)
				}
				got += len(out.Data)
			}
			if got != size {
				t.Errorf("read %d of %d bytes", got, size)
			}
			r.Close()
		}
	})
	t.Run("a waiting append", func(t *testing.T) {
		l := New(t.TempDir(), "cmd_a", Config{Keep: 1})
		r := l.Follow()
		defer r.Close()
		chunk := make([]byte, 32<<10)
		at := fill(t, l, chunk)
		res := make(chan error, 1)
		go func() { res <- l.Append(t.Context(), skerry.Stdout, at, chunk) }()
		l.Close()
		if err := <-res; !errors.Is(err, ErrClosed) {
			t.Errorf("Append: %v", err)
		}
	})
}

func TestManyFollowers(t *testing.T) {
	l := New(t.TempDir(), "cmd_a", Config{Keep: 1 << 20})
	var group sync.WaitGroup
	sums := make([][32]byte, 20)
	for i := range sums {
		r := l.Follow()
		group.Go(func() {
			defer r.Close()
			out, errOut := readAll(t, r)
			sums[i] = sha256.Sum256([]byte(out + errOut))
		})
	}
	var want [2][]byte
	for i := range 3000 {
		b := bytes.Repeat(fmt.Appendf(nil, "%d,", i), 1+i%500)
		s := i % 2
		if err := l.Append(t.Context(), streams[s], int64(len(want[s])), b); err != nil {
			t.Fatal(err)
		}
		want[s] = append(want[s], b...)
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	group.Wait()
	for i, s := range sums {
		if s != sha256.Sum256(append(want[0][:len(want[0]):len(want[0])], want[1]...)) {
			t.Errorf("follower %d read something else", i)
		}
	}
}

// TestReopenAfterCrash truncates a spilled log at all kinds of positions. The complete
// records stay, and the stream continues after them.
func TestReopenAfterCrash(t *testing.T) {
	chunk := bytes.Repeat([]byte("abcdefg\n"), 4000)
	write := func(dir string) *Log {
		l := New(dir, "cmd_a", Config{})
		for i := range 10 {
			if err := l.Append(t.Context(), skerry.Stdout, int64(i*len(chunk)), chunk); err != nil {
				t.Fatal(err)
			}
		}
		return l // a crash: neither finished nor closed
	}
	damage := map[string]struct {
		do    func(b []byte) []byte
		whole int
	}{
		"nothing":       {func(b []byte) []byte { return b }, 10},
		"data cut":      {func(b []byte) []byte { return b[:len(b)-1] }, 9},
		"header cut":    {func(b []byte) []byte { return b[:len(b)-len(chunk)-5] }, 9},
		"garbage after": {func(b []byte) []byte { return append(b, "garbage that is no record"...) }, 10},
		"bit flipped":   {func(b []byte) []byte { b[len(b)-9] ^= 1; return b }, 9},
		"file header":   {func(b []byte) []byte { return b[:20] }, 0},
		"record twice":  {func(b []byte) []byte { return append(b, b[len(b)-recordHeader-len(chunk):]...) }, 10},
	}
	for name, d := range damage {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			defer write(dir).Close()
			path := filepath.Join(dir, "cmd_a.0.out")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, d.do(b), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := Open(dir, "cmd_a", Config{})
			if err != nil {
				t.Fatal(err)
			}
			at, _ := l.Offsets()
			if at != int64(d.whole*len(chunk)) {
				t.Fatalf("kept %d bytes, want %d chunks", at, d.whole)
			}
			mustAppend(t, l, skerry.Stdout, at, "and on")
			if err := l.Finish(); err != nil {
				t.Fatal(err)
			}
			r := finished(t, dir, "cmd_a").Follow()
			defer r.Close()
			if out, _ := readAll(t, r); out != string(bytes.Repeat(chunk, d.whole))+"and on" {
				t.Fatalf("read %d other bytes", len(out))
			}
		})
	}
}

// TestFailedWriteKeepsTheLog removes the folder, so the first file cannot be created,
// and later another one. The earlier output stays readable.
func TestFailedWriteKeepsTheLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	l := New(dir, "cmd_a", Config{})
	mustAppend(t, l, skerry.Stdout, 0, "kept")
	big := bytes.Repeat([]byte("x"), maxRecord)
	if err := l.Append(t.Context(), skerry.Stdout, 4, big); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("append without a folder: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, skerry.Stdout, 4, string(big))
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	r := l.Follow()
	defer r.Close()
	if out, _ := readAll(t, r); out != "kept"+string(big) {
		t.Fatalf("read %d other bytes", len(out))
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(appendRecord(nil, record{stream: 1, offset: 9, data: []byte("hello")}))
	f.Add(segmentStart{seq: 3, offsets: [2]int64{4, 5}}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if rec, err := decodeRecord(b, true); err == nil {
			if again := appendRecord(nil, rec); !bytes.Equal(again, b[:rec.size()]) {
				t.Errorf("%x decodes to what encodes as %x", b, again)
			}
		}
		if s, err := decodeSegmentStart(b); err == nil && !bytes.Equal(s.encode()[:segmentHeader-4], b[:segmentHeader-4]) {
			t.Errorf("%x is a header that encodes as %x", b, s.encode())
		}
		file := append(segmentStart{}.encode(), b...)
		l, err := scanSegment(bytes.NewReader(file))
		if err != nil || l.size > int64(len(b)) {
			t.Errorf("scan: %+v, %v", l, err)
		}
	})
}

// BenchmarkFollow appends with one fast follower.
func BenchmarkFollow(b *testing.B) {
	for _, size := range []int{4 << 10, 32 << 10, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l := New(b.TempDir(), "cmd_a", Config{})
			r := l.Follow()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					if _, err := r.Next(); err != nil {
						return
					}
				}
			}()
			chunk := make([]byte, size)
			b.SetBytes(int64(size))
			b.ResetTimer()
			var at int64
			for range b.N {
				if err := l.Append(b.Context(), skerry.Stdout, at, chunk); err != nil {
					b.Fatal(err)
				}
				at += int64(size)
			}
			l.Finish()
			<-done
			r.Close()
		})
	}
}

// TestReturnedBytesStay: the data that Next returned does not change when its block
// leaves the tail, even if another goroutine has closed the follower.
func TestReturnedBytesStay(t *testing.T) {
	for name, closed := range map[string]bool{"open": false, "closed": true} {
		t.Run(name, func(t *testing.T) {
			l := New(t.TempDir(), "cmd_a", Config{})
			defer l.Close()
			r := l.Follow()
			defer r.Close()
			mustAppend(t, l, skerry.Stdout, 0, string(bytes.Repeat([]byte("a"), maxRecord)))
			piece, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if closed {
				r.Close()
			}
			other := bytes.Repeat([]byte("b"), maxRecord)
			for i := range 2 * maxTail * blockSize / maxRecord {
				if err := l.Append(t.Context(), skerry.Stdout, int64((i+1)*maxRecord), other); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(piece.Data, bytes.Repeat([]byte("a"), maxRecord)) {
				t.Fatal("returned bytes changed before the next call")
			}
		})
	}
}
