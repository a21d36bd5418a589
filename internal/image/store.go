// Package image makes the images that sandboxes start from and keeps them.
//
// An image is one EROFS file, named by the SHA-256 of its bytes, read-only and
// shared by every sandbox on the machine. The default image is built from
// Debian packages and pinned runtimes (BuildDefault); any other comes from an
// OCI image (Pull, Import), whose layers are flattened into one tree.
//
// A store is a directory:
//
//	blobs/<sha256>.erofs   the images
//	meta/<sha256>.json     what is known of each: Meta
//	refs/<sha256>.json     a name and the image it stands for; the file is
//	                       named by the hash of the name
//	work/<key>/            a build in progress, with <key>.lock beside it
//	lock                   held while blobs, meta and refs change together
//
// Files appear under their final names whole and synced. A crash leaves at
// most a work folder whose lock nobody holds, or a blob that no reference
// names; GC removes both.
package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/atomicfile"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// Progress is told how far a long operation is: what it does now, and how much
// of the whole is done. It may be nil.
type Progress func(stage string, percent int)

func (p Progress) report(stage string, percent int) {
	if p != nil {
		p(stage, percent)
	}
}

// Options configures a Store.
type Options struct {
	// Dir is the store's directory; it is made if need be, for root alone:
	// images hold set-user-ID programs.
	Dir string
	// Mirror is the Debian archive that the default image is made from. If it
	// is empty, it is the one this machine uses if it runs Debian, else
	// http://deb.debian.org/debian.
	Mirror string
	// SecurityMirror is the archive of Debian's security updates. With Mirror
	// set and this empty, there are none in the image.
	SecurityMirror string
	// Limits bound OCI images.
	Limits Limits

	// headerTime bounds how long a registry may take to begin an answer.
	headerTime time.Duration
}

// Store keeps images in a directory. Several processes may use it at once.
type Store struct {
	opt Options
}

// Meta is what is known of a stored image.
type Meta struct {
	// Digest is "sha256:" and the hash of the EROFS file.
	Digest string `json:"digest"`
	// Repository is where an OCI image came from; "" for the default image.
	Repository string `json:"repository,omitempty"`
	// Source identifies what the image was made from: an OCI image's manifest
	// digest, or the hash of the default image's recipe.
	Source string `json:"source"`
	// Size is that of the EROFS file in bytes.
	Size      int64     `json:"size"`
	CreatedAt time.Time `json:"createdAt"`
	// Runtimes are those of the default image, the default one first.
	Runtimes []string          `json:"runtimes,omitempty"`
	Env      map[string]string `json:"env,omitempty"`
	// Xattrs are the extended attributes of its files, which gVisor cannot
	// read from EROFS: the guest sets them.
	Xattrs  wire.Xattrs `json:"xattrs,omitempty"`
	WorkDir string      `json:"workDir,omitempty"`
	User    string      `json:"user,omitempty"`
}

// reference is a name and the image that it stands for.
type reference struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}

// defaultRef is the name that stands for the default image. No reference of an
// OCI image, which always has a registry and a tag, can be equal to it.
const defaultRef = "default"

// Open opens the store at opt.Dir.
func Open(opt Options) (*Store, error) {
	if opt.Dir == "" {
		return nil, errors.New("opening the image store: no directory given")
	}
	if opt.headerTime == 0 {
		opt.headerTime = headerTime
	}
	s := &Store{opt: opt}
	for _, dir := range []string{"", "blobs", "meta", "refs", "work"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return nil, fmt.Errorf("opening the image store: %w", err)
		}
	}
	return s, nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.opt.Dir}, elem...)...)
}

func (s *Store) blobPath(hexDigest string) string { return s.path("blobs", hexDigest+".erofs") }
func (s *Store) metaPath(hexDigest string) string { return s.path("meta", hexDigest+".json") }

func (s *Store) refPath(name string) string {
	sum := sha256.Sum256([]byte(name))
	return s.path("refs", hex.EncodeToString(sum[:])+".json")
}

