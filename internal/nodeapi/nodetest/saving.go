package nodetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

var savingTests = map[string]func(*suite){
	"snapshot":      (*suite).snapshot,
	"snapshot ends": (*suite).snapshotEnds,
	"collect":       (*suite).collect,
	"memory":        (*suite).memory,
	"fork":          (*suite).fork,
}

var driveTests = map[string]func(*suite){
	"life": (*suite).driveLife,
	"fork": (*suite).driveFork,
}

// from starts sessions from saved files.
func from(manifest string) func(*nodeapi.SessionSpec) {
	return func(spec *nodeapi.SessionSpec) { spec.Snapshot = manifest }
}

// saving gives a save a lease of its own.
func saving(how nodeapi.Saving) nodeapi.Saving {
	how.Lease = rand.Text()
	return how
}

// snapshot saves files, also of a session that is paused, and starts from them.
func (s *suite) snapshot() {
	id := s.start()
	s.run(id, "echo saved > file")
	how := saving(nodeapi.Saving{})
	saved, err := s.Node.Snapshot(s.ctx, id, how)
	s.ok(err)
	if saved.Manifest == "" || saved.Lease != how.Lease || saved.Size <= 0 {
		s.Errorf("saved is %+v", saved)
	}
	s.run(id, "echo changed > file")
	if got := s.run(s.start(from(saved.Manifest)), "cat file"); got != "saved\n" {
		s.Errorf("the next session has %q", got)
	}
	s.ok(s.Node.Pause(s.ctx, id))
	held, err := s.Node.Snapshot(s.ctx, id, saving(nodeapi.Saving{Hold: true}))
	s.ok(err)
	s.ok(s.Node.Resume(s.ctx, id))
	if got := s.run(id, "cat file"); got != "changed\n" {
		s.Errorf("the session goes on with %q", got)
	}
	if got := s.run(s.start(from(held.Manifest)), "cat file"); got != "changed\n" {
		s.Errorf("the session from the second snapshot has %q", got)
	}
	_, err = s.Node.Snapshot(s.ctx, id, saving(nodeapi.Saving{Hold: true}))
	s.ok(err)
	s.stop(id)
}

// snapshotEnds has saves fail, and contexts end.
func (s *suite) snapshotEnds() {
	id := s.start()
	s.Step(Save, func(string) error { return errStep })
	_, err := s.Node.Snapshot(s.ctx, id, saving(nodeapi.Saving{}))
	s.code("Snapshot", err, errStep.Code)
	s.Step(Save, nil)
	s.run(id, "true") // the session goes on

	ctx, cancel := context.WithCancel(s.ctx)
	s.Step(Save, func(string) error { cancel(); <-ctx.Done(); return errStep })
	if _, err := s.Node.Snapshot(ctx, id, saving(nodeapi.Saving{Hold: true})); err == nil {
		s.Error("a save that was cancelled is no error")
	}
	s.Step(Save, nil)
	s.run(id, "true")
	_, err = s.Node.Snapshot(s.ctx, id, saving(nodeapi.Saving{}))
	s.ok(err)
}

// collect removes the saved files that are deleted, and those of saves that failed.
func (s *suite) collect() {
	id := s.start()
	save := func(text, lease string) nodeapi.SavedFiles {
		s.run(id, "echo "+text+" > file")
		saved, err := s.Node.Snapshot(s.ctx, id, nodeapi.Saving{Lease: lease})
		s.ok(err)
		return saved
	}
	one, two, three := save("one", "1"), save("two", "2"), save("three", "3")
	s.collected(nodeapi.Records{Active: []string{"1", "2", "3"}})
	s.start(from(one.Manifest)) // by its lease
	now := skerry.At(time.Now())
	known := []nodeapi.Manifest{
		{Name: one.Manifest, CreatedAt: now, Deleted: true, Chunks: one.Chunks}, {Name: two.Manifest, CreatedAt: now, Chunks: two.Chunks},
	}
	c := s.collected(nodeapi.Records{Ended: []string{"3"}, Manifests: known})
	if !slices.Contains(c.Gone, one.Manifest) || slices.Contains(c.Gone, two.Manifest) {
		s.Errorf("gone are %v, not %s", c.Gone, one.Manifest)
	}
	if got := s.run(s.start(from(two.Manifest)), "cat file"); got != "two\n" {
		s.Errorf("what was kept has %q", got)
	}
	for _, gone := range []nodeapi.SavedFiles{one, three} {
		if err := s.Node.Start(s.ctx, s.spec(from(gone.Manifest))); err == nil {
			s.Error("a session starts from files that were collected")
		}
	}
}

// collected collects until nothing waits any more.
func (s *suite) collected(known nodeapi.Records) (c nodeapi.Collected) {
	s.Helper()
	for range 4 {
		var err error
		known.Round = s.round
		c, err = s.Collector.Collect(s.ctx, known)
		s.ok(err)
		s.round = c.Round
		if c.Waiting == 0 {
			return c
		}
	}
	s.Errorf("%d blobs wait", c.Waiting)
	return c
}

// memory saves what a session runs.
func (s *suite) memory() {
	id := s.start()
	saved, err := s.Node.Snapshot(s.ctx, id, saving(nodeapi.Saving{Memory: true}))
	if s.lacks(Memory) {
		if err == nil {
			s.Error("what the implementation is said to lack works")
		}
		s.run(id, "true")
		return
	}
	s.ok(err)
	s.run(s.start(from(saved.Manifest), func(spec *nodeapi.SessionSpec) { spec.Memory = true }), "true")
}

