package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/api"
	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/cgroup"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/drive"
	"github.com/skerry-dev/skerry/internal/driver/gvisor"
	"github.com/skerry-dev/skerry/internal/firewall"
	"github.com/skerry-dev/skerry/internal/guest/bin"
	"github.com/skerry-dev/skerry/internal/image"
	"github.com/skerry-dev/skerry/internal/node"
	"github.com/skerry-dev/skerry/internal/output"
	"github.com/skerry-dev/skerry/internal/snapshot"
	"github.com/skerry-dev/skerry/internal/store"
	"github.com/skerry-dev/skerry/internal/version"
)

// serveOptions are the flags of serve.
type serveOptions struct {
	state      string
	images     string
	run        string
	listen     api.ListenConfig
	publicURL  string
	forwarded  bool
	background bool
	debug      bool

	diskGB      int
	maxSessions int
	maxVCPUs    int
	maxTimeout  time.Duration
	outputMB    int
	cacheGB     int
	driveGB     int
	maxDriveGB  int
	processes   int
	network     networkOptions
	storage     storageOptions
	ingress     ingressOptions
}

func newServe() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Run the server: the API, the controller and this machine's sandboxes.

SIGINT (Ctrl-C, "sandboxd stop") stops the sandboxes and then the server.
SIGTERM stops the server alone: the sandboxes run on, and the next server on
the same state folder takes them over. So does a crash.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.state, o.images = stateDir(cmd), imagesDir(cmd)
			return o.main(cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.run, "run-dir", "/run/skerry", "folder for what running sandboxes need; it need not outlive a reboot")
	f.StringVar(&o.listen.Addr, "listen", "127.0.0.1:7700", "address to listen at")
	f.StringVar(&o.listen.CertFile, "tls-cert", "", "PEM file with the TLS certificate chain")
	f.StringVar(&o.listen.KeyFile, "tls-key", "", "PEM file with the TLS key")
	f.BoolVar(&o.listen.AllowPlaintext, "allow-plaintext", false, "listen beyond loopback without TLS; for use behind a proxy that ends TLS")
	f.StringVar(&o.publicURL, "public-url", "", "URL at which clients reach the server, if not the one they use")
	f.BoolVar(&o.forwarded, "trust-forwarded", false, "believe X-Forwarded-Proto and X-Forwarded-Host; for use behind a proxy that sets them")
	f.BoolVar(&o.background, "background", false, "start the server in the background and return once it serves")
	f.BoolVar(&o.debug, "debug", false, "log requests, and debug logs of the sandboxes' kernels")
	f.IntVar(&o.diskGB, "disk", 32, "how much a sandbox may write, in GiB")
	f.IntVar(&o.maxSessions, "max-sandboxes", controller.DefaultMaxSessions, "how many sandboxes may run at once")
	f.IntVar(&o.maxVCPUs, "max-vcpus", controller.DefaultMaxVCPUs, "the most virtual CPUs of a sandbox")
	f.DurationVar(&o.maxTimeout, "max-timeout", 24*time.Hour, "the longest a session may live")
	f.IntVar(&o.outputMB, "keep-output", 16, "how much of a command's output is kept, in MiB")
	f.IntVar(&o.cacheGB, "snapshot-cache", 10, "how much of snapshots is kept ready to start from, in GiB")
	f.IntVar(&o.driveGB, "drive-size", skerry.DefaultDriveSize>>30, "size of a drive whose creator does not say, in GiB")
	f.IntVar(&o.maxDriveGB, "max-drive-size", skerry.MaxDriveSize>>30, "the largest size of a drive, in GiB")
	f.IntVar(&o.processes, "max-processes", 4096, "how many processes and threads a sandbox may have")
	o.network.flags(f)
	o.storage.flags(f)
	o.ingress.flags(f)
	return cmd
}

