package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/skerry-dev/skerry"
)

// PullOptions say how an image is pulled.
type PullOptions struct {
	// Insecure allows plain HTTP, to a registry on a loopback address only.
	Insecure bool
}

// headerTime is the default of Options.
const headerTime = time.Minute

// Pull takes an image from a registry into the store, under the name that it
// has there. Credentials are those of "docker login" on this machine.
func (s *Store) Pull(ctx context.Context, ref string, opt PullOptions, progress Progress) (Meta, error) {
	if err := skerry.ValidateImage("image", ref); err != nil {
		return Meta{}, err
	}
	named, err := name.ParseReference(ref)
	if err != nil {
		return Meta{}, &skerry.Error{
			Code: skerry.CodeBadRequest, Field: "image", Err: err,
			Message: fmt.Sprintf("%q is not an image reference", ref),
		}
	}
	if opt.Insecure && !isLoopback(named.Context().RegistryStr()) {
		return Meta{}, skerry.Invalid("image", "plain HTTP is allowed only to a registry on a loopback address")
	}
	progress.report("asking the registry", 0)
	transport := newRegistryTransport(opt.Insecure, s.opt.headerTime)
	defer transport.CloseIdleConnections()
	img, err := s.resolve(ctx, named, []remote.Option{
		remote.WithContext(ctx),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
		remote.WithTransport(transport),
		remote.WithAuthFromKeychain(authn.DefaultKeychain),
	})
	if err != nil {
		return Meta{}, pullError(ctx, ref, err)
	}
	o, err := checkImage(img)
	if err != nil {
		return Meta{}, pullError(ctx, ref, err)
	}
	m, err := s.store(ctx, o, named.Context().Name(), []string{named.Name()}, progress)
	if err != nil {
		return Meta{}, fmt.Errorf("pulling image %q: %w", ref, err)
	}
	return m, nil
}

// resolve asks a registry for an image, and refuses one that the policy does not
// let in. What is returned has the digest that was looked at.
func (s *Store) resolve(ctx context.Context, named name.Reference, options []remote.Option) (v1.Image, error) {
	found, err := remote.Get(named, options...)
	if err != nil {
		return nil, err
	}
	if len(found.Manifest) > maxManifest {
		return nil, invalidImage("its manifest is larger than %d bytes", maxManifest)
	}
	img, err := found.Image()
	if err != nil {
		return nil, err
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	if err := s.checkSigned(ctx, named.Context(), slices.Compact([]v1.Hash{found.Digest, digest}), options); err != nil {
		return nil, err
	}
	return img, nil
}

func isLoopback(registry string) bool {
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = registry
	}
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// pullError tells an image that is not there, or is none, from a registry that
// does not answer.
func pullError(ctx context.Context, ref string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var known *skerry.Error
	if errors.As(err, &known) {
		return fmt.Errorf("pulling image %q: %w", ref, err)
	}
	code, what := skerry.CodeUnavailable, "its registry cannot be reached"
	var answer *transport.Error
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusNotFound:
			code, what = skerry.CodeNotFound, "its registry does not have it"
		case http.StatusUnauthorized, http.StatusForbidden:
			code, what = skerry.CodeForbidden, "its registry does not allow reading it; see \"docker login\""
		}
	} else if !errors.As(err, new(*net.OpError)) && !errors.As(err, new(*url.Error)) {
		code, what = skerry.CodeImageInvalid, "it is not an image for this machine"
	}
	return &skerry.Error{Code: code, Field: "image", Message: fmt.Sprintf("image %q: %s", ref, what), Err: err}
}

// registryTransport refuses plain HTTP, which the registry client would fall
// back to by itself on private networks.
type registryTransport struct {
	*http.Transport
	insecure bool
}

func newRegistryTransport(insecure bool, headerTime time.Duration) *registryTransport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = headerTime
	return &registryTransport{Transport: t, insecure: insecure}
}

func (t *registryTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !(t.insecure && isLoopback(req.URL.Host)) {
		return nil, &net.OpError{Op: "dial", Net: "http", Err: errors.New("plain HTTP is not allowed")}
	}
	return t.Transport.RoundTrip(req)
}
