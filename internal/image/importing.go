package image

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skerry-dev/skerry"
)

// Import takes an image from a file or directory into the store: a "docker
// save" tarball or an OCI layout, as a directory or in a tarball; tarballs may
// be gzipped. It is stored as ref, "name[:tag]"; a "docker save" tarball has a
// name of its own that is taken if ref is empty.
func (s *Store) Import(ctx context.Context, file, ref string, progress Progress) (Meta, error) {
	m, err := s.importFile(ctx, file, ref, progress)
	if err != nil {
		return Meta{}, fmt.Errorf("importing %s: %w", file, err)
	}
	return m, nil
}

func (s *Store) importFile(ctx context.Context, file, ref string, progress Progress) (Meta, error) {
	progress.report("reading the file", 0)
	info, err := os.Stat(file)
	if err != nil {
		return Meta{}, err
	}
	if info.IsDir() {
		return s.importLayout(ctx, file, ref, progress)
	}
	kind, err := tarKind(ctx, file)
	if err != nil {
		return Meta{}, err
	}
	if kind == kindDocker {
		return s.importDocker(ctx, file, ref, progress)
	}
	w, err := s.newWork(ctx, "import-"+rand.Text())
	if err != nil {
		return Meta{}, err
	}
	m, err := s.importLayoutTar(ctx, w, file, ref, progress)
	return m, errors.Join(err, w.Close())
}

type tarballKind int

const (
	kindDocker tarballKind = iota
	kindLayout
)

// maxManifest bounds the files of a tarball that are read into memory, which
// for real images have some kilobytes.
const maxManifest = 4 << 20

// tarKind tells a "docker save" tarball from an OCI layout. A tarball that is
// both, as new versions of docker write it, counts as the former: it has names.
func tarKind(ctx context.Context, file string) (tarballKind, error) {
	isLayout, isDocker := false, false
	err := eachInTar(ctx, file, func(h *tar.Header, _ io.Reader) error {
		name := path.Clean(h.Name)
		if name == "manifest.json" || name == "index.json" {
			if err := checkSmall(name, h); err != nil {
				return err
			}
			isDocker = isDocker || name == "manifest.json"
			isLayout = isLayout || name == "index.json"
		}
		return nil
	})
	switch {
	case err != nil:
		return 0, err
	case isDocker:
		return kindDocker, nil
	case isLayout:
		return kindLayout, nil
	}
	return 0, invalidImage("it is neither a \"docker save\" tarball nor an OCI layout: it has no manifest.json or index.json")
}

// eachInTar calls f with each entry of a tarball.
func eachInTar(ctx context.Context, file string, f func(*tar.Header, io.Reader) error) error {
	r, err := openTar(file)
	if err != nil {
		return err
	}
	defer r.Close()
	for tr := tar.NewReader(&contextReader{ctx, r}); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return invalidImage("it is not a tar archive: %w", err)
		}
		if err := f(h, tr); err != nil {
			return err
		}
	}
}

// openTar opens a tarball, gzipped or not.
func openTar(file string) (io.ReadCloser, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(f)
	if magic, err := r.Peek(2); err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
		return &openedTar{r, f}, nil // too short for a magic is too short for a tar
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		f.Close()
		return nil, invalidImage("it is not a gzip archive: %w", err)
	}
	return &openedTar{z, f}, nil
}

type openedTar struct {
	io.Reader
	file *os.File
}

func (o *openedTar) Close() error { return o.file.Close() }

// importDocker imports from a "docker save" tarball.
func (s *Store) importDocker(ctx context.Context, file, ref string, progress Progress) (Meta, error) {
	opener := func() (io.ReadCloser, error) { return openTar(file) }
	list, err := tarball.LoadManifest(opener)
	if err != nil {
		return Meta{}, invalidImage("its manifest.json cannot be read: %w", err)
	}
	if len(list) == 0 {
		return Meta{}, invalidImage("its manifest.json lists no image")
	}
	if err := checkDocker(ctx, file, list); err != nil {
		return Meta{}, err
	}
	var inside *name.Tag // which of several; nil for the only one
	if len(list) > 1 {
		if inside, err = chooseTag(list, ref); err != nil {
			return Meta{}, err
		}
	} else if ref == "" && len(list[0].RepoTags) > 0 {
		ref = list[0].RepoTags[0]
	}
	img, err := tarball.Image(opener, inside)
	if err != nil {
		return Meta{}, invalidImage("its image cannot be read: %w", err)
	}
	return s.storeAs(ctx, img, ref, progress)
}

// checkDocker refuses a tarball whose images' configurations, which are read
// into memory, are too large, or links to what may be.
func checkDocker(ctx context.Context, file string, list tarball.Manifest) error {
	configs := map[string]bool{}
	for _, d := range list {
		configs[path.Clean(d.Config)] = true
	}
	return eachInTar(ctx, file, func(h *tar.Header, _ io.Reader) error {
		if name := path.Clean(h.Name); configs[name] {
			return checkSmall(name, h)
		}
		return nil
	})
}

// checkSmall refuses a file of a tarball that must not be read into memory.
func checkSmall(name string, h *tar.Header) error {
	if h.Typeflag != tar.TypeReg {
		return invalidImage("%.200s is not a regular file", name)
	}
	if h.Size > maxManifest {
		return invalidImage("%.200s is larger than %d bytes", name, maxManifest)
	}
	return nil
}

func chooseTag(list tarball.Manifest, ref string) (*name.Tag, error) {
	tag, err := name.NewTag(ref)
	if err != nil {
		return nil, skerry.Invalid("name", "the tarball has %d images: give the name of one of them", len(list))
	}
	return &tag, nil
}

