package ingress

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

// duplexBody is the body of an HTTP/1 request whose sandbox may answer while it
// comes.
type duplexBody struct {
	io.ReadCloser
	whole atomic.Bool
}

// duplex lets the answer be sent before the body has come. net/http would
// otherwise take what is left of the body first. In return it does not look
// any more whether a body that nobody read to its end has a proper end, and
// would take the bytes behind a broken one for the next request: see settle.
func duplex(w http.ResponseWriter, r *http.Request) *duplexBody {
	_ = http.NewResponseController(w).EnableFullDuplex() // always there in HTTP/1
	b := &duplexBody{ReadCloser: r.Body}
	r.Body = b
	return b
}

// Read implements io.Reader.
func (b *duplexBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.whole.Store(true)
	}
	return n, err
}

// settle has the connection take no other request unless the body came whole.
func (b *duplexBody) settle(c *clientConn) {
	if c != nil && !b.whole.Load() {
		c.spent.Store(true)
	}
}
