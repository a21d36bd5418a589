package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is also the process that tests kill, and that has no room to write.
func TestMain(m *testing.M) {
	switch dir := os.Getenv("AUDIT_TEST_DIR"); os.Getenv("AUDIT_TEST_CHILD") {
	case "kill":
		writeUntilKilled(dir)
	case "full":
		if err := writeWithoutRoom(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child returns a command that runs the test binary as one of TestMain's processes.
func child(t *testing.T, what, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "AUDIT_TEST_CHILD="+what, "AUDIT_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// options are those of a log in a folder. A busy machine makes no call of a test fail.
func options(dir string) Options {
	return Options{Dir: dir, wait: time.Hour, Instance: "skerry-test", Version: "test", Log: slog.New(slog.DiscardHandler)}
}

func open(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func event(n int) Event {
	return Event{
		Operation: "runCommand", RequestID: "req_" + strconv.Itoa(n), Actor: Actor{Kind: ActorToken, ID: "tok_1"}, Team: "team_1", Project: "prj_1",
		Targets: []Target{{Kind: TargetSandbox, Name: "a"}, {Kind: TargetSession, ID: "sbx_1"}}, Program: "sh", Remote: "192.0.2.7",
		UserAgent: "test/1", Status: 200, Took: 12 * time.Millisecond,
	}
}

// record adds events and waits for them.
func record(t testing.TB, l *Log, from, n int) {
	t.Helper()
	for i := range n {
		if err := l.Record(event(from+i), true); err != nil {
			t.Fatal(err)
		}
	}
}

// all returns the records of a log.
func all(t testing.TB, dir string) (records []Record) {
	t.Helper()
	r := NewReader(dir, Position{})
	defer r.Close()
	for {
		line, err := r.Next()
		if errors.Is(err, io.EOF) {
			return records
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := Check(line)
		if err != nil {
			t.Fatalf("%s, line %d: %v: %s", line.File, line.Number, err, line.Bytes)
		}
		records = append(records, *got)
	}
}

// with returns the records of an operation.
func with(records []Record, op string) (some []Record) {
	for _, r := range records {
		if r.Operation == op {
			some = append(some, r)
		}
	}
	return some
}

func verified(t testing.TB, dir string, anchors ...string) *Report {
	t.Helper()
	r, err := Verify(dir, anchors...)
	if err != nil {
		t.Fatalf("the log is not intact: %v", err)
	}
	return r
}

// TestConcurrentWriters has a record of each call be in the file when the call returns.
func TestConcurrentWriters(t *testing.T) {
	o := options(t.TempDir())
	o.FileBytes = 20 << 10
	l := open(t, o)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 50 {
				n := w*50 + i
				if err := l.Record(event(n), true); err != nil {
					t.Error(err)
					return
				}
				if i%25 != 0 {
					continue
				}
				if !slices.ContainsFunc(all(t, o.Dir), func(r Record) bool { return r.RequestID == event(n).RequestID }) {
					t.Errorf("record %d is not in the file", n)
				}
			}
		})
	}
	wg.Wait()
	closeLog(t, l)
	l = open(t, o)
	record(t, l, 800, 10)
	closeLog(t, l)
	report := verified(t, o.Dir)
	got := all(t, o.Dir)
	seen := map[string]bool{}
	for i, r := range got {
		if r.Seq != int64(i+1) {
			t.Fatalf("record %d has the number %d", i+1, r.Seq)
		}
		seen[r.RequestID] = true
	}
	for n := range 810 {
		if !seen[event(n).RequestID] {
			t.Errorf("there is no record %d", n)
		}
	}
	if numbers, err := fileNumbers(o.Dir); err != nil || len(numbers) < 10 {
		t.Errorf("files %v, %v", numbers, err)
	}
	if len(with(got, opOpened)) != 2 || len(with(got, opClosed)) != 2 || report.Last != int64(len(got)) || report.Hash != got[len(got)-1].Hash {
		t.Errorf("%+v of %d records", report, len(got))
	}
	if err := l.Record(event(1), true); !errors.Is(err, errClosed) {
		t.Errorf("after its end: %v", err)
	}
	for name, mode := range map[string]os.FileMode{".": 0o700 | os.ModeDir, fileName(1): 0o600, headFile: 0o600} {
		if info, err := os.Stat(filepath.Join(o.Dir, name)); err != nil || name != "." && info.Mode() != mode {
			t.Errorf("%s is %v, %v", name, info.Mode(), err)
		}
	}
}

// TestRecordIsBounded has nothing that a client sends make a line large, invalid or
// unprintable.
func TestRecordIsBounded(t *testing.T) {
	o := options(t.TempDir())
	l := open(t, o)
	for _, hostile := range []string{strings.Repeat(`"\`, 10000), "\x1b[2J\r\n\x00", "\xff\xfe", strings.Repeat("\u202e", 5000), strings.Repeat("é", 999), `","hash":"` + strings.Repeat("0", 64) + `"}` + "\n{}"} {
		e := Event{
			RequestID: hostile, Operation: hostile, Phase: hostile, Actor: Actor{hostile, hostile, hostile, hostile, false}, Role: hostile, Team: hostile, Project: hostile,
			Program: hostile, Remote: hostile, Via: hostile, UserAgent: hostile, Code: hostile,
		}
		for range 100 {
			e.Targets = append(e.Targets, Target{hostile, hostile, hostile})
		}
		if err := l.Record(e, true); err != nil {
			t.Fatal(err)
		}
	}
	closeLog(t, l)
	verified(t, o.Dir)
	data, err := os.ReadFile(filepath.Join(o.Dir, fileName(1)))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		if len(line) > maxLine {
			t.Errorf("a line has %d bytes", len(line))
		}
		for _, c := range line[:len(line)-1] {
			if c < ' ' {
				t.Fatalf("a line has the byte %#x", c)
			}
		}
		if bytes.Contains(line, []byte("\u202e")) {
			t.Error("a line has a character that turns others")
		}
	}
	if got := all(t, o.Dir); len(got) != 8 || len(got[1].Targets) != maxTargets {
		t.Errorf("%d records", len(got))
	}
}

// writeUntilKilled writes from several goroutines, and says which records are written.
func writeUntilKilled(dir string) {
	o := options(dir)
	o.FileBytes = 30 << 10
	l, err := Open(o)
	if err != nil {
		panic(err)
	}
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				e := event(i)
				e.RequestID = fmt.Sprintf("req_%d.%d", w, i)
				if err := l.Record(e, true); err != nil {
					panic(err)
				}
				fmt.Println(e.RequestID)
			}
		}()
	}
	select {}
}

