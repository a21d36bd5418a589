package image

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skerry-dev/skerry"
)

// signer is a key and the file with its public half.
type signer struct {
	key  crypto.Signer
	file string
}

func newSigner(t *testing.T, key crypto.Signer, err error) signer {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pub")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return signer{key, file}
}

func (s signer) sign(t *testing.T, text []byte) []byte {
	t.Helper()
	digest, hash := sha256.Sum256(text), crypto.SHA256
	signed := digest[:]
	if _, is := s.key.(ed25519.PrivateKey); is {
		signed, hash = text, crypto.Hash(0)
	}
	value, err := s.key.Sign(rand.Reader, signed, hash)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// signedRegistry is a registry with images and signatures.
type signedRegistry struct {
	*testing.T
	host string
}

func newSignedRegistry(t *testing.T) *signedRegistry {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
	t.Cleanup(server.Close)
	return &signedRegistry{t, strings.TrimPrefix(server.URL, "http://")}
}

// put pushes an image of its own and returns its digest.
func (r *signedRegistry) put(repo string) v1.Hash {
	r.Helper()
	img := withConfig(r.T, image(r.T, nil), func(c *v1.ConfigFile) { c.Author = rand.Text() })
	r.write(repo+":v1", img)
	digest, err := img.Digest()
	if err != nil {
		r.Fatal(err)
	}
	return digest
}

func (r *signedRegistry) write(ref string, img v1.Image) {
	r.Helper()
	named, err := name.ParseReference(r.host + "/" + ref)
	if err == nil {
		err = remote.Write(named, img)
	}
	if err != nil {
		r.Fatal(err)
	}
}

func payloadFor(digest string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, digest)
}

// signSimple stores signatures as cosign does, of a payload about one digest under
// the tag of another.
func (r *signedRegistry) signSimple(repo string, at, about v1.Hash, by ...signer) {
	r.Helper()
	r.signPayload(repo, at, payloadFor(about.String()), by...)
}

func (r *signedRegistry) signPayload(repo string, at v1.Hash, payload []byte, by ...signer) {
	r.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for _, s := range by {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:       static.NewLayer(payload, simpleSigning),
			Annotations: map[string]string{signatureAnnotation: base64.StdEncoding.EncodeToString(s.sign(r.T, payload))},
		})
		if err != nil {
			r.Fatal(err)
		}
	}
	r.write(repo+":sha256-"+at.Hex+".sig", img)
}

// signBundle stores a signature as cosign 3 does.
func (r *signedRegistry) signBundle(repo string, digest v1.Hash, by signer) {
	r.Helper()
	r.attest(repo, digest, by, signPredicate, 0)
}

