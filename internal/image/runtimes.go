package image

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// runtimesDir is where the runtimes are in the default image.
const runtimesDir = "vercel/runtimes"

// installRuntimes puts node and Python's tools into root.
func installRuntimes(ctx context.Context, w *work, r recipe, root string, progress Progress) error {
	if err := os.MkdirAll(filepath.Join(root, runtimesDir), 0o755); err != nil {
		return err
	}
	tree, err := os.OpenRoot(filepath.Join(root, runtimesDir))
	if err != nil {
		return err
	}
	defer tree.Close()
	in := &installer{registry: newPackageRegistry(), recipe: r, tree: tree, download: filepath.Join(w.dir, "download")}
	for i, major := range []string{"24", "26", "22"} {
		progress.report("installing node "+major, 60+6*i)
		if err := in.node(ctx, major); err != nil {
			return fmt.Errorf("node %s: %w", major, err)
		}
	}
	progress.report("installing uv", 80)
	if err := in.python(ctx); err != nil {
		return fmt.Errorf("python: %w", err)
	}
	return nil
}

// installer unpacks pinned packages into the folder of the runtimes.
type installer struct {
	registry *packageRegistry
	recipe   recipe
	tree     *os.Root
	// download is the file that each package is downloaded to in turn.
	download string
}

// node installs node with its npm and with pnpm, laid out as node's own
// distribution is: bin and lib/node_modules.
func (in *installer) node(ctx context.Context, major string) error {
	dir := "node" + major
	modules := dir + "/lib/node_modules/"
	// node-gyp downloads the headers of node that it compiles against, and does
	// not look at those in include.
	packages := []struct {
		role, to string
		skip     []string
	}{
		{dir + "-" + in.recipe.Arch, dir, []string{"include/", "share/", "CHANGELOG.md", "README.md", "package.json"}},
		{"npm" + major, modules + "npm", []string{"docs/", "man/"}},
		{"pnpm", modules + "pnpm", nil},
	}
	for _, p := range packages {
		pin, err := in.recipe.Pins.npm(p.role)
		if err != nil {
			return err
		}
		if err := in.registry.fetchNPM(ctx, pin, in.download); err != nil {
			return err
		}
		if err := in.unpackNPM(p.to, p.skip); err != nil {
			return fmt.Errorf("unpacking npm package %s: %w", pin.Name, err)
		}
	}
	for name, script := range map[string]string{
		"npm": "npm/bin/npm-cli.js", "npx": "npm/bin/npx-cli.js", "pnpm": "pnpm/bin/pnpm.mjs", "pnpx": "pnpm/bin/pnpx.mjs",
	} {
		if err := in.tree.Chmod(modules+script, 0o755); err != nil {
			return err
		}
		if err := in.tree.Symlink("../lib/node_modules/"+script, dir+"/bin/"+name); err != nil {
			return err
		}
	}
	return nil
}

// unpackNPM unpacks the downloaded tarball, whose files are all in one folder,
// into the folder to.
func (in *installer) unpackNPM(to string, skip []string) error {
	f, err := os.Open(in.download)
	if err != nil {
		return err
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		_, name, _ := strings.Cut(h.Name, "/")
		if h.Typeflag != tar.TypeReg || startsWithAny(name, skip) {
			continue
		}
		if err := in.file(path.Join(to, name), tr, h.FileInfo().Mode()); err != nil {
			return err
		}
	}
}

func startsWithAny(s string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// file writes a file that everyone may read, and run if its owner may.
func (in *installer) file(name string, from io.Reader, mode os.FileMode) error {
	perm := os.FileMode(0o644)
	if mode&0o100 != 0 {
		perm = 0o755
	}
	if err := in.tree.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := in.tree.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// python makes the folder of the Python runtime: links to Debian's Python, and
// uv.
func (in *installer) python(ctx context.Context) error {
	if err := in.tree.MkdirAll("python/bin", 0o755); err != nil {
		return err
	}
	for name, target := range map[string]string{
		"python": "python3", "python3": "/usr/bin/python3", "python3.13": "/usr/bin/python3.13",
		"pip": "/usr/bin/pip3", "pip3": "/usr/bin/pip3",
	} {
		if err := in.tree.Symlink(target, "python/bin/"+name); err != nil {
			return err
		}
	}
	pin, err := in.recipe.Pins.pypi("uv-" + in.recipe.Arch)
	if err != nil {
		return err
	}
	if err := in.registry.fetchPyPI(ctx, pin, in.download); err != nil {
		return err
	}
	if err := in.unpackScripts("python/bin"); err != nil {
		return fmt.Errorf("unpacking %s: %w", pin.File, err)
	}
	return nil
}

// unpackScripts unpacks the programs of the downloaded wheel.
func (in *installer) unpackScripts(to string) error {
	wheel, err := zip.OpenReader(in.download)
	if err != nil {
		return err
	}
	defer wheel.Close()
	for _, f := range wheel.File {
		dir, name := path.Split(f.Name)
		if !strings.HasSuffix(dir, ".data/scripts/") || name == "" {
			continue
		}
		if err := in.script(f, path.Join(to, name)); err != nil {
			return err
		}
	}
	return nil
}

func (in *installer) script(f *zip.File, name string) error {
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	return in.file(name, r, 0o755)
}
