//go:build unix

package processnode

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// hearSignals has commands begin with signals that this process was started to
// ignore, as by nohup: what a process ignores, those that it starts ignore too.
// What it catches they do not.
func hearSignals() {
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

// newGroup gives a process a group of its own.
func newGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func signalGroup(p *os.Process, sig int) { _ = syscall.Kill(-p.Pid, syscall.Signal(sig)) }

// stopGroup has a group stand still or go on.
func stopGroup(p *os.Process, stop bool) {
	if stop {
		signalGroup(p, int(syscall.SIGSTOP))
	} else {
		signalGroup(p, int(syscall.SIGCONT))
	}
}

// exitCode is 128 and the signal's number for a process that a signal ended.
func exitCode(state *os.ProcessState) int {
	status := state.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

func makeFIFO(name string) error { return syscall.Mkfifo(name, 0o600) }
