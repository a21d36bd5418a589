package api

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

type devService struct{ *hostService }

func (d devService) cmd(run *skerry.Run, name string, args []string, cwd string, env []string, sudo bool) *exec.Cmd {
	cmd := exec.Command("/bin/sh", append([]string{"-c", `exec "$0" "$@"`, name}, args...)...)
	cmd.Dir = cwd
	if cwd == "" {
		cmd.Dir = skerry.WorkDir
	} else if cwd[0] != '/' {
		cmd.Dir = skerry.WorkDir + "/" + cwd
	}
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	home, uid := "/home/vercel-sandbox", uint32(1000)
	if sudo {
		home, uid = "/root", 0
	}
	cmd.Env = append(cmd.Env, "HOME="+home)
	for k, v := range run.Sandbox.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Env = append(cmd.Env, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Chroot: d.root, Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

func (d devService) RunCommand(ctx context.Context, _ skerry.Scope, sessionID string, p skerry.CommandParams, attach bool) (*skerry.Command, skerry.OutputReader, error) {
	run, err := d.live(sessionID)
	if err != nil {
		return nil, nil, err
	}
	var env []string
	for k, v := range p.Env {
		env = append(env, k+"="+v)
	}
	cmd := d.cmd(run, p.Name, p.Args, p.Cwd, env, p.Sudo)
	log := newHostLog()
	cmd.Stdout, cmd.Stderr = log.writer(skerry.Stdout), log.writer(skerry.Stderr)
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("starting: %w", err)
	}
	c := &hostCommand{Command: skerry.Command{ID: skerry.NewID(skerry.PrefixCommand), SessionID: sessionID, Name: p.Name, Args: p.Args, Cwd: cmd.Dir, StartedAt: skerry.At(time.Now())},
		started: time.Now(), proc: cmd.Process, log: log, done: make(chan struct{})}
	first := c.Command
	d.mu.Lock()
	d.commands[c.ID] = c
	d.order = append(d.order, c.ID)
	d.mu.Unlock()
	go d.reap(c, cmd, p.Timeout.Std())
	if !attach {
		return &first, nil, nil
	}
	return &first, log.follow(ctx), nil
}

func (d devService) OpenTerminal(_ context.Context, _ skerry.Scope, session string, p skerry.TerminalParams) (skerry.Terminal, error) {
	run, err := d.live(session)
	if err != nil {
		return nil, err
	}
	cmd := d.cmd(run, p.Name, p.Args, p.Cwd, p.Env, p.Sudo)
	t, err := openHostTerminalAs(cmd, p.Cols, p.Rows)
	return t, err
}

func openHostTerminalAs(cmd *exec.Cmd, cols, rows uint16) (*hostTerminal, error) {
	attr := cmd.SysProcAttr
	wrap := exec.Command("/usr/sbin/chroot", append([]string{"--userspec=" + fmt.Sprint(attr.Credential.Uid), attr.Chroot, "/bin/sh", "-c", `cd "$0" && exec "$@"`, cmd.Dir}, cmd.Args[3:]...)...)
	wrap.Env = cmd.Env
	return openHostTerminal(wrap, cols, rows)
}

func (d devService) WriteFiles(_ context.Context, _ skerry.Scope, session, dir string, r io.Reader) error {
	if _, err := d.live(session); err != nil {
		return err
	}
	tr := tar.NewReader(r)
	for {
		hd, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return skerry.Errorf(skerry.CodeBadRequest, "the archive is not valid: %w", err)
		}
		name := d.path(dir, hd.Name)
		for p := filepath.Dir(name); ; p = filepath.Dir(p) {
			if _, err := os.Stat(p); err == nil {
				break
			}
			defer os.Chown(p, 1000, 1000)
		}
		os.MkdirAll(filepath.Dir(name), 0o755)
		f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, hd.FileInfo().Mode())
		if err != nil {
			return skerry.Errorf(skerry.CodeBadRequest, "cannot write")
		}
		io.Copy(f, tr)
		f.Chmod(hd.FileInfo().Mode())
		f.Chown(1000, 1000)
		f.Close()
	}
}

func (d devService) MakeDir(ctx context.Context, s skerry.Scope, session, cwd, name string, recursive bool) error {
	err := d.hostService.MakeDir(ctx, s, session, cwd, name, recursive)
	os.Chown(d.path(cwd, name), 1000, 1000)
	return err
}

func TestDevServer(t *testing.T) {
	h := newHostService(t)
	h.root = "/tmp/apiwork/ovl/m"
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ln, err := ListenConfig{Addr: "127.0.0.1:17700"}.Listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := New(Options{Service: devService{h}, Accounts: oneAccount{}, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(srv.Serve(ctx, ln))
}
