package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

// dial asks for a terminal and opens its WebSocket.
func (h *harness) dial(session string) *websocket.Conn {
	h.Helper()
	ticket := ok[interactiveResponse](h, "POST", session+"/interactive", `{}`)
	conn, _, err := websocket.Dial(h.Context(), ticket.URL+"?token="+url.QueryEscape(ticket.Token), &websocket.DialOptions{HTTPClient: h.client})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

func sendText(t testing.TB, conn *websocket.Conn, text string) {
	t.Helper()
	if err := conn.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func keys(t testing.TB, conn *websocket.Conn, text string) {
	t.Helper()
	if err := conn.Write(t.Context(), websocket.MessageBinary, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// shown reads a terminal until it shows want.
func shown(t testing.TB, conn *websocket.Conn, want string) {
	t.Helper()
	var screen strings.Builder
	for !strings.Contains(screen.String(), want) {
		kind, data, err := conn.Read(t.Context())
		if err != nil || kind != websocket.MessageBinary {
			t.Fatalf("waiting for %q in %q: %v %s %v", want, screen.String(), kind, data, err)
		}
		screen.Write(data)
	}
}

// end reads a connection to its end: what was shown, the control messages and
// why it closed.
func end(t testing.TB, conn *websocket.Conn) (screen string, control []map[string]any, status websocket.StatusCode) {
	t.Helper()
	for {
		kind, data, err := conn.Read(t.Context())
		if err != nil {
			return screen, control, websocket.CloseStatus(err)
		}
		if kind == websocket.MessageBinary {
			screen += string(data)
			continue
		}
		var m map[string]any
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		control = append(control, m)
	}
}

func TestTerminal(t *testing.T) { overBoth(t, testTerminal) }

func testTerminal(t *testing.T, serve serveFunc) {
	h := serve(t, controllertest.New(t))
	conn := h.dial(h.session())
	sendText(t, conn, `{"type":"start","command":"sh","args":["-c","stty -echo; echo $A; stty size; read line; stty size; echo got $line; exit 7"],"env":["A=b=c"],"cols":100,"rows":40}`)
	shown(t, conn, "b=c\r\n40 100\r\n")
	sendText(t, conn, `{"type":"news from a newer client"}`)
	sendText(t, conn, `{"type":"resize","cols":0,"rows":5}`)
	sendText(t, conn, `{"type":"resize","cols":132,"rows":50}`)
	sendText(t, conn, `{"type":"resize","cols":4097,"rows":4097}`)
	keys(t, conn, "hel")
	keys(t, conn, "lo\r")
	screen, control, status := end(t, conn)
	if screen != "50 132\r\ngot hello\r\n" {
		t.Errorf("screen %q", screen)
	}
	if len(control) != 1 || control[0]["type"] != "exit" || control[0]["code"] != 7.0 || status != websocket.StatusNormalClosure {
		t.Errorf("control %v, closed with %d", control, status)
	}
}

func TestTerminalWithoutAWindow(t *testing.T) {
	h := serve(t, controllertest.New(t))
	conn := h.dial(h.session())
	sendText(t, conn, `{"type":"start","command":"stty","args":["size"]}`)
	if screen, control, _ := end(t, conn); screen != "24 80\r\n" || control[0]["code"] != 0.0 {
		t.Errorf("%q %v", screen, control)
	}
}

func TestLargeTerminalOutputArrivesWhole(t *testing.T) {
	overBoth(t, testLargeTerminalOutputArrivesWhole)
}

func testLargeTerminalOutputArrivesWhole(t *testing.T, serve serveFunc) {
	h := serve(t, controllertest.New(t))
	conn := h.dial(h.session())
	conn.SetReadLimit(1 << 20)
	sendText(t, conn, `{"type":"start","command":"sh","args":["-c","stty -onlcr; head -c 3000000 /dev/zero | tr '\\0' x; echo end"]}`)
	screen, control, _ := end(t, conn)
	if len(screen) != 3000004 || !strings.HasSuffix(screen, "end\n") || len(control) != 1 {
		t.Errorf("%d bytes, %v", len(screen), control)
	}
}

// TestLargestFrame: a frame as large as it may be is taken, and a larger one
// ends the terminal.
func TestLargestFrame(t *testing.T) { overBoth(t, testLargestFrame) }

func testLargestFrame(t *testing.T, serve serveFunc) {
	h := serve(t, controllertest.New(t))
	s := h.session()
	sized := func(n int) string {
		const start = `{"type":"start","command":"cat"}`
		return start + strings.Repeat(" ", n-len(start))
	}
	conn := h.dial(s)
	sendText(t, conn, sized(maxFrame))
	keys(t, conn, "up\r")
	shown(t, conn, "up")
	keys(t, conn, strings.Repeat("x", maxFrame+1))
	if _, _, status := end(t, conn); status != websocket.StatusMessageTooBig {
		t.Errorf("a large paste: closed with %d", status)
	}
	conn = h.dial(s)
	sendText(t, conn, sized(maxFrame+1))
	if screen, control, status := end(t, conn); screen != "" || len(control) > 0 || status != websocket.StatusMessageTooBig {
		t.Errorf("a large start: %q %v, closed with %d", screen, control, status)
	}
	h.srv.terminals.Wait()
	if log := h.logs.String(); strings.Contains(log, "level=ERROR") {
		t.Errorf("clients make errors of the server: %s", log)
	}
}

func TestClientThatGoesHangsUp(t *testing.T) { overBoth(t, testClientThatGoesHangsUp) }

func testClientThatGoesHangsUp(t *testing.T, serve serveFunc) {
	svc := controllertest.New(t)
	h := serve(t, svc)
	conn := h.dial(h.session())
	sendText(t, conn, `{"type":"start","command":"sh","args":["-c","echo up; read x"]}`)
	shown(t, conn, "up")
	if err := conn.CloseNow(); err != nil {
		t.Fatal(err)
	}
	h.srv.terminals.Wait() // Close of the terminal waits for its process
}

func TestServerEndingClosesTerminals(t *testing.T) { overBoth(t, testServerEndingClosesTerminals) }

func testServerEndingClosesTerminals(t *testing.T, serve serveFunc) {
	h := serve(t, controllertest.New(t))
	conn := h.dial(h.session())
	sendText(t, conn, `{"type":"start","command":"sh","args":["-c","echo up; read x"]}`)
	shown(t, conn, "up")
	h.srv.drain()
	h.srv.terminals.Wait()
}

func TestBadStartFrames(t *testing.T) { overBoth(t, testBadStartFrames) }

func testBadStartFrames(t *testing.T, serve serveFunc) {
	h := serve(t, controllertest.New(t))
	s := h.session()
	for frame, field := range map[string]string{
		`{`:                                    "",
		`{"type":"resize"}`:                    "type",
		`{"type":"start"}`:                     "command",
		`{"type":"start","command":""}`:        "command",
		`{"type":"start","command":"a\u0000"}`: "command",
		`{"type":"start","command":"a","env":["novalue"]}`:                         "env[0]",
		`{"type":"start","command":"a","env":{"A":"b"}}`:                           "env",
		`{"type":"start","command":"a","cols":4097}`:                               "cols",
		`{"type":"start","command":"a","rows":-1}`:                                 "rows",
		`{"type":"start","command":"a","cwd":"` + strings.Repeat("x", 5000) + `"}`: "cwd",
	} {
		conn := h.dial(s)
		sendText(t, conn, frame)
		screen, control, status := end(t, conn)
		if len(control) != 2 || control[0]["type"] != "error" || control[0]["code"] != "bad_request" || control[1]["type"] != "exit" ||
			control[1]["code"] != 1.0 || status != websocket.StatusNormalClosure || !strings.HasPrefix(screen, "sandbox: ") {
			t.Errorf("%.80s: %q %v %d", frame, screen, control, status)
			continue
		}
		if got, _ := control[0]["field"].(string); got != field {
			t.Errorf("%.80s: field %q", frame, got)
		}
	}
	conn := h.dial(s)
	keys(t, conn, "ls\r")
	if _, control, _ := end(t, conn); len(control) != 2 || control[0]["code"] != "bad_request" {
		t.Errorf("keys before a start: %v", control)
	}
}

func TestTicketsOpenOneTerminal(t *testing.T) {
	h := serve(t, controllertest.New(t))
	s, other := h.session(), h.session()
	ticket := ok[interactiveResponse](h, "POST", s+"/interactive", ``)
	u, err := url.Parse(ticket.URL)
	if err != nil || u.Scheme != "ws" || u.RawQuery != "" || "http://"+u.Host != h.url {
		t.Fatalf("URL %q", ticket.URL)
	}
	refused := func(path, token string) {
		t.Helper()
		_, resp, err := websocket.Dial(t.Context(), "ws://"+u.Host+path+"?token="+token, nil)
		if err == nil || resp.StatusCode != 401 {
			t.Errorf("%s: %v", path, err)
		}
	}
	refused(u.Path, "wrong")
	conn, _, err := websocket.Dial(t.Context(), ticket.URL+"?token="+ticket.Token, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	refused(u.Path, ticket.Token) // used
	ticket = ok[interactiveResponse](h, "POST", s+"/interactive", ``)
	refused(other+"/interactive", ticket.Token) // of another session
	refused(u.Path, ticket.Token)               // and spent by trying
	h.refused("GET", s+"/interactive?token=x", "", 400, skerry.CodeBadRequest, "")
	h.refused("POST", "/v2/sandboxes/sessions/none/interactive", "", 404, skerry.CodeNotFound, "")
}

func TestTerminalURL(t *testing.T) {
	for _, c := range []struct {
		public, proto, host, prefix, want string
		trust                             bool
	}{
		{want: "ws://HOST/v2/"},
		{prefix: "/api", want: "ws://HOST/api/v2/"},
		{proto: "https", host: "box.example", want: "ws://HOST/v2/"},
		{proto: "https", host: "box.example, inner", trust: true, want: "wss://box.example/v2/"},
		{public: "https://box.example/skerry/", prefix: "/api", want: "wss://box.example/skerry/v2/"},
	} {
		h := serve(t, controllertest.New(t), func(o *Options) { o.PublicURL, o.TrustForwarded = c.public, c.trust })
		req := h.request("POST", c.prefix+h.session()+"/interactive", "")
		req.Header.Set("X-Forwarded-Proto", c.proto)
		req.Header.Set("X-Forwarded-Host", c.host)
		var got interactiveResponse
		if err := json.Unmarshal(h.send(req).body, &got); err != nil {
			t.Fatal(err)
		}
		want := strings.Replace(c.want, "HOST", strings.TrimPrefix(h.url, "http://"), 1)
		if !strings.HasPrefix(got.URL, want) {
			t.Errorf("%+v: %s", c, got.URL)
		}
	}
}

func TestTicketsExpireAndAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var office ticketOffice
		in := func(project string) caller {
			team, _, _ := strings.Cut(project, "/")
			return caller{identity: &testIdentity, scope: skerry.Scope{TeamID: "team of " + team, ProjectID: project}}
		}
		issue := func() string {
			t.Helper()
			token, err := office.issue(in("prj_1"), "s")
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		early, old := issue(), issue()
		time.Sleep(ticketLife - time.Nanosecond)
		if _, good := office.redeem(early, "s"); !good {
			t.Error("a token is refused within its life")
		}
		time.Sleep(time.Nanosecond)
		if _, good := office.redeem(old, "s"); good {
			t.Error("a token is good after its life")
		}
		for range maxTicketsEach {
			issue()
		}
		if _, err := office.issue(in("prj_1"), "s"); skerry.CodeOf(err) != skerry.CodeRateLimited {
			t.Errorf("one more than the bound: %v", err)
		}
		for i := range maxTicketsTeam / maxTicketsEach {
			for range maxTicketsEach {
				if _, err := office.issue(in(fmt.Sprint("red/", i)), "s"); err != nil {
					t.Fatalf("a team with many projects: %v", err)
				}
			}
		}
		if _, err := office.issue(in("red/more"), "s"); skerry.CodeOf(err) != skerry.CodeRateLimited {
			t.Errorf("one more than a team may have: %v", err)
		}
		for i := range (maxTickets-maxTicketsTeam)/maxTicketsEach - 1 {
			for range maxTicketsEach {
				if _, err := office.issue(in(fmt.Sprint("prj_neighbour", i)), "s"); err != nil {
					t.Fatalf("another project: %v", err)
				}
			}
		}
		if _, err := office.issue(in("prj_late"), "s"); skerry.CodeOf(err) != skerry.CodeRateLimited {
			t.Errorf("one more than all may have: %v", err)
		}
		time.Sleep(ticketLife)
		issue()
		if n := len(office.out); n != 1 {
			t.Errorf("%d tokens are kept", n)
		}
	})
}

func FuzzStartFrame(f *testing.F) {
	f.Add([]byte(`{"type":"start","command":"sh","args":["-c","x"],"env":["A=b"],"cwd":"/","cols":80,"rows":24}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := parseTree(data)
		if err != nil {
			return
		}
		var frame startFrame
		if bindBody(tree, &frame) != nil {
			return
		}
		p := frame.params()
		if p.Validate() == nil && (p.Name == "" || p.Cols == 0 || p.Rows == 0) {
			t.Errorf("%q: %+v", data, p)
		}
	})
}

// silentTerminal takes no keys until it is closed.
type silentTerminal struct {
	typed, closed chan struct{}
}

func (s *silentTerminal) Read([]byte) (int, error)    { <-s.closed; return 0, fmt.Errorf("hung up") }
func (s *silentTerminal) Resize(uint16, uint16) error { return nil }
func (s *silentTerminal) Wait() (int, error)          { <-s.closed; return 129, nil }
func (s *silentTerminal) Close() error                { close(s.closed); return nil }

func (s *silentTerminal) Write([]byte) (int, error) {
	close(s.typed)
	<-s.closed
	return 0, fmt.Errorf("hung up")
}

type terminalService struct {
	*controllertest.Service
	term skerry.Terminal
}

func (s terminalService) OpenTerminal(context.Context, skerry.Scope, string, skerry.TerminalParams) (skerry.Terminal, error) {
	return s.term, nil
}

func TestBlockedKeysDoNotKeepTheServer(t *testing.T) {
	term := &silentTerminal{typed: make(chan struct{}), closed: make(chan struct{})}
	h := serve(t, terminalService{controllertest.New(t), term})
	conn := h.dial(h.session())
	sendText(t, conn, `{"type":"start","command":"c"}`)
	keys(t, conn, "typed into nothing")
	<-term.typed
	h.srv.drain()
	<-term.closed
	h.srv.terminals.Wait()
}
