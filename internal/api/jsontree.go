package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
)

// maxDepth bounds how deep a request body nests; the deepest that the API
// knows, a network policy, has nine levels.
const maxDepth = 32

// parseTree reads one JSON value into maps, slices, strings, bools, nil and
// json.Number. It is stricter than encoding/json, whose leniencies let two
// readers of the same bytes see different things: invalid UTF-8, a key given
// twice and data after the value are errors.
func parseTree(data []byte) (any, error) {
	if !utf8.Valid(data) {
		return nil, skerry.Invalid("", "the body is not valid UTF-8")
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, skerry.Invalid("", "the body is not valid JSON: %s at byte %d", syntax, syntax.Offset)
		}
		return nil, skerry.Invalid("", "the body is not valid JSON")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return readValue(dec, "", 0)
}

func readValue(dec *json.Decoder, path string, depth int) (any, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, fmt.Errorf("reading checked JSON: %w", err)
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if depth == maxDepth {
		return nil, skerry.Invalid(path, "nested deeper than %d levels", maxDepth)
	}
	if delim == '[' {
		return readArray(dec, path, depth+1)
	}
	return readObject(dec, path, depth+1)
}

func readArray(dec *json.Decoder, path string, depth int) (any, error) {
	list := []any{}
	for dec.More() {
		v, err := readValue(dec, index(path, len(list)), depth)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := dec.Token()
	return list, err
}

func readObject(dec *json.Decoder, path string, depth int) (any, error) {
	members := map[string]any{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("reading checked JSON: %w", err)
		}
		key := tok.(string)
		if _, twice := members[key]; twice {
			return nil, skerry.Invalid(member(path, key), "given twice")
		}
		v, err := readValue(dec, member(path, key), depth)
		if err != nil {
			return nil, err
		}
		members[key] = v
	}
	_, err := dec.Token()
	return members, err
}

// maxPathShown bounds a field path in a message, since its parts are the
// client's own words.
const maxPathShown = 200

func member(path, key string) string {
	if len(path)+len(key) > maxPathShown {
		key = "…"
		if len(path) > maxPathShown {
			return path
		}
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }
