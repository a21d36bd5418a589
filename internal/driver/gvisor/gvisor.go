// Package gvisor isolates with gVisor: every system call of the sandboxed
// code is served by a kernel of its own, the sentry, in an unprivileged host
// process with an empty root, its own namespaces and a seccomp filter.
//
// gVisor's runsc is not installed; it is linked in. This package calls runsc's
// sandbox package directly, which starts this same program again as the
// sentry (see Main). Doing so instead of going through runsc's command line
// saves two process starts per sandbox, and allows what that command line has
// no word for: a writable layer in a file on disk without a gofer process, so
// that no process on the host serves files to the sandbox at all.
package gvisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	gvlog "gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/cli/maincli"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/skerry-dev/skerry/internal/cgroup"
	"github.com/skerry-dev/skerry/internal/driver"
)

// The main goroutine keeps the main thread for itself. runsc starts a sandbox from
// a thread that it moves into the sandbox's network namespace, and finds the way
// back in /proc/self, which is the main thread's: were that in another sandbox's
// namespace at the moment, the thread would stay there and run any goroutine of
// the server in it.
func init() { runtime.LockOSThread() }

// Main runs this process as gVisor's if that is what it was started for, and
// then does not return. The program's main calls it before anything else.
func Main() {
	// runsc re-executes itself under these names: the sentry, and a helper
	// that unmounts /proc for it.
	if len(os.Args) == 0 || !strings.HasPrefix(os.Args[0], "runsc-") && !isReexec(os.Args[1:]) {
		return
	}
	// It comes with an error when a file is as large as it may be: limitProcess.
	signal.Ignore(unix.SIGXFSZ)
	// A sentry's core holds what its sandbox had in memory, and is as large.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		fmt.Fprintln(os.Stderr, "no core files:", err)
		os.Exit(1)
	}
	os.Args = ownMemory(os.Args)
	runtime.UnlockOSThread()
	maincli.Main()
	os.Exit(0)
}

// isReexec recognises the sentry's own re-execution of itself, whose name is
// the program's but whose arguments are runsc's: flags, then "boot" or
// "umount".
func isReexec(args []string) bool {
	sawRoot := false
	for _, a := range args {
		switch {
		case strings.HasPrefix(a, "--root="):
			sawRoot = true
		case a == "umount" || a == "boot":
			return sawRoot || a == "umount"
		case !strings.HasPrefix(a, "-"):
			return false
		}
	}
	return false
}

// Config configures a Driver.
type Config struct {
	// Dir holds what running machines need: one folder each. It does not
	// outlive a reboot, and need not.
	Dir string
	// DiskDir holds the machines' writable layers; their files have no names.
	DiskDir string
	Cgroups *cgroup.Manager
	Log     *slog.Logger
	// Debug makes sentries write debug logs into their machine's folder.
	Debug bool
	// Sentry is the statically linked program to start as the sentry, one
	// whose main calls Main; empty for this program itself.
	Sentry string
}

// Driver starts gVisor sandboxes.
type Driver struct {
	cfg Config
	// null stands in for the standard files of the sandboxes; see detach.
	null *os.File
	// longPaths lets one machine after the other start; see startProcesses.
	longPaths sync.Mutex
	users     users
	callWait  time.Duration // the constant, but in tests
	// freeing counts the writable layers of ended machines that are being
	// given back.
	freeing sync.WaitGroup
}

var _ driver.Driver = (*Driver)(nil)

// New returns a driver. It replaces os.Stdin, os.Stdout and os.Stderr of this
// process, which runsc would hand to every sandbox, by a file that is always
// at its end; what logs to the old ones must hold on to them.
func New(cfg Config) (*Driver, error) {
	for _, dir := range []string{cfg.Dir, cfg.DiskDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("create driver folder: %w", err)
		}
	}
	null, err := detach()
	if err != nil {
		return nil, err
	}
	if cfg.Sentry != "" {
		specutils.ExePath = cfg.Sentry
	}
	gvlog.SetLevel(gvlog.Warning)
	gvlog.SetTarget(emitter{cfg.Log})
	return &Driver{cfg: cfg, null: null, callWait: callWait}, nil
}

