package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// loops lists the loop devices on files of the server, by the files' names.
func (s *server) loops() []string {
	s.t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		// One that is freed meanwhile cannot be read.
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), s.dir+"/") {
			names = append(names, filepath.Base(strings.TrimSpace(string(b))))
		}
	}
	return names
}

// gofer returns the process that serves a session's drives.
func (s *server) gofer(session string) int {
	s.t.Helper()
	for pid, args := range s.processes() {
		if args[0] == "runsc-gofer" && slices.Contains(args, session) {
			return pid
		}
	}
	s.t.Fatalf("session %s has no gofer", session)
	return 0
}

func (s *server) drive(name string, size int64) skerry.Drive {
	s.t.Helper()
	d, err := s.GetOrCreateDrive(s.t.Context(), name, client.DriveOptions{MaxSizeBytes: size})
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// assertDrives checks that the drives' folder has the drives' images alone,
// and that only running sessions use any.
func (s *server) assertDrives() {
	s.t.Helper()
	var images, used []string
	for d, err := range s.ListDrives(s.t.Context(), client.DriveListOptions{}) {
		if err != nil {
			s.t.Fatal(err)
		}
		images = append(images, d.ID+".img")
		if d.CurrentSessionID != "" {
			used = append(used, d.ID+".img")
		}
	}
	slices.Sort(images)
	// A deletion that a crash cut off leaves a drive among the lost ones.
	got := slices.DeleteFunc(s.list(s.path("state/drives")), func(name string) bool { return name == "lost" })
	if !slices.Equal(got, images) {
		s.t.Errorf("the drives' folder has %v, want %v", got, images)
	}
	slices.Sort(used)
	s.waitFor("the loop devices that are not in use to go", func() bool {
		got = slices.DeleteFunc(s.loops(), func(name string) bool { return !strings.HasPrefix(name, "drv_") })
		slices.Sort(got)
		return slices.Equal(got, used)
	})
}

// settle waits for the sessions whose files were being saved when the last
// server died: this one goes on with that.
func (s *server) settle() {
	s.t.Helper()
	s.waitFor("what was being saved to be saved", func() bool {
		for box, err := range s.ListSandboxes(s.t.Context(), client.ListOptions{}) {
			if err != nil {
				s.t.Fatal(err)
			}
			if box.Status != skerry.StatusRunning && !box.Status.Ended() {
				return false
			}
		}
		return true
	})
}

func mountAt(path, drive, mode string) map[string]client.Mount {
	return map[string]client.Mount{path: {Drive: drive, Mode: mode}}
}

// TestDriveSurvives has a sandbox write to a drive and then everything die that
// can. As after the crash of a program on Linux, what was written is there.
func TestDriveSurvives(t *testing.T) {
	s := newServer(t)
	s.drive("data", 256<<20)
	sb := s.create(client.CreateOptions{Name: "writer", Mounts: mountAt("/data", "data", "")})
	wrote := 0
	write := func() {
		t.Helper()
		wrote++
		s.output(sb, "sh", "-c", fmt.Sprintf("echo %d >> /data/log; dd if=/dev/urandom of=/data/big bs=1M count=20 2>/dev/null; sha256sum /data/big > /data/sum", wrote))
	}
	check := func(sb *client.Sandbox) {
		t.Helper()
		var want []string
		for i := range wrote {
			want = append(want, strconv.Itoa(i+1))
		}
		if got := s.output(sb, "cat", "/data/log"); got != strings.Join(want, "\n") {
			t.Errorf("the log has %q, want %d lines", got, wrote)
		}
		s.output(sb, "sha256sum", "-c", "/data/sum")
	}

	// The first call after a loss is told of it.
	hear := func(sb *client.Sandbox) {
		t.Helper()
		assertError(t, "the first call after a loss", sb.Command(t.Context(), "true").Run(), 409, skerry.CodeConflict)
	}

	// The sandbox's kernel.
	write()
	if err := syscall.Kill(s.sentry(sb.Session().ID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.waitFor("the session to be lost", func() bool { return s.get("writer").Session().Status == skerry.StatusAborted })
	hear(sb)
	check(sb)

	// What serves its drives.
	write()
	if err := syscall.Kill(s.gofer(sb.Session().ID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.waitFor("the session to be lost", func() bool { return s.get("writer").Session().Status == skerry.StatusAborted })
	if reason := s.get("writer").Session().Reason; !strings.Contains(reason, "drives") {
		t.Errorf("the reason is %q", reason)
	}
	hear(sb)
	check(sb)

	// The server; the sandbox goes on writing meanwhile.
	count := s.detach(sb, `i=0; until [ -e /tmp/enough ]; do echo $i >> /data/count; i=$((i+1)); done; echo end $i`)
	write()
	session := sb.Session().ID
	s.kill()
	s.start()
	sb = s.get("writer")
	if sb.Session().ID != session {
		t.Errorf("session %s became %s", session, sb.Session().ID)
	}
	if d, err := s.GetDrive(t.Context(), "data"); err != nil || d.CurrentSessionID != session {
		t.Errorf("the drive is %+v, %v", d, err)
	}
	s.assertDrives()
	write()
	check(sb)
	s.output(sb, "touch", "/tmp/enough")
	if code, out := commandEnd(t, sb, count.ID()); code != 0 {
		t.Errorf("what wrote meanwhile ended with %d: %s", code, out)
	}
	s.output(sb, "sh", "-c", "seq 0 $(($(wc -l < /data/count)-1)) | cmp - /data/count")

	// The server and the sandbox at once.
	write()
	s.kill()
	for pid := range s.processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL) // a helper goes with its sentry
	}
	s.start()
	if d, err := s.GetDrive(t.Context(), "data"); err != nil || d.CurrentSessionID != "" {
		t.Errorf("the drive is %+v, %v", d, err)
	}
	sb = s.get("writer")
	check(sb)
	s.assertDrives()

	// An orderly end, and the sandbox's.
	write()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if loops := s.loops(); len(loops) > 0 {
		t.Errorf("a server that has stopped has loop devices: %v", loops)
	}
	s.start()
	sb = s.get("writer")
	check(sb)
	s.delete(sb)
	check(s.create(client.CreateOptions{Mounts: mountAt("/data", "data", "snapshot")}))
	s.assertDrives()
}

// TestDriveIsNotInSnapshots saves a sandbox that has much on a drive.
func TestDriveIsNotInSnapshots(t *testing.T) {
	s := newServer(t)
	s.drive("data", 256<<20)
	sb := s.create(client.CreateOptions{Name: "writer", Mounts: mountAt("/vercel/sandbox/data", "data", "")})
	s.output(sb, "sh", "-c", "dd if=/dev/urandom of=data/big bs=1M count=64 2>/dev/null; echo own > own")
	stopped, err := sb.Stop(t.Context())
	if err != nil || stopped.Snapshot == nil {
		t.Fatalf("stop: %+v, %v", stopped, err)
	}
	if size := stopped.Snapshot.Info().SizeBytes; size > 8<<20 {
		t.Errorf("the snapshot has %d bytes", size)
	}
	if got := s.output(sb, "sh", "-c", "cat own; ls -s --block-size=1M data/big"); got != "own\n64 data/big" {
		t.Errorf("resumed with %q", got)
	}
	fork, err := sb.Fork(t.Context(), client.ForkOptions{Mounts: map[string]client.Mount{}})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.output(fork, "ls", "-A", "/vercel/sandbox/data"); got != "" && len(fork.Info().Mounts) == 0 {
		t.Errorf("without the drive there is %q", got)
	}
}

// TestFrozenDrives reads copies of a drive that is being written to, across
// the server's death.
func TestFrozenDrives(t *testing.T) {
	s := newServer(t)
	s.drive("data", 256<<20)
	writer := s.create(client.CreateOptions{Mounts: mountAt("/data", "data", "")})
	count := s.detach(writer, `i=0; until [ -e /tmp/enough ]; do echo $i >> /data/count; i=$((i+1)); done`)
	s.waitFor("something to be written", func() bool { return s.output(writer, "sh", "-c", "wc -l < /data/count || echo 0") != "0" })
	readers := make([]*client.Sandbox, 3)
	var all sync.WaitGroup
	for i := range readers {
		all.Go(func() {
			var err error
			if readers[i], err = s.CreateSandbox(t.Context(), client.CreateOptions{VCPUs: 1, Mounts: mountAt("/data", "data", "snapshot")}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	sums := map[string]string{}
	look := func(sb *client.Sandbox) string {
		t.Helper()
		// The last line may be half written, as the others are whole.
		return s.output(sb, "sh", "-c", "n=$(($(wc -l < /data/count)-1)); seq 0 $n | head -c $(wc -c < /data/count) | cmp -n $(seq 0 $n | wc -c) - /data/count && sha256sum /data/count")
	}
	for _, sb := range readers {
		sums[sb.Name()] = look(sb)
	}
	s.kill()
	s.start()
	for _, sb := range readers {
		if got := look(s.get(sb.Name())); got != sums[sb.Name()] {
			t.Errorf("the copy of %s has changed: %s, was %s", sb.Name(), got, sums[sb.Name()])
		}
	}
	writer = s.get(writer.Name())
	s.output(writer, "touch", "/tmp/enough")
	if code, out := commandEnd(t, writer, count.ID()); code != 0 {
		t.Errorf("the writer did not go on: %d %s", code, out)
	}
	for _, sb := range readers {
		s.delete(s.get(sb.Name()))
	}
	s.assertDrives()
	s.waitFor("the copies to go", func() bool { return len(s.loops()) == 1 })
}

// hostile is what root in a sandbox leaves on a drive for whoever comes next.
const hostile = `set -e; cd /data
cp /usr/bin/id suid && chown 0:0 suid && chmod 6755 suid
ln -s /etc/shadow shadow; ln -s ../../../../../../etc/passwd passwd; ln -s /proc/self/root root; ln -s . loop; ln -s /dev/loop-control control
mkfifo fifo
mkdir -p deep/$(seq -s / 1 60); touch "$(printf 'a\nb\033[31m')" "$(printf '\377\376')" -- '-rf *'
ln suid hard
mkdir dir && chmod 7777 dir; chown 4294967294:4294967294 dir
setfattr -n user.x -v y suid 2>/dev/null || true
for i in $(seq 1 2000); do : > many-$i; done
mknod disk b 7 0 && echo DEVICE || true
mount --bind / /data/deep && echo MOUNTED || true
python3 -c "import socket; socket.socket(socket.AF_UNIX).bind('/data/socket')" || true
sync`

func TestHostileDrive(t *testing.T) {
	s := newServer(t)
	d := s.drive("data", 256<<20)
	sb := s.create(client.CreateOptions{Mounts: mountAt("/data", "data", "")})
	out, err := sb.Command(t.Context(), "sudo", "bash", "-c", hostile).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if strings.Contains(string(out), "DEVICE") {
		t.Errorf("a device was made on the drive: %s", out)
	}
	// The host mounts the drive for the gofer alone, and there without devices
	// and set-user-id.
	gofer := s.gofer(sb.Session().ID)
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", gofer))
	if err != nil {
		t.Fatal(err)
	}
	drives := 0
	for line := range strings.Lines(string(mounts)) {
		if !strings.Contains(line, " ext4 /dev/loop") {
			continue
		}
		drives++
		if !strings.Contains(line, "nosuid,nodev") {
			t.Errorf("the gofer has %s", line)
		}
	}
	if drives != 1 {
		t.Errorf("the gofer has %d drives:\n%s", drives, mounts)
	}
	ours, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(ours), d.ID) || strings.Contains(string(ours), s.path("state/drives")) {
		t.Errorf("the host has the drive mounted:\n%s", ours)
	}
	if got := s.output(sb, "sh", "-c", "cat /data/passwd | grep -c ^vercel-sandbox; readlink /data/shadow"); got != "1\n/etc/shadow" {
		t.Errorf("links lead to %q", got)
	}
	s.delete(sb)
	// Whoever comes next sees the same, writing or not, and a copy is one too.
	for _, mode := range []string{"read-write", "snapshot"} {
		next := s.create(client.CreateOptions{Mounts: mountAt("/data", "data", mode)})
		if got := s.output(next, "sh", "-c", "ls /data | grep -c many; stat -c '%a %u' /data/suid /data/dir; cat /data/loop/loop/passwd | grep -c ^root:"); got != "2000\n6755 0\n7777 4294967294\n1" {
			t.Errorf("%s: the next sandbox sees %q", mode, got)
		}
		s.assertAlive(next)
		s.delete(next)
	}
	if _, err := s.DeleteDrive(t.Context(), "data"); err != nil {
		t.Error(err)
	}
	s.assertDrives()
}

// TestFullDrives fills a drive through a sandbox with less memory than that,
// while its neighbour's goes on.
func TestFullDrives(t *testing.T) {
	s := newServer(t)
	s.drive("small", 96<<20)
	s.drive("other", 96<<20)
	sb := s.create(client.CreateOptions{VCPUs: 1, Mounts: map[string]client.Mount{"/small": {Drive: "small"}, "/other": {Drive: "other"}}})
	code, out := s.shell(sb, "dd if=/dev/zero of=/small/big bs=1M count=200")
	if code == 0 || !strings.Contains(out, "No space left on device") {
		t.Errorf("200 MiB on a drive of 96: %d %s", code, out)
	}
	s.output(sb, "sh", "-c", "dd if=/dev/zero of=/other/file bs=1M count=50 2>/dev/null; dd if=/dev/zero of=/tmp/file bs=1M count=50 2>/dev/null; rm /small/big; echo fits > /small/file")
	// Many small files use up what a filesystem has of those.
	code, out = s.shell(sb, "cd /small && python3 -c \"\nfor i in range(10**6): open(f'f{i}', 'w').close()\"")
	if code == 0 || !strings.Contains(out, "No space left on device") {
		t.Errorf("a million files on a drive of 96 MiB: %d %s", code, out)
	}
	s.assertAlive(sb)
	if _, err := sb.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if got := s.output(sb, "cat", "/small/file"); got != "fits" {
		t.Errorf("afterwards it has %q", got)
	}
}

// TestDriveCrashAtAnyPoint kills the server in the middle of attaching,
// copying, using and letting go of drives, many times.
func TestDriveCrashAtAnyPoint(t *testing.T) {
	const rounds, clients = 10, 3
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := newServer(t, "--ready-networks", "0")
	for i := range clients {
		s.drive(driveName(i), 64<<20)
	}
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		var churn sync.WaitGroup
		for i := range clients {
			r := rand.New(rand.NewPCG(random.Uint64(), uint64(round)))
			churn.Go(func() {
				for ctx.Err() == nil {
					useDrives(ctx, s.Client, i, clients, r)
				}
			})
		}
		time.Sleep(time.Duration(100+random.IntN(900)) * time.Millisecond)
		s.kill()
		cancel()
		churn.Wait()
		s.start()
		s.settle()
		s.assertOwned(0)
		s.assertDrives()
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	// Every drive works, and none has lost a line.
	for i := range clients {
		if err := s.DeleteSandbox(t.Context(), churnName(i), client.DeleteOptions{}); err != nil && !client.IsNotFound(err) {
			t.Fatal(err)
		}
	}
	for i := range clients {
		sb := s.create(client.CreateOptions{Name: churnName(i), Mounts: mountAt("/data", driveName(i), "")})
		s.output(sb, "sh", "-c", "touch /data/log; seq 1 $(wc -l < /data/log) | cmp - /data/log")
	}
}

func driveName(i int) string { return "drive-" + strconv.Itoa(i) }

// useDrives does one thing with a sandbox that has a drive of its own and a
// copy of another's.
func useDrives(ctx context.Context, c *client.Client, i, all int, random *rand.Rand) {
	sb, err := c.GetSandbox(ctx, churnName(i), client.GetOptions{Resume: random.IntN(2) == 0})
	if client.IsNotFound(err) {
		sb, err = c.CreateSandbox(ctx, client.CreateOptions{Name: churnName(i), VCPUs: 1, Mounts: map[string]client.Mount{
			"/data": {Drive: driveName(i)}, "/other": {Drive: driveName((i + 1) % all), Mode: "snapshot"},
		}})
	}
	if err != nil {
		return
	}
	switch random.IntN(4) {
	case 0:
		_ = sb.Delete(ctx)
	case 1:
		_, _ = sb.Stop(ctx)
	default:
		_ = sb.Command(ctx, "sh", "-c", "n=$(cat /data/log 2>/dev/null | wc -l); echo $((n+1)) >> /data/log").Run()
	}
}
