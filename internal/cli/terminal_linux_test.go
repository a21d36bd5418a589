package cli

import (
	"bufio"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/servertest"
)

// termios returns the settings of a terminal.
func termios(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *state
}

// onTerminal starts the tool on a pseudo-terminal of 100 by 30 characters and
// returns both ends of it and its settings before. The tool's end is kept open, so that its settings
// can be looked at afterwards.
func onTerminal(t *testing.T, s *servertest.Server, argv ...string) (master, slave *os.File, before unix.Termios, wait func() int, signal func(os.Signal)) {
	t.Helper()
	t.Setenv("PS1", "$ ")        // a root's shell has another prompt
	t.Setenv("SHELL", "/bin/sh") // bash reads files of this machine
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close(); slave.Close() })
	if err := pty.Setsize(master, &pty.Winsize{Cols: 100, Rows: 30}); err != nil {
		t.Fatal(err)
	}
	before = termios(t, slave) // the tool may be quick to change them
	cmd := tool(t, s, argv...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// With both users of its other end gone, a read of master that waits in
	// vain fails.
	vain := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill(); slave.Close() })
	t.Cleanup(func() { vain.Stop() })
	return master, slave, before, func() int { return code(cmd.Wait()) }, func(sig os.Signal) { cmd.Process.Signal(sig) }
}

func TestShellOnTerminal(t *testing.T) {
	s := servertest.New(t)
	master, slave, before, wait, _ := onTerminal(t, s, "sh", "--rm", "--name", "box")
	r := bufio.NewReader(master)
	reads(t, r, "$ ") // the prompt of sh
	if raw := termios(t, slave); raw.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
		t.Errorf("the terminal is not in raw mode: %x", raw.Lflag)
	}
	master.WriteString("stty size; echo e''nd\r")
	reads(t, r, "30 100")
	reads(t, r, "end")
	if err := pty.Setsize(master, &pty.Winsize{Cols: 71, Rows: 17}); err != nil {
		t.Fatal(err)
	}
	master.WriteString("while [ \"$(stty size)\" != '17 71' ]; do sleep 0.01; done; echo re''sized\r")
	reads(t, r, "resized")
	// Ctrl-C is for the remote program alone.
	master.WriteString("sh -c 'printf sle%s eping; exec sleep 60'\r")
	reads(t, r, "sleeping")
	master.WriteString("\x03echo still he''re\r")
	reads(t, r, "still here")
	master.WriteString("exit 23\r")
	if got := wait(); got != 23 {
		t.Errorf("exit code %d", got)
	}
	if after := termios(t, slave); after != before {
		t.Errorf("the terminal was left as %+v, was %+v", after, before)
	}
	if len(s.Requests("DELETE /v2/sandboxes/box")) != 1 {
		t.Error("--rm was forgotten")
	}
}

func TestTerminalIsRestoredAfterSignal(t *testing.T) {
	s := servertest.New(t)
	s.Add(t, "box")
	master, slave, before, wait, signal := onTerminal(t, s, "connect", "box")
	reads(t, bufio.NewReader(master), "$ ")
	signal(syscall.SIGTERM)
	if got := wait(); got != exitInterrupt {
		t.Errorf("exit code %d", got)
	}
	if after := termios(t, slave); after != before {
		t.Errorf("the terminal was left as %+v, was %+v", after, before)
	}
}

func TestTerminalIsRestoredAfterBrokenConnection(t *testing.T) {
	s := servertest.New(t)
	s.Add(t, "box")
	master, slave, before, wait, _ := onTerminal(t, s, "connect", "box")
	r := bufio.NewReader(master)
	reads(t, r, "$ ")
	s.CutConnections()
	reads(t, r, "connection to the terminal broke")
	if got := wait(); got != exitOwnFailure {
		t.Errorf("exit code %d", got)
	}
	if after := termios(t, slave); after != before {
		t.Errorf("the terminal was left as %+v, was %+v", after, before)
	}
}

// TestTerminalOfStoppedSession ends with another code than any of its command's.
func TestTerminalOfStoppedSession(t *testing.T) {
	s := servertest.New(t)
	session := s.Add(t, "box").Session.ID
	master, slave, before, wait, _ := onTerminal(t, s, "connect", "box")
	r := bufio.NewReader(master)
	reads(t, r, "$ ")
	s.Stop(t, session)
	reads(t, r, "sandbox: session "+session+" has stopped")
	if got := wait(); got != exitOwnFailure {
		t.Errorf("exit code %d", got)
	}
	if after := termios(t, slave); after != before {
		t.Errorf("the terminal was left as %+v, was %+v", after, before)
	}
}

func TestLoginEndsAtCtrlC(t *testing.T) {
	s := servertest.New(t)
	master, slave, before, wait, _ := onTerminal(t, s, "login")
	r := bufio.NewReader(master)
	reads(t, r, "Access token for")
	master.WriteString("half\x03")
	reads(t, r, "Interrupted.")
	if got := wait(); got != exitInterrupt {
		t.Errorf("exit code %d", got)
	}
	if after := termios(t, slave); after != before {
		t.Errorf("the terminal was left as %+v, was %+v", after, before)
	}
}

func TestLoginDoesNotShowTheToken(t *testing.T) {
	s := servertest.New(t)
	master, slave, before, wait, _ := onTerminal(t, s, "login")
	r := bufio.NewReader(master)
	reads(t, r, "Access token for")
	master.WriteString(s.Token + "\r")
	shown, err := untilText(r, "Logged in")
	if err != nil || strings.Contains(shown, s.Token) {
		t.Errorf("shown %q, %v", shown, err)
	}
	if got := wait(); got != 0 {
		t.Errorf("exit code %d", got)
	}
	if after := termios(t, slave); after != before {
		t.Errorf("the terminal was left as %+v, was %+v", after, before)
	}
}
