package client

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// CopyBetween copies a file or directory, with everything in it, into another
// sandbox. It interprets the destination as CopyTo does. A directory is streamed
// without being stored on this machine, so its symbolic links, FIFOs and hard links
// are copied as they are. Sockets, devices and extended attributes outside the user
// namespace are left out.
//
// Copying a directory needs tar and mktemp in the source, and free space in its
// /tmp.
func (sb *Sandbox) CopyBetween(ctx context.Context, remote string, to *Sandbox, dest string) (Copied, error) {
	abs := sb.abs(remote)
	mode, err := sb.mode(ctx, abs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Copied{}, err
	}
	if !mode.IsDir() {
		return sb.fileBetween(ctx, abs, to, dest)
	}
	target := to.abs(dest)
	isDir, err := to.isDir(ctx, dest)
	if err != nil {
		return Copied{}, err
	}
	if isDir {
		target = path.Join(target, baseName(abs))
	}
	packed, base, err := sb.packDir(ctx, abs)
	if err != nil {
		return Copied{}, err
	}
	defer sb.remove(ctx, packed)
	var t *transfer
	err = to.upload(ctx, func(tw *tar.Writer) error { // opens the file again for a retry
		r, err := sb.Open(ctx, packed)
		if err != nil {
			return err
		}
		defer r.Close()
		t = &transfer{tw: tw, strip: base, as: entryName(target), links: map[string]bool{}}
		return t.all(ctx, r)
	})
	if err != nil {
		return Copied{Path: target}, err
	}
	return Copied{Path: target, Bytes: t.bytes, Skipped: t.skipped.list()}, nil
}

// fileBetween copies one file through a temporary directory on this machine, because a
// tar stream begins with the size, which is not known before.
func (sb *Sandbox) fileBetween(ctx context.Context, abs string, to *Sandbox, dest string) (Copied, error) {
	dir, err := os.MkdirTemp("", "sandbox-cp-")
	if err != nil {
		return Copied{}, err
	}
	defer os.RemoveAll(dir)
	from, err := sb.CopyFrom(ctx, abs, dir)
	if err != nil {
		return Copied{}, err
	}
	return to.CopyTo(ctx, from.Path, dest)
}

// transfer copies the tar stream of a directory from one sandbox to another. It checks
// the names of entries, so that one sandbox cannot write to other paths in the other.
type transfer struct {
	tw *tar.Writer
	// strip is the first element of the names. It is replaced by as.
	strip, as string
	// links are the symbolic links so far. Nothing may be written through them.
	links     map[string]bool
	linkBytes int
	skipped   skipped
	bytes     int64
}

// maxLinkBytes limits the names of the symbolic links in a directory.
const maxLinkBytes = 64 << 20

func (t *transfer) all(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the tar stream: %w", err)
		}
		if err := t.entry(hdr, tr); err != nil {
			return fmt.Errorf("copy %q: %w", hdr.Name, err)
		}
	}
}

func (t *transfer) entry(hdr *tar.Header, content io.Reader) error {
	if isSparse(hdr) {
		return errors.New("sparse files are not accepted")
	}
	name, err := t.name(hdr.Name)
	if err != nil {
		return err
	}
	if t.links[name] { // the entry would be written to the link's target
		return errors.New("a symbolic link is at the same path")
	}
	out := &tar.Header{Typeflag: hdr.Typeflag, Name: name, Mode: hdr.Mode & 0o777, ModTime: hdr.ModTime, Format: tar.FormatPAX}
	switch hdr.Typeflag {
	case tar.TypeDir:
		if name == "." { // the root exists, and must not be changed
			return nil
		}
		out.Name += "/"
	case tar.TypeReg:
		out.Size = hdr.Size
		records, left, err := userAttributes(hdr)
		if err != nil {
			return err
		}
		out.PAXRecords = records
		t.skipped.add(left...)
	case tar.TypeSymlink:
		out.Linkname = hdr.Linkname
		if err := t.addLink(name); err != nil {
			return err
		}
	case tar.TypeLink:
		if out.Linkname, err = t.name(hdr.Linkname); err != nil {
			return fmt.Errorf("link to %q: %w", hdr.Linkname, err)
		}
		if t.links[out.Linkname] {
			if err := t.addLink(name); err != nil {
				return err
			}
		}
	case tar.TypeFifo:
	default:
		t.skipped.add(leftOut(hdr))
		return nil
	}
	if err := t.tw.WriteHeader(out); err != nil {
		return err
	}
	n, err := io.Copy(t.tw, content)
	t.bytes += n
	return err
}

func (t *transfer) addLink(name string) error {
	if t.linkBytes += len(name); t.linkBytes > maxLinkBytes {
		return errors.New("the directory has too many symbolic links")
	}
	t.links[name] = true
	return nil
}

// name returns the name in the destination for a name in the source's stream.
func (t *transfer) name(name string) (string, error) {
	rest, err := below(name, t.strip)
	if err != nil {
		return "", err
	}
	out := path.Join(t.as, rest)
	for dir := path.Dir(out); dir != "."; dir = path.Dir(dir) {
		if t.links[dir] {
			return "", fmt.Errorf("%s is not a directory", dir)
		}
	}
	return out, nil
}

// userAttributes returns the records with user attributes of an entry. left are the
// names of other attributes.
func userAttributes(hdr *tar.Header) (records map[string]string, left []string, err error) {
	records = map[string]string{}
	count, sum := 0, 0
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, attributePrefix)
		if !ok {
			continue
		}
		count++
		sum += len(name) + len(value)
		if count > maxAttributes || sum > maxAttributeBytes {
			return nil, nil, fmt.Errorf("the file has more than %d extended attributes, or more than %d bytes of them", maxAttributes, maxAttributeBytes)
		}
		if strings.HasPrefix(name, "user.") {
			records[key] = value
		} else {
			left = append(left, fmt.Sprintf("%s (attribute %s)", hdr.Name, name))
		}
	}
	return records, left, nil
}
