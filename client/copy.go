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

// cleanupWait limits the removal of a temporary file in the sandbox.
const cleanupWait = 10 * time.Second

// Copied is the result of a copy.
type Copied struct {
	// Path is the path of the copy: the destination, or a name in it if the
	// destination is a directory.
	Path string
	// Bytes is the total size of the copied file contents. A file with several
	// names counts once.
	Bytes int64
	// Skipped lists what was left out, each with the reason in parentheses: sockets and devices; on the way into a
	// sandbox, extended attributes outside the user namespace; on the way out of a
	// sandbox, FIFOs and symbolic links that lead out of the copied directory.
	Skipped []string
}

// CopyTo copies a local file or directory, with everything in it, into the sandbox.
// As with cp, if the destination is a directory or ends with a slash, the copy is
// put into it under its own name; otherwise the destination is the name of the
// copy. Symbolic links in a directory are copied as links. Hard links, FIFOs, user
// attributes of files and times to the nanosecond are preserved, and long runs of
// zeros become holes. Owners and the attributes of directories are not copied.
func (sb *Sandbox) CopyTo(ctx context.Context, local, remote string) (Copied, error) {
	abs, err := filepath.Abs(local)
	if err != nil {
		return Copied{}, err
	}
	info, err := os.Stat(abs) // follows a link, as cp -H does
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
	var p *pack
	err = sb.upload(ctx, func(tw *tar.Writer) error {
		p = newPack(tw, fsys)
		if info.IsDir() {
			return p.tree(ctx, entryName(dest))
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is neither a file nor a directory", local)
		}
		return p.file(filepath.Base(abs), entryName(dest), info)
	})
	if err != nil {
		return Copied{Path: dest}, err
	}
	return Copied{Path: dest, Bytes: p.bytes, Skipped: p.skipped}, nil
}

// isDir reports whether a destination in the sandbox is a directory to copy into.
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

// Parts of the st_mode of Linux, as stat prints it.
const (
	modeType = 0o170000
	modeDir  = 0o040000
)

// mode returns the type and permissions of a file in the sandbox. It follows links. If
// stat fails, or the image has no stat, the error is fs.ErrNotExist; reading the file then
// shows the reason.
func (sb *Sandbox) mode(ctx context.Context, remote string) (fs.FileMode, error) {
	out, err := sb.Command(ctx, "stat", "-L", "-c", "%f", "--", sb.abs(remote)).Output()
	if _, ok := errors.AsType[*ExitError](err); ok || IsExecutableNotFound(err) {
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

// CopyFrom copies a file or directory, with everything in it, out of the sandbox.
// It interprets the destination as CopyTo does. Data from a sandbox is not trusted:
// nothing outside the destination is written. See Copied for what is left out.
//
// Copying a directory needs tar and mktemp in the sandbox, and free space in its
// /tmp.
func (sb *Sandbox) CopyFrom(ctx context.Context, remote, local string) (Copied, error) {
	abs := sb.abs(remote)
	mode, err := sb.mode(ctx, abs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Copied{}, err
	}
	base := baseName(abs)
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

// baseName is the name of a copy of an absolute path.
func baseName(abs string) string {
	if abs == "/" {
		return "root"
	}
	return path.Base(abs)
}

// joinLocal appends the base name of a file in the sandbox to a local path.
func joinLocal(dir, base string) (string, error) {
	name, err := filepath.Localize(base)
	if err != nil {
		return "", fmt.Errorf("%q is not a valid file name on this system", base)
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
		return Copied{}, fmt.Errorf("copy %s: failed after %d bytes: %w", remote, n, err)
	}
	return Copied{Path: local, Bytes: n}, nil
}

// packScript creates a tar file of the entry $2 of the directory $1 and prints its name.
// The output of a command is text, so it cannot be the tar stream itself. With GNU tar
// the file has user attributes and times to the nanosecond.
const packScript = `o=; case $(tar --version 2>/dev/null) in *"GNU tar"*) o='--format=posix --xattrs';; esac
f=$(mktemp) || exit; tar $o -C "$1" -cf "$f" -- "$2" && printf %s "$f" && exit; s=$?; rm -f "$f"; exit $s`

// packDir creates a tar file of a directory in the sandbox. The names of its entries
// begin with base.
func (sb *Sandbox) packDir(ctx context.Context, remote string) (packed, base string, err error) {
	parent, base := path.Dir(remote), path.Base(remote)
	if remote == "/" {
		base = "."
	}
	out, err := sb.Command(ctx, "sh", "-c", packScript, "sh", parent, base).Output()
	if exit, ok := errors.AsType[*ExitError](err); ok {
		return "", "", fmt.Errorf("pack %s in the sandbox: %w: %s", remote, err, strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), base, err
}

func (sb *Sandbox) copyDir(ctx context.Context, remote, local string) (Copied, error) {
	packed, base, err := sb.packDir(ctx, remote)
	if err != nil {
		return Copied{}, err
	}
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
	length, skipped, err := untar(ctx, r, root, base, filepath.Base(local))
	return Copied{Path: local, Bytes: length, Skipped: skipped}, err
}

// remove deletes a temporary file in the sandbox, also after the end of ctx. If that
// fails, the file stays.
func (sb *Sandbox) remove(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupWait)
	defer cancel()
	_ = sb.Command(ctx, "rm", "-f", "--", name).Run()
}
