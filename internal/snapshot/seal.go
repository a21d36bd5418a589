package snapshot

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

// A sealed blob is a header of 24 bytes,
//
//	magic    3 bytes   "SKS"
//	version  1 byte    1
//	key      8 bytes   an identifier of the installation's key
//	nonce    12 bytes  random
//
// followed by its content, encrypted with AES-256-GCM, and a tag of 16 bytes.
//
// Three keys are derived from the installation's (HKDF-SHA256). A blob's name is
// the HMAC of what it is and of its content's SHA-256: the same content has one
// name, so that it is stored once, and who has no key cannot tell by the name
// whether a known file is stored. A blob is encrypted with a key of its own, the
// HMAC of its name, which binds it to the name and leaves the nonce to tell
// apart only repeated Puts of one blob.
const (
	sealMagic   = "SKS"
	sealVersion = 1
	sealKeyID   = 8
	sealNonce   = 12
	sealHeader  = len(sealMagic) + 1 + sealKeyID + sealNonce
	sealTag     = 16
)

// KeySize is how many bytes the key of an installation has.
const KeySize = 32

// errOtherKey says that a blob was sealed by another installation, or before the
// key was lost.
var errOtherKey = errors.New("it is sealed with another key")

// sealer names and encrypts blobs.
type sealer struct {
	names, blobs []byte
	prefix       []byte // of each header: all up to the nonce
}

func newSealer(key []byte) (*sealer, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("the key of snapshots has %d bytes, not %d", len(key), KeySize)
	}
	var derived [3][]byte
	for i, purpose := range []string{"names", "blobs", "identifier"} {
		var err error
		if derived[i], err = hkdf.Key(sha256.New, key, nil, "skerry snapshot "+purpose, KeySize); err != nil {
			return nil, err
		}
	}
	prefix := append([]byte(sealMagic), sealVersion)
	return &sealer{names: derived[0], blobs: derived[1], prefix: append(prefix, derived[2][:sealKeyID]...)}, nil
}

// KeyID identifies a key without giving it away.
func KeyID(key []byte) (string, error) {
	s, err := newSealer(key)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", s.prefix[len(sealMagic)+1:]), nil
}

// name returns the name of the sealed blob that has some content.
func (s *sealer) name(k kind, content sum) id {
	mac := hmac.New(sha256.New, s.names)
	mac.Write([]byte(k.prefix()))
	mac.Write(content[:])
	return id{kind: k, sum: sum(mac.Sum(nil))}
}

// aead returns what encrypts one blob.
func (s *sealer) aead(b id) (cipher.AEAD, error) {
	mac := hmac.New(sha256.New, s.blobs)
	mac.Write([]byte(b.String()))
	block, err := aes.NewCipher(mac.Sum(nil))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// begin appends the room for a header to buf. The blob's content comes after it.
func (s *sealer) begin(buf []byte) []byte {
	var header [sealHeader]byte
	return append(buf, header[:]...)
}

// seal encrypts the content that follows begin's header, in place, and returns
// the blob.
func (s *sealer) seal(blob []byte, b id) []byte {
	nonce := blob[copy(blob, s.prefix):sealHeader]
	rand.Read(nonce)
	aead, err := s.aead(b)
	if err != nil {
		panic(err) // the key has the right size
	}
	return aead.Seal(blob[:sealHeader], nonce, blob[sealHeader:], s.prefix)
}

// open returns the content of a sealed blob, in the blob's memory.
func (s *sealer) open(blob []byte, b id) ([]byte, error) {
	if len(blob) < sealHeader+sealTag || string(blob[:len(sealMagic)]) != sealMagic {
		return nil, errors.New("it is not sealed")
	}
	if v := blob[len(sealMagic)]; v != sealVersion {
		return nil, fmt.Errorf("it is sealed in version %d, which is not known", v)
	}
	if string(blob[:len(s.prefix)]) != string(s.prefix) {
		return nil, errOtherKey
	}
	aead, err := s.aead(b)
	if err != nil {
		return nil, err
	}
	content, err := aead.Open(blob[sealHeader:sealHeader], blob[len(s.prefix):sealHeader], blob[sealHeader:], s.prefix)
	if err != nil {
		return nil, errors.New("it was changed, or is another blob")
	}
	return content, nil
}
