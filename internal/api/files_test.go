package api

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for name, data := range files {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o640, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	if _, err := zw.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// upload sends an archive as the public clients do.
func (h *harness) upload(session, dir string, body []byte) *answer {
	h.Helper()
	req := h.request("POST", session+"/fs/write", string(body))
	req.Header.Set("Content-Type", "application/gzip")
	if dir != "" {
		req.Header.Set("x-cwd", dir)
	}
	return h.send(req)
}

func TestFilesInAndOut(t *testing.T) { overBoth(t, testFilesInAndOut) }

func testFilesInAndOut(t *testing.T, serve serveFunc) {
	svc := controllertest.New(t)
	h := serve(t, svc)
	s := h.session()
	archive := tarOf(t, map[string]string{"vercel/sandbox/dir/ü.txt": "content"})
	for _, body := range [][]byte{archive, gzipped(t, archive)} {
		if a := h.upload(s, "/", body); a.status != 200 || string(a.body) != "{}" {
			t.Fatalf("write: %d %s", a.status, a.body)
		}
	}
	if a := h.upload(s, "", gzipped(t, tarOf(t, map[string]string{"plain": "in the working directory"}))); a.status != 200 {
		t.Fatalf("write without x-cwd: %d %s", a.status, a.body)
	}
	for body, want := range map[string]string{
		`{"path":"dir/ü.txt"}`:                     "content",
		`{"path":"ü.txt","cwd":"dir"}`:             "content",
		`{"path":"/vercel/sandbox/plain"}`:         "in the working directory",
		`{"path":"plain","cwd":"/vercel/sandbox"}`: "in the working directory",
	} {
		a := h.call("POST", s+"/fs/read", body)
		if a.status != 200 || string(a.body) != want || a.header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("read %s: %d %v %q", body, a.status, a.header, a.body)
		}
		if a.header.Get("Content-Length") == "" {
			t.Errorf("read %s: no length", body)
		}
	}
	h.refused("POST", s+"/fs/read", `{"path":"missing"}`, 404, skerry.CodeNotFound, "")
	if a := h.upload(s, strings.Repeat("x", 5000), archive); a.status != 400 {
		t.Errorf("a long x-cwd: %d", a.status)
	}
}

// unsized is a file whose size only its end tells.
type unsized struct{ io.Reader }

func (unsized) Size() int64  { return -1 }
func (unsized) Close() error { return nil }

func TestFileOfNoKnownSize(t *testing.T) { overBoth(t, testFileOfNoKnownSize) }

func testFileOfNoKnownSize(t *testing.T, serve serveFunc) {
	h := serve(t, &stub{read: func() (io.ReadCloser, error) { return unsized{strings.NewReader("of no known size")}, nil }})
	a := h.call("POST", "/v2/sandboxes/sessions/s/fs/read", `{"path":"endless"}`)
	if a.status != 200 || string(a.body) != "of no known size" || a.header.Get("Content-Length") == "-1" {
		t.Errorf("%d %v %q", a.status, a.header, a.body)
	}
}

func TestEmptyAndLargeFiles(t *testing.T) { overBoth(t, testEmptyAndLargeFiles) }

func testEmptyAndLargeFiles(t *testing.T, serve serveFunc) {
	svc := controllertest.New(t)
	h := serve(t, svc)
	s := h.session()
	large := make([]byte, 3<<20+17)
	rand.Read(large)
	a := h.upload(s, "/tmp", gzipped(t, tarOf(t, map[string]string{"empty": "", "large": string(large)})))
	if a.status != 200 {
		t.Fatalf("write: %d %s", a.status, a.body)
	}
	if a := h.call("POST", s+"/fs/read", `{"path":"/tmp/empty"}`); a.status != 200 || len(a.body) != 0 {
		t.Errorf("an empty file: %d, %d bytes", a.status, len(a.body))
	}
	if a := h.call("POST", s+"/fs/read", `{"path":"/tmp/large"}`); !bytes.Equal(a.body, large) {
		t.Errorf("a large file: %d, %d bytes", a.status, len(a.body))
	}
}

func TestMakeDir(t *testing.T) {
	svc := controllertest.New(t)
	h := serve(t, svc)
	s := h.session()
	ok[emptyResponse](h, "POST", s+"/fs/mkdir", `{"path":"a"}`)
	h.refused("POST", s+"/fs/mkdir", `{"path":"a"}`, 409, skerry.CodeConflict, "")
	h.refused("POST", s+"/fs/mkdir", `{"path":"b/c"}`, 404, skerry.CodeNotFound, "")
	ok[emptyResponse](h, "POST", s+"/fs/mkdir", `{"path":"b/c","recursive":true}`)
	if info, err := os.Stat(filepath.Join(svc.Node.Root(path.Base(s)), skerry.WorkDir, "b/c")); err != nil || !info.IsDir() {
		t.Errorf("recursive mkdir: %v", err)
	}
}

func TestBadUploads(t *testing.T) { overBoth(t, testBadUploads) }

