package clienttest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"github.com/creack/pty"

	"github.com/skerry-dev/skerry"
)

// command is a process on this machine that stands for one in a sandbox.
type command struct {
	info skerry.Command
	proc *exec.Cmd
	done chan struct{} // closed when it has ended, and info is final

	mu    sync.Mutex
	lines []map[string]string
	more  chan struct{} // closed and replaced when lines grow
}

// stream takes one output of a command.
type stream struct {
	c    *command
	name skerry.Stream
}

func (s stream) Write(p []byte) (int, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.c.lines = append(s.c.lines, map[string]string{"stream": string(s.name), "data": string(p)})
	close(s.c.more)
	s.c.more = make(chan struct{})
	return len(p), nil
}

func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Command string            `json:"command"`
		Args    []string          `json:"args"`
		Cwd     string            `json:"cwd"`
		Env     map[string]string `json:"env"`
		Wait    bool              `json:"wait"`
		Logs    bool              `json:"logs"`
		Timeout skerry.Duration   `json:"timeout"`
	}
	json.NewDecoder(r.Body).Decode(&body)
	c := &command{proc: exec.Command(body.Command, body.Args...), done: make(chan struct{}), more: make(chan struct{})}
	dir := s.workDir(r.PathValue("id"))
	c.proc.Dir = dir
	if body.Cwd != "" {
		c.proc.Dir = body.Cwd
	}
	c.proc.Env = append(os.Environ(), "TMPDIR="+dir)
	for k, v := range body.Env {
		c.proc.Env = append(c.proc.Env, k+"="+v)
	}
	c.proc.Stdout, c.proc.Stderr = stream{c, skerry.Stdout}, stream{c, skerry.Stderr}
	setGroup(c.proc)
	s.mu.Lock()
	c.info = skerry.Command{
		ID: fmt.Sprintf("cmd_%024d", len(s.commands)+1), SessionID: r.PathValue("id"), Name: body.Command, Args: body.Args,
		Cwd: c.proc.Dir, StartedAt: skerry.At(Epoch),
	}
	s.commands[c.info.ID] = c
	s.mu.Unlock()
	started := c.info
	c.start(time.Duration(body.Timeout))
	if !body.Wait {
		answer(w, map[string]any{"command": started})
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	enc.Encode(map[string]any{"command": started})
	w.(http.Flusher).Flush()
	if body.Logs {
		c.follow(w, r)
	}
	if waitCtx(r.Context(), c.done) {
		enc.Encode(map[string]any{"command": c.info})
	}
}

// start starts the process; one that cannot be executed ends with 127.
func (c *command) start(timeout time.Duration) {
	if err := c.proc.Start(); err != nil {
		fmt.Fprintln(c.proc.Stderr, err)
		c.end(127)
		return
	}
	if timeout > 0 {
		timer := time.AfterFunc(timeout, func() { signalGroup(c.proc.Process, int(syscall.SIGKILL)) })
		go func() { <-c.done; timer.Stop() }()
	}
	go func() {
		err := c.proc.Wait()
		code := c.proc.ProcessState.ExitCode()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && code < 0 {
			code = 128 + signalOf(exit.ProcessState)
		}
		c.end(code)
	}()
}

func (c *command) end(code int) {
	c.info.ExitCode = &code
	close(c.done)
}

