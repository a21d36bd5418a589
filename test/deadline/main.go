// Command deadline runs "go test" with its arguments, and ends a package's tests
// when they have made no progress for a time: no test or subtest of the package
// begun, ended or said anything. go test itself bounds a package's tests
// together, so that one that hangs is found when all the others would have had
// their time. It prints what go test prints without -v.
//
//	deadline -each 1m -race ./internal/...
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	each := flag.Duration("each", time.Minute, "how long a package's tests may make no progress")
	flag.CommandLine.Init("deadline", flag.ExitOnError)
	args := os.Args[1:]
	if len(args) >= 2 && args[0] == "-each" {
		if err := flag.CommandLine.Parse(args[:2]); err != nil {
			os.Exit(2)
		}
		args = args[2:]
	}
	code, err := run(*each, args, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "deadline:", err)
		code = 2
	}
	os.Exit(code)
}

// run runs go test and returns its exit code.
func run(each time.Duration, args []string, out io.Writer) (int, error) {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	w := &watcher{each: each, out: out, root: cmd.Process.Pid, packages: map[string]*progress{}, said: map[[2]string][]string{}}
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { w.watch(done) })
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			w.line(line)
		}
		if err != nil {
			break
		}
	}
	err = cmd.Wait()
	close(done)
	watching.Wait()
	if cmd.ProcessState.Exited() {
		return cmd.ProcessState.ExitCode(), nil
	}
	return 0, err
}

// event is a line of go test -json.
type event struct {
	Action, Package, Test, Output string
}

// progress is where a package's tests are.
type progress struct {
	last time.Time
	what string
	hung bool
}

type watcher struct {
	each time.Duration
	out  io.Writer
	root int

	mu       sync.Mutex
	packages map[string]*progress // those that run
	said     map[[2]string][]string
}

func (w *watcher) line(line string) {
	var e event
	if json.Unmarshal([]byte(line), &e) != nil {
		fmt.Fprint(w.out, line)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	test := [2]string{e.Package, e.Test}
	switch e.Action {
	case "output", "build-output":
		if e.Test == "" && e.Output != "PASS\n" {
			fmt.Fprint(w.out, e.Output)
		} else {
			w.said[test] = append(w.said[test], e.Output)
		}
	case "fail":
		w.tell(test)
		if e.Test == "" { // what tests said that did not come to their ends
			for other := range w.said {
				if other[0] == e.Package {
					w.tell(other)
				}
			}
		}
	case "pass", "skip":
		delete(w.said, test)
	}
	if e.Test == "" && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip") {
		delete(w.packages, e.Package)
		return
	}
	if e.Package == "" {
		return
	}
	p := w.packages[e.Package]
	if p == nil {
		p = &progress{}
		w.packages[e.Package] = p
	}
	p.last = time.Now()
	if e.Test != "" {
		p.what = e.Test
	}
}

// tell prints what a test said.
func (w *watcher) tell(test [2]string) {
	fmt.Fprint(w.out, strings.Join(w.said[test], ""))
	delete(w.said, test)
}

// watch ends the tests of packages that make no progress.
func (w *watcher) watch(done <-chan struct{}) {
	tick := time.NewTicker(min(time.Second, w.each/4))
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		w.mu.Lock()
		for name, p := range w.packages {
			if !p.hung && time.Since(p.last) > w.each {
				p.hung = true
				fmt.Fprintf(w.out, "=== %s: %s has made no progress for %s; where it is follows\n", name, p.what, w.each)
				// It writes down its goroutines and ends.
				for _, pid := range testsOf(w.root, path.Base(name)+".test") {
					_ = syscall.Kill(pid, syscall.SIGQUIT) // it may just have ended
				}
			}
		}
		w.mu.Unlock()
	}
}

// testsOf returns the processes of a program's name that a process has started.
func testsOf(root int, program string) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", root))
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // it has ended
		}
		for child := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(child)
			if err != nil {
				continue
			}
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && filepath.Base(exe) == program {
				pids = append(pids, pid)
			}
			pids = append(pids, testsOf(pid, program)...)
		}
	}
	return pids
}
