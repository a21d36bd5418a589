package gvisor

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/skerry-dev/skerry/internal/tracing"
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

// name is in the formats of snapshots.
const name = "gvisor"

// Name implements driver.Driver.
func (d *Driver) Name() string { return name }

// Capabilities implements driver.Driver.
func (d *Driver) Capabilities() driver.Capabilities {
	return driver.Capabilities{Memory: true, Fork: true, Pause: true, Prepare: Patched, Volumes: []driver.VolumeKind{driver.Tree}}
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	m, err := d.start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.ID, err)
	}
	return m, nil
}

func (d *Driver) start(ctx context.Context, spec driver.Spec) (_ *machine, err error) {
	if _, err := network(spec); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	host, guest, err := pipes.New()
	if err != nil {
		return nil, err
	}
	defer guest.Close()
	return d.become(ctx, spec, pipes.Conn{Duplex: host}, func(begin func(*machine) error) (*machine, error) {
		return d.launch(ctx, spec, guest, begin)
	})
}

// become starts a machine from its source. launch makes the machine, has begin bring it
// to life, and leaves nothing if that fails. host is the host's end of the connection to
// the agent.
func (d *Driver) become(ctx context.Context, spec driver.Spec, host pipes.Conn, launch launcher) (*machine, error) {
	if spec.Source.Runs() {
		// The agent finds its connection ended, until Attach knocks.
		if err := host.Close(); err != nil {
			return nil, err
		}
		return d.proceed(ctx, spec, launch)
	}
	m, err := launch(func(m *machine) error {
		if err := m.box.StartRoot(m.conf, m.oci); err != nil {
			return err
		}
		if spec.Source.Files != "" {
			m.work.Go(m.awaitFiles)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, host.Close())
	}
	m.first.Store(&host)
	return m, nil
}

type launcher func(begin func(*machine) error) (*machine, error)

// proceed starts a machine that goes on with processes that ran before.
func (d *Driver) proceed(ctx context.Context, spec driver.Spec, launch launcher) (*machine, error) {
	load := func(m *machine) error { return m.load(spec.Source.Memory, spec, nil) }
	if spec.Source.Fork != nil {
		save, ok := spec.Source.Fork.(*forking)
		if !ok {
			return nil, errors.New("the machine that is to be forked is another driver's")
		}
		load = func(m *machine) error { return save.load(ctx, m, spec) }
	} else if err := checkImage(spec.Source.Memory, spec); err != nil {
		return nil, err
	}
	return launch(load)
}

// network returns the namespace with the machine's interface, "" for none. The
// sentry takes addresses, routes and sizes from what it finds there.
func network(spec driver.Spec) (netns string, err error) {
	switch {
	case len(spec.Interfaces) == 0:
		return "", nil
	case len(spec.Interfaces) > 1:
		return "", fmt.Errorf("%d interfaces: gVisor has one", len(spec.Interfaces))
	case spec.Interfaces[0].Kind != driver.Veth || spec.Interfaces[0].NetNS == "":
		return "", fmt.Errorf("an interface of kind %q: gVisor needs a veth in a namespace", spec.Interfaces[0].Kind)
	}
	return spec.Interfaces[0].NetNS, nil
}

// maxWeight is the kernel's own bound of a group's weight. A machine in the background
// has a tenth of the share of one vCPU: with less it might not start in time on a busy
// host.
const backgroundWeight, maxWeight = 10, 10_000

// weight is the share of the CPU that a machine is started with.
func weight(spec driver.Spec) int {
	if spec.Background {
		return backgroundWeight
	}
	return usualWeight(spec.VCPUs)
}

func usualWeight(vcpus int) int { return min(100*vcpus, maxWeight) }

// launch makes a machine, puts it under its limits, and only then has begin
// bring it to life. guest is the agent's ends of its pipes.
func (d *Driver) launch(ctx context.Context, spec driver.Spec, guest pipes.Guest, begin func(*machine) error) (*machine, error) {
	m, err := d.assemble(ctx, spec, guest)
	if err != nil {
		return nil, err
	}
	return m, m.animate(ctx, spec, begin)
}

// assemble makes a machine and puts it under its limits. Its sentry waits.
func (d *Driver) assemble(ctx context.Context, spec driver.Spec, guest pipes.Guest) (_ *machine, err error) {
	dir := d.machineDir(spec.ID)
	oci := ociSpec(spec, dir)
	if err := writeBundle(dir, oci, len(spec.Volumes)); err != nil {
		return nil, err
	}
	m := &machine{
		d: d, id: spec.ID, oci: oci, done: make(chan struct{}), calling: make(chan struct{}, 1), stopping: make(chan struct{}, 1),
		sentry: sentryVersion(), vcpus: spec.VCPUs, memory: spec.MemoryBytes, user: d.users.take(),
		diskLimit: spec.DiskBytes,
	}
	defer func() {
		if err != nil {
			err = d.dismantle(ctx, m, spec.Volumes, err)
		}
	}()
	if m.pipes, err = guest.Names(); err != nil {
		return nil, err
	}
	_, span := tracing.Start(ctx, tracing.MachineGroup)
	defer func() { span.End(err) }() // whichever is under way
	m.group, err = d.cfg.Cgroups.Create(spec.ID, cgroup.Limits{
		CPUs:        spec.VCPUs,
		MemoryBytes: spec.MemoryBytes + sentryMemory,
		Processes:   spec.Processes,
		Weight:      weight(spec),
	})
	if err != nil {
		return nil, err
	}
	if m.conf, err = d.runscConfig(spec.ID, len(spec.Interfaces) > 0); err != nil {
		return nil, err
	}
	args, closeArgs, err := d.sandboxArgs(spec, m.group)
	if err != nil {
		return nil, err
	}
	defer closeArgs()
	runAs(args, m.user)
	args.Spec = oci
	args.BundleDir = dir
	args.PassFiles = map[int]*os.File{fromHostFD: guest.In, toHostFD: guest.Out, doorFD: guest.Door}
	if args.MountHints, err = boot.NewPodMountHints(oci); err != nil {
		return nil, err
	}
	if m.disk, err = dup(args.GoferFilestoreFiles[0]); err != nil {
		return nil, err
	}
	if m.words, err = hearWords(dir, true); err != nil {
		return nil, err
	}
	defer d.killLate(ctx, spec.ID)()
	span.End(nil)
	_, span = tracing.Start(ctx, tracing.MachineKernel)
	if err := d.startProcesses(m, spec, args); err != nil {
		return nil, late(ctx, err)
	}
	m.words.started()
	if m.proc, err = openProcess(m.box.Getpid()); err != nil {
		return nil, err
	}
	if err := confine(m.group, m.proc.pid, args.CloneIntoCgroupFD == nil); err != nil {
		return nil, err
	}
	if err := m.limitProcesses(spec); err != nil {
		return nil, err
	}
	return m, nil
}

// animate has begin bring an assembled machine to life. If that fails, nothing of it is
// left.
func (m *machine) animate(ctx context.Context, spec driver.Spec, begin func(*machine) error) (err error) {
	defer func() {
		if err != nil {
			err = m.d.dismantle(ctx, m, spec.Volumes, err)
		}
	}()
	defer m.d.killLate(ctx, m.id)()
	_, span := tracing.Start(ctx, tracing.MachineBoot)
	defer func() { span.End(err) }()
	if err := m.save(); err != nil {
		return err
	}
	// From here on sandboxed code runs.
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := begin(m); err != nil {
		return late(ctx, err)
	}
	if err := ctx.Err(); err != nil { // it may have been killed for that
		return err
	}
	m.begin()
	return nil
}

// dismantle removes what is there of a machine that cannot start, for the reason why.
func (d *Driver) dismantle(ctx context.Context, m *machine, volumes []driver.Volume, why error) error {
	if m.disk != nil {
		m.disk.Close()
	}
	aerr := d.abandon(ctx, m.id, m.proc, m.gofer)
	if m.words != nil {
		m.words.started()
		if said := m.words.last(); said != "" {
			why = fmt.Errorf("%w: %s", why, said)
		}
		m.words.close()
	}
	d.users.giveBack(m.user)
	return errors.Join(withMount(volumes, why), aerr)
}

// late names the end of ctx as the reason of what failed for it.
func late(ctx context.Context, err error) error {
	if end := ctx.Err(); end != nil && !errors.Is(err, end) {
		return fmt.Errorf("%w: %w", end, err)
	}
	return err
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
	if len(spec.Volumes) > 0 {
		if m.gofer, err = d.startGofer(m.conf, spec, args); err != nil {
			return err
		}
		if args.CloneIntoCgroupFD == nil {
			if err := m.group.Add(m.gofer.pid); err != nil {
				return fmt.Errorf("limit the gofer: %w", err)
			}
		}
		if err := rank(m.gofer.pid, 0); err != nil {
			return err
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
		FSRestoreImagePath: spec.Source.Files,
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
		if err := rank(pid, helperOOMScore); err != nil {
			return err
		}
	}
	return rank(sentry, 0)
}

// rank says how readily the kernel ends a process when memory runs out. Without,
// it would inherit this process's own rank.
func rank(pid, score int) error {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("rank the machine's processes: %w", err)
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
func withMount(mounts []driver.Volume, err error) error {
	for _, m := range mounts {
		if strings.Contains(err.Error(), "mount submount "+strconv.Quote(m.Path)) {
			return &driver.VolumeError{Path: m.Path, Err: err}
		}
	}
	return err
}
