package fake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/agent"
	"github.com/skerry-dev/skerry/internal/guest/pipes"
)

var errNoMemory = skerry.Errorf(skerry.CodeNotImplemented, "the fake driver has no memory snapshots")

const (
	// machineName is the name that this program has as a machine, and
	// agentProgram the one that the node calls the agent's program by.
	machineName  = "skerry-fake-machine"
	agentDir     = "/.skerry"
	agentProgram = agentDir + "/agent"

	// markName is the environment variable that identifies a machine's processes. It has the
	// machine's folder, as other drivers have machines of the same id.
	markName = "skerry_fake_machine"

	stopSignal = unix.SIGSTOP
	contSignal = unix.SIGCONT
)

// init runs a machine if this process was started as one.
func init() {
	if len(os.Args) == 0 {
		return
	}
	var err error
	switch {
	case os.Args[0] == machineName && len(os.Args) == 2:
		err = machineMain(os.Args[1])
	case os.Args[0] == agentProgram && len(os.Args) == 3 && os.Args[1] == "dial":
		err = agent.Dial(os.Args[2])
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[0]+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// The descriptors of a machine's process.
const (
	fromHostFD = 3 + iota
	toHostFD
	doorFD
	lifeFD
	beginFD
)

// machineMain is the machine's process.
func machineMain(root string) error {
	unix.CloseOnExec(lifeFD)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		// The pipe ends with the process that started the machine.
		_, _ = io.Copy(io.Discard, os.NewFile(lifeFD, "life"))
		_ = killMarked(ctx, os.Getenv(markName)) // this process, too
	}()
	begin := os.NewFile(beginFD, "begin")
	if _, err := begin.Read(make([]byte, 1)); err != nil {
		return nil // it is not needed
	}
	begin.Close()
	// This process adopts orphans, like PID 1.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	door, err := agent.OpenPipes(fromHostFD, toHostFD, doorFD)
	if err != nil {
		return err
	}
	return agent.Run(ctx, door, agent.Folder{Path: root, Mark: markName + "=" + os.Getenv(markName)})
}

// life is a pipe that nobody writes to. Its writing end is this process's alone.
var life struct {
	r, w *os.File
	err  error
}

func init() { life.r, life.w, life.err = os.Pipe() }

// spawn starts a machine's process, which runs the agent when a byte was written to begin.
func spawn(dir, root string, guest pipes.Guest) (pid int, begin *os.File, err error) {
	if life.err != nil {
		return 0, nil, life.err
	}
	r, begin, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{machineName, root}
	cmd.Env = append(os.Environ(), markName+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{guest.In, guest.Out, guest.Door, life.r, r}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, nil, errors.Join(fmt.Errorf("start the machine's process: %w", err), begin.Close())
	}
	go func() { _ = cmd.Wait() }() // watch tells of the end
	return cmd.Process.Pid, begin, nil
}

// marked returns the processes of a machine.
func marked(dir string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var asked, pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			asked = append(asked, pid)
		}
	}
	mark := []byte(markName + "=" + dir)
	// In the middle of an execve the environment is empty for a moment. All that have
	// none are asked again together: those of gVisor's processes are always empty.
	for range 20 {
		var empty []int
		for _, pid := range asked {
			env := environ(pid)
			if len(env) == 0 && hasMemory(pid) {
				empty = append(empty, pid)
			}
			for v := range bytes.SplitSeq(env, []byte{0}) {
				if bytes.Equal(v, mark) {
					pids = append(pids, pid)
					break
				}
			}
		}
		if len(empty) == 0 {
			break
		}
		asked = empty
		time.Sleep(time.Millisecond)
	}
	return pids, nil
}

// environ returns a process's environment, nil if it has ended or is another
// user's.
func environ(pid int) []byte {
	env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return env
}

// hasMemory reports whether a process has an address space: what has ended has none,
// nor do the kernel's own.
func hasMemory(pid int) bool {
	const size = 20
	fields, err := stat(pid)
	return err == nil && fields[size] > 0
}

// send sends a signal to all processes of a machine, until no new ones appear.
func send(dir string, sig syscall.Signal) error {
	seen := map[int]bool{}
	for {
		pids, err := marked(dir)
		if err != nil {
			return err
		}
		news := false
		for _, pid := range pids {
			if seen[pid] {
				continue
			}
			seen[pid], news = true, true
			if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if !news {
			return nil
		}
	}
}

// killMarked kills all processes of a machine. Their own process comes last in
// the machine itself, as its end is the end of this function.
func killMarked(ctx context.Context, dir string) error {
	if dir == "" {
		return nil
	}
	self := os.Getpid()
	for {
		pids, err := marked(dir)
		if err != nil {
			return err
		}
		others := 0
		for _, pid := range pids {
			if pid == self {
				continue
			}
			others++
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if others == 0 {
			if len(pids) > 0 {
				return unix.Kill(self, unix.SIGKILL)
			}
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// stat returns the numbers in /proc/PID/stat behind the state, as far as they
// are unsigned.
func stat(pid int) ([]uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	// The name may hold anything; the last ")" ends it.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 21 {
		return nil, fmt.Errorf("/proc/%d/stat is malformed", pid)
	}
	numbers := make([]uint64, len(fields))
	for i, f := range fields {
		numbers[i], _ = strconv.ParseUint(f, 10, 64)
	}
	return numbers, nil
}

// startTime returns when the kernel started a process.
func startTime(pid int) (uint64, error) {
	fields, err := stat(pid)
	if err != nil {
		return 0, err
	}
	return fields[19], nil
}

// standsStill reports whether all threads of a process have stopped, or ended.
func standsStill(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, name := range threads {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if state := bytes.TrimSpace(b[bytes.LastIndexByte(b, ')')+1:]); len(state) > 0 && !strings.ContainsRune("TZXt", rune(state[0])) {
			return false
		}
	}
	return true
}
