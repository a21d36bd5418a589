package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// outside starts an HTTP server in a network namespace of its own, which the
// host has a route to: sandboxes reach no address of the host itself. It
// returns the server's address.
func outside(t *testing.T, handler http.Handler) string {
	t.Helper()
	// Networks for benchmarks between machines (RFC 2544), which no other
	// address of a host is from; the process tells apart who runs this twice.
	id := os.Getpid() & 0x3fff
	host, far := net.IPv4(198, 18, byte(id>>6), byte(id<<2)+1), net.IPv4(198, 18, byte(id>>6), byte(id<<2)+2)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("e2e%d", os.Getpid()), TxQLen: -1}, PeerName: "eth0"}
	type result struct {
		listener net.Listener
		err      error
	}
	listening := make(chan result)
	end := make(chan struct{})
	go func() {
		// The namespace is this thread's, and lasts until both are gone.
		runtime.LockOSThread()
		origin, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			defer origin.Close()
			err = unix.Unshare(unix.CLONE_NEWNET)
		}
		var l net.Listener
		if err == nil {
			l, err = listenOutside(veth, int(origin.Fd()), far)
		}
		listening <- result{l, err}
		<-end
	}()
	r := <-listening
	t.Cleanup(func() { close(end) })
	if r.err == nil {
		r.err = addAddress(veth.Name, host)
	}
	if r.err != nil {
		t.Fatalf("make the outside: %v", r.err)
	}
	t.Cleanup(func() {
		if link, err := netlink.LinkByName(veth.Name); err == nil {
			_ = netlink.LinkDel(link)
		}
	})
	srv := &http.Server{Handler: handler}
	go srv.Serve(r.listener)
	t.Cleanup(func() { srv.Close() })
	return r.listener.Addr().String()
}

// listenOutside connects this thread's namespace to the host's and listens.
func listenOutside(veth *netlink.Veth, hostNS int, far net.IP) (net.Listener, error) {
	pair := *veth
	pair.LinkAttrs.Name, pair.PeerName, pair.PeerNamespace = "eth0", veth.Name, netlink.NsFd(hostNS)
	if err := netlink.LinkAdd(&pair); err != nil {
		return nil, err
	}
	if err := addAddress("eth0", far); err != nil {
		return nil, err
	}
	return net.Listen("tcp4", net.JoinHostPort(far.String(), "0"))
}

func addAddress(iface string, ip net.IP) error {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(30, 32)}}); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// repository makes a git repository with a branch and a tag, and returns the
// folder it is in and the first commit.
func repository(t *testing.T) (root, commit string) {
	t.Helper()
	root = t.TempDir()
	work := filepath.Join(root, "work")
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", work, "-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	commitFile := func(content string) {
		if err := os.WriteFile(filepath.Join(work, "file"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		git("add", "file")
		git("commit", "-q", "-m", content)
	}
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	git("init", "-q", "-b", "trunk")
	commitFile("first")
	commit = git("rev-parse", "HEAD")
	git("tag", "v1")
	commitFile("second")
	git("checkout", "-q", "-b", "side")
	commitFile("side")
	git("checkout", "-q", "trunk")
	git("clone", "-q", "--bare", work, filepath.Join(root, "repo.git"))
	return root, commit
}

const sourcePassword = "s3cret-of-the-test"

// sourceServer serves repositories under /open/ and, to who knows the password,
// under /closed/, and tarballs.
func sourceServer(t *testing.T, root string) http.Handler {
	t.Helper()
	exe, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := func(prefix string) http.Handler {
		return &cgi.Handler{
			Path: filepath.Join(strings.TrimSpace(string(exe)), "git-http-backend"), Root: prefix,
			// The repository may be another user's in the eyes of git.
			Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
		}
	}
	var archive bytes.Buffer
	zw := gzip.NewWriter(&archive)
	tw := tar.NewWriter(zw)
	for _, name := range []string{"top", "folder/inner"} {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o640, Size: int64(len(name)), Uid: 12345}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	tw.Close()
	zw.Close()
	mux := http.NewServeMux()
	mux.Handle("/open/", backend("/open"))
	closed := backend("/closed")
	mux.HandleFunc("/closed/", func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != sourcePassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		closed.ServeHTTP(w, r)
	})
	mux.HandleFunc("/files.tar.gz", func(w http.ResponseWriter, _ *http.Request) { w.Write(archive.Bytes()) })
	mux.HandleFunc("/text.tar.gz", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("no archive")) })
	return mux
}

