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
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/api"
	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/guest/bin"
	"github.com/skerry-dev/skerry/internal/image"
	"github.com/skerry-dev/skerry/internal/issuer"
	"github.com/skerry-dev/skerry/internal/metrics"
	"github.com/skerry-dev/skerry/internal/node"
	"github.com/skerry-dev/skerry/internal/room"
	"github.com/skerry-dev/skerry/internal/snapshot"
	"github.com/skerry-dev/skerry/internal/usage"
	"github.com/skerry-dev/skerry/internal/version"
)

// serveOptions are the flags of serve.
type serveOptions struct {
	state      string
	images     string
	database   string
	run        string
	listen     api.ListenConfig
	publicURL  string
	forwarded  bool
	background bool
	debug      bool

	diskGB        int
	maxSessions   int
	maxVCPUs      int
	maxTimeout    time.Duration
	stopGrace     time.Duration
	saveGrace     time.Duration
	outputMB      int
	cacheGB       int
	driveGB       int
	maxDriveGB    int
	processes     int
	commands      int
	api           apiOptions
	capacity      capacityOptions
	network       networkOptions
	storage       storageOptions
	ingress       ingressOptions
	inside        insideOptions
	observe       observeOptions
	audit         auditOptions
	warm          warmOptions
	idlePause     time.Duration
	idleHibernate time.Duration
	idle          string
	// nodeAddress is where the node listens if it is another process.
	nodeAddress string
}

func newServe() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Run the server: the API, the controller and this machine's sandboxes.

