package ingress

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http/httpguts"
)

// The ingress writes requests itself. These fuzz tests hold it to what net/http's
// own proxy (httputil.ReverseProxy on http.Transport) does with the same bytes,
// of a client or of a sandbox.

// pair is the ingress and net/http's proxy, with a sandbox each.
type pair struct {
	ours, reference *proxied
}

// proxied is a proxy and the sandbox behind it.
type proxied struct {
	address string
	// answer is what the sandbox answers each request with, before it closes the
	// connection.
	answer atomic.Pointer[[]byte]
	// heard are the requests that the sandbox has read.
	heard chan heard
	// renew has the next request use a connection of its own.
	renew func()
}

// heard is a request as the sandbox reads it.
type heard struct {
	line   string // method, target and host
	header http.Header
	body   string
	// trailer has what came after the body.
	trailer http.Header
	err     string
}

func newPair(f *testing.F) *pair {
	// start wants a test that ends with the fuzz test.
	ours, reference := &proxied{heard: make(chan heard, 16)}, &proxied{heard: make(chan heard, 16), renew: func() {}}
	s := &sandbox{}
	at := ours.listen(f)
	s.addr.Store(&at)
	sessions := 0
	ours.renew = func() {
		sessions++
		session := fmt.Sprint("sbx_", sessions)
		s.session.Store(&session)
	}
	ours.renew()
	_, _, where := start(f, s, nil)
	ours.address = strings.TrimPrefix(where, "http://")

	target := &url.URL{Scheme: "http", Host: reference.listen(f)}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxAnswerHeader}
	srv := httptest.NewUnstartedServer(&httputil.ReverseProxy{
		Transport: transport,
		ErrorLog:  log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.RawQuery = r.In.URL.RawQuery
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
	})
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Config.MaxHeaderBytes = maxHeaderBytes
	srv.Start()
	f.Cleanup(srv.Close)
	reference.address = srv.Listener.Addr().String()
	return &pair{ours, reference}
}

// listen starts the sandbox.
func (p *proxied) listen(f *testing.F) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return ln.Addr().String()
}

func (p *proxied) serve(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	r, err := http.ReadRequest(bufio.NewReader(c))
	if errors.Is(err, io.EOF) {
		return // nothing was sent
	}
	if err != nil {
		p.heard <- heard{err: err.Error()}
		return
	}
	body, err := io.ReadAll(r.Body)
	h := heard{line: r.Method + " " + r.RequestURI + " " + r.Host, header: r.Header, body: string(body), trailer: r.Trailer}
	if err != nil {
		h.err = "the body is cut off"
	}
	p.heard <- h
	c.Write(*p.answer.Load())
	// Its end must not overtake the answer: what is left unread would reset the
	// connection.
	if t, ok := c.(*net.TCPConn); ok {
		t.CloseWrite()
		io.Copy(io.Discard, c)
	}
}

// seen is an answer as a client reads it.
type seen struct {
	status  int
	header  http.Header
	body    string
	trailer http.Header
	// whole says that it was not cut off.
	whole bool
}

// ask sends raw requests and returns the answers to them.
func (p *proxied) ask(t *testing.T, raw []byte, methods ...string) (list []seen) {
	p.renew()
	c, err := net.Dial("tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(raw); err != nil {
		return nil
	}
	r := bufio.NewReader(c)
	for _, method := range methods {
		for {
			res, err := http.ReadResponse(r, &http.Request{Method: method})
			if err != nil {
				return list
			}
			if res.StatusCode < 200 {
				continue
			}
			body, err := io.ReadAll(res.Body)
			list = append(list, seen{res.StatusCode, res.Header, string(body), res.Trailer, err == nil})
			if err != nil || res.Close {
				return list
			}
			break
		}
	}
	return list
}

// drain returns what the sandbox has heard, once the proxy has answered.
func (p *proxied) drain() (list []heard) {
	for {
		select {
		case h := <-p.heard:
			list = append(list, h)
		default:
			return list
		}
	}
}

// without returns a header without some of its names.
func without(h http.Header, names ...string) http.Header {
	h = h.Clone()
	maps.DeleteFunc(h, func(name string, _ []string) bool { return slices.Contains(names, name) })
	if len(h) == 0 {
		return http.Header{}
	}
	return h
}

// announced reports whether ours has all trailers of a request that ReverseProxy
// announces. It loses their values, and those that the client has not announced.
func announced(ours, reference http.Header) bool {
	for name := range reference {
		if _, has := ours[name]; !has {
			return false
		}
	}
	return true
}

// sameHeader compares headers that both may have in any order.
func sameHeader(a, b http.Header) bool {
	return maps.EqualFunc(a, b, func(a, b []string) bool { return slices.Equal(a, b) })
}

