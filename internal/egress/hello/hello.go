// Package hello reads the ClientHello of a TLS connection (RFC 8446, RFC 5246):
// the one thing of a connection that is not encrypted and says where it goes.
//
// It comes from a sandbox and decides what that may reach, so it is read
// strictly: what two readers could understand differently (an extension that is
// there twice, a second name, bytes that are left over) is an error.
package hello

import (
	"encoding/binary"
	"errors"
	"slices"
)

// MaxBytes is how long a ClientHello may be, with the headers of its records.
// Real ones have up to 2 KiB, or some more with post-quantum keys and tickets.
const MaxBytes = 32 << 10

// Hello is what a ClientHello says.
type Hello struct {
	// ServerName is the name in it as it was sent, empty if there is none.
	ServerName string
	// ECH tells that there is an encrypted ClientHello inside, so that ServerName
	// is not the one that counts. Some browsers always pretend so.
	ECH bool
	// ALPN has the protocols that are offered.
	ALPN []string
}

var (
	// ErrIncomplete means that what was read so far is the beginning of a
	// ClientHello.
	ErrIncomplete = errors.New("incomplete ClientHello")
	// ErrNotTLS means that it is something else.
	ErrNotTLS = errors.New("no TLS")
	// ErrTooLong means that it goes beyond MaxBytes.
	ErrTooLong = errors.New("ClientHello too long")

	errMalformed = errors.New("malformed ClientHello")
)

const (
	recordHandshake = 22
	recordHeader    = 5
	maxRecord       = 1 << 14
	// maxRecords bounds the work that a ClientHello in tiny pieces makes.
	maxRecords       = 256
	typeClientHello  = 1
	handshakeHeader  = 4
	extServerName    = 0
	extALPN          = 16
	extECH           = 0xfe0d
	maxExtensions    = 256
	maxALPNProtocols = 64
)

// Parse reads a ClientHello from the beginning of b, the first bytes of a
// connection. It keeps nothing of b.
func Parse(b []byte) (*Hello, error) {
	if len(b) > MaxBytes {
		b = b[:MaxBytes]
	}
	msg, err := message(b)
	if err == ErrIncomplete && len(b) == MaxBytes {
		err = ErrTooLong
	}
	if err != nil {
		return nil, err
	}
	return parseMessage(msg)
}

// message puts the ClientHello together from its records, without its header.
func message(b []byte) ([]byte, error) {
	var msg []byte
	for n := range maxRecords {
		body, rest, err := record(b)
		if err != nil {
			return nil, err
		}
		b = rest
		if n == 0 {
			msg = slices.Clip(body) // one record is the usual case
		} else {
			msg = append(msg, body...)
		}
		if msg[0] != typeClientHello {
			return nil, ErrNotTLS
		}
		if len(msg) < handshakeHeader {
			continue
		}
		size := int(msg[1])<<16 | int(msg[2])<<8 | int(msg[3])
		switch have := len(msg) - handshakeHeader; {
		case size > MaxBytes:
			return nil, ErrTooLong
		case have == size:
			return msg[handshakeHeader:], nil
		case have > size: // nothing may follow before the server's answer
			return nil, errMalformed
		}
	}
	return nil, errMalformed
}

// record returns the first record's content.
func record(b []byte) (body, rest []byte, err error) {
	for i, ok := range [...]func(byte) bool{
		func(c byte) bool { return c == recordHandshake },
		func(c byte) bool { return c == 3 },
		func(c byte) bool { return c <= 4 },
	} {
		if i == len(b) {
			return nil, nil, ErrIncomplete
		}
		if !ok(b[i]) {
			return nil, nil, ErrNotTLS
		}
	}
	if len(b) < recordHeader {
		return nil, nil, ErrIncomplete
	}
	size := int(binary.BigEndian.Uint16(b[3:]))
	if size == 0 || size > maxRecord {
		return nil, nil, errMalformed
	}
	if len(b) < recordHeader+size {
		return nil, nil, ErrIncomplete
	}
	return b[recordHeader : recordHeader+size], b[recordHeader+size:], nil
}

// cursor reads fields; after one that is not all there it is bad.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) number(bytes int) (n int) {
	for _, v := range c.take(bytes) {
		n = n<<8 | int(v)
	}
	return n
}

// vector reads a field that begins with its length.
func (c *cursor) vector(lengthBytes int) *cursor {
	return &cursor{b: c.take(c.number(lengthBytes)), bad: c.bad}
}

func (c *cursor) done() bool { return c.bad || len(c.b) == 0 }

func parseMessage(msg []byte) (*Hello, error) {
	c := &cursor{b: msg}
	version := c.number(2)
	c.take(32) // random
	session := c.vector(1)
	suites := c.vector(2)
	compressions := c.vector(1)
	h := &Hello{}
	if c.bad || version>>8 != 3 || len(session.b) > 32 || len(suites.b) == 0 || len(suites.b)%2 != 0 || len(compressions.b) == 0 {
		return nil, errMalformed
	}
	if len(c.b) == 0 { // extensions are optional before TLS 1.3
		return h, nil
	}
	extensions := c.vector(2)
	if c.bad || len(c.b) > 0 {
		return nil, errMalformed
	}
	return h, h.readExtensions(extensions)
}

func (h *Hello) readExtensions(c *cursor) error {
	seen := make([]int, 0, 32)
	for !c.done() {
		kind := c.number(2)
		body := c.vector(2)
		if c.bad || len(seen) == maxExtensions || slices.Contains(seen, kind) {
			return errMalformed
		}
		seen = append(seen, kind)
		ok := true
		switch kind {
		case extServerName:
			ok = h.readServerName(body)
		case extALPN:
			ok = h.readALPN(body)
		case extECH:
			h.ECH = true
		}
		if !ok {
			return errMalformed
		}
	}
	if c.bad {
		return errMalformed
	}
	return nil
}

// readServerName wants a list of exactly one host name.
func (h *Hello) readServerName(c *cursor) bool {
	list := c.vector(2)
	kind := list.number(1)
	name := list.vector(2)
	if list.bad || len(list.b) > 0 || len(c.b) > 0 || kind != 0 || len(name.b) == 0 {
		return false
	}
	h.ServerName = string(name.b)
	return true
}

func (h *Hello) readALPN(c *cursor) bool {
	list := c.vector(2)
	for !list.done() {
		p := list.vector(1)
		if list.bad || len(p.b) == 0 || len(h.ALPN) == maxALPNProtocols {
			return false
		}
		h.ALPN = append(h.ALPN, string(p.b))
	}
	return !list.bad && len(c.b) == 0 && len(h.ALPN) > 0
}
