package skerry_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// TestBounds: what is as large as it may be is taken, and one more is refused.
func TestBounds(t *testing.T) {
	var limits skerry.Limits
	many := func(n int, name func(i int) string) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[name(i)] = "v"
		}
		return m
	}
	letters := func(n int) string { return strings.Repeat("x", n) }
	numbered := func(i int) string { return fmt.Sprint("n", i) }
	mounts := func(n int) map[string]skerry.Mount {
		m := map[string]skerry.Mount{}
		for i := range n {
			m[fmt.Sprint("/mnt/", i)] = skerry.Mount{Drive: fmt.Sprint("drive", i)}
		}
		return m
	}
	ports := func(n int) (list []int) {
		for i := range n {
			list = append(list, 1+i)
		}
		return list
	}
	expiration := func(d time.Duration) *skerry.Duration {
		e := skerry.Duration(d)
		return &e
	}
	for _, bound := range []struct {
		what  string
		most  int
		over  int
		check func(n int) error
	}{
		{"a name's bytes", skerry.MaxNameLength, 1, func(n int) error { return skerry.ValidateName("name", letters(n)) }},
		{"tags", skerry.MaxTags, 1, func(n int) error { return skerry.ValidateTags("tags", many(n, numbered)) }},
		{"a tag's name", skerry.MaxTagBytes, 1, func(n int) error { return skerry.ValidateTags("tags", map[string]string{letters(n): ""}) }},
		{"a tag's value", skerry.MaxTagBytes, 1, func(n int) error { return skerry.ValidateTags("tags", map[string]string{"a": letters(n)}) }},
		{"variables", skerry.MaxEnv, 1, func(n int) error { return skerry.ValidateEnv("env", many(n, numbered)) }},
		{"bytes of a variable's name", skerry.MaxEnvName, 1, func(n int) error { return skerry.ValidateEnv("env", map[string]string{letters(n): ""}) }},
		{"bytes of variables", skerry.MaxEnvBytes, 1, func(n int) error { return skerry.ValidateEnv("env", map[string]string{"A": letters(n - 1)}) }},
		{"vCPUs", skerry.DefaultMaxVCPUs, skerry.DefaultMaxVCPUs, func(n int) error { return skerry.ValidateSize(n, n*skerry.MemoryPerVCPU, limits) }},
		{"ms of a timeout", int(skerry.MaxTimeout.Milliseconds()), 1, func(n int) error {
			return skerry.ValidateTimeout("timeout", skerry.Duration(time.Duration(n)*time.Millisecond), limits)
		}},
		{"ms short of the least timeout", 0, 1, func(n int) error {
			return skerry.ValidateTimeout("timeout", skerry.Duration(skerry.MinTimeout-time.Duration(n)*time.Millisecond), limits)
		}},
		{"s short of the least expiration", 0, 1, func(n int) error {
			return skerry.ValidateExpiration("expiration", expiration(skerry.MinSnapshotExpiration-time.Duration(n)*time.Second))
		}},
		{"snapshots to keep", skerry.MaxKeepLast, 1, func(n int) error { return (&skerry.Retention{Count: n}).Validate("keepLastSnapshots") }},
		{"mounts", skerry.MaxMounts, 1, func(n int) error { return skerry.ValidateMounts("mounts", mounts(n)) }},
		{"ports", skerry.DefaultMaxPorts, 1, func(n int) error { return skerry.ValidatePorts(ports(n), nil, nil, limits) }},
		{"a path's bytes", skerry.MaxPathLength - 1, 1, func(n int) error { return skerry.ValidatePath("cwd", "/"+letters(n-1)) }},
		{"arguments", skerry.MaxArgs, 1, func(n int) error {
			return (&skerry.CommandParams{Name: "true", Args: make([]string, n)}).Validate()
		}},
		{"bytes of arguments", skerry.MaxArgBytes, 1, func(n int) error {
			return (&skerry.TerminalParams{Name: "true", Args: []string{letters(n - len("true"))}}).Validate()
		}},
		{"variables of a terminal", skerry.MaxEnv, 1, func(n int) error {
			return (&skerry.TerminalParams{Name: "true", Env: slices.Repeat([]string{"A=b"}, n)}).Validate()
		}},
		{"bytes of variables of a terminal", skerry.MaxEnvBytes, 1, func(n int) error {
			return (&skerry.TerminalParams{Name: "true", Env: []string{"A=" + letters(n-2), "A="}}).Validate()
		}},
		{"a token's name", skerry.MaxNameLength, 1, func(n int) error { return skerry.ValidateTokenName("name", letters(n)) }},
		{"a reference's bytes", skerry.MaxImageReference, 1, func(n int) error { return skerry.ValidateImage("image", letters(n)) }},
		{"a password's bytes", skerry.MaxCredential, 1, func(n int) error {
			return (&skerry.Source{Type: "git", URL: "https://example.com/", Password: letters(n)}).Validate("source")
		}},
		{"s of a route's token", int(skerry.MaxRouteToken.Seconds()), 1, func(n int) error {
			return skerry.ValidateRouteToken("expiration", skerry.Duration(time.Duration(n)*time.Second))
		}},
		{"a signal", skerry.MaxSignal, 1, func(n int) error { return skerry.ValidateSignal("signal", int64(n)) }},
		{"bytes of a drive", skerry.MaxDriveSize, 1, func(n int) error {
			return (&skerry.DriveParams{Name: "d", MaxSizeBytes: int64(n)}).Validate(limits)
		}},
		{"columns", skerry.MaxWindow, 1, func(n int) error { return (&skerry.TerminalParams{Name: "sh", Cols: uint16(n)}).Validate() }},
		{"rows", skerry.MaxWindow, 1, func(n int) error { return (&skerry.TerminalParams{Name: "sh", Rows: uint16(n)}).Validate() }},
		{"a revision's bytes", skerry.MaxRevision, 1, func(n int) error {
			return (&skerry.Source{Type: "git", URL: "https://example.com/", Revision: letters(n)}).Validate("source")
		}},
		{"commits", skerry.MaxSourceDepth, 1, func(n int) error {
			return (&skerry.Source{Type: "git", URL: "https://example.com/", Depth: n}).Validate("source")
		}},
		{"a URL's bytes", skerry.MaxSourceURL, 1, func(n int) error {
			return (&skerry.Source{Type: "tarball", URL: "https://example.com/" + letters(n-len("https://example.com/"))}).Validate("source")
		}},
	} {
		if err := bound.check(bound.most); err != nil {
			t.Errorf("%d %s: %v", bound.most, bound.what, err)
		}
		if err := bound.check(bound.most + bound.over); skerry.CodeOf(err) != skerry.CodeBadRequest && skerry.CodeOf(err) != skerry.CodeTimeoutInvalid {
			t.Errorf("%d %s: %v, want a refusal", bound.most+bound.over, bound.what, err)
		}
	}
}

