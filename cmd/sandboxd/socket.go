package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/store"
)

// A running server is asked over a socket in its state folder for what other
// commands of sandboxd want of it: nobody else opens its database. Only root may
// connect.
const socketFile = "sandboxd.sock"

// maxSocketBody bounds a request over the socket.
const maxSocketBody = 4 << 20

// inFolder calls f with a short path of a file in a folder: that of a socket has
// 107 bytes at the most.
func inFolder(dir, name string, f func(path string) error) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", fd, name))
}

// listenUnix listens at a socket in a folder, to which only root may connect. Who
// listens removes its file.
func listenUnix(dir, name string) (ln *net.UnixListener, err error) {
	path := filepath.Join(dir, name)
	// A new socket has the mode of the umask. So it is made where nobody else comes. The
	// folder has one name, so that what a crash leaves is removed by the next listener.
	hidden := filepath.Join(dir, ".socket")
	if err := os.RemoveAll(hidden); err != nil {
		return nil, err
	}
	if err := os.Mkdir(hidden, 0o700); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(hidden)) }()
	err = inFolder(hidden, name, func(short string) error {
		ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false) // by that path it could not
	made := filepath.Join(hidden, name)
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

// serveSocket answers requests over the socket until the returned function is
// called. The state folder is the caller's.
func serveSocket(state string, h http.Handler) (stop func() error, err error) {
	path := filepath.Join(state, socketFile)
	ln, err := listenUnix(state, socketFile)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: http.MaxBytesHandler(h, maxSocketBody), ReadHeaderTimeout: 10 * time.Second}
	server.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		if c, ok := conn.(*net.UnixConn); ok {
			ctx = withPeer(ctx, c)
		}
		return ctx
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	return func() error {
		// An answer that is being written gets out.
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		err := server.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = server.Close()
		}
		if serr := <-done; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
		if rerr := os.Remove(path); !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return err
	}, nil
}

// errNoSocket says that a server runs that cannot be asked.
var errNoSocket = errors.New("the running server has another version and does not understand the request; stop it first, or use the sandboxd of its version")

// ask makes a request of the server that runs on a state folder. answer, if not
// nil, is decoded into.
func ask(ctx context.Context, state, method, path string, body, answer any) error {
	var data []byte
	var err error
	if body != nil {
		if data, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://sandboxd"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
			err = inFolder(state, socketFile, func(short string) error {
				conn, err = (&net.Dialer{}).DialContext(ctx, "unix", short)
				return err
			})
			return conn, err
		},
	}}
	resp, err := client.Do(req)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return errNoSocket
	}
	if err != nil {
		return fmt.Errorf("ask the server: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return errNoSocket
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return errors.New(string(bytes.TrimSpace(text)))
	}
	if answer == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	return nil
}

// withoutCode is an error as people read it: without its code, and without a
// field that its message begins with anyway.
func withoutCode(err error) string {
	e, ok := errors.AsType[*skerry.Error](err)
	if !ok {
		return err.Error()
	}
	shown := strings.TrimPrefix(e.Error(), string(e.Code)+": ")
	if e.Field != "" && strings.HasPrefix(e.Message, e.Field+" ") {
		shown = strings.TrimPrefix(shown, e.Field+": ")
	}
	return strings.Replace(err.Error(), e.Error(), shown, 1)
}

// answering makes a handler of a function from a request's body to an answer.
func answering[Request, Answer any](f func(context.Context, Request) (Answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Request
		err := json.NewDecoder(r.Body).Decode(&req)
		if err != nil && !errors.Is(err, io.EOF) {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer, err := f(r.Context(), req)
		if err != nil {
			http.Error(w, withoutCode(err), http.StatusUnprocessableEntity)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // who asked has gone
	}
}

// healthTimeout is how long the database may take to answer before the server counts
// as not working.
const healthTimeout = 5 * time.Second

// socketHandler answers what is asked of a running server.
func socketHandler(end *ending, accounts *auth.Auth, records *auditing, db *store.Store, samples *sampler, url string) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /stop", answering(func(ctx context.Context, o stopOrder) (controller.StopReport, error) {
		records.operator(ctx, "server.stop", time.Now(), nil, "")
		return end.handle(ctx, o)
	}))
	mux.Handle("GET /top", answering(samples.sample))
	mux.Handle("GET /url", answering(func(context.Context, struct{}) (string, error) { return url, nil }))
	mux.Handle("GET /health", answering(func(ctx context.Context, _ struct{}) (struct{}, error) {
		ctx, cancel := context.WithTimeout(ctx, healthTimeout)
		defer cancel()
		_, err := db.Images(ctx)
		return struct{}{}, err
	}))
	for _, o := range operations {
		o.serve(mux, accounts, records)
	}
	mux.Handle("GET /images", answering(func(ctx context.Context, _ struct{}) ([]string, error) { return db.Images(ctx) }))
	return mux
}
