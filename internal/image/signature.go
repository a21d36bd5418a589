package image

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Signatures are those that cosign makes with a key. It stores them in the image's
// repository in two forms, of which either will do:
//
//   - an image tagged sha256-<digest>.sig, each layer of which is a payload that
//     names the digest (simple signing); its signature is an annotation;
//   - since version 3 a bundle: an artifact that refers to the image, whose layer
//     has a DSSE envelope with an in-toto statement about the digest.
//
// Certificates, transparency logs and time stamps are not looked at: a key of the
// operator's is what is trusted.

const (
	simpleSigning       = "application/vnd.dev.cosign.simplesigning.v1+json"
	signatureAnnotation = "dev.cosignproject.cosign/signature"
	bundlePrefix        = "application/vnd.dev.sigstore.bundle"
	inToto              = "application/vnd.in-toto+json"

	// maxSignatures and maxSignature bound what is read of a registry: how many
	// of each form, and the bytes of each.
	maxSignatures = 64
	maxSignature  = 1 << 20
)

// checkSigned refuses an image of a registry unless the policy lets it in. The
// image's digest, or that of the index it was found by, must be signed.
func (s *Store) checkSigned(ctx context.Context, repo name.Repository, digests []v1.Hash, options []remote.Option) error {
	rule, err := s.ruleFor(repo.Name())
	if err != nil || rule.Unsigned {
		return err
	}
	if rule.Deny {
		return refused(repo.Name(), "it is denied")
	}
	keys, err := rule.readKeys()
	if err != nil {
		return err
	}
	found := 0
	for _, digest := range digests {
		all, err := signaturesOf(ctx, repo, digest, options)
		if err != nil {
			return fmt.Errorf("look for signatures of %s: %w", digest, err)
		}
		found += len(all)
		for _, sig := range all {
			if sig.is(digest) && slices.ContainsFunc(keys, sig.by) {
				return nil
			}
		}
	}
	if found == 0 {
		return refused(repo.Name(), "the image has no signature")
	}
	return refused(repo.Name(), fmt.Sprintf("none of the image's %d signatures was made with a key of the policy", found))
}

// signature is a signed text about an image.
type signature struct {
	signed []byte
	value  []byte
	// digest is the image's, as the text has it.
	digest string
}

func (s signature) is(digest v1.Hash) bool { return s.digest == digest.String() }

// by reports whether a key made the signature.
func (s signature) by(key crypto.PublicKey) bool {
	sum := sha256.Sum256(s.signed)
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, sum[:], s.value)
	case ed25519.PublicKey:
		return ed25519.Verify(key, s.signed, s.value)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], s.value) == nil ||
			rsa.VerifyPSS(key, crypto.SHA256, sum[:], s.value, nil) == nil
	}
	return false
}

// signaturesOf returns what a repository has about a digest. What is no signature
// is left out: anybody who may push may put it there.
func signaturesOf(ctx context.Context, repo name.Repository, digest v1.Hash, options []remote.Option) ([]signature, error) {
	simple, err := simpleSignatures(repo.Tag(digest.Algorithm+"-"+digest.Hex+".sig"), options)
	if err != nil {
		return nil, err
	}
	bundles, err := bundleSignatures(ctx, repo.Digest(digest.String()), options)
	if err != nil {
		return nil, err
	}
	return append(simple, bundles...), nil
}

func simpleSignatures(tag name.Tag, options []remote.Option) ([]signature, error) {
	img, err := remote.Image(tag, options...)
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	var all []signature
	for _, l := range m.Layers[:min(len(m.Layers), maxSignatures)] {
		value, err := base64.StdEncoding.DecodeString(l.Annotations[signatureAnnotation])
		if string(l.MediaType) != simpleSigning || l.Size > maxSignature || err != nil || len(value) == 0 {
			continue
		}
		payload, err := readLayer(img, l)
		if err != nil {
			return nil, err
		}
		var text struct {
			Critical struct {
				Image struct {
					Digest string `json:"docker-manifest-digest"`
				} `json:"image"`
			} `json:"critical"`
		}
		if json.Unmarshal(payload, &text) == nil {
			all = append(all, signature{signed: payload, value: value, digest: text.Critical.Image.Digest})
		}
	}
	return all, nil
}

// bundleSignatures returns those of the artifacts that refer to an image.
func bundleSignatures(ctx context.Context, image name.Digest, options []remote.Option) ([]signature, error) {
	index, err := remote.Referrers(image, options...)
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var all []signature
	for _, m := range list.Manifests[:min(len(list.Manifests), maxSignatures)] {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !strings.HasPrefix(m.ArtifactType, bundlePrefix) {
			continue
		}
		artifact, err := remote.Image(image.Context().Digest(m.Digest.String()), options...)
		if err != nil {
			return nil, err
		}
		content, err := artifact.Manifest()
		if err != nil {
			return nil, err
		}
		if len(content.Layers) != 1 || content.Layers[0].Size > maxSignature {
			continue
		}
		bundle, err := readLayer(artifact, content.Layers[0])
		if err != nil {
			return nil, err
		}
		all = append(all, parseBundle(bundle)...)
	}
	return all, nil
}

// signPredicate is what cosign 3 calls a signature, and nothing else.
const signPredicate = "https://sigstore.dev/cosign/sign/v1"

// parseBundle returns the signatures of a bundle.
func parseBundle(b []byte) []signature {
	var bundle struct {
		Envelope struct {
			Payload    []byte `json:"payload"`
			Type       string `json:"payloadType"`
			Signatures []struct {
				Sig []byte `json:"sig"`
			} `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	var statement struct {
		Subject []struct {
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
		// What the statement says. A key also signs others: a list of parts, or
		// that a scan has failed.
		Predicate string `json:"predicateType"`
	}
	e := &bundle.Envelope
	if json.Unmarshal(b, &bundle) != nil || e.Type != inToto || json.Unmarshal(e.Payload, &statement) != nil || len(statement.Subject) != 1 ||
		statement.Predicate != signPredicate {
		return nil
	}
	// What is signed is DSSE's pre-authentication encoding.
	signed := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(e.Type), e.Type, len(e.Payload), e.Payload)
	var all []signature
	for _, s := range e.Signatures[:min(len(e.Signatures), maxSignatures)] {
		all = append(all, signature{signed: signed, value: s.Sig, digest: "sha256:" + statement.Subject[0].Digest["sha256"]})
	}
	return all
}

// readLayer reads a layer of at most maxSignature bytes. It is compared with its
// digest.
func readLayer(img v1.Image, l v1.Descriptor) ([]byte, error) {
	layer, err := img.LayerByDigest(l.Digest)
	if err != nil {
		return nil, err
	}
	r, err := layer.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, maxSignature))
}

func isMissing(err error) bool {
	var answer *transport.Error
	return errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound
}