func TestValidateCreate(t *testing.T) {
	limits := skerry.Limits{MaxTimeout: time.Hour, MaxVCPUs: 8}
	many := map[string]string{}
	for i := range skerry.MaxTags + 1 {
		many[strings.Repeat("x", i+1)] = ""
	}
	for what, tt := range map[string]struct {
		p     skerry.CreateParams
		field string
		code  skerry.Code
	}{
		"a long name":        {skerry.CreateParams{Name: strings.Repeat("n", 10_000)}, "name", ""},
		"a space":            {skerry.CreateParams{Name: "a b"}, "name", ""},
		"an exclamation":     {skerry.CreateParams{Name: "a!"}, "name", ""},
		"an option":          {skerry.CreateParams{Name: "-a"}, "name", ""},
		"a slash":            {skerry.CreateParams{Name: "a/b"}, "name", ""},
		"a NUL":              {skerry.CreateParams{Name: "a\x00b"}, "name", ""},
		"invalid UTF-8":      {skerry.CreateParams{Name: "a\xff"}, "name", ""},
		"a reserved name":    {skerry.CreateParams{Name: "sessions"}, "name", ""},
		"dots":               {skerry.CreateParams{Name: ".."}, "name", ""},
		"runtime and image":  {skerry.CreateParams{Runtime: "node24", Image: "x"}, "runtime", ""},
		"a short timeout":    {skerry.CreateParams{Timeout: 1}, "timeout", ""},
		"a negative timeout": {skerry.CreateParams{Timeout: -1}, "timeout", skerry.CodeTimeoutInvalid},
		"a long timeout":     {skerry.CreateParams{Timeout: skerry.Duration(2 * time.Hour)}, "timeout", skerry.CodeTimeoutInvalid},
		"three CPUs":         {skerry.CreateParams{VCPUs: 3}, "resources.vcpus", ""},
		"negative CPUs":      {skerry.CreateParams{VCPUs: -2}, "resources.vcpus", ""},
		"too many CPUs":      {skerry.CreateParams{VCPUs: 16}, "resources.vcpus", ""},
		"odd memory":         {skerry.CreateParams{VCPUs: 2, MemoryMB: 5000}, "resources.memory", ""},
		"a variable's name":  {skerry.CreateParams{Env: map[string]string{"A=B": ""}}, "env", ""},
		"a variable's value": {skerry.CreateParams{Env: map[string]string{"A": "\x00"}}, "env.A", ""},
		"large variables":    {skerry.CreateParams{Env: map[string]string{"A": strings.Repeat("x", skerry.MaxEnvBytes)}}, "env", ""},
		"many tags":          {skerry.CreateParams{Tags: many}, "tags", ""},
		"an empty tag":       {skerry.CreateParams{Tags: map[string]string{"": "x"}}, "tags", ""},
	} {
		if tt.code == "" {
			tt.code = skerry.CodeBadRequest
		}
		if tt.p.Name == "" {
			tt.p.Name = "a"
		}
		if tt.p.Timeout == 0 {
			tt.p.Timeout = skerry.Duration(time.Minute)
		}
		if tt.p.VCPUs == 0 {
			tt.p.VCPUs = 1
		}
		if tt.p.MemoryMB == 0 {
			tt.p.MemoryMB = tt.p.VCPUs * skerry.MemoryPerVCPU
		}
		err := tt.p.Validate(limits)
		e, ok := err.(*skerry.Error)
		if !ok || e.Code != tt.code || e.Field != tt.field {
			t.Errorf("%s: %v, want %s about %s", what, err, tt.code, tt.field)
		}
	}
	good := skerry.CreateParams{Name: "Name-with_all.1", Timeout: skerry.Duration(time.Minute), VCPUs: 8, MemoryMB: 16384, Env: map[string]string{"npm_config_a-b.c": "x"}}
	if err := good.Validate(limits); err != nil {
		t.Errorf("a good sandbox: %v", err)
	}
}

