package skerry

import (
	"net/url"
	"regexp"
	"strings"
)

// The types of a Source.
const (
	SourceGit      = "git"
	SourceTarball  = "tarball"
	SourceSnapshot = "snapshot"
)

// Limits of a Source.
const (
	// MaxSourceURL limits the URL, in bytes. Servers accept 4 to 8 KiB.
	MaxSourceURL = 4096
	// MaxSourceDepth is more commits than any repository has. git reads the depth
	// as a 32-bit number.
	MaxSourceDepth = 1 << 30
	// MaxRevision limits the revision, in bytes. git stores a branch as a file,
	// whose name has at most 255.
	MaxRevision = 256
	// MaxCredential limits the user name and the password, in bytes. git sends
	// them in a header; servers accept 8 to 16 KiB.
	MaxCredential = 16 << 10
)

// Validate checks a source, and moves credentials from its URL to its fields. Nil
// is valid. The messages never repeat the URL: it may contain a password.
func (s *Source) Validate(field string) error {
	if s == nil {
		return nil
	}
	switch s.Type {
	case SourceSnapshot:
		if s.SnapshotID == "" {
			return Invalid(field+".snapshotId", "is required")
		}
		if !ValidID(PrefixSnapshot, s.SnapshotID) {
			return Invalid(field+".snapshotId", "%.64q is not the id of a snapshot", s.SnapshotID)
		}
		return nil
	case SourceGit, SourceTarball:
	default:
		return Invalid(field+".type", "must be %s, %s or %s, is %.32q", SourceGit, SourceTarball, SourceSnapshot, s.Type)
	}
	if err := s.validateURL(field + ".url"); err != nil {
		return err
	}
	if strings.ContainsAny(s.Username+s.Password, "\x00\r\n") {
		return Invalid(field+".password", "must not contain a line break or NUL byte; neither may %s.username", field)
	}
	if len(s.Username) > MaxCredential || len(s.Password) > MaxCredential {
		return Invalid(field+".password", "must have at most %d bytes; so must %s.username", MaxCredential, field)
	}
	if s.Depth < 0 || s.Depth > MaxSourceDepth {
		return Invalid(field+".depth", "must be from 1 to %d", MaxSourceDepth)
	}
	if len(s.Revision) > MaxRevision || !revisionPattern.MatchString(s.Revision) {
		return Invalid(field+".revision", "is not the name of a branch, a tag or a commit")
	}
	if s.Type == SourceTarball && (s.Depth != 0 || s.Revision != "" || s.Password != "") {
		return Invalid(field, "must have only a url if its type is tarball")
	}
	return nil
}

func (s *Source) validateURL(field string) error {
	if s.URL == "" {
		return Invalid(field, "is required")
	}
	if len(s.URL) > MaxSourceURL {
		return Invalid(field, "must have at most %d bytes", MaxSourceURL)
	}
	u, err := url.Parse(s.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") ||
		strings.ContainsFunc(s.URL, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return Invalid(field, "must be an http or https URL")
	}
	if u.User == nil {
		return nil
	}
	if password, ok := u.User.Password(); ok && s.Password == "" {
		s.Username, s.Password = u.User.Username(), password
	}
	u.User = nil
	s.URL = u.String()
	// Characters that were not escaped are now. What is stored must be valid
	// again: a fork starts from it.
	if len(s.URL) > MaxSourceURL {
		return Invalid(field, "must have at most %d bytes without its credentials", MaxSourceURL)
	}
	return nil
}

// RevisionPattern is the form of a revision: what git takes for a name of a branch,
// a tag or a commit, and neither for an option nor for a refspec.
const RevisionPattern = `^([^\x00-\x20\x7f~^:?*\[\\+-][^\x00-\x20\x7f~^:?*\[\\]*)?$`

var revisionPattern = regexp.MustCompile(RevisionPattern)
