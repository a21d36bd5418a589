package image

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

const (
	// recipeVersion is raised with every change of how the default image is
	// put together that the rest of the recipe does not show.
	recipeVersion = 3
	debianSuite   = "trixie"
	debianMirror  = "http://deb.debian.org/debian"
	// debianKeyring checks the archive's signatures; the package of the same
	// name has it, in Ubuntu too.
	debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

// debianPackages are what the default image has beyond a minimal Debian: what
// Vercel's documentation promises, what the SDKs call, and what is missed most
// when working in a sandbox.
var debianPackages = []string{
	"bash", "bind9-dnsutils", "bzip2", "ca-certificates", "curl", "debianutils", "file", "findutils", "git", "gzip",
	"iproute2", "iputils-ping", "jq", "less", "libatomic1", "libicu76", "libjpeg62-turbo", "libpng16-16t64",
	"libstdc++6", "lsof", "nano", "ncurses-base", "ncurses-bin", "netcat-openbsd", "openssh-client", "openssl",
	"passwd", "procps", "python3", "python3-pip", "python3-venv", "strace", "sudo", "tar", "tzdata", "unzip",
	"util-linux", "vim-tiny", "wget", "whois", "xz-utils", "zip", "zstd",
}

// dpkgExcludes keep documentation and translations out, also of what is
// installed later in a sandbox.
var dpkgExcludes = []string{
	"path-exclude=/usr/share/doc/*",
	"path-include=/usr/share/doc/*/copyright",
	"path-exclude=/usr/share/man/*",
	"path-exclude=/usr/share/info/*",
	"path-exclude=/usr/share/locale/*",
	"path-exclude=/usr/share/lintian/*",
}

// recipe is all that decides what is in the default image.
type recipe struct {
	Version  int
	Arch     string
	Sources  []string
	Packages []string
	DpkgOpts []string
	Pins     pins
}

func (s *Store) recipe() (recipe, error) {
	p, err := loadPins()
	if err != nil {
		return recipe{}, err
	}
	return recipe{
		Version: recipeVersion, Arch: runtime.GOARCH, Sources: s.debianSources(),
		Packages: debianPackages, DpkgOpts: dpkgExcludes, Pins: p,
	}, nil
}

// key identifies a recipe: images with the same key need no second build.
func (r recipe) key() (string, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("hashing the recipe of the default image: %w", err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), nil
}

// debianSources returns the apt sources, one a line, that the image is built
// from and has in it.
func (s *Store) debianSources() []string {
	main, security := s.opt.Mirror, s.opt.SecurityMirror
	if main == "" {
		main, security = machineMirrors("/etc/os-release", "/etc/apt")
	}
	line := func(mirror, suite string) string {
		return fmt.Sprintf("deb [signed-by=%s] %s %s main", debianKeyring, mirror, suite)
	}
	sources := []string{line(main, debianSuite), line(main, debianSuite+"-updates")}
	if security != "" {
		sources = append(sources, line(security, debianSuite+"-security"))
	}
	return sources
}

// machineMirrors returns the Debian mirrors that this machine's apt uses, or
// Debian's own if the machine is not Debian or uses none over HTTP.
func machineMirrors(osRelease, aptDir string) (main, security string) {
	main, security = debianMirror, debianMirror+"-security"
	if configValue(osRelease, "ID") != "debian" {
		return main, security
	}
	files, _ := filepath.Glob(filepath.Join(aptDir, "sources.list.d", "*")) // the pattern is well formed
	for _, file := range append([]string{filepath.Join(aptDir, "sources.list")}, files...) {
		for _, url := range aptURLs(file) {
			switch {
			case strings.HasSuffix(url, "/debian"):
				main = url
			case strings.HasSuffix(url, "/debian-security"):
				security = url
			}
		}
	}
	return main, security
}

// aptURLs returns the HTTP URLs in a sources file of either of apt's formats,
// without the slash at their end.
func aptURLs(file string) []string {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	var urls []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, "deb ") && !strings.HasPrefix(line, "URIs:") {
			continue
		}
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "http://") || strings.HasPrefix(word, "https://") {
				urls = append(urls, strings.TrimSuffix(word, "/"))
			}
		}
	}
	return urls
}
