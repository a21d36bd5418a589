package acme

import (
	"encoding/base64"
	"fmt"
	"os"
	"strings"
)

// Binding is an external account: what an authority that already knows its
// clients has given for ACME.
type Binding struct{ id, key string }

// ReadBinding takes the id of the key, and the file with the key in base64url.
func ReadBinding(id, keyFile string) (*Binding, error) {
	key, err := readSecret(keyFile)
	if err != nil {
		return nil, fmt.Errorf("acme: key of the external account: %w", err)
	}
	key = strings.TrimRight(key, "=")
	if b, err := base64.RawURLEncoding.DecodeString(key); err != nil || len(b) == 0 {
		return nil, fmt.Errorf("acme: key of the external account: %s is not in base64url", keyFile)
	}
	return &Binding{id: id, key: key}, nil
}

// maxSecret bounds a file with a secret.
const maxSecret = 4096

// readSecret reads a file of one line that only its owner may read.
func readSecret(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Mode()&0o077 != 0 || info.Size() > maxSecret {
		return "", fmt.Errorf("%s must be a small file that only its owner may read", file)
	}
	b, err := os.ReadFile(file)
	return strings.TrimSpace(string(b)), err
}
