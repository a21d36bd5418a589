package workloads

import (
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry/client"
)

// devServer is a development server whose page is seen and changed through a
// published port.
type devServer struct {
	name    string
	port    int
	install string
	serve   string
	// file is what the page's text is in.
	file string
	// page is the file with a text.
	page func(text string) string
	// source is where the text is found over HTTP.
	source string
	// socket is the path of the updates' WebSocket, given what is at tokenAt.
	tokenAt  string
	socket   func(client string) string
	protocol string
}

var wsToken = regexp.MustCompile(`wsToken = "([^"]+)"`)

var devServers = []devServer{
	{
		name: "Vite", port: 5173,
		install: `mkdir -p vite && cd vite && npm install -s --no-audit --no-fund vite && echo '<script type="module" src="/main.js"></script>' >index.html`,
		serve:   "cd vite && exec npx vite --host 0.0.0.0 --port 5173 --strictPort",
		file:    "vite/main.js", source: "/main.js",
		page:    func(text string) string { return "document.title = '" + text + "'\n" },
		tokenAt: "/@vite/client",
		socket: func(client string) string {
			if m := wsToken.FindStringSubmatch(client); m != nil {
				return "/?token=" + m[1]
			}
			return "/"
		},
		protocol: "vite-hmr",
	},
	{
		name: "Next.js", port: 3000,
		install: "mkdir -p next/pages && cd next && npm install -s --no-audit --no-fund next react react-dom",
		serve:   "cd next && NEXT_TELEMETRY_DISABLED=1 exec npx next dev --hostname 0.0.0.0 --port 3000",
		file:    "next/pages/index.js", source: "/", tokenAt: "/",
		page:   func(text string) string { return "export default function Page() { return <p>" + text + "</p> }\n" },
		socket: func(string) string { return "/_next/hmr?id=test" },
	},
}

// TestDevServers: a development server works through a published port, and
// pushes what changes.
func TestDevServers(t *testing.T) {
	if testing.Short() {
		return // minutes of npm
	}
	for _, d := range devServers {
		t.Run(d.name, func(t *testing.T) { d.test(t) })
	}
}

func (d *devServer) test(t *testing.T) {
	sb := create(t, client.CreateOptions{VCPUs: 2, Ports: []int{d.port}})
	shell(t, sb, d.install)
	write := func(text string) {
		t.Helper()
		if err := sb.WriteFile(t.Context(), d.file, []byte(d.page(text)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("the first text")
	server := sb.Command(t.Context(), "sh", "-c", d.serve)
	server.Detached = true
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	url, err := sb.Domain(d.port)
	// Development servers refuse updates to a page of any other name.
	url = strings.Replace(url, "127.0.0.1", "localhost", 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	await(t, ctx, url+d.source, "the first text")
	socket := url + d.socket(fetch(ctx, url+d.tokenAt))
	conn, _, err := websocket.Dial(ctx, socket, &websocket.DialOptions{
		HTTPHeader: http.Header{"Origin": {url}}, Subprotocols: strings.Fields(d.protocol),
	})
	if err != nil {
		t.Fatalf("connect for updates: %v", err)
	}
	defer conn.CloseNow()
	conn.SetReadLimit(-1)
	pushed := make(chan string, 1024)
	go func() {
		defer close(pushed)
		for {
			_, b, err := conn.Read(ctx)
			if err != nil {
				return
			}
			pushed <- string(b)
		}
	}()
	write("the second text")
	await(t, ctx, url+d.source, "the second text")
	changed := regexp.MustCompile(`update|reload|sync|built|building|turbopack-message`)
	for message := range pushed {
		if changed.MatchString(message) {
			return
		}
	}
	t.Error("no update was pushed")
}

// fetch returns what is at a URL, "" if nothing is yet.
func fetch(ctx context.Context, url string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return ""
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 8<<20)) // what came counts
	return string(b)
}

// await fetches until a text is there.
func await(t *testing.T, ctx context.Context, url, text string) {
	t.Helper()
	last := ""
	for ctx.Err() == nil {
		if last = fetch(ctx, url); strings.Contains(last, text) {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	t.Fatalf("%s does not show %q, but\n%.2000s", url, text, last)
}
