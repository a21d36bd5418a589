package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is the version of the protocol. Both sides must have the same.
const Version = 3

// HeaderSize is the size of a frame's header in bytes.
const HeaderSize = 12

const (
	// MaxData limits the payload of a Data frame. Large frames cost less: with 64 KiB
	// the output of a command is a third slower. Small frames let many calls take
	// turns.
	MaxData = 256 << 10
	// Window is how far a sender may be ahead of the last Ack, per stream. So it is
	// also the memory that a stream may need on either side. Waking the other side is
	// expensive in gVisor: half the window halves the throughput.
	Window = 512 << 10
	// AckEvery is how many bytes a receiver consumes before it sends an Ack. A quarter
	// of the window keeps the sender busy with few frames.
	AckEvery = Window / 4

	// maxRequest limits a request. Linux allows at most 2 MiB of arguments and
	// environment. JSON can make them six times as long.
	maxRequest = 16 << 20
	// maxReply and maxListing limit the memory that a hostile guest can make the host
	// allocate at once. A Listing of MaxProcesses fits.
	maxReply   = 64 << 10
	maxListing = 4 << 20
	// MaxProcesses limits the processes of an agent, including those that have ended
	// and are not forgotten.
	MaxProcesses = 2048
)

// Type is the type of a frame.
type Type uint8

// The types of frames. The package comment describes their payloads.
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
	// TypeListing is a Reply with all processes. It may be longer than other replies.
	TypeListing
	TypeRenew
	TypeRelieve
	TypeIdentify
	TypeToken
	typeEnd
)

// payloadBounds is the minimum and maximum payload of each type, in bytes.
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
	TypeRelieve:  {0, 0},
	TypeIdentify: {2, maxRequest},
	TypeToken:    {2, maxReply},
}

// MaxPayload returns the maximum payload of a frame of type t. It is 0 for an unknown
// type.
func (t Type) MaxPayload() int {
	if t == 0 || t >= typeEnd {
		return 0
	}
	return int(payloadBounds[t].max)
}

// The streams of a call.
const (
	StreamIn  uint8 = 0 // to the guest: standard input or a tar archive
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

// errFrame is the error of invalid frames. Other errors wrap it.
var errFrame = errors.New("malformed frame")

// put writes h into b.
func (h Header) put(b *[HeaderSize]byte) {
	binary.LittleEndian.PutUint32(b[0:], h.Length)
	b[4], b[5], b[6], b[7] = byte(h.Type), h.Stream, 0, 0
	binary.LittleEndian.PutUint32(b[8:], h.ID)
}

// parseHeader decodes and validates a header.
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
