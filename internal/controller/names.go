package controller

import (
	"crypto/rand"
	"math/big"
	"path"
	"slices"
	"strings"

	"github.com/skerry-dev/skerry"
)

// Names that the service gives are a word for the weather, a word for the
// coast and enough random letters to be unique in any project.
var (
	firstWords  = strings.Fields("amber brisk calm clear cold deep drifting early foggy gentle golden grey hazy high late light low misty mild northern pale quiet rainy salty silver slow soft southern still stormy sunny swift warm western wide wild windy")
	secondWords = strings.Fields("anchor auk bay beacon buoy cape cliff coast cove current dune eider fjord gannet gull harbour heron holm inlet island isle kelp kittiwake lagoon ledge mussel petrel pier plover puffin reef seal shoal shore skua sound spit strait tern tide wave wrack")
)

const nameLetters = "abcdefghjkmnpqrstvwxyz23456789"

func generateName() string {
	var b strings.Builder
	b.WriteString(firstWords[random(len(firstWords))])
	b.WriteByte('-')
	b.WriteString(secondWords[random(len(secondWords))])
	b.WriteByte('-')
	for range 6 {
		b.WriteByte(nameLetters[random(len(nameLetters))])
	}
	return b.String()
}

func random(n int) int {
	i, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return int(i.Int64())
}

// hostname makes a DNS label of a sandbox's name.
func hostname(name string) string {
	label := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + ('a' - 'A')
		}
		return '-'
	}, name)
	label = strings.Trim(label[:min(len(label), 63)], "-")
	if label == "" {
		return "sandbox"
	}
	return label
}

// resolveCwd is the directory that a command's cwd means.
func resolveCwd(cwd string) string {
	if path.IsAbs(cwd) {
		return path.Clean(cwd)
	}
	return path.Join(skerry.WorkDir, cwd)
}

// runtimeDirs is where each runtime of the default image is.
var runtimeDirs = map[string]string{
	"node24":     "/vercel/runtimes/node24/bin",
	"node26":     "/vercel/runtimes/node26/bin",
	"node22":     "/vercel/runtimes/node22/bin",
	"python3.13": "/vercel/runtimes/python/bin",
}

// systemPath follows the runtimes on PATH. pip puts the programs of the packages
// that the user installs into the user's own folder.
const systemPath = "/vercel/bin:/home/" + skerry.DefaultUser + "/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// runtimePath is PATH with the chosen runtime first and the others behind it.
func runtimePath(chosen string, all []string) string {
	order := append([]string{chosen}, slices.DeleteFunc(slices.Clone(all), func(r string) bool { return r == chosen })...)
	var dirs []string
	for _, r := range order {
		if dir := runtimeDirs[r]; dir != "" {
			dirs = append(dirs, dir)
		}
	}
	return strings.Join(append(dirs, systemPath), ":")
}
