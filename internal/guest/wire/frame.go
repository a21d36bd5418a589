package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is the version of the protocol; both sides must have the same.
const Version = 3

// HeaderSize is the length of a frame's header in bytes.
const HeaderSize = 12

const (
	// MaxData bounds the payload of a Data frame: large enough that the cost
	// of a frame disappears (64 KiB make the output of a command a third
	// slower), small enough that frames of many calls alternate.
	MaxData = 256 << 10
	// Window is how far a sender may be ahead of its receiver's Ack, per
	// stream, and so the memory that a stream may need on either side. In
	// gVisor, where waking the other side is dear, half of it halves the
	// throughput.
	Window = 512 << 10
	// AckEvery is how much a receiver takes in before it says so: a quarter
	// of the window keeps the sender busy for few frames.
	AckEvery = Window / 4

	// maxRequest bounds a request. Linux takes at most 2 MiB of arguments and
	// environment, which JSON may write at up to six times the length.
	maxRequest = 16 << 20
	// maxReply and maxListing bound what a hostile guest can make the host
	// allocate at once. MaxProcesses fit a Listing.
	maxReply   = 64 << 10
	maxListing = 4 << 20
	// MaxProcesses bounds the processes that an agent keeps, ended but not
	// forgotten ones included.
	MaxProcesses = 2048
)

// Type is what a frame is.
type Type uint8

// The types of frames; the package comment tells each one's payload.
const (
	TypeSetup Type = iota + 1
	TypeResume
	TypeStart
	TypeWriteTar
	TypeReadFile
	TypeMkdir
	TypePing
	TypeList
	TypeShutdown
	TypeReply
	TypeData
	TypeEOF
	TypeAck
	TypeExit
	TypeSignal
	TypeResize
	TypeForget
	TypeCancel
	TypeAbort
	// TypeListing is a Reply that lists processes, and so may be long.
	TypeListing
	TypeRenew
	typeEnd
)

// payloadBounds holds the shortest and longest payload of each type.
var payloadBounds = [typeEnd]struct{ min, max uint32 }{
	TypeSetup:    {2, maxRequest},
	TypeResume:   {2, maxRequest},
	TypeStart:    {2, maxRequest},
	TypeWriteTar: {2, maxReply},
	TypeReadFile: {2, maxReply},
	TypeMkdir:    {2, maxReply},
	TypePing:     {0, 0},
	TypeList:     {0, 0},
	TypeShutdown: {2, maxReply},
	TypeReply:    {2, maxReply},
	TypeData:     {1, MaxData},
	TypeEOF:      {8, 8},
	TypeAck:      {8, 8},
	TypeExit:     {2, maxReply},
	TypeSignal:   {4, 4},
	TypeResize:   {4, 4},
	TypeForget:   {0, 0},
	TypeCancel:   {0, 0},
	TypeAbort:    {2, maxReply},
	TypeListing:  {2, maxListing},
	TypeRenew:    {2, maxRequest},
}

// MaxPayload returns the longest payload of a frame of type t, 0 for a type
// that does not exist.
func (t Type) MaxPayload() int {
	if t == 0 || t >= typeEnd {
		return 0
	}
	return int(payloadBounds[t].max)
}

// The streams of a call.
const (
	StreamIn  uint8 = 0 // to the guest: standard input or a tar
	StreamOut uint8 = 1 // standard output, a terminal or a file
	StreamErr uint8 = 2 // standard error
	streams         = 3
)

// Header begins every frame.
type Header struct {
	Type   Type
	Stream uint8
	ID     uint32
	Length uint32
}

// errFrame is in the chain of every error about bytes that are no frame.
var errFrame = errors.New("malformed frame")

// put writes h into b.
func (h Header) put(b *[HeaderSize]byte) {
	binary.LittleEndian.PutUint32(b[0:], h.Length)
	b[4], b[5], b[6], b[7] = byte(h.Type), h.Stream, 0, 0
	binary.LittleEndian.PutUint32(b[8:], h.ID)
}

// parseHeader reads a header and checks all that can be wrong with it.
func parseHeader(b []byte) (Header, error) {
	h := Header{
		Length: binary.LittleEndian.Uint32(b[0:]),
		Type:   Type(b[4]),
		Stream: b[5],
		ID:     binary.LittleEndian.Uint32(b[8:]),
	}
	switch {
	case h.Type == 0 || h.Type >= typeEnd:
		return h, fmt.Errorf("%w: type %d", errFrame, b[4])
	case h.Stream >= streams:
		return h, fmt.Errorf("%w: stream %d", errFrame, h.Stream)
	case b[6] != 0 || b[7] != 0:
		return h, fmt.Errorf("%w: reserved bytes are set", errFrame)
	}
	if bound := payloadBounds[h.Type]; h.Length < bound.min || h.Length > bound.max {
		return h, fmt.Errorf("%w: type %d with %d bytes", errFrame, h.Type, h.Length)
	}
	return h, nil
}
