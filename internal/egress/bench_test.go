package egress

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// BenchmarkThroughput compares, downloads and uploads through veth: routed and
// masqueraded by the kernel alone, passed by its name, and with TLS ended.
func BenchmarkThroughput(b *testing.B) {
	newRig(b, allow("raw.example.com"), Limits{})
	hello := rawHello(b, "raw.example.com")
	for _, way := range []string{"direct", "sni"} {
		addr := map[string]string{"direct": rawAddr + ":9443", "sni": rawAddr + ":443"}[way]
		b.Run("down/"+way, func(b *testing.B) { download(b, addr, hello) })
		b.Run("up/"+way, func(b *testing.B) { upload(b, addr, hello) })
	}
}

const piece = 1 << 20

func download(b *testing.B, addr string, hello []byte) {
	c := open(b, addr, hello, "GIVE")
	defer c.Close()
	buf := make([]byte, piece)
	b.SetBytes(piece)
	for b.Loop() {
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}

func upload(b *testing.B, addr string, hello []byte) {
	c := open(b, addr, hello, "")
	defer c.Close()
	buf := make([]byte, piece)
	b.SetBytes(piece)
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func open(b *testing.B, addr string, hello []byte, order string) net.Conn {
	c, err := dialFrom(lab.sb1, "tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := c.Write(hello); err != nil {
		b.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // the order is not part of what is judged
	if _, err := fmt.Fprint(c, order); err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkHTTPSDownload is of 1 GiB by HTTPS.
func BenchmarkHTTPSDownload(b *testing.B) {
	for _, way := range []string{"sni", "ended"} {
		for _, proto := range []string{"http/1.1", "h2"} {
			b.Run(way+"/"+proto, func(b *testing.B) {
				pol, roots := allow("web.example.com"), lab.roots
				if way == "ended" {
					pol = endedPolicy("web.example.com")
				}
				r := newRig(b, pol, Limits{})
				if way == "ended" {
					roots = r.ca
				}
				var protocols []string
				if proto != "h2" {
					protocols = []string{proto}
				}
				client := clientFrom(b, lab.sb1, webAddr, roots, protocols...)
				client.Timeout = time.Minute
				b.SetBytes(1 << 30)
				for b.Loop() {
					resp, err := client.Get("https://web.example.com/bytes")
					if err != nil {
						b.Fatal(err)
					}
					if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 1<<30 {
						b.Fatal(n, err)
					}
					resp.Body.Close()
				}
			})
		}
	}
}

// BenchmarkConnect is from connect to the first byte of an answer after a
// ClientHello, without TLS, so that nothing but the way is measured.
func BenchmarkConnect(b *testing.B) {
	newRig(b, allow("raw.example.com"), Limits{EventsPerSecond: 1})
	hello := rawHello(b, "raw.example.com")
	msg := append(append([]byte(nil), hello...), "ECHO"...)
	for _, way := range []string{"direct", "sni"} {
		addr := map[string]string{"direct": rawAddr + ":9443", "sni": rawAddr + ":443"}[way]
		b.Run(way, func(b *testing.B) {
			one := make([]byte, 1)
			for b.Loop() {
				c, err := dialFrom(lab.sb1, "tcp", addr)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := c.Write(hello); err != nil {
					b.Fatal(err)
				}
				fmt.Fprint(c, "ECHO")
				fmt.Fprint(c, "x")
				if _, err := io.ReadFull(c, one); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
		_ = msg
	}
}

// BenchmarkHandshake is a whole TLS handshake with the site, or with us and of
// ours with the site.
func BenchmarkHandshake(b *testing.B) {
	for _, way := range []string{"sni", "ended"} {
		b.Run(way, func(b *testing.B) {
			pol, roots := allow("web.example.com"), lab.roots
			if way == "ended" {
				pol = endedPolicy("web.example.com")
			}
			r := newRig(b, pol, Limits{EventsPerSecond: 1})
			if way == "ended" {
				roots = r.ca
			}
			for b.Loop() {
				c, err := dialFrom(lab.sb1, "tcp", webAddr+":443")
				if err != nil {
					b.Fatal(err)
				}
				if err := tls.Client(c, &tls.Config{ServerName: "web.example.com", RootCAs: roots}).Handshake(); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}
