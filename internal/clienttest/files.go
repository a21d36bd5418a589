package clienttest

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/skerry-dev/skerry"
)

// write extracts into the sandbox's working directory, wherever in the host's
// tree the entry's name is.
func (s *Server) write(w http.ResponseWriter, r *http.Request) {
	if err := extract(s.workDir(r.PathValue("id")), r.Header.Get("X-Cwd"), r.Body); err != nil {
		Refuse(w, http.StatusBadRequest, skerry.CodeBadRequest, err.Error())
		return
	}
	answer(w, struct{}{})
}

func extract(within, dir string, body io.Reader) error {
	zr, err := gzip.NewReader(body)
	if err != nil {
		return err
	}
	tr := tar.NewReader(zr)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, hdr.Name)
		if !strings.HasPrefix(path, within) {
			return fmt.Errorf("%s is outside the writable area", path)
		}
		err = os.MkdirAll(filepath.Dir(path), 0o755)
		switch hdr.Typeflag {
		case tar.TypeDir:
			err = errors.Join(err, os.MkdirAll(path, hdr.FileInfo().Mode().Perm()))
		case tar.TypeSymlink:
			err = errors.Join(err, os.Symlink(hdr.Linkname, path))
		default:
			b, readErr := io.ReadAll(tr)
			err = errors.Join(err, readErr, os.WriteFile(path, b, hdr.FileInfo().Mode().Perm()))
		}
		if err != nil {
			return err
		}
	}
}

func (s *Server) pathOf(r *http.Request) string {
	var body struct {
		Path string `json:"path"`
	}
	json.NewDecoder(r.Body).Decode(&body)
	if filepath.IsAbs(body.Path) {
		return body.Path
	}
	return filepath.Join(s.workDir(r.PathValue("id")), body.Path)
}

func (s *Server) read(w http.ResponseWriter, r *http.Request) {
	f, err := os.Open(s.pathOf(r))
	if err != nil {
		Refuse(w, http.StatusNotFound, skerry.CodeNotFound, "there is no such file")
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	io.Copy(w, f)
}

func (s *Server) mkdir(w http.ResponseWriter, r *http.Request) {
	if err := os.Mkdir(s.pathOf(r), 0o755); err != nil {
		Refuse(w, http.StatusBadRequest, skerry.CodeBadRequest, err.Error())
		return
	}
	answer(w, struct{}{})
}
