package client

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// attributes returns the user attributes of a file as records of a tar header, and the
// names of the attributes that are left out. Labels that the system gives to every file
// are not among these.
func attributes(f *os.File) (records map[string]string, left []string) {
	list := make([]byte, 64<<10) // the maximum of Linux
	n, err := unix.Flistxattr(int(f.Fd()), list)
	if err != nil || n == 0 {
		return nil, nil
	}
	sum := 0
	records = map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		switch name {
		case "security.selinux", "security.ima", "security.evm":
			continue
		}
		value := make([]byte, 64<<10)
		n, err := -1, error(nil)
		if strings.HasPrefix(name, "user.") && !strings.Contains(name, "=") {
			n, err = unix.Fgetxattr(int(f.Fd()), name, value)
		}
		if n < 0 || err != nil || len(records) == maxAttributes || sum+len(name)+n > maxAttributeBytes {
			left = append(left, name)
			continue
		}
		sum += len(name) + n
		records[attributePrefix+name] = string(value[:n])
	}
	return records, left
}

func setAttribute(f *os.File, name, value string) error {
	// An open file without write permission accepts no attributes.
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := f.Chmod(info.Mode().Perm() | 0o200); err != nil {
		return err
	}
	err = unix.Fsetxattr(int(f.Fd()), name, []byte(value), 0)
	return errors.Join(err, f.Chmod(info.Mode().Perm()))
}