func (o *serveOptions) main(cmd *cobra.Command) error {
	if err := o.ingress.check(); err != nil {
		return err
	}
	if o.background {
		var args []string
		for _, a := range os.Args[1:] {
			if a != "--background" && a != "--background=true" {
				args = append(args, a)
			}
		}
		url, err := startBackground(o.state, args)
		if errors.Is(err, errRunning) {
			fmt.Fprintf(cmd.OutOrStdout(), "sandboxd runs already, log in %s\n", logPath(o.state))
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "sandboxd listens at %s, log in %s\n", url, logPath(o.state))
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("the server must be run as root: it makes namespaces, networks and cgroups")
	}
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancel(context.WithoutCancel(cmd.Context()))
	defer cancel()
	stopAll := false
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case sig := <-signals:
			stopAll = sig == os.Interrupt
			log.Info("ending", "signal", sig.String(), "stopping sandboxes", stopAll)
			cancel()
		case <-ctx.Done():
		}
	}()
	return o.serve(ctx, log, func() bool {
		<-ended
		return stopAll
	})
}

// serve acquires everything top down, serves until ctx ends, and gives it all
// back bottom up. stopAll tells, after ctx has ended, whether the sandboxes
// end too.
func (o *serveOptions) serve(ctx context.Context, log *slog.Logger, stopAll func() bool) (err error) {
	claimed, err := claim(o.state)
	if err != nil {
		return err
	}
	defer closing(&err, claimed.release)
	ln, err := o.listen.Listen(ctx)
	if err != nil {
		return err
	}
	defer ln.Close() // Serve closes it too

	images, err := image.Open(image.Options{Dir: o.images})
	if err != nil {
		return err
	}
	db, err := store.Open(ctx, filepath.Join(o.state, "db"))
	if err != nil {
		return err
	}
	defer closing(&err, db.Close)
	accounts := auth.New(db)
	url := serverURL(ln, o.listen.CertFile != "", o.publicURL)
	if err := firstToken(ctx, accounts, url, log); err != nil {
		return err
	}

	gate, err := o.ingress.open(ctx, o.state, log)
	if err != nil {
		return err
	}
	n, networks, closeNode, err := o.node(ctx, log, images, url)
	if err != nil {
		return errors.Join(err, gate.Close())
	}
	defer closing(&err, closeNode)
	defer closing(&err, gate.Close)
	control := controller.New(controller.Config{
		Store: db, Node: n, Images: images, Log: log,
		MaxTimeout: o.maxTimeout, MaxVCPUs: o.maxVCPUs, MaxSessions: o.maxSessions,
		DriveSize: int64(min(o.driveGB, o.maxDriveGB)) << 30, MaxDriveSize: int64(o.maxDriveGB) << 30,
		Ingress: gate, MaxPorts: o.ingress.maxPorts,
	})
	defer closing(&err, control.Close)
	if err := control.Recover(ctx); err != nil {
		return err
	}
	gate.Start(control)
	server, err := api.New(api.Options{
		Service: control, Accounts: accounts, Log: log, Version: version.Version,
		PublicURL: o.publicURL, TrustForwarded: o.forwarded, Discovery: networks.Discovery(),
	})
	if err != nil {
		return err
	}
	log.Info("serving", "url", url, "version", version.Version)
	if err := reportReady(url); err != nil {
		return err
	}
	err = server.Serve(ctx, ln)
	err = errors.Join(err, gate.Close()) // or a request would start what is being stopped
	if stopAll() {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopAllTimeout)
		defer cancel()
		err = errors.Join(err, control.StopAll(stopCtx))
	}
	return err
}

// stopAllTimeout bounds the stop of all sandboxes when the server ends.
const stopAllTimeout = 50 * time.Second

