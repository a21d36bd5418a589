package skerry

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The functions and methods in the files validate*.go are the only rules for
// what a client may send. The API decodes requests, the controller validates
// them with these, and the layers below the controller rely on it. Code that
// reads from a peer that may be hostile calls the same functions again.
//
// Every error is a *Error that names the field at fault, in the words of the API.

// Limits are the limits that an installation sets. A zero field is the default.
type Limits struct {
	MaxTimeout   time.Duration
	MaxVCPUs     int
	MaxPorts     int
	MaxDriveSize int64
	// MaxMemoryMB is the maximum memory of one sandbox. Zero means no limit
	// besides the one that follows from MaxVCPUs.
	MaxMemoryMB int
}

// WithDefaults returns l with its zero fields set to the defaults.
func (l Limits) WithDefaults() Limits {
	if l.MaxTimeout == 0 {
		l.MaxTimeout = MaxTimeout
	}
	if l.MaxVCPUs == 0 {
		l.MaxVCPUs = DefaultMaxVCPUs
	}
	if l.MaxPorts == 0 {
		l.MaxPorts = DefaultMaxPorts
	}
	if l.MaxDriveSize == 0 {
		l.MaxDriveSize = MaxDriveSize
	}
	return l
}

// Validate checks the parameters of a new sandbox. Defaults must be filled in:
// a field that is still zero is judged as zero. It rewrites the source, the
// mounts and the network policy in canonical form.
func (p *CreateParams) Validate(l Limits) error {
	if err := ValidateName("name", p.Name); err != nil {
		return err
	}
	if p.Runtime != "" && p.Image != "" {
		return Invalid("runtime", "cannot be combined with image")
	}
	if p.Image != "" && p.Source != nil && p.Source.Type == SourceSnapshot {
		return Invalid("image", "cannot be combined with a snapshot, which has its own image")
	}
	if err := ValidateImage("image", p.Image); err != nil {
		return err
	}
	if err := ValidateTimeout("timeout", p.Timeout, l); err != nil {
		return err
	}
	if err := ValidateSize(p.VCPUs, p.MemoryMB, l); err != nil {
		return err
	}
	if err := ValidatePorts(p.Ports, p.PrivatePorts, p.Ports, l); err != nil {
		return err
	}
	if err := p.Source.Validate("source"); err != nil {
		return err
	}
	if err := ValidateAudience("oidcAudience", p.OIDCAudience); err != nil {
		return err
	}
	return validateSettings(settings{p.Env, p.Tags, p.SnapshotExpiration, p.Retention, p.Mounts, p.Policy, p.Idle})
}

// MaxAudience limits the audience of a workload token, in bytes. AudiencePattern are its
// characters: printable ones of ASCII without spaces, quotes and backslashes.
const (
	MaxAudience     = 256
	AudiencePattern = `^[!#-\[\]-~]*$`
)

var audiencePattern = regexp.MustCompile(AudiencePattern)

// ValidateAudience checks the audience of a workload token, usually a URL or a host name.
func ValidateAudience(field, audience string) error {
	if len(audience) > MaxAudience {
		return Invalid(field, "must have at most %d bytes, has %d", MaxAudience, len(audience))
	}
	if !audiencePattern.MatchString(audience) {
		return Invalid(field, "must contain only printable ASCII characters without spaces, quotes and backslashes")
	}
	return nil
}

// Validate checks a change of a sandbox, except for its ports: which ports are
// published afterwards depends on the sandbox. It rewrites the mounts and the
// network policy in canonical form.
func (p *UpdateParams) Validate(l Limits) error {
	if p.Timeout != nil {
		if err := ValidateTimeout("timeout", *p.Timeout, l); err != nil {
			return err
		}
	}
	if p.VCPUs == nil && p.MemoryMB != nil {
		return Invalid("resources.memory", "cannot be changed without resources.vcpus")
	}
	if p.VCPUs != nil {
		memory := *p.VCPUs * MemoryPerVCPU
		if p.MemoryMB != nil {
			memory = *p.MemoryMB
		}
		if err := ValidateSize(*p.VCPUs, memory, l); err != nil {
			return err
		}
	}
	return validateSettings(settings{p.Env, p.Tags, p.SnapshotExpiration, p.Retention, p.Mounts, p.Policy, p.Idle})
}

// settings are the fields that creating and changing a sandbox have in common.
type settings struct {
	env, tags  map[string]string
	expiration *Duration
	retention  *Retention
	mounts     map[string]Mount
	policy     *NetworkPolicy
	idle       *IdleMode
}

