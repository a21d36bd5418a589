// Package keyfile stores keys in files. A key is generated once and never replaced.
package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/skerry-dev/skerry/internal/atomicfile"
)

// MaxBytes is the maximum size of a file.
const MaxBytes = 64 << 10

// Open returns the content of the file at path. If the file does not exist, Open
// creates it with the result of create: atomically, with mode 0600, and never over
// an existing file. It refuses what Read does.
func Open(path string, create func() ([]byte, error)) ([]byte, error) {
	b, err := Read(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	if b, err = create(); err != nil {
		return nil, err
	}
	// Another process may have created the file first. Its content counts.
	if err := atomicfile.CreateDurable(path, b); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return Read(path)
}

// Read returns the content of the file at path. It refuses a file that users other than
// its owner may access.
func Read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: must be a regular file that only its owner can access (mode 0600), not %v", path, info.Mode())
	}
	if info.Size() > MaxBytes {
		return nil, fmt.Errorf("%s: longer than %d bytes", path, MaxBytes)
	}
	return os.ReadFile(path)
}
