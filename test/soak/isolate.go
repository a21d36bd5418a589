package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// The soak runs in namespaces of its own. So it can count all interfaces, rules, mounts
// and processes without those of other programs, and all of them end with it, however it
// ends. There are three processes of this program:
//
//	isolate ── started by hand; clones the namespaces, waits
//	  └ initialize ── process 1 inside; collects orphans, as init does
//	      └ run ── the soak
const (
	stageEnv        = "SKERRY_SOAK_STAGE"
	stageInitialize = "initialize"
	stageRun        = "run"
)

// isolate runs this program again in new namespaces and returns its exit code.
func isolate() (int, error) {
	if err := os.Setenv(stageEnv, stageInitialize); err != nil {
		return 0, err
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	runtime.LockOSThread() // Pdeathsig is about the thread
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start in namespaces of its own: %w", err)
	}
	forward(cmd.Process.Pid)
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// forward passes the signals that end this program on to another one.
func forward(pid int) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for sig := range signals {
			_ = syscall.Kill(pid, sig.(syscall.Signal))
		}
	}()
}

// initialize is process 1 of the namespaces. It returns the exit code of the soak. When
// it exits, the kernel kills all other processes.
func initialize() (int, error) {
	// Mounts of the soak must not appear outside, and /proc must show these processes.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, fmt.Errorf("make mounts private: %w", err)
	}
	// Copies of mounts that keep network namespaces of other programs would keep them longer.
	points, err := netnsMounts("/")
	if err != nil {
		return 0, err
	}
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			return 0, fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 0, fmt.Errorf("mount /proc: %w", err)
	}
	if err := os.Setenv(stageEnv, stageRun); err != nil {
		return 0, err
	}
	p, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
	if err != nil {
		return 0, fmt.Errorf("start the soak: %w", err)
	}
	forward(p.Pid)
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait for the soak: %w", err)
		case pid == p.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == p.Pid:
			return status.ExitStatus(), nil
		}
	}
}