// FuzzAnswers has a sandbox answer anything: a client reads the same through the
// ingress as through net/http's proxy.
func FuzzAnswers(f *testing.F) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nok",
		"HTTP/1.0 200 OK\r\n\r\nuntil the end",
		"HTTP/1.1 204 No Content\r\n\r\nno",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n2\r\nok\r\n0\r\nX-End: 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nX-End: 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nConnection: X-Mine, close\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 999 \r\nContent-Type: text/plain\r\nDate: x\r\n\r\n",
		"HTTP/1.1 099 Low\r\n\r\n", "HTTP/2.0 200 OK\r\n\r\n", "nonsense", "",
	} {
		for _, method := range []string{"GET", "HEAD", "POST"} {
			f.Add(method, []byte(answer))
		}
	}
	p := newPair(f)
	f.Fuzz(func(t *testing.T, method string, answer []byte) {
		body := "\r\n"
		switch method {
		case "GET", "HEAD", "DELETE":
		case "POST":
			body = "Content-Length: 4\r\n\r\nbody"
		default:
			return
		}
		lower := bytes.ToLower(answer)
		if bytes.Contains(answer, []byte(cookiePrefix)) || bytes.Contains(answer, []byte(TokenHeader)) {
			return // ours alone
		}
		raw := []byte(method + " / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + body)
		both := [2]seen{}
		for i, to := range []*proxied{p.ours, p.reference} {
			to.answer.Store(&answer)
			if list := to.ask(t, raw, method); len(list) == 1 {
				both[i] = list[0]
			}
			to.drain()
		}
		ours, reference := both[0], both[1]
		if reference.status == http.StatusBadGateway && reference.body == "" || !reference.whole {
			// What the reference cannot pass on, we do not either.
			if ours.whole && ours.status != http.StatusBadGateway && ours.status != http.StatusGatewayTimeout {
				t.Errorf("the answer to %s passes, not so in net/http: %+v", method, ours)
			}
			return
		}
		// Made anew on each connection. A type is never guessed by us.
		ignore := []string{"Connection", "Transfer-Encoding", "Host"}
		if !bytes.Contains(lower, []byte("date:")) {
			ignore = append(ignore, "Date")
		}
		if !bytes.Contains(lower, []byte("content-type:")) {
			ignore = append(ignore, "Content-Type")
		}
		// Whether a body of known length is sent with it, or in chunks, is as well
		// the choice of net/http's server.
		if !bytes.Contains(lower, []byte("content-length:")) || bytes.Contains(lower, []byte("transfer-encoding:")) {
			ignore = append(ignore, "Content-Length")
		}
		ours.header, reference.header = without(ours.header, ignore...), without(reference.header, ignore...)
		if ours.status != reference.status || ours.body != reference.body || ours.whole != reference.whole ||
			!sameHeader(ours.header, reference.header) || !sameHeader(without(ours.trailer), without(reference.trailer)) {
			t.Errorf("a client that asks with %s reads\n%+v\nand through net/http\n%+v", method, ours, reference)
		}
	})
}

// FuzzRequests has a client send anything: a sandbox reads the same requests
// through the ingress as through net/http's proxy.
func FuzzRequests(f *testing.F) {
	for _, raw := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /a%2fb/../c?x=1;y&%zz HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a: 2\r\nAccept-Encoding: gzip\r\n\r\n",
		"GET http://b/c HTTP/1.1\r\nHost: a\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody",
		"POST / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n4\r\nbody\r\n0\r\nX-End: 1\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Mine, close\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTe: trailers\r\nUpgrade: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\r\n",
		"GET / HTTP/1.0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
		"PATCH //x HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 0\r\n\r\n",
		"get / HTTP/1.1\r\nHost: a\r\nCookie: a=b\r\nCookie: c=d\r\nContent-Type:\r\n\r\n",
	} {
		f.Add([]byte(raw))
	}
	p := newPair(f)
	// Closing, so that no request meets the end of the connection of the one before.
	answer := []byte("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
	f.Fuzz(func(t *testing.T, raw []byte) {
		methods := wholeRequests(raw)
		if len(methods) == 0 || len(methods) > 2 {
			return
		}
		var read [2][]heard
		var answers [2][]seen
		for i, to := range []*proxied{p.ours, p.reference} {
			to.answer.Store(&answer)
			answers[i] = to.ask(t, raw, methods...)
			read[i] = to.drain()
		}
		if len(read[0]) != len(read[1]) {
			t.Fatalf("the sandbox reads %d requests, and through net/http %d: %+v, %+v", len(read[0]), len(read[1]), answers[0], answers[1])
		}
		for i, ours := range read[0] {
			reference := read[1][i]
			for _, h := range []*heard{&ours, &reference} {
				// What speaks for the proxy, or frames the message anew.
				maps.DeleteFunc(h.header, func(name string, _ []string) bool {
					return ofThisHop(name, nil) || ofTheProxy(name)
				})
				h.trailer = without(h.trailer)
				maps.DeleteFunc(h.trailer, func(name string, _ []string) bool { return ofThisHop(name, nil) || ofTheProxy(name) })
			}
			if ours.line != reference.line || ours.body != reference.body || ours.err != reference.err ||
				!sameHeader(ours.header, reference.header) || !announced(ours.trailer, reference.trailer) {
				t.Errorf("the sandbox reads\n%+v\nand through net/http\n%+v", ours, reference)
			}
		}
	})
}

// wholeRequests returns the methods of the requests that raw is made of, none if
// it has anything else, or what the two proxies may treat differently.
func wholeRequests(raw []byte) (methods []string) {
	r := bufio.NewReader(bytes.NewReader(raw))
	for {
		req, err := http.ReadRequest(r)
		if errors.Is(err, io.EOF) {
			return methods
		}
		// A tunnel is refused, and a body that is to be asked for takes a second. A
		// request without a host gets one from ReverseProxy.
		if err != nil || req.Host == "" || req.Method == http.MethodConnect || req.Header["Expect"] != nil || len(req.Header) > 100 {
			return nil
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return nil
		}
		// These are refused. net/http makes a path of an asterisk, and leaves a host out.
		if !isTarget(req.URL.RequestURI(), req.Method) || req.URL.Path == "*" || !httpguts.ValidHostHeader(req.Host) {
			return nil
		}
		// Names of trailers that are none are left out; net/http refuses all.
		for name := range req.Trailer {
			if !isToken(name) {
				return nil
			}
		}
		// Tokens of private routes are taken out; another protocol is no request.
		if withoutTokensOf(req) != req || upgradeOf(req.Header) != "" {
			return nil
		}
		methods = append(methods, req.Method)
		if req.Close {
			if _, err := r.Peek(1); err == nil {
				return nil
			}
			return methods
		}
	}
}