func validateSettings(s settings) error {
	if err := ValidateEnv("env", s.env); err != nil {
		return err
	}
	if err := ValidateTags("tags", s.tags); err != nil {
		return err
	}
	if s.idle != nil {
		if err := s.idle.Validate("idle"); err != nil {
			return err
		}
	}
	if err := ValidateExpiration("snapshotExpiration", s.expiration); err != nil {
		return err
	}
	if err := s.retention.Validate("keepLastSnapshots"); err != nil {
		return err
	}
	if err := ValidateMounts("mounts", s.mounts); err != nil {
		return err
	}
	if s.policy == nil {
		return nil
	}
	return s.policy.Validate("networkPolicy")
}

// Validate checks the parameters of a snapshot.
func (p *SnapshotParams) Validate() error { return ValidateExpiration("expiration", p.Expiration) }

// Validate checks the parameters of a new drive. A size of 0 must have been
// replaced by the default.
func (p *DriveParams) Validate(l Limits) error {
	if err := ValidateName("name", p.Name); err != nil {
		return err
	}
	if most := l.WithDefaults().MaxDriveSize; p.MaxSizeBytes < MinDriveSize || p.MaxSizeBytes > most {
		return Invalid("maxSizeBytes", "must be from %d to %d bytes, is %d", MinDriveSize, most, p.MaxSizeBytes)
	}
	return nil
}

// ReservedNames are words of the API's paths. A sandbox with such a name could
// not be reached.
var ReservedNames = []string{"sessions", "snapshots", "drives"}

var namePattern = regexp.MustCompile(NamePattern)

// ValidateName checks the name of a new sandbox or drive. Names of existing ones
// are not checked: earlier versions accepted others, which must stay reachable.
func ValidateName(field, name string) error {
	if len(name) == 0 || len(name) > MaxNameLength {
		return Invalid(field, "must have from 1 to %d bytes, has %d", MaxNameLength, len(name))
	}
	if !namePattern.MatchString(name) {
		return Invalid(field, "must contain only letters, digits and the characters - _ . and begin with a letter or digit, is %.64q", name)
	}
	if slices.Contains(ReservedNames, name) {
		return Invalid(field, "must not be %q, which is reserved", name)
	}
	return nil
}