// attest stores a statement about an image as cosign 3 does, in a bundle of at
// least so many bytes.
func (r *signedRegistry) attest(repo string, digest v1.Hash, by signer, predicate string, size int) {
	r.Helper()
	statement := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],"predicateType":%q}`, digest.Hex, predicate)
	signed := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(inToto), inToto, len(statement), statement)
	bundle, err := json.Marshal(map[string]any{
		"mediaType": bundlePrefix + ".v0.3+json",
		"dsseEnvelope": map[string]any{
			"payload": statement, "payloadType": inToto, "signatures": []any{map[string]any{"sig": by.sign(r.T, signed)}},
		},
	})
	if err != nil {
		r.Fatal(err)
	}
	bundle = append(bundle, bytes.Repeat([]byte{' '}, max(size-len(bundle), 0))...)
	subject, err := name.NewDigest(r.host + "/" + repo + "@" + digest.String())
	if err != nil {
		r.Fatal(err)
	}
	about, err := remote.Head(subject)
	if err != nil {
		r.Fatal(err)
	}
	artifact := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), bundlePrefix+".v0.3+json")
	if artifact, err = mutate.AppendLayers(artifact, static.NewLayer(bundle, bundlePrefix+".v0.3+json")); err != nil {
		r.Fatal(err)
	}
	artifact = mutate.Subject(artifact, *about).(v1.Image)
	r.write(repo+":bundle", artifact)
}

func (s *Store) setPolicy(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(s.path(policyFile), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestSignedImages pulls images with and without the signatures that are asked for.
func TestSignedImages(t *testing.T) {
	s := newStore(t)
	r := newSignedRegistry(t)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ours := newSigner(t, p256, err)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	ed := newSigner(t, edKey, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	old := newSigner(t, rsaKey, err)
	p256, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	theirs := newSigner(t, p256, err)
	s.setPolicy(t, fmt.Sprintf(`{"default": {"deny": true}, "repositories": {%q: {"keys": [%q, %q, %q]}, %q: {"unsigned": true}, %q: {"deny": true}}}`,
		r.host+"/team", ours.file, ed.file, old.file, r.host+"/team/open", r.host+"/team/open/closed"))

	pull := func(repo, why string) {
		t.Helper()
		_, err := s.Pull(t.Context(), r.host+"/"+repo+":v1", PullOptions{Insecure: true}, nil)
		if why == "" {
			if err != nil {
				t.Errorf("%s: %v", repo, err)
			}
			return
		}
		if skerry.CodeOf(err) != skerry.CodeForbidden || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", repo, err, why)
		}
	}
	for _, signed := range []struct {
		repo string
		by   []signer
	}{
		{"team/ecdsa", []signer{ours}}, {"team/ed25519", []signer{ed}}, {"team/rsa", []signer{old}}, {"team/both", []signer{theirs, ours}},
	} {
		digest := r.put(signed.repo)
		r.signSimple(signed.repo, digest, digest, signed.by...)
		pull(signed.repo, "")
	}
	r.signBundle("team/bundle", r.put("team/bundle"), ours)
	pull("team/bundle", "")

	r.put("team/unsigned")
	pull("team/unsigned", "the image has no signature")
	digest := r.put("team/theirs")
	r.signSimple("team/theirs", digest, digest, theirs)
	pull("team/theirs", "none of the image's 1 signatures was made with a key")
	r.signBundle("team/theirs2", r.put("team/theirs2"), theirs)
	pull("team/theirs2", "none of the image's 1 signatures")
	// What the key says of an image, but not that it signs it.
	r.attest("team/attested", r.put("team/attested"), ours, "https://cosign.sigstore.dev/attestation/vuln/v1", 0)
	pull("team/attested", "the image has no signature")
	// A good signature of another image, moved.
	other := r.put("team/other")
	r.signSimple("team/moved", r.put("team/moved"), other, ours)
	pull("team/moved", "none of the image's 1 signatures")
	// A signature that is none, and a layer that is none.
	r.write("team/broken:sha256-"+r.put("team/broken").Hex+".sig", empty.Image)
	pull("team/broken", "the image has no signature")

	r.put("team/open/app")
	pull("team/open/app", "")
	r.put("team/open/closed/app")
	pull("team/open/closed/app", "it is denied")
	r.put("team2/app")
	pull("team2/app", "it is denied")
	wantClean(t, s)
	for _, text := range []string{``, `{}`, `{"default": {}}`, `{"default": {"deny": true, "unsigned": true}}`, `{"default": {"deny": true}, "more": 1}`, `{"default": {"unsigned": true}}{}`,
		`{"default": {"keys": ["relative"]}}`, `{"default": {"keys": ["/no/such/key"]}}`, `{"default": {"unsigned": true}, "repositories": {"a/*": {"deny": true}}}`} {
		s.setPolicy(t, text)
		if _, err := s.Pull(t.Context(), r.host+"/team/open/app:v1", PullOptions{Insecure: true}, nil); err == nil || !strings.Contains(err.Error(), "policy") {
			t.Errorf("under the policy %s: %v", text, err)
		}
	}
}

// TestSignedIndex pulls an image by an index that is signed, and by one of which
// the image is.
func TestSignedIndex(t *testing.T) {
	s := newStore(t)
	r := newSignedRegistry(t)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ours := newSigner(t, p256, err)
	s.setPolicy(t, fmt.Sprintf(`{"default": {"keys": [%q]}}`, ours.file))
	for _, signs := range []string{"index", "image"} {
		repo := "many/" + signs
		digest := r.put(repo)
		tag, err := name.NewTag(r.host + "/" + repo + ":v1")
		if err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(tag)
		if err != nil {
			t.Fatal(err)
		}
		index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
		if err := remote.WriteIndex(tag, index); err != nil {
			t.Fatal(err)
		}
		if signs == "index" {
			if digest, err = index.Digest(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Pull(t.Context(), tag.Name(), PullOptions{Insecure: true}, nil); skerry.CodeOf(err) != skerry.CodeForbidden {
			t.Errorf("before the %s is signed: %v", signs, err)
		}
		r.signSimple(repo, digest, digest, ours)
		if _, err := s.Pull(t.Context(), tag.Name(), PullOptions{Insecure: true}, nil); err != nil {
			t.Errorf("the %s is signed: %v", signs, err)
		}
	}
}

func TestPolicyRules(t *testing.T) {
	if _, err := parsePolicy([]byte(`{"default": {"unsigned": true}, "repositories": {"nginx": {"deny": true}}}`)); err == nil {
		t.Error("a rule that never holds was taken")
	}
	p, err := parsePolicy([]byte(`{"default": {"deny": true}, "repositories": {
		"docker.io/library": {"unsigned": true}, "docker.io": {"keys": ["/a"]}, "ghcr.io/acme/app": {"keys": ["/b"]}, "localhost:5000": {"unsigned": true}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := canonical("ｇｈｃｒ.io/acme/app"); got != "ghcr.io/acme/app" {
		t.Errorf("full-width letters: %s", got)
	}
	for ref, want := range map[string]string{
		"alpine": "unsigned", "docker.io/library/alpine": "unsigned", "docker.io/libraryx/alpine": "/a", "someone/app": "/a",
		"ghcr.io/acme/app": "/b", "ghcr.io/acme/app/sub": "/b", "ghcr.io/acme/application": "deny", "ghcr.io/acme": "deny", "localhost:5000/x": "unsigned",
		"registry-1.docker.io/library/alpine": "unsigned", "registry.hub.docker.com/someone/app": "/a",
		"GHCR.io/acme/app": "/b", "ghcr.io:443/acme/app": "/b", "ghcr.io:0443/acme/app": "/b", "ghcr.io./acme/app": "/b", "Ghcr.IO.:443/acme/app": "/b",
		"ghcr.io:8443/acme/app": "deny", "Registry-1.docker.io.:443/library/alpine": "unsigned",
	} {
		repo, err := name.NewRepository(ref)
		if err != nil {
			t.Fatal(err)
		}
		rule := p.ruleFor(repo.Name())
		got := strings.Join(rule.Keys, ",")
		if rule.Deny {
			got = "deny"
		} else if rule.Unsigned {
			got = "unsigned"
		}
		if got != want {
			t.Errorf("%s: %s, want %s", ref, got, want)
		}
	}
}

func TestWeakKeys(t *testing.T) {
	// Go makes no short key any more.
	weak := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), minRSA-2, 1), E: 65537}
	der, err := x509.MarshalPKIXPublicKey(weak)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseKey(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})); err == nil {
		t.Errorf("an RSA key of %d bits was taken", weak.N.BitLen())
	}
	if _, err := parseKey([]byte("key")); err == nil {
		t.Error("a file that is no key was taken")
	}
}

