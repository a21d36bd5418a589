package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/cgroup"
	"github.com/skerry-dev/skerry/internal/drive"
	"github.com/skerry-dev/skerry/internal/driver/gvisor"
	"github.com/skerry-dev/skerry/internal/image"
	"github.com/skerry-dev/skerry/internal/issuer"
	"github.com/skerry-dev/skerry/internal/node"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/remote"
	"github.com/skerry-dev/skerry/internal/output"
	"github.com/skerry-dev/skerry/internal/room"
	"github.com/skerry-dev/skerry/internal/usage"
	"github.com/skerry-dev/skerry/internal/version"
	"github.com/skerry-dev/skerry/patches"
)

// nodeParts is all that the controller and the API have of a node, in this process or
// in another.
type nodeParts struct {
	node      nodeapi.Node
	collector nodeapi.Collector
	images    nodeapi.Images
	// keys returns the public keys of the tokens that the node signs.
	keys    issuer.KeySource
	machine machineSize
	// room reports whether the disk has room; nil if it is the node's alone.
	room func() error
	// drain ends the warm sandboxes. A node in another process keeps them.
	drain func() error
	// warm returns the counts of warm sandboxes, totals what all sandboxes have used; nil
	// for a node in another process.
	warm   func() node.PoolStats
	totals func() node.Totals
	close  func() error
}

// open builds the node, or connects to that of another process.
func (o *serveOptions) open(ctx context.Context, log *slog.Logger, url string) (*nodeParts, error) {
	if o.nodeAddress != "" {
		return o.remote(ctx, log, url)
	}
	return o.local(ctx, log, url)
}

// helloWait is how long a server waits for a node that does not answer.
const helloWait = 10 * time.Second

// remote connects to the node of another process.
func (o *serveOptions) remote(ctx context.Context, log *slog.Logger, url string) (*nodeParts, error) {
	path, err := o.nodePath()
	if err != nil {
		return nil, err
	}
	c := remote.NewClient(remote.ClientConfig{Dial: func(ctx context.Context) (conn net.Conn, err error) {
		err = inFolder(filepath.Dir(path), filepath.Base(path), func(short string) error {
			conn, err = new(net.Dialer).DialContext(ctx, "unix", short)
			return err
		})
		return conn, err
	}})
	ctx, cancel := context.WithTimeout(ctx, helloWait)
	defer cancel()
	hello, err := c.Hello(ctx)
	if err != nil {
		if errors.Is(err, nodeapi.ErrUnreachable) {
			log.Debug("cannot reach the node", "error", err)
			// What it says is for clients, and names a path that nobody knows.
			err = fmt.Errorf("no node answers at %s; start it with sandboxd node", path)
		} else {
			err = fmt.Errorf("connect to the node at %s: %w", path, err)
		}
		return nil, errors.Join(err, c.Close())
	}
	if own := o.issuer(url); hello.Issuer != own {
		log.Warn("the node's tokens name another issuer; give both processes the same --oidc-issuer", "node", hello.Issuer, "server", own)
	}
	log.Info("connected to the node", "socket", path, "version", hello.Version)
	return &nodeParts{
		node: c, collector: c, images: c, keys: c.Keys, drain: func() error { return nil }, close: c.Close,
		machine: machineSize{cpus: hello.CPUs, memory: hello.MemoryBytes},
	}, nil
}

// nodePath parses --node.
func (o *serveOptions) nodePath() (string, error) {
	path, ok := strings.CutPrefix(o.nodeAddress, "unix:")
	if !ok || !filepath.IsAbs(path) {
		return "", usage.Errorf("--node %q is not of the form unix:PATH, with an absolute path", o.nodeAddress)
	}
	return path, nil
}

// issuer returns the issuer of tokens, for a server with this URL.
func (o *serveOptions) issuer(url string) string {
	if o.network.issuer != "" {
		url = o.network.issuer
	}
	return strings.TrimRight(url, "/")
}