// node builds what runs sandboxes on this machine.
func (o *serveOptions) node(ctx context.Context, log *slog.Logger, images *image.Store, url string) (*node.Node, *firewall.Firewall, func() error, error) {
	name := instanceName(o.state)
	run := filepath.Join(o.run, name)
	agent, err := packAgent(ctx, filepath.Join(o.state, "agent"))
	if err != nil {
		return nil, nil, nil, err
	}
	groups, err := cgroup.New(name)
	if err != nil {
		return nil, nil, nil, err
	}
	hostProcesses, err := boundProcesses(groups, log)
	if err != nil {
		return nil, nil, nil, err
	}
	networks, err := o.network.open(ctx, filepath.Join(run, "netns"), o.state, url, log)
	if err != nil {
		return nil, nil, nil, err
	}
	drv, err := gvisor.New(gvisor.Config{
		Dir:     filepath.Join(run, "machines"),
		DiskDir: filepath.Join(o.state, "disks"),
		Cgroups: groups,
		Log:     log,
		Debug:   o.debug,
	})
	if err != nil {
		return nil, nil, nil, errors.Join(err, networks.Close())
	}
	snapshots, err := o.snapshots(log)
	if err != nil {
		return nil, nil, nil, errors.Join(err, drv.Close(), networks.Close())
	}
	drives, err := drive.Open(drive.Options{Dir: filepath.Join(o.state, "drives"), Log: log})
	if err != nil {
		return nil, nil, nil, errors.Join(err, drv.Close(), networks.Close())
	}
	n, err := node.New(node.Config{
		Dir:           filepath.Join(o.state, "sessions"),
		Driver:        drv,
		Networks:      networks,
		Images:        images,
		Agent:         agent,
		Snapshots:     snapshots,
		SnapshotWork:  filepath.Join(o.state, "snapshots", "work"),
		Drives:        drives,
		DiskBytes:     int64(o.diskGB) << 30,
		Processes:     o.processes,
		HostProcesses: hostProcesses,
		Output:        output.Config{Keep: int64(o.outputMB) << 20},
		Log:           log,
	})
	if err != nil {
		return nil, nil, nil, errors.Join(err, drv.Close(), networks.Close())
	}
	return n, networks, func() error {
		err := errors.Join(n.Close(), drv.Close(), networks.Close())
		// While sandboxes run on, the group has children and stays.
		if left, lerr := groups.Groups(); lerr == nil && len(left) == 0 {
			err = errors.Join(err, groups.Close())
		}
		removeEmpty(filepath.Join(run, "machines"), filepath.Join(run, "netns"), run)
		return err
	}, nil
}

// snapshots opens what keeps the files of stopped sandboxes.
func (o *serveOptions) snapshots(log *slog.Logger) (*snapshot.Store, error) {
	dir := filepath.Join(o.state, "snapshots")
	blobs, err := o.storage.open(dir)
	if err != nil {
		return nil, err
	}
	return snapshot.Open(snapshot.Options{
		Blobs: blobs, CacheDir: filepath.Join(dir, "cache"), CacheBytes: int64(o.cacheGB) << 30, Log: log,
		Grace: -1, // the controller holds collections off until a snapshot is recorded
	})
}

// removeEmpty removes folders that hold nothing.
func removeEmpty(dirs ...string) {
	for _, dir := range dirs {
		_ = os.Remove(dir) // one that is in use has something in it
	}
}

// instanceName tells servers on one machine apart: their cgroups, networks and
// running files must not meet.
func instanceName(state string) string {
	abs, err := filepath.Abs(state)
	if err != nil {
		abs = state
	}
	sum := sha256.Sum256([]byte(abs))
	return "skerry-" + hex.EncodeToString(sum[:4])
}

// packAgent makes the image with the guest agent that sandboxes mount.
func packAgent(ctx context.Context, dir string) (string, error) {
	program, err := bin.Agent()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(program)
	path := filepath.Join(dir, hex.EncodeToString(sum[:8])+".erofs")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	tree := path + ".tree"
	defer os.RemoveAll(tree)
	// The agent mounts the sandbox's control groups on the folder.
	if err := os.MkdirAll(filepath.Join(tree, "cgroup"), 0o755); err != nil {
		return "", fmt.Errorf("pack the guest agent: %w", err)
	}
	if err := os.WriteFile(filepath.Join(tree, "agent"), program, 0o755); err != nil {
		return "", fmt.Errorf("pack the guest agent: %w", err)
	}
	if err := image.BuildEROFS(ctx, tree, path+".tmp"); err != nil {
		return "", fmt.Errorf("pack the guest agent: %w", err)
	}
	return path, os.Rename(path+".tmp", path)
}

func serverURL(ln net.Listener, tls bool, public string) string {
	if public != "" {
		return public
	}
	scheme := "http"
	if tls {
		scheme = "https"
	}
	return scheme + "://" + ln.Addr().String()
}

// closing adds a deferred close's error to the function's own.
func closing(err *error, close func() error) { *err = errors.Join(*err, close()) }