// TestPolicyHoldsForFiles imports an image under names that must be signed.
func TestPolicyHoldsForFiles(t *testing.T) {
	s := newStore(t)
	s.setPolicy(t, `{"default": {"unsigned": true}, "repositories": {"ghcr.io/acme": {"keys": ["/k"]}, "ghcr.io/no": {"deny": true}}}`)
	file := filepath.Join(t.TempDir(), "oci")
	p, err := layout.Write(file, empty.Index)
	if err == nil {
		err = p.AppendImage(image(t, nil))
	}
	if err != nil {
		t.Fatal(err)
	}
	for ref, code := range map[string]skerry.Code{"ghcr.io/acme/app:1": skerry.CodeForbidden, "ghcr.io/no/app:1": skerry.CodeForbidden, "mine:1": ""} {
		_, err := s.Import(t.Context(), file, ref, nil)
		if code == "" && err != nil || code != "" && skerry.CodeOf(err) != code {
			t.Errorf("import as %s: %v", ref, err)
		}
	}
}

func FuzzBundle(f *testing.F) {
	f.Add([]byte(`{"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AA=="}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, s := range parseBundle(b) {
			if !strings.HasPrefix(string(s.signed), "DSSEv1 ") {
				t.Errorf("signed is %q", s.signed)
			}
		}
	})
}

// TestImageBounds: images of as many layers, and names of as many bytes, as may be.
func TestImageBounds(t *testing.T) {
	s := newStore(t)
	img := image(t, nil)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for len(layers) < maxLayers {
		layers = append(layers, layers[0])
	}
	if img, err = mutate.AppendLayers(empty.Image, layers...); err != nil {
		t.Fatal(err)
	}
	full := withConfig(t, img, func(c *v1.ConfigFile) { c.OS, c.Architecture = "linux", runtime.GOARCH })
	if _, err := checkImage(full); err != nil {
		t.Errorf("%d layers: %v", maxLayers, err)
	}
	if img, err = mutate.AppendLayers(full, layers[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := checkImage(img); skerry.CodeOf(err) != skerry.CodeImageInvalid {
		t.Errorf("%d layers: %v", maxLayers+1, err)
	}
	for n, code := range map[int]skerry.Code{skerry.MaxEnv: "", skerry.MaxEnv + 1: skerry.CodeImageInvalid} {
		env := withConfig(t, full, func(c *v1.ConfigFile) { c.Config.Env = slices.Repeat([]string{"A=b"}, n) })
		if _, err := checkImage(env); code == "" && err != nil || code != "" && skerry.CodeOf(err) != code {
			t.Errorf("%d variables: %v", n, err)
		}
	}
	if _, err := s.Pull(t.Context(), strings.Repeat("a", skerry.MaxImageReference+1), PullOptions{}, nil); skerry.CodeOf(err) != skerry.CodeBadRequest {
		t.Errorf("a reference of %d bytes: %v", skerry.MaxImageReference+1, err)
	}
	s.setPolicy(t, `{"default": {"unsigned": true}, "repositories": {}}`+strings.Repeat(" ", maxPolicy))
	if _, err := s.ruleFor("a.example/b"); err == nil {
		t.Error("a policy that is too large was read")
	}
}
