package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// maxLine is more than any line has, in bytes. The strings of a record are bounded, and
// JSON at most doubles them.
const maxLine = 16 << 10

// A line ends with its hash, of this form: the hash is that of the line's bytes without
// the member, that is with a brace in place of it.
const (
	hashMember = `,"hash":"`
	hashBytes  = 2 * sha256.Size
	sealBytes  = len(hashMember) + hashBytes + len(`"}`)
)

// noHash is what the first line of a log has as the hash of the line before.
var noHash = string(bytes.Repeat([]byte{'0'}, hashBytes))

// seal appends the line of a record to buf, with its line feed, and returns its hash too.
// The record has its Seq and Prev.
func seal(buf *bytes.Buffer, r *Record) (hash string) {
	r.Hash = ""
	begin := buf.Len()
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		panic("encoding a record: " + err.Error()) // it has only strings and numbers
	}
	body := buf.Bytes()[begin : buf.Len()-1] // without the line feed
	sum := sha256.Sum256(body)
	hash = hex.EncodeToString(sum[:])
	buf.Truncate(begin + len(body) - 1) // the brace
	buf.WriteString(hashMember)
	buf.WriteString(hash)
	buf.WriteString("\"}\n")
	return hash
}

// unseal checks that a line, without its line feed, has the hash that it says, and
// returns its record.
func unseal(line []byte) (*Record, error) {
	cut := len(line) - sealBytes
	if cut < 2 || len(line) > maxLine || !bytes.HasPrefix(line[cut:], []byte(hashMember)) || !bytes.HasSuffix(line, []byte(`"}`)) {
		return nil, errors.New("it is not a record")
	}
	said := line[cut+len(hashMember) : len(line)-2]
	h := sha256.New()
	h.Write(line[:cut])
	h.Write([]byte{'}'})
	if got := hex.EncodeToString(h.Sum(nil)); got != string(said) {
		return nil, errors.New("its hash is not the one that it says")
	}
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, fmt.Errorf("it is not a record: %w", err)
	}
	return &r, nil
}

// Parse returns the record of a line. It does not check its hash.
func Parse(line []byte) (*Record, error) {
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, err
	}
	return &r, nil
}
