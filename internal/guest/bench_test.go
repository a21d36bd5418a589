package guest_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/skerry-dev/skerry/internal/guest"
)

func BenchmarkPing(b *testing.B) {
	_, c := start(b)
	ctx := b.Context()
	for b.Loop() {
		if err := c.Ping(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExecTrue(b *testing.B) {
	_, c := start(b)
	for b.Loop() {
		p, err := c.Start(b.Context(), guest.StartSpec{ID: "x", Name: "/bin/true"})
		if err != nil {
			b.Fatal(err)
		}
		if r, err := finish(b.Context(), p); err != nil || r.Code != 0 {
			b.Fatal(r.Code, err)
		}
	}
}

// benchSize is the number of bytes per operation.
const benchSize = 256 << 20

func BenchmarkOutput(b *testing.B) {
	_, c := start(b)
	b.SetBytes(benchSize)
	for b.Loop() {
		p, err := c.Start(b.Context(), guest.StartSpec{ID: "x", Name: "dd", Args: []string{"if=/dev/zero", "bs=256k", "count=1024", "status=none"}})
		if err != nil {
			b.Fatal(err)
		}
		var n int64
		for {
			chunk, err := p.Next(b.Context())
			if err == io.EOF {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			n += int64(len(chunk.Data))
			if err := p.Ack(chunk.Stream, chunk.End()); err != nil {
				b.Fatal(err)
			}
		}
		if n != benchSize {
			b.Fatalf("%d bytes", n)
		}
		p.Forget()
	}
}

func BenchmarkWriteTar(b *testing.B) {
	_, c := start(b)
	body := archive(b, entry{name: "big", content: string(make([]byte, benchSize))}).Bytes()
	b.SetBytes(benchSize)
	for b.Loop() {
		if err := c.WriteTar(b.Context(), "/tmp", bytes.NewReader(body)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadFile(b *testing.B) {
	_, c := start(b)
	sh(b, c, "head -c 268435456 /dev/zero > /tmp/big")
	b.SetBytes(benchSize)
	for b.Loop() {
		r, _, err := c.ReadFile(b.Context(), "/tmp", "big")
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); err != nil || n != benchSize {
			b.Fatal(n, err)
		}
		r.Close()
	}
}

func BenchmarkConnect(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		_, conn := boot(b)
		b.StartTimer()
		c, _, err := guest.Connect(b.Context(), conn, guest.Setup{Hostname: "box"})
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