// layoutFile is what may be in an OCI layout.
var layoutFile = regexp.MustCompile(`^(oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})$`)

// importLayoutTar imports from an OCI layout in a tarball.
func (s *Store) importLayoutTar(ctx context.Context, w *work, file, ref string, progress Progress) (Meta, error) {
	dir := filepath.Join(w.dir, "layout")
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		return Meta{}, err
	}
	left := s.opt.Limits.withDefaults().Bytes
	err := eachInTar(ctx, file, func(h *tar.Header, r io.Reader) error {
		name := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || !layoutFile.MatchString(name) {
			return nil
		}
		if left -= h.Size; left < 0 {
			return invalidImage("the archive is larger than the limit")
		}
		return writeFrom(filepath.Join(dir, filepath.FromSlash(name)), r)
	})
	if err != nil {
		return Meta{}, err
	}
	return s.importLayout(ctx, dir, ref, progress)
}

func writeFrom(file string, r io.Reader) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// importLayout imports from the directory of an OCI layout.
func (s *Store) importLayout(ctx context.Context, dir, ref string, progress Progress) (Meta, error) {
	if err := smallFile(dir, "index.json"); err != nil {
		return Meta{}, err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return Meta{}, invalidImage("it is not an OCI layout: %w", err)
	}
	found, err := layoutDir(dir).imagesIn(index, ref, maxIndexDepth)
	if err != nil {
		return Meta{}, err
	}
	switch len(found) {
	case 0:
		return Meta{}, invalidImage("the layout has no image for linux/%s", runtime.GOARCH)
	case 1:
		return s.storeAs(ctx, found[0], ref, progress)
	}
	return Meta{}, skerry.Invalid("name", "the layout has %d images, but none with this name", len(found))
}

// maxIndexDepth is how deep indexes in indexes are looked into; real ones have
// two levels.
const maxIndexDepth = 4

// refName is the annotation that names an image in a layout.
const refName = "org.opencontainers.image.ref.name"

// layoutDir is the directory of an OCI layout.
type layoutDir string

// smallBlob refuses a blob that must not be read into memory, which the layout
// package does whatever size its descriptor tells.
func (l layoutDir) smallBlob(digest v1.Hash) error {
	return smallFile(string(l), filepath.Join("blobs", digest.Algorithm, digest.Hex))
}

func smallFile(dir, name string) error {
	info, err := os.Stat(filepath.Join(dir, name))
	switch {
	case err != nil:
		return invalidImage("it is not an OCI layout: %w", err)
	case !info.Mode().IsRegular() || info.Size() > maxManifest:
		return invalidImage("%s is not a file of at most %d bytes", name, maxManifest)
	}
	return nil
}

// imagesIn returns the images in an index that can run here. Where some are
// named as ref is, only those count.
func (l layoutDir) imagesIn(index v1.ImageIndex, ref string, depth int) ([]v1.Image, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, invalidImage("its index cannot be read: %w", err)
	}
	list := manifest.Manifests
	isNamed := func(d v1.Descriptor) bool { return ref != "" && d.Annotations[refName] == ref }
	if slices.ContainsFunc(list, isNamed) {
		list = slices.DeleteFunc(slices.Clone(list), func(d v1.Descriptor) bool { return !isNamed(d) })
	}
	var images []v1.Image
	for _, d := range list {
		found, err := l.imagesAt(index, d, ref, depth)
		if err != nil {
			return nil, err
		}
		if images = append(images, found...); len(images) > 1 {
			break
		}
	}
	return images, nil
}

func (l layoutDir) imagesAt(index v1.ImageIndex, d v1.Descriptor, ref string, depth int) ([]v1.Image, error) {
	switch {
	case d.MediaType.IsIndex() && depth > 0:
		if err := l.smallBlob(d.Digest); err != nil {
			return nil, err
		}
		inner, err := index.ImageIndex(d.Digest)
		if err != nil {
			return nil, invalidImage("its index %s cannot be read: %w", d.Digest, err)
		}
		return l.imagesIn(inner, ref, depth-1)
	case !isImage(d.MediaType) || !runsHere(d.Platform):
		return nil, nil
	}
	if err := l.smallBlob(d.Digest); err != nil {
		return nil, err
	}
	img, err := index.Image(d.Digest)
	if err != nil {
		return nil, invalidImage("its image %s cannot be read: %w", d.Digest, err)
	}
	manifest, err := img.Manifest()
	if err != nil {
		return nil, invalidImage("its image %s cannot be read: %w", d.Digest, err)
	}
	return []v1.Image{img}, l.smallBlob(manifest.Config.Digest)
}

func isImage(t types.MediaType) bool {
	return t == types.OCIManifestSchema1 || t == types.DockerManifestSchema2
}

func runsHere(p *v1.Platform) bool {
	return p == nil || (p.OS == "linux" && p.Architecture == runtime.GOARCH)
}

// storeAs stores an imported image under the name ref.
func (s *Store) storeAs(ctx context.Context, img v1.Image, ref string, progress Progress) (Meta, error) {
	if ref == "" {
		return Meta{}, skerry.Invalid("name", "the image has no name of its own: give it one")
	}
	if err := skerry.ValidateImage("name", ref); err != nil {
		return Meta{}, err
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		return Meta{}, skerry.Invalid("name", "%q does not have the form name[:tag]", ref)
	}
	if err := s.checkUnsigned(tag.Repository.Name()); err != nil {
		return Meta{}, err
	}
	o, err := checkImage(img)
	if err != nil {
		if skerry.CodeOf(err) != skerry.CodeImageInvalid {
			err = invalidImage("%w", err)
		}
		return Meta{}, err
	}
	return s.store(ctx, o, tag.Repository.Name(), []string{tag.Name()}, progress)
}
