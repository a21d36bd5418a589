package gvisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/sandbox"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/skerry-dev/skerry/internal/cgroup"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest/pipes"
)

// sentryMemory is what a machine's cgroup gets on top of what its user asked
// for: the sentry's own heap and page tables. An idle one needs 30 MiB; file
// metadata and many processes need more.
const sentryMemory = 192 << 20

// helperOOMScore makes the kernel choose a sandboxed process over the sentry
// when the machine is out of memory: losing one process is better than losing
// the machine. The sandboxed processes' memory belongs to the sentry's helper
// processes on the host.
const helperOOMScore = 800

// The guest agent's descriptors of its pipes to the host.
const (
	fromHostFD = 3
	toHostFD   = 4
	doorFD     = 5
)

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, spec driver.Spec) (driver.Machine, net.Conn, error) {
	m, conn, err := d.start(ctx, spec)
	if err != nil {
		return nil, nil, fmt.Errorf("start machine %s: %w", spec.ID, err)
	}
	return m, conn, nil
}

func (d *Driver) start(ctx context.Context, spec driver.Spec) (_ *machine, _ net.Conn, err error) {
	host, guest, err := pipes.New()
	if err != nil {
		return nil, nil, err
	}
	defer guest.Close()
	m, err := d.launch(ctx, spec, guest, func(m *machine) error {
		if err := m.box.StartRoot(m.conf, m.oci); err != nil {
			return err
		}
		if spec.Snapshot != "" {
			m.work.Go(m.awaitFiles)
		}
		return nil
	})
	if err != nil {
		host.Close()
		return nil, nil, err
	}
	return m, connection{host}, nil
}

// launch makes a machine, puts it under its limits, and only then has begin
// bring it to life. guest is the agent's ends of its pipes.
func (d *Driver) launch(ctx context.Context, spec driver.Spec, guest pipes.Guest, begin func(*machine) error) (_ *machine, err error) {
	dir := d.machineDir(spec.ID)
	oci := ociSpec(spec, dir)
	if err := writeBundle(dir, oci, len(spec.Mounts)); err != nil {
		return nil, err
	}
	m := &machine{
		d: d, id: spec.ID, oci: oci, done: make(chan struct{}),
		sentry: sentryVersion(), vcpus: spec.VCPUs, memory: spec.MemoryBytes,
	}
	defer func() {
		if err != nil {
			err = errors.Join(withMount(spec.Mounts, withPanic(dir, err)), d.abandon(ctx, spec.ID, m.proc, m.gofer))
		}
	}()
	if m.pipes, err = guest.Names(); err != nil {
		return nil, err
	}
	m.group, err = d.cfg.Cgroups.Create(spec.ID, cgroup.Limits{
		CPUs:        spec.VCPUs,
		MemoryBytes: spec.MemoryBytes + sentryMemory,
		Processes:   spec.Processes,
	})
	if err != nil {
		return nil, err
	}
	if m.conf, err = d.runscConfig(spec.ID, spec.NetNS != ""); err != nil {
		return nil, err
	}
	args, closeArgs, err := d.sandboxArgs(spec, m.group)
	if err != nil {
		return nil, err
	}
	defer closeArgs()
	args.Spec = oci
	args.BundleDir = dir
	args.PassFiles = map[int]*os.File{fromHostFD: guest.In, toHostFD: guest.Out, doorFD: guest.Door}
	if args.MountHints, err = boot.NewPodMountHints(oci); err != nil {
		return nil, err
	}
	if m.disk, err = dup(args.GoferFilestoreFiles[0]); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.disk.Close()
		}
	}()
	if err := d.startProcesses(m, spec, args); err != nil {
		return nil, err
	}
	if m.proc, err = openProcess(m.box.Getpid()); err != nil {
		return nil, err
	}
	if err := confine(m.group, m.proc.pid, args.CloneIntoCgroupFD == nil); err != nil {
		return nil, err
	}
	if err := m.save(); err != nil {
		return nil, err
	}
	// From here on sandboxed code runs.
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := begin(m); err != nil {
		return nil, err
	}
	m.begin()
	return m, nil
}

// socketPathMax is what the path of a Unix socket must be shorter than.
const socketPathMax = 108

