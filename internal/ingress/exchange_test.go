package ingress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// scripted is a sandbox that does on each connection, numbered from 1, what the
// test says.
func scripted(t *testing.T, serve func(n int, c net.Conn, r *bufio.Reader)) *sandbox {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for n := 1; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(n, c, bufio.NewReader(c))
			}()
		}
	}()
	s := running(t, nil)
	addr := ln.Addr().String()
	s.addr.Store(&addr)
	return s
}

// next reads a request with its body; the connection's end is no request.
func next(r *bufio.Reader) (*http.Request, string) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return nil, ""
	}
	body, _ := io.ReadAll(req.Body)
	return req, string(body)
}

const plain = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"

func TestConnectionsAreUsedAgain(t *testing.T) {
	s := scripted(t, func(n int, c net.Conn, r *bufio.Reader) {
		for req, _ := next(r); req != nil; req, _ = next(r) {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%d", len(fmt.Sprint(n)), n)
		}
	})
	_, _, url := start(t, s, nil)
	for range 5 {
		if _, got := ask(t, request(t, "GET", url, nil)); got != "1" {
			t.Fatalf("connection %s answered", got)
		}
		if _, got := ask(t, request(t, "POST", url, strings.NewReader("body"))); got != "1" {
			t.Fatalf("connection %s answered", got)
		}
	}
	// Another session's answer never comes over it.
	session := "sbx_other"
	s.session.Store(&session)
	if _, got := ask(t, request(t, "GET", url, nil)); got != "2" {
		t.Errorf("connection %s answered for another session", got)
	}
}

// TestAnswersAreNotMixedUp has sandboxes that say more than was asked: it must
// never be taken for the answer to the next request.
func TestAnswersAreNotMixedUp(t *testing.T) {
	evil := "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	for name, answer := range map[string]string{
		"two answers":       plain + "ok" + evil,
		"a longer body":     plain + "ok and more",
		"a second later":    plain + "ok",
		"bytes after chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + evil,
		"asked to close":    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok" + evil,
		"old protocol":      "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok" + evil,
	} {
		t.Run(name, func(t *testing.T) {
			sent := make(chan struct{}, 8)
			s := scripted(t, func(n int, c net.Conn, r *bufio.Reader) {
				if req, _ := next(r); req == nil {
					return
				}
				if n > 1 {
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfresh")
					return
				}
				_, _ = io.WriteString(c, answer)
				if name == "a second later" {
					sent <- struct{}{}
					<-sent
					_, _ = io.WriteString(c, evil)
				}
				sent <- struct{}{}
				_, _ = next(r) // it stays open
			})
			_, _, url := start(t, s, nil)
			if _, got := ask(t, request(t, "GET", url, nil)); got != "ok" {
				t.Fatalf("the first answer is %q", got)
			}
			<-sent
			if name == "a second later" {
				sent <- struct{}{}
				<-sent
			}
			if _, got := ask(t, request(t, "GET", url, nil)); got != "fresh" {
				t.Errorf("the second answer is %q", got)
			}
		})
	}
}

// TestStaleConnections has a sandbox that closes a connection just as a request
// comes over it.
func TestStaleConnections(t *testing.T) {
	var asked atomic.Int64
	s := scripted(t, func(n int, c net.Conn, r *bufio.Reader) {
		if req, _ := next(r); req == nil {
			return
		}
		_, _ = io.WriteString(c, plain+"ok")
		if n == 1 || n == 2 {
			if req, _ := next(r); req != nil {
				asked.Add(1) // and no answer
			}
			return
		}
		_, _ = next(r)
	})
	_, _, url := start(t, s, nil)
	get := func() int {
		res, _ := ask(t, request(t, "GET", url, nil))
		return res.StatusCode
	}
	if a, b := get(), get(); a != 200 || b != 200 {
		t.Errorf("a request that nobody answered was not sent again: %d %d", a, b)
	}
	// The connection that answered the retry is the second: what may have had an
	// effect is not sent twice.
	res, _ := ask(t, request(t, "POST", url, strings.NewReader("pay")))
	if res.StatusCode != 502 || asked.Load() != 2 {
		t.Errorf("a POST that nobody answered: %d, %d requests were left", res.StatusCode, asked.Load())
	}
}

