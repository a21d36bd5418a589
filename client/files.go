package client

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip" // faster than the standard library's, many times if data does not compress

	"github.com/skerry-dev/skerry"
)

// workDir returns the directory that relative paths in the sandbox start from.
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

// WriteFile writes data to a file in the sandbox with the given permissions, and
// creates missing parent directories. A relative name starts at the working
// directory.
func (sb *Sandbox) WriteFile(ctx context.Context, name string, data []byte, perm fs.FileMode) error {
	return sb.upload(ctx, func(tw *tar.Writer) error {
		err := tw.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: entryName(sb.abs(name)), Size: int64(len(data)), Mode: int64(perm.Perm()),
		})
		if err != nil {
			return err
		}
		_, err = tw.Write(data)
		return err
	})
}

// WriteFiles writes the regular files, directories and symbolic links of fsys into
// a directory in the sandbox, with their permissions.
func (sb *Sandbox) WriteFiles(ctx context.Context, dir string, fsys fs.FS) error {
	return sb.upload(ctx, func(tw *tar.Writer) error {
		return newPack(tw, fsys).tree(ctx, entryName(sb.abs(dir)))
	})
}

// WriteTar extracts an uncompressed tar stream into a directory in the sandbox. The
// stream can be read only once, so WriteTar does not resume a stopped sandbox: call
// [Sandbox.Resume] first if it may have stopped.
func (sb *Sandbox) WriteTar(ctx context.Context, dir string, r io.Reader) error {
	send := func(zw io.Writer) error { _, err := io.Copy(zw, r); return err }
	return sb.post(ctx, sb.Session().ID, sb.abs(dir), send, true)
}

// entryName returns the name of an absolute path in a tar stream that is extracted at
// the root.
func entryName(abs string) string {
	if name := strings.TrimPrefix(abs, "/"); name != "" {
		return name
	}
	return "."
}

// upload extracts the tar stream that write writes at the root of the sandbox. write may
// be called again for a retry.
func (sb *Sandbox) upload(ctx context.Context, write func(*tar.Writer) error) error {
	send := func(zw io.Writer) error {
		tw := tar.NewWriter(zw)
		if err := write(tw); err != nil {
			return err
		}
		return tw.Close()
	}
	return sb.withSession(ctx, func(id string) error { return sb.post(ctx, id, "/", send, false) })
}

// post streams what send writes to the server, compressed unless the server is on this
// machine.
func (sb *Sandbox) post(ctx context.Context, sessionID, dir string, send func(io.Writer) error, once bool) error {
	kind, whole := "application/x-tar", send
	if !isLoopback(sb.c.base.Hostname()) {
		kind, whole = "application/gzip", compressed(send)
	}
	var last *uploadBody
	err := sb.c.call(ctx, request{
		method: http.MethodPost, path: sessionPath(sessionID) + "/fs/write", query: sb.c.scope(""),
		header: http.Header{"Content-Type": {kind}, "X-Cwd": {dir}},
		body: func() (io.ReadCloser, error) {
			if last != nil {
				last.wait()
			}
			last = newUploadBody(whole)
			return last, nil
		},
		repeatable: true, once: once,
	}, nil)
	if last == nil {
		return err
	}
	// An error on this side is the cause of the error of the request.
	if cause := last.wait(); err != nil && cause != nil && !errors.Is(cause, io.ErrClosedPipe) {
		return cause
	}
	return err
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// compressed compresses what send writes.
func compressed(send func(io.Writer) error) func(io.Writer) error {
	return func(w io.Writer) error {
		// The network is usually faster than better levels.
		zw, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err != nil {
			return err
		}
		if err := send(zw); err != nil {
			return err
		}
		return zw.Close()
	}
}

// uploadBuffer is how much is sent at once. A tar stream is written in small pieces.
const uploadBuffer = 128 << 10

// uploadBody is a request body that is written by its own goroutine. wait ends the
// goroutine and returns its error. It must be called.
type uploadBody struct {
	*io.PipeReader
	done chan struct{}
	err  error
}

func newUploadBody(send func(io.Writer) error) *uploadBody {
	pr, pw := io.Pipe()
	b := &uploadBody{PipeReader: pr, done: make(chan struct{})}
	go func() {
		defer close(b.done)
		w := bufio.NewWriterSize(pw, uploadBuffer)
		err := send(w)
		if err == nil {
			err = w.Flush()
		}
		b.err = err
		pw.CloseWithError(err) // nil is io.EOF
	}()
	return b
}

func (b *uploadBody) wait() error {
	b.PipeReader.Close() // the rest is not needed
	<-b.done
	return b.err
}

// Open returns a file in the sandbox for reading. The caller must close it. If the
// file does not exist, [IsNotFound] reports true for the error.
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
	most := int64(sb.c.maxOutput)
	if n, err := b.ReadFrom(io.LimitReader(f, most+1)); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	} else if n > most {
		return nil, fmt.Errorf("read %s: the file is larger than %d bytes; use Open", name, most)
	}
	return b.Bytes(), nil
}

// Mkdir creates a directory in the sandbox. Its parent must exist.
func (sb *Sandbox) Mkdir(ctx context.Context, name string) error {
	return sb.withSession(ctx, func(id string) error {
		return sb.c.call(ctx, request{
			method: http.MethodPost, path: sessionPath(id) + "/fs/mkdir", query: sb.c.scope(""),
			json: map[string]string{"path": name},
		}, nil)
	})
}
