package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

// shellOptions describe an interactive command; sh without argv.
type shellOptions struct {
	argv             []string
	sudo             bool
	dir              string
	env              map[string]string
	noExtend, silent bool
}

// endOfInput is what a terminal sends for Ctrl-D.
const endOfInput = "\x04"

// needTerminal fails unless a person can see what an interactive command
// shows.
func (a *app) needTerminal(what string) error {
	if !a.OutTTY {
		return usage.Errorf("%s needs a terminal, but standard output is not a terminal", what)
	}
	return nil
}

// shell connects this terminal with an interactive command in the sandbox,
// and returns the exit code as an error.
func (a *app) shell(ctx context.Context, sb *client.Sandbox, opts shellOptions) error {
	screen, ok := a.written.Writer.(*os.File)
	if !ok {
		return errors.New("standard output is not a terminal")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := client.TerminalOptions{Sudo: opts.sudo, Dir: opts.dir, Env: opts.env}
	if len(opts.argv) > 0 {
		start.Command, start.Args = opts.argv[0], opts.argv[1:]
	}
	start.Cols, start.Rows, _ = term.GetSize(int(screen.Fd()))
	stop := a.spin("Opening a terminal…", opts.silent)
	defer stop()
	t, err := sb.Terminal(ctx, start)
	stop()
	if err != nil {
		return err
	}
	defer t.Close()
	restore, err := rawMode(a.In)
	if err != nil {
		return err
	}
	defer restore()

	var background sync.WaitGroup
	defer background.Wait()
	defer cancel() // before the wait
	run := func(fn func()) {
		background.Go(func() {
			// A panic here would end the process past the deferred restore.
			defer func() {
				if r := recover(); r != nil {
					restore()
					panic(r)
				}
			}()
			fn()
		})
	}
	run(func() { typeInto(ctx, t, a.In) })
	run(func() {
		onResize(ctx, screen, func() {
			if cols, rows, err := term.GetSize(int(screen.Fd())); err == nil {
				_ = t.Resize(cols, rows) // a broken connection shows in reading
			}
		})
	})
	if !opts.noExtend {
		run(func() { keepAlive(ctx, sb) })
	}
	code, err := show(a.Out, t)
	restore()
	if _, refused := errors.AsType[*client.Error](err); refused {
		return exitCode(exitOwnFailure) // the terminal has shown why
	}
	if err != nil {
		return err
	}
	a.hint(!opts.silent, "connection to %s closed", clean(sb.Name()))
	if code != 0 {
		return exitCode(code)
	}
	return nil
}

// show writes what the terminal shows until its command ends.
func show(out io.Writer, t *client.Terminal) (int, error) {
	_, err := io.Copy(out, t)
	if code, werr := t.Wait(); err == nil || client.CodeOf(werr) != "" {
		return code, werr
	}
	return 0, err
}

// rawMode hands every key to the remote terminal. The returned function, which
// may be called more than once, gives the local one back as it was.
func rawMode(in *os.File) (restore func(), err error) {
	fd := int(in.Fd())
	if !term.IsTerminal(fd) {
		return func() {}, nil
	}
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("switch the terminal to raw mode: %w", err)
	}
	var once sync.Once
	return func() { once.Do(func() { term.Restore(fd, state) }) }, nil
}

// typeInto types what comes from in until ctx ends. The end of an input that
// is no terminal is typed as Ctrl-D.
func typeInto(ctx context.Context, t *client.Terminal, in *os.File) {
	buf := make([]byte, 16<<10)
	for waitInput(ctx, in) == nil {
		n, err := in.Read(buf)
		if n > 0 {
			if _, err := t.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if err == io.EOF {
				io.WriteString(t, endOfInput)
			}
			return
		}
	}
}

const (
	// extendBefore is how long before its end a session is extended, extendBy
	// by how much; the npm tool does the same.
	extendBefore = 10 * time.Second
	extendBy     = 5 * time.Minute
	// extendLeast keeps a session that cannot be extended from being asked
	// for again and again.
	extendLeast = 2 * time.Second
)

// keepAlive extends the session's timeout until ctx ends or the server says
// that it has lasted long enough.
func keepAlive(ctx context.Context, sb *client.Sandbox) {
	for {
		session := sb.Session()
		end := session.ExpiresAt()
		if end.IsZero() {
			return
		}
		timer := time.NewTimer(max(time.Until(end.Add(-extendBefore)), extendLeast))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if err := sb.ExtendTimeout(ctx, extendBy); err != nil {
			return
		}
	}
}
