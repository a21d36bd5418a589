package node

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// kind is what a machine is started with and cannot change. A session can use any machine
// of its kind.
type kind struct {
	// Image is "" for blank machines.
	Image    string `json:"image"`
	VCPUs    int    `json:"vcpus"`
	MemoryMB int    `json:"memoryMb"`
}

func kindFor(spec nodeapi.SessionSpec) kind {
	k := kind{Image: spec.ImageDigest, VCPUs: spec.VCPUs, MemoryMB: spec.MemoryMB}
	if spec.Snapshot != "" || spec.ForkOf != "" {
		return k.blank()
	}
	return k
}

const (
	// demandSlot is the assumed duration of a burst of starts. The pool is kept large
	// enough for the largest burst of the last demandSlots slots.
	demandSlot  = 10 * time.Second
	demandSlots = 60
	// maxKinds is the maximum number of kinds in demand. Of those with the least demand,
	// the one that was used longest ago is dropped.
	maxKinds = 64
)

// demand counts the recent starts of sessions, by kind.
type demand map[kind]*starts

// starts are the recent starts of one kind.
type starts struct {
	// spec is the template of the newest one.
	spec nodeapi.SessionSpec
	// failures counts the failures in a row to make a machine; notBefore is when the next
	// attempt may be made.
	failures  int
	notBefore time.Time
	last      time.Time
	// counts is a ring with the number of starts in each slot; slot is the newest one.
	counts [demandSlots]int
	slot   int64
}

// add counts the start of a session.
func (d demand) add(spec nodeapi.SessionSpec, now time.Time) {
	k := kindFor(spec)
	s := d[k]
	if s == nil {
		if len(d) >= maxKinds {
			delete(d, slices.MinFunc(slices.Collect(maps.Keys(d)), func(a, b kind) int {
				return cmp.Or(cmp.Compare(d[a].expected(now), d[b].expected(now)), d[a].last.Compare(d[b].last))
			}))
		}
		s = &starts{}
		d[k] = s
	}
	s.spec, s.last = template(spec, k), now
	s.advance(now)
	s.counts[s.slot%demandSlots]++
}

// template returns the part of a specification that all sessions of a kind share. It has
// no variables: a client may set any of them, and what a machine was started with stays
// in its memory.
func template(spec nodeapi.SessionSpec, k kind) nodeapi.SessionSpec {
	return nodeapi.SessionSpec{ImageDigest: k.Image, Runtime: spec.Runtime, VCPUs: k.VCPUs, MemoryMB: k.MemoryMB}
}

// failed puts off the next machine of the kind: an image whose programs do not let one
// be made must not keep others waiting.
func (s *starts) failed(now time.Time) {
	wait := min(poolRetry<<min(s.failures, 10), demandSlots*demandSlot)
	s.failures++
	s.notBefore = now.Add(wait)
}

// advance moves to the current slot and clears those in between.
func (s *starts) advance(now time.Time) {
	slot := now.UnixNano() / int64(demandSlot)
	for n := max(s.slot+1, slot-demandSlots+1); n <= slot; n++ {
		s.counts[n%demandSlots] = 0
	}
	s.slot = max(s.slot, slot)
}

// expected returns the size of the burst to be ready for. A single start in all that time
// does not make another one likely.
func (s *starts) expected(now time.Time) int {
	s.advance(now)
	most, all := 0, 0
	for _, n := range s.counts {
		most, all = max(most, n), all+n
	}
	if all < 2 {
		return 0
	}
	return most
}