func TestValidateCommand(t *testing.T) {
	for what, tt := range map[string]struct {
		p     skerry.CommandParams
		field string
	}{
		"nothing":      {skerry.CommandParams{}, "command"},
		"NUL":          {skerry.CommandParams{Name: "a\x00"}, "command"},
		"NUL argument": {skerry.CommandParams{Name: "a", Args: []string{"\x00"}}, "args"},
		"too long":     {skerry.CommandParams{Name: "a", Args: []string{strings.Repeat("x", skerry.MaxArgBytes)}}, "args"},
		"too many":     {skerry.CommandParams{Name: "a", Args: make([]string, skerry.MaxArgs+1)}, "args"},
		"a long cwd":   {skerry.CommandParams{Name: "a", Cwd: strings.Repeat("x", skerry.MaxPathLength)}, "cwd"},
		"a timeout":    {skerry.CommandParams{Name: "a", Timeout: -1}, "timeout"},
	} {
		if e, ok := tt.p.Validate().(*skerry.Error); !ok || e.Field != tt.field {
			t.Errorf("%s: %v, want an error about %s", what, e, tt.field)
		}
	}
}

func TestValidateSource(t *testing.T) {
	for what, s := range map[string]skerry.Source{
		"no type":          {URL: "https://example.com/x"},
		"no URL":           {Type: "git"},
		"a file":           {Type: "git", URL: "file:///etc"},
		"ssh":              {Type: "git", URL: "ssh://git@example.com/x"},
		"a space":          {Type: "git", URL: "https://example.com/a b"},
		"an option":        {Type: "git", URL: "--upload-pack=x"},
		"revision":         {Type: "git", URL: "https://example.com/x", Revision: "--help"},
		"refspec":          {Type: "git", URL: "https://example.com/x", Revision: "a:b"},
		"depth":            {Type: "git", URL: "https://example.com/x", Depth: -1},
		"password":         {Type: "git", URL: "https://example.com/x", Password: "a\nb"},
		"tarball of depth": {Type: "tarball", URL: "https://example.com/x", Depth: 1},
	} {
		err := s.Validate("source")
		if e, ok := err.(*skerry.Error); !ok || !strings.HasPrefix(e.Field, "source") {
			t.Errorf("%s: %v", what, err)
		}
	}
	s := skerry.Source{Type: "git", URL: "https://alice:s3cret@example.com/x.git"}
	if err := s.Validate("source"); err != nil || s.URL != "https://example.com/x.git" || s.Username != "alice" || s.Password != "s3cret" {
		t.Errorf("credentials in the URL: %+v, %v", s, err)
	}
	bad := skerry.Source{Type: "git", URL: "ftp://alice:s3cret@example.com/x.git"}
	if err := bad.Validate("source"); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("the error tells the password: %v", err)
	}
}

