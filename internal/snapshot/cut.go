package snapshot

import "github.com/cespare/xxhash/v2"

// Chunks end where the content of a page says so, so that a change moves the
// boundaries around it and no others, also if it makes the file longer.
// Boundaries are at multiples of a page from the file's start, as what the
// sandbox's kernel writes is pages.
const (
	pageSize = 4 << 10
	// minChunk bounds the cost of a chunk: a file, a sync, a line in the
	// manifest.
	minChunk = 256 << 10
	// maxChunk bounds memory, and the price of one changed byte.
	maxChunk = 4 << 20
	// cutEvery is how many pages it takes on average, after minChunk, until
	// one ends the chunk.
	cutEvery = 192
)

// cutBelow is a limit: a page whose hash is less ends the chunk.
const cutBelow = ^uint64(0) / cutEvery

// cutAfter looks in data, the start of a chunk, for the page that ends it. It
// looks at pages from offset from on. It returns the length of the chunk, or 0
// if data has no end.
func cutAfter(data []byte, from int) int {
	for at := max(from, minChunk-pageSize); at+pageSize <= len(data); at += pageSize {
		if xxhash.Sum64(data[at:at+pageSize]) < cutBelow {
			return at + pageSize
		}
	}
	return 0
}