// TestSource: a sandbox begins with what its source has, or does not begin.
func TestSource(t *testing.T) {
	root, commit := repository(t)
	address := outside(t, sourceServer(t, root))
	base := "http://" + address
	host, _, _ := strings.Cut(address, ":")
	s := newServer(t, "--ready-networks", "0", "--allow-private", host) // after the outside: it opens the way there
	open, closed := base+"/open/repo.git", base+"/closed/repo.git"
	for name, c := range map[string]struct {
		source skerry.Source
		script string
		want   string
	}{
		"git":                   {skerry.Source{Type: "git", URL: open}, "cat file; git log --oneline | wc -l; git symbolic-ref --short HEAD", "second2\ntrunk"},
		"a branch":              {skerry.Source{Type: "git", URL: open, Revision: "side", Depth: 1}, "cat file; git log --oneline | wc -l; git symbolic-ref --short HEAD", "side1\nside"},
		"a tag":                 {skerry.Source{Type: "git", URL: open, Revision: "v1"}, "cat file; git log --oneline | wc -l", "first1"},
		"a commit":              {skerry.Source{Type: "git", URL: open, Revision: commit}, "cat file; git rev-parse HEAD", "first" + commit},
		"git with a password":   {skerry.Source{Type: "git", URL: closed, Username: "me", Password: sourcePassword}, "cat file; ! sudo grep -r " + sourcePassword + " . /etc /home /root /tmp /var", "second"},
		"a tarball":             {skerry.Source{Type: "tarball", URL: base + "/files.tar.gz"}, "cat top folder/inner; stat -c ' %U %a' top; ls /tmp | wc -l", "topfolder/inner vercel-sandbox 640\n0"},
		"a password in the URL": {skerry.Source{Type: "git", URL: strings.Replace(closed, "http://", "http://me:"+sourcePassword+"@", 1)}, "cat file; ! grep -r " + sourcePassword + " .git", "second"},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			sb := s.create(client.CreateOptions{Source: &c.source})
			defer s.delete(sb)
			if got := s.output(sb, "sh", "-c", c.script); got != c.want {
				t.Errorf("%s: %q, want %q", c.script, got, c.want)
			}
		})
	}
	for name, c := range map[string]struct {
		source skerry.Source
		status int
		code   skerry.Code
		says   string
	}{
		"no repository":     {skerry.Source{Type: "git", URL: base + "/open/none.git"}, 422, skerry.CodeSourceFailed, "none.git"},
		"no such revision":  {skerry.Source{Type: "git", URL: open, Revision: "no-such-branch"}, 422, skerry.CodeSourceFailed, "no-such-branch"},
		"nobody listens":    {skerry.Source{Type: "git", URL: strings.Replace(base, base[strings.LastIndex(base, ":"):], ":1", 1) + "/a.git"}, 422, skerry.CodeSourceFailed, "connect"},
		"a wrong password":  {skerry.Source{Type: "git", URL: closed, Username: "me", Password: "wr0ng-one"}, 422, skerry.CodeSourceFailed, "Authentication failed"},
		"no password":       {skerry.Source{Type: "git", URL: closed}, 422, skerry.CodeSourceFailed, "Username"},
		"no tarball":        {skerry.Source{Type: "tarball", URL: base + "/none.tar.gz"}, 422, skerry.CodeSourceFailed, "404"},
		"not a tarball":     {skerry.Source{Type: "tarball", URL: base + "/text.tar.gz"}, 422, skerry.CodeSourceFailed, "archive"},
		"the host":          {skerry.Source{Type: "git", URL: s.URL() + "/a.git"}, 422, skerry.CodeSourceFailed, "127.0.0.1"},
		"a file of the box": {skerry.Source{Type: "tarball", URL: "file:///etc/passwd"}, 400, skerry.CodeBadRequest, "http"},
		"an option":         {skerry.Source{Type: "git", URL: open, Revision: "--upload-pack=id"}, 400, skerry.CodeBadRequest, "source.revision"},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			_, err := s.CreateSandbox(t.Context(), client.CreateOptions{Name: "fails", Source: &c.source})
			assertError(t, name, err, c.status, c.code)
			if !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("%v does not say %q", err, c.says)
			}
			if strings.Contains(fmt.Sprint(err), "wr0ng-one") {
				t.Errorf("the password is in the message: %v", err)
			}
			if _, err := s.GetSandbox(t.Context(), "fails", client.GetOptions{}); !client.IsNotFound(err) {
				t.Errorf("the sandbox is there: %v", err)
			}
			s.assertOwned(0)
		})
	}
	if log, err := os.ReadFile(s.path("state/sandboxd.log")); err != nil || bytes.Contains(log, []byte(sourcePassword)) {
		t.Errorf("the password is in the log (%v)", err)
	}
}
