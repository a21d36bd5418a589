package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	// maxDownload bounds one package; the largest, node, is under 60 MB.
	maxDownload = 512 << 20
	// maxIndex bounds the page that lists a PyPI package's files.
	maxIndex = 64 << 20
	// downloadTime bounds one try of one package, so that a registry that
	// stalls does not hold a build for ever.
	downloadTime = 10 * time.Minute
	// downloadTries covers a connection that breaks.
	downloadTries = 3
)

// packageRegistry downloads pinned packages from npm and PyPI, or from the
// mirrors of them that this machine is configured for.
type packageRegistry struct {
	npm, pypi string
	client    *http.Client
	// most bounds a package, patience one try of it; see above.
	most     int64
	patience time.Duration
}

func newPackageRegistry() *packageRegistry {
	home, _ := os.UserHomeDir() // without a home there is no configuration in it
	return &packageRegistry{
		npm:      npmRegistry(os.Getenv, home),
		pypi:     pypiIndex(os.Getenv, home),
		client:   &http.Client{},
		most:     maxDownload,
		patience: downloadTime,
	}
}

// npmRegistry returns the base URL of the npm registry, with a slash at its
// end.
func npmRegistry(getenv func(string) string, home string) string {
	registry := getenv("npm_config_registry")
	if registry == "" {
		registry = configValue(filepath.Join(home, ".npmrc"), "registry")
	}
	return baseURL(registry, "https://registry.npmjs.org/")
}

// pypiIndex returns the base URL of the PyPI simple index, with a slash at its
// end. The files are read in pip's order of precedence.
func pypiIndex(getenv func(string) string, home string) string {
	index := getenv("PIP_INDEX_URL")
	for _, file := range []string{
		getenv("PIP_CONFIG_FILE"), filepath.Join(home, ".config/pip/pip.conf"),
		filepath.Join(home, ".pip/pip.conf"), "/etc/pip.conf",
	} {
		if index != "" {
			break
		}
		index = configValue(file, "index-url")
	}
	return baseURL(index, "https://pypi.org/simple/")
}

func baseURL(configured, fallback string) string {
	if configured == "" {
		return fallback
	}
	return strings.TrimSuffix(configured, "/") + "/"
}

// configValue returns what a "key = value" file sets key to, or "".
func configValue(file, key string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		k, v, ok := strings.Cut(lines.Text(), "=")
		if ok && strings.TrimSpace(k) == key {
			return strings.Trim(strings.TrimSpace(v), `"'`)
		}
	}
	return ""
}

// fetchNPM downloads a package's tarball to file.
func (r *packageRegistry) fetchNPM(ctx context.Context, pin npmPin, file string) error {
	sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(pin.Integrity, "sha512-"))
	if err != nil {
		return fmt.Errorf("integrity of npm package %s: %w", pin.Name, err)
	}
	from := fmt.Sprintf("%s%s/-/%s-%s.tgz", r.npm, pin.Name, path.Base(pin.Name), pin.Version)
	if err := r.fetch(ctx, from, file, sha512.New, sum); err != nil {
		return fmt.Errorf("downloading npm package %s %s: %w", pin.Name, pin.Version, err)
	}
	return nil
}

// fetchPyPI downloads a wheel to file.
func (r *packageRegistry) fetchPyPI(ctx context.Context, pin pypiPin, file string) error {
	sum, err := hex.DecodeString(pin.SHA256)
	if err != nil {
		return fmt.Errorf("hash of PyPI file %s: %w", pin.File, err)
	}
	from, err := r.wheelURL(ctx, pin)
	if err != nil {
		return fmt.Errorf("looking up PyPI file %s: %w", pin.File, err)
	}
	if err := r.fetch(ctx, from, file, sha256.New, sum); err != nil {
		return fmt.Errorf("downloading PyPI file %s: %w", pin.File, err)
	}
	return nil
}

// wheelURL finds a file in the index, which answers in JSON, or in HTML if it
// is a mirror that knows no better.
func (r *packageRegistry) wheelURL(ctx context.Context, pin pypiPin) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	page := r.pypi + pin.Name + "/"
	resp, err := r.get(ctx, page, "application/vnd.pypi.simple.v1+json, text/html;q=0.1")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxIndex))
	if err != nil {
		return "", err
	}
	var link string
	if strings.Contains(resp.Header.Get("Content-Type"), "json") {
		link, err = linkInJSON(body, pin.File)
	} else {
		link, err = linkInHTML(body, pin.File)
	}
	if err != nil {
		return "", err
	}
	// Links may be relative to where redirects led.
	u, err := resp.Request.URL.Parse(link)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

func linkInJSON(body []byte, file string) (string, error) {
	var index struct {
		Files []struct{ Filename, URL string }
	}
	if err := json.Unmarshal(body, &index); err != nil {
		return "", fmt.Errorf("reading the index: %w", err)
	}
	for _, f := range index.Files {
		if f.Filename == file {
			return f.URL, nil
		}
	}
	return "", fmt.Errorf("the index does not list it")
}

func linkInHTML(body []byte, file string) (string, error) {
	link := regexp.MustCompile(`href="([^"#]*` + regexp.QuoteMeta(file) + `)[#"]`).FindSubmatch(body)
	if link == nil {
		return "", fmt.Errorf("the index does not list it")
	}
	return html.UnescapeString(string(link[1])), nil
}

// fetch downloads a URL to file and checks its hash.
func (r *packageRegistry) fetch(ctx context.Context, from, file string, newHash func() hash.Hash, want []byte) error {
	var err error
	for range downloadTries {
		if err = r.fetchOnce(ctx, from, file, newHash(), want); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (r *packageRegistry) fetchOnce(ctx context.Context, from, file string, sum hash.Hash, want []byte) error {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	resp, err := r.get(ctx, from, "*/*")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.MultiWriter(out, sum), io.LimitReader(resp.Body, r.most+1))
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	switch {
	case err != nil:
		return err
	case n > r.most:
		return fmt.Errorf("it is larger than %d bytes", r.most)
	case subtle.ConstantTimeCompare(sum.Sum(nil), want) != 1:
		return fmt.Errorf("its hash is not the pinned one")
	}
	return nil
}

func (r *packageRegistry) get(ctx context.Context, from, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, withoutURL(err)
	}
	req.Header.Set("Accept", accept)
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, withoutURL(err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s answered %s", resp.Request.URL.Host, resp.Status)
	}
	return resp, nil
}

// withoutURL drops the URL from an HTTP error: a configured registry may have
// a password in it.
func withoutURL(err error) error {
	if e, ok := err.(*url.Error); ok {
		return e.Err
	}
	return err
}
