// Package meter measures what a running server and its sandboxes on this machine
// use: CPU time by control groups, memory, files and goroutines.
package meter

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Sample is CPU time, counted from some moment or between two.
type Sample struct {
	Machine, Server, Sandboxes, Client time.Duration
}

// Plus is the sum.
func (s Sample) Plus(o Sample) Sample {
	return Sample{s.Machine + o.Machine, s.Server + o.Server, s.Sandboxes + o.Sandboxes, s.Client + o.Client}
}

// Minus is what was used since o.
func (s Sample) Minus(o Sample) Sample {
	return Sample{s.Machine - o.Machine, s.Server - o.Server, s.Sandboxes - o.Sandboxes, s.Client - o.Client}
}

// Divided is the part of one of so many operations.
func (s Sample) Divided(by int) Sample {
	n := time.Duration(by)
	return Sample{s.Machine / n, s.Server / n, s.Sandboxes / n, s.Client / n}
}

// Without takes off what an idle machine uses in so much time.
func (s Sample) Without(perSecond Sample, t time.Duration) Sample {
	part := func(d time.Duration) time.Duration { return time.Duration(float64(d) * t.Seconds()) }
	return s.Minus(Sample{part(perSecond.Machine), part(perSecond.Server), part(perSecond.Sandboxes), part(perSecond.Client)})
}

// Meter reads the CPU time of the machine and its parts.
type Meter struct {
	// PID is the server's.
	PID int
	// machine, service and sandboxes are control groups. The server's is "" if it
	// shares one with others.
	machine, Service, sandboxes string
	// Idle is what is used in a second with nothing to do, once it is calibrated.
	Idle Sample
}

// New finds the groups of the sandboxes and the server by a session that
// runs: the server is the parent of its sentry.
func New(session string) (*Meter, error) {
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, file := range found {
		cmdline, err := os.ReadFile(file)
		if err != nil || !bytes.HasPrefix(cmdline, []byte("runsc-sandbox\x00")) || !bytes.Contains(cmdline, []byte(session)) {
			continue
		}
		dir := filepath.Dir(file)
		stat, err := statFields(dir)
		if err != nil {
			return nil, err
		}
		parent, err := strconv.Atoi(stat[1])
		if err != nil {
			return nil, err
		}
		m := &Meter{PID: parent}
		if err := m.groups(dir, session); err != nil {
			return nil, err
		}
		return m, nil
	}
	return nil, fmt.Errorf("session %s has no sentry of its name on this machine: is its server elsewhere, or has it warm sandboxes (serve --warm 0)?", session)
}

// groups finds the control groups, by the folder in /proc of a session's sentry.
func (m *Meter) groups(sentry, session string) error {
	for _, mount := range []string{"/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup"} {
		if _, err := usage(mount); err != nil {
			continue
		}
		group, err := groupOf(sentry, mount)
		if err != nil {
			return err
		}
		if filepath.Base(group) != session {
			return fmt.Errorf("session %s is in the control group %s", session, group)
		}
		server, err := groupOf(fmt.Sprintf("/proc/%d", m.PID), mount)
		if err != nil {
			return err
		}
		m.machine, m.sandboxes = mount, filepath.Dir(group)
		if server != mount && !strings.HasPrefix(group, server) {
			m.Service = server
		}
		return nil
	}
	return errors.New("no control group counts CPU time")
}

// groupOf returns a process's control group in the hierarchy at mount.
func groupOf(proc, mount string) (string, error) {
	b, err := os.ReadFile(filepath.Join(proc, "cgroup"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if v2 := f[1] == ""; v2 == (mount == "/sys/fs/cgroup") && (v2 || slices.Contains(strings.Split(f[1], ","), "cpuacct")) {
			return filepath.Join(mount, f[2]), nil
		}
	}
	return "", fmt.Errorf("%s has no control group in %s", proc, mount)
}

// usage reads the CPU time of a group and all below it, of version 1 or 2.
func usage(dir string) (time.Duration, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage"))
	if err == nil {
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return time.Duration(n), err
	}
	if !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	if b, err = os.ReadFile(filepath.Join(dir, "cpu.stat")); err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "usage_usec" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("no usage_usec in %s", dir)
}

// statFields returns the fields of a process's stat file behind its name: state,
// parent, and so on.
func statFields(proc string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 15 {
		return nil, fmt.Errorf("%s/stat is too short", proc)
	}
	return fields, nil
}

// tick is the unit of the times in /proc/PID/stat.
const tick = 10 * time.Millisecond

// Read returns the CPU time that was used until now.
func (m *Meter) Read() (s Sample, err error) {
	if s.Machine, err = usage(m.machine); err != nil {
		return s, err
	}
	if s.Sandboxes, err = usage(m.sandboxes); err != nil {
		return s, err
	}
	if s.Server, err = m.readServer(); err != nil {
		return s, err
	}
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return s, err
	}
	s.Client = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	return s, nil
}

// Session returns the CPU time of a session's sandbox.
func (m *Meter) Session(id string) (time.Duration, error) {
	return usage(filepath.Join(m.sandboxes, id))
}

// readServer reads the CPU time of the server, by its control group if it has one.
func (m *Meter) readServer() (d time.Duration, err error) {
	if m.Service != "" {
		return usage(m.Service)
	}
	stat, err := statFields(fmt.Sprintf("/proc/%d", m.PID))
	if err != nil {
		return 0, err
	}
	for _, f := range stat[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		d += time.Duration(n) * tick
	}
	return d, nil
}

// Calibrate measures the machine with nothing to do.
func (m *Meter) Calibrate(t time.Duration) error {
	before, err := m.Read()
	if err != nil {
		return err
	}
	time.Sleep(t)
	after, err := m.Read()
	if err != nil {
		return err
	}
	d := after.Minus(before)
	part := func(d time.Duration) time.Duration { return time.Duration(float64(d) / t.Seconds()) }
	m.Idle = Sample{part(d.Machine), part(d.Server), part(d.Sandboxes), part(d.Client)}
	return nil
}
