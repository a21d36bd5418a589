package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// operations is the deck of each worker.
var operations []*operation

// The operations that others begin with.
var (
	createOperation = &operation{name: "create", weight: 3, anew: true, do: create}
	resumeOperation = &operation{name: "resume", do: resume}
	deleteOperation = &operation{name: "delete", weight: 2, do: remove}
)

func init() {
	operations = []*operation{
		createOperation, deleteOperation,
		{name: "exec", weight: 6, do: printLines},
		{name: "exec, slow reader", weight: 1, do: readSlowly},
		{name: "exec, client leaves", weight: 1, do: leaveCommand},
		{name: "create, client leaves", weight: 1, anew: true, do: leaveCreate},
		{name: "upload, client leaves", weight: 1, do: leaveUpload},
		{name: "start a job", weight: 2, do: startJob},
		{name: "collect jobs", weight: 2, do: collectJobs},
		{name: "upload", weight: 4, do: upload},
		{name: "download", weight: 4, do: download},
		{name: "change files", weight: 3, do: changeFiles},
		{name: "look at all files", weight: 1, do: (*worker).look},
		{name: "stop", weight: 2, do: stop},
		{name: "snapshot", weight: 1, do: snapshot},
		{name: "memory snapshot", weight: 1, do: memorySnapshot},
		{name: "fork", weight: 1, do: fork(client.ForkOptions{})},
		{name: "live fork", weight: 1, do: fork(client.ForkOptions{Live: true})},
		{name: "memory fork", weight: 1, do: fork(client.ForkOptions{Memory: true})},
		{name: "pause", weight: 1, do: pauseAndUse},
		{name: "idle", weight: 1, do: idle},
		{name: "policy", weight: 2, do: changePolicy},
		{name: "reach", weight: 1, do: reach},
		{name: "port", weight: 3, do: requestPort},
		{name: "list", weight: 1, do: list},
	}
}

func checksum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// bytes returns n random bytes.
func (w *worker) bytes(n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		v := w.random.Uint64()
		b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24), byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56))
	}
	return b[:n]
}

// path returns a name of a file that was never used in the sandbox.
func (w *worker) path() string {
	w.serial++
	return fmt.Sprintf("folder-%d/file-%d", w.random.IntN(3), w.serial)
}

// sequence is what seq prints.
func sequence(from, to int) []byte {
	var b bytes.Buffer
	for i := from; i <= to; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.Bytes()
}

// firstDifference says where output differs from what it should be; "" if nowhere.
func firstDifference(have string, want []byte) string {
	if have == string(want) {
		return ""
	}
	at := 0
	for at < len(have) && at < len(want) && have[at] == want[at] {
		at++
	}
	return fmt.Sprintf("%d bytes instead of %d, which differ from byte %d on: %.60q instead of %.60q", len(have), len(want), at, have[at:], want[at:])
}

// printLines has a command print known bytes on both streams, and end with a known code.
func printLines(w *worker, ctx context.Context, b *box) error {
	from, code := w.random.IntN(1_000_000), w.random.IntN(100)
	lines := []int{1, 100, 20_000, 200_000}[w.random.IntN(4)]
	script := fmt.Sprintf("seq %d %d; seq 5 %d >&2; exit %d", from, from+lines, lines/10, code)
	return w.printed(b, b.sb.Command(ctx, "sh", "-c", script), code, sequence(from, from+lines), sequence(5, lines/10))
}

// printed runs a command that must print these bytes.
func (w *worker) printed(b *box, cmd *client.Cmd, code int, stdout, stderr []byte) error {
	return w.printedAs("exec", b, cmd, code, stdout, stderr)
}

func (w *worker) printedAs(kind string, b *box, cmd *client.Cmd, code int, stdout, stderr []byte) error {
	out, err := w.run(kind, b, cmd, code)
	if err != nil {
		return err
	}
	if d := firstDifference(out.stdout.String(), stdout); d != "" {
		return wrongf("standard output has %s", d)
	}
	if d := firstDifference(out.stderr.String(), stderr); d != "" {
		return wrongf("standard error has %s", d)
	}
	return nil
}

// jobScript prints a line every 50 ms.
const jobScript = `
import sys, time
for i in range(int(sys.argv[1])):
    print("line", i, "of a job " * 20, flush=True)
    time.sleep(0.05)
sys.exit(int(sys.argv[1]) % 7)`

func (j job) output() []byte {
	var b bytes.Buffer
	for i := range j.lines {
		fmt.Fprintln(&b, "line", i, strings.Repeat("of a job ", 20))
	}
	return b.Bytes()
}

