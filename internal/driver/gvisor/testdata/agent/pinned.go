package main

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// kept holds what "pin" has made until "unpin".
var kept struct {
	files    []*os.File
	segments []uintptr
}

// pin uses up something of the sandbox's memory that no process's end frees, up
// to a number, and says how many it got and what came then.
func pin(kind, dir, most string) string {
	n, _ := strconv.Atoi(most)
	for i := range n {
		if err := pinOne(kind, fmt.Sprintf("%s/%s%d", dir, kind, i)); err != nil {
			return fmt.Sprint(i, " ", err)
		}
	}
	return fmt.Sprint(n, " all")
}

func pinOne(kind, path string) error {
	switch kind {
	case "file":
		return os.WriteFile(path, nil, 0o600)
	case "hardlink":
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
		return os.Link(path, path+"-link")
	case "mib":
		return os.WriteFile(path, make([]byte, 1<<20), 0o600)
	case "memfd":
		f, err := memfd()
		if err != nil {
			return err
		}
		kept.files = append(kept.files, f)
		_, err = f.Write(make([]byte, 1<<20))
		return err
	case "open":
		f, err := os.Create(path)
		if err == nil {
			kept.files = append(kept.files, f)
		}
		return err
	case "segment":
		const create = 0o1600 // IPC_CREAT and a mode
		id, _, errno := syscall.Syscall(syscall.SYS_SHMGET, 0, 1<<20, create)
		if errno != 0 {
			return errno
		}
		kept.segments = append(kept.segments, id)
		return nil
	}
	return fmt.Errorf("unknown kind %q", kind)
}

func memfd() (*os.File, error) {
	name := []byte("x\x00")
	const memfdCreate = 319
	fd, _, errno := syscall.Syscall(memfdCreate, uintptr(unsafe.Pointer(&name[0])), 0, 0)
	if errno != 0 {
		return nil, errno
	}
	return os.NewFile(fd, "memfd"), nil
}

// unpin gives back what pin made besides files with names.
func unpin() string {
	for _, f := range kept.files {
		f.Close()
	}
	for _, id := range kept.segments {
		const remove = 0 // IPC_RMID
		if _, _, errno := syscall.Syscall(syscall.SYS_SHMCTL, id, remove, 0); errno != 0 {
			return errno.Error()
		}
	}
	kept.files, kept.segments = nil, nil
	return "unpinned"
}

// mountTmpfs mounts another tmpfs on a new folder.
func mountTmpfs(dir, options string) string {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err.Error()
	}
	return fmt.Sprint(syscall.Mount("none", dir, "tmpfs", 0, options))
}
