package ingress

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/skerry-dev/skerry/internal/share"
)

const (
	// redirectConnections bounds clients of plain HTTP; redirectHeaders what
	// each may send; redirectTimeout how long it may take for all.
	redirectConnections = 1024
	redirectHeaders     = 8 << 10
	redirectTimeout     = 10 * time.Second
)

// Redirect leads from plain HTTP to the ingress of a domain. It knows no
// routes, and so tells nobody which there are.
type Redirect struct {
	domain, port string
	answer       func(http.ResponseWriter, *http.Request) bool
	ln           net.Listener
	server       *http.Server
	connections  *share.Slots[holder]
	work         sync.WaitGroup
}

// Redirect returns one at a listener, which it closes in the end. What answer
// answers it leaves alone; nil answers nothing.
func (i *Ingress) Redirect(ln net.Listener, answer func(http.ResponseWriter, *http.Request) bool) *Redirect {
	d := &Redirect{domain: i.cfg.Domain, port: i.urlPort, answer: answer, ln: ln, connections: share.New[holder](redirectConnections, redirectConnections)}
	d.server = &http.Server{
		Handler: d, DisableGeneralOptionsHandler: true, MaxHeaderBytes: redirectHeaders, ReadHeaderTimeout: redirectTimeout, ReadTimeout: redirectTimeout, WriteTimeout: redirectTimeout,
		ErrorLog: slog.NewLogLogger(i.cfg.Log.Handler(), slog.LevelDebug),
	}
	// A request each: bodies are not read to get to the next.
	d.server.SetKeepAlivesEnabled(false)
	return d
}

// Start lets clients in. It is called once.
func (d *Redirect) Start() {
	d.work.Go(func() {
		_ = d.server.Serve(&listener{Listener: d.ln, slots: d.connections})
	})
}

// Close ends all at once.
func (d *Redirect) Close() error {
	err := d.server.Close()
	if lerr := d.ln.Close(); !errors.Is(lerr, net.ErrClosed) {
		err = errors.Join(err, lerr)
	}
	d.work.Wait()
	return err
}

// ServeHTTP implements http.Handler.
func (d *Redirect) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if d.answer != nil && d.answer(w, r) {
		return
	}
	label, ok := subdomainOf(r.Host, d.domain)
	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	if !ok || r.Method == http.MethodConnect || r.URL.Opaque != "" || !strings.HasPrefix(path, "/") {
		http.Error(w, "nothing is here", http.StatusNotFound)
		return
	}
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	http.Redirect(w, r, "https://"+label+"."+d.domain+d.port+path, http.StatusPermanentRedirect)
}
