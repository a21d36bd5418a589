package ingress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A request is sent on, and its answer passed back, in the goroutine of the
// request itself: the Transport of net/http has two more for each connection,
// and what it takes to wake them is most of what a small request costs. Heads
// of requests are written here, those of answers are read by net/http.

// exchange is a request on a connection to its sandbox.
type exchange struct {
	w  http.ResponseWriter
	r  *http.Request
	u  *upstream
	up *upload // nil for a request without a body
	// patience is how long the sandbox may think before it answers.
	patience time.Duration
	// began says that an answer has come, in part at least.
	began bool
	rt    *route
	// unwatch ends the watch for the request's end.
	unwatch func() bool
}

// maxInformational is how many answers before the answer a sandbox may give.
const maxInformational = 5

var (
	errInformational = errors.New("the sandbox gave too many informational answers")
	errNoStatus      = errors.New("the sandbox answered with a status below 100")
	errUpgrade       = errors.New("the sandbox switched to a protocol that was not asked for")
)

// heads are what heads of requests are made in.
var heads = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

// forward sends a request to a port of a session and passes the answer back.
// The connections end with the request and with the route.
func (i *Ingress) forward(w http.ResponseWriter, r *http.Request, rt *route, session string) {
	buf := heads.Get().(*[]byte)
	defer heads.Put(buf)
	head, err := appendHead((*buf)[:0], withoutTokensOf(r), i.hostFor(r, rt))
	if err != nil {
		i.refuse(w, r, rt, badRequest)
		return
	}
	*buf = head
	p := peer{session, rt.Port}
	u := i.upstreams.take(p, clientAt(r.RemoteAddr))
	for {
		fresh := u == nil
		if fresh {
			if u, err = i.connect(r, rt, p); err != nil {
				i.failed(w, r, rt, err)
				return
			}
		}
		x := &exchange{w: w, r: r, u: u, rt: rt, patience: i.cfg.answerTimeout}
		x.watch()
		res, err := x.begin(head)
		if err == nil {
			err = x.answer(res)
		}
		i.upstreams.finish(x, err == nil && !res.Close)
		if err == nil {
			return
		}
		if x.began && !errors.Is(err, errUpgrade) {
			panic(http.ErrAbortHandler) // the client must see that it is cut off
		}
		if fresh || x.began || !replayable(r) || errors.Is(err, os.ErrDeadlineExceeded) || r.Context().Err() != nil || rt.ctx.Err() != nil {
			i.failed(w, r, rt, err)
			return
		}
		u = nil // the sandbox was just closing it: once more, on a new one
	}
}

// hostFor is the Host that a sandbox sees. The client's own is always in
// X-Forwarded-Host.
func (i *Ingress) hostFor(r *http.Request, rt *route) string {
	if i.cfg.RewriteHost && i.isOurs(r.Host) {
		return net.JoinHostPort(localhost, strconv.Itoa(rt.Port))
	}
	return r.Host
}

// isOurs reports whether a Host names this installation. Another name's owner
// may have pointed it at a published port, so that a page of theirs reaches a
// development server (DNS rebinding); what such a server does against that, it
// does by the Host.
func (i *Ingress) isOurs(host string) bool {
	if i.cfg.Domain != "" {
		return true // else there was no route
	}
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.Trim(host, "[]")
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	_, err = netip.ParseAddr(name)
	return err == nil || name == localhost || name == strings.ToLower(i.cfg.Host)
}

// connect makes a connection for a request.
func (i *Ingress) connect(r *http.Request, rt *route, p peer) (*upstream, error) {
	ctx, done := joined(r, rt)
	defer done()
	return i.upstreams.open(ctx, p, clientAt(r.RemoteAddr))
}

// watch closes the connection when the request or the route ends.
func (x *exchange) watch() {
	x.unwatch = context.AfterFunc(x.r.Context(), func() { _ = x.u.Close() })
	x.rt.hold(x.u)
}

// release ends the watch, and says whether it was in time.
func (x *exchange) release() bool {
	held := x.rt.drop(x.u)
	return x.unwatch() && held
}

// withoutTokensOf returns the request without what opens private routes.
func withoutTokensOf(r *http.Request) *http.Request {
	has := strings.Contains(r.URL.RawQuery, tokenPrefix) || len(r.Header[TokenHeader]) > 0 || strings.Contains(r.Header.Get("Referer"), tokenPrefix)
	for _, line := range r.Header["Cookie"] {
		has = has || strings.Contains(line, cookiePrefix)
	}
	if !has {
		return r
	}
	out := *r
	out.URL = new(url.URL)
	*out.URL = *r.URL
	out.Header = r.Header.Clone()
	stripTokens(out.Header, out.URL)
	return &out
}

// replayable says whether a request may be sent again without anybody's harm
// if nothing of an answer has come.
func replayable(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return !hasBody(r)
	}
	return false
}

