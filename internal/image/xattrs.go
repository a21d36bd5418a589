package image

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// Bounds of an image's extended attributes, with their names and the paths of
// their files: the guest sets them at each start.
// Of ordinary images one or two programs have capabilities.
const (
	maxXattrFiles = 1024
	maxXattrBytes = 256 << 10
)

// readXattrs returns the extended attributes in a tree. Of hard links the
// first stands for all.
func readXattrs(root string) (wire.Xattrs, error) {
	found := wire.Xattrs{}
	size := 0
	seen := map[uint64]bool{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		attrs, n, err := fileXattrs(path)
		if err != nil || len(attrs) == 0 {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if seen[st.Ino] {
			return nil
		}
		seen[st.Ino] = true
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		found[name] = attrs
		if size += n + len(name); len(found) > maxXattrFiles || size > maxXattrBytes {
			return invalidImage("more than %d files or %d bytes of extended attributes", maxXattrFiles, maxXattrBytes)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading extended attributes: %w", err)
	}
	return found, nil
}

// fileXattrs returns a file's attributes that an image may have (setXattrs),
// and their size.
func fileXattrs(path string) (attrs map[string][]byte, size int, err error) {
	list, err := xattrValue(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	for name := range strings.SplitSeq(string(list), "\x00") {
		if !allowedXattr(name) {
			continue
		}
		value, err := xattrValue(func(b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", path, err)
		}
		if attrs == nil {
			attrs = map[string][]byte{}
		}
		attrs[name] = value
		size += len(name) + len(value)
	}
	return attrs, size, nil
}

// allowedXattr says which attributes an image may have: others are the
// machine's that it was made on.
func allowedXattr(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.")
}

// xattrValue calls read with more and more room.
func xattrValue(read func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 16 {
		b := make([]byte, size)
		n, err := read(b)
		switch {
		case errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case errors.Is(err, unix.ERANGE) && size < 1<<20:
			continue
		}
		return b[:max(n, 0)], err
	}
}