SIGINT (Ctrl-C, "sandboxd stop") stops the sandboxes and then the server.
SIGTERM stops only the server: the sandboxes keep running, and the next server on
the same state folder takes them over. The same is true after a crash.`,
		Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.state, o.images = stateDir(cmd), imagesDir(cmd)
			var err error
			if o.database, err = databaseURL(cmd); err != nil {
				return err
			}
			return o.main(cmd)
		},
	}
	o.flags(cmd.Flags())
	cmd.Flags().StringVar(&o.nodeAddress, "node", "", "experimental: use the node that another process on this machine runs (sandboxd node), such as unix:/var/lib/skerry/node/node.sock")
	_ = cmd.Flags().MarkHidden("node") // it is there
	return cmd
}

func (o *serveOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.run, "run-dir", "/run/skerry", "folder for the data of running sandboxes; it may be lost at a reboot")
	f.StringVar(&o.listen.Addr, "listen", "127.0.0.1:7700", "address to listen at")
	f.BoolVar(&o.listen.AllowPlaintext, "allow-plaintext", false, "listen on other than loopback addresses without TLS, behind a proxy that terminates TLS")
	f.StringVar(&o.publicURL, "public-url", "", "URL of the server for clients (default: the URL of each request)")
	f.BoolVar(&o.forwarded, "trust-forwarded", false, "trust X-Forwarded-Proto and X-Forwarded-Host, behind a proxy that sets them; clients must not reach the server otherwise")
	f.BoolVar(&o.background, "background", false, "start the server in the background, and return when it is ready")
	f.BoolVar(&o.debug, "debug", false, "log requests, and write debug logs of the sandboxes' kernels")
	f.IntVar(&o.diskGB, "disk", 32, "maximum size of a sandbox's writable files, in GiB")
	f.IntVar(&o.maxSessions, "max-sandboxes", controller.DefaultMaxSessions, "maximum number of running sandboxes")
	f.IntVar(&o.maxVCPUs, "max-vcpus", skerry.DefaultMaxVCPUs, "maximum number of virtual CPUs of a sandbox")
	f.DurationVar(&o.maxTimeout, "max-timeout", 24*time.Hour, "maximum timeout of a session, extensions included")
	f.DurationVar(&o.stopGrace, "stop-grace", controller.DefaultStopGrace, "how long to retry saving a session after its timeout if the sandbox makes the save fail; then the session ends unsaved")
	f.DurationVar(&o.saveGrace, "save-grace", controller.DefaultSaveGrace, "how long to retry saving a session after its timeout if the server makes the save fail (its disk is full, or the snapshot storage does not answer); then the session ends unsaved")
	f.IntVar(&o.outputMB, "keep-output", 16, "output kept of each command, in MiB")
	f.IntVar(&o.cacheGB, "snapshot-cache", 10, "size of the cache of snapshots that are ready to start from, in GiB")
	f.IntVar(&o.driveGB, "drive-size", skerry.DefaultDriveSize>>30, "default size of a drive, in GiB")
	f.IntVar(&o.maxDriveGB, "max-drive-size", skerry.MaxDriveSize>>30, "maximum size of a drive, in GiB")
	f.IntVar(&o.commands, "max-commands", node.DefaultMaxCommands, "maximum number of running commands in a sandbox")
	f.IntVar(&o.processes, "max-processes", 4096, "maximum number of processes and threads in a sandbox")
	f.DurationVar(&o.idlePause, "idle-pause", node.DefaultIdlePause, "pause a sandbox that nobody has used for this long, until its next use; 0 pauses none")
	f.StringVar(&o.idle, "idle", string(skerry.IdleDefault), "idle mode of sandboxes that set none: default (pause a sandbox if no program runs in it), pause (also if its programs use almost no CPU time and have no connections to the outside), hibernate (like pause, and save it to disk as --idle-hibernate says) or never")
	f.DurationVar(&o.idleHibernate, "idle-hibernate", 0, "save a sandbox that has been paused for this long to disk with its memory, and take it off the machine until its next use; 0 does so only when memory is short")
	o.api.flags(f)
	o.capacity.flags(f)
	o.network.flags(f)
	o.storage.flags(f)
	o.ingress.flags(f)
	o.inside.flags(f)
	o.observe.flags(f)
	o.audit.flags(f)
	o.warm.flags(f)
}

func (o *serveOptions) main(cmd *cobra.Command) error {
	if err := o.check(cmd.Flags()); err != nil {
		return err
	}
	if o.background {
		url, err := startBackground(o.state, lockPath(o.state))
		if errors.Is(err, errRunning) {
			fmt.Fprintf(cmd.OutOrStdout(), "sandboxd is already running, log in %s; %s\n", logPath(o.state), howToReplace)
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "sandboxd listens at %s, log in %s\n", url, logPath(o.state))
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("the server must run as root: it creates namespaces, networks and cgroups")
	}
	log := o.logger()
	ctx, cancel := context.WithCancel(context.WithoutCancel(cmd.Context()))
	defer cancel()
	end := newEnding(cancel)
	watched, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	defer unwatch()
	go end.signals(watched, log)
	return o.serve(ctx, log, end)
}

func (o *serveOptions) logger() *slog.Logger {
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// serve acquires everything top down, serves until ctx ends, and gives it all
// back bottom up. end tells whether the sandboxes end too.
func (o *serveOptions) serve(ctx context.Context, log *slog.Logger, end *ending) (err error) {
	claimed, err := claim(o.state, lockPath(o.state))
	if err != nil {
		return err
	}
	defer closing(&err, claimed.release)
	if o.nodeAddress == "" {
		claimed, err := claimNode(o.state) // it runs the node itself
		if err != nil {
			return err
		}
		defer closing(&err, claimed.release)
	}
	files, err := raiseFiles()
	if err != nil {
		return err
	}
	var maxOpen int
	o.listen.MaxConnections, maxOpen = o.api.bound(files)
	o.listen.TLS = o.api.tls()
	ln, err := o.listen.Listen(ctx)
	if err != nil {
		return err
	}
	defer ln.Close() // Serve closes it too

	records, err := o.audit.open(o.state, log)
	if err != nil {
		return err
	}
	defer closing(&err, records.close)
	otlp, err := o.observe.traces()
	if err != nil {
		return err
	}
	db, err := openDatabase(ctx, o.state, o.database, log)
	forgetDatabase()
	if err != nil {
		return err
	}
	defer closing(&err, db.Close)
	accounts := auth.New(db)
	defer accounts.Close()
	if err := accounts.LoadIssuers(ctx, log); err != nil {
		return err
	}
	url := serverURL(ln, o.api.tls(), o.publicURL)
	if err := firstToken(ctx, accounts, url, records, log); err != nil {
		return err
	}
	if err := accounts.OpenIssuer(ctx, o.issuer(url), log); err != nil {
		return err
	}

	o.network.connections, o.ingress.connections = connectionsFor(files), connectionsFor(files)

	samples := newSampler()
	stopSocket, err := serveSocket(o.state, socketHandler(end, accounts, records, db, samples, url))
	if err != nil {
		return err
	}
	defer closing(&err, stopSocket)

	gate, err := o.ingress.open(ctx, o.state, apiName{host: o.acmeHost(), at: ln.Addr()}, log)
	if err != nil {
		return err
	}
	n, err := o.open(ctx, log, url)
	if err != nil {
		return errors.Join(err, gate.Close())
	}
	defer closing(&err, n.close)
	defer closing(&err, gate.Close)
	vcpus, memoryMB, maxMemoryMB := o.capacity.promised(n.machine)
	counted := metrics.New(version.Version)
	phased := counted
	if o.observe.metrics == "" {
		phased = nil // nobody reads them
	}
	tracer, stopTraces, err := trace(otlp, phased, instanceName(o.state), "server", log)
	if err != nil {
		return err
	}
	defer closing(&err, stopTraces)
	control := controller.New(controller.Config{
		TotalVCPUs: vcpus, TotalMemoryMB: memoryMB, MaxMemoryMB: maxMemoryMB,
		Store: db, Node: counted.Node(n.node, tracer), Collector: counted.Collector(n.collector), Images: n.images, Log: log,
		StopGrace: o.stopGrace, SaveGrace: o.saveGrace,
		MaxTimeout: o.maxTimeout, MaxVCPUs: o.maxVCPUs, MaxSessions: o.maxSessions,
		DriveSize: int64(min(o.driveGB, o.maxDriveGB)) << 30, MaxDriveSize: int64(o.maxDriveGB) << 30,
		Ingress: gate, MaxPorts: o.ingress.maxPorts, Ended: records.sessionEnded, Quotas: accounts.Quotas,
	})
	defer closing(&err, control.Close)
	if err := control.Recover(ctx); err != nil {
		return err
	}
	accounts.SetUsage(control.Used)
	gate.Start(control)
	samples.begin(control.Metered, n.machine)
	discovery, err := issuer.Handler(o.issuer(url), log, accounts.PublicKeys, n.keys)
	if err != nil {
		return err
	}
	server, err := api.New(api.Options{
		Service: control, Accounts: accounts, Log: log, Version: version.Version,
		PublicURL: o.publicURL, TrustForwarded: o.forwarded, Heartbeat: o.api.heartbeat,
		Loopback: o.listen.Loopback(), AllowedHosts: o.hosts(), CORSOrigins: o.api.corsOrigins,
		Limits: skerry.Limits{
			MaxTimeout: o.maxTimeout, MaxVCPUs: o.maxVCPUs, MaxMemoryMB: maxMemoryMB,
			MaxPorts: o.ingress.maxPorts, MaxDriveSize: int64(o.maxDriveGB) << 30,
		},
		MaxOpen: maxOpen, Discovery: discovery, Observe: counted.Request, Tracer: tracer,
		Audit: records.forAPI(), AuditReads: o.audit.what == auditAll, AuditRequired: o.audit.required,
	})
	if err != nil {
		return err
	}
	addGauges(counted, control, vcpus, memoryMB)
	if n.warm != nil {
		addWarm(counted, n.warm)
		addTotals(counted, n.totals)
	}
	stopMetrics, err := serveAt("metrics", o.observe.metrics, metricsHandler(counted, o.ready(db, n, records)), log)
	if err != nil {
		return err
	}
	defer closing(&err, stopMetrics)
	stopProfiles, err := serveAt("profiles", o.observe.pprof, api.OnLoopback(pprofHandler()), log)
	if err != nil {
		return err
	}
	defer closing(&err, stopProfiles)
	secured, err := o.api.secure(ln, gate.certs, log)
	if err != nil {
		return err
	}
	log.Info("serving", "url", url, "version", version.Version)
	if err := reportReady(url); err != nil {
		return err
	}
	finish := sync.OnceValue(func() error {
		err := gate.Close()              // or a request would start what is being stopped
		end.order(stopOrder{Keep: true}) // unless there was another, which was why it ended
		if end.stopAll {
			err = errors.Join(err, n.drain())
		}
		return errors.Join(err, end.stopSandboxes(control, log))
	})
	// Who follows a command learns of its end before the API ends.
	err = server.Serve(ctx, secured, func() bool {
		_ = finish() // its error is returned below
		return end.stopAll
	})
	return errors.Join(err, finish())
}

// snapshots opens what keeps the files of stopped sandboxes.
func (o *serveOptions) snapshots(disk *room.Disk, log *slog.Logger) (*snapshot.Store, error) {
	dir := filepath.Join(o.state, "snapshots")
	blobs, err := o.storage.open(dir)
	if err != nil {
		return nil, err
	}
	key, err := snapshotKey(o.state)
	if err != nil {
		return nil, err
	}
	return snapshot.Open(snapshot.Options{
		Blobs: blobs, Key: key, CacheDir: filepath.Join(dir, "cache"), CacheBytes: int64(o.cacheGB) << 30,
		KeepUnknown: snapshot.DefaultKeepUnknown, Reserve: disk.Reserve, Log: log,
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
	return urlOf(ln.Addr().String(), tls)
}

func urlOf(addr string, tls bool) string {
	if tls {
		return "https://" + addr
	}
	return "http://" + addr
}

// closing adds a deferred close's error to the function's own.
func closing(err *error, close func() error) { *err = errors.Join(*err, close()) }
