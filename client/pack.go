package client

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// pack writes files to a tar stream.
type pack struct {
	tw   *tar.Writer
	fsys fs.FS
	// links are the first names in the stream of files with several names.
	links map[fileID]string
	// bytes is the size of the contents of all files.
	bytes int64
	// skipped are the sockets, devices and extended attributes that were left out. They
	// have no meaning elsewhere.
	skipped []string
}

func newPack(tw *tar.Writer, fsys fs.FS) *pack {
	return &pack{tw: tw, fsys: fsys, links: map[fileID]string{}}
}

// tree adds all files, below the name as.
func (p *pack) tree(ctx context.Context, as string) error {
	return fs.WalkDir(p.fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return p.file(name, path.Join(as, name), info)
	})
}

// file adds one file.
func (p *pack) file(name, as string, info fs.FileInfo) error {
	hdr := &tar.Header{Name: as, Mode: int64(info.Mode().Perm()), ModTime: info.ModTime(), Format: tar.FormatPAX}
	switch {
	case info.IsDir():
		if as == "." { // the root exists, and must not be changed
			return nil
		}
		hdr.Typeflag, hdr.Name = tar.TypeDir, as+"/"
		return p.tw.WriteHeader(hdr)
	case info.Mode()&fs.ModeSymlink != 0:
		link, err := fs.ReadLink(p.fsys, name)
		if err != nil {
			return err
		}
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, link
		return p.tw.WriteHeader(hdr)
	case info.Mode()&fs.ModeNamedPipe != 0:
		hdr.Typeflag = tar.TypeFifo
		return p.tw.WriteHeader(hdr)
	case !info.Mode().IsRegular():
		why := "a device"
		if info.Mode()&fs.ModeSocket != 0 {
			why = "a socket"
		}
		p.skipped = append(p.skipped, name+" ("+why+")")
		return nil
	}
	if id, several := identify(info); several {
		if first, ok := p.links[id]; ok {
			hdr.Typeflag, hdr.Linkname = tar.TypeLink, first
			return p.tw.WriteHeader(hdr)
		}
		p.links[id] = as
	}
	return p.content(name, hdr, info.Size())
}

func (p *pack) content(name string, hdr *tar.Header, size int64) error {
	f, err := p.fsys.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	hdr.Typeflag, hdr.Size = tar.TypeReg, size
	if f, ok := f.(*os.File); ok {
		records, left := attributes(f)
		hdr.PAXRecords = records
		for _, attr := range left {
			p.skipped = append(p.skipped, fmt.Sprintf("%s (attribute %s)", name, attr))
		}
	}
	if err := p.tw.WriteHeader(hdr); err != nil {
		return err
	}
	// If the file grows meanwhile, the rest is left out.
	n, err := io.Copy(p.tw, io.LimitReader(f, size))
	p.bytes += n
	if err == nil && n < size {
		err = fmt.Errorf("%s became shorter while it was read", name)
	}
	return err
}

// fileID identifies a file that has several names.
type fileID struct{ device, inode uint64 }
