package cgroup

import (
	"fmt"
	"os"
	"strings"
)

// mounts is where the kernel's cgroup hierarchies are mounted.
type mounts struct {
	// v2 is the unified hierarchy, "" if it is not mounted.
	v2 string
	// v1 maps a controller to its mount.
	v1 map[string]string
}

func readMounts(path string) (mounts, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return mounts{}, err
	}
	return parseMounts(string(b))
}

// parseMounts reads the mountinfo format of proc_pid_mountinfo(5):
//
//	36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/sda rw,errors=continue
func parseMounts(mountinfo string) (mounts, error) {
	m := mounts{v1: map[string]string{}}
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		fields, fs := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(fs) < 3 {
			return mounts{}, fmt.Errorf("mountinfo line %q is malformed", line)
		}
		switch fs[0] {
		case "cgroup2":
			m.v2 = fields[4]
		case "cgroup":
			for _, opt := range strings.Split(fs[2], ",") {
				m.v1[opt] = fields[4]
			}
		}
	}
	return m, nil
}
