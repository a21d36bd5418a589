package keyfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// SecretBytes is the length of a secret.
const SecretBytes = 32

// ErrMissing reports that a secret does not exist and must not be generated.
var ErrMissing = errors.New("the key is missing")

// Secret returns the random bytes in the file at path. It generates them if the file
// does not exist. With used set, data was sealed with the secret before, and a new
// secret could not open it: a missing file is then ErrMissing.
func Secret(path string, used bool) ([]byte, error) {
	if used {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: restore %s from a backup", ErrMissing, path)
		}
	}
	key, err := Open(path, func() ([]byte, error) {
		b := make([]byte, SecretBytes)
		rand.Read(b)
		return b, nil
	})
	if err == nil && len(key) != SecretBytes {
		err = fmt.Errorf("the key in %s has %d bytes, not %d", path, len(key), SecretBytes)
	}
	if err != nil {
		return nil, err
	}
	return key, nil
}
