package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Resolve finds the stored image that a client means by ref: the default image
// (""), "name[:tag]", "name@sha256:…", or a digest alone. A digest may be that
// of the image file or of the OCI manifest that it was made from.
func (s *Store) Resolve(_ context.Context, ref string) (nodeapi.Image, error) {
	m, err := s.find(ref)
	if err != nil {
		return nodeapi.Image{}, err
	}
	img := nodeapi.Image{Digest: m.Digest, Runtimes: m.Runtimes, Env: m.Env}
	if m.Repository != "" {
		img.Name = m.Repository + "@" + m.Source
	}
	return img, nil
}

// find returns the image for a reference.
func (s *Store) find(ref string) (Meta, error) {
	if err := skerry.ValidateImage("image", ref); err != nil {
		return Meta{}, err
	}
	if ref == "" {
		return s.named(defaultRef, "the default image is not built: run \"sandboxd image build\" on the server")
	}
	repository, digest, ok := cutDigest(ref)
	if ok {
		return s.byDigest(ref, repository, digest)
	}
	key, err := refKey(ref)
	if err != nil {
		return Meta{}, err
	}
	return s.named(key, fmt.Sprintf("image %q is not in the image store: run \"sandboxd image pull %s\" on the server", ref, ref))
}

// named returns the image that a stored name stands for.
func (s *Store) named(key, missing string) (Meta, error) {
	r, err := readJSON[reference](s.refPath(key))
	if errors.Is(err, fs.ErrNotExist) {
		return Meta{}, &skerry.Error{Code: skerry.CodeNotFound, Field: "image", Message: missing}
	}
	if err != nil {
		return Meta{}, err
	}
	id, err := parseDigest(r.Digest)
	if err != nil {
		return Meta{}, fmt.Errorf("reading the name of an image: %w", err)
	}
	return readJSON[Meta](s.metaPath(id))
}

// byDigest returns the image whose file or manifest has a digest. If it is
// given a repository, the image must be from there.
func (s *Store) byDigest(ref, repository, digest string) (Meta, error) {
	if _, err := parseDigest(digest); err != nil {
		return Meta{}, err
	}
	list, err := s.List()
	if err != nil {
		return Meta{}, err
	}
	for _, l := range list {
		// The digest of an index of images is only in the name.
		if slices.Contains(l.Names, repository+"@"+digest) {
			return l.Meta, nil
		}
		if (l.Digest == digest || l.Source == digest) && l.isFrom(repository) {
			return l.Meta, nil
		}
	}
	return Meta{}, &skerry.Error{
		Code: skerry.CodeNotFound, Field: "image",
		Message: fmt.Sprintf("image %q is not in the image store: run \"sandboxd image pull\" with its name on the server", ref),
	}
}

// isFrom says whether the image came from a repository, perhaps as one of
// several.
func (l Listed) isFrom(repository string) bool {
	if repository == "" || repository == l.Repository {
		return true
	}
	return slices.ContainsFunc(l.Names, func(n string) bool {
		return strings.HasPrefix(n, repository+":") || strings.HasPrefix(n, repository+"@")
	})
}

// cutDigest splits "name@sha256:…" or "sha256:…"; the name is returned in the
// form that Meta.Repository has.
func cutDigest(ref string) (repository, digest string, ok bool) {
	before, after, found := strings.Cut(ref, "@")
	if !found {
		return "", ref, strings.HasPrefix(ref, "sha256:")
	}
	if repo, err := name.NewRepository(before); err == nil {
		return repo.Name(), after, true
	}
	// "name:tag@sha256:…": the digest decides.
	if tag, err := name.NewTag(before); err == nil {
		return tag.Repository.Name(), after, true
	}
	return before, after, true
}

// refKey returns the full form of "name[:tag]", under which it is stored.
func refKey(ref string) (string, error) {
	tag, err := name.NewTag(ref)
	if err != nil {
		return "", &skerry.Error{
			Code: skerry.CodeBadRequest, Field: "image", Err: err,
			Message: fmt.Sprintf("%q is not an image reference of the form name[:tag], name@sha256:… or sha256:…", ref),
		}
	}
	return tag.Name(), nil
}

// Remove forgets a name, or every name of the image if ref is a digest. The
// image itself goes with the next GC, when nothing uses it any more.
func (s *Store) Remove(ctx context.Context, ref string) error {
	held, err := lock(ctx, s.path("lock"))
	if err != nil {
		return fmt.Errorf("removing an image: %w", err)
	}
	defer held.Close()
	m, err := s.find(ref)
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		return skerry.Errorf(skerry.CodeNotFound, "there is no image %q; \"sandboxd image ls\" shows the images", ref)
	}
	if err != nil {
		return err
	}
	if _, _, ok := cutDigest(ref); ok {
		return s.removeNames(m.Digest)
	}
	key := defaultRef
	if ref != "" {
		if key, err = refKey(ref); err != nil {
			return err
		}
	}
	if err := os.Remove(s.refPath(key)); err != nil {
		return fmt.Errorf("removing image %q: %w", ref, err)
	}
	return nil
}

func (s *Store) removeNames(digest string) error {
	refs, err := s.references()
	if err != nil {
		return err
	}
	for _, r := range refs {
		if r.Digest != digest {
			continue
		}
		if err := os.Remove(s.refPath(r.Name)); err != nil {
			return fmt.Errorf("removing image %q: %w", r.Name, err)
		}
	}
	return nil
}