// TestKilled kills a process that writes, again and again: no record is lost that a call
// has waited for, and the chain goes on.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	rounds := 5
	for round := range rounds {
		cmd := child(t, "kill", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := map[string]bool{}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			acknowledged[lines.Text()] = true
			if len(acknowledged) == 300+100*round {
				break
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			if strings.Count(lines.Text(), ".") == 1 {
				acknowledged[lines.Text()] = true
			}
		}
		_ = cmd.Wait() // it was killed
		verified(t, dir)
		l := open(t, options(dir))
		closeLog(t, l)
		report := verified(t, dir)
		got := all(t, dir)
		if int64(len(got)) != report.Last {
			t.Fatalf("%d records, the last has the number %d", len(got), report.Last)
		}
		present := map[string]int{}
		for _, r := range got {
			present[r.RequestID]++
		}
		missing := 0
		for id := range acknowledged {
			if present[id] == 0 {
				missing++
			}
		}
		if missing > 1 { // the last line of the output may be cut
			t.Errorf("%d of %d records are missing", missing, len(acknowledged))
		}
		if n := len(with(got, opOpened)); n != 2*(round+1) {
			t.Errorf("%d processes have begun", n)
		}
	}
}

// TestTorn has a line that is not whole moved aside, and the chain go on.
func TestTorn(t *testing.T) {
	for name, rest := range map[string]string{
		"a part of a line": `{"seq":9,"time":"2026-`, "zeros": strings.Repeat("\x00", 5000), "lines": "x\ny\n", "a long line": strings.Repeat("x", 200<<10),
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t.TempDir())
			l := open(t, o)
			record(t, l, 0, 5)
			closeLog(t, l)
			path := filepath.Join(o.Dir, fileName(1))
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, append(slices.Clone(before), rest...), 0o600); err != nil {
				t.Fatal(err)
			}
			l = open(t, o)
			record(t, l, 5, 1)
			closeLog(t, l)
			report := verified(t, o.Dir)
			torn := with(all(t, o.Dir), opTorn)
			if len(torn) != 1 || torn[0].Log.Bytes != int64(len(rest)) || len(report.Notes) != 1 {
				t.Fatalf("records of it: %+v, notes %q", torn, report.Notes)
			}
			if kept, err := os.ReadFile(filepath.Join(o.Dir, torn[0].Log.File)); err != nil || string(kept) != rest {
				t.Errorf("kept %d bytes of %d, %v", len(kept), len(rest), err)
			}
		})
	}
}