// begin sends the request and returns the head of the answer. What a sandbox
// says before it is passed on.
func (x *exchange) begin(head []byte) (*http.Response, error) {
	x.u.bound(maxAnswerHeader)
	if err := x.u.await(x.patience); err != nil {
		return nil, err
	}
	if _, err := x.u.Conn.Write(head); err != nil {
		return nil, err
	}
	if hasBody(x.r) {
		x.up = startUpload(x.u.Conn, x.r)
	}
	if err := x.wait(); err != nil {
		return nil, err
	}
	for range maxInformational {
		res, err := http.ReadResponse(x.u.br, x.r)
		if err != nil {
			return nil, err
		}
		if res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			return res, nil
		}
		if res.StatusCode < http.StatusContinue {
			return nil, errNoStatus
		}
		x.inform(res)
		if err := x.wait(); err != nil {
			return nil, err
		}
	}
	return nil, errInformational
}

// wait returns when something has come from the sandbox. The time that it has
// for its answer begins when the request is whole.
func (x *exchange) wait() error {
	for {
		_, err := x.u.br.Peek(1)
		if err == nil || x.up == nil || x.up.over() || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if err := x.u.await(x.patience); err != nil {
			return err
		}
	}
}

// inform passes an informational answer on.
func (x *exchange) inform(res *http.Response) {
	if res.StatusCode == http.StatusContinue {
		if x.up != nil {
			x.up.proceed() // the client is told by net/http when its body is read
		}
		return
	}
	// net/http tells a client that asked whether to send its body when that is
	// read, elsewhere: it must not write at the same time.
	if !x.r.ProtoAtLeast(1, 1) || hasToken(x.r.Header["Expect"], "100-continue") {
		return
	}
	h := x.w.Header()
	passOn(h, res.Header)
	x.w.WriteHeader(res.StatusCode)
	clear(h)
}

// passOn copies what is for the client of an answer's headers.
func passOn(h, from http.Header) {
	connection := from["Connection"]
	for name, values := range from {
		if !ofThisHop(name, connection) {
			h[name] = values
		}
	}
}

// answer passes an answer on.
func (x *exchange) answer(res *http.Response) error {
	withoutOurCookies(res.Header)
	x.u.unbounded()
	if res.StatusCode == http.StatusSwitchingProtocols {
		return x.upgrade(res)
	}
	x.began = true
	h := x.w.Header()
	passOn(h, res.Header)
	if length := res.Header["Content-Length"]; len(length) == 1 {
		h["Content-Length"] = length
	}
	if _, typed := res.Header["Content-Type"]; !typed {
		h["Content-Type"] = nil // or net/http would guess one
	}
	announced := len(res.Trailer)
	for name := range res.Trailer {
		h.Add("Trailer", name)
	}
	x.w.WriteHeader(res.StatusCode)
	if err := x.copyBody(res.Body); err != nil {
		return err
	}
	if len(res.Trailer) > 0 {
		x.flush() // trailers need an answer in chunks
	}
	for name, values := range res.Trailer {
		if len(res.Trailer) != announced {
			name = http.TrailerPrefix + name
		}
		h[name] = values
	}
	return nil
}

func (x *exchange) flush() {
	if f, ok := x.w.(http.Flusher); ok {
		f.Flush()
	}
}