// TestStreamsAreNotHeldBack has a sandbox that sends the beginning of the next
// chunk with this one.
func TestStreamsAreNotHeldBack(t *testing.T) {
	more := make(chan struct{})
	s := scripted(t, func(_ int, c net.Conn, r *bufio.Reader) {
		_, _ = next(r)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n6")
		<-more
		_, _ = io.WriteString(c, "\r\nsecond\r\n0\r\n\r\n")
	})
	_, _, url := start(t, s, nil)
	res, err := http.DefaultClient.Do(request(t, "GET", url, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	first := make([]byte, 5)
	if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != "first" {
		t.Fatalf("%q %v", first, err)
	}
	close(more)
	if rest, err := io.ReadAll(res.Body); err != nil || string(rest) != "second" {
		t.Errorf("%q %v", rest, err)
	}
}

func TestCutOffAnswers(t *testing.T) {
	for name, answer := range map[string]string{
		"a short body":   "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
		"no last chunk":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
		"a broken chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nzz\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := scripted(t, func(_ int, c net.Conn, r *bufio.Reader) {
				_, _ = next(r)
				_, _ = io.WriteString(c, answer)
			})
			_, _, url := start(t, s, nil)
			res, err := http.DefaultClient.Do(request(t, "GET", url, nil))
			if err != nil {
				return // it was cut off before its head was sent
			}
			defer res.Body.Close()
			if b, err := io.ReadAll(res.Body); err == nil {
				t.Errorf("%q passes for whole", b)
			}
		})
	}
}

func TestInformationalAnswers(t *testing.T) {
	hints := "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
	s := scripted(t, func(_ int, c net.Conn, r *bufio.Reader) {
		req, _ := next(r)
		if req == nil {
			return
		}
		n := 1
		if req.URL.Path == "/flood" {
			n = maxInformational + 1
		}
		_, _ = io.WriteString(c, strings.Repeat(hints, n)+plain+"ok")
		_, _ = next(r)
	})
	_, _, url := start(t, s, nil)
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	r := bufio.NewReader(conn)
	if res, err := http.ReadResponse(r, nil); err != nil || res.StatusCode != 103 || res.Header.Get("Link") == "" {
		t.Errorf("%+v %v", res, err)
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != 200 || res.Header.Get("Link") != "" {
		t.Fatalf("%+v %v", res, err)
	}
	if res, _ := ask(t, request(t, "GET", url+"/flood", nil)); res.StatusCode != 502 {
		t.Errorf("a flood of hints ends in %d", res.StatusCode)
	}
}

// TestHintsAndContinue has a sandbox give hints just as it lets the body come:
// both have net/http write to the client, which must not be at once.
func TestHintsAndContinue(t *testing.T) {
	hints := strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n", maxInformational-2)
	s := scripted(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n"+hints)
			_, _ = io.Copy(io.Discard, req.Body)
			_, _ = io.WriteString(c, plain+"ok")
		}
	})
	_, _, url := start(t, s, nil)
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(conn)
	for range 100 {
		fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
		var seen []int
		for len(seen) == 0 || seen[len(seen)-1] < 200 {
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("after %v: %v", seen, err)
			}
			seen = append(seen, res.StatusCode)
			switch res.StatusCode {
			case 100:
				fmt.Fprint(conn, "hi")
			case 200:
				if b, err := io.ReadAll(res.Body); err != nil || string(b) != "ok" {
					t.Fatalf("%q %v", b, err)
				}
			}
		}
		if fmt.Sprint(seen) != "[100 200]" {
			t.Fatalf("the client was told %v", seen)
		}
	}
}

// TestNoStatus has a sandbox answer with what is no status at all.
func TestNoStatus(t *testing.T) {
	for _, status := range []string{"000", "099", "+99", "1000"} {
		s := scripted(t, func(_ int, c net.Conn, r *bufio.Reader) {
			_, _ = next(r)
			_, _ = io.WriteString(c, "HTTP/1.1 "+status+" What\r\nContent-Length: 0\r\n\r\n")
		})
		_, _, url := start(t, s, nil)
		if res, _ := ask(t, request(t, "GET", url, nil)); res.StatusCode != 502 {
			t.Errorf("%s became %d", status, res.StatusCode)
		}
	}
}