// Xattrs returns the extended attributes of an image's files.
func (s *Store) Xattrs(digest string) (wire.Xattrs, error) {
	id, err := parseDigest(digest)
	if err != nil {
		return nil, err
	}
	m, err := readJSON[Meta](s.metaPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, skerry.Errorf(skerry.CodeNotFound, "image %s is not in the image store", digest)
	}
	return m.Xattrs, err
}

// Path returns where the EROFS file of an image is.
func (s *Store) Path(digest string) (string, error) {
	id, err := parseDigest(digest)
	if err != nil {
		return "", err
	}
	path := s.blobPath(id)
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", skerry.Errorf(skerry.CodeNotFound, "image %s is not in the image store", digest)
		}
		return "", fmt.Errorf("finding image %s: %w", digest, err)
	}
	return path, nil
}

// parseDigest returns the hex digits of a "sha256:…" digest.
func parseDigest(digest string) (string, error) {
	id, ok := strings.CutPrefix(digest, "sha256:")
	if raw, err := hex.DecodeString(id); !ok || err != nil || len(raw) != sha256.Size || id != strings.ToLower(id) {
		return "", skerry.Invalid("image", "%q is not a digest of the form sha256:<64 hex digits>", digest)
	}
	return id, nil
}

// List returns every stored image, the newest first, with the names that stand
// for it.
func (s *Store) List() ([]Listed, error) {
	refs, err := s.references()
	if err != nil {
		return nil, err
	}
	metas, err := s.metas()
	if err != nil {
		return nil, err
	}
	var list []Listed
	for _, m := range metas {
		l := Listed{Meta: m}
		for _, r := range refs {
			if r.Digest == m.Digest {
				l.Names = append(l.Names, r.Name)
			}
		}
		slices.Sort(l.Names)
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b Listed) int {
		if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.Digest, b.Digest)
	})
	return list, nil
}

// Listed is an image in a listing.
type Listed struct {
	Meta
	// Names are the references to it; with none, GC removes it once it is out
	// of use.
	Names []string
}

func (s *Store) metas() ([]Meta, error) {
	return readAll[Meta](s.path("meta"))
}

func (s *Store) references() ([]reference, error) {
	return readAll[reference](s.path("refs"))
}

// readAll decodes every JSON file of a folder. A file that is removed
// meanwhile is left out.
func readAll[T any](dir string) ([]T, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing the image store: %w", err)
	}
	var all []T
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".json" {
			continue
		}
		v, err := readJSON[T](filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func readJSON[T any](path string) (T, error) {
	var v T
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &v)
	}
	if err != nil {
		return v, fmt.Errorf("reading %s: %w", path, err)
	}
	return v, nil
}

// writeJSON puts v into a file that appears whole or not at all.
func writeJSON(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.WriteDurable("", path, raw)
}

// add takes a packed image into the store and makes the names stand for it.
func (s *Store) add(ctx context.Context, packed string, m Meta, names ...string) (Meta, error) {
	sum, size, err := hashFile(packed)
	if err != nil {
		return Meta{}, fmt.Errorf("storing an image: %w", err)
	}
	m.Digest, m.Size, m.CreatedAt = "sha256:"+sum, size, time.Now().UTC()
	held, err := lock(ctx, s.path("lock"))
	if err != nil {
		return Meta{}, fmt.Errorf("storing an image: %w", err)
	}
	defer held.Close()
	if err := os.Chmod(packed, 0o400); err != nil {
		return Meta{}, fmt.Errorf("storing an image: %w", err)
	}
	if err := atomicfile.RenameDurable(packed, s.blobPath(sum)); err != nil {
		return Meta{}, fmt.Errorf("storing an image: %w", err)
	}
	if err := writeJSON(s.metaPath(sum), m); err != nil {
		return Meta{}, fmt.Errorf("storing an image: %w", err)
	}
	return m, s.setRefs(m.Digest, names)
}

// setRefs makes names stand for an image. The store's lock is held.
func (s *Store) setRefs(digest string, names []string) error {
	for _, name := range names {
		if err := writeJSON(s.refPath(name), reference{Name: name, Digest: digest}); err != nil {
			return fmt.Errorf("naming an image: %w", err)
		}
	}
	return nil
}

func hashFile(path string) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}
