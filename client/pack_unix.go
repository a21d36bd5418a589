//go:build unix

package client

import (
	"io/fs"
	"syscall"
)

// identify returns the identity of a file, and whether the file has several names.
func identify(info fs.FileInfo) (id fileID, several bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return id, false
	}
	return fileID{uint64(st.Dev), st.Ino}, st.Nlink > 1
}
