package client

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strings"

	"github.com/skerry-dev/skerry"
)

// workDir returns what relative paths in the sandbox start from.
func (sb *Sandbox) workDir() string {
	if cwd := sb.Session().Cwd; path.IsAbs(cwd) {
		return cwd
	}
	return skerry.WorkDir
}

// abs makes a path in the sandbox absolute and clean.
func (sb *Sandbox) abs(name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(sb.workDir(), name)
}

// WriteFile writes data to a file in the sandbox, with the given permissions,
// making the directories above it. A relative name is in the working
// directory.
func (sb *Sandbox) WriteFile(ctx context.Context, name string, data []byte, perm fs.FileMode) error {
	_, err := sb.upload(ctx, func(tw *tar.Writer) error {
		err := tw.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: entryName(sb.abs(name)), Size: int64(len(data)), Mode: int64(perm.Perm()),
		})
		if err != nil {
			return err
		}
		_, err = tw.Write(data)
		return err
	})
	return err
}

// WriteFiles writes the regular files, directories and symbolic links of fsys
// into a directory in the sandbox, keeping their permissions.
func (sb *Sandbox) WriteFiles(ctx context.Context, dir string, fsys fs.FS) error {
	_, err := sb.upload(ctx, func(tw *tar.Writer) error {
		return addTree(ctx, tw, fsys, entryName(sb.abs(dir)))
	})
	return err
}

// WriteTar extracts a tar stream, not compressed, into a directory in the
// sandbox. The stream can be read once, so a stopped sandbox is not resumed:
// call [Sandbox.Resume] before if it may have stopped.
func (sb *Sandbox) WriteTar(ctx context.Context, dir string, r io.Reader) error {
	send := func(zw io.Writer) error { _, err := io.Copy(zw, r); return err }
	return sb.post(ctx, sb.Session().ID, sb.abs(dir), send, true)
}

// entryName is the name of an absolute path in a tar stream that is extracted
// at the root.
func entryName(abs string) string {
	if name := strings.TrimPrefix(abs, "/"); name != "" {
		return name
	}
	return "."
}

// upload extracts what write puts into a tar stream at the root of the
// sandbox, and returns the length of that stream. write may be called again
// for another try.
func (sb *Sandbox) upload(ctx context.Context, write func(*tar.Writer) error) (int64, error) {
	var length counter
	send := func(zw io.Writer) error {
		length = 0
		tw := tar.NewWriter(io.MultiWriter(zw, &length))
		if err := write(tw); err != nil {
			return err
		}
		return tw.Close()
	}
	err := sb.withSession(ctx, func(id string) error { return sb.post(ctx, id, "/", send, false) })
	return int64(length), err
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// post streams what send writes, gzipped, to the server.
func (sb *Sandbox) post(ctx context.Context, sessionID, dir string, send func(io.Writer) error, once bool) error {
	var last *gzipBody
	err := sb.c.call(ctx, request{
		method: http.MethodPost, path: sessionPath(sessionID) + "/fs/write", query: sb.c.scope(""),
		header: http.Header{"Content-Type": {"application/gzip"}, "X-Cwd": {dir}},
		body: func() (io.ReadCloser, error) {
			if last != nil {
				last.wait()
			}
			last = newGzipBody(send)
			return last, nil
		},
		repeatable: true, once: once,
	}, nil)
	if last == nil {
		return err
	}
	// What went wrong on this side is the cause, not what it did to the
	// request.
	if cause := last.wait(); err != nil && cause != nil && !errors.Is(cause, io.ErrClosedPipe) {
		return cause
	}
	return err
}

// gzipBody is a request body that a goroutine of its own writes. wait, which
// must be called, ends that goroutine and returns its error.
type gzipBody struct {
	*io.PipeReader
	done chan struct{}
	err  error
}

func newGzipBody(send func(io.Writer) error) *gzipBody {
	pr, pw := io.Pipe()
	b := &gzipBody{PipeReader: pr, done: make(chan struct{})}
	go func() {
		defer close(b.done)
		// The network is seldom slower than the better levels.
		zw, err := gzip.NewWriterLevel(pw, gzip.BestSpeed)
		if err == nil {
			err = send(zw)
		}
		if err == nil {
			err = zw.Close()
		}
		b.err = err
		pw.CloseWithError(err) // nil is io.EOF
	}()
	return b
}

func (b *gzipBody) wait() error {
	b.PipeReader.Close() // what is not read by now is not wanted
	<-b.done
	return b.err
}

// addTree adds everything in fsys to a tar stream, below the name as.
func addTree(ctx context.Context, tw *tar.Writer, fsys fs.FS, as string) error {
	return fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return addFile(tw, fsys, name, path.Join(as, name), info)
	})
}

// addFile adds one file. Sockets, devices and pipes are left out: they mean
// nothing elsewhere.
func addFile(tw *tar.Writer, fsys fs.FS, name, as string, info fs.FileInfo) error {
	hdr := &tar.Header{Name: as, Mode: int64(info.Mode().Perm()), ModTime: info.ModTime()}
	switch {
	case info.IsDir():
		if as == "." { // the root is there, and not ours to change
			return nil
		}
		hdr.Typeflag, hdr.Name = tar.TypeDir, as+"/"
		return tw.WriteHeader(hdr)
	case info.Mode()&fs.ModeSymlink != 0:
		link, err := fs.ReadLink(fsys, name)
		if err != nil {
			return err
		}
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, link
		return tw.WriteHeader(hdr)
	case !info.Mode().IsRegular():
		return nil
	}
	f, err := fsys.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	hdr.Typeflag, hdr.Size = tar.TypeReg, info.Size()
	if err := tw.WriteHeader(hdr); err != nil {
		return err
	}
	// A file that grows meanwhile is cut where it was when it was looked at.
	n, err := io.Copy(tw, io.LimitReader(f, hdr.Size))
	if err == nil && n < hdr.Size {
		err = fmt.Errorf("%s became shorter while it was read", name)
	}
	return err
}

// Open returns a file in the sandbox for reading. The caller closes it. A
// missing file is an error for which [IsNotFound] holds.
func (sb *Sandbox) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	var body io.ReadCloser
	err := sb.withSession(ctx, func(id string) error {
		resp, err := sb.c.send(ctx, request{
			method: http.MethodPost, path: sessionPath(id) + "/fs/read", query: sb.c.scope(""),
			json: map[string]string{"path": name}, repeatable: true,
		})
		if err != nil {
			return err
		}
		body = resp.Body
		return nil
	})
	return body, err
}

// ReadFile returns the content of a file in the sandbox.
func (sb *Sandbox) ReadFile(ctx context.Context, name string) ([]byte, error) {
	f, err := sb.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	if n, err := b.ReadFrom(io.LimitReader(f, maxOutput+1)); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	} else if n > maxOutput {
		return nil, fmt.Errorf("read %s: the file is larger than %d bytes; use Open", name, maxOutput)
	}
	return b.Bytes(), nil
}

// Mkdir makes a directory in the sandbox; the one above it must be there.
func (sb *Sandbox) Mkdir(ctx context.Context, name string) error {
	return sb.withSession(ctx, func(id string) error {
		return sb.c.call(ctx, request{
			method: http.MethodPost, path: sessionPath(id) + "/fs/mkdir", query: sb.c.scope(""),
			json: map[string]string{"path": name},
		}, nil)
	})
}
