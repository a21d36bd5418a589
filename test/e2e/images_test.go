package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// entry is a file of a layer.
type entry struct {
	name, body string
	kind       byte // tar.TypeReg if 0
	mode       int64
	uid, gid   int
	link       string
	colour     string // an extended attribute
}

func layer(t *testing.T, entries ...entry) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, Uid: e.uid, Gid: e.gid, Linkname: e.link, Size: int64(len(e.body)), Format: tar.FormatPAX}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if e.colour != "" {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.colour": e.colour}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// tinyImage is an image of two layers, the second of which takes back some of
// the first. mark makes it another image.
func tinyImage(t *testing.T, probe, mark string) v1.Image {
	t.Helper()
	first := layer(t,
		entry{name: "probe", body: probe, mode: 0o755},
		entry{name: "data/", kind: tar.TypeDir, mode: 0o750, uid: 1234, gid: 4321},
		entry{name: "data/owned", body: "owned", mode: 0o640, uid: 1234, gid: 4321, colour: "green"},
		entry{name: "data/suid", body: "suid", mode: 0o4755},
		entry{name: "data/one", body: "linked", mode: 0o644},
		entry{name: "data/two", kind: tar.TypeLink, link: "data/one"},
		entry{name: "data/gone", body: "gone", mode: 0o644},
		entry{name: "data/replaced/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "data/replaced/old", body: "old", mode: 0o644},
		entry{name: "mark", body: mark, mode: 0o644},
	)
	second := layer(t,
		entry{name: "data/.wh.gone", mode: 0o644},
		entry{name: "data/replaced/.wh..wh..opq", mode: 0o644},
		entry{name: "data/replaced/new", body: "new", mode: 0o644},
		entry{name: "data/link", kind: tar.TypeSymlink, link: "owned", mode: 0o777},
	)
	img, err := mutate.AppendLayers(empty.Image, first, second)
	if err != nil {
		t.Fatal(err)
	}
	return withPlatform(t, img, runtime.GOARCH)
}

func withPlatform(t *testing.T, img v1.Image, arch string) v1.Image {
	t.Helper()
	conf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture = "linux", arch
	conf.Config.Env = []string{"PATH=/usr/bin:/bin", "FROM_IMAGE=yes"}
	if img, err = mutate.ConfigFile(img, conf); err != nil {
		t.Fatal(err)
	}
	return img
}

// wantTiny is what a sandbox sees of the image.
const wantTiny = `/data 40750 1234:4321 links %s [link one owned replaced suid two]
/data/owned 100640 1234:4321 links 1 colour green "owned"
/data/suid 104755 0:0 links 1 "suid"
/data/one 100644 0:0 links 2 "linked"
/data/two 100644 0:0 links 2 "linked"
/data/gone no such file or directory
/data/replaced 40755 0:0 links %s [new]
/data/link 120777 0:0 links 1 -> owned <nil>
`

// TestImages: an image from wherever becomes what a sandbox sees.
func TestImages(t *testing.T) {
	s := prepareServer(t)
	s.images = s.path("images") // without a default image
	s.start()
	program := filepath.Join(t.TempDir(), "probe")
	build := exec.Command("go", "build", "-o", program, "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v\n%s", err, out)
	}
	probe, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.CreateSandbox(t.Context(), client.CreateOptions{})
	assertError(t, "create without a default image", err, 404, skerry.CodeNotFound)

	reg := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer reg.Close()
	host := strings.TrimPrefix(reg.URL, "http://")
	for from, get := range map[string]func(*testing.T, v1.Image) (args []string, ref string){
		"registry": func(t *testing.T, img v1.Image) ([]string, string) {
			ref := push(t, host+"/team/tiny:1", img)
			return []string{"pull", "--insecure", ref}, ref
		},
		"docker save": func(t *testing.T, img v1.Image) ([]string, string) {
			tag, file := name.MustParseReference("example.com/saved:2"), filepath.Join(t.TempDir(), "saved.tar")
			if err := tarball.WriteToFile(file, tag, img); err != nil {
				t.Fatal(err)
			}
			return []string{"import", file}, "example.com/saved:2"
		},
		"OCI layout": func(t *testing.T, img v1.Image) ([]string, string) {
			path, err := layout.Write(t.TempDir(), empty.Index)
			if err == nil {
				err = path.AppendImage(img)
			}
			if err != nil {
				t.Fatal(err)
			}
			return []string{"import", string(path), "example.com/layout:3"}, "example.com/layout:3"
		},
	} {
		t.Run(from, func(t *testing.T) {
			s := s.in(t)
			args, ref := get(t, tinyImage(t, string(probe), from))
			if out, err := s.sandboxd(append([]string{"image"}, args...)...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", args, err, out)
			}
			sb := s.create(client.CreateOptions{Image: ref})
			defer s.delete(sb)
			look := sb.Command(t.Context(), "/probe", "/data", "/data/owned", "/data/suid", "/data/one", "/data/two", "/data/gone", "/data/replaced", "/data/link")
			look.Sudo = true
			out, err := look.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			// How many links a folder has is the file system's affair.
			links := func(path string) string {
				_, after, _ := strings.Cut(string(out), path+" 40")
				_, after, _ = strings.Cut(after, "links ")
				n, _, _ := strings.Cut(after, " ")
				return n
			}
			if want := fmt.Sprintf(wantTiny, links("/data"), links("/data/replaced")); string(out) != want {
				t.Errorf("the sandbox sees\n%s\nwant\n%s", out, want)
			}
			if got := s.output(sb, "/probe", "/mark"); !strings.Contains(got, fmt.Sprintf("%q", from)) {
				t.Errorf("it is another image: %s", got)
			}
			if err := sb.WriteFile(t.Context(), "a", []byte("mine"), 0o644); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("not images", func(t *testing.T) { refuseImages(t, s.in(t), host, tinyImage(t, string(probe), "foreign")) })
}

func push(t *testing.T, ref string, img v1.Image) string {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err == nil {
		err = remote.Write(parsed, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// refuseImages: what is no image is refused in words that help, and leaves
// nothing.
func refuseImages(t *testing.T, s *server, registry string, img v1.Image) {
	before := s.stored()
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var other bytes.Buffer
	w := tar.NewWriter(&other)
	if err := w.WriteHeader(&tar.Header{Name: "readme", Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"import", write("text", strings.Repeat("not a tarball\n", 100)), "a:1"}, "not a tar archive"},
		{[]string{"import", write("empty", ""), "a:1"}, "neither"},
		{[]string{"import", write("other.tar", other.String()), "a:1"}, "neither"},
		{[]string{"import", dir, "a:1"}, "not an OCI layout"},
		{[]string{"import", filepath.Join(dir, "missing"), "a:1"}, "no such file"},
		{[]string{"pull", "--insecure", registry + "/team/none:1"}, "does not have it"},
		{[]string{"pull", "--insecure", push(t, registry+"/team/foreign:1", withPlatform(t, img, "s390x"))}, "s390x"},
		{[]string{"pull", registry + "/team/tiny:1"}, "cannot be reached"},
		{[]string{"pull", "--insecure", "127.0.0.1:1/a:1"}, "cannot be reached"},
		{[]string{"pull", "UPPER CASE"}, "not an image reference"},
	} {
		out, err := s.sandboxd(append([]string{"image"}, c.args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.says) {
			t.Errorf("%v: %v, %s; want %q", c.args, err, out, c.says)
		}
		if after := s.stored(); !slices.Equal(after, before) {
			t.Errorf("%v left something: %v, before %v", c.args, after, before)
		}
	}
	for ref, status := range map[string]int{"example.com/none:1": 404, "a@sha256:" + strings.Repeat("0", 64): 404, "no such thing": 400, "sha256:12": 400} {
		_, err := s.CreateSandbox(t.Context(), client.CreateOptions{Image: ref})
		code := map[int]skerry.Code{404: skerry.CodeNotFound, 400: skerry.CodeBadRequest}[status]
		assertError(t, ref, err, status, code)
	}
}

// stored lists the files of the image store but its locks.
func (s *server) stored() []string {
	s.t.Helper()
	var names []string
	for _, sub := range []string{"blobs", "meta", "refs", "work"} {
		for _, n := range s.list(filepath.Join(s.images, sub)) {
			if !strings.HasSuffix(n, ".lock") {
				names = append(names, sub+"/"+n)
			}
		}
	}
	return names
}
