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

	"github.com/skerry-dev/skerry/internal/atomicfile"
	"github.com/skerry-dev/skerry/internal/blob"
)

// storageOptions are the flags about where snapshots are kept.
type storageOptions struct {
	endpoint string
	bucket   string
	prefix   string
	region   string
}

// What the flags are if they are not given.
const (
	defaultS3Endpoint = "https://s3.amazonaws.com"
	defaultS3Prefix   = "skerry"
)

func (o *storageOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.bucket, "s3-bucket", "", "keep snapshots in this bucket of S3-compatible storage; the credentials are in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if they are temporary, AWS_SESSION_TOKEN (default: keep them in the state folder)")
	f.StringVar(&o.endpoint, "s3-endpoint", defaultS3Endpoint, "URL of the S3-compatible storage")
	f.StringVar(&o.region, "s3-region", "", "region of the bucket, if the storage has regions")
	f.StringVar(&o.prefix, "s3-prefix", defaultS3Prefix, "prefix of this server's object names; the server's identifier is appended, so servers can share a bucket")
}

// errNoCredentials says what --s3-bucket needs.
var errNoCredentials = errors.New("--s3-bucket needs credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")

func (o *storageOptions) check() error {
	if o.bucket == "" { // a place that is chosen cannot be changed later, so no flag about it is ignored
		switch {
		case o.endpoint != defaultS3Endpoint:
			return errors.New("--s3-endpoint needs --s3-bucket")
		case o.region != "":
			return errors.New("--s3-region needs --s3-bucket")
		case o.prefix != defaultS3Prefix:
			return errors.New("--s3-prefix needs --s3-bucket")
		}
	}
	if o.bucket != "" && (os.Getenv("AWS_ACCESS_KEY_ID") == "" || os.Getenv("AWS_SECRET_ACCESS_KEY") == "") {
		return errNoCredentials
	}
	return nil
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
		return nil, errNoCredentials
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

func (p *storagePlace) write(file string) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return writeWhole(file, append(b, '\n'))
}

// writeWhole writes a file that is whole or not there, also after a loss of
// power. It makes the file's folder.
func writeWhole(file string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return atomicfile.WriteDurable("", file, b)
}
