package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	page    = 4096
	changed = 1 << 20   // what each way changes, again and again
	stretch = 64 << 10  // what some change at once
	ballast = 256 << 20 // memory that does not change and is saved first, and half as much in a file
)

// change changes memory and files all the time, in every way in which pages change. Each
// page has the number of its last round, and whoever changes it looks at that first: a
// page that comes from another moment than the one who changes it is seen. The file says
// how many rounds all have done, or what was wrong.
func change(file string) {
	if said := fill("/ballast", strconv.Itoa(ballast>>21)); said != "ok" {
		panic(said)
	}
	b, err := anonymous(ballast)
	if err != nil {
		panic(err)
	}
	for p := 0; p < len(b); p += page {
		mark(b[p:], 1)
	}
	ways := []func(rounds *atomic.Int64) error{private, shared, written, writtenInMemory, received, dropped, cut}
	rounds := make([]atomic.Int64, len(ways))
	var wrong atomic.Pointer[string]
	for i, way := range ways {
		go func() {
			s := fmt.Sprintf("way %d: %v", i, way(&rounds[i]))
			wrong.Store(&s)
		}()
	}
	for {
		least := rounds[0].Load()
		for i := range rounds {
			least = min(least, rounds[i].Load())
		}
		said := fmt.Sprint(least)
		if s := wrong.Load(); s != nil {
			said = *s
		}
		if err := os.WriteFile(file+".new", []byte(said), 0o600); err != nil {
			panic(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			panic(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func check(b []byte, round int64) error {
	if got := int64(binary.LittleEndian.Uint64(b)); got != round {
		return fmt.Errorf("a page has number %d in round %d", got, round)
	}
	return nil
}

func mark(b []byte, round int64) { binary.LittleEndian.PutUint64(b, uint64(round)) }

func anonymous(size int) ([]byte, error) {
	return syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
}

// each calls f for all pages of b, round after round.
func each(b []byte, rounds *atomic.Int64, f func(b []byte, round int64) error) error {
	for round := int64(1); ; round++ {
		for p := 0; p < len(b); p += page {
			if err := check(b[p:], round-1); err != nil {
				return err
			}
			if err := f(b[p:p+page], round); err != nil {
				return err
			}
		}
		rounds.Store(round)
	}
}

// private writes to private memory.
func private(rounds *atomic.Int64) error {
	b, err := anonymous(changed)
	if err != nil {
		return err
	}
	return each(b, rounds, func(b []byte, round int64) error {
		mark(b, round)
		return nil
	})
}

// shared writes to a mapped file.
func shared(rounds *atomic.Int64) error {
	f, err := memfd()
	if err != nil {
		return err
	}
	if err := f.Truncate(changed); err != nil {
		return err
	}
	b, err := syscall.Mmap(int(f.Fd()), 0, changed, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	return each(b, rounds, func(b []byte, round int64) error {
		mark(b, round)
		return nil
	})
}

// written writes to a file.
func written(rounds *atomic.Int64) error {
	f, err := os.Create("/written")
	if err != nil {
		return err
	}
	return write(f, rounds)
}

// writtenInMemory writes to a file that is not on a disk.
func writtenInMemory(rounds *atomic.Int64) error {
	f, err := memfd()
	if err != nil {
		return err
	}
	return write(f, rounds)
}

func write(f *os.File, rounds *atomic.Int64) error {
	if err := f.Truncate(changed); err != nil {
		return err
	}
	b := make([]byte, 8)
	for round := int64(1); ; round++ {
		for p := int64(0); p < changed; p += page {
			if _, err := f.ReadAt(b, p); err != nil {
				return err
			}
			if err := check(b, round-1); err != nil {
				return err
			}
			mark(b, round)
			if _, err := f.WriteAt(b, p); err != nil {
				return err
			}
		}
		rounds.Store(round)
	}
}

// ferry has the kernel copy memory, which the program itself does not touch.
type ferry struct{ pipe [2]int }

func newFerry() (f ferry, err error) {
	err = syscall.Pipe(f.pipe[:])
	return f, err
}

func (f ferry) copy(dst, src []byte) error {
	if _, err := syscall.Write(f.pipe[1], src); err != nil {
		return err
	}
	_, err := syscall.Read(f.pipe[0], dst)
	return err
}

// check is check of a page.
func (f ferry) check(b []byte, round int64) error {
	var number [8]byte
	if err := f.copy(number[:], b[:8]); err != nil {
		return err
	}
	return check(number[:], round)
}

// received has the kernel write to private memory.
func received(rounds *atomic.Int64) error {
	b, err := anonymous(changed)
	if err != nil {
		return err
	}
	f, err := newFerry()
	if err != nil {
		return err
	}
	for round := int64(1); ; round++ {
		for p := 0; p < len(b); p += page {
			if err := f.check(b[p:], round-1); err != nil {
				return err
			}
			var number [8]byte
			mark(number[:], round)
			if err := f.copy(b[p:p+8], number[:]); err != nil {
				return err
			}
		}
		rounds.Store(round)
	}
}

// dropped gives private memory back and fills it again.
func dropped(rounds *atomic.Int64) error {
	b, err := anonymous(changed)
	if err != nil {
		return err
	}
	f, err := newFerry()
	if err != nil {
		return err
	}
	for round := int64(1); ; round++ {
		for s := 0; s < len(b); s += stretch {
			part := b[s : s+stretch]
			for p := 0; p < stretch; p += page {
				if err := f.check(part[p:], round-1); err != nil {
					return err
				}
			}
			if err := syscall.Madvise(part, syscall.MADV_DONTNEED); err != nil {
				return err
			}
			for p := 0; p < stretch; p += page {
				if err := check(part[p:], 0); err != nil {
					return fmt.Errorf("given back: %w", err)
				}
				mark(part[p:], round)
			}
		}
		rounds.Store(round)
	}
}

// cut empties a file and writes it again.
func cut(rounds *atomic.Int64) error {
	f, err := os.Create("/cut")
	if err != nil {
		return err
	}
	b := make([]byte, stretch)
	for round := int64(1); ; round++ {
		for s := int64(0); round > 1 && s < changed; s += stretch {
			if _, err := f.ReadAt(b, s); err != nil {
				return err
			}
			for p := 0; p < stretch; p += page {
				if err := check(b[p:], round-1); err != nil {
					return err
				}
			}
		}
		if err := f.Truncate(0); err != nil {
			return err
		}
		for p := 0; p < stretch; p += page {
			mark(b[p:], round)
		}
		for s := int64(0); s < changed; s += stretch {
			if _, err := f.WriteAt(b, s); err != nil {
				return err
			}
		}
		rounds.Store(round)
	}
}
