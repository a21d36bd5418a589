package main

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// manifest has some of the usual dependencies of a web application, which bring
// about 350 packages.
const manifest = `{"name": "app", "version": "1.0.0", "private": true, "dependencies": {
"express": "5.1.0", "react": "19.1.0", "react-dom": "19.1.0", "typescript": "5.8.3", "webpack": "5.99.9", "eslint": "9.28.0",
"@babel/core": "7.27.4", "@babel/preset-env": "7.27.2", "lodash": "4.17.21", "date-fns": "4.1.0", "axios": "1.9.0"}}`

// requirements bring about 50 wheels, a few of them with compiled code.
const requirements = "django==5.2.3\nflask==3.1.1\nrequests==2.32.4\nsqlalchemy==2.0.41\nnumpy==2.3.0\nrich==14.0.0\nfastapi==0.115.12\npytest==8.4.0\nblack==25.1.0\nmypy==1.16.0\nipython==9.3.0\n"

// inputs makes what the workloads read in the tree's /work, and copies it to the sandbox.
func (b *bench) inputs(ctx context.Context) error {
	work := filepath.Join(b.tree, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	for _, input := range []struct {
		name string
		make func(ctx context.Context, work string) error
	}{{"npm-cache", packages}, {"wheels", wheels}, {"repo.git", repository}, {"tree.tar", archive}} {
		if !b.uses(input.name) {
			continue
		}
		if err := input.make(ctx, work); err != nil {
			return err
		}
	}
	if _, err := b.sb.CopyTo(ctx, work, "/tmp/inputs"); err != nil {
		return err
	}
	_, err := b.inside(ctx, []string{"sh", "-c", "cp -a /tmp/inputs /work; chown -R root:root /work; rm -r /tmp/inputs"})
	return err
}

// uses reports whether a workload that is measured reads what the input makes.
func (b *bench) uses(input string) bool {
	return slices.ContainsFunc(workloads, func(w workload) bool { return b.wants(w.name) && strings.Contains(w.prepare+w.run, input) })
}

// packages fills a cache of npm's with what the manifest needs.
func packages(ctx context.Context, work string) error {
	dir := filepath.Join(work, "npm")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "package.json"), []byte(manifest), 0o644); err != nil {
		return err
	}
	cache := filepath.Join(work, "npm-cache")
	// The cache has the tarballs by their addresses, so the lock file must have these.
	if err := output(ctx, dir, "npm", "install", "--cache", cache, "--omit-lockfile-registry-resolved=false", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(filepath.Join(dir, "node_modules")), os.RemoveAll(filepath.Join(cache, "_logs")))
}

// wheels gets the packages for the image's Python.
func wheels(ctx context.Context, work string) error {
	dir := filepath.Join(work, "wheels")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "requirements.txt"), []byte(requirements), 0o644); err != nil {
		return err
	}
	return output(ctx, dir, "python3", "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary=:all:", "--python-version=3.13",
		"--platform=manylinux_2_28_x86_64", "--platform=manylinux2014_x86_64", "-d", ".", "-r", "requirements.txt")
}

const (
	repoFiles   = 20_000
	repoCommits = 50
	treeFiles   = 50_000
)

// content is a file of some kilobytes that compresses like source text.
func content(random *rand.Rand) []byte {
	var b []byte
	for range 20 + random.IntN(60) {
		b = fmt.Appendf(b, "func name%d(a int) int { return a * %d } // %x\n", random.IntN(1000), random.IntN(100), random.Uint64())
	}
	return b
}

// repository makes a bare repository: the first commit has all files, and each other
// changes a part of them.
func repository(ctx context.Context, work string) error {
	dir := filepath.Join(work, "repo.git")
	if err := output(ctx, work, "git", "init", "-q", "--bare", "-b", "main", dir); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "git", "-C", dir, "fast-import", "--quiet")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	w := bufio.NewWriter(in)
	random := rand.New(rand.NewPCG(1, 1))
	for commit := range repoCommits {
		message := fmt.Sprintf("Commit %d", commit)
		fmt.Fprintf(w, "commit refs/heads/main\ncommitter Bench <bench@example.com> %d +0000\ndata %d\n%s\n", 1700000000+commit*3600, len(message), message)
		step := 1
		if commit > 0 {
			step = 100
		}
		for i := 0; i < repoFiles; i += step {
			n := i
			if step > 1 {
				n = random.IntN(repoFiles)
			}
			data := content(random)
			fmt.Fprintf(w, "M 100644 inline dir%d/sub%d/file%d.go\ndata %d\n%s\n", n%40, n%400/40, n, len(data), data)
		}
	}
	err = errors.Join(w.Flush(), in.Close(), cmd.Wait())
	if err != nil {
		return fmt.Errorf("git fast-import: %w", err)
	}
	return nil
}

// archive makes a tar file of many small files.
func archive(_ context.Context, work string) (err error) {
	f, err := os.Create(filepath.Join(work, "tree.tar"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	tw := tar.NewWriter(w)
	random := rand.New(rand.NewPCG(2, 2))
	for i := range treeFiles {
		data := content(random)
		h := &tar.Header{Name: fmt.Sprintf("tree/dir%d/sub%d/file%d", i%50, i%1000/50, i), Mode: 0o644, Size: int64(len(data)), Format: tar.FormatUSTAR}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := tw.Write(data); err != nil {
			return err
		}
	}
	return errors.Join(tw.Close(), w.Flush())
}
