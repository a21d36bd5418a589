package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
)

// document is a kind of document: its value with every field, how that is
// written, and how it is read into a value that has what is in columns.
type document struct {
	name  string
	full  any
	write any
	read  func(b []byte) (any, error)
}

// reader reads a document into what columns gives.
func reader[D any, T any](columns func() T, into func(*D, T)) func([]byte) (any, error) {
	return func(b []byte) (any, error) {
		d := new(D)
		if err := decode(b, any(d).(interface{ format() int })); err != nil {
			return nil, err
		}
		v := columns()
		into(d, v)
		return v, nil
	}
}

func documents() []document {
	sandbox := func() *skerry.Sandbox {
		f := fullSandbox()
		return &skerry.Sandbox{ID: f.ID, Scope: f.Scope, Name: f.Name, CreatedAt: f.CreatedAt, StatusUpdatedAt: f.StatusUpdatedAt,
			CurrentSnapshotID: f.CurrentSnapshotID, Image: f.Image, Env: f.Env, Source: f.Source, Ports: f.Ports, Policy: f.Policy}
	}
	secret := func() *skerry.Sandbox {
		f := fullSandbox()
		f.Env, f.Source, f.Ports, f.Policy = nil, nil, nil, nil
		return f
	}
	session := func() *skerry.Session {
		f := fullSession()
		return &skerry.Session{ID: f.ID, SandboxID: f.SandboxID, SandboxName: f.SandboxName, Scope: f.Scope, CreatedAt: f.CreatedAt,
			ImageDigest: f.ImageDigest, Policy: f.Policy}
	}
	snapshot := func() *skerry.Snapshot {
		f := fullSnapshot()
		f.SourceSessionID, f.Region, f.SizeBytes, f.CreationMethod = "", "", 0, ""
		return f
	}
	drive := func() *skerry.Drive {
		f := fullDrive()
		return &skerry.Drive{ID: f.ID, Scope: f.Scope, Name: f.Name, CreatedAt: f.CreatedAt, UpdatedAt: f.UpdatedAt}
	}
	command := func() *skerry.Command {
		f := fullCommand()
		return &skerry.Command{ID: f.ID, SessionID: f.SessionID, StartedAt: f.StartedAt}
	}
	return []document{
		{"sandbox", fullSandbox(), documentOfSandbox(fullSandbox()), reader(sandbox, (*sandboxDocument).into)},
		{"secrets", fullSandbox(), documentOfSecrets(fullSandbox()), reader(secret, (*secretsDocument).into)},
		{"session", fullSession(), documentOfSession(fullSession()), reader(session, (*sessionDocument).into)},
		{"snapshot", fullSnapshot(), documentOfSnapshot(fullSnapshot()), reader(snapshot, (*snapshotDocument).into)},
		{"drive", fullDrive(), documentOfDrive(fullDrive()), reader(drive, (*driveDocument).into)},
		{"command", fullCommand(), documentOfCommand(fullCommand()), reader(command, (*commandDocument).into)},
		{"policy", fullPolicy(), documentOfPolicy(*fullPolicy()), reader(func() *skerry.NetworkPolicy { return &skerry.NetworkPolicy{} },
			func(d *policyDocument, p *skerry.NetworkPolicy) { *p = d.policy() })},
	}
}

// TestFrozenDocuments compares the stored form with files of it, which never
// change: a database may hold documents like them for years. A form that has to
// change gets a new format and files of its own; those of earlier ones are
// still read.
func TestFrozenDocuments(t *testing.T) {
	for _, d := range documents() {
		t.Run(d.name, func(t *testing.T) {
			path := func(format int) string {
				return filepath.Join("testdata", "documents", fmt.Sprint("format", format), d.name+".json")
			}
			b, err := encode(d.write)
			if err != nil {
				t.Fatal(err)
			}
			var indented bytes.Buffer
			if err := json.Indent(&indented, b, "", "\t"); err != nil {
				t.Fatal(err)
			}
			indented.WriteByte('\n')
			frozen, err := os.ReadFile(path(documentFormat))
			if err != nil {
				t.Errorf("%v; this form is to be frozen:\n%s", err, indented.Bytes())
			} else if !bytes.Equal(frozen, indented.Bytes()) {
				t.Errorf("the stored form has changed, from\n%sto\n%s", frozen, indented.Bytes())
			}
			reads := func(path string, want any) {
				t.Helper()
				frozen, err := os.ReadFile(path)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := d.read(frozen); err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("%s is read as\n%+v, want\n%+v; %v", path, got, want, err)
				}
			}
			reads(path(documentFormat), d.full)
			want := d.full
			// Fields that have come since, without another format.
			former := func(name string) string { return filepath.Join("testdata", "documents", "format1", name+".json") }
			switch d.name {
			case "sandbox":
				reads(former("sandbox-before-audience"), sandboxBeforeAudience())
				reads(former("sandbox-before-resident"), sandboxBeforeResident())
				want = sandboxBeforeIdle()
				reads(former("sandbox-before-idle"), want)
			case "session":
				want = sessionBeforeResident()
				reads(former("session-before-resident"), want)
			}
			reads(path(0), want)
			// One of the future is refused, whatever else is in it.
			for _, future := range []string{
				fmt.Sprintf(`{"format":%d}`, documentFormat+1),
				fmt.Sprintf(`{"mode":7,"name":7,"region":7,"format":%d}`, documentFormat+1),
			} {
				if _, err := d.read([]byte(future)); err == nil || !strings.Contains(err.Error(), "reads formats up to") {
					t.Errorf("%s: %v", future, err)
				}
			}
			if _, err := d.read([]byte("{")); err == nil {
				t.Error("half a document was read")
			}
		})
	}
}

