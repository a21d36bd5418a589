package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry/internal/blob"
)

// storageOptions are the flags about where snapshots are kept.
type storageOptions struct {
	endpoint string
	bucket   string
	prefix   string
	region   string
}

func (o *storageOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.bucket, "s3-bucket", "", "keep snapshots in this bucket of S3-compatible storage; the credentials are in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if they are temporary, AWS_SESSION_TOKEN (default: keep them in the state folder)")
	f.StringVar(&o.endpoint, "s3-endpoint", "https://s3.amazonaws.com", "URL of the S3-compatible storage")
	f.StringVar(&o.region, "s3-region", "", "region of the bucket, if the storage has regions")
	f.StringVar(&o.prefix, "s3-prefix", "skerry", "what the names of this server's objects begin with; an identifier of the server's follows, so servers can share it")
}

// storagePlace says where an installation's snapshots are. It is written before
// the first of them: a server that looked elsewhere would miss them all, and one
// that shared its place with another would collect the other's.
type storagePlace struct {
	Bucket string `json:"bucket"`
	Prefix string `json:"prefix"`
	// ID is this installation's own, so that no other has its place.
	ID string `json:"id"`
}

// open opens the blob store below the folder of an installation's snapshots.
func (o *storageOptions) open(dir string) (blob.Store, error) {
	file := filepath.Join(dir, "s3.json")
	place, err := o.known(file)
	if err != nil {
		return nil, err
	}
	if o.bucket == "" {
		return blob.OpenDir(filepath.Join(dir, "blobs"))
	}
	isNew := place == nil
	if isNew {
		if err := mustBeEmpty(filepath.Join(dir, "blobs")); err != nil {
			return nil, err
		}
		place = &storagePlace{Bucket: o.bucket, Prefix: o.prefix, ID: strings.ToLower(rand.Text())}
	}
	cfg := blob.S3Config{
		Endpoint: o.endpoint, Region: o.region, Bucket: place.Bucket, Prefix: path.Join(place.Prefix, place.ID),
		AccessKey:    takeEnv("AWS_ACCESS_KEY_ID"),
		SecretKey:    blob.Secret(takeEnv("AWS_SECRET_ACCESS_KEY")),
		SessionToken: blob.Secret(takeEnv("AWS_SESSION_TOKEN")),
	}
	if cfg.AccessKey == "" || cfg.SecretKey == "" {
		return nil, errors.New("--s3-bucket needs credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	s3, err := blob.OpenS3(cfg)
	if err != nil {
		return nil, err
	}
	if isNew {
		if err := place.write(file); err != nil {
			return nil, err
		}
	}
	return s3, nil
}

// takeEnv reads a variable that no child shall have.
func takeEnv(name string) string {
	v := os.Getenv(name)
	os.Unsetenv(name)
	return v
}

// known reads where the snapshots are; it is nil if no server has chosen S3
// storage. It is an error if the flags say that they are somewhere else.
func (o *storageOptions) known(file string) (*storagePlace, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var was storagePlace
	if err := json.Unmarshal(b, &was); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if was.Bucket != o.bucket || was.Prefix != o.prefix {
		return nil, fmt.Errorf("the snapshots are in S3 storage: serve with --s3-bucket %s --s3-prefix %s (or, to give them up, remove %s)", was.Bucket, was.Prefix, file)
	}
	return &was, nil
}

// mustBeEmpty returns an error if a local blob store has something in it.
func mustBeEmpty(dir string) error {
	stored, err := os.ReadDir(filepath.Join(dir, "blobs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(stored) > 0 {
		return fmt.Errorf("there are snapshots in %s already: serve without --s3-bucket (or, to give them up, remove that folder)", dir)
	}
	return nil
}

// write writes the place into a file that is whole or not there, also after a
// loss of power.
func (p *storagePlace) write(file string) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it has another name by then, if all went well
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
