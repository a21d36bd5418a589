package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// injector does harm, one fault after the other.
type injector struct {
	*soak
	random *rand.Rand
	client *client.Client
	serial int
}

// inflict is what each kind of fault does.
var inflict = map[string]func(*injector, context.Context) error{
	sentryKilled: (*injector).killSentry, agentKilled: (*injector).killAgent, agentGarbled: (*injector).garbleAgent, memoryExhausted: (*injector).exhaustMemory,
	serverKilled: (*injector).killServer, serverRestarted: (*injector).restartServer, diskFilled: (*injector).fillDisk,
}

// kinds is the deck of faults.
var kinds = []string{sentryKilled, agentKilled, agentGarbled, memoryExhausted, serverKilled, serverRestarted, diskFilled}

// faultEvery is the time between two faults in a long round. In a short one they follow
// each other more quickly.
const faultEvery = 20 * time.Second

// harm injects faults for a round, and longer if it takes longer to inject each kind once.
// Each is dealt once before the deck is shuffled again.
func (i *injector) harm(ctx context.Context, round time.Duration) {
	every := min(faultEvery, round/time.Duration(len(kinds)+1))
	begin := time.Now()
	for n := 0; n < len(kinds) || time.Since(begin) < round-every; {
		for _, at := range i.random.Perm(len(kinds)) {
			if n >= len(kinds) && time.Since(begin) >= round-every {
				break
			}
			if pause(ctx, every) != nil {
				return
			}
			// A fault that has begun is seen to its end.
			if err := inflict[kinds[at]](i, context.WithoutCancel(ctx)); err != nil {
				i.fail(nil, "fault: "+kinds[at], err)
			}
			n++
		}
	}
	_ = pause(ctx, every)
}

// victim returns a sandbox whose session runs, as the server describes it, or nil.
func (i *injector) victim(ctx context.Context, suits func(*box) bool) *client.Sandbox {
	boxes := i.live.running()
	for _, at := range i.random.Perm(len(boxes)) {
		if suits != nil && !suits(boxes[at]) {
			continue
		}
		sb, err := i.client.GetSandbox(ctx, boxes[at].name, client.GetOptions{})
		if err == nil && sb.Session().Status == skerry.StatusRunning {
			return sb
		}
	}
	return nil
}

// own returns a sandbox of the injector's own, for faults that find no victim.
func (i *injector) own(ctx context.Context) (sb *client.Sandbox, err error) {
	i.serial++
	return i.client.CreateSandbox(ctx, client.CreateOptions{Name: fmt.Sprintf("victim-%d", i.serial), VCPUs: 1, Timeout: sessionTimeout})
}

// on inflicts a fault on a sandbox of a worker, or on one of its own.
func (i *injector) on(ctx context.Context, suits func(*box) bool, harm func(*client.Sandbox) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if sb := i.victim(ctx, suits); sb != nil {
		return harm(sb)
	}
	sb, err := i.own(ctx)
	if err != nil {
		return err
	}
	return errors.Join(harm(sb), sb.Delete(ctx))
}

func (i *injector) killSentry(ctx context.Context) error {
	killed := false
	kill := func(sb *client.Sandbox) error {
		session := sb.Session().ID
		pid := i.server.sentry(session)
		if pid == 0 {
			return nil
		}
		i.faults.begin(sentryKilled, session)
		killed = true
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		return nil
	}
	if err := i.on(ctx, nil, kill); err != nil || killed {
		return err
	}
	// It is being stopped or hibernates, and has no sentry.
	return i.on(ctx, func(*box) bool { return false }, kill)
}

// asRoot runs a command that ends the session, or the command itself.
func (i *injector) asRoot(ctx context.Context, kind string, sb *client.Sandbox, name string, args ...string) (*fault, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f := i.faults.begin(kind, sb.Session().ID)
	cmd := sb.Command(ctx, name, args...)
	cmd.Sudo = true
	err := cmd.Run()
	if cmd.ID() != "" || err == nil {
		return f, err
	}
	// The command was not confirmed: it has ended the session, or its worker has stopped or
	// deleted the sandbox just before.
	now, gone := i.client.GetSandbox(ctx, sb.Name(), client.GetOptions{})
	if gone == nil && now.Session().ID == f.session && now.Session().Status != skerry.StatusStopped {
		return f, err
	}
	i.faults.end(f)
	return nil, nil
}

// killAgent does what root in a sandbox can do to its first process: the kernel shields
// it from SIGKILL, as Linux does, and not from SIGSEGV.
func (i *injector) killAgent(ctx context.Context) error {
	return i.on(ctx, nil, func(sb *client.Sandbox) error {
		_, _ = i.asRoot(ctx, agentKilled, sb, "kill", "-SEGV", "1") // it ends with the session
		return nil
	})
}

// garbleAgent writes nonsense into the agent's connection to the server.
func (i *injector) garbleAgent(ctx context.Context) error {
	return i.on(ctx, nil, func(sb *client.Sandbox) error {
		_, _ = i.asRoot(ctx, agentGarbled, sb, "sh", "-c", "cat /dev/urandom >/proc/1/fd/4")
		return nil
	})
}

// eatScript takes memory until it is killed.
const eatScript = `
kept = []
while True:
    kept.append(bytearray(b"x" * (32 << 20)))`

// exhaustMemory has a process take all memory of a small sandbox. The process is killed.
// The session usually goes on; if it does not, its reason says so.
func (i *injector) exhaustMemory(ctx context.Context) error {
	return i.on(ctx, func(b *box) bool { return b.vcpus == 1 }, func(sb *client.Sandbox) error {
		f, err := i.asRoot(ctx, memoryExhausted, sb, "python3", "-c", eatScript)
		if f == nil {
			return nil
		}
		if err == nil {
			return wrongf("a process of sandbox %s has taken all memory and ended well", sb.Name())
		}
		now, err := i.client.GetSandbox(ctx, sb.Name(), client.GetOptions{})
		if client.IsNotFound(err) || err == nil && now.Session().ID == f.session && now.Session().Status == skerry.StatusRunning {
			i.faults.end(f)
			return nil
		}
		return err
	})
}

func (i *injector) killServer(context.Context) error {
	f := i.faults.begin(serverKilled, "")
	defer i.faults.end(f)
	if err := i.server.kill(); err != nil {
		return err
	}
	return i.server.start()
}

func (i *injector) restartServer(context.Context) error {
	f := i.faults.begin(serverRestarted, "")
	defer i.faults.end(f)
	if err := i.server.stop("--keep-sandboxes"); err != nil {
		return err
	}
	return i.server.start()
}

// fillDisk leaves no byte of the state folder's disk free for some seconds.
func (i *injector) fillDisk(ctx context.Context) error {
	f := i.faults.begin(diskFilled, "")
	defer i.faults.end(f)
	if err := i.server.disk.fill(); err != nil {
		return errors.Join(err, i.server.disk.drain())
	}
	err := pause(ctx, time.Duration(3+i.random.IntN(5))*time.Second)
	return errors.Join(err, i.server.disk.drain())
}
