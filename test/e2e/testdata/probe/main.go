// Command probe is the only program of the images that the tests make: it
// prints what it sees of the files that it is given, one a line.
package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

func main() {
	for _, path := range os.Args[1:] {
		fmt.Println(path, describe(path))
	}
}

func describe(path string) string {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return err.Error()
	}
	about := fmt.Sprintf("%o %d:%d links %d", st.Mode, st.Uid, st.Gid, st.Nlink)
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		target, err := os.Readlink(path)
		return fmt.Sprintf("%s -> %s %v", about, target, err)
	case syscall.S_IFDIR:
		entries, err := os.ReadDir(path)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if err != nil {
			return about + " " + err.Error()
		}
		return about + " [" + strings.Join(names, " ") + "]"
	}
	colour := make([]byte, 64)
	if n, err := syscall.Getxattr(path, "user.colour", colour); err == nil {
		about += " colour " + string(colour[:n])
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return about + " " + err.Error()
	}
	return fmt.Sprintf("%s %.40q", about, content)
}
