package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// webServer is what listens in the sandboxes: it says what it was asked, sends
// events one by one, echoes bodies, and speaks WebSocket as far as it must.
const webServer = `
const http = require("http"), crypto = require("crypto");
const server = http.createServer((req, res) => {
  if (req.url.startsWith("/events")) {
    res.writeHead(200, {"content-type": "text/event-stream"});
    let n = 0;
    const t = setInterval(() => { res.write("data: " + n++ + "\n\n"); if (n == 3) { clearInterval(t); res.end(); } }, 50);
    return;
  }
  if (req.url == "/echo") { req.pipe(res); return; }
  if (req.url == "/redirect") { res.writeHead(302, {location: "http://127.0.0.1:22/"}); res.end(); return; }
  res.end(JSON.stringify({url: req.url, headers: req.rawHeaders.join("|"), from: req.socket.remoteAddress, pid: process.pid}));
});
server.on("upgrade", (req, socket) => {
  const key = crypto.createHash("sha1").update(req.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
  socket.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + key + "\r\n\r\n");
  socket.write(Buffer.concat([Buffer.from([0x81, 5]), Buffer.from("hello")]));
});
server.listen(Number(process.argv[2]), "0.0.0.0");
`

// web starts the web server in a sandbox and waits until it answers.
func (s *server) web(sb *client.Sandbox, port int) string {
	s.t.Helper()
	if err := sb.WriteFile(s.t.Context(), "web.js", []byte(webServer), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.detach(sb, fmt.Sprintf("exec node web.js %d", port))
	at, err := sb.Domain(port)
	if err != nil {
		s.t.Fatal(err)
	}
	s.waitFor("the web server", func() bool { return fetch(s.t, at).status == http.StatusOK })
	return at
}

type reply struct {
	status int
	code   string
	body   string
}

func fetch(t *testing.T, at string, headers ...string) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	c := &http.Client{
		Timeout: 2 * time.Minute, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	res, err := c.Do(r)
	if err != nil {
		return reply{body: err.Error()}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{res.StatusCode, res.Header.Get("X-Skerry-Error"), string(b)}
}

func TestPorts(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{Name: "web", Ports: []int{3000, 4000}})
	routes := sb.Routes()
	if len(routes) != 2 || routes[0].Port != 3000 || len(routes[0].Subdomain) != 26 || !strings.HasPrefix(routes[0].URL, "http://localhost:2") {
		t.Fatalf("routes: %+v", routes)
	}
	if a := fetch(t, routes[0].URL, "Accept", "text/html"); a.status != 502 || a.code != "port_not_listening" || !strings.Contains(a.body, "refresh") {
		t.Errorf("before anything listens: %+v", a)
	}
	at := s.web(sb, 3000)
	if a := fetch(t, at+"/x?y", "X-Forwarded-For", "6.6.6.6"); a.status != 200 || !strings.Contains(a.body, `"url":"/x?y"`) ||
		!strings.Contains(a.body, "X-Forwarded-For|127.0.0.1|") || strings.Contains(a.body, "6.6.6.6") {
		t.Errorf("%+v", a)
	}
	if a := fetch(t, at+"/redirect"); a.status != 302 {
		t.Errorf("a redirect was followed: %+v", a)
	}
	s.streams(at)

	// Stable across stop and resume, which a request brings about by itself.
	session := sb.Session().ID
	s.stopSaved(sb)
	if a := fetch(t, at); a.status != 502 || a.code != "port_not_listening" {
		t.Errorf("after a resume nothing listens: %+v", a)
	}
	sb = s.get("web")
	if now := sb.Session(); now.ID == session || now.Status != skerry.StatusRunning || !slices.Equal(sb.Routes(), routes) {
		t.Errorf("the request left session %s %s and routes %+v", now.ID, now.Status, sb.Routes())
	}
	s.web(sb, 3000)

	// And across a crash of the server, which the web server survives.
	before := fetch(t, at).body
	s.kill()
	s.start()
	sb = s.get("web")
	if !slices.Equal(sb.Routes(), routes) {
		t.Errorf("after a crash: %+v", sb.Routes())
	}
	if a := fetch(t, at); a.status != 200 || a.body != before {
		t.Errorf("after a crash: %+v, before: %s", a, before)
	}

	// An update replaces the list; what stays keeps its place.
	if err := sb.Update(t.Context(), client.UpdateOptions{Ports: []int{5000, 3000}}); err != nil {
		t.Fatal(err)
	}
	if now := sb.Routes(); len(now) != 2 || now[1] != routes[0] || now[0].Port != 5000 {
		t.Errorf("after an update: %+v", now)
	}
	if a := fetch(t, routes[1].URL); a.status != 0 {
		t.Errorf("a port that is not published any more: %+v", a)
	}
	fork, err := sb.Fork(t.Context(), client.ForkOptions{Name: "fork"})
	if err != nil {
		t.Fatal(err)
	}
	if own, err := fork.Domain(3000); err != nil || own == at || fork.Routes()[1].Subdomain == routes[0].Subdomain {
		t.Errorf("the fork is at %s: %v", own, err)
	}
	list, err := s.ListSandboxesPage(t.Context(), client.ListOptions{})
	if err != nil || len(list.Items) != 2 || len(list.Items[1].Routes) != 2 {
		t.Errorf("listed: %+v %v", list.Items, err)
	}
	s.delete(sb)
	if a := fetch(t, at); a.status != 0 {
		t.Errorf("after the delete: %+v", a)
	}
}

// streams checks what comes piece by piece.
func (s *server) streams(at string) {
	t := s.t
	t.Helper()
	res, err := http.Get(at + "/events")
	if err != nil {
		t.Fatal(err)
	}
	events, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || string(events) != "data: 0\n\ndata: 1\n\ndata: 2\n\n" {
		t.Errorf("events: %q %v", events, err)
	}
	const size = 20 << 20
	res, err = http.Post(at+"/echo", "application/octet-stream", io.LimitReader(zeros{}, size))
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, res.Body)
	res.Body.Close()
	if err != nil || n != size {
		t.Errorf("echoed %d bytes: %v", n, err)
	}
	ws, _, err := websocket.Dial(t.Context(), at, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if _, b, err := ws.Read(t.Context()); err != nil || string(b) != "hello" {
		t.Errorf("WebSocket: %q %v", b, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestPortsBadInput(t *testing.T) {
	s := newServer(t)
	for want, ports := range map[string][]int{
		"ports[1]": {3000, 3000}, "ports[0]": {0}, "ports[2]": {1, 65535, 65536}, "ports": {1, 2, 3, 4, 5},
	} {
		_, err := s.CreateSandbox(t.Context(), client.CreateOptions{Ports: ports})
		if client.CodeOf(err) != skerry.CodeBadRequest || !strings.Contains(err.Error(), want+": ") {
			t.Errorf("%v: %v", ports, err)
		}
	}
	if _, err := s.CreateSandbox(t.Context(), client.CreateOptions{Ports: []int{1}, PrivatePorts: []int{2}}); client.CodeOf(err) != skerry.CodeBadRequest {
		t.Error(err)
	}
}

func TestPrivatePort(t *testing.T) {
	s := newServer(t, "--debug")
	sb := s.create(client.CreateOptions{Name: "web", Ports: []int{3000}})
	at := s.web(sb, 3000)
	if _, err := sb.RouteToken(t.Context(), 3000, 0); client.CodeOf(err) != skerry.CodeConflict {
		t.Errorf("a token for a public port: %v", err)
	}
	if err := sb.Update(t.Context(), client.UpdateOptions{PrivatePorts: []int{3000}}); err != nil {
		t.Fatal(err)
	}
	if now, _ := sb.Domain(3000); now != at || !sb.Routes()[0].Private {
		t.Errorf("%+v", sb.Routes())
	}
	token, err := sb.RouteToken(t.Context(), 3000, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		got  reply
		want int
	}{
		"none":   {fetch(t, at), 401},
		"query":  {fetch(t, token.URL+"&x=1"), 200},
		"header": {fetch(t, at, "X-Skerry-Token", token.Token), 200},
		"page":   {fetch(t, token.URL, "Accept", "text/html"), 303},
	} {
		if test.got.status != test.want || strings.Contains(test.got.body, token.Token) {
			t.Errorf("%s: %+v", name, test.got)
		}
	}
	// A restart keeps the key; public and private again is another.
	s.kill()
	s.start()
	sb = s.get("web")
	if a := fetch(t, token.URL); a.status != 200 {
		t.Errorf("after a restart: %+v", a)
	}
	for _, private := range [][]int{{}, {3000}} {
		if err := sb.Update(t.Context(), client.UpdateOptions{PrivatePorts: private}); err != nil {
			t.Fatal(err)
		}
	}
	if a := fetch(t, token.URL); a.status != 401 {
		t.Errorf("with an earlier key: %+v", a)
	}
	log, err := os.ReadFile(s.path("state/sandboxd.log"))
	if err != nil || strings.Contains(string(log), token.Token) {
		t.Errorf("the token is in the log (%v)", err)
	}
}

// TestHostileBehindRoute has root in a sandbox that the host is connected to
// try to get at the host, the API, routes and another sandbox.
func TestHostileBehindRoute(t *testing.T) {
	s := newServer(t)
	victim := s.create(client.CreateOptions{Name: "victim", Ports: []int{3000}})
	victimAt := s.web(victim, 3000)
	sb := s.create(client.CreateOptions{Name: "hostile", Ports: []int{3000}})
	at := s.web(sb, 3000)
	ws, _, err := websocket.Dial(t.Context(), at, nil) // stays open meanwhile
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	from := func(sb *client.Sandbox) (address, gateway string) {
		ip := strings.Fields(s.output(sb, "hostname", "-I"))[0]
		a := net.ParseIP(ip).To4()
		return ip, net.IPv4(a[0], a[1], a[2], a[3]-1).String()
	}
	_, gateway := from(sb)
	victimIP, victimGateway := from(victim)
	api, err := url.Parse(s.config().URL)
	if err != nil {
		t.Fatal(err)
	}
	published, _ := url.Parse(victimAt)
	var targets []string
	for _, host := range []string{gateway, victimGateway, "127.0.0.1"} {
		for _, port := range []string{api.Port(), published.Port(), "22"} {
			targets = append(targets, host+" "+port)
		}
	}
	targets = append(targets, victimIP+" 3000")
	// The host's side of the open connection, from the port that it is to.
	script := `
import socket, sys
for line in sys.argv[1:]:
    host, port = line.split()
    for own in (0, 3001):
        s = socket.socket(); s.settimeout(1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("", own)); s.connect((host, int(port))); print("REACHED", line)
        except OSError: pass
        finally: s.close()
`
	out := s.asRoot(sb, "python3", append([]string{"-c", script}, targets...)...)
	if strings.Contains(out, "REACHED") {
		t.Errorf("%s", out)
	}
	// Whatever the hostile one answers, the others are served.
	if a := fetch(t, victimAt); a.status != 200 {
		t.Errorf("the victim: %+v", a)
	}
	c, err := net.Dial("tcp", strings.TrimPrefix(at, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s/ HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", victimAt, published.Host)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if own := fetch(t, at); pid(own.body) != pid(string(b)) {
		t.Errorf("a request by one route came to another sandbox: %s", b)
	}
}

// pid is the part of an reply that is a server's own.
func pid(body string) string { _, after, _ := strings.Cut(body, `"from":`); return after }
