package api

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

// heldBack sends a request whose body never arrives whole, and returns the
// answer.
func (h *harness) heldBack(head, body string) *answer {
	h.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	if err != nil {
		h.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, head+"\r\nHost: x\r\n\r\n"+body); err != nil {
		h.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		h.Fatalf("%q: %v", head, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		h.Fatal(err)
	}
	// The rest of the body could be anything by now: the connection ends.
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		h.Errorf("%q: %d more bytes after the answer", head, n)
	}
	return &answer{status: resp.StatusCode, header: resp.Header, body: data}
}

// A client that announces a body and holds it back gets an answer and loses
// its connection, whether it has a token or not.
func TestBodiesThatNeverArrive(t *testing.T) {
	h := serve(t, controllertest.New(t), func(o *Options) { o.StallTimeout = time.Second })
	// An answer waits for strayTimeout, and has to be taken within StallTimeout.
	h.srv.bodyTimeout, h.srv.strayTimeout = time.Second, 50*time.Millisecond
	session := h.session()
	token := "\r\nAuthorization: Bearer " + testToken
	for _, test := range []struct {
		head, body string
		status     int
		message    string
	}{
		{"POST /v3/sandboxes HTTP/1.1\r\nContent-Length: 1000", "", 401, "access token"},
		{"POST /v3/sandboxes HTTP/1.1\r\nTransfer-Encoding: chunked", "", 401, "access token"},
		{"POST /nowhere HTTP/1.1\r\nContent-Length: 1000", "", 404, "no such endpoint"},
		{"GET /health HTTP/1.1\r\nContent-Length: 1000", "", 200, ""},
		{"POST /v3/sandboxes HTTP/1.1\r\nContent-Length: 1000" + token, `{"name":`, 400, "did not arrive within"},
		{"POST " + session + "/fs/write HTTP/1.1\r\nContent-Length: 1000" + token, "", 400, "stalled"},
		{"POST " + session + "/fs/write HTTP/1.1\r\nTransfer-Encoding: chunked" + token, "5\r\nhello\r\n", 400, "stalled"},
	} {
		a := h.heldBack(test.head, test.body)
		if a.status != test.status || !strings.Contains(string(a.body), test.message) {
			t.Errorf("%q: %d %s", test.head, a.status, a.body)
		}
	}
	// What was read to its end leaves no deadline behind.
	run := ok[commandResponse](h, "POST", session+"/cmd", `{"command":"sleep","args":["0.5"]}`)
	done := ok[commandResponse](h, "GET", session+"/cmd/"+run.Command.ID+"?wait=true", "")
	if done.Command.ExitCode == nil || *done.Command.ExitCode != 0 {
		t.Errorf("%+v", done)
	}
	if a := h.call("POST", session+"/cmd", `{"command":"sleep","args":["0.5"],"wait":true}`); !strings.Contains(string(a.body), `"exitCode":0`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	// With time for it, a body that is too large says so.
	if e := serve(t, &stub{}).call("POST", "/v3/sandboxes", strings.Repeat(" ", maxBody+1)).error(t); e.Code != skerry.CodeTooLarge {
		t.Errorf("%+v", e)
	}
}
