package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
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
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

var _ nodeapi.Images = (*Store)(nil)

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(Options{Dir: filepath.Join(t.TempDir(), "images")})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// image makes an OCI image of layers.
func image(t *testing.T, layers ...[]item) v1.Image {
	t.Helper()
	img := empty.Image
	for _, items := range layers {
		raw := layerTar(t, items...)
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	return withConfig(t, img, func(c *v1.ConfigFile) {
		c.OS, c.Architecture = "linux", runtime.GOARCH
		c.Config.Env, c.Config.WorkingDir, c.Config.User = []string{"GREETING=hello", "junk"}, "/srv", "70000"
	})
}

func withConfig(t *testing.T, img v1.Image, change func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	old, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := old.DeepCopy()
	change(c)
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// push puts an image into a registry of the test's own and returns its name.
func push(t *testing.T, img v1.Image) string {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	ref := strings.TrimPrefix(server.URL, "http://") + "/team/app:v1"
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	return ref
}

// mount mounts a stored image and returns where.
func mount(t *testing.T, s *Store, digest string) string {
	t.Helper()
	path, err := s.Path(digest)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", path, dir).CombinedOutput(); err != nil {
		t.Fatalf("mounting the image: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("unmounting the image: %v: %s", err, out)
		}
	})
	return dir
}

// wantClean sees to it that no build left anything.
func wantClean(t *testing.T, s *Store) {
	t.Helper()
	entries, err := os.ReadDir(s.path("work"))
	if err != nil || len(entries) > 0 {
		t.Errorf("work in the store: %v, %v", entries, err)
	}
}

// packedTree is richTree without the extended attributes, which are not
// packed.
func packedTree() []string {
	attr := regexp.MustCompile(` (security|user|trusted)\.\S+$`)
	want := slices.Clone(richTree)
	for i := range want {
		want[i] = attr.ReplaceAllString(want[i], "")
	}
	return want
}

func TestPull(t *testing.T) {
	s := newStore(t)
	img := image(t, richLayers...)
	ref := push(t, img)
	last := 0
	m, err := s.Pull(t.Context(), ref, PullOptions{Insecure: true}, func(_ string, percent int) { last = percent })
	if err != nil {
		t.Fatal(err)
	}
	if last != 100 {
		t.Errorf("the last progress was %d%%", last)
	}
	want, _ := img.Digest()
	if m.Source != want.String() || m.WorkDir != "/srv" || m.User != "70000" || len(m.Env) != 1 || m.Env["GREETING"] != "hello" {
		t.Errorf("the image is %+v", m)
	}
	got := withoutTimeless(describe(t, mount(t, s, m.Digest)))
	if want := packedTree(); !slices.Equal(got, want) {
		t.Errorf("the packed tree is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	repository := strings.TrimSuffix(ref, ":v1")
	for _, r := range []string{ref, repository + "@" + want.String(), repository + "@" + m.Digest, want.String(), m.Digest} {
		found, err := s.Resolve(t.Context(), r)
		if err != nil || found.Digest != m.Digest || found.Name != repository+"@"+want.String() || found.Env["GREETING"] != "hello" {
			t.Errorf("resolving %s: %+v, %v", r, found, err)
		}
	}
	wantClean(t, s)
}

func TestPullByDigest(t *testing.T) {
	s := newStore(t)
	img := image(t, richLayers[0])
	digest, _ := img.Digest()
	ref := strings.TrimSuffix(push(t, img), ":v1") + "@" + digest.String()
	if _, err := s.Pull(t.Context(), ref, PullOptions{Insecure: true}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

func TestPullRefuses(t *testing.T) {
	ref := push(t, image(t, richLayers[0]))
	chart := push(t, empty.Image)
	evil := push(t, image(t, []item{file("../evil", "x")}))
	other := push(t, withConfig(t, image(t, richLayers[0]), func(c *v1.ConfigFile) { c.Architecture = "s390x" }))
	forged := push(t, withConfig(t, image(t, richLayers[0]), func(c *v1.ConfigFile) {
		c.RootFS.DiffIDs = []v1.Hash{{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}}
	}))
	hugeImage := mutate.Annotations(image(t, richLayers[0]), map[string]string{"a": strings.Repeat("x", maxManifest)}).(v1.Image)
	huge := push(t, hugeImage)
	inIndex, err := name.NewTag(strings.TrimSuffix(huge, "v1") + "index")
	if err == nil {
		err = remote.WriteIndex(inIndex, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
			Add: hugeImage, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}},
		}))
	}
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, ref string
		insecure  bool
		code      skerry.Code
	}{
		{"plain HTTP not asked for", ref, false, skerry.CodeUnavailable},
		{"plain HTTP to elsewhere", "example.com/a:b", true, skerry.CodeBadRequest},
		{"no reference", "::", true, skerry.CodeBadRequest},
		{"long reference", strings.Repeat("a", 10_000), true, skerry.CodeBadRequest},
		{"no such tag", strings.TrimSuffix(ref, "v1") + "v2", true, skerry.CodeNotFound},
		{"no registry", "127.0.0.1:1/a:b", true, skerry.CodeUnavailable},
		{"no layers", chart, true, skerry.CodeImageInvalid},
		{"evil layer", evil, true, skerry.CodeImageInvalid},
		{"other architecture", other, true, skerry.CodeImageInvalid},
		{"huge manifest", huge, true, skerry.CodeImageInvalid},
		{"huge manifest in an index", inIndex.Name(), true, skerry.CodeImageInvalid},
		{"forged layer hash", forged, true, skerry.CodeImageInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			_, err := s.Pull(t.Context(), tt.ref, PullOptions{Insecure: tt.insecure}, nil)
			if code := skerry.CodeOf(err); code != tt.code {
				t.Errorf("pulling answered %v, want %s", err, tt.code)
			}
			wantClean(t, s)
			if list, err := s.List(); err != nil || len(list) > 0 {
				t.Errorf("the store has %v, %v", list, err)
			}
		})
	}
}

