package store

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
)

// sealer encrypts what is secret with AES-256-GCM. A sealed value is the nonce
// followed by the ciphertext, bound to the row that it belongs to.
type sealer struct{ aead cipher.AEAD }

// newSealer returns the sealer of a key.
func newSealer(key []byte) (*sealer, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &sealer{aead}, nil
}

func (s *sealer) seal(plain []byte, row string) []byte {
	return s.aead.Seal(nil, nil, plain, []byte(row))
}

func (s *sealer) open(sealed []byte, row string) ([]byte, error) {
	plain, err := s.aead.Open(nil, nil, sealed, []byte(row))
	if err != nil {
		return nil, fmt.Errorf("decrypt the secrets of %s: %w", row, err)
	}
	return plain, nil
}
