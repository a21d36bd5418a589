package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// maxLayers is twice what container engines allow.
const maxLayers = 256

// invalidImage is the error for something that is not an image that can run
// here.
func invalidImage(format string, args ...any) error {
	e := skerry.Errorf(skerry.CodeImageInvalid, format, args...)
	e.Field = "image"
	return e
}

// ociImage is an OCI image whose manifest and configuration were checked
// against their digests.
type ociImage struct {
	v1.Image
	digest v1.Hash
	config *v1.ConfigFile
	layers []v1.Layer
}

// checkImage reads an image's manifest and configuration. What breaks a rule is
// CodeImageInvalid; other errors are from reading.
func checkImage(img v1.Image) (*ociImage, error) {
	digest, err := img.Digest()
	if err != nil {
		return nil, fmt.Errorf("reading the image's manifest: %w", err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		return nil, fmt.Errorf("reading the image's manifest: %w", err)
	}
	if len(raw) > maxManifest {
		return nil, invalidImage("its manifest is larger than %d bytes", maxManifest)
	}
	if !isHash(digest, raw) {
		return nil, invalidImage("its manifest does not have the digest %s", digest)
	}
	manifest, err := img.Manifest()
	if err != nil {
		return nil, invalidImage("its manifest cannot be parsed: %w", err)
	}
	if size := manifest.Config.Size; size < 0 || size > maxManifest {
		return nil, invalidImage("its configuration has %d bytes; at most %d are allowed", size, maxManifest)
	}
	rawConfig, err := img.RawConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	if !isHash(manifest.Config.Digest, rawConfig) {
		return nil, invalidImage("its configuration does not have the digest %s", manifest.Config.Digest)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, invalidImage("its configuration cannot be parsed: %w", err)
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("reading the image's layers: %w", err)
	}
	o := &ociImage{Image: img, digest: digest, config: config, layers: layers}
	return o, o.check()
}

func isHash(want v1.Hash, raw []byte) bool {
	sum := sha256.Sum256(raw)
	return want.Algorithm == "sha256" && want.Hex == hex.EncodeToString(sum[:])
}

// check refuses what is no file system for this machine: a chart, a signature,
// an image for another architecture.
func (o *ociImage) check() error {
	c := o.config
	if len(o.layers) == 0 || len(o.layers) != len(c.RootFS.DiffIDs) {
		return invalidImage("it is not a container image: it has %d layers and %d layer hashes", len(o.layers), len(c.RootFS.DiffIDs))
	}
	if len(o.layers) > maxLayers {
		return invalidImage("it has more than %d layers", maxLayers)
	}
	if (c.OS != "" && c.OS != "linux") || (c.Architecture != "" && c.Architecture != runtime.GOARCH) {
		return invalidImage("it is for %.50s/%.50s, this machine is linux/%s", c.OS, c.Architecture, runtime.GOARCH)
	}
	if len(c.Config.Env) > skerry.MaxEnv {
		return invalidImage("it sets more than %d environment variables, the maximum", skerry.MaxEnv)
	}
	return nil
}

func (o *ociImage) meta(repository string) Meta {
	env := map[string]string{}
	for _, kv := range o.config.Config.Env {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			env[k] = v
		}
	}
	return Meta{
		Repository: repository, Source: o.digest.String(),
		Env: env, WorkDir: o.config.Config.WorkingDir, User: o.config.Config.User,
	}
}

// store flattens and packs an image, unless the store has it already, and
// makes the names stand for it.
func (s *Store) store(ctx context.Context, o *ociImage, repository string, names []string, progress Progress) (Meta, error) {
	w, err := s.newWork(ctx, "oci-"+o.digest.Hex)
	if err != nil {
		return Meta{}, err
	}
	m, err := s.flattenAndAdd(ctx, w, o, repository, names, progress)
	if closeErr := w.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("cleaning up after image %s: %w", o.digest, closeErr)
	}
	return m, err
}

func (s *Store) flattenAndAdd(
	ctx context.Context, w *work, o *ociImage, repository string, names []string, progress Progress,
) (Meta, error) {
	if m, ok, err := s.reuse(ctx, o.digest.String(), names...); ok || err != nil {
		progress.report("ready", 100)
		return m, err
	}
	root := filepath.Join(w.dir, "root")
	if err := flatten(ctx, o, root, filepath.Join(w.dir, "layer.tar"), s.opt.Limits.withDefaults(), progress); err != nil {
		return Meta{}, err
	}
	progress.report("packing", 90)
	packed := filepath.Join(w.dir, "image.erofs")
	meta := o.meta(repository)
	var err error
	if meta.Xattrs, err = readXattrs(root); err != nil {
		return Meta{}, err
	}
	if err := BuildEROFS(ctx, root, packed); err != nil {
		return Meta{}, err
	}
	progress.report("storing", 97)
	m, err := s.add(ctx, packed, meta, names...)
	if err != nil {
		return Meta{}, err
	}
	progress.report("ready", 100)
	return m, nil
}

// flatten unpacks an image's layers into root. Each is first written to the
// file scratch and checked, so nothing of a layer that was tampered with is
// unpacked.
func flatten(ctx context.Context, o *ociImage, root, scratch string, limits Limits, progress Progress) (err error) {
	t, err := newTree(root)
	if err != nil {
		return fmt.Errorf("making the tree of an image: %w", err)
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	u := &unpacker{tree: t, limits: limits}
	left := limits.Bytes
	for i, layer := range o.layers {
		diffID := o.config.RootFS.DiffIDs[i]
		progress.report(fmt.Sprintf("unpacking layer %d of %d", i+1, len(o.layers)), i*90/len(o.layers))
		n, err := fetchLayer(ctx, layer, diffID, scratch, left)
		if err != nil {
			return err
		}
		left -= n
		if err := unpackFile(ctx, u, diffID.String(), scratch); err != nil {
			return err
		}
	}
	return nil
}

func unpackFile(ctx context.Context, u *unpacker, layer, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("unpacking layer %s: %w", layer, err)
	}
	return errors.Join(u.unpack(ctx, layer, f), f.Close(), os.Remove(file))
}

// fetchLayer writes a layer's tar archive to file and checks its hash. It
// returns the archive's size, which must not be more than limit.
func fetchLayer(ctx context.Context, layer v1.Layer, diffID v1.Hash, file string, limit int64) (int64, error) {
	r, err := layer.Uncompressed()
	if err != nil {
		return 0, layerError(ctx, diffID, err)
	}
	defer r.Close()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, fmt.Errorf("fetching layer %s: %w", diffID, err)
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(&contextReader{ctx, r}, limit+1))
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	switch {
	case err != nil:
		return 0, layerError(ctx, diffID, err)
	case n > limit:
		return 0, invalidImage("layer %s: the image is larger than the limit", diffID)
	case diffID.Algorithm != "sha256" || hex.EncodeToString(sum.Sum(nil)) != diffID.Hex:
		return 0, invalidImage("layer %s: its contents do not have this hash", diffID)
	}
	return n, nil
}

func layerError(ctx context.Context, diffID v1.Hash, err error) error {
	var network net.Error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return skerry.Errorf(skerry.CodeDiskFull, "fetching layer %s: %w", diffID, err)
	case errors.As(err, &network):
		return skerry.Errorf(skerry.CodeUnavailable, "fetching layer %s: the registry closed the connection: %w", diffID, err)
	case errors.As(err, new(*os.PathError)): // of this machine
		return fmt.Errorf("fetching layer %s: %w", diffID, err)
	}
	return invalidImage("layer %s cannot be read: %w", diffID, err)
}
