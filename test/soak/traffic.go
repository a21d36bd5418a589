package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/skerry-dev/skerry/client"
)

// policy is a network policy with what a sandbox reaches under it.
type policy struct {
	name   string
	policy client.NetworkPolicy
	// one, other and named are whether the destinations are reached: by address, and the
	// first by its name.
	one, other, named bool
}

// ownPolicy is the one that sandboxes are created with.
var ownPolicy = policy{"allow-all", client.NetworkPolicy{Mode: "allow-all"}, true, true, true}

var policies = []policy{
	ownPolicy,
	{"deny-all", client.NetworkPolicy{Mode: "deny-all"}, false, false, false},
	{"one network", client.NetworkPolicy{AllowCIDRs: []string{oneIP + "/32"}}, true, false, false},
	{"one name", client.NetworkPolicy{AllowDomains: []string{oneName}}, false, false, true},
	{"one network and one name", client.NetworkPolicy{AllowCIDRs: []string{otherIP + "/32"}, AllowDomains: []string{oneName}}, false, true, true},
}

// changePolicy changes the policy of the running session. It is enforced when the call
// returns.
func changePolicy(w *worker, ctx context.Context, b *box) error {
	next := policies[w.random.IntN(len(policies))]
	b.policy = policy{} // not known until it is answered
	if err := w.call("set policy", func() error { return b.sb.SetNetworkPolicy(ctx, next.policy) }); err != nil {
		return err
	}
	b.policy = next
	return reach(w, ctx, b)
}

// reach checks what the sandbox reaches.
func reach(w *worker, ctx context.Context, b *box) error {
	if b.policy.name == "" {
		return changePolicy(w, ctx, b)
	}
	from := time.Now()
	p := b.policy
	// A packet that is dropped is not waited for as long as an answer.
	patience := func(reached bool) string { return map[bool]string{true: "30", false: "3"}[reached] }
	const script = `while [ $# -gt 0 ]; do curl -sSf -m "$2" "http://$1/" 2>/dev/null || echo denied; shift 2; done`
	// It is measured apart, because it waits for packets that are dropped.
	cmd := b.sb.Command(ctx, "sh", "-c", script, "sh", oneIP, patience(p.one), otherIP, patience(p.other), oneName, patience(p.named))
	out, err := w.run("reach", b, cmd, 0)
	if err != nil {
		return err
	}
	have := strings.Split(strings.TrimSpace(out.stdout.String()), "\n")
	if len(have) != 3 {
		return wrongf("the sandbox prints %q", out.stdout.String())
	}
	// What goes through the proxy needs the server. What is denied is denied without it.
	proxied := p.policy.Mode == "" && len(w.faults.during("", from, time.Now())) > 0
	for i, want := range []struct {
		what, ip string
		reached  bool
	}{{oneIP, oneIP, p.one}, {otherIP, otherIP, p.other}, {oneName, oneIP, p.named}} {
		answer := "denied"
		if want.reached {
			answer = "reached " + want.ip
		}
		if have[i] != answer && !(proxied && have[i] == "denied") {
			return wrongf("under the policy %q, %s is %q, not %q", p.name, want.what, have[i], answer)
		}
	}
	return nil
}

// webScript is a web server that answers with what it has in memory.
const webScript = `
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (sys.argv[2] + " " + self.path + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()`

// serveWeb starts the web server in the sandbox, unless it runs.
func (w *worker) serveWeb(ctx context.Context, b *box) error {
	if b.token != "" {
		return nil
	}
	token := fmt.Sprintf("%s-%x", b.name, w.random.Uint64())
	cmd := b.sb.Command(ctx, "python3", "-c", webScript, fmt.Sprint(webPort), token)
	cmd.Detached = true
	if err := w.call("exec, detached", cmd.Start); err != nil {
		// It may run all the same, and hold the port with a token that is not known. In
		// this sandbox no other can be started.
		b.token = unsure
		return err
	}
	b.token = token
	for {
		err := w.ask(ctx, b)
		if e, ok := errors.AsType[*statusError](err); !ok || e.code != "port_not_listening" {
			return err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// requestPort sends a request to the sandbox's published port.
func requestPort(w *worker, ctx context.Context, b *box) error {
	if err := w.serveWeb(ctx, b); err != nil {
		return err
	}
	return w.ask(ctx, b)
}

// ask sends a request to the web server of a sandbox.
func (w *worker) ask(ctx context.Context, b *box) error {
	if b.token == unsure {
		return nil
	}
	at, err := b.sb.Domain(webPort)
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/%x", w.random.Uint64())
	b.requested = true
	return w.call("request to a port", func() error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, at+path, nil)
		if err != nil {
			return err
		}
		resp, err := w.web.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return &statusError{status: resp.StatusCode, code: resp.Header.Get("X-Skerry-Error")}
		}
		if want := b.token + " " + path + "\n"; string(body) != want {
			return wrongf("the port answers %q, not %q", body, want)
		}
		return nil
	})
}