func TestPullCanceled(t *testing.T) {
	s := newStore(t)
	ref := push(t, image(t, richLayers...))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Pull(ctx, ref, PullOptions{Insecure: true}, func(stage string, _ int) {
		if stage == "packing" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("pulling answered %v", err)
	}
	wantClean(t, s)
}

func TestImport(t *testing.T) {
	img := image(t, richLayers...)
	folder := t.TempDir()
	docker := filepath.Join(folder, "docker.tar")
	tag, _ := name.NewTag("team/app:v1")
	if err := tarball.WriteToFile(docker, tag, img); err != nil {
		t.Fatal(err)
	}
	oci := filepath.Join(folder, "oci")
	p, err := layout.Write(oci, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	ociTar := filepath.Join(folder, "oci.tar")
	for _, args := range [][]string{{"tar", "-cf", ociTar, "-C", oci, "."}, {"gzip", "-k", ociTar}, {"gzip", "-k", docker}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args[0], err, out)
		}
	}
	tests := []struct{ from, ref, resolves string }{
		{docker, "", "team/app:v1"},
		{docker + ".gz", "other", "other:latest"},
		{oci, "team/app:v2", "index.docker.io/team/app:v2"},
		{ociTar, "app", "app"},
		{ociTar + ".gz", "app", "app"},
	}
	for _, tt := range tests {
		t.Run(filepath.Base(tt.from), func(t *testing.T) {
			s := newStore(t)
			m, err := s.Import(t.Context(), tt.from, tt.ref, nil)
			if err != nil {
				t.Fatal(err)
			}
			if found, err := s.Resolve(t.Context(), tt.resolves); err != nil || found.Digest != m.Digest {
				t.Errorf("resolving %s: %v, %v", tt.resolves, found, err)
			}
			if got := withoutTimeless(describe(t, mount(t, s, m.Digest))); !slices.Equal(got, packedTree()) {
				t.Errorf("the packed tree is\n%s", strings.Join(got, "\n"))
			}
			wantClean(t, s)
		})
	}
}