// TestTornAlone has a file that has no whole line, also as the first one.
func TestTornAlone(t *testing.T) {
	o := options(t.TempDir())
	for _, number := range []int{1, 2} {
		if err := os.WriteFile(filepath.Join(o.Dir, fileName(number)), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		l := open(t, o)
		record(t, l, 0, 1)
		closeLog(t, l)
		verified(t, o.Dir)
	}
	if got := all(t, o.Dir); len(with(got, opTorn)) != 2 || got[len(got)-1].Seq != int64(len(got)) {
		t.Errorf("%+v", got)
	}
}

// TestMissingEnd has records that are gone when the server starts be told of, and their
// numbers not used again.
func TestMissingEnd(t *testing.T) {
	o := options(t.TempDir())
	l := open(t, o)
	record(t, l, 0, 10)
	closeLog(t, l)
	lines := readLines(t, o.Dir, 1)
	writeLines(t, o.Dir, 1, lines[:6])
	if _, err := Verify(o.Dir); err == nil || !strings.Contains(err.Error(), "the end is missing: the last record is 6, and the file head names 12") {
		t.Errorf("%v", err)
	}
	var logged bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&logged, nil))
	l = open(t, o)
	record(t, l, 10, 1)
	closeLog(t, l)
	missing := with(all(t, o.Dir), opMissing)
	if len(missing) != 1 || missing[0].Seq != 13 || missing[0].Log.Count != 6 || missing[0].Log.Through != 12 {
		t.Errorf("%+v", missing)
	}
	if _, err := Verify(o.Dir); err == nil || !strings.Contains(err.Error(), "000001.jsonl, line 7: 6 records before it, up to 12, are missing") {
		t.Errorf("%v", err)
	}
	if !strings.Contains(logged.String(), "records are missing at the end of the audit log") {
		t.Errorf("the server's log says %s", &logged)
	}
}

// narrow is a file that takes a number of bytes.
type narrow struct {
	*os.File
	room     *int
	mu       *sync.Mutex
	truncate *error
}

func (n narrow) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	some := min(len(p), *n.room)
	*n.room -= some
	written, err := n.File.Write(p[:some])
	if err == nil && some < len(p) {
		err = syscall.ENOSPC
	}
	return written, err
}

func (n narrow) Truncate(size int64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if *n.truncate != nil {
		return *n.truncate
	}
	return n.File.Truncate(size)
}