// FuzzValidateSource: what is accepted is harmless as an argument, and is accepted
// again, because a fork starts from what is stored.
func FuzzValidateSource(f *testing.F) {
	f.Add("git", "https://a:b@example.com/\u00fc?"+strings.Repeat("\u00fc", 1000), "-x")
	f.Add("git", "https://a:b@example.com/x", "main")
	f.Fuzz(func(t *testing.T, kind, url, revision string) {
		s := skerry.Source{Type: kind, URL: url, Revision: revision}
		if s.Validate("source") != nil {
			return
		}
		if s.Type != skerry.SourceSnapshot && !strings.HasPrefix(strings.ToLower(s.URL), "http") || strings.ContainsAny(s.URL, " \n\x00") || strings.HasPrefix(s.Revision, "-") {
			t.Errorf("accepted %+v", s)
		}
		again := s
		if err := again.Validate("source"); err != nil || again != s {
			t.Errorf("%+v became %+v, %v", s, again, err)
		}
	})
}

func TestMountPaths(t *testing.T) {
	at := func(path, drive string, mode skerry.MountMode) map[string]skerry.Mount {
		return map[string]skerry.Mount{path: {Drive: drive, Mode: mode}}
	}
	refused := func(what string, mounts map[string]skerry.Mount) {
		t.Helper()
		if err := skerry.ValidateMounts("mounts", mounts); skerry.CodeOf(err) != skerry.CodeBadRequest {
			t.Errorf("%s: %v, want a refusal", what, err)
		}
	}
	for _, good := range []string{"/data", "/vercel/sandbox", "/vercel/sandbox/data", "/home/vercel-sandbox/.cache", "/etc/app", "/mnt", "/usr/local/share/x", "/devices"} {
		if err := skerry.ValidateMounts("mounts", at(good, "d", "")); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", "data", "./data", "/", "//", "/data/", "/a/../b", "/a/./b", "/a//b", "/etc", "/usr", "/bin", "/lib64", "/var", "/vercel",
		"/proc", "/proc/sys", "/sys/fs/cgroup", "/dev", "/dev/shm", "/.skerry", "/.skerry/x", "/vercel/runtimes", "/vercel/runtimes/node24",
		"/a\nb", "/" + strings.Repeat("x", 256), "/" + strings.Repeat("x/", 2100) + "x",
	} {
		refused(bad, at(bad, "d", ""))
	}
	for what, mounts := range map[string]map[string]skerry.Mount{
		"nested":     {"/data": {Drive: "a"}, "/data/x": {Drive: "b"}},
		"twice":      {"/a": {Drive: "a"}, "/b": {Drive: "a", Mode: skerry.MountSnapshot}},
		"a mode":     at("/a", "a", "write"),
		"no drive":   at("/a", "", ""),
		"nested two": {"/data": {Drive: "a"}, "/data-x": {Drive: "c"}, "/data/y": {Drive: "b"}},
	} {
		refused(what, mounts)
	}
	many := map[string]skerry.Mount{}
	for _, r := range "abcdefghijklmnopq" {
		many["/"+string(r)] = skerry.Mount{Drive: string(r)}
	}
	refused("17 mounts", many)
}

func TestAudience(t *testing.T) {
	for _, good := range []string{"", "sts.amazonaws.com", "https://vault.example.com:8200/a?b=c#d", "api://AzureADTokenExchange", strings.Repeat("a", skerry.MaxAudience)} {
		if err := skerry.ValidateAudience("oidcAudience", good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{" ", "a b", "a\n", "\x00", "é", `"`, `\`, "\x7f", strings.Repeat("a", skerry.MaxAudience+1)} {
		p := skerry.CreateParams{Name: "a", Timeout: skerry.Duration(time.Minute), VCPUs: 1, MemoryMB: 2048, OIDCAudience: bad}
		var e *skerry.Error
		if err := p.Validate(skerry.Limits{}); !errors.As(err, &e) || e.Field != "oidcAudience" || e.Code != skerry.CodeBadRequest {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