// startProcesses starts a machine's gofer, if it needs one, and its sentry.
func (d *Driver) startProcesses(m *machine, spec driver.Spec, args *sandbox.Args) (err error) {
	if len(filepath.Join(m.conf.RootDir, "runsc-"+args.ID+".sock")) >= socketPathMax {
		// gVisor makes a socket with so long a path by way of its folder, and
		// has that open such that a process which is forked meanwhile inherits
		// it. A sentry does not start with a folder of the host.
		d.longPaths.Lock()
		defer d.longPaths.Unlock()
	}
	if len(spec.Mounts) > 0 {
		if m.gofer, err = d.startGofer(m.conf, spec, args); err != nil {
			return err
		}
		if args.CloneIntoCgroupFD == nil {
			if err := m.group.Add(m.gofer.pid); err != nil {
				return fmt.Errorf("limit the gofer: %w", err)
			}
		}
	}
	m.box, err = sandbox.New(m.conf, args)
	return err
}

// sandboxArgs opens the files that a sentry is started with. runsc closes
// those that it is given to keep; closeArgs closes the others.
func (d *Driver) sandboxArgs(spec driver.Spec, group *cgroup.Group) (_ *sandbox.Args, closeArgs func(), err error) {
	var files []*os.File
	defer func() {
		if err != nil {
			closeAll(files)
		}
	}()
	open := func(f *os.File, ferr error) *os.File {
		if ferr != nil {
			err = errors.Join(err, ferr)
			return nil
		}
		if f != nil {
			files = append(files, f)
		}
		return f
	}
	rootfs := open(os.Open(spec.RootFS))
	agent := open(os.Open(spec.Agent))
	disk := open(nameless(d.cfg.DiskDir))
	cg := open(group.OpenForClone())
	if err != nil {
		return nil, nil, fmt.Errorf("open the machine's files: %w", err)
	}
	return &sandbox.Args{
		ID:                  spec.ID,
		IOFiles:             []*os.File{rootfs, agent},
		GoferFilestoreFiles: []*os.File{disk},
		GoferMountConfs: specutils.GoferMountConfFlags{
			{Lower: specutils.Erofs, Upper: specutils.AnonOverlay, Size: strconv.FormatInt(spec.DiskBytes, 10)},
			{Lower: specutils.Erofs, Upper: specutils.NoOverlay},
		},
		Cgroup:             visible{vcpus: spec.VCPUs, memory: spec.MemoryBytes},
		CloneIntoCgroupFD:  cg,
		FSRestoreImagePath: spec.Snapshot,
	}, func() { closeAll(files) }, nil
}

// nameless creates a file without a name: it is gone with its last user, and
// so cannot be left behind.
func nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), "disk"), nil
	}
	// Not every filesystem has O_TMPFILE.
	f, err := os.CreateTemp(dir, "disk-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// dup returns another descriptor of an open file.
func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hold %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// confine puts a sentry and its helpers under the machine's limits. It waits
// to be told to run code, so nothing escapes: on cgroup v2 it was born in its
// group, on v1 it is moved there now.
func confine(group *cgroup.Group, sentry int, move bool) error {
	helpers := descendants(sentry)
	if move {
		if err := group.Add(append(helpers, sentry)...); err != nil {
			return fmt.Errorf("limit the machine: %w", err)
		}
	}
	for _, pid := range helpers {
		err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(helperOOMScore)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("rank the machine's processes: %w", err)
		}
	}
	return nil
}

// abandon removes what a failed start has made. The processes are nil as far
// as the start did not come to know them.
func (d *Driver) abandon(ctx context.Context, id string, sentry, gofer *process) error {
	// The caller's ctx may be what ended the start.
	ctx = context.WithoutCancel(ctx)
	var procs found
	if all, err := running(d.cfg.Dir); err == nil {
		procs = all[id]
	}
	if sentry != nil {
		procs.sentry = sentry.pid
		defer sentry.close()
	}
	if gofer != nil {
		procs.gofer = gofer.pid
		defer gofer.close()
	}
	return d.sweep(ctx, id, procs)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// withMount tells a mount that the sentry could not make from other failures.
func withMount(mounts []driver.Mount, err error) error {
	for _, m := range mounts {
		if strings.Contains(err.Error(), "mount submount "+strconv.Quote(m.Path)) {
			return &driver.MountError{Path: m.Path, Err: err}
		}
	}
	return err
}

// maxPanic is how much of a sentry's last words is looked at.
const maxPanic = 4 << 10

// withPanic adds to an error what the sentry said when it died.
func withPanic(dir string, err error) error {
	if words := lastWords(dir); words != "" {
		return fmt.Errorf("%w: %s", err, words)
	}
	return err
}

func lastWords(dir string) string {
	f, err := os.Open(filepath.Join(dir, panicLog))
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, maxPanic)
	n, _ := f.Read(b)
	return string(b[:n])
}