// TestFull has a disk become full and free again: calls do not wait meanwhile, the
// records that fit into memory are written then, and the others are counted.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(t.TempDir())
		var mu sync.Mutex
		var cannot error
		room := 4000
		o.open = func(path string, create bool) (file, error) {
			f, err := openFile(path, create)
			if err != nil {
				return nil, err
			}
			return narrow{f.(*os.File), &room, &mu, &cannot}, nil
		}
		var logged bytes.Buffer
		o.Log = slog.New(slog.NewTextHandler(&logged, nil))
		l := open(t, o)
		n, err := 0, error(nil)
		for ; err == nil; n++ {
			err = l.Record(event(n), true)
		}
		if !errors.Is(err, syscall.ENOSPC) || !errors.Is(l.Ready(), syscall.ENOSPC) {
			t.Fatalf("%v, and then %v", err, l.Ready())
		}
		mu.Lock()
		cannot = syscall.EIO
		mu.Unlock()
		before := time.Now()
		for ; n < maxQueue+500; n++ {
			if err := l.Record(event(n), true); err == nil {
				t.Fatal("a record was written without room")
			}
		}
		if waited := time.Since(before); waited != 0 {
			t.Errorf("calls waited for %s", waited)
		}
		time.Sleep(5*time.Minute + time.Second/2)
		lost := l.Lost()
		if lost < 400 || lost > 500 {
			t.Errorf("%d records are lost", lost)
		}
		mu.Lock()
		room, cannot = 1<<30, nil
		mu.Unlock()
		time.Sleep(2 * retryEvery)
		if err := l.Ready(); err != nil || l.Lost() != 0 {
			t.Errorf("with room: %v, %d lost", err, l.Lost())
		}
		record(t, l, n, 1)
		closeLog(t, l)
		report := verified(t, o.Dir)
		got := all(t, o.Dir)
		told := with(got, opLost)
		if len(told) != 1 || told[0].Log.Count != lost || len(report.Notes) != 1 {
			t.Fatalf("records of it: %+v, notes %q", told, report.Notes)
		}
		if want := n + 1 - int(lost); len(with(got, "runCommand")) != want {
			t.Errorf("%d records, want %d", len(with(got, "runCommand")), want)
		}
		if complaints := strings.Count(logged.String(), "cannot be written"); complaints < 2 || complaints > 6 {
			t.Errorf("%d complaints in five minutes", complaints)
		}
	})
}

// writeWithoutRoom writes until the kernel refuses, and then with more room.
func writeWithoutRoom(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	limit := unix.Rlimit{Cur: 20_000, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	l, err := Open(options(dir))
	if err != nil {
		return err
	}
	n := 0
	for err == nil && n < 1000 {
		err = l.Record(event(n), true)
		n++
	}
	if !errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("after %d records: %w", n, err)
	}
	limit.Cur = unix.RLIM_INFINITY
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	for l.Ready() != nil {
		time.Sleep(10 * time.Millisecond)
	}
	if err := l.Record(event(n), true); err != nil {
		return err
	}
	return l.Close()
}

// TestFullForReal has the kernel refuse a part of a write.
func TestFullForReal(t *testing.T) {
	dir := t.TempDir()
	if err := child(t, "full", dir).Run(); err != nil {
		t.Fatal(err)
	}
	report := verified(t, dir)
	got := with(all(t, dir), "runCommand")
	for i, r := range got {
		if r.RequestID != event(i).RequestID {
			t.Fatalf("record %d is %s", i, r.RequestID)
		}
	}
	if len(got) < 20 || len(report.Notes) > 0 {
		t.Errorf("%d records, notes %q", len(got), report.Notes)
	}
}

// hung is a file that does not return from a write until it may.
type hung struct {
	*os.File
	until <-chan struct{}
}

func (h hung) Write(p []byte) (int, error) {
	<-h.until
	return h.File.Write(p)
}

// TestHungDisk has calls wait for a disk that does not answer for a bounded time, and keep
// a bounded number of records.
func TestHungDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(t.TempDir())
		until := make(chan struct{})
		o.wait = maxWait
		o.open = func(path string, create bool) (file, error) {
			f, err := openFile(path, create)
			if err != nil {
				return nil, err
			}
			return hung{f.(*os.File), until}, nil
		}
		l := open(t, o)
		before := time.Now()
		if err := l.Record(event(0), true); !errors.Is(err, errSlow) || time.Since(before) != maxWait {
			t.Errorf("%v after %s", err, time.Since(before))
		}
		before = time.Now()
		var err error
		for n := 1; n < maxQueue+10; n++ {
			err = l.Record(event(n), true)
		}
		if !errors.Is(err, errFull) || !errors.Is(l.Ready(), errSlow) || time.Since(before) != 0 {
			t.Errorf("%v, %v after %s", err, l.Ready(), time.Since(before))
		}
		close(until)
		synctest.Wait()
		if err := l.Ready(); err != nil {
			t.Error(err)
		}
		record(t, l, 0, 1)
		closeLog(t, l)
		verified(t, o.Dir)
		if lost := with(all(t, o.Dir), opLost); len(lost) != 1 {
			t.Errorf("%+v", lost)
		}
	})
}