// TestStoredDocuments: what is written is read back whole, and a document of
// the future names itself.
func TestStoredDocuments(t *testing.T) { onEach(t, testStoredDocuments) }

func testStoredDocuments(t *testing.T, openIn opener) {
	dir := t.TempDir()
	s := openIn(t, dir)
	ctx := t.Context()
	if err := addSnapshot(ctx, s, fullSnapshot()); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateDrive(ctx, fullDrive()); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateSandbox(ctx, fullSandbox(), fullSession()); err != nil {
		t.Fatal(err)
	}
	if err := s.SaveCommands(ctx, []skerry.Command{*fullCommand()}); err != nil {
		t.Fatal(err)
	}
	mustHold := func(s *Store) {
		t.Helper()
		mustRead(t, "sandbox", fullSandbox(), func() (any, error) { return s.Sandbox(ctx, "sb_full") })
		mustRead(t, "session", fullSession(), func() (any, error) { return s.Session(ctx, fullScope, "sbx_full") })
		mustRead(t, "command", fullCommand(), func() (any, error) { return s.Command(ctx, "sbx_full", "cmd_full") })
		mustRead(t, "snapshot", fullSnapshot(), func() (any, error) { return s.Snapshot(ctx, fullScope, "snap_full") })
		mustRead(t, "drive", fullDrive(), func() (any, error) { return s.Drive(ctx, fullScope, "data") })
	}
	mustHold(s)
	// A change that changes nothing leaves all as it is.
	none := func(*skerry.Sandbox, *skerry.Session) error { return nil }
	if _, _, err := s.UpdateSession(ctx, "sbx_full", none); err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdateSnapshot(ctx, "snap_full", func(*skerry.Snapshot) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdateDrive(ctx, "drv_full", func(*skerry.Drive) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustNotHold(t, dir, "env-secret", "source-secret", "port-secret", "header-secret", "arg-secret")
	s = openIn(t, dir)
	mustHold(s)
	err := s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, `UPDATE sandboxes SET document = '{"format":2}'`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sandbox(ctx, "sb_full"); err == nil || !strings.Contains(err.Error(), "sandbox sb_full") || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("a document of the future: %v", err)
	}
	if _, err := s.UpdateSandbox(ctx, "sb_full", func(*skerry.Sandbox) error { return nil }); err == nil {
		t.Error("a document of the future was written over")
	}
}

func mustRead(t *testing.T, what string, want any, read func() (any, error)) {
	t.Helper()
	if got, err := read(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("the %s is read as\n%+v, want\n%+v; %v", what, got, want, err)
	}
}

// TestEarlierDatabase opens a database that an earlier version of this program
// has written, with everything in it.
func TestEarlierDatabase(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Open("testdata/version8/skerry.db.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	db, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile("testdata/version8/key")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "skerry.db"), db, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "skerry.key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	id := ""
	for range 2 { // the second time it is not earlier any more
		s := openIn(t, dir)
		mustRead(t, "sandbox", sandboxBeforeIdle(), func() (any, error) { return s.Sandbox(ctx, "sb_full") })
		mustRead(t, "session", sessionBeforeResident(), func() (any, error) { return s.Session(ctx, fullScope, "sbx_full") })
		ended := sessionBeforeResident()
		ended.ID, ended.Status, ended.Policy = "sbx_ended", skerry.StatusStopped, nil
		mustRead(t, "ended session", ended, func() (any, error) { return s.Session(ctx, fullScope, ended.ID) })
		mustRead(t, "command", fullCommand(), func() (any, error) { return s.Command(ctx, "sbx_full", "cmd_full") })
		mustRead(t, "snapshot", fullSnapshot(), func() (any, error) { return s.Snapshot(ctx, fullScope, "snap_full") })
		mustRead(t, "drive", fullDrive(), func() (any, error) { return s.Drive(ctx, fullScope, "data") })
		token, who, err := s.TokenByHash(ctx, []byte("0123456789abcdef0123456789abcdef"))
		if err != nil || token.ID != "tok_full" || token.LastUsedAt != at(66) || len(who.Grants) != 1 || who.Grants[0].Role != skerry.RoleOwner ||
			who.Grants[0].Project.ID != "prj_full" || who.Grants[0].Team.CreatedAt != at(60) {
			t.Errorf("the token is %+v of %+v, %v", token, who, err)
		}
		if images, err := s.Images(ctx); err != nil || !reflect.DeepEqual(images, []string{"registry.example.com/app:1", "sha256:0123"}) {
			t.Errorf("images in use: %v, %v", images, err)
		}
		if id != "" && s.ID() != id {
			t.Errorf("the database is %q, and was %q", s.ID(), id)
		}
		id = s.ID()
		if err := s.ForgetSnapshots(ctx, at(43)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Snapshot(ctx, fullScope, "snap_deleted"); skerry.CodeOf(err) != skerry.CodeNotFound {
			t.Errorf("a snapshot that was deleted long ago: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
