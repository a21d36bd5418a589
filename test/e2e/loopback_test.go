package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry/client"
)

// loopbackServers listen on loopback addresses alone: the web server of the other
// tests, Python's at ::1, and one that ends its half and reads on.
const loopbackServers = `
node web.js 3000 & python3 -m http.server --bind ::1 3001 &
exec python3 -c '
import socket, struct, time
s = socket.create_server(("127.0.0.1", 3002))
while True:
    c, _ = s.accept()
    asked = c.recv(65536)
    if b"/reset" in asked:
        c.sendall(b"HTTP/1.1 200 OK\r\n\r\npart")
        time.sleep(0.2)
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif asked:
        c.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3000000)
        c.shutdown(socket.SHUT_WR)
        try:
            while c.recv(65536): pass
        except ConnectionResetError: pass
    c.close()
'`

// loopback returns a sandbox with programs that listen on its loopback interface,
// and where ports 3000 to 3003 are reached. Nothing listens on the last.
func (s *server) loopback() (*client.Sandbox, []string) {
	t := s.t
	t.Helper()
	sb := s.create(client.CreateOptions{Name: "loop", Ports: []int{3000, 3001, 3002, 3003}})
	web := strings.Replace(webServer, "0.0.0.0", "127.0.0.1", 1)
	if err := sb.WriteFile(t.Context(), "web.js", []byte(web), 0o644); err != nil {
		t.Fatal(err)
	}
	s.detach(sb, loopbackServers)
	code, out := s.shell(sb, `exec python3 -c '
import socket, time
for at in ("127.0.0.1", 3000), ("::1", 3001), ("127.0.0.1", 3002):
    for _ in range(1200):
        try:
            socket.create_connection(at).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    else:
        raise SystemExit(f"nothing listens at {at}")
'`)
	if code != 0 {
		t.Fatal(out)
	}
	var at []string
	for port := 3000; port <= 3003; port++ {
		url, err := sb.Domain(port)
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, url)
	}
	return sb, at
}

// TestLoopback: a program that listens on 127.0.0.1 or ::1 alone is reached as
// one that listens on all addresses.
func TestLoopback(t *testing.T) {
	s := newServer(t)
	sb, at := s.loopback()
	if a := fetch(t, at[0]+"/x?y"); a.status != 200 || !strings.Contains(a.body, `"url":"/x?y"`) || !strings.Contains(a.body, `"from":"127.0.0.1"`) {
		t.Errorf("127.0.0.1: %+v", a)
	}
	if a := fetch(t, at[1]+"/web.js"); a.status != 200 || !strings.Contains(a.body, "createServer") {
		t.Errorf("::1: %+v", a)
	}
	if a := fetch(t, at[2]); a.status != 200 || a.body != strings.Repeat("x", 3000000) {
		t.Errorf("a half that has ended: %d and %d bytes", a.status, len(a.body))
	}
	if a := fetch(t, at[3]); a.status != 502 || a.code != "port_not_listening" {
		t.Errorf("where nothing listens: %+v", a)
	}
	if r, err := http.Get(at[2] + "/reset"); err == nil {
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if r.StatusCode == 200 && err == nil {
			t.Errorf("an answer that was cut off looks whole: %q", b)
		}
	}
	s.streams(at[0])
	echoes(t, at[0]+"/echo")

	// More at once than there may be: the others wait for their turn.
	var wg sync.WaitGroup
	for range 72 {
		wg.Go(func() {
			if a := fetch(t, at[0]); a.status != 200 {
				t.Errorf("one of many: %+v", a)
			}
		})
	}
	wg.Wait()

	// What is open ends with the session, and does not delay its end.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	open, _, err := websocket.Dial(ctx, at[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer open.CloseNow()
	s.stopSaved(sb)
	for err == nil {
		_, _, err = open.Read(ctx)
	}
	if ctx.Err() != nil {
		t.Error("a connection has outlived its session")
	}
}

// echoes posts 5 MB of which none is like another, and wants them back.
func echoes(t *testing.T, at string) {
	t.Helper()
	var body bytes.Buffer
	for n := 0; body.Len() < 5_000_000; n++ {
		fmt.Fprintln(&body, n)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at, bytes.NewReader(body.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 || !bytes.Equal(b, body.Bytes()) {
		t.Errorf("an echo of %d bytes: %d, %d bytes, %v", body.Len(), res.StatusCode, len(b), err)
	}
}

// TestLoopbackOff: the operator may leave such programs out of reach.
func TestLoopbackOff(t *testing.T) {
	s := newServer(t, "--reach-loopback=false")
	_, at := s.loopback()
	for _, url := range at {
		if a := fetch(t, url); a.status != 502 || a.code != "port_not_listening" {
			t.Errorf("%s: %+v", url, a)
		}
	}
}
