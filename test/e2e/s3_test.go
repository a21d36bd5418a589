package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/blob/blobtest"
)

// TestSnapshotsInS3 keeps snapshots in S3 storage, which goes away under a
// sandbox that is being saved, stays away while the server starts again, and
// comes back.
func TestSnapshotsInS3(t *testing.T) {
	storage := blobtest.StartS3(t)
	t.Setenv("AWS_ACCESS_KEY_ID", storage.Config.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", string(storage.Config.SecretKey))
	inBucket := []string{"--s3-endpoint", storage.Config.Endpoint, "--s3-bucket", storage.Config.Bucket}
	// No cache to speak of: what is started from a snapshot is fetched.
	s := newServer(t, append(inBucket, "--snapshot-cache", "0")...)
	sb := s.create(client.CreateOptions{Name: "kept"})
	if err := sb.WriteFile(t.Context(), "content", []byte("first"), 0o644); err != nil {
		t.Fatal(err)
	}
	first := s.stopSaved(sb)
	if objects(t, storage.Dir) == 0 {
		t.Error("no object is in the bucket")
	}
	if n := objects(t, s.path("state/snapshots/blobs")); n != 0 {
		t.Errorf("%d blobs are in the state folder", n)
	}

	if got := s.output(sb, "cat", "content"); got != "first" { // resumes it
		t.Errorf("the resumed sandbox has %q", got)
	}
	s.assertSecret(string(storage.Config.SecretKey))
	storage.Stop()
	if _, err := sb.Snapshot(t.Context(), client.TakeOptions{}); !unavailable(err) {
		t.Errorf("a snapshot without storage: %v", err)
	}
	if err := sb.WriteFile(t.Context(), "content", []byte("second"), 0o644); err != nil {
		t.Errorf("the sandbox that could not be saved: %v", err)
	}
	s.kill()
	s.start()
	sb = s.get("kept") // at the new address
	if got := s.output(sb, "cat", "content"); got != "second" {
		t.Errorf("the adopted sandbox has %q", got)
	}
	if _, err := s.CreateSandbox(t.Context(), client.CreateOptions{Source: first.Source()}); !unavailable(err) {
		t.Errorf("a sandbox from a snapshot that is out of reach: %v", err)
	}

	storage.Start(t)
	second := s.stopSaved(sb)
	for snap, want := range map[*client.Snapshot]string{first: "first", second: "second"} {
		if got := s.output(s.from(snap), "cat", "content"); got != want {
			t.Errorf("a sandbox from %s has %q, want %q", snap.ID(), got, want)
		}
	}

	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	for name, flags := range map[string][]string{
		"the folder": nil, "another prefix": append(inBucket, "--s3-prefix", "other"),
	} {
		out, err := s.sandboxd(append([]string{"serve", "--run-dir", s.path("run"), "--listen", "127.0.0.1:0"}, flags...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "serve with --s3-bucket "+storage.Config.Bucket+" --s3-prefix skerry") {
			t.Errorf("a server that looks for its snapshots in %s: %v\n%s", name, err, out)
		}
	}
	s.start()
	s.deleteAll()
	s.waitFor("the bucket to be empty", func() bool { return objects(t, storage.Dir) == 0 })
}

// TestS3NeedsAnEmptyFolder refuses to lose sight of snapshots on disk.
func TestS3NeedsAnEmptyFolder(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
	s := newServer(t)
	s.stopSaved(s.create(client.CreateOptions{}))
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	out, err := s.sandboxd("serve", "--run-dir", s.path("run"), "--listen", "127.0.0.1:0", "--s3-bucket", "b").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "there are snapshots in "+s.path("state/snapshots/blobs")+" already") {
		t.Errorf("a server that has snapshots in its folder: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "very-secret") {
		t.Errorf("the secret is shown: %s", out)
	}
	s.start()
}

func unavailable(err error) bool { return client.CodeOf(err) == skerry.CodeUnavailable }

// objects counts the files below a folder.
func objects(t *testing.T, dir string) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return n
}

// assertSecret looks that what the server knows is not in its log and not in
// the environment of the processes that it has started.
func (s *server) assertSecret(secret string) {
	s.t.Helper()
	log, err := os.ReadFile(s.path("state/sandboxd.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	if strings.Contains(string(log), secret) {
		s.t.Errorf("the secret is in the log")
	}
	processes := s.processes()
	for pid, args := range processes {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			s.t.Error(err)
		}
		if strings.Contains(string(env), secret) {
			s.t.Errorf("the secret is in the environment of %v", args)
		}
	}
	if len(processes) == 0 {
		s.t.Error("there is no process to look at")
	}
}
