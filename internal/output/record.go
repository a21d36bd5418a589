package output

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/skerry-dev/skerry"
)

const (
	recordHeader = 16
	// maxRecord limits the data of one record, and so the buffer of a reader.
	maxRecord = 64 << 10

	segmentHeader = 40
	segmentMagic  = "SKYOUT01"
)

var (
	errTorn   = errors.New("record is truncated or damaged")
	checksums = crc32.MakeTable(crc32.Castagnoli)
)

// streams are the streams of a command. The number of a stream on disk is its index
// here plus one.
var streams = [...]skerry.Stream{skerry.Stdout, skerry.Stderr}

// record is one piece of output. data points into the bytes that it was decoded from.
type record struct {
	stream int
	offset int64
	data   []byte
}

// size is the length of the encoded record.
func (r record) size() int { return recordHeader + len(r.data) }

// appendRecord appends the encoded form of r to b.
func appendRecord(b []byte, r record) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	n := uint32(len(r.data))
	b = append(b, byte(r.stream+1), byte(n), byte(n>>8), byte(n>>16))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.offset))
	b = append(b, r.data...)
	binary.LittleEndian.PutUint32(b[start:], crc32.Checksum(b[start+4:], checksums))
	return b
}

// decodeRecord decodes the first record in b. It returns errTorn if b does not begin
// with a complete, undamaged record. verify compares the checksum, which is not
// necessary for records that this process holds in memory.
func decodeRecord(b []byte, verify bool) (record, error) {
	if len(b) < recordHeader {
		return record{}, errTorn
	}
	n := int(b[5]) | int(b[6])<<8 | int(b[7])<<16
	offset := binary.LittleEndian.Uint64(b[8:])
	if b[4] < 1 || int(b[4]) > len(streams) || n < 1 || n > maxRecord || offset > maxOffset || len(b) < recordHeader+n {
		return record{}, errTorn
	}
	if verify && binary.LittleEndian.Uint32(b) != crc32.Checksum(b[4:recordHeader+n], checksums) {
		return record{}, errTorn
	}
	return record{stream: int(b[4]) - 1, offset: int64(offset), data: b[recordHeader : recordHeader+n : recordHeader+n]}, nil
}

// maxOffset keeps sums of offsets and lengths from overflowing.
const maxOffset = 1 << 61

// segmentStart is the header of a segment.
type segmentStart struct {
	seq uint64
	// offsets are the offsets of both streams where the segment begins.
	offsets [len(streams)]int64
}

func (s segmentStart) encode() []byte {
	b := append(make([]byte, 0, segmentHeader), segmentMagic...)
	b = binary.LittleEndian.AppendUint64(b, s.seq)
	for _, o := range s.offsets {
		b = binary.LittleEndian.AppendUint64(b, uint64(o))
	}
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, checksums))
	return append(b, 0, 0, 0, 0)
}

func decodeSegmentStart(b []byte) (segmentStart, error) {
	const sum = segmentHeader - 8
	if len(b) < segmentHeader || string(b[:len(segmentMagic)]) != segmentMagic ||
		binary.LittleEndian.Uint32(b[sum:]) != crc32.Checksum(b[:sum], checksums) {
		return segmentStart{}, errTorn
	}
	s := segmentStart{seq: binary.LittleEndian.Uint64(b[8:])}
	for i := range s.offsets {
		o := binary.LittleEndian.Uint64(b[16+8*i:])
		if o > maxOffset {
			return segmentStart{}, errTorn
		}
		s.offsets[i] = int64(o)
	}
	return s, nil
}