// ValidateTokenName checks the name of an access token, which is for people to
// read.
func ValidateTokenName(field, name string) error {
	if name == "" || len(name) > MaxNameLength || strings.ContainsFunc(name, isControl) {
		return Invalid(field, "must have from 1 to %d printable bytes", MaxNameLength)
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// ValidateImage checks what can be known of the reference of an image without the
// image store. "" is the default image.
func ValidateImage(field, ref string) error {
	if len(ref) > MaxImageReference {
		return Invalid(field, "must have at most %d bytes, has %d", MaxImageReference, len(ref))
	}
	return nil
}

// ValidateTimeout checks the timeout of a session.
func ValidateTimeout(field string, d Duration, l Limits) error {
	if err := ValidatePositive(field, d); err != nil {
		return err
	}
	if d.Std() < MinTimeout {
		return Invalid(field, "must be at least %s (%d ms), is %d ms", durationText(MinTimeout), MinTimeout.Milliseconds(), d.Millis())
	}
	if most := l.WithDefaults().MaxTimeout; d.Std() > most {
		e := Invalid(field, "must be at most %s (%d ms), is %d ms", durationText(most), most.Milliseconds(), d.Millis())
		e.Code = CodeTimeoutInvalid
		return e
	}
	return nil
}

// durationText writes a duration without the units at its end that are zero: 24h.
func durationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// ValidatePositive checks a duration that has no other limits here: the timeout
// of a command, or the extension of a session's timeout.
func ValidatePositive(field string, d Duration) error {
	if d > 0 {
		return nil
	}
	return &Error{Code: CodeTimeoutInvalid, Field: field, Message: "must be a positive number of milliseconds"}
}

// ValidateSize checks the size of a machine. The public API has 1, 2, 4, 8 …
// vCPUs with 2048 MiB of memory each.
func ValidateSize(vcpus, memoryMB int, l Limits) error {
	l = l.WithDefaults()
	if vcpus < 1 || vcpus > l.MaxVCPUs || vcpus&(vcpus-1) != 0 {
		return Invalid("resources.vcpus", "must be a power of two from 1 to %d, is %d", l.MaxVCPUs, vcpus)
	}
	if l.MaxMemoryMB > 0 && memoryMB > l.MaxMemoryMB {
		return Invalid("resources.memory", "must be at most %d MiB on this server, is %d MiB", l.MaxMemoryMB, memoryMB)
	}
	if want := vcpus * MemoryPerVCPU; memoryMB != want {
		return Invalid("resources.memory", "must be %d for %d vCPUs (%d for each), is %d", want, vcpus, MemoryPerVCPU, memoryMB)
	}
	return nil
}

// ValidatePorts checks the ports that a client wants to publish. Private ports
// must be among all, the ports that are published afterwards.
func ValidatePorts(ports, private, all []int, l Limits) error {
	if most := l.WithDefaults().MaxPorts; len(ports) > most {
		return Invalid("ports", "must have at most %d entries, has %d", most, len(ports))
	}
	for i, port := range ports {
		field := at("ports", i)
		if err := ValidatePort(field, port); err != nil {
			return err
		}
		if slices.Contains(ports[:i], port) {
			return Invalid(field, "is %d, which is listed already", port)
		}
	}
	for i, port := range private {
		if !slices.Contains(all, port) {
			return Invalid(at("privatePorts", i), "is %d, which is not among the published ports", port)
		}
	}
	return nil
}

// ValidatePort checks a TCP port.
func ValidatePort(field string, port int) error {
	if port < 1 || port > MaxPort {
		return Invalid(field, "must be from 1 to %d, is %d", MaxPort, port)
	}
	return nil
}

// EnvNamePattern is the form of the name of an environment variable: what every
// shell accepts, and the dots and dashes that some programs use.
const EnvNamePattern = `^[A-Za-z_][A-Za-z0-9_.-]*$`

var envNamePattern = regexp.MustCompile(EnvNamePattern)

// ValidEnvName reports whether name can be the name of an environment variable.
func ValidEnvName(name string) bool {
	return len(name) <= MaxEnvName && envNamePattern.MatchString(name)
}

// ValidateEnv checks an environment. Its errors name a variable, never a value.
func ValidateEnv(field string, env map[string]string) error {
	if len(env) > MaxEnv {
		return Invalid(field, "must have at most %d variables, has %d", MaxEnv, len(env))
	}
	total := 0
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if !ValidEnvName(name) {
			return Invalid(field, "%.64q is not the name of an environment variable", name)
		}
		if strings.ContainsRune(env[name], 0) {
			return Invalid(field+"."+name, "must not contain a NUL byte")
		}
		total += len(name) + len(env[name])
	}
	if total > MaxEnvBytes {
		return Invalid(field, "must have at most %d bytes in total, has %d", MaxEnvBytes, total)
	}
	return nil
}

// ValidateTags checks the tags of a sandbox.
func ValidateTags(field string, tags map[string]string) error {
	if len(tags) > MaxTags {
		return Invalid(field, "must have at most %d entries, has %d", MaxTags, len(tags))
	}
	for _, name := range slices.Sorted(maps.Keys(tags)) {
		if name == "" || len(name) > MaxTagBytes || len(tags[name]) > MaxTagBytes {
			return Invalid(field, "the name %.64q must have from 1 to %[2]d bytes, and its value at most %[2]d", name, MaxTagBytes)
		}
	}
	return nil
}

// ValidateExpiration checks how long a snapshot is kept. Nil is the default.
func ValidateExpiration(field string, d *Duration) error {
	if d != nil && *d != 0 && d.Std() < MinSnapshotExpiration {
		return Invalid(field, "must be 0 (no expiration) or at least %d ms, is %d", MinSnapshotExpiration.Milliseconds(), d.Millis())
	}
	return nil
}

// Validate checks which snapshots are kept. Nil is valid.
func (r *Retention) Validate(field string) error {
	if r == nil {
		return nil
	}
	if r.Count < 1 || r.Count > MaxKeepLast {
		return Invalid(field+".count", "must be from 1 to %d, is %d", MaxKeepLast, r.Count)
	}
	return ValidateExpiration(field+".expiration", r.Expiration)
}

// ValidateRouteToken checks how long a token for a private port is valid.
func ValidateRouteToken(field string, life Duration) error {
	if life.Std() < MinRouteToken || life.Std() > MaxRouteToken {
		return Invalid(field, "must be from %d to %d ms, is %d", MinRouteToken.Milliseconds(), MaxRouteToken.Milliseconds(), life.Millis())
	}
	return nil
}

// ValidatePath checks what can be known of a path without the sandbox. "" is the
// working directory.
func ValidatePath(field, path string) error {
	if len(path) >= MaxPathLength {
		return Invalid(field, "must have at most %d bytes", MaxPathLength-1)
	}
	if strings.ContainsRune(path, 0) {
		return Invalid(field, "must not contain a NUL byte")
	}
	return nil
}

// ValidateFile checks the path of a file or folder, and the folder that a relative
// path starts from.
func ValidateFile(cwd, path string) error {
	if path == "" {
		return Invalid("path", "must not be empty")
	}
	if err := ValidatePath("path", path); err != nil {
		return err
	}
	return ValidatePath("cwd", cwd)
}

// at is the field of an entry of a list.
func at(name string, i int) string { return fmt.Sprintf("%s[%d]", name, i) }
