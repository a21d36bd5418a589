package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/skerry-dev/skerry"
)

// headerCwd is the header with the directory in which an upload is unpacked.
const headerCwd = "X-Cwd"

// copySize is the size of the buffer for a download.
const copySize = 256 << 10

func (s *Server) writeFiles(c *call) error {
	dir := c.r.Header.Get(headerCwd)
	if dir == "" {
		dir = skerry.WorkDir
	}
	if !validText(dir) {
		return skerry.Invalid("x-cwd", "must be valid UTF-8 without NUL characters")
	}
	ctx, leave, err := s.openContext(c)
	if err != nil {
		return err
	}
	defer leave()
	body := &steadyReader{w: c.w, r: c.r.Body, stall: s.stall}
	up, err := openUpload(body, s.maxUpload)
	if err == nil {
		err = s.service.WriteFiles(ctx, c.scope, c.path("session"), dir, up)
		// Read to the end of the upload: gzip has its checksum there.
		if err == nil {
			_, err = io.Copy(io.Discard, up)
		}
		if err != nil && revoked(ctx) {
			err = errRevoked
		}
		// If reading the body failed, that is the cause of the service's error.
		if up.err != nil {
			err = up.err
		}
		up.Close()
	}
	if err != nil {
		body.drain()
		return err
	}
	return c.reply(emptyResponse{})
}

func (s *Server) readFile(c *call) error {
	var req readRequest
	if err := c.body(&req); err != nil {
		return err
	}
	ctx, leave, err := s.openContext(c)
	if err != nil {
		return err
	}
	defer leave()
	file, err := s.service.ReadFile(ctx, c.scope, c.path("session"), req.Cwd, req.Path)
	if err != nil {
		return err
	}
	err = s.sendFile(ctx, c, file)
	if closeErr := file.Close(); err == nil && closeErr != nil {
		c.log.Debug("closing a file that was read", "err", closeErr)
	}
	return err
}

// sendFile streams a file. An error after the beginning cuts the connection, so that
// the client does not take a part for the whole file.
func (s *Server) sendFile(ctx context.Context, c *call, file io.Reader) error {
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if sized, ok := file.(Sizer); ok && sized.Size() >= 0 {
		h.Set("Content-Length", strconv.FormatInt(sized.Size(), 10))
	}
	buf := make([]byte, copySize)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := file.Read(buf)
		if n > 0 {
			if _, err := c.w.Write(buf[:n]); err != nil {
				return fmt.Errorf("send a file: %w", err)
			}
		}
		switch {
		case err == io.EOF:
			if !c.w.begun() {
				c.w.WriteHeader(http.StatusOK)
			}
			return nil
		case err != nil:
			return fmt.Errorf("read a file: %w", err)
		}
	}
}

func (s *Server) makeDir(c *call) error {
	var req mkdirRequest
	if err := c.body(&req); err != nil {
		return err
	}
	if err := s.service.MakeDir(c.r.Context(), c.scope, c.path("session"), req.Cwd, req.Path, req.Recursive); err != nil {
		return err
	}
	return c.reply(emptyResponse{})
}
