// Command agent stands in for the guest agent in the driver's tests: it does
// what a line on the connection tells it to and answers with a line.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	switch {
	case len(os.Args) == 1:
		serve()
	case os.Args[1] == "sparse":
		sparse()
	case os.Args[1] == "alloc":
		alloc()
	case os.Args[1] == "mapped":
		mapped()
	case os.Args[1] == "count":
		count()
	case os.Args[1] == "change":
		change(os.Args[2])
	case os.Args[1] == "relieve":
		fmt.Println("relieved")
	case os.Args[1] == "sleep":
		time.Sleep(time.Hour) // in a select without cases the runtime sees a deadlock
	}
}

// serve answers on the connection, and begins anew on it for every knock at the
// door.
func serve() {
	for fd := 3; fd < 6; fd++ {
		syscall.SetNonblock(fd, true)
	}
	door := os.NewFile(5, "door")
	nonce, knocked := make([]byte, 16), false
	for ; ; knocked = true {
		in, out := duplicate(3), duplicate(4)
		if knocked {
			out.Write(nonce)
		}
		ended := make(chan struct{})
		go func() {
			answer(in, out)
			close(ended)
		}()
		if _, err := io.ReadFull(door, nonce); err != nil {
			panic(err)
		}
		in.SetReadDeadline(time.Unix(1, 0))
		<-ended
		in.Close()
		out.Close()
	}
}

func duplicate(fd int) *os.File {
	d, err := syscall.Dup(fd)
	if err != nil {
		panic(err)
	}
	return os.NewFile(uintptr(d), "connection")
}

func answer(r, w *os.File) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		fmt.Fprintf(w, "%s\n", do(words[0], words[1:]))
	}
}

func do(verb string, args []string) string {
	switch verb {
	case "cpus":
		return strconv.Itoa(runtime.NumCPU())
	case "memory":
		b, err := os.ReadFile("/proc/meminfo")
		return fmt.Sprint(strings.Fields(string(b))[1], " ", err)
	case "hostname":
		name, err := os.Hostname()
		return fmt.Sprint(name, " ", err)
	case "write":
		return fill(args[0], args[1])
	case "size":
		st, err := os.Stat(args[0])
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(st.Size(), " ", st.ModTime().UnixNano())
	case "sum":
		b, err := os.ReadFile(args[0])
		return fmt.Sprint(len(b), " ", crc32.ChecksumIEEE(b), " ", err)
	case "child":
		out, err := exec.Command("/proc/self/exe", args...).CombinedOutput()
		return fmt.Sprintf("%q %v", out, err)
	case "bomb":
		return bomb(args[0])
	case "interfaces":
		ifs, err := net.Interfaces()
		var names []string
		for _, i := range ifs {
			names = append(names, i.Name)
		}
		return fmt.Sprint(names, " ", err)
	case "hostfiles":
		// What a sandbox can see of the host through its own open files.
		var seen []string
		for fd := range 3 {
			target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			seen = append(seen, fmt.Sprint(target, err))
			if f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY, 0); err == nil {
				if _, err := f.WriteString("x"); err == nil {
					seen = append(seen, "WRITABLE")
				}
				f.Close()
			}
		}
		return strings.Join(seen, " ")
	case "count", "change":
		// A process of its own that writes down how far it has come.
		return fmt.Sprint(exec.Command("/proc/self/exe", verb, args[0]).Start())
	case "read":
		b, err := os.ReadFile(args[0])
		return fmt.Sprintf("%s %v", b, err)
	case "address":
		addrs, err := net.InterfaceAddrs()
		return fmt.Sprint(addrs, " ", err)
	case "dial":
		var err error
		dialed, err = net.Dial("tcp", args[0])
		return fmt.Sprint(err)
	case "echo":
		dialed.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintln(dialed, args[0])
		line, err := bufio.NewReader(dialed).ReadString('\n')
		return fmt.Sprintf("%q %v", line, err)
	case "attributes":
		return attributes(args[0])
	case "fill-attributes":
		return fillAttributes()
	case "deep":
		n, _ := strconv.Atoi(args[0])
		return deep(n)
	case "path":
		return path(args[0], args[1:])
	case "pin":
		return pin(args[0], args[1], args[2])
	case "unpin":
		return unpin()
	case "tmpfs":
		return mountTmpfs(args[0], args[1])
	case "clear":
		return fmt.Sprint(os.RemoveAll(args[0]), " ", os.MkdirAll(args[0], 0o755))
	case "room":
		var st syscall.Statfs_t
		err := syscall.Statfs(args[0], &st)
		return fmt.Sprint(int64(st.Blocks)*st.Bsize>>20, " ", st.Files, " ", err)
	case "exit":
		os.Exit(1)
	}
	return "unknown verb"
}

