package image

// Limits bound what an OCI image may unpack to. A zero field is its default.
type Limits struct {
	// Bytes bounds the contents of all files of all layers; 20 GiB.
	Bytes int64
	// Entries bounds how many there are in all layers; 2,000,000.
	Entries int
}

func (l Limits) withDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = 20 << 30
	}
	if l.Entries == 0 {
		l.Entries = 2_000_000
	}
	return l
}
