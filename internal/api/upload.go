package api

import (
	"bufio"
	"compress/flate"
	"errors"
	"io"
	"net"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/skerry-dev/skerry"
)

// A gzip bomb is a small upload that unpacks to much more than an honest one
// would. Honest ones reach the factor too, a file of zeros does, so it counts
// only beyond a size that any machine takes in its stride.
const (
	bombFree  = 512 << 20 // bytes that may unpack at any ratio
	bombRatio = 200       // beyond them, bytes out for each byte in
)

// upload reads the tar stream of an upload, which is gzipped or not, within
// bounds. It remembers why it failed, in terms that the client understands.
type upload struct {
	raw   countingReader
	plain io.Reader
	gz    *gzip.Reader
	out   int64
	limit int64
	free  int64 // bombFree
	err   error
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// openUpload looks at the first bytes of r to tell gzip from plain tar.
func openUpload(r io.Reader, limit int64) (*upload, error) {
	u := &upload{raw: countingReader{r: r}, limit: limit, free: bombFree}
	buffered := bufio.NewReaderSize(&u.raw, 64<<10)
	magic, err := buffered.Peek(2)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil, skerry.Invalid("", "the body is empty; a tar archive, gzipped or not, is needed")
		}
		return nil, uploadError(err)
	}
	if magic[0] != 0x1f || magic[1] != 0x8b {
		u.plain = buffered
		return u, nil
	}
	if u.gz, err = gzip.NewReader(buffered); err != nil {
		return nil, uploadError(err)
	}
	u.plain = u.gz
	return u, nil
}

func (u *upload) Read(p []byte) (int, error) {
	if u.err != nil {
		return 0, u.err
	}
	n, err := u.plain.Read(p)
	u.out += int64(n)
	switch {
	case u.out > u.limit:
		err = skerry.Errorf(skerry.CodeTooLarge, "the upload unpacks to more than %d bytes", u.limit)
	case u.gz != nil && u.out > u.free && u.out/bombRatio > u.raw.n:
		err = skerry.Errorf(skerry.CodeTooLarge, "the upload unpacks to more than %d times its size", bombRatio)
	case err != nil && !errors.Is(err, io.EOF):
		err = uploadError(err)
	default:
		return n, err
	}
	u.err = err
	return 0, err
}

// Close gives back the decompressor; the request's body is its owner's.
func (u *upload) Close() {
	if u.gz != nil {
		_ = u.gz.Close() // reports only what Read already has
	}
}

// uploadError says what is wrong with an upload that cannot be read.
func uploadError(err error) error {
	var known *skerry.Error
	var corrupt flate.CorruptInputError
	var timeout net.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, io.ErrUnexpectedEOF):
		return skerry.Errorf(skerry.CodeBadRequest, "the upload is cut short: %w", err)
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.As(err, &corrupt):
		return skerry.Errorf(skerry.CodeBadRequest, "the upload is not valid gzip: %w", err)
	case errors.As(err, &timeout) && timeout.Timeout():
		return skerry.Errorf(skerry.CodeBadRequest, "the upload stalled: %w", err)
	}
	return skerry.Errorf(skerry.CodeBadRequest, "the upload could not be read: %w", err)
}

// steadyReader reads a request's body, however long it takes, as long as it
// keeps coming.
type steadyReader struct {
	w     *response
	r     io.Reader
	stall time.Duration
	err   error
}

func (s *steadyReader) Read(p []byte) (int, error) {
	s.w.readWithin(s.stall)
	n, err := s.r.Read(p)
	if errors.Is(err, io.EOF) {
		// The deadline is on the connection and must not outlive the body.
		s.w.readForever()
	}
	s.err = err
	return n, err
}

// What is read of an upload that was refused, so that a client that sends all
// of it before it reads an answer gets to read this one.
const (
	drainBytes = 64 << 20
	drainTime  = 5 * time.Second
)

// drain leaves the deadline as it is unless the body has ended: net/http reads
// on before it sends the answer.
func (s *steadyReader) drain() {
	if s.err != nil { // there is no more of it, or it does not come
		return
	}
	s.w.readWithin(drainTime)
	if _, err := io.CopyN(io.Discard, s.r, drainBytes); errors.Is(err, io.EOF) {
		s.w.readForever()
	}
}
