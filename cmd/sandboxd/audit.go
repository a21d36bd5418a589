package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/api"
	"github.com/skerry-dev/skerry/internal/audit"
	"github.com/skerry-dev/skerry/internal/audit/otlp"
	"github.com/skerry-dev/skerry/internal/terminal"
	"github.com/skerry-dev/skerry/internal/tracing/export"
	"github.com/skerry-dev/skerry/internal/usage"
	"github.com/skerry-dev/skerry/internal/version"
)

// What --audit records.
const (
	auditChanges = "changes"
	auditAll     = "all"
	auditOff     = "off"
)

// auditOptions are the flags of the audit log.
type auditOptions struct {
	what     string
	keepDays int
	maxMB    int
	required bool
	file     string
	otlp     string
}

func (o *auditOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.what, "audit", auditChanges, "what the audit log has: changes (also whatever shows the content of sandboxes, and refused calls), all, or off; see \"sandboxd audit\"")
	f.IntVar(&o.keepDays, "audit-keep-days", int(audit.DefaultKeep/(24*time.Hour)), "how long records of the audit log are kept, in days")
	f.IntVar(&o.maxMB, "audit-max-size", audit.DefaultMaxBytes>>20, "maximum size of the audit log, in MiB; at the limit the oldest records are removed")
	f.BoolVar(&o.required, "audit-required", false, "refuse changes while the audit log cannot be written, with 503; by default the server goes on, and counts the records that are lost")
	f.StringVar(&o.file, "audit-file", "", `file (absolute path) to copy the audit log to, which may be rotated by others; "-" is standard output`)
	f.StringVar(&o.otlp, "audit-otlp", "", "URL of a collector of OpenTelemetry logs (OTLP over HTTP) to copy the audit log to, such as http://127.0.0.1:4318 (environment: OTEL_EXPORTER_OTLP_HEADERS and others)")
}

// collector is how the log is sent to a collector.
func (o *auditOptions) collector() (export.Config, error) {
	return export.ConfigureLogs("audit-otlp", o.otlp, os.Getenv)
}

func (o *auditOptions) check() error {
	if !slices.Contains([]string{auditChanges, auditAll, auditOff}, o.what) {
		return fmt.Errorf("--audit must be changes, all or off, not %q", o.what)
	}
	if o.file != "" && o.file != "-" && !filepath.IsAbs(o.file) {
		return fmt.Errorf(`--audit-file must be an absolute path or "-", not %q`, o.file)
	}
	if o.what == auditOff {
		switch {
		case o.required:
			return errors.New("--audit-required has no effect with --audit off")
		case o.file != "":
			return errors.New("--audit-file has no effect with --audit off")
		case o.otlp != "":
			return errors.New("--audit-otlp has no effect with --audit off")
		}
	}
	_, err := o.collector()
	return err
}

func auditDir(state string) string { return filepath.Join(state, "audit") }

// auditing is the audit log of a server, with its copies. A nil one records nothing.
type auditing struct {
	*audit.Log
	copies []*audit.Copy
	unwake func()
}

// open opens the audit log. It reads what is in the environment about the collector, which
// others then remove.
func (o *auditOptions) open(state string, log *slog.Logger) (*auditing, error) {
	if o.what == auditOff {
		return nil, nil
	}
	collector, err := o.collector()
	if err != nil {
		return nil, err
	}
	instance := instanceName(state)
	l, err := audit.Open(audit.Options{
		Dir: auditDir(state), MaxBytes: int64(o.maxMB) << 20, Keep: time.Duration(o.keepDays) * 24 * time.Hour,
		Instance: instance, Version: version.Version, Log: log,
	})
	if err != nil {
		return nil, err
	}
	a := &auditing{Log: l, unwake: func() {}}
	if o.file != "" {
		file := audit.StartCopy(l, "file", audit.NewFileSink(o.file))
		a.copies, a.unwake = append(a.copies, file), wakeOnHangup(file)
	}
	if o.otlp != "" {
		a.copies = append(a.copies, audit.StartCopy(l, "otlp", otlp.New(collector, map[string]string{
			"service.name": "skerry", "service.version": version.Version, "service.instance.id": instance + "/server",
		})))
		log.Info("copying the audit log", "endpoint", collector.Endpoint)
	}
	return a, nil
}

// wakeOnHangup has a copy look for its file again when the process is told so, as programs
// that rotate files do.
func wakeOnHangup(c *audit.Copy) (stop func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-hangups:
				c.Wake()
			case <-end:
				return
			}
		}
	}()
	return func() {
		signal.Stop(hangups)
		close(end)
		<-done
	}
}

// close ends the log, and then its copies. What a copy has not got in time it gets from
// the next process.
func (a *auditing) close() error {
	if a == nil {
		return nil
	}
	err := a.Close()
	a.unwake()
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	for _, c := range a.copies {
		err = errors.Join(err, c.Close(ctx))
	}
	return err
}

// forAPI is what the API records to, nil for nothing.
func (a *auditing) forAPI() api.Audit {
	if a == nil {
		return nil
	}
	return a.Log
}

