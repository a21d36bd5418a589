package controller

import (
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

func TestValidateCreate(t *testing.T) {
	c := New(Config{MaxTimeout: time.Hour, MaxVCPUs: 8})
	defer c.Close()
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
		"a slash":            {skerry.CreateParams{Name: "a/b"}, "name", ""},
		"a NUL":              {skerry.CreateParams{Name: "a\x00b"}, "name", ""},
		"invalid UTF-8":      {skerry.CreateParams{Name: "a\xff"}, "name", ""},
		"a reserved name":    {skerry.CreateParams{Name: "sessions"}, "name", ""},
		"dots":               {skerry.CreateParams{Name: ".."}, "name", ""},
		"runtime and image":  {skerry.CreateParams{Runtime: "node24", Image: "x"}, "runtime", ""},
		"a short timeout":    {skerry.CreateParams{Timeout: 1}, "timeout", ""},
		"a negative timeout": {skerry.CreateParams{Timeout: -1}, "timeout", ""},
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
		err := c.validateCreate(&tt.p)
		e, ok := err.(*skerry.Error)
		if !ok || e.Code != tt.code || e.Field != tt.field {
			t.Errorf("%s: %v, want %s about %s", what, err, tt.code, tt.field)
		}
	}
	good := skerry.CreateParams{Name: "Ünïcode name_1.x", VCPUs: 8, MemoryMB: 16384, Env: map[string]string{"npm_config_a-b.c": "x"}}
	if err := c.validateCreate(&good); err != nil {
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
		"too long":     {skerry.CommandParams{Name: "a", Args: []string{strings.Repeat("x", maxArgBytes)}}, "args"},
		"too many":     {skerry.CommandParams{Name: "a", Args: make([]string, maxArgs+1)}, "args"},
		"a long cwd":   {skerry.CommandParams{Name: "a", Cwd: strings.Repeat("x", skerry.MaxPathLength)}, "cwd"},
		"a timeout":    {skerry.CommandParams{Name: "a", Timeout: -1}, "timeout"},
	} {
		if e, ok := validateCommand(&tt.p).(*skerry.Error); !ok || e.Field != tt.field {
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
		err := validateSource(&s)
		if e, ok := err.(*skerry.Error); !ok || !strings.HasPrefix(e.Field, "source") {
			t.Errorf("%s: %v", what, err)
		}
	}
	s := skerry.Source{Type: "git", URL: "https://alice:s3cret@example.com/x.git"}
	if err := validateSource(&s); err != nil || s.URL != "https://example.com/x.git" || s.Username != "alice" || s.Password != "s3cret" {
		t.Errorf("credentials in the URL: %+v, %v", s, err)
	}
	bad := skerry.Source{Type: "git", URL: "ftp://alice:s3cret@example.com/x.git"}
	if err := validateSource(&bad); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("the error tells the password: %v", err)
	}
}

func FuzzValidateSource(f *testing.F) {
	f.Add("git", "https://a:b@example.com/x", "main")
	f.Fuzz(func(t *testing.T, kind, url, revision string) {
		s := skerry.Source{Type: kind, URL: url, Revision: revision}
		if validateSource(&s) != nil {
			return
		}
		if !strings.HasPrefix(s.URL, "http") || strings.ContainsAny(s.URL, " \n\x00") || strings.HasPrefix(s.Revision, "-") {
			t.Errorf("accepted %+v", s)
		}
	})
}

func TestHostname(t *testing.T) {
	for name, want := range map[string]string{
		"mine": "mine", "My Box": "my-box", "--x--": "x", "日本": "sandbox", strings.Repeat("a", 100): strings.Repeat("a", 63), "a_b.c": "a-b-c",
	} {
		if got := hostname(name); got != want {
			t.Errorf("hostname(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestRuntimePath(t *testing.T) {
	got := runtimePath("python3.13", []string{"node24", "python3.13"})
	if want := "/vercel/runtimes/python/bin:/vercel/runtimes/node24/bin:" + systemPath; got != want {
		t.Errorf("PATH is %s, want %s", got, want)
	}
}
