package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/skerry-dev/skerry"
)

// S3 keeps blobs in a bucket of storage that speaks S3: the object of a blob is
// named by its key, after the prefix. That a Put is durable and an object whole
// is what S3 promises.
//
// Storage that does not answer, or answers that it cannot, is asked again a few
// times and is then a skerry.CodeUnavailable.
type S3 struct {
	core    minio.Core
	bucket  string
	prefix  string // ends in a slash unless it is empty
	timeout time.Duration
	tries   int
}

var _ Store = (*S3)(nil)

const (
	// DefaultS3Timeout leaves a blob of MaxSize 1 MB a second.
	DefaultS3Timeout = time.Minute
	// DefaultS3Tries outlasts a restart of a server behind a load balancer:
	// the pauses between them grow from 0.2 to 1 second.
	DefaultS3Tries = 5
	// defaultRegion is what servers that have no regions take.
	defaultRegion = "us-east-1"
	// conflictPause is waited before a call that met another is repeated, and
	// that much longer each time.
	conflictPause = 50 * time.Millisecond
	// s3Connections is how many are kept open: as many as there are calls
	// at once.
	s3Connections = 64
)

// S3Config says where blobs are and who may reach them.
type S3Config struct {
	// Endpoint is the URL of the service: scheme, host and perhaps port.
	Endpoint string
	// Region is empty for storage that has none.
	Region string
	// Bucket must be there.
	Bucket string
	// Prefix is what the names of all objects begin with, a key as any; it is
	// followed by a slash. It may be empty.
	Prefix string

	AccessKey string
	SecretKey Secret
	// SessionToken is of temporary credentials; else it is empty.
	SessionToken Secret

	// Timeout is how long one call may take with all its tries, and one page
	// of a listing; 0 is DefaultS3Timeout.
	Timeout time.Duration
	// Tries is how often a call is made at the most; 0 is DefaultS3Tries.
	Tries int
}

// Secret is text that is not printed, logged or marshaled.
type Secret string

// Format implements fmt.Formatter for all verbs.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// MarshalText implements encoding.TextMarshaler.
func (Secret) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }

// OpenS3 returns the store of a configuration. It does not connect: storage may
// be out of reach when a process starts.
func OpenS3(cfg S3Config) (*S3, error) {
	endpoint, err := url.Parse(cfg.Endpoint)
	if err != nil || endpoint.Host == "" || strings.Trim(endpoint.Path, "/") != "" || endpoint.User != nil ||
		endpoint.Scheme != "http" && endpoint.Scheme != "https" {
		return nil, errors.New("open S3 storage: the endpoint must be a URL such as https://s3.example.com")
	}
	if cfg.Bucket == "" {
		return nil, errors.New("open S3 storage: no bucket given")
	}
	s := &S3{bucket: cfg.Bucket, timeout: cfg.Timeout, tries: cfg.Tries}
	if cfg.Prefix != "" {
		if err := checkKey(cfg.Prefix); err != nil {
			return nil, fmt.Errorf("open S3 storage: prefix: %w", err)
		}
		s.prefix = cfg.Prefix + "/"
	}
	if s.timeout <= 0 {
		s.timeout = DefaultS3Timeout
	}
	if s.tries <= 0 {
		s.tries = DefaultS3Tries
	}
	if cfg.Region == "" {
		cfg.Region = defaultRegion
	}
	transport, err := s.transport(endpoint.Scheme == "https")
	if err != nil {
		return nil, fmt.Errorf("open S3 storage: %w", err)
	}
	client, err := minio.New(endpoint.Host, &minio.Options{
		Creds:      credentials.NewStaticV4(cfg.AccessKey, string(cfg.SecretKey), string(cfg.SessionToken)),
		Secure:     endpoint.Scheme == "https",
		Transport:  transport,
		Region:     cfg.Region,
		MaxRetries: s.tries,
	})
	if err != nil {
		return nil, fmt.Errorf("open S3 storage: %w", err)
	}
	s.core = minio.Core{Client: client}
	return s, nil
}

func (s *S3) transport(secure bool) (*http.Transport, error) {
	t, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, err
	}
	t.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	t.ResponseHeaderTimeout = s.timeout
	t.MaxIdleConnsPerHost = s3Connections
	return t, nil
}