// copyBody passes on what has come before it waits for more. What is whole by
// then is sent at once, with its head, when the request ends.
func (x *exchange) copyBody(body io.Reader) error {
	if body == http.NoBody {
		return nil
	}
	buf := bodies.Get().(*[bufferSize]byte)
	defer bodies.Put(buf)
	x.u.waits = x.flush
	defer func() { x.u.waits = nil }()
	for {
		n, err := body.Read(buf[:])
		if n > 0 {
			if _, err := x.w.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

const bufferSize = 32 << 10

// bodies are what bodies are copied through.
var bodies = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// upgrade joins the two connections for another protocol, WebSocket mostly, and
// returns when both directions have ended.
func (x *exchange) upgrade(res *http.Response) error {
	kind := upgradeOf(res.Header)
	if asked := upgradeOf(x.r.Header); asked == "" || !strings.EqualFold(asked, kind) || x.up != nil {
		return errUpgrade
	}
	client, buffered, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		return errors.Join(errUpgrade, err) // HTTP/2 has none
	}
	x.began = true
	defer client.Close()
	head := []byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n")
	head = appendLine(head, "Upgrade", kind)
	connection := res.Header["Connection"]
	for name, values := range res.Header {
		if ofThisHop(name, connection) {
			continue
		}
		for _, v := range values {
			head = appendLine(head, name, v)
		}
	}
	early, err := buffered.Reader.Peek(buffered.Reader.Buffered())
	err = errors.Join(err, client.SetDeadline(time.Time{}), x.u.patient())
	if err == nil {
		_, err = client.Write(append(head, "\r\n"...))
	}
	if err != nil {
		return err
	}
	up := make(chan struct{})
	go func() {
		defer close(up)
		_, err := x.u.Conn.Write(early)
		if err == nil {
			_, err = io.Copy(x.u.Conn, client)
		}
		endHalf(x.u.Conn, client, err)
	}()
	_, err = io.Copy(client, x.u.br)
	endHalf(client, x.u.Conn, err)
	<-up
	res.Close = true
	return nil
}

// endHalf passes an end on, and ends all where that cannot be.
func endHalf(to, from net.Conn, err error) {
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		if half.CloseWrite() == nil {
			return
		}
	}
	_ = to.Close()
	_ = from.Close()
}

// finish gives the connection of an exchange back, or closes it.
func (s *upstreams) finish(x *exchange, reusable bool) {
	if reusable && x.up != nil {
		reusable = x.up.settled()
	}
	// What has come unasked would be taken for the next answer.
	if reusable && x.u.br.Buffered() == 0 && x.release() {
		s.put(x.u)
		return
	}
	x.release()
	_ = x.u.Close()
	if x.up != nil {
		x.up.end(x)
	}
}

// upload is the body of a request on its way. A sandbox may answer before it is
// whole.
type upload struct {
	done chan struct{}
	err  error // when done is closed
	// told is closed when the sandbox wants the body.
	told chan struct{}
	once sync.Once
}

const (
	// continueWait is how long a sandbox that was asked whether it wants a body
	// may take to say so.
	continueWait = time.Second
	// uploadGrace and uploadRest are for how long, and how much, of a body that
	// nobody wants any more is taken, so that its client comes to read the answer.
	uploadGrace = 500 * time.Millisecond
	uploadRest  = 256 << 10
	// settleWait is for how long it may be unclear whether a body was whole.
	settleWait = 20 * time.Millisecond
)

func startUpload(to net.Conn, r *http.Request) *upload {
	u := &upload{done: make(chan struct{}), told: make(chan struct{})}
	go func() {
		defer close(u.done)
		if hasToken(r.Header["Expect"], "100-continue") {
			late := time.NewTimer(continueWait)
			defer late.Stop()
			select {
			case <-u.told:
			case <-late.C:
			}
		}
		readErr, err := copyUp(to, r)
		if readErr != nil {
			_ = to.Close() // the request will never be whole
		}
		if u.err = errors.Join(readErr, err); err != nil && readErr == nil {
			_, _ = io.CopyN(io.Discard, r.Body, uploadRest)
		}
	}()
	return u
}

func (u *upload) proceed() { u.once.Do(func() { close(u.told) }) }

func (u *upload) over() bool {
	select {
	case <-u.done:
		return true
	default:
		return false
	}
}

// settled says whether a body that was answered is whole. A sandbox may answer
// before the one who sent the last of it has come to say so.
func (u *upload) settled() bool {
	if !u.over() {
		late := time.NewTimer(settleWait)
		defer late.Stop()
		select {
		case <-u.done:
		case <-late.C:
		}
	}
	return u.over() && u.err == nil
}

// end returns when nothing is read from the client any more. The connection to
// the sandbox is closed.
func (u *upload) end(x *exchange) {
	u.proceed()
	if u.over() {
		return
	}
	if x.began {
		x.flush()
	}
	c := http.NewResponseController(x.w)
	if c.SetReadDeadline(time.Now().Add(uploadGrace)) != nil {
		_ = x.r.Body.Close()
	}
	<-u.done
	_ = c.SetReadDeadline(time.Time{})
}

// copyUp writes the body of a request.
func copyUp(to io.Writer, r *http.Request) (readErr, writeErr error) {
	buf := bodies.Get().(*[bufferSize]byte)
	defer bodies.Put(buf)
	chunked := r.ContentLength < 0
	// A chunk is written with its frame at once: room is left around it.
	const before, after = 6, 2 // "8000\r\n"
	var sent int64
	for {
		n, err := r.Body.Read(buf[before : bufferSize-after])
		if n > 0 {
			b := buf[before : before+n]
			if chunked {
				b = framed(buf[:], before, n)
			}
			if _, werr := to.Write(b); werr != nil {
				return nil, werr
			}
			sent += int64(n)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err, nil
		}
	}
	if !chunked {
		if sent != r.ContentLength {
			return io.ErrUnexpectedEOF, nil
		}
		return nil, nil
	}
	end := []byte("0\r\n")
	for name, values := range r.Trailer {
		if isTrailer(name) {
			for _, v := range values {
				end = appendLine(end, name, v)
			}
		}
	}
	_, writeErr = to.Write(append(end, "\r\n"...))
	return nil, writeErr
}

// framed makes a chunk of the n bytes at before, in place.
func framed(buf []byte, before, n int) []byte {
	const digits = "0123456789abcdef"
	at := before - 2
	copy(buf[at:], "\r\n")
	for rest := n; rest > 0; rest >>= 4 {
		at--
		buf[at] = digits[rest&15]
	}
	copy(buf[before+n:], "\r\n")
	return buf[at : before+n+2]
}
