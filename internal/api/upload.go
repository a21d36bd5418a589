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

// A gzip bomb is a small upload that unpacks to a huge size. A file of zeros has such a
// ratio too, so the ratio is limited only beyond a size that every machine can handle.
const (
	bombFree  = 512 << 20 // unpacked bytes without a limit of the ratio
	bombRatio = 200       // beyond them, unpacked bytes for each byte of the upload
)

// upload reads the tar stream of an upload, with or without gzip, and limits its size. It
// keeps its first error, with a message for the client.
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

// openUpload detects gzip by the first bytes of r.
func openUpload(r io.Reader, limit int64) (*upload, error) {
	u := &upload{raw: countingReader{r: r}, limit: limit, free: bombFree}
	buffered := bufio.NewReaderSize(&u.raw, 64<<10)
	magic, err := buffered.Peek(2)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil, skerry.Invalid("", "the body is empty; send a tar archive, gzipped or not")
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
		err = skerry.Errorf(skerry.CodeTooLarge, "the upload must unpack to at most %d bytes", u.limit)
	case u.gz != nil && u.out > u.free && u.out/bombRatio > u.raw.n:
		err = skerry.Errorf(skerry.CodeTooLarge, "the upload must unpack to at most %d times its size", bombRatio)
	case err != nil && !errors.Is(err, io.EOF):
		err = uploadError(err)
	default:
		return n, err
	}
	u.err = err
	return 0, err
}

// Close releases the decompressor. It does not close the body of the request.
func (u *upload) Close() {
	if u.gz != nil {
		_ = u.gz.Close() // reports only what Read already has
	}
}

// uploadError returns the error for an upload that cannot be read.
func uploadError(err error) error {
	var known *skerry.Error
	var corrupt flate.CorruptInputError
	var timeout net.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, io.ErrUnexpectedEOF):
		return skerry.Errorf(skerry.CodeBadRequest, "the upload was cut short: %w", err)
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.As(err, &corrupt):
		return skerry.Errorf(skerry.CodeBadRequest, "the upload is not valid gzip: %w", err)
	case errors.As(err, &timeout) && timeout.Timeout():
		return skerry.Errorf(skerry.CodeBadRequest, "the upload stalled: %w", err)
	}
	return skerry.Errorf(skerry.CodeBadRequest, "the upload could not be read: %w", err)
}

// steadyReader reads the body of a request. It fails if nothing arrives for a time,
// and has no limit for all of the body.
type steadyReader struct {
	w     *response
	r     io.Reader
	stall time.Duration
	err   error
}

func (s *steadyReader) Read(p []byte) (int, error) {
	if s.w.severed.Load() {
		return 0, errRevoked
	}
	s.w.readWithin(s.stall)
	n, err := s.r.Read(p)
	if err != nil && s.w.severed.Load() {
		err = errRevoked
	}
	if errors.Is(err, io.EOF) {
		// The deadline belongs to the connection and must not outlive the body.
		s.w.readForever()
	}
	s.err = err
	return n, err
}

// Limits of what is read of a refused upload. Some clients read the response only after
// they have sent everything.
const (
	drainBytes = 64 << 20
	drainTime  = 5 * time.Second
)

// drain reads the rest of a refused upload, within limits. It keeps the deadline unless
// the body has ended, because net/http reads on before it sends the response.
func (s *steadyReader) drain() {
	if s.err != nil { // the body has ended or failed
		return
	}
	s.w.readWithin(drainTime)
	if _, err := io.CopyN(io.Discard, s.r, drainBytes); errors.Is(err, io.EOF) {
		s.w.readForever()
	}
}
