// Package patches holds the changes that Skerry makes to modules it is built
// with. scripts/gvisor applies them to a copy of the module.
package patches

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io"
	"io/fs"
	"strings"
)

//go:embed gvisor/*.patch
var gvisor embed.FS

// Patch is one change.
type Patch struct {
	// Name is the file's, without its ending.
	Name string
	// Without says in a sentence what is weaker in a program built without it.
	Without string
}

// GVisor returns the patches to gVisor in the order they are applied.
func GVisor() []Patch {
	var all []Patch
	eachFile(func(name, text string) {
		p := Patch{Name: strings.TrimSuffix(name, ".patch")}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "---") {
				break
			}
			if without, ok := strings.CutPrefix(line, "Without it: "); ok {
				p.Without = strings.TrimSpace(without)
			}
		}
		all = append(all, p)
	})
	return all
}

// GVisorVersion identifies the patches to gVisor: another patch, another version.
func GVisorVersion() string {
	h := sha256.New()
	eachFile(func(name, text string) { _, _ = io.WriteString(h, name+"\x00"+text+"\x00") })
	return hex.EncodeToString(h.Sum(nil)[:6])
}

// eachFile calls f for each patch to gVisor, in order.
func eachFile(f func(name, text string)) {
	entries, err := fs.ReadDir(gvisor, "gvisor") // sorted by name
	if err != nil {
		panic(err) // they are in the program
	}
	for _, e := range entries {
		text, err := gvisor.ReadFile("gvisor/" + e.Name())
		if err != nil {
			panic(err)
		}
		f(e.Name(), string(text))
	}
}