func testBadUploads(t *testing.T, serve serveFunc) {
	h := serve(t, controllertest.New(t))
	s := h.session()
	random := make([]byte, 100<<10)
	rand.Read(random)
	whole := gzipped(t, tarOf(t, map[string]string{"f": string(random)}))
	corrupt := bytes.Clone(whole)
	corrupt[len(corrupt)/2] ^= 0xff
	checksum := bytes.Clone(whole)
	checksum[len(checksum)-8] ^= 0xff
	for name, body := range map[string][]byte{
		"empty":             {},
		"one byte":          {0x1f},
		"gzip header":       {0x1f, 0x8b},
		"cut short":         whole[:len(whole)/2],
		"without a trailer": whole[:len(whole)-8],
		"corrupt":           corrupt,
		"wrong checksum":    checksum,
		"trailing data":     append(bytes.Clone(whole), "garbage"...),
		"not tar":           bytes.Repeat([]byte("text "), 500),
		"gzip of text":      gzipped(t, bytes.Repeat([]byte("text "), 500)),
	} {
		a := h.upload(s, "/", body)
		if e := a.error(t); a.status != 400 || e.Code != skerry.CodeBadRequest {
			t.Errorf("%s: %d %+v", name, a.status, e)
		}
	}
}

func TestUploadLimits(t *testing.T) { overBoth(t, testUploadLimits) }

func testUploadLimits(t *testing.T, serve serveFunc) {
	h := serve(t, controllertest.New(t), func(o *Options) { o.MaxUpload = 1 << 20 })
	s := h.session()
	if a := h.upload(s, "/", gzipped(t, tarOf(t, map[string]string{"f": strings.Repeat("0", 900<<10)}))); a.status != 200 {
		t.Errorf("below the limit: %d %s", a.status, a.body)
	}
	for _, body := range [][]byte{tarOf(t, map[string]string{"f": strings.Repeat("0", 2<<20)}), gzipped(t, make([]byte, 2<<20))} {
		a := h.upload(s, "/", body)
		if e := a.error(t); a.status != 413 || e.Code != skerry.CodeTooLarge || !strings.Contains(e.Message, "1048576 bytes") {
			t.Errorf("above the limit: %d %+v", a.status, e)
		}
	}
}

func TestGzipBomb(t *testing.T) { overBoth(t, testGzipBomb) }

func testGzipBomb(t *testing.T, serve serveFunc) {
	read := func(data []byte, free int64) error {
		u, err := openUpload(bytes.NewReader(data), DefaultMaxUpload)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.free = free
		_, err = io.Copy(io.Discard, u)
		return err
	}
	bomb := gzipped(t, make([]byte, 8<<20))
	if err := read(bomb, 1<<20); skerry.CodeOf(err) != skerry.CodeTooLarge {
		t.Errorf("a bomb: %v", err)
	}
	if err := read(bomb, bombFree); err != nil {
		t.Errorf("8 MiB of zeros: %v", err)
	}
	honest := make([]byte, 2<<20)
	rand.Read(honest)
	if err := read(gzipped(t, honest), 1<<20); err != nil {
		t.Errorf("random bytes: %v", err)
	}
}

func TestUploadErrorsOfTheService(t *testing.T) { overBoth(t, testUploadErrorsOfTheService) }

func testUploadErrorsOfTheService(t *testing.T, serve serveFunc) {
	svc := &stub{}
	h := serve(t, svc)
	big := make([]byte, 8<<20)
	rand.Read(big)
	// The service gives up at once; the client, which sends everything
	// before it reads, still gets the answer.
	svc.write = func(dir string, r io.Reader) error {
		return skerry.Errorf(skerry.CodeDiskFull, "the disk is full in %s", dir)
	}
	a := h.upload("/v2/sandboxes/sessions/s", "/data", big)
	if e := a.error(t); a.status != 422 || e.Code != skerry.CodeDiskFull || e.Message != "the disk is full in /data" {
		t.Errorf("%d %+v", a.status, e)
	}
	// A failure to read is what the client is told, not its consequence.
	svc.write = func(_ string, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return errors.Join(errors.New("broken pipe to the guest"), err)
	}
	zipped := gzipped(t, big[:1<<20])
	a = h.upload("/v2/sandboxes/sessions/s", "/", zipped[:1<<19])
	if e := a.error(t); a.status != 400 || !strings.Contains(e.Message, "cut short") {
		t.Errorf("%d %+v", a.status, e)
	}
}

func TestReadThatFailsMidwayCutsTheConnection(t *testing.T) {
	overBoth(t, testReadThatFailsMidwayCutsTheConnection)
}

func testReadThatFailsMidwayCutsTheConnection(t *testing.T, serve serveFunc) {
	svc := &stub{}
	h := serve(t, svc)
	svc.read = func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20)), iotest.ErrReader(errors.New("gone")))), nil
	}
	resp, err := h.client.Do(h.request("POST", "/v2/sandboxes/sessions/s/fs/read", `{"path":"f"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("%d bytes look like a whole file", n)
	}
	svc.read = func() (io.ReadCloser, error) { return io.NopCloser(iotest.ErrReader(errors.New("gone"))), nil }
	if a := h.call("POST", "/v2/sandboxes/sessions/s/fs/read", `{"path":"f"}`); a.status != 500 || a.header.Get("Content-Type") != "application/json; charset=utf-8" {
		t.Errorf("failing before the first byte: %d %v", a.status, a.header)
	}
}

func FuzzUpload(f *testing.F) {
	f.Add(gzipped(f, tarOf(f, map[string]string{"a": "b"})))
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Add([]byte("plain"))
	f.Fuzz(func(t *testing.T, body []byte) {
		u, err := openUpload(bytes.NewReader(body), 1<<20)
		if err == nil {
			var n int64
			n, err = io.Copy(io.Discard, u)
			u.Close()
			if n > 1<<20 {
				t.Errorf("%d bytes came out", n)
			}
		}
		if err != nil && statusOf[skerry.CodeOf(err)] >= 500 {
			t.Errorf("%q: %v", body, err)
		}
	})
}