func TestAnswersWithoutBody(t *testing.T) {
	s := scripted(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for req, _ := next(r); req != nil; req, _ = next(r) {
			switch req.URL.Path {
			case "/head":
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
			case "/204":
				fmt.Fprint(c, "HTTP/1.1 204 No Content\r\n\r\n")
			case "/304":
				fmt.Fprint(c, "HTTP/1.1 304 Not Modified\r\nEtag: \"1\"\r\n\r\n")
			}
		}
	})
	_, _, url := start(t, s, nil)
	for range 2 {
		if res, got := ask(t, request(t, "HEAD", url+"/head", nil)); res.StatusCode != 200 || got != "" || res.Header.Get("Content-Length") != "1000" {
			t.Errorf("%+v %q", res, got)
		}
		if res, got := ask(t, request(t, "GET", url+"/204", nil)); res.StatusCode != 204 || got != "" {
			t.Errorf("%+v %q", res, got)
		}
		if res, got := ask(t, request(t, "GET", url+"/304", nil)); res.StatusCode != 304 || got != "" || res.Header.Get("Etag") != `"1"` {
			t.Errorf("%+v %q", res, got)
		}
	}
	if n := s.dials.Load(); n != 1 {
		t.Errorf("%d connections were made", n)
	}
}

func TestTrailers(t *testing.T) {
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprintf(w, "%s %s", b, r.Trailer.Get("X-Check"))
		w.Header().Set("X-Sum", "7")
	})
	_, _, url := start(t, s, nil)
	r := request(t, "POST", url, io.MultiReader(strings.NewReader("data"))) // of unknown length
	r.Trailer = http.Header{"X-Check": {"good"}}
	res, got := ask(t, r)
	if got != "data good" || res.Trailer.Get("X-Sum") != "7" {
		t.Errorf("%q, trailers %v", got, res.Trailer)
	}
}

