package blob_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/skerry-dev/skerry/internal/blob"
)

// BenchmarkDirPut has 16 callers put 256 blobs of 64 KiB.
func BenchmarkDirPut(b *testing.B) {
	s, err := blob.OpenDir(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	const callers, blobs = 16, 256
	data := bytes.Repeat([]byte("skerry.."), 8<<10)
	b.SetBytes(blobs * int64(len(data)))
	for range b.N {
		var wg sync.WaitGroup
		for c := range callers {
			wg.Go(func() {
				for i := range blobs / callers {
					n := c*blobs/callers + i
					// The numbers spread over as many folders as hashes do.
					if err := s.Put(context.Background(), fmt.Sprintf("chunk/%02x-blob", n), data); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
}
