package image

// Limits bound what an OCI image may unpack to. A zero field is its default.
type Limits struct {
	// Bytes bounds the contents of all files of all layers.
	Bytes int64
	// Entries bounds how many there are in all layers.
	Entries int
}

// Defaults of Limits.
const (
	DefaultBytes   = 20 << 30
	DefaultEntries = 2_000_000
)

func (l Limits) withDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = DefaultBytes
	}
	if l.Entries == 0 {
		l.Entries = DefaultEntries
	}
	return l
}