// TestEarlyAnswers has sandboxes that answer before the body has come.
func TestEarlyAnswers(t *testing.T) {
	s := scripted(t, func(_ int, c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		fmt.Fprint(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
		_, _ = req.Body.Read(make([]byte, 1))
	})
	i, _, url := start(t, s, nil)
	body, feed := io.Pipe()
	defer feed.Close()
	go func() { _, _ = feed.Write([]byte("a little")) }()
	res, err := http.DefaultClient.Do(request(t, "POST", url, body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 413 || string(b) != "big" {
		t.Errorf("%d %q %v", res.StatusCode, b, err)
	}
	// Nobody reads from the client for ever.
	for i.connections.Used() > 0 {
		time.Sleep(10 * time.Millisecond)
		if t.Context().Err() != nil {
			t.Fatal("the connection is left")
		}
	}
}

func TestExpectContinue(t *testing.T) {
	s := scripted(t, func(_ int, c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if req.URL.Path == "/no" {
			fmt.Fprint(c, "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
			return
		}
		fmt.Fprint(c, "HTTP/1.1 100 Continue\r\n\r\n")
		b, _ := io.ReadAll(req.Body)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
	})
	_, _, url := start(t, s, nil)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, ExpectContinueTimeout: time.Minute}}
	for path, want := range map[string]int{"/yes": 200, "/no": 417} {
		res, err := client.Do(request(t, "PUT", url+path, strings.NewReader("body"), "Expect", "100-continue"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != want || want == 200 && string(b) != "body" {
			t.Errorf("%s: %d %q", path, res.StatusCode, b)
		}
	}
}

// TestClientGone looks that a sandbox learns of a client that has gone.
func TestClientGone(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(ended)
	})
	_, _, url := start(t, s, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-began
		cancel()
	}()
	if _, err := http.DefaultClient.Do(request(t, "GET", url, nil).WithContext(ctx)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	<-ended
}

// TestTrailersThatAreNone announces trailers with names that no header has, or
// that are the proxy's.
func TestTrailersThatAreNone(t *testing.T) {
	r := request(t, "POST", "http://a/", strings.NewReader("x"))
	r.ContentLength = -1
	r.Trailer = http.Header{"X-End": nil, "\"": nil, "X-B, Host": nil, "X-Forwarded-For": nil, "Connection": nil, "X-Begin": nil}
	head, err := appendHead(nil, r, "a")
	if err != nil || !bytes.Contains(head, []byte("chunked\r\nTrailer: X-Begin\r\nTrailer: X-End\r\n\r\n")) {
		t.Errorf("%q, %v", head, err)
	}
}

// TestHostsThatAreNone has hosts in the target, which net/http does not check.
func TestHostsThatAreNone(t *testing.T) {
	for host, good := range map[string]bool{"a:80": true, "[::1]": true, "": true, "\"": false, "a b": false, "a\r\nX: y": false, "\xc3\xbc": false} {
		r := request(t, "GET", "http://a/", nil)
		r.Host = host
		for _, sent := range []string{host, "localhost:3000"} {
			if _, err := appendHead(nil, r, sent); (err == nil) != good {
				t.Errorf("%q, sent as %q: %v", host, sent, err)
			}
		}
	}
}

// TestHeadsAreEqual has a request written as it was before, whatever the order
// in which a map is read.
func TestHeadsAreEqual(t *testing.T) {
	r := request(t, "GET", "http://a/", nil)
	for i := range 30 {
		r.Header.Set(fmt.Sprint("X-", i), "1")
	}
	first, err := appendHead(nil, r, "a")
	if err != nil || !bytes.Contains(first, []byte("X-0: 1\r\nX-1: 1\r\nX-10: 1\r\n")) {
		t.Fatalf("%s %v", first, err)
	}
	for range 50 {
		if again, err := appendHead(nil, r, "a"); err != nil || !bytes.Equal(again, first) {
			t.Fatalf("%s\nand before\n%s, %v", again, first, err)
		}
	}
}

// FuzzHead looks that whatever a client sends, a sandbox reads one request with
// what the proxy says of it.
func FuzzHead(f *testing.F) {
	f.Add("GET", "/a?b", "X-A", "1", "host", "Connection", "close")
	f.Add("POST", "/%0d%0a", "Transfer-Encoding", "chunked", "h", "Content-Length", "5")
	f.Add("GET", "//x/../y", "X-A", "1\r\nHost: evil", "h:1", "X-Forwarded-For", "6.6.6.6")
	f.Add("PUT", "*", "Te", "trailers", "", "Upgrade", "websocket")
	f.Fuzz(func(t *testing.T, method, target, name, value, host, name2, value2 string) {
		in, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET / HTTP/1.1\r\nHost: a\r\n\r\n")))
		if err != nil {
			t.Fatal(err)
		}
		u, err := in.URL.Parse(target)
		if err != nil {
			return
		}
		in.Method, in.URL, in.Host, in.RemoteAddr = method, u, host, "192.0.2.1:5"
		in.Header = http.Header{http.CanonicalHeaderKey(name): {value}, http.CanonicalHeaderKey(name2): {value2}}
		head, err := appendHead(nil, in, host)
		if err != nil {
			return
		}
		r := bufio.NewReader(bytes.NewReader(head))
		out, err := http.ReadRequest(r)
		if err != nil {
			return // a server that refuses it is not deceived
		}
		if out.Method != method || out.ContentLength > 0 || len(out.TransferEncoding) > 0 || r.Buffered() > 0 {
			t.Errorf("%q is read as %s with %d bytes and %v, %d are left", head, out.Method, out.ContentLength, out.TransferEncoding, r.Buffered())
		}
		if got := out.Header["X-Forwarded-For"]; !slices.Equal(got, []string{"192.0.2.1"}) {
			t.Errorf("%q says that it is for %q", head, got)
		}
		if bytes.Count(head, []byte("\r\nHost: ")) != 1 || bytes.Count(head, []byte("\r\n\r\n")) != 1 || bytes.Count(head, []byte("\n")) != bytes.Count(head, []byte("\r\n")) {
			t.Errorf("%q", head)
		}
	})
}