// dialed is the connection that "dial" made.
var dialed net.Conn

// count keeps a number that only this process knows, and a counter, in a file.
func count() {
	nonce := rand.Uint64()
	for i := 0; ; i++ {
		line := fmt.Sprintf("%d %d", nonce, i)
		if err := os.WriteFile(os.Args[2]+".new", []byte(line), 0o600); err != nil {
			panic(err)
		}
		if err := os.Rename(os.Args[2]+".new", os.Args[2]); err != nil {
			panic(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// path does something to a path and says how it went.
func path(verb string, args []string) string {
	var err error
	switch verb {
	case "append":
		var f *os.File
		if f, err = os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644); err == nil {
			_, err = f.WriteString(args[1])
			err = errors.Join(err, f.Close())
		}
	case "read":
		var b []byte
		if b, err = os.ReadFile(args[0]); err == nil {
			return fmt.Sprintf("%q", b)
		}
	case "list":
		entries, lerr := os.ReadDir(args[0])
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return fmt.Sprint(names, " ", lerr)
	case "owner":
		var st syscall.Stat_t
		err = syscall.Stat(args[0], &st)
		return fmt.Sprintf("%d:%d %o %v", st.Uid, st.Gid, st.Mode, err)
	case "symlink":
		err = os.Symlink(args[1], args[0])
	case "chmod":
		mode, _ := strconv.ParseUint(args[1], 8, 32)
		err = syscall.Chmod(args[0], uint32(mode))
	case "chown":
		id, _ := strconv.Atoi(args[1])
		err = os.Lchown(args[0], id, id)
	case "mknod":
		err = syscall.Mknod(args[0], syscall.S_IFBLK|0o666, 7<<8)
	case "mkfifo":
		err = syscall.Mkfifo(args[0], 0o666)
	case "exec":
		var out []byte
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return fmt.Sprintf("%q %v", out, err)
	case "copy":
		var b []byte
		if b, err = os.ReadFile(args[0]); err == nil {
			err = os.WriteFile(args[1], b, 0o755)
		}
	}
	return fmt.Sprint(err)
}

// fill writes so many MiB to a file and says how it went.
func fill(path, mib string) string {
	n, _ := strconv.Atoi(mib)
	f, err := os.Create(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i * 7)
	}
	for i := range n {
		if _, err := f.Write(chunk); errors.Is(err, syscall.ENOSPC) {
			return fmt.Sprintf("ENOSPC after %d", i)
		} else if err != nil {
			return err.Error()
		}
	}
	return "ok"
}

// alloc touches memory until it is killed or has what it was told to take.
func alloc() {
	n, _ := strconv.Atoi(os.Args[2])
	var all [][]byte
	for range n {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
	fmt.Print(len(all))
}

// sparse touches a page in every 2 MiB of so many GiB, and says how far it came.
func sparse() {
	debug.SetPanicOnFault(true)
	touched := 0
	defer func() {
		recover()
		fmt.Print(touched)
	}()
	n, _ := strconv.Atoi(os.Args[2])
	b, err := syscall.Mmap(-1, 0, n<<30, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
	if err != nil {
		fmt.Print(err)
		os.Exit(1)
	}
	for i := 0; i < len(b); i += 2 << 20 {
		b[i] = 1
		touched++
	}
}

// mapped writes to a page in every MiB of a memfd through a mapping, and says how
// many that were before it was refused.
func mapped() {
	debug.SetPanicOnFault(true)
	written := 0
	defer func() {
		fmt.Print(written, " ", recover())
	}()
	f, err := memfd()
	if err != nil {
		panic(err)
	}
	n, _ := strconv.Atoi(os.Args[2])
	if err := f.Truncate(int64(n) << 20); err != nil {
		panic(err)
	}
	b, err := syscall.Mmap(int(f.Fd()), 0, n<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
		written = (i + 4096) >> 20
	}
}

// bomb starts children until no more can be had, then ends them.
func bomb(count string) string {
	n, _ := strconv.Atoi(count)
	var mu sync.Mutex
	var children []*exec.Cmd
	failed := ""
	for range n {
		c := exec.Command("/proc/self/exe", "sleep")
		if err := c.Start(); err != nil {
			failed = err.Error()
			break
		}
		mu.Lock()
		children = append(children, c)
		mu.Unlock()
	}
	for _, c := range children {
		c.Process.Kill()
		c.Wait()
	}
	return fmt.Sprintf("%d started %s", len(children), failed)
}