// hugeConfig makes an OCI layout that is right but for the size of its image's
// configuration.
func hugeConfig(t *testing.T) string {
	t.Helper()
	img := withConfig(t, image(t, []item{file("hello", "x")}), func(c *v1.ConfigFile) {
		c.Author = strings.Repeat("a", maxManifest)
	})
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = p.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestImportRefuses(t *testing.T) {
	folder := t.TempDir()
	write := func(name string, raw []byte) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []string{
		write("empty", nil),
		write("text", []byte(strings.Repeat("not an archive\n", 100))),
		write("gzip", []byte("\x1f\x8bnot")),
		write("tar", layerTar(t, file("hello", "x"))),
		write("docker", layerTar(t, file("manifest.json", "[]"))),
		write("docker-junk", layerTar(t, file("manifest.json", "{"))),
		write("docker-config", layerTar(t, file("manifest.json", `[{"Config":"../../c","Layers":["l"]}]`))),
		write("huge-manifest", layerTar(t, file("manifest.json", strings.Repeat(" ", maxManifest+1)))),
		write("huge-config", layerTar(t, file("manifest.json", `[{"Config":"c","Layers":[]}]`), file("c", strings.Repeat(" ", maxManifest+1)))),
		write("linked-config", layerTar(t, file("manifest.json", `[{"Config":"c","Layers":[]}]`), symlink("c", "d"), file("d", "{}"))),
		hugeConfig(t),
		write("layout", layerTar(t, file("index.json", `{"manifests":[]}`), file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`))),
		write("layout-evil", layerTar(t, symlink("blobs/sha256", "/"), file("index.json", `{`))),
		t.TempDir(),
	}
	for _, path := range tests {
		t.Run(filepath.Base(path), func(t *testing.T) {
			s := newStore(t)
			if _, err := s.Import(t.Context(), path, "app", nil); skerry.CodeOf(err) != skerry.CodeImageInvalid {
				t.Errorf("importing answered %v", err)
			}
			wantClean(t, s)
		})
	}
}

func TestResolveUnknown(t *testing.T) {
	s := newStore(t)
	tests := []struct {
		ref, says string
		code      skerry.Code
	}{
		{"", "sandboxd image build", skerry.CodeNotFound},
		{"alpine", "sandboxd image pull alpine", skerry.CodeNotFound},
		{"default", "sandboxd image pull default", skerry.CodeNotFound},
		{"alpine@sha256:" + strings.Repeat("a", 64), "alpine@sha256", skerry.CodeNotFound},
		{"sha256:" + strings.Repeat("a", 64), "aaaa", skerry.CodeNotFound},
		{"sha256:../../etc/passwd", "digest", skerry.CodeBadRequest},
		{"Not A Reference", "reference", skerry.CodeBadRequest},
		{strings.Repeat("a", 10_000), "at most 512 bytes", skerry.CodeBadRequest},
	}
	for _, tt := range tests {
		_, err := s.Resolve(t.Context(), tt.ref)
		if skerry.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "image") {
			t.Errorf("resolving %.50q: %v, want %s that says %q", tt.ref, err, tt.code, tt.says)
		}
	}
	if _, err := s.Path("sha256:../../x"); skerry.CodeOf(err) != skerry.CodeBadRequest {
		t.Errorf("the path of a digest that is none: %v", err)
	}
}

func TestConcurrentPulls(t *testing.T) {
	s := newStore(t)
	ref := push(t, image(t, richLayers...))
	var group sync.WaitGroup
	var digests [4]string
	for i := range digests {
		group.Go(func() {
			m, err := s.Pull(t.Context(), ref, PullOptions{Insecure: true}, nil)
			if err != nil {
				t.Error(err)
			}
			digests[i] = m.Digest
		})
	}
	group.Wait()
	for _, d := range digests {
		if d != digests[0] {
			t.Errorf("the same image has the digests %v", digests)
		}
	}
	if blobs, err := os.ReadDir(s.path("blobs")); err != nil || len(blobs) != 1 {
		t.Errorf("the store has %v, %v", blobs, err)
	}
	wantClean(t, s)
}

func TestRemoveAndGC(t *testing.T) {
	s := newStore(t)
	refs := []string{
		push(t, image(t, []item{file("a", "named")})), push(t, image(t, []item{file("a", "used")})), push(t, image(t, []item{file("a", "unused")})),
	}
	var digests []string
	for _, ref := range refs {
		m, err := s.Pull(t.Context(), ref, PullOptions{Insecure: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, m.Digest)
	}
	if err := s.Remove(t.Context(), refs[1]); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), digests[2]); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), refs[1]); skerry.CodeOf(err) != skerry.CodeNotFound {
		t.Errorf("removing twice: %v", err)
	}
	// A killed build leaves its folder and a lock that nobody holds, one in
	// progress a lock that is held.
	if err := os.MkdirAll(s.path("work", "killed", "root"), 0o700); err != nil {
		t.Fatal(err)
	}
	building, err := s.newWork(t.Context(), "building")
	if err != nil {
		t.Fatal(err)
	}
	freed, err := s.GC(t.Context(), map[string]bool{digests[1]: true})
	if err != nil || freed == 0 {
		t.Errorf("collecting freed %d bytes, %v", freed, err)
	}
	for i, want := range []bool{true, true, false} {
		if _, err := s.Path(digests[i]); (err == nil) != want {
			t.Errorf("image %d is there: %v, want %v", i, err, want)
		}
		if _, err := s.Resolve(t.Context(), digests[i]); (err == nil) != want {
			t.Errorf("image %d resolves: %v, want %v", i, err, want)
		}
	}
	if _, err := os.Stat(s.path("work", "killed")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a killed build left is still there: %v", err)
	}
	if _, err := os.Stat(building.dir); err != nil {
		t.Errorf("a build in progress lost its folder: %v", err)
	}
	if err := building.Close(); err != nil {
		t.Error(err)
	}
	wantClean(t, s)
}
