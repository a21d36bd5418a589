package agent

import (
	"archive/tar"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// Limits for the extended attributes of one file in an archive.
const (
	maxAttributes     = 128
	maxAttributeBytes = 256 << 10
)

// attributePrefix is the prefix of the PAX records for extended attributes. Only those
// of the namespace "user." are set, because a user may not set others.
const attributePrefix = "SCHILY.xattr."

// fill writes the content to an empty file. A read of only zeros becomes a hole, which
// takes no disk space.
func (x *extractor) fill(fd int, content io.Reader) error {
	var size int64
	hole := false // the content so far ends with a hole
	for {
		n, err := content.Read(x.buf)
		if p := x.buf[:n]; zeros(p) {
			hole = hole || n > 0
		} else {
			if e := writeAt(fd, p, size, hole); e != nil {
				return e
			}
			hole = false
		}
		size += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return archiveError(err)
		}
	}
	if hole {
		return unix.Ftruncate(fd, size)
	}
	return nil
}

func zeros(p []byte) bool {
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}

// writeAt writes p at the end of the file, or at the offset if there is a hole before
// it.
func writeAt(fd int, p []byte, offset int64, hole bool) error {
	if hole {
		if _, err := unix.Seek(fd, offset, io.SeekStart); err != nil {
			return err
		}
	}
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// setAttributes sets the user attributes of a file from the archive.
func setAttributes(fd int, h *tar.Header) error {
	count, sum := 0, 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, attributePrefix)
		if !ok || !strings.HasPrefix(name, "user.") {
			continue
		}
		if count == 0 { // setting them needs a writable file; a failure shows below
			_ = unix.Fchmod(fd, permissions(h)|0o200)
		}
		count++
		sum += len(name) + len(value)
		if count > maxAttributes || sum > maxAttributeBytes {
			return wire.Failf(wire.FailInvalid, "more than %d extended attributes, or more than %d bytes of them", maxAttributes, maxAttributeBytes)
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil {
			return about("set an extended attribute", err)
		}
	}
	return nil
}
