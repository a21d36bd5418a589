package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
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

// headerTime bounds how long a registry may take to begin an answer.
const headerTime = time.Minute

// Pull takes an image from a registry into the store, under the name that it
// has there. Credentials are those of "docker login" on this machine.
func (s *Store) Pull(ctx context.Context, ref string, opt PullOptions, progress Progress) (Meta, error) {
	if len(ref) > maxReference {
		return Meta{}, skerry.Invalid("image", "the reference is longer than %d bytes", maxReference)
	}
	named, err := name.ParseReference(ref)
	if err != nil {
		return Meta{}, &skerry.Error{
			Code: skerry.CodeBadRequest, Field: "image", Err: err,
			Message: fmt.Sprintf("%q is not an image reference", ref),
		}
	}
	if opt.Insecure && !isLoopback(named.Context().RegistryStr()) {
		return Meta{}, skerry.Invalid("image", "plain HTTP is allowed to a registry on a loopback address only")
	}
	progress.report("asking the registry", 0)
	transport := newRegistryTransport(opt.Insecure)
	defer transport.CloseIdleConnections()
	img, err := remote.Image(named,
		remote.WithContext(ctx),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
		remote.WithTransport(transport),
		remote.WithAuthFromKeychain(authn.DefaultKeychain))
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
	code, what := skerry.CodeUnavailable, "its registry cannot be asked"
	var answer *transport.Error
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusNotFound:
			code, what = skerry.CodeNotFound, "its registry does not have it"
		case http.StatusUnauthorized, http.StatusForbidden:
			code, what = skerry.CodeForbidden, "its registry does not allow it to be read; see \"docker login\""
		}
	} else if !errors.As(err, new(*net.OpError)) {
		code, what = skerry.CodeImageInvalid, "what its registry has is not an image for this machine"
	}
	return &skerry.Error{Code: code, Field: "image", Message: fmt.Sprintf("image %q: %s", ref, what), Err: err}
}

// registryTransport refuses plain HTTP, which the registry client would fall
// back to by itself on private networks.
type registryTransport struct {
	*http.Transport
	insecure bool
}

func newRegistryTransport(insecure bool) *registryTransport {
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
