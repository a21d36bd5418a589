package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"unsafe"
)

// special are extended attributes that are not text, or whose names are hard to
// write down. The capability is the one of a program that may open raw sockets.
var special = map[string]string{
	"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	"user.binary":         "\xff\x00\xfe",
	"user.empty":          "",
	"user.text":           "t\u00e9xt",
	"user.a=b%3D":         "equals",
}

// attributes makes a tree below dir, unless it is there, and lists all that is
// kept of it.
func attributes(dir string) string {
	if _, err := os.Stat(dir); err != nil {
		if err := makeTree(dir); err != nil {
			return "make: " + err.Error()
		}
	}
	var b strings.Builder
	for _, name := range []string{".", "sub", "file", "linked", "link", "fifo", "past"} {
		path := dir + "/" + name
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return "lstat: " + err.Error()
		}
		fmt.Fprintf(&b, "%s %o %d:%d links=%d atime=%d.%09d mtime=%d.%09d ctime=%d.%09d", name, st.Mode, st.Uid, st.Gid, st.Nlink,
			st.Atim.Sec, st.Atim.Nsec, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
		if st.Mode&syscall.S_IFMT == syscall.S_IFREG || st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			fmt.Fprintf(&b, " xattrs=%q", xattrs(path))
		}
		b.WriteString("; ")
	}
	return b.String()
}

func makeTree(dir string) error {
	for _, d := range []string{dir, dir + "/sub"} {
		if err := os.Mkdir(d, 0o751); err != nil {
			return err
		}
	}
	for name, value := range special {
		if name == "security.capability" {
			continue // of files alone
		}
		if err := setXattr(dir+"/sub", name, value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, f := range []string{"file", "past"} {
		if err := os.WriteFile(dir+"/"+f, []byte(f), 0o640); err != nil {
			return err
		}
	}
	if err := os.Chown(dir+"/file", 1234, 54321); err != nil {
		return err
	}
	for name, value := range special {
		if err := setXattr(dir+"/file", name, value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, err := range []error{
		os.Link(dir+"/file", dir+"/linked"),
		os.Symlink("file", dir+"/link"),
		syscall.Mkfifo(dir+"/fifo", 0o600),
		// Before 1970, with a fraction of a second.
		syscall.UtimesNano(dir+"/past", []syscall.Timespec{{Sec: -86_401, Nsec: 123_456_789}, {Sec: -2, Nsec: 987_654_321}}),
		syscall.UtimesNano(dir+"/file", []syscall.Timespec{{Sec: 1_000_000_000, Nsec: 1}, {Sec: 1_100_000_000, Nsec: 999_999_999}}),
		syscall.UtimesNano(dir+"/sub", []syscall.Timespec{{Sec: 1_200_000_000, Nsec: 7}, {Sec: 1_300_000_000, Nsec: 500_000_000}}),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

func xattrs(path string) []string {
	names := make([]byte, 4096)
	n, err := syscall.Listxattr(path, names)
	if err != nil {
		return []string{err.Error()}
	}
	var all []string
	if n == 0 {
		return all
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 4096)
		n, err := syscall.Getxattr(path, name, value)
		if err != nil {
			return []string{err.Error()}
		}
		all = append(all, name+"="+string(value[:n]))
	}
	slices.Sort(all)
	return all
}

// setXattr can set an empty value, which syscall.Setxattr cannot.
func setXattr(path, name, value string) error {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return err
	}
	n, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	b := append([]byte(value), 0)
	_, _, errno := syscall.Syscall6(syscall.SYS_SETXATTR, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(n)),
		uintptr(unsafe.Pointer(&b[0])), uintptr(len(value)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// fillAttributes sets large attributes on more and more files until that fails,
// deletes the files, and tries once more.
func fillAttributes() string {
	const dir = "/fill"
	value := strings.Repeat("x", 60<<10)
	fill := func(most int) (n int, err error) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return 0, err
		}
		for ; n < most; n++ {
			path := fmt.Sprint(dir, "/", n)
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return n, err
			}
			if err := setXattr(path, "user.large", value); err != nil {
				return n, err
			}
		}
		return n, nil
	}
	n, err := fill(100_000)
	if err := os.RemoveAll(dir); err != nil {
		return err.Error()
	}
	_, again := fill(n)
	return fmt.Sprintf("%d %v; again: %v", n, err, again)
}

// deep makes n directories, each in the one before.
func deep(n int) string {
	if err := os.Chdir("/"); err != nil {
		return err.Error()
	}
	defer os.Chdir("/")
	for i := range n {
		// The name is what a full disk of the host would be called.
		const name = ": no space left on device"
		if err := os.Mkdir(name, 0o700); err != nil {
			return fmt.Sprint(i, " ", err)
		}
		if err := os.Chdir(name); err != nil {
			return fmt.Sprint(i, " ", err)
		}
	}
	return "ok"
}
