package agent

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// read returns the content of an account file. It is empty if there is no regular file.
func (p *preparer) read(name string) ([]byte, error) {
	st, err := os.Stat(p.root + name)
	if err != nil || !st.Mode().IsRegular() {
		return nil, nil // p.file replaces it
	}
	return readRegular(p.root+name, accountFileLimit)
}

// file makes sure that a system file has this content. An existing file keeps its mode.
// A folder in its place is moved aside, and anything else is replaced.
func (p *preparer) file(name, content string, mode uint32) error {
	full := p.root + name
	have, err := readRegular(full, accountFileLimit)
	if err == nil && string(have) == content {
		return nil
	}
	if err := p.systemDir(path.Dir(name), 0o755); err != nil {
		return err
	}
	if st, err := os.Lstat(full); err == nil && st.Mode().IsRegular() {
		mode = uint32(st.Mode().Perm())
	} else if err == nil && st.IsDir() {
		if err := displace(full); err != nil {
			return err
		}
	}
	return replaceFile(full, content, mode)
}

// replaceFile replaces a file of any kind, except a folder, by a new one.
func replaceFile(name, content string, mode uint32) error {
	return replaceFileOf(name, content, mode, func(*os.File) error { return nil })
}

// replaceFileOf is replaceFile for a file with another owner, which own sets.
func replaceFileOf(name, content string, mode uint32, own func(*os.File) error) error {
	f, temp, err := newFile(name, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if e := own(f); err == nil {
		err = e
	}
	if e := f.Chmod(os.FileMode(mode)); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		os.Remove(temp)
	}
	return err
}

// newFile creates a temporary file next to name, for replaceFile to rename.
func newFile(name string, mode uint32) (*os.File, string, error) {
	temp := name + ".skerry-new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		if err := displace(temp); err != nil {
			return nil, "", err
		}
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, os.FileMode(mode))
	return f, temp, err
}

// maxDisplaced limits the numbers that displace tries for a name. After that it uses a
// random number, which nobody can predict.
const maxDisplaced = 100

// displace renames whatever takes the place of a system file or folder. It does not
// delete it, because the tenant may need it and it may be large.
func displace(name string) error {
	for i := range maxDisplaced {
		aside := fmt.Sprintf("%s.displaced-%d", name, i)
		if _, err := os.Lstat(aside); errors.Is(err, os.ErrNotExist) {
			return os.Rename(name, aside)
		}
	}
	return os.Rename(name, fmt.Sprintf("%s.displaced-%d", name, rand.Uint64()))
}

// systemDir makes sure that a system folder and its parents exist. A file or a dangling
// link in the place of one is moved aside. The folder gets the mode, but not if name is
// a link to it.
func (p *preparer) systemDir(name string, mode uint32) error {
	full := p.root + name
	var st unix.Stat_t
	switch err := unix.Lstat(full, &st); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		if st.Mode&0o7777 == mode && isOwner(p.platform, &st, 0, 0) {
			return nil
		}
		if name == "/" || mode == 0o755 {
			return nil // the tenant may have changed it on purpose
		}
		return p.ownDir(full, 0, 0, mode, true)
	case err == nil:
		if isDir(full) {
			return nil
		}
		if err := displace(full); err != nil {
			return err
		}
	case name != "/":
		if err := p.systemDir(path.Dir(name), 0o755); err != nil {
			return err
		}
	}
	if err := os.Mkdir(full, 0o755); err != nil {
		return err
	}
	return p.ownDir(full, 0, 0, mode, true)
}

func isDir(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}

// dir makes sure that a folder of the user exists. Something else in its place stays,
// because it belongs to the user.
func (p *preparer) dir(name string, uid, gid int) error {
	full := p.root + name
	var st unix.Stat_t
	err := unix.Stat(full, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && isOwner(p.platform, &st, uid, gid) {
		return nil
	}
	if err != nil {
		if err := os.MkdirAll(full, 0o755); err != nil {
			return err
		}
	}
	return p.ownDir(full, uid, gid, 0o755, err != nil)
}

// restoreDir makes sure that a folder of the user exists. Something else in its place is
// moved aside.
func (p *preparer) restoreDir(name string, uid, gid int) error {
	if isDir(p.root + name) {
		return nil
	}
	if err := p.systemDir(path.Dir(name), 0o755); err != nil {
		return err
	}
	if _, err := os.Lstat(p.root + name); err == nil {
		if err := displace(p.root + name); err != nil {
			return err
		}
	}
	return p.dir(name, uid, gid)
}

// isOwner reports whether a file belongs to a user of the sandbox.
func isOwner(platform Platform, st *unix.Stat_t, uid, gid int) bool {
	uid, gid = platform.Owner(uid, gid)
	return int(st.Uid) == uid && int(st.Gid) == gid
}

// ownDir sets the owner of a folder, and with setMode also the mode.
func (p *preparer) ownDir(full string, uid, gid int, mode uint32, setMode bool) error {
	uid, gid = p.platform.Owner(uid, gid)
	fd, err := openRetry(unix.AT_FDCWD, full, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: full, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return &os.PathError{Op: "chown", Path: full, Err: err}
	}
	if !setMode {
		return nil
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return &os.PathError{Op: "chmod", Path: full, Err: err}
	}
	return nil
}
