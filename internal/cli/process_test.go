//go:build unix

package cli

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/servertest"
)

// beTool makes this test binary the tool, for the tests that need a process of
// its own: signals and terminals belong to processes.
const beTool = "SKERRY_TEST_BE_THE_TOOL"

func TestMain(m *testing.M) {
	if os.Getenv(beTool) != "" {
		os.Exit(Main(System("test")))
	}
	os.Exit(m.Run())
}

// tool returns a process of the tool, which is killed if the test takes too
// long.
func tool(t *testing.T, s *servertest.Server, argv ...string) *exec.Cmd {
	t.Helper()
	home(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0], argv...)
	cmd.Env = append(os.Environ(), beTool+"=1", "SKERRY_URL="+s.URL, "SKERRY_TOKEN="+s.Token, "NO_COLOR=1")
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	t.Cleanup(func() { timer.Stop() })
	return cmd
}

// reads returns once r has said text.
func reads(t *testing.T, r *bufio.Reader, text string) {
	t.Helper()
	if got, err := untilText(r, text); err != nil {
		t.Fatalf("waiting for %q, after %q: %v", text, got, err)
	}
}

// untilText reads up to a text and returns all that was read.
func untilText(r *bufio.Reader, text string) (string, error) {
	var got strings.Builder
	for !strings.Contains(got.String(), text) {
		b, err := r.ReadByte()
		if err != nil {
			return got.String(), err
		}
		got.WriteByte(b)
	}
	return got.String(), nil
}

func code(err error) int {
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

func TestInterruptReachesTheRemoteCommand(t *testing.T) {
	s := servertest.New(t)
	cmd := tool(t, s, "run", "--rm", "sh", "-c", `trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.02; done`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	reads(t, r, "ready")
	cmd.Process.Signal(syscall.SIGINT)
	reads(t, r, "caught")
	if got := code(cmd.Wait()); got != 9 {
		t.Errorf("exit code %d", got)
	}
	if len(s.Requests("DELETE")) != 1 {
		t.Error("--rm was forgotten")
	}
}

func TestSecondInterruptKills(t *testing.T) {
	s := servertest.New(t)
	cmd := tool(t, s, "run", "--rm", "sh", "-c", `trap 'echo ignored' INT; echo ready; while :; do sleep 0.02; done`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	reads(t, r, "ready")
	cmd.Process.Signal(syscall.SIGINT)
	reads(t, r, "ignored")
	cmd.Process.Signal(syscall.SIGINT)
	if got := code(cmd.Wait()); got != 137 {
		t.Errorf("exit code %d", got)
	}
	s.Node.AwaitCommands()
	if len(s.Requests("DELETE")) != 1 {
		t.Error("--rm was forgotten")
	}
}

func TestTerminateIsForwarded(t *testing.T) {
	s := servertest.New(t)
	s.Add(t, "box")
	cmd := tool(t, s, "exec", "box", "sh", "-c", `echo ready; exec sleep 60`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reads(t, bufio.NewReader(out), "ready")
	cmd.Process.Signal(syscall.SIGTERM)
	if got := code(cmd.Wait()); got != 143 {
		t.Errorf("exit code %d", got)
	}
}

func TestClosedPipeEndsTheRemoteCommand(t *testing.T) {
	s := servertest.New(t)
	s.Add(t, "box")
	cmd := tool(t, s, "exec", "box", "sh", "-c", "while :; do echo y; sleep 0.01; done")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reads(t, bufio.NewReader(out), "y")
	out.Close()
	if got := code(cmd.Wait()); got != exitPipe || errs.Len() != 0 {
		t.Errorf("exit code %d, stderr %q", got, errs.String())
	}
	s.Node.AwaitCommands()
}

func TestOutputIsStreamedByteByByte(t *testing.T) {
	s := servertest.New(t)
	s.Add(t, "box")
	cmd := tool(t, s, "exec", "box", "sh", "-c", `printf 'no newline'; while [ ! -e go ]; do sleep 0.01; done; printf '\0\033\r\n'`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	reads(t, r, "no newline")
	if err := os.WriteFile(s.WorkDir(t, "box")+"/go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(r)
	if err != nil || string(rest) != "\x00\x1b\r\n" {
		t.Errorf("then %q, %v", rest, err)
	}
	if got := code(cmd.Wait()); got != 0 {
		t.Errorf("exit code %d", got)
	}
}
