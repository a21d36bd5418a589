package snapshot

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// manifestVersion is the format that is written, and the only one read.
const manifestVersion = 1

// Limits of a snapshot.
const (
	// maxManifest allows for some 350,000 chunks: snapshots of 90 GB at the
	// least, 350 GB with chunks of the usual size.
	maxManifest = 32 << 20
	maxFiles    = 64
	maxName     = 128
	maxFormat   = 256
	maxLease    = 64
	// maxFileSize keeps sums of sizes far from overflow.
	maxFileSize = 1 << 44
)

// manifest tells what a snapshot is made of.
type manifest struct {
	Version int `json:"version"`
	// Format is the caller's; "" in snapshots of earlier versions.
	Format string `json:"format,omitempty"`
	// Lease names the save, so no two manifests are the same; "" in snapshots of
	// earlier versions.
	Lease string `json:"lease,omitempty"`
	Files []file `json:"files"`
	// sealed says that the manifest was sealed, and so that its chunks are.
	sealed bool
}

// file is one file of a snapshot.
type file struct {
	Name   string   `json:"name"`
	Size   int64    `json:"size"`
	Sum    checksum `json:"sum"`
	Chunks []chunk  `json:"chunks"`
}

// chunk is a part of a file.
type chunk struct {
	Sum  sum   `json:"sum"`
	Size int64 `json:"size"`
}

// encode returns the manifest's blob.
func (m manifest) encode() ([]byte, error) {
	raw, err := json.Marshal(m)
	if err == nil && len(raw) > maxManifest {
		err = fmt.Errorf("the snapshot is too large: its manifest would have %d bytes of at most %d", len(raw), maxManifest)
	}
	return raw, err
}

// parseManifest reads a manifest and trusts nothing in it.
func parseManifest(raw []byte) (manifest, error) {
	var m manifest
	if len(raw) > maxManifest {
		return m, fmt.Errorf("a manifest of %d bytes: the most is %d", len(raw), maxManifest)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("not a manifest: %w", err)
	}
	if m.Version != manifestVersion {
		return m, fmt.Errorf("a manifest of version %d, not %d", m.Version, manifestVersion)
	}
	if len(m.Format) > maxFormat {
		return m, fmt.Errorf("a manifest with a format of %d bytes: the most is %d", len(m.Format), maxFormat)
	}
	if len(m.Lease) > maxLease {
		return m, fmt.Errorf("a manifest with a lease of %d bytes: the most is %d", len(m.Lease), maxLease)
	}
	if len(m.Files) > maxFiles {
		return m, fmt.Errorf("a manifest of %d files: the most is %d", len(m.Files), maxFiles)
	}
	for i, f := range m.Files {
		if err := f.check(); err != nil {
			return m, err
		}
		if i > 0 && m.Files[i-1].Name >= f.Name {
			return m, fmt.Errorf("file %q is out of order", f.Name)
		}
	}
	return m, nil
}

// check reports what cannot be in a file of a manifest.
func (f file) check() error {
	if err := checkName(f.Name); err != nil {
		return err
	}
	if f.Size < 0 || f.Size > maxFileSize {
		return fmt.Errorf("file %q cannot have %d bytes", f.Name, f.Size)
	}
	left := f.Size
	for _, c := range f.Chunks {
		if c.Size < 1 || c.Size > maxChunk {
			return fmt.Errorf("file %q has a chunk of %d bytes", f.Name, c.Size)
		}
		left -= c.Size
	}
	if left != 0 {
		return fmt.Errorf("the chunks of file %q do not make up its %d bytes", f.Name, f.Size)
	}
	return nil
}

// checkName reports a name that a snapshot's file cannot have.
func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("a file name of %d bytes: the most is %d", len(name), maxName)
	}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	if name == "" || name[0] == '.' ||
		strings.ContainsFunc(name, func(r rune) bool { return !strings.ContainsRune(letters+"._-", r) }) {
		return fmt.Errorf("a snapshot's file cannot be named %q", name)
	}
	return nil
}

// size returns the bytes of all files.
func (m manifest) size() int64 {
	var n int64
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// checksum is a file's sum: see the package's comment.
type checksum uint64

func (c checksum) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(c)), nil }

func (c *checksum) UnmarshalText(text []byte) error {
	var n uint64
	if _, err := fmt.Sscanf(string(text), "%016x", &n); err != nil || fmt.Sprintf("%016x", n) != string(text) {
		return fmt.Errorf("%.40q is not a checksum", text)
	}
	*c = checksum(n)
	return nil
}

// fileSum joins the checksums of a file's chunks.
func fileSum(chunks []uint64) checksum {
	raw := make([]byte, 0, 8*len(chunks))
	for _, c := range chunks {
		raw = binary.LittleEndian.AppendUint64(raw, c)
	}
	return checksum(xxhash.Sum64(raw))
}
