package export

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"google.golang.org/protobuf/proto"
)

// Client posts messages to a collector (OTLP over HTTP).
type Client struct {
	cfg       Config
	transport *http.Transport
	http      *http.Client
}

// NewClient returns a client for a configuration.
func NewClient(cfg Config) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxConnsPerHost = 2
	if cfg.TLS != nil {
		transport.TLSClientConfig = cfg.TLS
	}
	return &Client{cfg: cfg, transport: transport, http: &http.Client{
		Transport: transport, Timeout: cfg.Timeout,
		// The headers are for the one collector.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close closes the connections that are idle.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// StatusError is a collector's answer that it did not take a message.
type StatusError int

func (e StatusError) Error() string { return fmt.Sprintf("it answers %d", int(e)) }

// maxAnswer is the maximum number of bytes read of a collector's answer.
const maxAnswer = 64 << 10

// Post sends a message.
func (c *Client) Post(ctx context.Context, m proto.Message) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if c.cfg.Gzip {
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		if _, err := w.Write(body); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		body = packed.Bytes()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.cfg.Endpoint, bytes.NewReader(body))
	if err != nil {
		return err
	}
	for name, value := range c.cfg.Headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	if c.cfg.Gzip {
		req.Header.Set("Content-Encoding", "gzip")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the log has the URL already
		}
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer) // so that the connection can be used again
	if resp.StatusCode/100 != 2 {
		return StatusError(resp.StatusCode)
	}
	return nil
}
