package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
)

// maxDepth limits the nesting of a request body. A network policy, which is nested
// most, has nine levels.
const maxDepth = 32

// jsonObject is a JSON object with the order of its members.
type jsonObject struct {
	members map[string]any
	names   []string
}

// parseTree parses one JSON value into *jsonObject, []any, string, bool, nil and
// json.Number. It is stricter than encoding/json: invalid UTF-8, duplicate keys and data
// after the value are errors, because two parsers could read them differently.
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
		return nil, fmt.Errorf("parse valid JSON: %w", err)
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if depth == maxDepth {
		return nil, skerry.Invalid(path, "must not be nested deeper than %d levels", maxDepth)
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
	o := &jsonObject{members: map[string]any{}}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("parse valid JSON: %w", err)
		}
		key := tok.(string)
		if _, twice := o.members[key]; twice {
			return nil, skerry.Invalid(member(path, key), "must not be given twice")
		}
		v, err := readValue(dec, member(path, key), depth)
		if err != nil {
			return nil, err
		}
		o.members[key] = v
		o.names = append(o.names, key)
	}
	_, err := dec.Token()
	return o, err
}

// maxPathShown limits the path of a field in a message, because its parts come from the
// client.
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