// detach points the standard files at the reading end of a pipe that nobody
// writes to. It is not /dev/null: runsc gives the files it hands on to the
// sandbox's user, and that must not be the host's /dev/null.
func detach() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("create the sandboxes' standard files: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	os.Stdin, os.Stdout, os.Stderr = r, r, r
	return r, nil
}

// Close gives back what the driver holds. Machines run on.
func (d *Driver) Close() error {
	d.freeing.Wait()
	return d.null.Close()
}

// machineDir is the folder of one machine.
func (d *Driver) machineDir(id string) string { return filepath.Join(d.cfg.Dir, id) }

// runscConfig returns runsc's configuration; it is the same for every machine.
func (d *Driver) runscConfig(id string, network bool) (*config.Config, error) {
	args := []string{
		"--root=" + d.machineDir(id),
		// The sentry runs as a user that owns nothing, in a user namespace of its own and serves
		// no host files, so the filter need not let it touch any.
		"--directfs=false",
		// The cgroup is this driver's work.
		"--ignore-cgroups=true",
		// sudo, and ping, which is what raw sockets are allowed for: the host
		// side of the network drops what is not the sandbox's own address.
		"--allow-suid=true",
		"--net-raw=true",
		"--host-settings=ignore",
		"--panic-log=" + filepath.Join(d.machineDir(id), panicLog),
		// There are no sidecar programs: everything is in this one.
		"--sidecar-usage-policy=LEGACY_DEPRECATED_SLOW_EMBEDDED_FALLBACK",
	}
	if network {
		args = append(args, "--network=sandbox")
	} else {
		args = append(args, "--network=none")
	}
	if d.cfg.Debug {
		args = append(args, "--debug=true", "--debug-log="+filepath.Join(d.machineDir(id), debugDir)+"/")
	}
	flags := flag.NewFlagSet("runsc", flag.ContinueOnError)
	config.RegisterFlags(flags)
	if err := flags.Parse(args); err != nil {
		return nil, fmt.Errorf("parse runsc's flags: %w", err)
	}
	conf, err := config.NewFromFlags(flags)
	if err != nil {
		return nil, fmt.Errorf("configure runsc: %w", err)
	}
	return conf, nil
}

// Recover implements driver.Driver.
func (d *Driver) Recover(ctx context.Context) ([]driver.Machine, error) {
	procs, err := running(d.cfg.Dir)
	if err != nil {
		return nil, err
	}
	dirs, err := os.ReadDir(d.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	groups, err := d.cfg.Cgroups.Groups()
	if err != nil {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	ids := map[string]bool{}
	for id := range procs {
		ids[id] = true
	}
	for _, e := range dirs {
		ids[e.Name()] = true
	}
	for _, g := range groups {
		ids[g] = true
	}
	var machines []driver.Machine
	var errs []error
	for id := range ids {
		m, err := d.adopt(ctx, id, procs[id])
		if err == nil {
			machines = append(machines, m)
			continue
		}
		d.cfg.Log.Info("removing what is left of a machine", "machine", id, "why", err)
		if err := d.sweep(ctx, id, procs[id]); err != nil {
			errs = append(errs, err)
		}
	}
	return machines, errors.Join(errs...)
}

// sweep removes every trace of a machine that is not, or not wholly, there.
func (d *Driver) sweep(ctx context.Context, id string, procs found) error {
	var errs []error
	group := d.cfg.Cgroups.Open(id)
	for _, pid := range []int{procs.sentry, procs.gofer} {
		if pid == 0 {
			continue
		}
		p, err := openProcess(pid)
		if err == nil {
			errs = append(errs, p.kill(ctx))
			p.close()
		}
	}
	errs = append(errs, group.Remove(ctx))
	errs = append(errs, os.RemoveAll(d.machineDir(id)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove machine %s: %w", id, err)
	}
	return nil
}