// add records an event. It is written when add returns, if it can be.
func (a *auditing) add(e audit.Event) {
	if a != nil {
		_ = a.Record(e, true) // the log itself complains
	}
}

// operator records what an operator has done, with what result, and which role it gave.
func (a *auditing) operator(ctx context.Context, op string, began time.Time, err error, role skerry.Role, targets ...audit.Target) {
	for i := range targets {
		targets[i].ID, targets[i].Name = audit.Redact(targets[i].ID), audit.Redact(targets[i].Name)
	}
	targets = slices.DeleteFunc(targets, func(t audit.Target) bool { return t.ID == "" && t.Name == "" })
	e := audit.Event{Time: began, Operation: op, Actor: operatorOf(ctx), Targets: targets, Role: string(role), Took: time.Since(began)}
	if err != nil {
		e.Code = string(skerry.CodeOf(err))
	}
	a.add(e)
}

// sessionEnded records the end of a session that nobody has asked for.
func (a *auditing) sessionEnded(run skerry.Session, timeUp bool) {
	e := audit.Event{
		Operation: "session.timeout", Actor: audit.Actor{Kind: audit.ActorServer}, Team: run.Scope.TeamID, Project: run.Scope.ProjectID,
		Targets: []audit.Target{{Kind: audit.TargetSandbox, Name: run.SandboxName}, {Kind: audit.TargetSession, ID: run.ID}},
	}
	switch {
	case a == nil:
		return
	case run.Status == skerry.StatusAborted:
		e.Operation = "session.lost"
	case !timeUp:
		return
	}
	_ = a.Record(e, false)
}

type peerKey struct{}

// withPeer adds the process at the other end of a connection to a context.
func withPeer(ctx context.Context, conn syscall.Conn) context.Context {
	raw, err := conn.SyscallConn()
	if err != nil {
		return ctx
	}
	_ = raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			ctx = context.WithValue(ctx, peerKey{}, peer)
		}
	})
	return ctx
}

// operatorOf returns who runs the program that asks: over the socket, or this one. The
// name is that of who logged in, before becoming root.
func operatorOf(ctx context.Context) audit.Actor {
	uid, process := os.Getuid(), "self"
	if peer, ok := ctx.Value(peerKey{}).(*unix.Ucred); ok {
		uid, process = int(peer.Uid), strconv.Itoa(int(peer.Pid))
	}
	actor := audit.Actor{Kind: audit.ActorOperator, ID: "uid:" + strconv.Itoa(uid)}
	data, err := os.ReadFile("/proc/" + process + "/loginuid")
	if err != nil {
		return actor
	}
	login := strings.TrimSpace(string(data))
	if login == strconv.FormatUint(1<<32-1, 10) { // nobody, as in a service
		return actor
	}
	actor.Name = "uid:" + login
	if u, err := user.LookupId(login); err == nil {
		actor.Name = u.Username
	}
	return actor
}

// withoutServer calls f with the audit log of a state folder on which no server runs. The
// flags of the next server say what is kept.
func withoutServer(state string, f func(*auditing) error) (err error) {
	l, err := audit.Open(audit.Options{
		Dir: auditDir(state), MaxBytes: -1, Keep: -1, Instance: instanceName(state), Version: version.Version, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	a := &auditing{Log: l, unwake: func() {}}
	defer closing(&err, a.close)
	return f(a)
}

func newAudit() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show and check the audit log",
		Long: `Show and check the audit log, in the folder "audit" of the state folder: who did what
to which sandbox, from where, and with what result. Both commands work while a
server is running.`,
		Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newAuditExport(), newAuditVerify())
	return cmd
}

func newAuditVerify() *cobra.Command {
	var heads []string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that no record was changed, removed, inserted or moved (exit status 1 if one was)",
		Long: `Check that no record was changed, removed, inserted or moved, from the first file that
is kept. Whoever can write to the log can also write a new one with new hashes. So
keep hashes elsewhere: the server's own log has one at its start, each hour, with each
new file and at its end. --head says that a record with such a hash must be there.`,
		Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for i, h := range heads {
				if heads[i] = strings.ToLower(h); !sha256Hex.MatchString(heads[i]) {
					return usage.Errorf("--head must be a hash of 64 hexadecimal digits, not %q", h)
				}
			}
			dir := auditDir(stateDir(cmd))
			report, err := audit.Verify(dir, heads...)
			out := cmd.OutOrStdout()
			if report != nil {
				for _, n := range report.Notes {
					fmt.Fprintln(out, "note:", terminal.Clean(n))
				}
			}
			if wrong, is := errors.AsType[*audit.WrongError](err); is {
				return fmt.Errorf("the audit log is not intact: %s", terminal.Clean(wrong.Error()))
			}
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("there is no audit log in %s", dir)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "intact: %d records, %d to %d\nhash of the last one: %s\n", report.Records, report.First, report.Last, report.Hash)
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&heads, "head", nil, "hash of a record that must be in the log; may be repeated")
	return cmd
}

var sha256Hex = regexp.MustCompile(`^[0-9a-f]{64}$`)

