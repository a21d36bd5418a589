package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"

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

// failure converts any error to a Failure. It adds no context to the message.
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

// mkdir creates one directory as the default user.
func (a *Agent) mkdir(req *wire.PathRequest) error {
	setup, user := a.config()
	name := absolute(absolute(setup.WorkDir, req.Cwd), req.Path)
	return a.platform.As(a.accounts.lookup(a.root, user), func() error {
		err := unix.Mkdir(a.root+name, 0o777)
		switch err {
		case nil:
			return nil
		case unix.ENOENT:
			return wire.Failf(wire.FailParentMissing, "%s: the parent directory does not exist", name)
		}
		return fmt.Errorf("%s: %w", name, err)
	})
}

// readFile sends a regular file, which it opens as the default user. Unless it returns
// an error, it sends the reply itself.
func (a *Agent) readFile(ctx context.Context, l *wire.Link, gate *wire.Gate, id uint32, req *wire.PathRequest) error {
	setup, user := a.config()
	name := absolute(absolute(setup.WorkDir, req.Cwd), req.Path)
	var fd int
	var size int64
	err := a.platform.As(a.accounts.lookup(a.root, user), func() (err error) {
		fd, size, err = openRegular(a.root, name)
		return err
	})
	if err != nil {
		return err
	}
	// Credentials do not matter after the file is open.
	defer unix.Close(fd)

	d := &download{ctx: ctx, l: l, gate: gate, id: id, fd: fd, buf: make([]byte, wire.MaxData)}
	n, err := readFull(fd, d.buf)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	switch {
	case n < len(d.buf):
		// Files in /proc report size 0. Their size is known after reading.
		size = int64(n)
	case size < int64(n):
		size = -1
	}
	if err := l.SendJSON(wire.TypeReply, id, wire.Reply{Size: size}); err != nil {
		return nil
	}
	if err := d.send(n, size); err != nil {
		// The reply is sent already. If sending fails, the connection has ended.
		_ = l.SendJSON(wire.TypeAbort, id, failure(fmt.Errorf("%s: %w", name, err)))
	}
	return nil
}

// openRegular opens a regular file and returns its size. It does not block on a FIFO.
func openRegular(root, name string) (fd int, size int64, err error) {
	fd, err = openRetry(unix.AT_FDCWD, root+name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == unix.ENXIO {
		// A socket, or a device without a driver.
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

// send sends the first n bytes, which are in buf, and then the rest of the file. The
// total is size bytes, or up to the end of the file if size is -1.
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
		return wire.Failf(wire.FailInternal, "the file was truncated during the download")
	}
	return d.l.SendOffset(wire.TypeEOF, wire.StreamOut, d.id, sent)
}

// chunk sends p, as far as the window allows at a time.
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

// readFull fills p. It returns less only at the end of the file.
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
	// If the working directory is missing, only root can create it, because root owns
	// its parent.
	restore := sync.OnceValue(func() error {
		return asRoot(func() error { return newPreparer(a.platform).restoreDir(setup.WorkDir, user.uid, user.gid) })
	})
	reach := func(name string) error {
		if name != setup.WorkDir && !strings.HasPrefix(name, setup.WorkDir+"/") {
			return nil
		}
		return restore()
	}
	if err := reach(dir); err != nil {
		return fmt.Errorf("restore the working directory: %w", err)
	}
	return a.platform.As(a.accounts.lookup(a.root, user), func() error {
		x, err := newExtractor(a.root, dir)
		if err != nil {
			return err
		}
		defer x.close()
		x.reach = reach
		return x.extract(r)
	})
}
