package client

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cleanupWait bounds the removal of a temporary file in the sandbox.
const cleanupWait = 10 * time.Second

// Copied says what a copy came to.
type Copied struct {
	// Path is where the file or directory is now: the destination, or a name
	// in it if that is a directory.
	Path string
	// Bytes went over the wire, before compression; for a directory they
	// include the headers of a tar stream.
	Bytes int64
	// Skipped names what was left out because it could do harm: devices,
	// pipes, and symbolic links that lead out of the copied directory.
	Skipped []string
}

// CopyTo copies a local file or directory, with everything in it, into the
// sandbox. As with cp, a destination that is a directory or ends with a slash
// gets the copy put into it under its own name; else it is the copy's name.
// Symbolic links in a directory are copied as links.
func (sb *Sandbox) CopyTo(ctx context.Context, local, remote string) (Copied, error) {
	abs, err := filepath.Abs(local)
	if err != nil {
		return Copied{}, err
	}
	info, err := os.Stat(abs) // a link that is named itself is followed
	if err != nil {
		return Copied{}, err
	}
	dest := sb.abs(remote)
	isDir, err := sb.isDir(ctx, remote)
	if err != nil {
		return Copied{}, err
	}
	if isDir {
		dest = path.Join(dest, filepath.Base(abs))
	}
	fsys := os.DirFS(filepath.Dir(abs))
	if info.IsDir() {
		fsys = os.DirFS(abs)
	}
	n, err := sb.upload(ctx, func(tw *tar.Writer) error {
		if info.IsDir() {
			return addTree(ctx, tw, fsys, entryName(dest))
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is neither a file nor a directory", local)
		}
		return addFile(tw, fsys, filepath.Base(abs), entryName(dest), info)
	})
	return Copied{Path: dest, Bytes: n}, err
}

// isDir reports whether a destination in the sandbox is to be copied into.
func (sb *Sandbox) isDir(ctx context.Context, remote string) (bool, error) {
	if remote == "" || strings.HasSuffix(remote, "/") {
		return true, nil
	}
	mode, err := sb.mode(ctx, remote)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return mode.IsDir(), err
}

// The parts of a mode as stat prints it (Linux's st_mode).
const (
	modeType = 0o170000
	modeDir  = 0o040000
)

// mode asks for the type and permissions of a file in the sandbox, following
// links. If stat fails, or the image has none, the error is fs.ErrNotExist:
// what the reason is shows when the file is read.
func (sb *Sandbox) mode(ctx context.Context, remote string) (fs.FileMode, error) {
	out, err := sb.Command(ctx, "stat", "-L", "-c", "%f", "--", sb.abs(remote)).Output()
	if _, ok := errors.AsType[*ExitError](err); ok {
		return 0, fs.ErrNotExist
	}
	if err != nil {
		return 0, err
	}
	raw, err := strconv.ParseUint(strings.TrimSpace(string(out)), 16, 32)
	if err != nil {
		return 0, errors.New("the sandbox's stat command does not print a mode")
	}
	mode := fs.FileMode(raw) & fs.ModePerm
	if raw&modeType == modeDir {
		mode |= fs.ModeDir
	}
	return mode, nil
}

// CopyFrom copies a file or directory, with everything in it, out of the
// sandbox. The destination is taken as by CopyTo. What comes from a sandbox is
// not trusted: nothing outside the destination is written, and see Copied for
// what is left out.
//
// A directory needs tar and mktemp in the sandbox, and room in its /tmp.
func (sb *Sandbox) CopyFrom(ctx context.Context, remote, local string) (Copied, error) {
	abs := sb.abs(remote)
	mode, err := sb.mode(ctx, abs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Copied{}, err
	}
	base := path.Base(abs)
	if base == "/" {
		base = "root"
	}
	dest := local
	if info, err := os.Stat(local); (err == nil && info.IsDir()) || local == "" || os.IsPathSeparator(local[len(local)-1]) {
		if dest, err = joinLocal(local, base); err != nil {
			return Copied{}, err
		}
	}
	if mode.IsDir() {
		return sb.copyDir(ctx, abs, dest)
	}
	return sb.copyFile(ctx, abs, dest, mode)
}

// joinLocal puts the base name of a file in the sandbox behind a local path.
func joinLocal(dir, base string) (string, error) {
	name, err := filepath.Localize(base)
	if err != nil {
		return "", fmt.Errorf("%q is not a possible name on this system", base)
	}
	return filepath.Join(dir, name), nil
}

func (sb *Sandbox) copyFile(ctx context.Context, remote, local string, mode fs.FileMode) (Copied, error) {
	r, err := sb.Open(ctx, remote)
	if err != nil {
		return Copied{}, err
	}
	defer r.Close()
	if mode.Perm() == 0 {
		mode = 0o666
	}
	f, err := os.OpenFile(local, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode.Perm())
	if err != nil {
		return Copied{}, err
	}
	n, err := io.Copy(f, r)
	if err := errors.Join(err, f.Close()); err != nil {
		return Copied{}, fmt.Errorf("copy %s, of which %d bytes came: %w", remote, n, err)
	}
	return Copied{Path: local, Bytes: n}, nil
}

// packScript makes a tar file of the entry $2 of the directory $1 and prints
// its name. A command's output is text, so the tar stream itself cannot come
// that way.
const packScript = `f=$(mktemp) || exit; tar -C "$1" -cf "$f" -- "$2" && printf %s "$f" && exit; s=$?; rm -f "$f"; exit $s`

func (sb *Sandbox) copyDir(ctx context.Context, remote, local string) (Copied, error) {
	parent, base := path.Dir(remote), path.Base(remote)
	if remote == "/" {
		base = "."
	}
	out, err := sb.Command(ctx, "sh", "-c", packScript, "sh", parent, base).Output()
	if exit, ok := errors.AsType[*ExitError](err); ok {
		return Copied{}, fmt.Errorf("pack %s in the sandbox: %w: %s", remote, err, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return Copied{}, err
	}
	packed := string(out)
	defer sb.remove(ctx, packed)
	r, err := sb.Open(ctx, packed)
	if err != nil {
		return Copied{}, err
	}
	defer r.Close()
	root, err := os.OpenRoot(filepath.Dir(local))
	if err != nil {
		return Copied{}, err
	}
	defer root.Close()
	var length counter
	skipped, err := untar(ctx, io.TeeReader(r, &length), root, base, filepath.Base(local))
	return Copied{Path: local, Bytes: int64(length), Skipped: skipped}, err
}

// remove deletes a temporary file in the sandbox, also when ctx has ended. If
// that fails it is left for the end of the sandbox.
func (sb *Sandbox) remove(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupWait)
	defer cancel()
	_ = sb.Command(ctx, "rm", "-f", "--", name).Run()
}
