package hello

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

// capture returns what a client of crypto/tls sends first.
func capture(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tls.Client(client, cfg).HandshakeContext(ctx)
		client.Close()
	}()
	var b []byte
	buf := make([]byte, 4096)
	for {
		n, err := server.Read(buf)
		b = append(b, buf[:n]...)
		if _, perr := Parse(b); !errors.Is(perr, ErrIncomplete) || err != nil {
			break
		}
	}
	cancel()
	<-done
	return b
}

// split puts the message of a ClientHello into records of n bytes.
func split(hello []byte, n int) (out []byte) {
	for part := range slices.Chunk(hello[recordHeader:], n) {
		out = append(out, recordHandshake, 3, 1)
		out = binary.BigEndian.AppendUint16(out, uint16(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestParseClientHello(t *testing.T) {
	b := capture(t, &tls.Config{ServerName: "api.example.com", NextProtos: []string{"h2", "http/1.1"}})
	for _, n := range []int{len(b)/maxRecords + 1, 100, len(b)} {
		pieces := split(b, n)
		h, err := Parse(pieces)
		if err != nil || h.ServerName != "api.example.com" || !slices.Equal(h.ALPN, []string{"h2", "http/1.1"}) || h.ECH {
			t.Fatalf("in records of %d bytes: %+v, %v", n, h, err)
		}
		for i := range pieces {
			if _, err := Parse(pieces[:i]); !errors.Is(err, ErrIncomplete) {
				t.Fatalf("records of %d bytes, %d of them: %v", n, i, err)
			}
		}
	}
}

func TestParseWithoutName(t *testing.T) {
	b := capture(t, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	if h, err := Parse(b); err != nil || h.ServerName != "" {
		t.Fatalf("%+v, %v", h, err)
	}
}

// clientHello builds one with these extensions.
func clientHello(extensions ...[]byte) []byte {
	ext := bytes.Join(extensions, nil)
	msg := append([]byte{3, 3}, make([]byte, 32)...)
	msg = append(msg, 0, 0, 2, 0x13, 0x01, 1, 0)
	msg = binary.BigEndian.AppendUint16(msg, uint16(len(ext)))
	msg = append(msg, ext...)
	msg = append([]byte{typeClientHello, 0, byte(len(msg) >> 8), byte(len(msg))}, msg...)
	return split(append(make([]byte, recordHeader), msg...), maxRecord)
}

func extension(kind int, body ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(kind))
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

func nameEntry(kind byte, name string) []byte {
	return append([]byte{kind, byte(len(name) >> 8), byte(len(name))}, name...)
}

func nameList(entries ...[]byte) []byte {
	all := bytes.Join(entries, nil)
	return extension(extServerName, append([]byte{byte(len(all) >> 8), byte(len(all))}, all...)...)
}

func TestParseRefuses(t *testing.T) {
	a, b := nameEntry(0, "a.example.com"), nameEntry(0, "b.example.com")
	if h, err := Parse(clientHello(nameList(a), extension(extECH, 0))); err != nil || !h.ECH || h.ServerName != "a.example.com" {
		t.Errorf("ECH: %+v, %v", h, err)
	}
	whole := clientHello(nameList(a))
	for what, in := range map[string][]byte{
		"two names":               clientHello(nameList(a, b)),
		"two name extensions":     clientHello(nameList(a), nameList(b)),
		"a name of another kind":  clientHello(nameList(nameEntry(1, "a.example.com"))),
		"an empty name":           clientHello(nameList(nameEntry(0, ""))),
		"an empty list":           clientHello(nameList()),
		"bytes after the list":    clientHello(extension(extServerName, 0, 4, 0, 0, 1, 'a', 'x')),
		"HTTP":                    []byte("GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n"),
		"SSLv2":                   {0x80, 0x2e, 1, 3, 1},
		"an alert":                {21, 3, 1, 0, 2, 1, 0},
		"a ServerHello":           {22, 3, 1, 0, 4, 2, 0, 0, 0},
		"an empty record":         {22, 3, 1, 0, 0},
		"a record too long":       {22, 3, 1, 0xff, 0xff},
		"a message too long":      {22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff},
		"too many small records":  bytes.Repeat(append([]byte{22, 3, 1, 0, 1}, 1), MaxBytes),
		"rest in the same record": append([]byte{22, 3, 1, 0, byte(len(whole) - 5 + 4)}, append(bytes.Clone(whole[5:]), 1, 0, 0, 0)...),
	} {
		if h, err := Parse(in); err == nil || errors.Is(err, ErrIncomplete) {
			t.Errorf("%s: %+v, %v", what, h, err)
		}
	}
}

func TestParseIsBounded(t *testing.T) {
	huge := clientHello(nameList(nameEntry(0, "a.example.com")), extension(21, make([]byte, 15_000)...))
	if _, err := Parse(huge); err != nil {
		t.Errorf("15 kB of padding: %v", err)
	}
	claim := []byte{22, 3, 1, 0x40, 0, 1, 0, 0x7f, 0xff}
	claim = append(claim, make([]byte, 16380)...)
	b := append(bytes.Clone(claim), []byte{22, 3, 1, 0x40, 0}...)
	b = append(b, make([]byte, MaxBytes)...)
	if _, err := Parse(b); !errors.Is(err, ErrTooLong) {
		t.Errorf("one that never ends: %v", err)
	}
}

// recorded is a connection that has sent all it will.
type recorded struct {
	net.Conn
	io.Reader
}

func (r recorded) Read(b []byte) (int, error)  { return r.Reader.Read(b) }
func (r recorded) Write(b []byte) (int, error) { return len(b), nil }
func (r recorded) Close() error                { return nil }

// FuzzParse compares with crypto/tls: what it takes for a name we must not take
// for another.
func FuzzParse(f *testing.F) {
	f.Add(capture(f, &tls.Config{ServerName: "api.example.com", NextProtos: []string{"h2"}}))
	f.Add(split(capture(f, &tls.Config{ServerName: "a.example.com", MaxVersion: tls.VersionTLS12}), 9))
	f.Add(clientHello(nameList(nameEntry(0, "a.example.com")), extension(extECH, 0)))
	f.Add(clientHello(nameList(nameEntry(0, "a")), extension(extALPN, 0, 3, 2, 'h', '2')))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Parse(b)
		if err != nil {
			return
		}
		var name *string
		var alpn []string
		stop := errors.New("seen")
		tls.Server(recorded{Reader: bytes.NewReader(b)}, &tls.Config{
			GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
				n := info.ServerName
				name, alpn = &n, info.SupportedProtos
				return nil, stop
			},
		}).Handshake()
		if name == nil {
			return // crypto/tls refuses more
		}
		// It leaves out a final dot and refuses names with one, as RFC 6066 wants.
		if *name != strings.TrimSuffix(h.ServerName, ".") {
			t.Fatalf("we read %q, crypto/tls %q", h.ServerName, *name)
		}
		if !slices.Equal(alpn, h.ALPN) {
			t.Fatalf("we read %q, crypto/tls %q", h.ALPN, alpn)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	in := capture(b, &tls.Config{ServerName: "api.example.com", NextProtos: []string{"h2", "http/1.1"}})
	for b.Loop() {
		if _, err := Parse(in); err != nil {
			b.Fatal(err)
		}
	}
}
