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
	// maxTries, firstPause and maxRetryAfter are as in the public clients.
	maxTries      = 3
	firstPause    = 400 * time.Millisecond
	maxRetryAfter = 20 * time.Second
	// maxBody limits a JSON response. A page of MaxPageSize sandboxes can have 28 MiB of
	// tags and network policies (MaxTags, MaxPolicyBytes), and escapes make text longer.
	maxBody = 64 << 20
)

// request is one call of the API.
type request struct {
	method string
	path   string
	query  url.Values
	// json is the body, or body returns it, for each attempt anew.
	json any
	body func() (io.ReadCloser, error)
	// length is the length of the body, if it is known. Otherwise it is sent in chunks.
	length int64
	// header has the headers that are not the same in all requests.
	header http.Header
	// repeatable is set for calls that can be repeated without harm. GET and DELETE
	// always can.
	repeatable bool
	// once forbids retries, because the body can be read only once.
	once bool
}

func (r *request) mayRepeat() bool {
	return (r.repeatable || r.method == http.MethodGet || r.method == http.MethodDelete) && !r.once
}

// call sends a request and decodes the JSON response into out, unless out is nil. A
// repeatable call is repeated if the response breaks off.
func (c *Client) call(ctx context.Context, r request, out any) error {
	for try := 1; ; try++ {
		b, err := c.answer(ctx, r)
		if broken, ok := errors.AsType[brokenError](err); ok && r.mayRepeat() && try < maxTries && ctx.Err() == nil && mayPass(broken) {
			if err := pause(ctx, backoff(try)); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		return r.decode(b, out)
	}
}

// brokenError is the error of a response that broke off.
type brokenError struct{ error }

func (e brokenError) Unwrap() error { return e.error }

// answer sends a request and reads the whole response.
func (c *Client) answer(ctx context.Context, r request) ([]byte, error) {
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, brokenError{fmt.Errorf("%s %s: read the response: %w", r.method, r.path, err)}
	}
	if len(b) > maxBody {
		return nil, fmt.Errorf("%s %s: the response is longer than %d bytes", r.method, r.path, maxBody)
	}
	return b, lateError(resp, b)
}

func (r *request) decode(b []byte, out any) error {
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: the response is not from a Skerry server: %w", r.method, r.path, err)
	}
	return nil
}

// send sends a request, with retries, and returns a successful response. The caller
// closes its body.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	if r.json != nil {
		b, err := json.Marshal(r.json)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", r.method, r.path, err)
		}
		r.length = int64(len(b))
		r.body = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	}
	repeatable := r.mayRepeat()
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

func (c *Client) sendOnce(parent context.Context, r request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(parent)
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
			cancel(err)
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		if body != nil {
			body.Close()
		}
		cancel(err)
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
	req.Header.Set(headerHeartbeat, "1")
	resp, err := c.http.Do(req)
	if err != nil {
		cancel(err)
		return nil, err
	}
	resp.Body = &watched{ReadCloser: resp.Body, most: maxSilence(resp), cancel: cancel}
	return resp, nil
}

// mayPass reports whether a request without a response should be retried. A refused
// connection should not: no server is running, and the user waits for this message.
func mayPass(err error) bool {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return false
	}
	if errors.Is(err, errSilent) {
		return true
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return false
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// retryAfter reports whether a response allows a retry, and after which pause.
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

// backoff returns the pause after an attempt. It doubles each time. Up to the same time
// is added at random, so that many clients do not retry at once.
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
