package snapshot

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/blob"
)

// victimDir names the directory in which a process of this test works until it
// is killed.
const victimDir = "SKERRY_TEST_VICTIM_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		fmt.Fprintln(os.Stderr, victim(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// victimOptions are those of the victim's store and of who looks at it later.
func victimOptions(dir string) (Options, error) {
	blobs, err := blob.OpenDir(filepath.Join(dir, "blobs"))
	return Options{
		Blobs: blobs, Key: testKey, CacheDir: filepath.Join(dir, "cache"), CacheBytes: 2 << 20, Grace: -1,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}, err
}

// victimTree is what the victim adds: snapshots share most of their chunks.
func victimTree(seed uint64) tree {
	r := rand.New(rand.NewPCG(seed, 0))
	tr := tree{"meta.img": fmt.Appendln(nil, seed)}
	for i := range 3 {
		tr[fmt.Sprintf("pages%d.img", i)] = random(r.Uint64N(8), minChunk+i)
	}
	return tr
}

// victim adds snapshots, deletes and collects old ones, and tells what it has
// done or, of a deletion, is about to do.
func victim(dir string) error {
	ctx := context.Background()
	opt, err := victimOptions(dir)
	if err != nil {
		return err
	}
	s, err := Open(opt)
	if err != nil {
		return err
	}
	var kept []string
	db := newDatabase()
	for seed := uint64(0); ; seed++ {
		from := filepath.Join(dir, "new", fmt.Sprint(seed))
		if err := os.MkdirAll(from, 0o700); err != nil {
			return err
		}
		for name, data := range victimTree(seed) {
			if err := os.WriteFile(filepath.Join(from, name), data, 0o600); err != nil {
				return err
			}
		}
		ref, err := db.save(ctx, s, from)
		if err != nil {
			return err
		}
		db.name(ref)
		fmt.Println("added", ref.Manifest, seed)
		kept = append(kept, ref.Manifest)
		f, err := s.Load(ctx, kept[0], anyFormat)
		if err != nil {
			return err
		}
		f.Release()
		if len(kept) > 3 {
			fmt.Println("deleted", kept[0], 0)
			kept = kept[1:]
			db.keep(kept)
			if _, err := db.collect(ctx, s); err != nil {
				return err
			}
		}
	}
}

// TestKilled kills a process with kill -9 while it adds, loads and collects:
// what it has acknowledged is there, and a collection frees the rest.
func TestKilled(t *testing.T) {
	t.Parallel() // it waits for the disk
	r := rand.New(rand.NewPCG(rand.Uint64(), 0))
	for range 20 {
		l := &lab{TB: t, dir: t.TempDir(), db: newDatabase()}
		live := killed(t, l.dir, 1+r.IntN(12), time.Duration(r.IntN(20_000))*time.Microsecond)
		var err error
		if l.opt, err = victimOptions(l.dir); err != nil {
			t.Fatal(err)
		}
		l.blobs = l.opt.Blobs
		l.open()
		var keep []string
		for m, seed := range live {
			l.loads(m, victimTree(seed))
			keep = append(keep, m)
		}
		l.collects(keep)
		l.emptyCache()
		for m, seed := range live {
			l.loads(m, victimTree(seed))
		}
	}
}

// killed runs a victim until a time after it has told so many things, and
// returns the snapshots that it has, with their seeds.
func killed(t *testing.T, dir string, lines int, after time.Duration) map[string]uint64 {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimDir+"="+dir)
	var failure strings.Builder
	cmd.Stderr = &failure
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	live := map[string]uint64{}
	told := bufio.NewScanner(out)
	for n := 1; told.Scan(); n++ {
		var what, manifest string
		var seed uint64
		if _, err := fmt.Sscan(told.Text(), &what, &manifest, &seed); err != nil {
			t.Fatal(err)
		}
		if what == "added" {
			live[manifest] = seed
		} else {
			delete(live, manifest)
		}
		if n == lines {
			time.AfterFunc(after, func() { cmd.Process.Kill() })
		}
	}
	cmd.Wait()
	if failure.Len() > 0 {
		t.Fatalf("the process that was to be killed failed: %s", &failure)
	}
	return live
}
