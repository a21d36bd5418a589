package ingress

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
)

// benchBuffers are the buffers that the ingress uses.
type benchBuffers struct{}

func (benchBuffers) Get() []byte  { return bodies.Get().(*[bufferSize]byte)[:] }
func (benchBuffers) Put(b []byte) { bodies.Put((*[bufferSize]byte)(b)) }

// BenchmarkProxy sends requests through the ingress and through net/http's own
// proxy, to the same server. It is why the ingress writes requests itself.
func BenchmarkProxy(b *testing.B) {
	small := bytes.Repeat([]byte("x"), 1024)
	s := running(b, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Write(small)
	})
	_, _, ours := start(b, s, nil)
	target := &url.URL{Scheme: "http", Host: *s.addr.Load()}
	reference := httptest.NewServer(&httputil.ReverseProxy{
		BufferPool: benchBuffers{},
		Transport:  &http.Transport{MaxIdleConnsPerHost: maxIdleEach, DisableCompression: true},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
			r.Out.Host = r.In.Host
		},
	})
	b.Cleanup(reference.Close)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: maxIdleEach}}
	b.Cleanup(client.CloseIdleConnections)
	for _, proxy := range []struct{ name, url string }{{"ours", ours}, {"net-http", reference.URL}, {"direct", target.String()}} {
		for _, method := range []string{"GET", "POST"} {
			b.Run(proxy.name+"/"+method, func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						var body io.Reader
						if method == "POST" {
							body = bytes.NewReader(small)
						}
						req, err := http.NewRequestWithContext(b.Context(), method, proxy.url, body)
						if err != nil {
							b.Error(err)
							return
						}
						res, err := client.Do(req)
						if err != nil {
							b.Error(err)
							return
						}
						if n, err := io.Copy(io.Discard, res.Body); n != int64(len(small)) || err != nil {
							b.Errorf("%d bytes, %v", n, err)
						}
						res.Body.Close()
					}
				})
			})
		}
	}
}
