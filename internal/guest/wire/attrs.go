package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Attrs is what a snapshot wants to know of a file beyond what the sandbox's
// kernel writes down of it. The agent's describe command reads paths, each
// ended by a NUL byte, and writes an Attrs for each.
//
// On the wire it is one byte, 0 for a file that is not there (and nothing
// follows) or 1; the modification time as seconds (8 bytes) and nanoseconds
// (4 bytes), little-endian; the number of extended attributes, and the name
// and the value of each behind its length, all as unsigned varints.
type Attrs struct {
	Missing bool
	ModTime time.Time
	// Xattrs are the extended attributes that the kernel would lose.
	Xattrs map[string]string
}

// Bounds of Attrs: those of Linux for a name and a value, and more attributes
// than any filesystem keeps.
const (
	maxXattrs     = 256
	maxXattrName  = 255
	maxXattrValue = 64 << 10
)

var errAttrs = errors.New("malformed file attributes")

// Append adds the wire form of a to b.
func (a *Attrs) Append(b []byte) []byte {
	if a.Missing {
		return append(b, 0)
	}
	b = append(b, 1)
	b = binary.LittleEndian.AppendUint64(b, uint64(a.ModTime.Unix()))
	b = binary.LittleEndian.AppendUint32(b, uint32(a.ModTime.Nanosecond()))
	b = binary.AppendUvarint(b, uint64(len(a.Xattrs)))
	for name, value := range a.Xattrs {
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
		b = binary.AppendUvarint(b, uint64(len(value)))
		b = append(b, value...)
	}
	return b
}

// ReadAttrs reads one Attrs.
func ReadAttrs(r *bufio.Reader) (Attrs, error) {
	there, err := r.ReadByte()
	if err != nil || there == 0 {
		return Attrs{Missing: true}, err
	}
	if there != 1 {
		return Attrs{}, fmt.Errorf("%w: begin with %d", errAttrs, there)
	}
	var when [12]byte
	if _, err := io.ReadFull(r, when[:]); err != nil {
		return Attrs{}, err
	}
	nsec := binary.LittleEndian.Uint32(when[8:])
	if nsec >= uint32(time.Second) {
		return Attrs{}, fmt.Errorf("%w: %d nanoseconds", errAttrs, nsec)
	}
	a := Attrs{ModTime: time.Unix(int64(binary.LittleEndian.Uint64(when[:])), int64(nsec))}
	count, err := readBounded(r, maxXattrs)
	if err != nil || count == 0 {
		return a, err
	}
	a.Xattrs = make(map[string]string, count)
	for range count {
		name, err := readString(r, maxXattrName)
		if err != nil {
			return Attrs{}, err
		}
		if a.Xattrs[name], err = readString(r, maxXattrValue); err != nil {
			return Attrs{}, err
		}
	}
	return a, nil
}

func readBounded(r *bufio.Reader, most uint64) (uint64, error) {
	n, err := binary.ReadUvarint(r)
	if err == nil && n > most {
		err = fmt.Errorf("%w: %d, more than %d", errAttrs, n, most)
	}
	return n, err
}

func readString(r *bufio.Reader, most uint64) (string, error) {
	n, err := readBounded(r, most)
	if err != nil {
		return "", err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r, b)
	return string(b), err
}
