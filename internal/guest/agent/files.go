package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// absolute resolves p against base, which is absolute.
func absolute(base, p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join(base, p)
}

// failure turns any error into what the host is told. It names what an error
// from the system is about only as far as the error does.
func failure(err error) *wire.Failure {
	if f := (*wire.Failure)(nil); errors.As(err, &f) {
		return f
	}
	code := wire.FailInternal
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		code = wire.FailDiskFull
	case errors.Is(err, unix.ENOENT):
		code = wire.FailNotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		code = wire.FailPermission
	case errors.Is(err, unix.EISDIR):
		code = wire.FailIsDirectory
	case errors.Is(err, unix.ENOTDIR):
		code = wire.FailNotDirectory
	case errors.Is(err, unix.EEXIST):
		code = wire.FailExists
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EINVAL):
		code = wire.FailInvalid
	case errors.Is(err, context.Canceled):
		code = wire.FailCancelled
	}
	return wire.Failf(code, "%v", err)
}

// mkdir makes one directory as the default user.
func (a *Agent) mkdir(req *wire.PathRequest) error {
	setup, user := a.config()
	name := absolute(absolute(setup.WorkDir, req.Cwd), req.Path)
	return asUser(lookup("", user), func() error {
		err := unix.Mkdir(name, 0o777)
		switch err {
		case nil:
			return nil
		case unix.ENOENT:
			return wire.Failf(wire.FailParentMissing, "%s: the parent directory does not exist", name)
		}
		return fmt.Errorf("%s: %w", name, err)
	})
}

// readFile sends a regular file that the default user may read. It replies to
// the host itself once the file is open.
func (a *Agent) readFile(ctx context.Context, l *wire.Link, gate *wire.Gate, id uint32, req *wire.PathRequest) error {
	setup, user := a.config()
	name := absolute(absolute(setup.WorkDir, req.Cwd), req.Path)
	var fd int
	var size int64
	err := asUser(lookup("", user), func() (err error) {
		fd, size, err = openRegular(name)
		return err
	})
	if err != nil {
		return err
	}
	// Who reads on does not matter once the file is open.
	defer unix.Close(fd)

	d := &download{ctx: ctx, l: l, gate: gate, id: id, fd: fd, buf: make([]byte, wire.MaxData)}
	n, err := readFull(fd, d.buf)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	switch {
	case n < len(d.buf):
		// The size of a file of /proc is whatever reading it yields.
		size = int64(n)
	case size < int64(n):
		size = -1
	}
	if err := l.SendJSON(wire.TypeReply, id, wire.Reply{Size: size}); err != nil {
		return nil
	}
	if err := d.send(n, size); err != nil {
		// The reply is out; an error of sending has ended the connection.
		_ = l.SendJSON(wire.TypeAbort, id, failure(fmt.Errorf("%s: %w", name, err)))
	}
	return nil
}

// openRegular opens a regular file and returns its size. It does not wait for
// the other end of a FIFO.
func openRegular(name string) (fd int, size int64, err error) {
	fd, err = openRetry(unix.AT_FDCWD, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == unix.ENXIO {
		// A socket, or a device with nothing behind it.
		return -1, 0, wire.Failf(wire.FailNotRegular, "%s: not a regular file", name)
	}
	if err != nil {
		return -1, 0, fmt.Errorf("%s: %w", name, err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			return fd, st.Size, nil
		case unix.S_IFDIR:
			err = wire.Failf(wire.FailIsDirectory, "%s: is a directory", name)
		default:
			err = wire.Failf(wire.FailNotRegular, "%s: not a regular file", name)
		}
	}
	unix.Close(fd)
	return -1, 0, err
}

// download sends an open file.
type download struct {
	ctx  context.Context
	l    *wire.Link
	gate *wire.Gate
	id   uint32
	fd   int
	buf  []byte
}

// send sends the first n bytes, which are in buf, and the rest of the file: up
// to size bytes in all, or up to the end when size is -1.
func (d *download) send(n int, size int64) error {
	var sent int64
	for n > 0 {
		if err := d.chunk(d.buf[:n]); err != nil {
			return err
		}
		sent += int64(n)
		want := len(d.buf)
		if size >= 0 {
			want = int(min(int64(want), size-sent))
		}
		var err error
		if n, err = readFull(d.fd, d.buf[:want]); err != nil {
			return err
		}
	}
	if size >= 0 && sent != size {
		return wire.Failf(wire.FailInternal, "the file was cut short while it was read")
	}
	return d.l.SendOffset(wire.TypeEOF, wire.StreamOut, d.id, sent)
}

// chunk sends p as the window allows.
func (d *download) chunk(p []byte) error {
	for len(p) > 0 {
		n, err := d.gate.Reserve(d.ctx, len(p))
		if err != nil {
			return err
		}
		if err := d.l.Send(wire.TypeData, wire.StreamOut, d.id, p[:n], nil); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// readFull fills p unless the file ends before.
func readFull(fd int, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, err := unix.Read(fd, p[n:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return n, err
		case m == 0:
			return n, nil
		}
		n += m
	}
	return n, nil
}

// writeTar extracts a tar stream as the default user.
func (a *Agent) writeTar(req *wire.PathRequest, r io.Reader) error {
	setup, user := a.config()
	dir := absolute(absolute(setup.WorkDir, req.Cwd), req.Path)
	return asUser(lookup("", user), func() error {
		x, err := newExtractor(dir)
		if err != nil {
			return err
		}
		defer x.close()
		return x.extract(r)
	})
}
