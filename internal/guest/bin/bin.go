// Package bin embeds the program of the guest agent. The Makefile builds it into this
// folder before it builds the server.
package bin

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

//go:embed *
var files embed.FS

// ErrMissing reports that the server was built without the guest agent.
var ErrMissing = errors.New("this program was built without the guest agent: build it with make")

// Agent returns the guest agent, a static Linux program.
func Agent() ([]byte, error) {
	b, err := files.ReadFile("agent")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("read the guest agent: %w", err)
	}
	return b, nil
}
