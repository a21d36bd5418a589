package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// TestMain refuses to run as another user than root: an image's files have
// owners of their own.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests of images need root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var aTime = time.Unix(1_600_000_000, 0)

// item is an entry of a crafted layer; zero fields get what is usual.
type item struct {
	tar.Header
	body string
}

func file(name, body string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, body}
}

func dir(name string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}

func symlink(name, target string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, ""}
}

func hardLink(name, target string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}, ""}
}

func (i item) with(change func(*tar.Header)) item {
	change(&i.Header)
	return i
}

// layerTar makes a layer's archive.
func layerTar(t testing.TB, items ...item) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, i := range items {
		h := i.Header
		h.Size = int64(len(i.body))
		if h.ModTime.IsZero() {
			h.ModTime = aTime
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, i.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// unpackLayers unpacks layers into a new folder and returns it.
func unpackLayers(t testing.TB, limits Limits, layers ...[]byte) (string, error) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	tr, err := newTree(root)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	u := &unpacker{tree: tr, limits: limits.withDefaults()}
	for n, l := range layers {
		if err := u.unpack(t.Context(), fmt.Sprint("number ", n), bytes.NewReader(l)); err != nil {
			return root, err
		}
	}
	return root, nil
}

// describe lists a tree, an entry a line, with all that is kept of it.
func describe(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	first := map[uint64]string{} // the first name of each file
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %o %d:%d", name, st.Mode, st.Uid, st.Gid)
		if name != "." {
			line += fmt.Sprintf(" %d", st.Mtim.Sec)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", raw)
			if other, ok := first[st.Ino]; ok {
				line += " = " + other
			}
			first[st.Ino] = name
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		lines = append(lines, line+xattrs(path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func xattrs(path string) string {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil || n == 0 {
		return ""
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	text := ""
	for _, name := range names {
		value := make([]byte, 4096)
		n, _ := unix.Lgetxattr(path, name, value)
		text += fmt.Sprintf(" %s=%x", name, value[:max(n, 0)])
	}
	return text
}

// capability is a security.capability of cap_net_raw=ep.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

var richLayers = [][]item{
	{
		dir("./").with(func(h *tar.Header) { h.Mode = 0o755 }),
		dir("bin/"), file("bin/su", "root").with(func(h *tar.Header) { h.Mode = 0o4755 }),
		file("bin/ping", "icmp").with(func(h *tar.Header) {
			h.Mode = 0o755
			h.PAXRecords = map[string]string{xattrPrefix + "security.capability": capability}
		}),
		dir("tmp").with(func(h *tar.Header) { h.Mode = 0o1777 }),
		file("home/ann/note", "hello").with(func(h *tar.Header) {
			h.Uid, h.Gid, h.Mode = 70_000, 70_001, 0o600
			h.PAXRecords = map[string]string{xattrPrefix + "user.colour": "blue", xattrPrefix + "trusted.overlay.opaque": "y"}
		}),
		symlink("lib", "usr/lib"), dir("usr"), dir("usr/lib"), file("lib/a.so", "one"),
		dir("etc"), file("etc/gone", "x"), file("etc/kept", "x"),
		dir("opaque"), file("opaque/old", "x"), dir("opaque/sub"), file("opaque/sub/old", "x"),
		item{tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o620}, ""},
		item{tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Mode: 0o666, Devmajor: 8}, ""},
		dir("was-dir"), file("was-dir/in", "x"), file("was-file", "x"),
	},
	{
		file("etc/.wh.gone", ""),
		// An opaque folder keeps what its own layer has in it, even before.
		file("opaque/new", "y"), file("opaque/.wh..wh..opq", ""),
		hardLink("bin/sudo", "bin/su"), file("was-dir", "now a file"), dir("was-file"),
		symlink("dangling", "/nowhere/at/all"), symlink("absolute", "/usr/lib"), file("absolute/b.so", "two"),
		symlink("up", "../../../../etc"), file("up/inside", "not the host's"),
		file(".wh.never-there", ""), file("nowhere/.wh..wh..opq", ""), file("etc/.wh..wh.plnk", ""),
		dir("etc").with(func(h *tar.Header) { h.Mode, h.ModTime = 0o750, aTime.Add(time.Hour) }),
	},
}

var richTree = []string{
	". 40755 0:0",
	"absolute 120777 0:0 1600000000 -> /usr/lib",
	"bin/ping 100755 0:0 1600000000 \"icmp\" security.capability=0100000200200000000000000000000000000000",
	"bin/su 104755 0:0 1600000000 \"root\"",
	"bin/sudo 104755 0:0 1600000000 \"root\" = bin/su",
	"dangling 120777 0:0 1600000000 -> /nowhere/at/all",
	"etc 40750 0:0 1600003600",
	"etc/inside 100644 0:0 1600000000 \"not the host's\"",
	"etc/kept 100644 0:0 1600000000 \"x\"",
	"home/ann/note 100600 70000:70001 1600000000 \"hello\" user.colour=626c7565",
	"lib 120777 0:0 1600000000 -> usr/lib",
	"opaque/new 100644 0:0 1600000000 \"y\"",
	"pipe 10620 0:0 1600000000",
	"tmp 41777 0:0 1600000000",
	"up 120777 0:0 1600000000 -> ../../../../etc",
	"usr 40755 0:0 1600000000",
	"usr/lib/a.so 100644 0:0 1600000000 \"one\"",
	"usr/lib/b.so 100644 0:0 1600000000 \"two\"",
	"was-dir 100644 0:0 1600000000 \"now a file\"",
	"was-file 40755 0:0 1600000000",
}

// timeless are folders that the layer that last added to them has no entry for,
// and so no time.
var timeless = []string{"bin", "home", "home/ann", "opaque", "usr/lib"}

func withoutTimeless(lines []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(l string) bool {
		name, _, _ := strings.Cut(l, " ")
		return slices.Contains(timeless, name)
	})
}

func TestUnpackKeepsEverything(t *testing.T) {
	var layers [][]byte
	for _, items := range richLayers {
		layers = append(layers, layerTar(t, items...))
	}
	root, err := unpackLayers(t, Limits{}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	got := withoutTimeless(describe(t, root))
	if !slices.Equal(got, richTree) {
		t.Errorf("the tree is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(richTree, "\n"))
	}
	for _, name := range timeless {
		if info, err := os.Stat(filepath.Join(root, name)); err != nil || info.Mode() != fs.ModeDir|0o755 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	deep := strings.Repeat("d/", 1500)
	tests := []struct {
		name, says string
		items      []item
	}{
		{"parent", "entry \"../evil\"", []item{file("../evil", "x")}},
		{"parent in the middle", "a/../../evil", []item{file("a/../../evil", "x")}},
		{"absolute", "absolute", []item{file(outside, "x")}},
		{"hard link to parent", "hard link", []item{hardLink("l", "../outside")}},
		{"hard link to absolute", "hard link", []item{hardLink("l", outside)}},
		{"hard link through a link", "hard link", []item{symlink("s", filepath.Dir(outside)), hardLink("l", "s/outside")}},
		{"hard link to a folder", "folder", []item{dir("d"), hardLink("l", "d")}},
		{"hard link to itself", "hard link", []item{file("f", "x"), hardLink("f", "f")}},
		{"file under a link to nothing", "entry \"s/f\"", []item{symlink("s", "/nowhere"), file("s/f", "x")}},
		{"file under a file", "entry \"f/g\"", []item{file("f", "x"), file("f/g", "x")}},
		{"file under a link loop", "entry \"s/f\"", []item{symlink("s", "s"), file("s/f", "x")}},
		{"root is a link", "root", []item{symlink(".", "/etc")}},
		{"whiteout of the parent", "must name a file", []item{dir("a"), file("a/.wh...", "")}},
		{"whiteout of nothing", "must name a file", []item{dir("a"), file("a/.wh.", "")}},
		{"long name", "longer than", []item{file(strings.Repeat("n", 256), "x")}},
		{"deep through a link", "name too long", []item{symlink("s", deep), dir(deep), file("s/"+strings.Repeat("e/", 400), "").with(func(h *tar.Header) { h.Typeflag = tar.TypeDir })}},
		{"long link target", "longer than", []item{symlink("s", strings.Repeat("t", 4096))}},
		{"no owner", "owner", []item{file("f", "x").with(func(h *tar.Header) { h.Uid = -1; h.Format = tar.FormatGNU })}},
		{"odd type", "unknown type", []item{file("f", "").with(func(h *tar.Header) { h.Typeflag = 'V' })}},
		{"malformed capability", "extended attribute", []item{file("f", "x").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{xattrPrefix + "security.capability": "junk"}
		})}},
		{"too many entries", "more than 20 entries", slices.Repeat([]item{dir("d")}, 21)},
		{"too many bytes", "more than 1000 bytes", []item{file("f", strings.Repeat("x", 600)), file("f", strings.Repeat("x", 600))}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := unpackLayers(t, Limits{Bytes: 1000, Entries: 20}, layerTar(t, dir("a")), layerTar(t, tt.items...))
			if skerry.CodeOf(err) != skerry.CodeImageInvalid {
				t.Fatalf("unpacking answered %v, want %s", err, skerry.CodeImageInvalid)
			}
			if !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "layer number 1") {
				t.Errorf("the error %q names neither the layer nor %q", err, tt.says)
			}
		})
	}
	if raw, err := os.ReadFile(outside); err != nil || string(raw) != "untouched" {
		t.Errorf("a file outside is now %q, %v", raw, err)
	}
}

func TestUnpackTruncated(t *testing.T) {
	whole := layerTar(t, file("f", strings.Repeat("x", 4000)))
	for _, size := range []int{100, 700, 3000} {
		if _, err := unpackLayers(t, Limits{}, whole[:size]); skerry.CodeOf(err) != skerry.CodeImageInvalid {
			t.Errorf("a layer cut at %d bytes: %v", size, err)
		}
	}
}

func TestUnpackStops(t *testing.T) {
	tr, err := newTree(filepath.Join(t.TempDir(), "root"))
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	u := &unpacker{tree: tr, limits: Limits{}.withDefaults()}
	if err := u.unpack(ctx, "one", bytes.NewReader(layerTar(t, file("f", "x")))); err != context.Canceled {
		t.Errorf("unpacking after its end: %v", err)
	}
}

// FuzzUnpack feeds layers to the unpacker and sees to it that nothing appears
// beside the tree.
func FuzzUnpack(f *testing.F) {
	for _, items := range richLayers {
		f.Add(layerTar(f, items...))
	}
	f.Add(layerTar(f, symlink("s", "../.."), file("s/evil", "x"), hardLink("h", "s/evil"), file("s/.wh.evil", "")))
	f.Fuzz(func(t *testing.T, layer []byte) {
		root, err := unpackLayers(t, Limits{Bytes: 1 << 20, Entries: 1000}, layerTar(t, dir("d"), symlink("s", "/../d")), layer)
		if code := skerry.CodeOf(err); err != nil && code != skerry.CodeImageInvalid {
			t.Errorf("a layer brought about an error of the machine: %v", err)
		}
		beside, err := os.ReadDir(filepath.Dir(root))
		if err != nil || len(beside) != 1 {
			t.Errorf("beside the tree there is %v, %v", beside, err)
		}
	})
}