// Put implements Store.
func (s *S3) Put(ctx context.Context, key string, data []byte) error {
	if err := checkPut(key, data); err != nil {
		return err
	}
	err := s.call(ctx, func(ctx context.Context) error {
		_, err := s.core.Client.PutObject(ctx, s.bucket, s.prefix+key, bytes.NewReader(data), int64(len(data)),
			minio.PutObjectOptions{ContentType: "application/octet-stream", DisableMultipart: true})
		return err
	})
	if err != nil {
		return fmt.Errorf("put blob %s: %w", key, err)
	}
	return nil
}

// Get implements Store.
func (s *S3) Get(ctx context.Context, key string) (data []byte, err error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	err = s.call(ctx, func(ctx context.Context) error {
		// The library tries again until the answer begins; what breaks off
		// after that is for us.
		for try := 1; ; try++ {
			var again bool
			if data, again, err = s.get(ctx, key); !again || try >= s.tries {
				return err
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("get blob %s: %w", key, err)
	}
	return data, nil
}

// get asks for a blob once, and tells whether an error came in the middle of
// it.
func (s *S3) get(ctx context.Context, key string) (data []byte, again bool, err error) {
	body, info, _, err := s.core.GetObject(ctx, s.bucket, s.prefix+key, minio.GetObjectOptions{})
	if err != nil {
		return nil, false, err
	}
	defer body.Close()
	if info.Size < 0 || info.Size > MaxSize {
		return nil, false, tooLarge(info.Size)
	}
	data = make([]byte, info.Size)
	if _, err = io.ReadFull(body, data); err != nil {
		return nil, ctx.Err() == nil, fmt.Errorf("%w: %w", errBrokenOff, err)
	}
	return data, false, nil
}

// errBrokenOff says that a blob ended before its end.
var errBrokenOff = errors.New("the answer broke off")

// Delete implements Store.
func (s *S3) Delete(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	err := s.call(ctx, func(ctx context.Context) error {
		return s.core.Client.RemoveObject(ctx, s.bucket, s.prefix+key, minio.RemoveObjectOptions{})
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("delete blob %s: %w", key, err)
	}
	return nil
}

// List implements Store.
func (s *S3) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := checkPrefix(prefix); err != nil {
			yield(Info{}, err)
			return
		}
		limited, cancel := context.WithCancel(ctx)
		defer cancel()
		// The time that the caller takes for an item does not count.
		clock := time.AfterFunc(s.timeout, cancel)
		defer clock.Stop()
		objects := s.core.Client.ListObjectsIter(limited, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true})
		for object := range objects {
			clock.Stop()
			if object.Err != nil {
				yield(Info{}, fmt.Errorf("list blobs: %w", explain(ctx, object.Err)))
				return
			}
			key := strings.TrimPrefix(object.Key, s.prefix)
			if checkKey(key) == nil && !yield(Info{Key: key, Size: object.Size, ModTime: object.LastModified}, nil) {
				return
			}
			clock.Reset(s.timeout)
		}
		if err := limited.Err(); err != nil {
			yield(Info{}, fmt.Errorf("list blobs: %w", explain(ctx, err)))
		}
	}
}

// call makes a call within the timeout. The library does not repeat one that
// met another (409): S3 answers so to calls for one object at a time, and
// servers on a filesystem when a folder of the object comes or goes just then.
func (s *S3) call(ctx context.Context, do func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	for try := 1; ; try++ {
		err := do(limited)
		if try >= s.tries || minio.ToErrorResponse(err).StatusCode != http.StatusConflict {
			return explain(ctx, err)
		}
		select {
		case <-time.After(time.Duration(try) * conflictPause):
		case <-limited.Done():
			return explain(ctx, limited.Err())
		}
	}
}

// explain gives an error of the library the meaning that this package has for
// it. ctx is the caller's.
func explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	answer := minio.ToErrorResponse(err)
	var network net.Error
	var request *url.Error
	switch {
	case answer.Code == minio.NoSuchKey:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case answer.StatusCode >= 500 || answer.StatusCode == http.StatusTooManyRequests,
		errors.As(err, &network), errors.As(err, &request),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, errBrokenOff):
		return &skerry.Error{Code: skerry.CodeUnavailable, Message: "the blob storage does not answer", Err: err}
	}
	return err
}