// startJob starts a command that goes on by itself. Its output is read by collectJobs, in
// the same process of the server or a later one.
func startJob(w *worker, ctx context.Context, b *box) error {
	if len(b.jobs) >= 3 {
		return nil
	}
	j := job{lines: 20 + w.random.IntN(200)}
	cmd := b.sb.Command(ctx, "python3", "-c", jobScript, fmt.Sprint(j.lines))
	cmd.Detached = true
	if err := w.call("exec, detached", cmd.Start); err != nil {
		return err
	}
	j.id = cmd.ID()
	b.jobs = append(b.jobs, j)
	return nil
}

// collectJobs waits for the jobs and compares all that they have printed.
func collectJobs(w *worker, ctx context.Context, b *box) error {
	for len(b.jobs) > 0 {
		j := b.jobs[0]
		cmd, err := b.sb.FindCommand(ctx, j.id)
		if err != nil {
			return fmt.Errorf("job %s: %w", j.id, err)
		}
		var out strings.Builder
		for log, err := range cmd.Logs(ctx) {
			if err != nil {
				return fmt.Errorf("output of job %s: %w", j.id, err)
			}
			out.Write(log.Data)
		}
		// Its end is told a little later than the end of its output.
		if err := cmd.Wait(); err != nil && cmd.Info().ExitCode == nil {
			return fmt.Errorf("end of job %s: %w", j.id, err)
		}
		if code := cmd.Info().ExitCode; code == nil {
			return wrongf("job %s has ended without a code", j.id)
		} else if *code != j.code() {
			return &exitError{code: *code, want: j.code(), stderr: out.String()}
		}
		if d := firstDifference(out.String(), j.output()); d != "" {
			return wrongf("job %s has %s", j.id, d)
		}
		b.jobs = b.jobs[1:]
	}
	return nil
}

// upload writes a new file, or an existing one anew.
func upload(w *worker, ctx context.Context, b *box) error {
	path := w.path()
	if paths := b.files.sure(); len(paths) > 0 && w.random.IntN(3) == 0 {
		path = paths[w.random.IntN(len(paths))]
	}
	content := w.bytes([]int{0, 100, 40_000, 3_000_000}[w.random.IntN(4)])
	b.files[path] = unsure // until it is answered
	if err := w.call("write", func() error { return b.sb.WriteFile(ctx, path, content, 0o644) }); err != nil {
		return err
	}
	b.files[path] = checksum(content)
	return nil
}

func download(w *worker, ctx context.Context, b *box) error {
	paths := b.files.sure()
	if len(paths) == 0 {
		return upload(w, ctx, b)
	}
	path := paths[w.random.IntN(len(paths))]
	var content []byte
	err := w.call("read", func() (err error) { content, err = b.sb.ReadFile(ctx, path); return err })
	if client.IsNotFound(err) {
		return wrongf("%s is missing", path)
	}
	if err != nil {
		return err
	}
	if sum := checksum(content); sum != b.files[path] {
		return wrongf("%s has %d bytes with checksum %.12s, not %.12s", path, len(content), sum, b.files[path])
	}
	return nil
}

// changeFiles has a command in the sandbox write, rename or delete a file.
func changeFiles(w *worker, ctx context.Context, b *box) error {
	paths, path := b.files.sure(), w.path()
	if what := w.random.IntN(3); what == 0 || len(paths) < 2 {
		from, n := w.random.IntN(1_000_000), w.random.IntN(100_000)
		b.files[path] = unsure
		if _, err := w.shell(ctx, b, `mkdir -p "${1%/*}" && seq $2 $3 > $1`, path, fmt.Sprint(from), fmt.Sprint(from+n)); err != nil {
			return err
		}
		b.files[path] = checksum(sequence(from, from+n))
		return nil
	} else if old := paths[w.random.IntN(len(paths))]; what == 1 {
		sum := b.files[old]
		b.files[old], b.files[path] = unsure, unsure
		if _, err := w.shell(ctx, b, `mkdir -p "${2%/*}" && mv $1 $2`, old, path); err != nil {
			return err
		}
		delete(b.files, old)
		b.files[path] = sum
	} else {
		b.files[old] = unsure
		if _, err := w.shell(ctx, b, `rm $1`, old); err != nil {
			return err
		}
		delete(b.files, old)
	}
	return nil
}

// look compares all files with the model.
func (w *worker) look(ctx context.Context, b *box) error {
	have, err := w.listFiles(ctx, b)
	if err != nil {
		return err
	}
	if d := b.files.differs(have); d != "" {
		return wrongf("%s", d)
	}
	return nil
}