// unsynced is a file that cannot be written to disk.
type unsynced struct {
	*os.File
	fails *atomic.Bool
}

func (u unsynced) Sync() error {
	if u.fails.Load() {
		return syscall.EIO
	}
	return nil
}

// TestDiskFails has a log that does not get to disk not be ready, and the head not name
// what may not be there.
func TestDiskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(t.TempDir())
		var fails atomic.Bool
		o.open = func(path string, create bool) (file, error) {
			f, err := openFile(path, create)
			if err != nil {
				return nil, err
			}
			return unsynced{f.(*os.File), &fails}, nil
		}
		l := open(t, o)
		record(t, l, 0, 1)
		time.Sleep(2 * syncEvery)
		fails.Store(true)
		record(t, l, 1, 1)
		time.Sleep(2 * syncEvery)
		if err := l.Ready(); !errors.Is(err, syscall.EIO) {
			t.Errorf("ready: %v", err)
		}
		if h, err := readHead(o.Dir); err != nil || h.Seq != 2 {
			t.Errorf("the head is %+v, %v", h, err)
		}
		fails.Store(false)
		time.Sleep(2 * syncEvery)
		if err := l.Ready(); err != nil {
			t.Error(err)
		}
		closeLog(t, l)
		verified(t, o.Dir)
	})
}

// TestRetentionBySize has the oldest files removed, and the rest be verifiable, also if
// the process is killed before it has removed them.
func TestRetentionBySize(t *testing.T) {
	o := options(t.TempDir())
	o.MaxBytes = 80 << 10
	l := open(t, o)
	kept := t.TempDir()
	for n := range 400 {
		record(t, l, n, 1)
		if n%100 == 50 {
			verified(t, o.Dir)
		}
		if n == 150 {
			first, err := fileNumbers(o.Dir)
			if err != nil {
				t.Fatal(err)
			}
			copyFile(t, filepath.Join(o.Dir, fileName(first[0])), filepath.Join(kept, fileName(first[0])))
		}
	}
	closeLog(t, l)
	report := verified(t, o.Dir)
	var size int64
	numbers, err := fileNumbers(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range numbers {
		info, err := os.Stat(filepath.Join(o.Dir, fileName(n)))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > o.MaxBytes+15<<10 || numbers[0] == 1 || report.First == 1 || report.Records < 150 {
		t.Errorf("%d bytes in the files %v, %+v", size, numbers, report)
	}
	// Without the file that the log begins with now, nothing tells of its removal.
	path := filepath.Join(o.Dir, fileName(numbers[0]))
	copyFile(t, path, filepath.Join(kept, "first"))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(o.Dir); err == nil || !strings.Contains(err.Error(), "no record tells of their removal") {
		t.Errorf("without the first file: %v", err)
	}
	copyFile(t, filepath.Join(kept, "first"), path)
	// The newest record of a removal is of the file before; that file is as a kill would
	// have left it.
	removed := with(all(t, o.Dir), opRemoved)
	if last := removed[len(removed)-1].Log; last.File != fileName(numbers[0]-1) || last.Through != report.First-1 {
		t.Errorf("%+v", last)
	}
}

// TestRetentionByAge has files removed whose records are old, and a quiet log begin files
// all the same.
func TestRetentionByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(t.TempDir())
		o.Keep = 5 * 24 * time.Hour
		l := open(t, o)
		for day := range 20 {
			record(t, l, day, 1)
			time.Sleep(24 * time.Hour)
		}
		now := time.Now()
		closeLog(t, l)
		report := verified(t, o.Dir)
		got := all(t, o.Dir)
		oldest, err := time.Parse(timeFormat, got[0].Time)
		if err != nil || now.Sub(oldest) > o.Keep+25*time.Hour || now.Sub(oldest) < o.Keep-24*time.Hour || report.First == 1 {
			t.Errorf("the oldest record is of %s, now is %s, %+v", got[0].Time, now, report)
		}
	})
}

