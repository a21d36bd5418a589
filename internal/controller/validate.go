package controller

import (
	"path"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
)

// reservedNames are path segments of the API beside sandboxes' names.
var reservedNames = []string{"sessions", "snapshots", "drives", ".", ".."}

// Bounds of a command.
const (
	maxArgs     = 16384
	maxArgBytes = 1 << 20
)

// maxTag bounds a tag's name and its value, in bytes.
const maxTag = 256

func validateName(name string) error {
	if len(name) == 0 || len(name) > skerry.MaxNameLength {
		return skerry.Invalid("name", "must have 1 to %d bytes, has %d", skerry.MaxNameLength, len(name))
	}
	for _, r := range name {
		if r == utf8.RuneError || r < ' ' || r == 0x7f || strings.ContainsRune(`/\?#%`, r) {
			return skerry.Invalid("name", "must not hold control characters, slashes, or any of ?, # and %%")
		}
	}
	for _, n := range reservedNames {
		if name == n {
			return skerry.Invalid("name", "must not be %q, which has another meaning", name)
		}
	}
	return nil
}

// validateCreate checks what a client asks for and fills in defaults.
func (c *Controller) validateCreate(p *skerry.CreateParams) error {
	if p.Name == "" {
		p.Name = generateName()
	}
	if err := validateName(p.Name); err != nil {
		return err
	}
	if p.Runtime != "" && p.Image != "" {
		return skerry.Invalid("runtime", "cannot be combined with image")
	}
	if p.Timeout == 0 {
		p.Timeout = min(skerry.Duration(skerry.DefaultTimeout), skerry.Duration(c.cfg.MaxTimeout))
	}
	if err := c.validateTimeout(p.Timeout); err != nil {
		return err
	}
	if p.VCPUs == 0 {
		p.VCPUs = skerry.DefaultVCPUs
	}
	if p.MemoryMB == 0 {
		p.MemoryMB = p.VCPUs * skerry.MemoryPerVCPU
	}
	if err := c.validateResources(p.VCPUs, p.MemoryMB); err != nil {
		return err
	}
	if err := validateEnv("env", p.Env); err != nil {
		return err
	}
	if err := validateTags(p.Tags); err != nil {
		return err
	}
	if err := validateExpiration("snapshotExpiration", p.SnapshotExpiration); err != nil {
		return err
	}
	if err := validateRetention(p.Retention); err != nil {
		return err
	}
	if err := validateMounts(p.Mounts); err != nil {
		return err
	}
	if err := c.validatePorts(p.Ports, p.PrivatePorts, p.Ports); err != nil {
		return err
	}
	if err := validatePolicy(p.Policy); err != nil {
		return err
	}
	return validateSource(p.Source)
}

func validatePolicy(p *skerry.NetworkPolicy) error {
	if p == nil {
		return nil
	}
	return p.Check("networkPolicy")
}

// validateExpiration checks how long a snapshot shall be kept.
func validateExpiration(field string, d *skerry.Duration) error {
	if d != nil && *d != 0 && d.Std() < skerry.MinSnapshotExpiration {
		return skerry.Invalid(field, "must be 0 for never or at least %d ms, is %d", skerry.MinSnapshotExpiration.Milliseconds(), d.Millis())
	}
	return nil
}

func validateRetention(r *skerry.Retention) error {
	if r == nil {
		return nil
	}
	if r.Count < 1 || r.Count > skerry.MaxKeepLast {
		return skerry.Invalid("keepLastSnapshots.count", "must be 1 to %d, is %d", skerry.MaxKeepLast, r.Count)
	}
	return validateExpiration("keepLastSnapshots.expiration", r.Expiration)
}

func (c *Controller) validateUpdate(p *skerry.UpdateParams) error {
	if p.Timeout != nil {
		if err := c.validateTimeout(*p.Timeout); err != nil {
			return err
		}
	}
	if p.VCPUs != nil {
		memory := *p.VCPUs * skerry.MemoryPerVCPU
		if p.MemoryMB != nil {
			memory = *p.MemoryMB
		}
		if err := c.validateResources(*p.VCPUs, memory); err != nil {
			return err
		}
	} else if p.MemoryMB != nil {
		return skerry.Invalid("resources.memory", "cannot be changed without resources.vcpus")
	}
	if err := validateEnv("env", p.Env); err != nil {
		return err
	}
	if err := validateExpiration("snapshotExpiration", p.SnapshotExpiration); err != nil {
		return err
	}
	if err := validateRetention(p.Retention); err != nil {
		return err
	}
	if err := validateMounts(p.Mounts); err != nil {
		return err
	}
	if err := validatePolicy(p.Policy); err != nil {
		return err
	}
	return validateTags(p.Tags)
}