// The node's socket, and its folder in the state folder: nobody but root gets there,
// not even before the socket has its mode.
const (
	nodeDir    = "node"
	nodeSocket = "node.sock"
)

func nodeLockPath(state string) string { return filepath.Join(state, "node.pid") }

// errNodeRunning is for a node where errRunning is for a server.
var errNodeRunning = errors.New(`another process already runs the sandboxes of this state folder: stop a server with "sandboxd stop --keep-sandboxes", a "sandboxd node" with SIGTERM (node.pid in the state folder has its process id)`)

// claimNode claims the node of a state folder.
func claimNode(state string) (*instance, error) {
	claimed, err := claim(state, nodeLockPath(state))
	if errors.Is(err, errRunning) {
		return nil, errNodeRunning
	}
	return claimed, err
}

// newNode returns the command that runs a node without the API and the controller.
func newNode() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:    "node",
		Short:  "Experimental: run this machine's sandboxes, without the API",
		Hidden: true,
		Long: `Experimental: run this machine's sandboxes, without the API, for a
"sandboxd serve --node unix:STATE/node/node.sock" on the same state folder. Not for
production yet.

The flags are those of serve, and both processes are given the same. The sandboxes
keep running when the process ends.`,
		Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.state, o.images = stateDir(cmd), imagesDir(cmd)
			return o.nodeMain(cmd)
		},
	}
	o.flags(cmd.Flags())
	return cmd
}

