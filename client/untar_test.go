package client

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// makeTar returns a stream of the entries; files contain their own name.
func makeTar(t testing.TB, entries ...tar.Header) []byte {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, hdr := range entries {
		if hdr.Typeflag == 0 {
			hdr.Typeflag = tar.TypeReg
		}
		if hdr.Typeflag == tar.TypeReg {
			hdr.Size = int64(len(hdr.Name))
		}
		if hdr.Mode == 0 {
			hdr.Mode = 0o755
		}
		if err := tw.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if hdr.Size > 0 {
			tw.Write([]byte(hdr.Name))
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func link(name, target string) tar.Header {
	return tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}
}

func dir(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir} }

func file(name string) tar.Header { return tar.Header{Name: name} }

// extract unpacks into "out" below a directory that has a secret beside it.
func extract(t testing.TB, stream []byte) (top string, skipped []string, err error) {
	top = t.TempDir()
	if err := os.WriteFile(filepath.Join(top, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(top)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	_, skipped, err = untar(t.Context(), bytes.NewReader(stream), root, "d", "out")
	if b, readErr := os.ReadFile(filepath.Join(top, "secret")); readErr != nil || string(b) != "secret" {
		t.Fatalf("the file beside the copy is %q, %v", b, readErr)
	}
	return top, skipped, err
}

func TestUntarRefuses(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"dot dot":                      {file("../secret")},
		"dot dot inside":               {file("d/../../secret")},
		"dot dot to beside":            {file("d/../secret")},
		"absolute":                     {file("/secret")},
		"beside":                       {file("secret")},
		"a name with the same start":   {file("dx")},
		"through a link":               {dir("d"), dir("d/x"), link("d/l", "x"), file("d/l/f")},
		"directory through a link":     {dir("d"), dir("d/x"), link("d/l", "x"), dir("d/l/f")},
		"hard link outside":            {dir("d"), {Name: "d/h", Linkname: "../secret", Typeflag: tar.TypeLink}},
		"hard link beside":             {dir("d"), {Name: "d/h", Linkname: "secret", Typeflag: tar.TypeLink}},
		"hard link to a symbolic link": {dir("d"), file("d/f"), link("d/l", "f"), {Name: "d/h", Linkname: "d/l", Typeflag: tar.TypeLink}},
		"a file over a directory":      {dir("d"), dir("d/x"), file("d/x/f"), file("d/x")},
		"a file over the whole":        {dir("d"), file("d/x"), file("d")},
	} {
		if _, _, err := extract(t, makeTar(t, entries...)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, _, err := extract(t, []byte(strings.Repeat("not a tar stream", 100))); err == nil {
		t.Error("garbage: no error")
	}
	if _, _, err := extract(t, makeTar(t, file("d/f"))[:514]); err == nil {
		t.Error("a stream that was cut off: no error")
	}
}

// What one sandbox sends to another stays below the destination there.
func TestTransferRefuses(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"dot dot":           {file("d/../../secret")},
		"absolute":          {file("/secret")},
		"beside":            {file("secret")},
		"through a link":    {dir("d"), link("d/l", "/etc"), file("d/l/f")},
		"far down a link":   {dir("d"), link("d/l", "/etc"), file("d/l/m/f")},
		"hard link outside": {dir("d"), {Name: "d/h", Linkname: "../secret", Typeflag: tar.TypeLink}},
		"hard link down":    {dir("d"), link("d/l", "/etc"), {Name: "d/h", Linkname: "d/l/passwd", Typeflag: tar.TypeLink}},
		"over a link":       {dir("d"), link("d/l", "/etc/passwd"), file("d/l")},
		"directory at link": {dir("d"), link("d/l", "/etc"), dir("d/l")},
		"link to a link":    {dir("d"), link("d/l", "/etc"), {Name: "d/h", Linkname: "d/l", Typeflag: tar.TypeLink}, file("d/h/f")},
		"cut off":           nil,
	} {
		stream := makeTar(t, entries...)
		if entries == nil {
			stream = makeTar(t, file("d/f"))[:514]
		}
		x := transfer{tw: tar.NewWriter(io.Discard), strip: "d", as: "out", links: map[string]bool{}}
		if err := x.all(t.Context(), bytes.NewReader(stream)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	x := transfer{tw: tar.NewWriter(io.Discard), strip: "d", as: "out", links: map[string]bool{}}
	err := x.all(t.Context(), bytes.NewReader(makeTar(t, dir("d"), link("d/l", "/etc"), file("d/f"), tar.Header{Name: "d/dev", Typeflag: tar.TypeChar})))
	if err != nil || !slices.Equal(x.skipped.list(), []string{"d/dev (a device)"}) {
		t.Errorf("skipped %q, %v", x.skipped.list(), err)
	}
}

func TestUntarSkips(t *testing.T) {
	for name, hdr := range map[string]tar.Header{
		"absolute link":               link("d/x", "/etc/passwd"),
		"link up":                     link("d/x", "../secret"),
		"link far up":                 link("d/x", "../../../../etc/passwd"),
		"link down and up":            link("d/x", "sub/../../secret"),
		"link that counts on another": link("d/x", "s/s/s/../../.."),
		"empty link":                  {Name: "d/x", Typeflag: tar.TypeSymlink},
		"device":                      {Name: "d/x", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
		"pipe":                        {Name: "d/x", Typeflag: tar.TypeFifo},
	} {
		top, skipped, err := extract(t, makeTar(t, dir("d"), link("d/s", "."), hdr, file("d/last")))
		if err != nil || len(skipped) != 1 || !strings.HasPrefix(skipped[0], "d/x (") {
			t.Errorf("%s: skipped %q, error %v", name, skipped, err)
		}
		if _, err := os.Lstat(filepath.Join(top, "out", "x")); err == nil {
			t.Errorf("%s: it was made", name)
		}
		if _, err := os.Lstat(filepath.Join(top, "out", "last")); err != nil {
			t.Errorf("%s: what follows is not there: %v", name, err)
		}
	}
}

func TestUntarKeepsTheHarmless(t *testing.T) {
	stream := makeTar(t,
		dir("d"), file("d/f"), link("d/to-f", "f"), dir("d/sub"), link("d/sub/up", "../f"),
		tar.Header{Name: "d/hard", Linkname: "d/f", Typeflag: tar.TypeLink},
		tar.Header{Name: "d/suid", Mode: 0o4755},
		tar.Header{Name: "d/shut", Typeflag: tar.TypeDir, Mode: 0o500}, file("d/shut/in"),
		file("d/f2"), link("d/f2", "f"), file("d/f2"), // each in the place of the one before
	)
	top, skipped, err := extract(t, stream)
	if err != nil || len(skipped) != 0 {
		t.Fatalf("skipped %q, error %v", skipped, err)
	}
	out := filepath.Join(top, "out")
	for name, want := range map[string]string{
		"f": "d/f", "to-f": "d/f", "sub/up": "d/f", "hard": "d/f", "shut/in": "d/shut/in", "f2": "d/f2",
	} {
		if b, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(b) != want {
			t.Errorf("%s has %q, %v", name, b, err)
		}
	}
	if info, err := os.Stat(filepath.Join(out, "suid")); err != nil || info.Mode()&os.ModeSetuid != 0 {
		t.Errorf("suid: %v, %v", info, err)
	}
	if info, err := os.Stat(filepath.Join(out, "shut")); err != nil || info.Mode().Perm() != 0o500 {
		t.Errorf("shut: %v, %v", info, err)
	}
}

// FuzzUntar checks that nothing a stream says is written outside, nor leads
// there.
func FuzzUntar(f *testing.F) {
	f.Add(makeTar(f, dir("d"), file("d/f"), link("d/l", "f")))
	f.Add(makeTar(f, file("../secret"), link("d/x", "../secret"), file("d/x/y")))
	f.Fuzz(func(t *testing.T, stream []byte) {
		if len(stream) > 64<<10 {
			return
		}
		top, _, _ := extract(t, stream)
		entries, err := os.ReadDir(top)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "secret" && e.Name() != "out" {
				t.Errorf("%q was made beside the copy", e.Name())
			}
		}
		filepath.WalkDir(filepath.Join(top, "out"), func(p string, d os.DirEntry, err error) error {
			if err != nil || d.Type()&os.ModeSymlink == 0 {
				return nil
			}
			if real, err := filepath.EvalSymlinks(p); err == nil && !strings.HasPrefix(real+"/", filepath.Join(top, "out")+"/") {
				t.Errorf("%s leads to %s", p, real)
			}
			return nil
		})
	})
}

// TestUntarBoundsAttributes: a sandbox cannot give a file here more attributes
// than fit the bounds, and those that are not the user's are named.
func TestUntarBoundsAttributes(t *testing.T) {
	many := map[string]string{}
	for i := range maxAttributes + 1 {
		many[attributePrefix+"user."+strings.Repeat("x", i+1)] = "v"
	}
	long := map[string]string{attributePrefix + "user.x": strings.Repeat("v", maxAttributeBytes)}
	for name, records := range map[string]map[string]string{"many": many, "long": long} {
		if _, _, err := extract(t, makeTar(t, dir("d"), tar.Header{Name: "d/f", PAXRecords: records})); err == nil || !strings.Contains(err.Error(), "extended attributes") {
			t.Errorf("%s: %v", name, err)
		}
	}
	foreign := map[string]string{attributePrefix + "security.capability": "v"}
	_, skipped, err := extract(t, makeTar(t, dir("d"), tar.Header{Name: "d/f", PAXRecords: foreign}))
	if want := []string{"d/f (attribute security.capability)"}; err != nil || !slices.Equal(skipped, want) {
		t.Errorf("skipped %q, %v; want %q", skipped, err, want)
	}
}

// TestWhatIsLeftOutIsBounded: a sandbox can send any number of names.
func TestWhatIsLeftOutIsBounded(t *testing.T) {
	entries := []tar.Header{dir("d")}
	for i := range maxSkipped + 7 {
		entries = append(entries, tar.Header{Name: "d/" + strings.Repeat("x", 5000) + strconv.Itoa(i), Typeflag: tar.TypeChar})
	}
	_, left, err := extract(t, makeTar(t, entries...))
	if err != nil || len(left) != maxSkipped+1 || left[maxSkipped] != "and 7 more" || len(left[0]) > maxSkippedName+len("…") {
		t.Errorf("%d names, the last %q, %v", len(left), left[len(left)-1], err)
	}
	x := transfer{tw: tar.NewWriter(io.Discard), strip: "d", as: "out", links: map[string]bool{}, linkBytes: maxLinkBytes - len("out/a")}
	if err := x.all(t.Context(), bytes.NewReader(makeTar(t, dir("d"), link("d/a", "x"), link("d/b", "x")))); err == nil {
		t.Error("links without end were taken")
	}
}
