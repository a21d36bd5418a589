package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/skerry-dev/skerry"
)

// headerCwd says where an upload is unpacked.
const headerCwd = "X-Cwd"

// copySize is how much of a file is in memory at a time.
const copySize = 256 << 10

func (s *Server) writeFiles(c *call) error {
	dir := c.r.Header.Get(headerCwd)
	switch {
	case dir == "":
		dir = skerry.WorkDir
	case len(dir) > skerry.MaxPathLength || !validText(dir):
		return skerry.Invalid("x-cwd", "is not a path or longer than %d bytes", skerry.MaxPathLength)
	}
	leave, err := s.open.enter(c.scope.ProjectID)
	if err != nil {
		return err
	}
	defer leave()
	body := &steadyReader{w: c.w, r: c.r.Body, stall: s.stall}
	up, err := openUpload(body, s.maxUpload)
	if err == nil {
		err = s.service.WriteFiles(c.r.Context(), c.scope, c.path("session"), dir, up)
		// What follows the end of the archive still belongs to the upload:
		// only there does gzip say whether all of it arrived intact.
		if err == nil {
			_, err = io.Copy(io.Discard, up)
		}
		// When reading failed, the service could only report the symptom.
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
	if err := checkPath(req.Path, req.Cwd); err != nil {
		return err
	}
	leave, err := s.open.enter(c.scope.ProjectID)
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	file, err := s.service.ReadFile(ctx, c.scope, c.path("session"), req.Cwd, req.Path)
	if err != nil {
		return err
	}
	err = s.sendFile(c, file)
	if closeErr := file.Close(); err == nil && closeErr != nil {
		c.log.Debug("closing a file that was read", "err", closeErr)
	}
	return err
}

// sendFile streams a file. Once it has begun, an error cuts the connection, so
// that the client cannot take a part for the whole.
func (s *Server) sendFile(c *call, file io.Reader) error {
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if sized, ok := file.(Sizer); ok {
		h.Set("Content-Length", strconv.FormatInt(sized.Size(), 10))
	}
	buf := make([]byte, copySize)
	for {
		n, err := file.Read(buf)
		if n > 0 {
			if _, err := c.w.Write(buf[:n]); err != nil {
				return fmt.Errorf("sending a file: %w", err)
			}
		}
		switch {
		case err == io.EOF:
			if !c.w.begun() {
				c.w.WriteHeader(http.StatusOK)
			}
			return nil
		case err != nil:
			return fmt.Errorf("reading a file: %w", err)
		}
	}
}

func (s *Server) makeDir(c *call) error {
	var req mkdirRequest
	if err := c.body(&req); err != nil {
		return err
	}
	if err := checkPath(req.Path, req.Cwd); err != nil {
		return err
	}
	if err := s.service.MakeDir(c.r.Context(), c.scope, c.path("session"), req.Cwd, req.Path, req.Recursive); err != nil {
		return err
	}
	return c.reply(emptyResponse{})
}

func checkPath(path, cwd string) error {
	switch {
	case path == "":
		return skerry.Invalid("path", "must not be empty")
	case len(path) > skerry.MaxPathLength:
		return skerry.Invalid("path", "is longer than %d bytes", skerry.MaxPathLength)
	case len(cwd) > skerry.MaxPathLength:
		return skerry.Invalid("cwd", "is longer than %d bytes", skerry.MaxPathLength)
	}
	return nil
}
