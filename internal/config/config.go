// Package config reads and writes the file that says which Skerry server to
// talk to and as whom. The command-line tool and the Go SDK read it, "sandbox
// login" writes it, and so does a server that hands out its first token.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skerry-dev/skerry/internal/atomicfile"
)

// DefaultURL is where a server started without settings listens.
const DefaultURL = "http://127.0.0.1:7700"

// maxSize bounds what is read of the file; a real one is a few hundred bytes.
const maxSize = 64 << 10

// Config is the content of the file. An empty field is not set.
type Config struct {
	// URL of the server, without the paths of the API.
	URL string `json:"url,omitempty"`
	// Token is the bearer token. It is a secret: the file is readable by its
	// owner alone.
	Token string `json:"token,omitempty"`
	// Team is the id or the slug of a team, Project the id or the name of one
	// of its projects.
	Team    string `json:"team,omitempty"`
	Project string `json:"project,omitempty"`
}

// Path returns where the file is: skerry/config.json under $XDG_CONFIG_HOME,
// or under ~/.config when that is not set. It is the same on macOS and
// Windows, so that one sentence of documentation holds everywhere.
func Path() (string, error) {
	dir := os.Getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) { // the XDG specification: relative paths are ignored
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find the configuration file: %w", err)
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "skerry", "config.json"), nil
}

// Load reads the file. One that does not exist is an empty Config.
func Load(path string) (Config, error) {
	var c Config
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	if info.Size() > maxSize {
		return c, fmt.Errorf("read configuration: %s is larger than %d bytes", path, maxSize)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		// The error of the JSON package may quote the file, hence a secret.
		return Config{}, fmt.Errorf("read configuration: %s is not a JSON object with the strings url, token, team and project", path)
	}
	return c, nil
}

// Save writes the file with mode 0600, making its directory when needed. A
// reader sees the old content or the new one, never a part.
func (c Config) Save(path string) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := atomicfile.Write(path, append(b, '\n')); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// WithToken returns c with another token. The team and the project that c has
// are those of the token it had, so they go with it.
func (c Config) WithToken(token string) Config {
	if token != c.Token {
		c.Token, c.Team, c.Project = token, "", ""
	}
	return c
}

// WithEnvironment returns c with the fields that SKERRY_URL, SKERRY_TOKEN,
// SKERRY_TEAM and SKERRY_PROJECT set replaced, as WithToken does for the token.
// An empty variable is not set.
func (c Config) WithEnvironment(getenv func(string) string) Config {
	if token := getenv("SKERRY_TOKEN"); token != "" {
		c = c.WithToken(token)
	}
	for name, field := range map[string]*string{
		"SKERRY_URL":     &c.URL,
		"SKERRY_TEAM":    &c.Team,
		"SKERRY_PROJECT": &c.Project,
	} {
		if v := getenv(name); v != "" {
			*field = v
		}
	}
	return c
}