func (o *serveOptions) nodeMain(cmd *cobra.Command) error {
	if err := o.check(cmd.Flags()); err != nil {
		return err
	}
	if o.background {
		at, err := startBackground(o.state, nodeLockPath(o.state))
		if errors.Is(err, errRunning) {
			return errNodeRunning
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "the node listens at %s, log in %s\n", at, logPath(o.state))
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("the node must run as root: it creates namespaces, networks and cgroups")
	}
	ctx, cancel := signal.NotifyContext(context.WithoutCancel(cmd.Context()), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	return o.serveNode(ctx, o.logger())
}

// serveNode serves the node over a socket in the state folder until ctx ends.
func (o *serveOptions) serveNode(ctx context.Context, log *slog.Logger) (err error) {
	claimed, err := claimNode(o.state)
	if err != nil {
		return err
	}
	defer closing(&err, claimed.release)
	forgetDatabase() // it is the other process's
	files, err := raiseFiles()
	if err != nil {
		return err
	}
	o.network.connections = connectionsFor(files)
	// The server is not asked for its URL, so a port that it chooses itself is not
	// known here.
	otlp, err := o.observe.traces()
	if err != nil {
		return err
	}
	tracer, stopTraces, err := trace(otlp, nil, instanceName(o.state), "node", log)
	if err != nil {
		return err
	}
	defer closing(&err, stopTraces)
	url := o.publicURL
	if url == "" {
		url = urlOf(o.listen.Addr, o.api.tls())
	}
	n, err := o.local(ctx, log, url)
	if err != nil {
		return err
	}
	defer closing(&err, n.close)
	dir := filepath.Join(o.state, nodeDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ln, err := listenUnix(dir, nodeSocket)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, nodeSocket)
	defer closing(&err, func() error { return os.Remove(path) })
	server := remote.NewServer(remote.ServerConfig{
		Node: n.node, Images: n.images, Collector: n.collector, Keys: n.keys, Log: log, Tracer: tracer,
		Hello: remote.Hello{Version: version.Version, Issuer: o.issuer(url), CPUs: n.machine.cpus, MemoryBytes: n.machine.memory},
	})
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	log.Info("serving the node", "socket", path, "version", version.Version)
	err = reportReady("unix:" + path)
	if err == nil {
		select {
		case err = <-served:
			return errors.Join(err, server.Close())
		case <-ctx.Done():
		}
	}
	err = errors.Join(err, server.Close())
	return errors.Join(err, <-served)
}

// local builds what runs sandboxes in this process.
func (o *serveOptions) local(ctx context.Context, log *slog.Logger, url string) (*nodeParts, error) {
	machine, err := thisMachine()
	if err != nil {
		return nil, err
	}
	images, err := image.Open(image.Options{Dir: o.images})
	if err != nil {
		return nil, err
	}
	disk := room.New(o.state, int64(o.capacity.diskReserveMB)<<20)
	snapshots, err := o.snapshots(disk, log)
	if err != nil {
		return nil, err
	}
	name := instanceName(o.state)
	run := filepath.Join(o.run, name)
	authorities, env, err := o.inside.load(log)
	if err != nil {
		return nil, err
	}
	agent, err := packAgent(ctx, filepath.Join(o.state, "agent"))
	if err != nil {
		return nil, err
	}
	groups, err := cgroup.New(name)
	if err != nil {
		return nil, err
	}
	hostProcesses, err := boundProcesses(groups, log)
	if err != nil {
		return nil, err
	}
	if err := o.capacity.boundMemory(groups, log); err != nil {
		return nil, err
	}
	tokens, err := o.network.tokens(ctx, o.state, o.issuer(url), log)
	if err != nil {
		return nil, err
	}
	networks, err := o.network.open(ctx, filepath.Join(run, "netns"), o.state, tokens, log)
	if err != nil {
		return nil, err
	}
	if !gvisor.Patched {
		for _, p := range patches.GVisor() {
			log.Warn("built without a patch to gVisor; make builds with it", "patch", p.Name, "weaker", p.Without)
		}
	}
	drv, err := gvisor.New(gvisor.Config{
		Dir:     filepath.Join(run, "machines"),
		DiskDir: filepath.Join(o.state, "disks"),
		Cgroups: groups,
		Log:     log,
		Debug:   o.debug,
	})
	if err != nil {
		return nil, errors.Join(err, networks.Close())
	}
	drives, err := drive.Open(drive.Options{Dir: filepath.Join(o.state, "drives"), Reserve: disk.Reserve, Log: log})
	if err != nil {
		return nil, errors.Join(err, drv.Close(), networks.Close())
	}
	n, err := node.New(node.Config{
		Dir:           filepath.Join(o.state, "sessions"),
		Driver:        drv,
		Networks:      networks,
		Images:        images,
		Agent:         agent,
		Authorities:   authorities,
		Env:           env,
		Snapshots:     snapshots,
		SnapshotWork:  filepath.Join(o.state, "snapshots", "work"),
		Drives:        drives,
		DiskBytes:     int64(o.diskGB) << 30,
		Disk:          disk,
		Processes:     o.processes,
		HostProcesses: hostProcesses,
		MaxCommands:   o.commands,
		ReachLoopback: o.ingress.loopback,
		IdlePause:     o.idlePause,
		Idle:          skerry.IdleMode(o.idle),
		IdleHibernate: o.idleHibernate,
		Output:        output.Config{Keep: int64(o.outputMB) << 20},
		Tokens:        workloadTokens{tokens},
		Warm:          o.warm.config(o.state, o.capacity.sandboxMemory(machine.memory), images),
		Log:           log,
	})
	if err != nil {
		return nil, errors.Join(err, drv.Close(), networks.Close())
	}
	return &nodeParts{node: n, collector: snapshots, images: images, keys: tokens.PublicKeys, machine: machine, room: disk.Check, drain: n.Drain, warm: n.PoolStats, totals: n.Totals, close: func() error {
		err := errors.Join(n.Close(), drv.Close(), networks.Close())
		// While sandboxes run on, the group has children and stays.
		if left, lerr := groups.Groups(); lerr == nil && len(left) == 0 {
			err = errors.Join(err, groups.Close())
		}
		removeEmpty(filepath.Join(run, "machines"), filepath.Join(run, "netns"), run)
		return err
	}}, nil
}
