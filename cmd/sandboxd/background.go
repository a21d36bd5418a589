package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// readyFD is where a server in the background reports to the command that
// started it: the address once it listens, or nothing if it failed.
const readyFD = 3

// startBackground starts this program again, detached and without --background, and
// waits until it serves. It returns the URL that the server listens at, or errRunning
// if another process holds the lock.
func startBackground(state, lock string) (string, error) {
	if pid, err := holderOf(lock); err != nil || pid != 0 {
		return "", errors.Join(err, errRunning)
	}
	var args []string
	for _, a := range os.Args[1:] {
		if a != "--background" && a != "--background=true" {
			args = append(args, a)
		}
	}
	if err := os.MkdirAll(state, 0o711); err != nil {
		return "", err
	}
	log, err := os.OpenFile(logPath(state), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return "", err
	}
	defer log.Close()
	mark, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w} // readyFD
	cmd.Env = append(os.Environ(), readyEnv+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return "", fmt.Errorf("start the server: %w", err)
	}
	line, err := bufio.NewReader(io.LimitReader(r, 4096)).ReadString('\n')
	if err == nil {
		return strings.TrimSpace(line), cmd.Process.Release()
	}
	// It ended without a word to us; its log tells.
	werr := cmd.Wait()
	return "", errors.Join(fmt.Errorf("the server did not start (%v)", werr), logSince(logPath(state), mark))
}

// readyEnv tells a server that readyFD is open.
const readyEnv = "SKERRY_READY_FD"

// reportReady tells the starter, if there is one, where the server listens.
func reportReady(url string) error {
	if os.Getenv(readyEnv) == "" {
		return nil
	}
	f := os.NewFile(readyFD, "ready")
	_, err := fmt.Fprintln(f, url)
	return errors.Join(err, f.Close())
}

// logSince returns what was logged behind an offset, as an error.
func logSince(path string, offset int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return err
	}
	return errors.New(strings.TrimSpace(string(b)))
}
