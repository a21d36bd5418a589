package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

const (
	// maxTries, firstPause and maxRetryAfter are those of the public clients.
	maxTries      = 3
	firstPause    = 400 * time.Millisecond
	maxRetryAfter = 20 * time.Second
	// maxBody bounds a JSON response; a page of 100 sandboxes with all their
	// tags is some hundred kilobytes.
	maxBody = 16 << 20
)

// request is one call of the API.
type request struct {
	method string
	path   string
	query  url.Values
	// json is the body, or body makes it anew for each try.
	json any
	body func() (io.ReadCloser, error)
	// length of the body when it is known; else it is sent in chunks.
	length int64
	// header holds what is not the same in every request.
	header http.Header
	// repeatable calls do no harm when they happen twice. GET and DELETE are
	// always taken for such.
	repeatable bool
	// once forbids every other try: the body can be read a single time.
	once bool
}

// call makes a request and decodes its JSON answer into out, if not nil.
func (c *Client) call(ctx context.Context, r request, out any) error {
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
		return err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", r.method, r.path, err)
	}
	if len(b) > maxBody {
		return fmt.Errorf("%s %s: the answer is longer than %d bytes", r.method, r.path, maxBody)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: the answer is not what a Skerry server sends: %w", r.method, r.path, err)
	}
	return nil
}

// send makes a request, again when that may help, and returns the answer if
// it is a success. The caller closes its body.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	if r.json != nil {
		b, err := json.Marshal(r.json)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", r.method, r.path, err)
		}
		r.length = int64(len(b))
		r.body = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	}
	repeatable := r.repeatable || r.method == http.MethodGet || r.method == http.MethodDelete
	for try := 1; ; try++ {
		resp, err := c.sendOnce(ctx, r)
		if err != nil {
			if ctx.Err() != nil || !repeatable || r.once || try == maxTries || !mayPass(err) {
				return nil, err
			}
			if err := pause(ctx, backoff(try)); err != nil {
				return nil, err
			}
			continue
		}
		if resp.StatusCode < 300 {
			return resp, nil
		}
		failure := readError(resp)
		resp.Body.Close()
		wait, again := retryAfter(resp, try, repeatable)
		if !again || r.once || try == maxTries {
			return nil, failure
		}
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

func (c *Client) sendOnce(ctx context.Context, r request) (*http.Response, error) {
	u := *c.base
	u.Path, u.RawPath = "", ""
	target := u.String() + c.base.EscapedPath() + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	var body io.ReadCloser
	if r.body != nil {
		var err error
		if body, err = r.body(); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		if body != nil {
			body.Close()
		}
		return nil, err
	}
	if r.length > 0 {
		req.ContentLength = r.length
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if r.json != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	req.Header.Set("User-Agent", c.userAgent)
	return c.http.Do(req)
}

// mayPass reports whether a failure to get any answer is worth another try. A
// refused connection is not: no server listens, and a person waits to hear it.
func mayPass(err error) bool {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return false
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return false
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// retryAfter says whether an answer invites another try, and when.
func retryAfter(resp *http.Response, try int, repeatable bool) (time.Duration, bool) {
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
		seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil || seconds <= 0 {
			return backoff(try), true
		}
		wait := time.Duration(min(seconds, 3600)) * time.Second
		return wait, wait <= maxRetryAfter
	case resp.StatusCode == http.StatusNotImplemented:
		return 0, false
	case resp.StatusCode >= 500:
		return backoff(try), repeatable
	}
	return 0, false
}

// backoff returns the pause after the try-th attempt: it doubles each time,
// and up to as much again is added at random so that many clients spread out.
func backoff(try int) time.Duration {
	base := firstPause << (try - 1)
	return base + rand.N(base)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
