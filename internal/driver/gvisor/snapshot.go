package gvisor

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"gvisor.dev/gvisor/pkg/sentry/checkpoint"
	fspb "gvisor.dev/gvisor/pkg/sentry/fscheckpoint/fscheckpoint_proto_go_proto"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/runsc/sandbox"

	"github.com/skerry-dev/skerry/internal/driver"
)

// A snapshot is the sentry's filesystem checkpoint of the root's writable
// layer: four files, of which the "multi-tar" has the tree (regular files as
// references to pages), and the pages file the contents. It is the whole
// difference to the image, not to an earlier snapshot.
//
// The sentry's tar has times of whole seconds, rounded, and leaves out
// extended attributes that are not text, file capabilities among them. The
// guest knows better, so the tar is written anew with what it says. The sentry
// that restores it takes both as they are.

// Snapshot implements driver.Machine.
func (m *machine) Snapshot(ctx context.Context, dir string, attrs driver.AttrReader) error {
	err := m.box.FSSave(m.conf, m.id, dir, sandbox.FSSaveOpts{Paths: []checkpoint.ResourceID{{Path: "/"}}})
	if err == nil {
		err = completeTree(ctx, dir, attrs)
	}
	if err != nil {
		return fmt.Errorf("snapshot machine %s: %w", m.id, withErrno(err))
	}
	return nil
}

// withErrno finds a full disk in an error of the sentry's, which comes as text.
func withErrno(err error) error {
	if errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), unix.ENOSPC.Error()) {
		return err
	}
	return fmt.Errorf("%w: %w", unix.ENOSPC, err)
}

// awaitFiles ends the machine if the files that it starts from turn out to be
// unreadable. They are read while it runs already: whoever reads one that is
// not there yet waits.
func (m *machine) awaitFiles() {
	err := m.box.WaitFSRestore(m.id)
	if err == nil {
		return
	}
	select {
	case <-m.done: // it has ended anyway
	default:
		m.d.cfg.Log.Error("cannot load a machine's files", "machine", m.id, "error", err)
		m.unloadable.Store(true)
		_ = m.proc.signal() // watch sees whether it ends
	}
}

// completeTree writes the tree of a snapshot anew, with attributes that the
// sentry does not write down.
func completeTree(ctx context.Context, dir string, attrs driver.AttrReader) error {
	manifestPath := filepath.Join(dir, checkpointfiles.FSCheckpointManifestFileName)
	b, err := os.ReadFile(manifestPath)
	if err != nil {
		return err
	}
	var manifest fspb.Manifest
	if err := proto.Unmarshal(b, &manifest); err != nil {
		return fmt.Errorf("read the snapshot's manifest: %w", err)
	}
	if len(manifest.Tmpfs) != 1 || manifest.Tmpfs[0].TarStart != 0 {
		return fmt.Errorf("the snapshot has %d trees, want one", len(manifest.Tmpfs))
	}
	treePath := filepath.Join(dir, checkpointfiles.FSCheckpointMultiTarFileName)
	size, err := rewriteFile(treePath, func(w io.Writer) error { return writeTree(ctx, treePath, w, attrs) })
	if err != nil {
		return fmt.Errorf("complete the snapshot's tree: %w", err)
	}
	manifest.Tmpfs[0].TarEnd = uint64(size)
	if b, err = proto.Marshal(&manifest); err != nil {
		return err
	}
	return os.WriteFile(manifestPath, b, 0o600)
}

// rewriteFile replaces a file by what write writes and returns its size.
func rewriteFile(path string, write func(io.Writer) error) (int64, error) {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	err = write(w)
	if err == nil {
		err = w.Flush()
	}
	size, serr := f.Seek(0, io.SeekEnd)
	if err := errors.Join(err, serr, f.Close()); err != nil {
		return 0, errors.Join(err, os.Remove(f.Name()))
	}
	return size, os.Rename(f.Name(), path)
}

// treeBatch is how many files the guest is asked about at once.
const treeBatch = 4096

// writeTree copies a tar, read twice side by side: ahead to learn which files
// come, and behind to copy them with what the guest says of them. So neither
// many files nor large ones take memory.
func writeTree(ctx context.Context, path string, w io.Writer, attrs driver.AttrReader) error {
	ahead, closeAhead, err := openTree(path)
	if err != nil {
		return err
	}
	defer closeAhead()
	behind, closeBehind, err := openTree(path)
	if err != nil {
		return err
	}
	defer closeBehind()
	out := tar.NewWriter(w)
	for {
		names, err := nextNames(ahead)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return out.Close()
		}
		known, err := attrs(ctx, names)
		if err != nil {
			return err
		}
		for i := range names {
			if err := copyEntry(out, behind, known[i]); err != nil {
				return err
			}
		}
	}
}

func openTree(path string) (*tar.Reader, func() error, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	return tar.NewReader(bufio.NewReaderSize(f, 1<<20)), f.Close, nil
}

// nextNames returns the absolute paths of the next entries, none at the end.
func nextNames(r *tar.Reader) ([]string, error) {
	var names []string
	for len(names) < treeBatch {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the sentry's tar: %w", err)
		}
		names = append(names, "/"+strings.TrimPrefix(h.Name, "./"))
	}
	return names, nil
}

// paxXattr begins the name of an extended attribute in a tar.
const paxXattr = "SCHILY.xattr."

// copyEntry copies the next entry, with what the guest says of the file.
func copyEntry(w *tar.Writer, r *tar.Reader, a driver.Attrs) error {
	h, err := r.Next()
	if err != nil {
		return err
	}
	// The file may have changed since: what the sentry has rounded must be what
	// the guest's time rounds to.
	if !a.Missing && a.ModTime.Round(time.Second).Equal(h.ModTime) {
		h.ModTime = a.ModTime
	}
	if !a.Missing && h.Typeflag != tar.TypeLink {
		for name, value := range a.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			if key := paxXattr + name; h.PAXRecords[key] == "" {
				h.PAXRecords[key] = value
			}
		}
	}
	h.Format = tar.FormatPAX
	if err := w.WriteHeader(h); err != nil {
		return fmt.Errorf("write %q: %w", h.Name, err)
	}
	if _, err := io.Copy(w, r); err != nil {
		return fmt.Errorf("copy %q: %w", h.Name, err)
	}
	return nil
}