// TestFlood has refused calls beyond a number be counted, and one source not hide
// another.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(t.TempDir())
		l := open(t, o)
		refused := Event{Operation: "listSandboxes", Remote: "192.0.2.1", Status: 401, Refused: true}
		const flood = 20_000
		for range flood {
			if err := l.Record(refused, false); err != nil {
				t.Fatal(err)
			}
		}
		refused.Remote = "2001:db8::1"
		for range 3 {
			if err := l.Record(refused, false); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(summarizeEvery + time.Second)
		got := all(t, o.Dir)
		told := with(got, "listSandboxes")
		if len(told) != refusedBurstEach+3 || told[len(told)-1].Remote != refused.Remote {
			t.Errorf("%d records", len(told))
		}
		if s := with(got, opSuppressed); len(s) != 1 || s[0].Log.Count != flood-refusedBurstEach || len(s[0].Log.From) != 1 || s[0].Log.From[0].From != "192.0.2.1" {
			t.Errorf("%+v", s)
		}
		// From everywhere, for half a day.
		for minute := range 12 * 60 {
			for i := range 50 {
				refused.Remote = fmt.Sprintf("10.%d.%d.%d", minute%250, i%250, i/250)
				if err := l.Record(refused, false); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Minute)
		}
		closeLog(t, l)
		verified(t, o.Dir)
		var size int64
		numbers, err := fileNumbers(o.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range numbers {
			if info, err := os.Stat(filepath.Join(o.Dir, fileName(n))); err == nil {
				size += info.Size()
			}
		}
		if most := int64(DefaultMaxBytes / 2 / 90 / 2); size > most {
			t.Errorf("half a day of refused calls takes %d bytes, more than %d", size, most)
		}
		var counted int64
		for _, s := range with(all(t, o.Dir), opSuppressed) {
			counted += s.Log.Count
		}
		if n := counted + int64(len(with(all(t, o.Dir), "listSandboxes"))); n != flood+3+12*60*50 {
			t.Errorf("%d calls have a record or are counted", n)
		}
	})
}

// TestAnchors has the server's log name records of the log.
func TestAnchors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(t.TempDir())
		var logged bytes.Buffer
		o.Log = slog.New(slog.NewTextHandler(&logged, nil))
		l := open(t, o)
		record(t, l, 0, 3)
		time.Sleep(90 * time.Minute)
		record(t, l, 3, 3)
		closeLog(t, l)
		var anchors []string
		for line := range strings.Lines(logged.String()) {
			if _, hash, is := strings.Cut(strings.TrimSpace(line), "hash="); is {
				anchors = append(anchors, hash)
			}
		}
		if len(anchors) != 3 { // at the start, after an hour and at the end
			t.Fatalf("the server's log has %d anchors:\n%s", len(anchors), &logged)
		}
		verified(t, o.Dir, anchors...)
	})
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// TestHeadLost has a log go on whose head says nothing, and tell so.
func TestHeadLost(t *testing.T) {
	o := options(t.TempDir())
	l := open(t, o)
	record(t, l, 0, 3)
	closeLog(t, l)
	if err := os.WriteFile(filepath.Join(o.Dir, headFile), []byte("\x00\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	l = open(t, o)
	record(t, l, 3, 1)
	closeLog(t, l)
	if _, err := Verify(o.Dir); err == nil || !strings.Contains(err.Error(), "line 6: the records before it are not those that were written, or the head was lost") {
		t.Errorf("%v", err)
	}
}