// fork starts a session from a running one.
func (s *suite) fork() {
	id := s.start()
	s.run(id, "echo here > file")
	spec := s.spec(func(spec *nodeapi.SessionSpec) { spec.ForkOf, spec.Capture = id, skerry.NewID(skerry.PrefixSnapshot) })
	captured := s.Node.Capture(s.ctx, id, spec.Capture)
	err := s.Node.Start(s.ctx, spec)
	if s.lacks(Forks) {
		if err == nil || captured == nil {
			s.Error("what the implementation is said to lack works")
		}
		s.run(id, "true")
		return
	}
	s.ok(captured)
	s.ok(err)
	s.run(id, "echo there > file")
	if got := s.run(spec.ID, "cat file"); got != "here\n" {
		s.Errorf("the fork has %q", got)
	}
	saved, err := s.Node.Keep(s.ctx, spec.Capture, rand.Text())
	s.ok(err)
	if got := s.run(s.start(from(saved.Manifest)), "cat file"); got != "here\n" {
		s.Errorf("the capture has %q", got)
	}
	spec = s.spec(func(spec *nodeapi.SessionSpec) { spec.ForkOf, spec.Capture = id, skerry.NewID(skerry.PrefixSnapshot) })
	s.ok(s.Node.Start(s.ctx, spec))
	for range 2 {
		s.ok(s.Node.Discard(s.ctx, spec.Capture))
	}
	unused := skerry.NewID(skerry.PrefixSnapshot)
	for range 2 {
		s.ok(s.Node.Capture(s.ctx, id, unused))
	}
	for range 2 {
		s.ok(s.Node.Discard(s.ctx, unused))
	}
	s.code("Capture nothing", s.Node.Capture(s.ctx, skerry.NewID(skerry.PrefixSession), unused), skerry.CodeNotFound)
	s.code("Start as a fork of nothing", s.Node.Start(s.ctx, s.spec(func(spec *nodeapi.SessionSpec) {
		spec.ForkOf, spec.Capture = skerry.NewID(skerry.PrefixSession), skerry.NewID(skerry.PrefixSnapshot)
	})), skerry.CodeNotFound)
}

const driveSize = 16 << 20

// mounting mounts a drive at /data.
func mounting(id string, frozen bool) func(*nodeapi.SessionSpec) {
	return func(spec *nodeapi.SessionSpec) {
		spec.Mounts = []nodeapi.DriveMount{{Path: "/data", DriveID: id, Frozen: frozen}}
	}
}

func (s *suite) drive() string {
	s.Helper()
	id := skerry.NewID(skerry.PrefixDrive)
	s.ok(s.Node.CreateDrive(s.ctx, id, driveSize))
	return id
}

// put writes a file of a drive that a session has, get reads one.
func (s *suite) put(session, text string) {
	s.Helper()
	s.ok(s.Node.WriteFiles(s.ctx, session, "/data", bytes.NewReader(archive(s.T, "file", []byte(text)))))
}

func (s *suite) get(session string) string {
	s.Helper()
	return string(s.read(session, "/data/file"))
}

// driveLife is a drive from its making to its end.
func (s *suite) driveLife() {
	id := s.drive()
	s.ok(s.Node.CreateDrive(s.ctx, id, driveSize)) // one that is there stays
	one := s.start(mounting(id, false))
	s.put(one, "first")
	s.stop(one)
	s.ok(s.Node.CreateDrive(s.ctx, id, driveSize))
	two := s.start(mounting(id, false))
	if got := s.get(two); got != "first" {
		s.Errorf("the drive has %q", got)
	}
	frozen := s.start(mounting(id, true))
	s.put(two, "second")
	if got := s.get(frozen); got != "first" {
		s.Errorf("the frozen copy has %q", got)
	}
	s.stop(frozen)
	s.stop(two)
	other := s.drive()
	s.ok(s.Node.RetainDrives(s.ctx, []string{id}))
	if !s.lacks(LostDrives) {
		s.code("Start with a drive that was not retained", s.Node.Start(s.ctx, s.spec(mounting(other, false))), skerry.CodeConflict)
	}
	if got := s.get(s.start(mounting(id, false), func(*nodeapi.SessionSpec) {})); got != "second" {
		s.Errorf("the drive that was retained has %q", got)
	}
}

// driveFork copies a drive.
func (s *suite) driveFork() {
	id, copied := s.drive(), skerry.NewID(skerry.PrefixDrive)
	one := s.start(mounting(id, false))
	s.put(one, "first")
	s.stop(one)
	s.ok(s.Node.ForkDrive(s.ctx, copied, id))
	two := s.start(mounting(copied, false))
	if got := s.get(two); got != "first" {
		s.Errorf("the copy has %q", got)
	}
	s.stop(two)
	s.code("ForkDrive of nothing", s.Node.ForkDrive(s.ctx, skerry.NewID(skerry.PrefixDrive), skerry.NewID(skerry.PrefixDrive)), skerry.CodeNotFound)
	for range 2 {
		s.ok(s.Node.DeleteDrive(s.ctx, copied))
	}
	if !s.lacks(LostDrives) {
		s.code("Start with a drive that was deleted", s.Node.Start(s.ctx, s.spec(mounting(copied, false))), skerry.CodeConflict)
	}
}