// listFiles returns the files in the work folder of a sandbox.
func (w *worker) listFiles(ctx context.Context, b *box) (tree, error) {
	// What an interrupted upload leaves may vanish meanwhile. Any other file that cannot be
	// read is missing in the list.
	out, err := w.shell(ctx, b, "find . -type f -print0 | xargs -0 -r sha256sum || true")
	if err != nil {
		return nil, err
	}
	for _, fault := range []string{noSpace, ioError} {
		if said := out.stderr.String(); strings.Contains(said, fault) {
			return nil, &exitError{code: 123, stderr: said} // as xargs ends then
		}
	}
	have := tree{}
	for line := range strings.Lines(out.stdout.String()) {
		sum, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ./")
		if !ok {
			return nil, wrongf("the list of files has the line %q", line)
		}
		have[path] = sum
	}
	return have, nil
}

// list compares the worker's sandboxes in a listing with the model.
func list(w *worker, ctx context.Context, b *box) error {
	known := map[string]bool{}
	for _, b := range w.boxes {
		_, known[b.name] = b.live()
	}
	prefix := fmt.Sprintf("soak-%d-", w.id)
	return w.call("list", func() error {
		for sb, err := range w.client.ListSandboxes(ctx, client.ListOptions{NamePrefix: prefix, SortBy: "name", Limit: 10}) {
			if err != nil {
				return err
			}
			running, exists := known[sb.Name]
			if !exists {
				return wrongf("sandbox %s is listed, and was deleted", sb.Name)
			}
			delete(known, sb.Name)
			if !running && sb.Status == skerry.StatusRunning {
				return wrongf("sandbox %s is listed as %s, and was stopped", sb.Name, sb.Status)
			}
		}
		for name := range known {
			return wrongf("sandbox %s is not listed", name)
		}
		return nil
	})
}

// pauseAndUse pauses a sandbox, which the next command resumes.
func pauseAndUse(w *worker, ctx context.Context, b *box) error {
	if err := w.call("pause", func() error { return b.sb.Pause(ctx) }); err != nil {
		return err
	}
	return w.wake(ctx, b)
}

// wake runs a command in a paused sandbox.
func (w *worker) wake(ctx context.Context, b *box) error {
	return w.printedAs("wake by a command", b, b.sb.Command(ctx, "echo", "awake"), 0, []byte("awake\n"), nil)
}

// idle leaves a sandbox alone until the server pauses it, or takes it off the machine. The
// next command wakes it.
func idle(w *worker, ctx context.Context, b *box) error {
	if err := collectJobs(w, ctx, b); err != nil {
		return err
	}
	if b.token != "" {
		return nil // its web server keeps it awake
	}
	hibernated := w.random.IntN(2) == 0
	for begun, again := time.Now(), 0; ; {
		var sb *client.Sandbox
		err := w.persist(ctx, "", func(ctx context.Context) (err error) {
			sb, err = w.client.GetSandbox(ctx, b.name, client.GetOptions{})
			return err
		})
		if err != nil {
			return err
		}
		state := sb.Session().IdleState
		if state == skerry.IdleHibernated || state == skerry.IdlePaused && !hibernated {
			break
		}
		if state == "" && !sb.Session().PausedAt.IsZero() {
			break // by an earlier operation, which a fault has kept from waking it
		}
		// A save for which the disk had no room is tried again after ten minutes.
		late := time.Since(begun) > 30*time.Second
		if late && state == "" && again < 3 && w.serverEnded(begun) {
			begun, again = time.Now(), again+1 // a new server begins to count anew
			continue
		}
		if late && state == skerry.IdlePaused {
			break
		} else if late || sb.Session().Status != skerry.StatusRunning {
			return w.notIdle(b, sb.Session())
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return w.wake(ctx, b)
}

// serverEnded reports whether the server has ended since a time.
func (w *worker) serverEnded(since time.Time) bool {
	return slices.ContainsFunc(w.faults.during("", since, time.Now()), func(f fault) bool { return f.kind == serverKilled || f.kind == serverRestarted })
}

// notIdle is about a session that was not paused within half a minute. A command whose
// client left before the server had answered may still run in it.
func (w *worker) notIdle(b *box, run skerry.Session) error {
	if run.Status != skerry.StatusRunning {
		return &client.Error{Code: skerry.CodeSandboxStopped, Message: fmt.Sprintf("the session is %s: %s", run.Status, run.Reason)}
	}
	return wrongf("the session was not paused although nobody used it")
}
