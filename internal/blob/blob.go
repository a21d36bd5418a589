// Package blob keeps bytes for good: in a local directory (Dir) or in storage
// that speaks S3 (S3).
//
// A blob is whole or not there: a reader never sees half of one, and what Put
// returned from is still there after a loss of power. Blobs do not change;
// whoever puts one again under the same key puts the same bytes, so that it
// matters to nobody which of two concurrent Puts came last. (The bytes of a sealed
// blob differ and mean the same.)
package blob

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
)

// Store keeps blobs under keys. Its methods may be called concurrently.
//
// A key is made of elements that are separated by slashes. An element has
// lower-case letters, digits, dots and dashes, begins with a letter or digit
// and has at most 200 bytes; a key has at most 512. No key may be what another
// has before a slash: not every storage can hold both "a" and "a/b".
type Store interface {
	// Put stores data, at most MaxSize bytes, and returns when it is durable.
	// To put a blob again is no error.
	Put(ctx context.Context, key string, data []byte) error
	// Get returns a blob, or an error that is ErrNotFound.
	Get(ctx context.Context, key string) ([]byte, error)
	// Delete removes a blob. To delete what is not there is no error. A
	// deleted blob may come back if power is lost soon after.
	Delete(ctx context.Context, key string) error
	// List returns the blobs whose keys begin with prefix, in no particular
	// order; "" is all. A blob that is put or deleted meanwhile may be in it
	// or not. After an error there is nothing more.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]
}

// Info is a blob in a listing.
type Info struct {
	Key     string
	Size    int64
	ModTime time.Time // of the last Put
}

// ErrNotFound says that there is no blob under a key.
var ErrNotFound = errors.New("no such blob")

// MaxSize is the most bytes a blob has: it is held in memory whole, and no
// damage to a store may make that more.
const MaxSize = 64 << 20

const (
	// maxKey and maxElement leave room for a prefix in S3's 1024 bytes and for
	// a suffix in a file name's 255.
	maxKey     = 512
	maxElement = 200
)

// checkKey reports a key that a Store does not take.
func checkKey(key string) error {
	if len(key) > maxKey {
		return fmt.Errorf("blob key of %d bytes: the most is %d", len(key), maxKey)
	}
	for element := range strings.SplitSeq(key, "/") {
		if element == "" || len(element) > maxElement || strings.Trim(element[:1], "-.") == "" || !keyCharacters(element) {
			return fmt.Errorf("blob key %q is not made of lower-case letters, digits, dots and dashes", key)
		}
	}
	return nil
}

// checkPrefix reports what no key can begin with.
func checkPrefix(prefix string) error {
	if len(prefix) > maxKey || !keyCharacters(strings.ReplaceAll(prefix, "/", "")) ||
		strings.HasPrefix(prefix, "/") || strings.Contains(prefix, "//") || strings.Contains(prefix, "..") {
		return fmt.Errorf("no blob key begins with %q", prefix)
	}
	return nil
}

func keyCharacters(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '-') {
			return false
		}
	}
	return true
}

// checkPut reports what a Store does not take.
func checkPut(key string, data []byte) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if len(data) > MaxSize {
		return fmt.Errorf("blob %s has %d bytes: the most is %d", key, len(data), MaxSize)
	}
	return nil
}

// tooLarge is the error of a Get of a blob that no Put has made.
func tooLarge(size int64) error {
	return fmt.Errorf("it has %d bytes: the most is %d", size, MaxSize)
}
