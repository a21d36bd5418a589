package agent

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// Describe answers for each path that comes in, ended by a NUL byte, with the
// file's wire.Attrs. It is a command of the agent's program, not the agent's
// own work: it runs as root, and is ended like any command.
func Describe(in io.Reader, out io.Writer) error {
	r := bufio.NewReaderSize(in, 64<<10)
	w := bufio.NewWriterSize(out, 64<<10)
	var b []byte
	for {
		path, err := r.ReadString(0)
		if errors.Is(err, io.EOF) && path == "" {
			return w.Flush()
		}
		if err != nil {
			return err
		}
		a := describe(strings.TrimSuffix(path, "\x00"))
		b = a.Append(b[:0])
		if _, err := w.Write(b); err != nil {
			return err
		}
		if r.Buffered() == 0 { // the other side may be waiting
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
}

func describe(path string) wire.Attrs {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return wire.Attrs{Missing: true}
	}
	return wire.Attrs{ModTime: time.Unix(st.Mtim.Unix()), Xattrs: delicateXattrs(path)}
}

// delicateXattrs returns the extended attributes that a tar of the sandbox's
// kernel leaves out: it takes names and values for text.
func delicateXattrs(path string) map[string]string {
	var few [4 << 10]byte
	names := few[:]
	n, err := unix.Llistxattr(path, names)
	if err == unix.ERANGE {
		names = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Llistxattr(path, names)
	}
	if err != nil || n == 0 {
		return nil
	}
	var found map[string]string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		value, err := getXattr(path, name)
		if err != nil || value != "" && utf8.ValidString(value) {
			continue
		}
		if strings.ContainsRune(name, '=') || !utf8.ValidString(name) {
			continue // a tar has no way to name it
		}
		if found == nil {
			found = map[string]string{}
		}
		found[name] = value
	}
	return found
}

func getXattr(path, name string) (string, error) {
	var few [1 << 10]byte
	value := few[:]
	n, err := unix.Lgetxattr(path, name, value)
	if err == unix.ERANGE {
		value = make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err = unix.Lgetxattr(path, name, value)
	}
	if err != nil {
		return "", err
	}
	return string(value[:n]), nil
}