// slowConn is a connection from which its user reads one byte at a time, and pauses now
// and then.
type slowConn struct {
	net.Conn
	read int
}

func (c *slowConn) Read(p []byte) (int, error) {
	if len(p) > 1 {
		p = p[:1]
	}
	if c.read++; c.read%512 == 0 {
		time.Sleep(time.Millisecond)
	}
	return c.Conn.Read(p)
}

// slowTransport makes slow connections.
func slowTransport() *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		_ = conn.(*net.TCPConn).SetReadBuffer(4096) // so that the server has to wait
		return &slowConn{Conn: conn}, nil
	}}
}

// readSlowly reads the output of a command one byte at a time.
func readSlowly(w *worker, ctx context.Context, b *box) error {
	sb, err := w.slow.GetSandbox(ctx, b.name, client.GetOptions{})
	if err != nil {
		return err
	}
	from := w.random.IntN(1_000_000)
	const lines = 10_000
	cmd := sb.Command(ctx, "seq", fmt.Sprint(from), fmt.Sprint(from+lines))
	return w.printedAs("exec, slow reader", b, cmd, 0, sequence(from, from+lines), nil)
}

// briefly returns a context that ends within a time.
func (w *worker) briefly(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Duration(w.random.Int64N(int64(most))))
}

// leaveCommand leaves a command that it is attached to. The command is killed.
func leaveCommand(w *worker, ctx context.Context, b *box) error {
	brief, cancel := w.briefly(ctx, 500*time.Millisecond)
	defer cancel()
	// If the client leaves before it knows the command, the command goes on to its end.
	cmd := b.sb.Command(brief, "sleep", "20")
	if err := cmd.Run(); err == nil {
		return wrongf("a command of 20 seconds has ended")
	} else if brief.Err() == nil || cmd.ID() == "" {
		if brief.Err() != nil {
			return nil
		}
		if exit, ok := errors.AsType[*client.ExitError](err); ok {
			return &exitError{code: exit.Code}
		}
		return err
	}
	for end := time.Now().Add(10 * time.Second); ; {
		again, err := b.sb.FindCommand(ctx, cmd.ID())
		if err != nil {
			return err
		}
		if info := again.Info(); info.Finished() {
			return nil
		}
		if time.Now().After(end) && len(w.faults.during("", end.Add(-15*time.Second), time.Now())) == 0 {
			return wrongf("command %s runs on after its client has left", cmd.ID())
		} else if time.Now().After(end.Add(15 * time.Second)) {
			return nil // its kill was lost with a server
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// leaveCreate leaves while its sandbox is created. The sandbox does not exist then, or it
// is as usable as any, if its creation had ended.
func leaveCreate(w *worker, ctx context.Context, b *box) error {
	brief, cancel := w.briefly(ctx, 300*time.Millisecond)
	defer cancel()
	_, err := w.client.CreateSandbox(brief, client.CreateOptions{Name: b.name, Timeout: sessionTimeout})
	if err != nil && brief.Err() == nil {
		return err
	}
	sb, err := w.settled(ctx, b.name)
	if client.IsNotFound(err) {
		// The request of a client that left at once may arrive after this one.
		if err := pause(ctx, 300*time.Millisecond); err != nil {
			return err
		}
		sb, err = w.settled(ctx, b.name)
	}
	if client.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	b.sb = sb
	b.began(sb.Session().ID)
	// It may go at any moment.
	if err := w.look(ctx, b); err != nil && !client.IsNotFound(err) && !client.IsStopped(err) {
		return err
	}
	return w.remove(ctx, b.name)
}

// leaveUpload leaves in the middle of an upload.
func leaveUpload(w *worker, ctx context.Context, b *box) error {
	brief, cancel := w.briefly(ctx, 100*time.Millisecond)
	defer cancel()
	path, content := w.path(), w.bytes(4_000_000)
	b.files[path] = unsure
	if err := b.sb.WriteFile(brief, path, content, 0o644); err == nil {
		b.files[path] = checksum(content)
	} else if brief.Err() == nil {
		return err
	}
	return nil
}