// followEvery is how often a log is looked at for more lines.
const followEvery = 500 * time.Millisecond

func newAuditExport() *cobra.Command {
	var since, until, format string
	var filter audit.Filter
	var follow bool
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Print records of the audit log",
		Long: `Print records of the audit log, as they are stored (JSON lines) or as a table. Lines
that are no records, or were changed, are left out; the exit status is then 1.`,
		Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now()
			for _, f := range []struct {
				flag, value string
				time        *time.Time
			}{{"since", since, &filter.Since}, {"until", until, &filter.Until}} {
				var err error
				if *f.time, err = pointInTime(f.value, now); err != nil {
					return usage.Errorf("--%s %q is neither a time such as 2026-12-01T08:00:00Z or 2026-12-01 nor a duration such as 12h or 7d", f.flag, f.value)
				}
			}
			if format != "jsonl" && format != "table" {
				return usage.Errorf("--format must be jsonl or table, not %q", format)
			}
			e := exporter{out: cmd.OutOrStdout(), table: format == "table", filter: filter}
			return e.run(cmd.Context(), auditDir(stateDir(cmd)), follow)
		},
	}
	f := cmd.Flags()
	f.StringVar(&since, "since", "", "only records since a time (2026-12-01T08:00:00Z, 2026-12-01) or within a duration (12h, 7d)")
	f.StringVar(&until, "until", "", "only records before a time or a duration ago")
	f.StringVar(&filter.Team, "team", "", "only records of a team, by its id (team_…)")
	f.StringVar(&filter.Sandbox, "sandbox", "", "only records about a sandbox, by its name")
	f.StringVar(&format, "format", "jsonl", "jsonl or table")
	f.BoolVar(&follow, "follow", false, "wait for more records, until interrupted")
	return cmd
}

// pointInTime reads a time, or a duration before now.
func pointInTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	d, err := usage.ParseDuration(s)
	if err != nil || d < 0 {
		return time.Time{}, errors.New("no time")
	}
	return now.Add(-d), nil
}

// exporter prints records.
type exporter struct {
	out    io.Writer
	table  bool
	filter audit.Filter
	wrong  int // lines that are no records
}

func (e *exporter) run(ctx context.Context, dir string, follow bool) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("there is no audit log in %s", dir)
	}
	r := audit.NewReader(dir, audit.Position{})
	defer r.Close()
	if e.table {
		if err := e.row("TIME", "WHO", "OPERATION", "RESULT", "FROM", "WHAT"); err != nil {
			return err
		}
	}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		err := e.rest(ctx, r)
		if err != nil {
			return err
		}
		if !follow {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return e.end()
		}
	}
	return e.end()
}

func (e *exporter) end() error {
	if e.wrong > 0 {
		return fmt.Errorf("left out lines that are no records or were changed: %d; see \"sandboxd audit verify\"", e.wrong)
	}
	return nil
}

// rest prints what there is.
func (e *exporter) rest(ctx context.Context, r *audit.Reader) error {
	for ctx.Err() == nil {
		line, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		rec, err := audit.Check(line)
		if err != nil {
			e.wrong++
			continue
		}
		if !e.filter.Matches(rec) {
			continue
		}
		if e.table {
			err = e.record(rec)
		} else {
			_, err = e.out.Write(append(line.Bytes, '\n'))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *exporter) record(r *audit.Record) error {
	who := "-"
	if a := r.Actor; a != nil {
		who = a.Kind
		if a.ID != "" {
			who = a.ID
		}
		if a.Name != "" && a.Kind == audit.ActorOperator {
			who += " (" + a.Name + ")"
		}
	}
	var what []string
	for _, t := range r.Targets {
		name := t.Name
		if name == "" {
			name = t.ID
		}
		what = append(what, t.Kind+" "+name)
	}
	if r.Role != "" {
		what = append(what, "role "+r.Role)
	}
	if r.Program != "" {
		what = append(what, "program "+r.Program)
	}
	if a := r.Actor; a != nil && a.Name != "" && a.Kind != audit.ActorOperator {
		what = append(what, "by "+a.Name) // ids have one width, names any
	}
	if n := r.Log; n != nil && n.Count > 0 {
		what = append(what, fmt.Sprintf("%d records", n.Count))
	}
	op, result, from := r.Operation, r.Code, r.Remote
	if r.Phase != "" {
		op += " " + r.Phase
	}
	if r.Status != 0 {
		result = strings.TrimSpace(strconv.Itoa(r.Status) + " " + result)
	}
	if result == "" {
		result = "ok"
	}
	if from == "" {
		from = "-"
	}
	return e.row(r.Time, who, op, result, from, strings.Join(what, ", "))
}

// row prints a row of the table. Its text may come from clients.
func (e *exporter) row(at, who, op, result, from, what string) error {
	for _, s := range []*string{&at, &who, &op, &result, &from, &what} {
		*s = terminal.Clean(*s)
	}
	line := fmt.Sprintf("%-24s  %-29s  %-24s  %-18s  %-15s  %s", at, who, op, result, from, what)
	_, err := fmt.Fprintln(e.out, strings.TrimRight(line, " "))
	return err
}
