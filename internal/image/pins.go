package image

import (
	_ "embed"
	"encoding/json"
	"fmt"
)

// pinsJSON is the lock file of what the default image takes from package
// registries. Registries may be mirrors; the hashes decide.
//
//go:embed pins.json
var pinsJSON []byte

// pins is the lock file: packages of npm and PyPI by the role they play here,
// with "-GOARCH" appended where the role has one per architecture.
type pins struct {
	NPM  map[string]npmPin  `json:"npm"`
	PyPI map[string]pypiPin `json:"pypi"`
}

type npmPin struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// Integrity is "sha512-" and the base64 of the tarball's hash.
	Integrity string `json:"integrity"`
}

type pypiPin struct {
	Name   string `json:"name"`
	File   string `json:"file"`
	SHA256 string `json:"sha256"`
}

func loadPins() (pins, error) {
	var p pins
	if err := json.Unmarshal(pinsJSON, &p); err != nil {
		return pins{}, fmt.Errorf("reading the lock file of the default image: %w", err)
	}
	return p, nil
}

func (p pins) npm(role string) (npmPin, error) {
	pin, ok := p.NPM[role]
	if !ok {
		return npmPin{}, fmt.Errorf("the default image has no npm package for %s", role)
	}
	return pin, nil
}

func (p pins) pypi(role string) (pypiPin, error) {
	pin, ok := p.PyPI[role]
	if !ok {
		return pypiPin{}, fmt.Errorf("the default image has no PyPI package for %s", role)
	}
	return pin, nil
}