// follow writes the command's output as it comes.
func (c *command) follow(w http.ResponseWriter, r *http.Request) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for next := 0; ; {
		c.mu.Lock()
		lines, more := c.lines[next:], c.more
		c.mu.Unlock()
		for _, line := range lines {
			// The order of the fields is that of a server, not of a map.
			data, _ := json.Marshal(line["data"])
			fmt.Fprintf(w, "{\"stream\":%q,\"data\":%s}\n", line["stream"], data)
		}
		w.(http.Flusher).Flush()
		next += len(lines)
		select {
		case <-more:
		case <-c.done:
			c.mu.Lock()
			all := next == len(c.lines)
			c.mu.Unlock()
			if all {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

func (s *Server) findCommand(w http.ResponseWriter, r *http.Request) *command {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.commands[r.PathValue("cmd")]
	if c == nil || c.info.SessionID != r.PathValue("id") {
		Refuse(w, http.StatusNotFound, skerry.CodeNotFound, "there is no such command")
		return nil
	}
	return c
}

func (s *Server) command(w http.ResponseWriter, r *http.Request) {
	c := s.findCommand(w, r)
	if c == nil {
		return
	}
	if r.URL.Query().Get("wait") == "true" {
		waitCtx(r.Context(), c.done)
	}
	c.answer(w)
}

func (c *command) answer(w http.ResponseWriter) {
	select {
	case <-c.done:
		answer(w, map[string]any{"command": c.info})
	default:
		info := skerry.Command{ID: c.info.ID, SessionID: c.info.SessionID, Name: c.info.Name, Args: c.info.Args, Cwd: c.info.Cwd, StartedAt: c.info.StartedAt}
		answer(w, map[string]any{"command": info})
	}
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	if c := s.findCommand(w, r); c != nil {
		w.Header().Set("Content-Type", "application/x-ndjson")
		c.follow(w, r)
	}
}

func (s *Server) kill(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Signal int `json:"signal"`
	}
	json.NewDecoder(r.Body).Decode(&body)
	if c := s.findCommand(w, r); c != nil {
		signalGroup(c.proc.Process, body.Signal)
		c.answer(w)
	}
}

// Running returns how many commands have not ended.
func (s *Server) Running() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.commands {
		select {
		case <-c.done:
		default:
			n++
		}
	}
	return n
}

// WaitCommands returns when every command has ended.
func (s *Server) WaitCommands() {
	s.mu.Lock()
	all := make([]*command, 0, len(s.commands))
	for _, c := range s.commands {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		<-c.done
	}
}

func (s *Server) killAll() {
	s.mu.Lock()
	for _, c := range s.commands {
		signalGroup(c.proc.Process, int(syscall.SIGKILL))
	}
	s.mu.Unlock()
	s.WaitCommands()
}

func (s *Server) interactive(w http.ResponseWriter, r *http.Request) {
	answer(w, map[string]string{"url": "ws://" + r.Host + "/terminal/" + r.PathValue("id"), "token": "one+time/ticket"})
}

// terminal runs an interactive command on a pseudo-terminal of this machine.
func (s *Server) terminal(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("token") != "one+time/ticket" || r.Header.Get("Authorization") != "" {
		Refuse(w, http.StatusUnauthorized, skerry.CodeUnauthorized, "the ticket is not valid")
		return
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	s.mu.Lock()
	s.terminals = append(s.terminals, conn)
	s.mu.Unlock()
	var start struct {
		Command    string
		Args, Env  []string
		Cols, Rows uint16
	}
	_, b, err := conn.Read(r.Context())
	if err != nil || json.Unmarshal(b, &start) != nil {
		return
	}
	proc := exec.Command(start.Command, start.Args...)
	proc.Dir, proc.Env = s.workDir(r.PathValue("id")), append(os.Environ(), start.Env...)
	tty, err := pty.StartWithSize(proc, &pty.Winsize{Cols: start.Cols, Rows: start.Rows})
	if err != nil {
		return
	}
	defer tty.Close()
	go typeFrames(r, conn, tty)
	buf := make([]byte, 4096)
	for {
		n, err := tty.Read(buf)
		if err != nil { // EIO: the command has ended
			break
		}
		conn.Write(r.Context(), websocket.MessageBinary, buf[:n])
	}
	proc.Wait()
	conn.Write(r.Context(), websocket.MessageText, fmt.Appendf(nil, `{"type":"exit","code":%d}`, proc.ProcessState.ExitCode()))
	conn.Close(websocket.StatusNormalClosure, "")
}

// typeFrames hands what the client sends to the terminal; it ends with the
// connection, and hangs up the terminal.
func typeFrames(r *http.Request, conn *websocket.Conn, tty *os.File) {
	defer tty.Close()
	for {
		kind, b, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		if kind == websocket.MessageBinary {
			tty.Write(b)
			continue
		}
		var size struct{ Cols, Rows uint16 }
		if json.Unmarshal(b, &size) == nil {
			pty.Setsize(tty, &pty.Winsize{Cols: size.Cols, Rows: size.Rows})
		}
	}
}

// DropConnections breaks every open terminal.
func (s *Server) DropConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.terminals {
		conn.CloseNow()
	}
	s.terminals = nil
}