func (c *Controller) validateTimeout(d skerry.Duration) error {
	if d.Std() < skerry.MinTimeout {
		return skerry.Invalid("timeout", "must be at least %s (%d ms), is %d ms", skerry.MinTimeout, skerry.MinTimeout.Milliseconds(), d.Millis())
	}
	if d.Std() > c.cfg.MaxTimeout {
		e := skerry.Invalid("timeout", "must be at most %s (%d ms), is %d ms", c.cfg.MaxTimeout, c.cfg.MaxTimeout.Milliseconds(), d.Millis())
		e.Code = skerry.CodeTimeoutInvalid
		return e
	}
	return nil
}

// validateResources holds to the public API's rule: 1, 2, 4, 8 … vCPUs with
// 2048 MiB of memory each.
func (c *Controller) validateResources(vcpus, memory int) error {
	if vcpus < 1 || vcpus > c.cfg.MaxVCPUs || vcpus&(vcpus-1) != 0 {
		return skerry.Invalid("resources.vcpus", "must be a power of two from 1 to %d, is %d", c.cfg.MaxVCPUs, vcpus)
	}
	if want := vcpus * skerry.MemoryPerVCPU; memory != want {
		return skerry.Invalid("resources.memory", "must be %d for %d vCPUs (%d each), is %d", want, vcpus, skerry.MemoryPerVCPU, memory)
	}
	return nil
}

// envName is what every shell takes for a variable's name, and a little more:
// some programs use dots and dashes.
var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

// validateEnv names a variable at fault but never tells its value.
func validateEnv(field string, env map[string]string) error {
	if len(env) > skerry.MaxEnv {
		return skerry.Invalid(field, "has %d variables, more than %d", len(env), skerry.MaxEnv)
	}
	total := 0
	for name, value := range env {
		if len(name) > maxTag || !envName.MatchString(name) {
			return skerry.Invalid(field, "%.64q is not the name of an environment variable", name)
		}
		if strings.ContainsRune(value, 0) {
			return skerry.Invalid(field+"."+name, "holds a NUL byte")
		}
		total += len(name) + len(value)
	}
	if total > skerry.MaxEnvBytes {
		return skerry.Invalid(field, "has %d bytes, more than %d", total, skerry.MaxEnvBytes)
	}
	return nil
}

func validateTags(tags map[string]string) error {
	if len(tags) > skerry.MaxTags {
		return skerry.Invalid("tags", "are %d, more than %d", len(tags), skerry.MaxTags)
	}
	for name, value := range tags {
		if name == "" || len(name) > maxTag || len(value) > maxTag {
			return skerry.Invalid("tags", "the name %.64q or its value is empty or longer than %d bytes", name, maxTag)
		}
	}
	return nil
}

func validateCommand(p *skerry.CommandParams) error {
	if p.Name == "" {
		return skerry.Invalid("command", "is empty")
	}
	if err := validateArgs(p.Name, p.Args); err != nil {
		return err
	}
	if p.Timeout < 0 {
		return skerry.Invalid("timeout", "must not be negative")
	}
	if err := validatePath("cwd", p.Cwd); err != nil {
		return err
	}
	return validateEnv("env", p.Env)
}

func validateArgs(name string, args []string) error {
	if strings.ContainsRune(name, 0) {
		return skerry.Invalid("command", "holds a NUL byte")
	}
	if len(args) > maxArgs {
		return skerry.Invalid("args", "are %d, more than %d", len(args), maxArgs)
	}
	total := len(name)
	for _, a := range args {
		if strings.ContainsRune(a, 0) {
			return skerry.Invalid("args", "hold a NUL byte")
		}
		total += len(a)
	}
	if total > maxArgBytes {
		return skerry.Invalid("args", "have %d bytes, more than %d", total, maxArgBytes)
	}
	return nil
}

// maxWindow is more columns or rows than any terminal has.
const maxWindow = 4096

func validateTerminal(p *skerry.TerminalParams) error {
	if p.Name == "" {
		return skerry.Invalid("command", "is empty")
	}
	if err := validateArgs(p.Name, p.Args); err != nil {
		return err
	}
	if p.Cols > maxWindow || p.Rows > maxWindow {
		return skerry.Invalid("cols", "and rows must be at most %d", maxWindow)
	}
	env := map[string]string{}
	for _, kv := range p.Env {
		name, value, ok := strings.Cut(kv, "=")
		if !ok {
			return skerry.Invalid("env", "holds an entry without =")
		}
		env[name] = value
	}
	if err := validateEnv("env", env); err != nil {
		return err
	}
	return validatePath("cwd", p.Cwd)
}

// validatePath checks what can be known of a path without the sandbox; "" is
// the default.
func validatePath(field, p string) error {
	if len(p) >= skerry.MaxPathLength {
		return skerry.Invalid(field, "is longer than %d bytes", skerry.MaxPathLength-1)
	}
	if strings.ContainsRune(p, 0) {
		return skerry.Invalid(field, "holds a NUL byte")
	}
	return nil
}

// resolveCwd is the directory that a command's cwd means.
func resolveCwd(cwd string) string {
	if path.IsAbs(cwd) {
		return path.Clean(cwd)
	}
	return path.Join(skerry.WorkDir, cwd)
}
