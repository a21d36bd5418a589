package nodetest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/skerry-dev/skerry"
)

var fileTests = map[string]func(*suite){
	"copy":         (*suite).copyFiles,
	"cut off":      (*suite).cutOff,
	"reader stops": (*suite).fileReaderStops,
	"contexts":     (*suite).fileContexts,
	"folders":      (*suite).folders,
}

// archive returns a tar with one file.
func archive(t testing.TB, name string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = w.Write(content)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func noise(size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func (s *suite) read(session, path string) []byte {
	s.Helper()
	r, err := s.Node.ReadFile(s.ctx, session, "", path)
	s.ok(err)
	defer r.Close()
	b, err := io.ReadAll(r)
	s.ok(err)
	if sized, ok := r.(interface{ Size() int64 }); !ok {
		s.Error("a file has no Size")
	} else if n := sized.Size(); n != -1 && n != int64(len(b)) {
		s.Errorf("a file of %d bytes says that it has %d", len(b), n)
	}
	return b
}

// copyFiles copies files in and out.
func (s *suite) copyFiles() {
	id := s.start()
	files := map[string][]byte{"empty": nil, "small": []byte("x"), "large": noise(5<<20 + 17)}
	if !s.lacks(Bytes) {
		files["dir/\xffname"] = []byte("odd")
	}
	for name, content := range files {
		s.ok(s.Node.WriteFiles(s.ctx, id, "", bytes.NewReader(archive(s.T, name, content))))
		if got := s.read(id, name); !bytes.Equal(got, content) {
			s.Errorf("%q has %d bytes, want %d", name, len(got), len(content))
		}
	}
	_, err := s.Node.ReadFile(s.ctx, id, "", "no-such-file")
	s.code("ReadFile of no file", err, skerry.CodeNotFound)
	_, err = s.Node.ReadFile(s.ctx, id, "", "/tmp")
	s.code("ReadFile of a folder", err, skerry.CodeBadRequest)
	s.code("WriteFiles of no archive", s.Node.WriteFiles(s.ctx, id, "", bytes.NewReader(noise(1<<20))), skerry.CodeBadRequest)
}

var errSource = errors.New("the source failed")

// cutOff ends an archive in the middle.
func (s *suite) cutOff() {
	id := s.start()
	whole := archive(s.T, "file", noise(3<<20))
	err := s.Node.WriteFiles(s.ctx, id, "", io.MultiReader(bytes.NewReader(whole[:2<<20]), failing{}))
	if !errors.Is(err, errSource) {
		s.Errorf("WriteFiles of a source that fails: %v", err)
	}
	s.code("WriteFiles of half an archive", s.Node.WriteFiles(s.ctx, id, "", bytes.NewReader(whole[:2<<20])), skerry.CodeBadRequest)
	s.ok(s.Node.WriteFiles(s.ctx, id, "", bytes.NewReader(whole)))
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errSource }

// fileReaderStops closes readers early.
func (s *suite) fileReaderStops() {
	id := s.start()
	s.ok(s.Node.WriteFiles(s.ctx, id, "", bytes.NewReader(archive(s.T, "file", noise(8<<20)))))
	for range 20 {
		r, err := s.Node.ReadFile(s.ctx, id, "", "file")
		s.ok(err)
		_, err = io.ReadFull(r, make([]byte, 1000))
		s.ok(err)
		s.ok(r.Close())
		if _, err := io.Copy(io.Discard, r); err == nil {
			s.Error("a closed reader returns all of a file")
		}
	}
	s.run(id, "true")
}

// fileContexts end before and during calls.
func (s *suite) fileContexts() {
	id := s.start()
	s.ok(s.Node.WriteFiles(s.ctx, id, "", bytes.NewReader(archive(s.T, "file", noise(16<<20)))))
	before, cancel := context.WithCancel(s.ctx)
	cancel()
	if r, err := s.Node.ReadFile(before, id, "", "file"); err == nil {
		_, err = io.Copy(io.Discard, r)
		if !s.lacks(ReadCut) {
			s.ended("ReadFile", before, err)
		}
		s.ok(r.Close())
	}
	during, cancel := context.WithCancel(s.ctx)
	r, err := s.Node.ReadFile(during, id, "", "file")
	s.ok(err)
	_, err = io.ReadFull(r, make([]byte, 1000))
	s.ok(err)
	cancel()
	if _, err := io.Copy(io.Discard, r); !s.lacks(ReadCut) && err == nil {
		s.Error("a file is read whole after the end of the context")
	}
	s.ok(r.Close())

	during, cancel = context.WithCancel(s.ctx)
	whole := archive(s.T, "other", noise(4<<20))
	src := io.MultiReader(bytes.NewReader(whole[:1<<20]), ending(cancel), bytes.NewReader(whole[1<<20:3<<20]), failing{})
	if err := s.Node.WriteFiles(during, id, "", src); err == nil {
		s.Error("WriteFiles of half an archive is no error")
	}
	s.run(id, "true")
}

// ending ends a context and goes on.
type ending context.CancelFunc

func (e ending) Read([]byte) (int, error) { e(); return 0, io.EOF }

// folders are made.
func (s *suite) folders() {
	id := s.start()
	s.ok(s.Node.MakeDir(s.ctx, id, "", "one", false))
	s.code("MakeDir of what is there", s.Node.MakeDir(s.ctx, id, "", "one", false), skerry.CodeConflict)
	s.code("MakeDir without a parent", s.Node.MakeDir(s.ctx, id, "", "a/b/c", false), skerry.CodeNotFound)
	name := "a/b/\xff"
	if s.lacks(Bytes) {
		name = "a/b/c"
	}
	for range 2 {
		s.ok(s.Node.MakeDir(s.ctx, id, "one", name, true))
	}
	s.run(id, "cd one/a/b; rmdir *")
}
