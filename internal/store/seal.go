package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
)

// sealer encrypts what is secret with AES-256-GCM. A sealed value is the nonce
// followed by the ciphertext, bound to the row that it belongs to.
type sealer struct{ aead cipher.AEAD }

const keySize = 32

// openSealer reads the key, or makes one.
func openSealer(path string) (*sealer, error) {
	key, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		key = make([]byte, keySize)
		rand.Read(key)
		err = writeKey(path, key)
	}
	if err != nil {
		return nil, fmt.Errorf("open the key: %w", err)
	}
	if len(key) != keySize {
		return nil, fmt.Errorf("the key in %s has %d bytes, want %d", path, len(key), keySize)
	}
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

// writeKey creates the key file for good before anything is sealed with it.
func writeKey(path string, key []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(key)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
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
