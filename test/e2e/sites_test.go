package e2e

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
)

// sites is what the lab's web servers answer: for some hosts what git, pip and
// npm fetch, to those who bring the secret of the rules, and for the others what
// the request looked like.
func (l *lab) sites() http.Handler {
	special := map[string]http.Handler{
		"git.rules.test":  http.FileServer(http.Dir(l.repository())),
		"pypi.rules.test": pythonIndex(l.wheel()),
		"npm.rules.test":  npmRegistry(l.tarball()),
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		site, ok := special[r.Host]
		switch {
		case !ok:
			l.answer(w, r)
		case !l.open && r.Header.Get("Authorization") != "Bearer brokered":
			http.Error(w, "no secret", http.StatusUnauthorized)
		default:
			site.ServeHTTP(w, r)
		}
	})
}

// repository makes one that git can clone from plain files.
func (l *lab) repository() string {
	l.t.Helper()
	dir := l.t.TempDir()
	bare := filepath.Join(dir, "repo.git")
	for _, args := range [][]string{
		{"init", "-q", "--bare", "-b", "main", bare},
		{"-C", bare, "fast-import", "--quiet"},
		{"-C", bare, "update-server-info"},
	} {
		git := exec.Command("git", args...)
		git.Stdin = strings.NewReader("commit refs/heads/main\ncommitter lab <lab@example.com> 1700000000 +0000\ndata 3\nlab\nM 644 inline file\ndata 6\ncloned\n")
		if out, err := git.CombinedOutput(); err != nil {
			l.t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	return dir
}

// wheel is a Python package with nothing but a line.
func (l *lab) wheel() []byte {
	l.t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range [][2]string{
		{"lab_package.py", "print('from the index')\n"},
		{"lab_package-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: lab-package\nVersion: 1.0\n"},
		{"lab_package-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{"lab_package-1.0.dist-info/RECORD", "lab_package.py,,\nlab_package-1.0.dist-info/METADATA,,\nlab_package-1.0.dist-info/WHEEL,,\nlab_package-1.0.dist-info/RECORD,,\n"},
	} {
		w, err := z.Create(f[0])
		if err == nil {
			_, err = w.Write([]byte(f[1]))
		}
		if err != nil {
			l.t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		l.t.Fatal(err)
	}
	return b.Bytes()
}

func pythonIndex(wheel []byte) http.Handler {
	const file = "lab_package-1.0-py3-none-any.whl"
	mux := http.NewServeMux()
	mux.HandleFunc("/simple/lab-package/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<!DOCTYPE html><html><body><a href="/files/%s">%s</a></body></html>`, file, file)
	})
	mux.HandleFunc("/files/"+file, func(w http.ResponseWriter, _ *http.Request) { w.Write(wheel) })
	return mux
}

// tarball is an npm package.
func (l *lab) tarball() []byte {
	l.t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	archive := tar.NewWriter(z)
	for _, f := range [][2]string{
		{"package/package.json", `{"name":"lab-package","version":"1.0.0","main":"index.js"}`},
		{"package/index.js", "console.log('from the registry')\n"},
	} {
		err := archive.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1]))})
		if err == nil {
			_, err = archive.Write([]byte(f[1]))
		}
		if err != nil {
			l.t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		l.t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		l.t.Fatal(err)
	}
	return b.Bytes()
}

func npmRegistry(tarball []byte) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/lab-package", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{
			"name": "lab-package", "dist-tags": map[string]string{"latest": "1.0.0"},
			"versions": map[string]any{"1.0.0": map[string]any{
				"name": "lab-package", "version": "1.0.0", "dist": map[string]string{"tarball": "https://npm.rules.test/lab-package-1.0.0.tgz"},
			}},
		})
	})
	mux.HandleFunc("/lab-package-1.0.0.tgz", func(w http.ResponseWriter, _ *http.Request) { w.Write(tarball) })
	return mux
}
