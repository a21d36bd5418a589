package snapshot

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// A chunk's content begins with a header of 8 bytes,
//
//	magic    3 bytes  "SKC"
//	coding   1 byte   0 as it is, 1 one zstd frame
//	size     uint32   of the plain bytes, little-endian
//
// followed by the chunk so coded.
const (
	chunkMagic  = "SKC"
	chunkHeader = 8

	codingPlain = 0
	codingZstd  = 1
)

// codec codes chunks, on several cores at once.
type codec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newCodec(cores int) (*codec, error) {
	enc, err := zstd.NewWriter(nil,
		// The next level takes twice the time to save a few percent more.
		zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(cores),
		// The SHA-256 covers more.
		zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(maxChunk))
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(cores),
		zstd.WithDecoderMaxMemory(maxChunk),
		zstd.WithDecoderMaxWindow(maxChunk),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	return &codec{enc: enc, dec: dec}, nil
}

// encode appends a chunk's content to buf.
func (c *codec) encode(buf, plain []byte) []byte {
	begin := len(buf)
	buf = append(buf, chunkMagic...)
	buf = append(buf, codingZstd)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(plain)))
	buf = c.enc.EncodeAll(plain, buf)
	// What saves less than a sixteenth is not worth the decoding.
	if len(buf)-begin-chunkHeader > len(plain)-len(plain)/16 {
		buf = append(buf[:begin+chunkHeader], plain...)
		buf[begin+len(chunkMagic)] = codingPlain
	}
	return buf
}

// decode returns the plain bytes of a content that is to have the chunk want. It
// may use buf, whose capacity is at least want's size.
func (c *codec) decode(buf, blob []byte, want chunk) ([]byte, error) {
	if len(blob) < chunkHeader || string(blob[:len(chunkMagic)]) != chunkMagic {
		return nil, errors.New("it is not a chunk")
	}
	size := int64(binary.LittleEndian.Uint32(blob[4:]))
	if size != want.Size || size > maxChunk {
		return nil, fmt.Errorf("it is of %d bytes, not %d", size, want.Size)
	}
	plain := blob[chunkHeader:]
	switch coding := blob[len(chunkMagic)]; coding {
	case codingPlain:
	case codingZstd:
		var err error
		if plain, err = c.dec.DecodeAll(plain, buf[:0:size]); err != nil {
			return nil, fmt.Errorf("it cannot be decompressed: %w", err)
		}
	default:
		return nil, fmt.Errorf("its coding %d is not known", coding)
	}
	if int64(len(plain)) != size || sha256.Sum256(plain) != want.Sum {
		return nil, errors.New("its content does not match its name")
	}
	return plain, nil
}
