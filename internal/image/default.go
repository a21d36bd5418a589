package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// defaultRuntimes are the runtimes of the default image, the default first.
var defaultRuntimes = []string{skerry.DefaultRuntime, "node26", "node22", "python3.13"}

// BuildDefault makes the default image, unless the store has it already, and
// makes it the one that sandboxes start from. It needs root, mmdebstrap and
// mkfs.erofs. If it fails or ctx ends, nothing is left behind.
func (s *Store) BuildDefault(ctx context.Context, progress Progress) (Meta, error) {
	return s.makeDefault(ctx, false, progress)
}

// RefreshDefault makes the default image anew, from the packages that Debian has
// today. Sandboxes and snapshots that start from the one before go on with it,
// and GC removes it once there are none.
func (s *Store) RefreshDefault(ctx context.Context, progress Progress) (Meta, error) {
	return s.makeDefault(ctx, true, progress)
}

func (s *Store) makeDefault(ctx context.Context, anew bool, progress Progress) (Meta, error) {
	r, err := s.recipe()
	if err != nil {
		return Meta{}, err
	}
	key, err := r.key()
	if err != nil {
		return Meta{}, err
	}
	if !anew {
		if m, ok, err := s.reuse(ctx, "recipe:"+key, defaultRef); ok || err != nil {
			progress.report("ready", 100)
			return m, err
		}
	}
	w, err := s.newWork(ctx, "default-"+key)
	if err != nil {
		return Meta{}, err
	}
	m, err := s.buildDefault(ctx, w, r, "recipe:"+key, anew, progress)
	if closeErr := w.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("cleaning up after building the default image: %w", closeErr)
	}
	return m, err
}

func (s *Store) buildDefault(ctx context.Context, w *work, r recipe, source string, anew bool, progress Progress) (Meta, error) {
	// Whoever held the lock before may have built it.
	if !anew {
		if m, ok, err := s.reuse(ctx, source, defaultRef); ok || err != nil {
			progress.report("ready", 100)
			return m, err
		}
	}
	root := filepath.Join(w.dir, "root")
	if err := bootstrap(ctx, w, r, root, progress); err != nil {
		return Meta{}, fmt.Errorf("installing Debian for the default image: %w", err)
	}
	if err := installRuntimes(ctx, w, r, root, progress); err != nil {
		return Meta{}, fmt.Errorf("installing runtimes for the default image: %w", err)
	}
	progress.report("configuring", 85)
	if err := configure(ctx, w, root); err != nil {
		return Meta{}, fmt.Errorf("configuring the default image: %w", err)
	}
	progress.report("packing", 90)
	packed := filepath.Join(w.dir, "image.erofs")
	if err := BuildEROFS(ctx, root, packed); err != nil {
		return Meta{}, err
	}
	progress.report("storing", 97)
	m, err := s.add(ctx, packed, Meta{
		Source: source, Runtimes: defaultRuntimes,
		Env: map[string]string{"LANG": "C.UTF-8"}, WorkDir: skerry.WorkDir, User: skerry.DefaultUser,
	}, defaultRef)
	if err != nil {
		return Meta{}, err
	}
	progress.report("ready", 100)
	return m, nil
}

// reuse finds a stored image that was made from source and makes names stand
// for it.
func (s *Store) reuse(ctx context.Context, source string, names ...string) (Meta, bool, error) {
	held, err := lock(ctx, s.path("lock"))
	if err != nil {
		return Meta{}, false, fmt.Errorf("looking for an image: %w", err)
	}
	defer held.Close()
	metas, err := s.metas()
	if err != nil {
		return Meta{}, false, err
	}
	slices.SortFunc(metas, func(a, b Meta) int { return b.CreatedAt.Compare(a.CreatedAt) }) // the newest first
	for _, m := range metas {
		if m.Source != source {
			continue
		}
		if _, err := s.Path(m.Digest); err != nil {
			continue
		}
		return m, true, s.setRefs(m.Digest, names)
	}
	return Meta{}, false, nil
}

// bootstrapSteps maps what mmdebstrap says to how far the whole build then is.
var bootstrapSteps = []struct {
	says, stage string
	percent     int
}{
	{"running apt-get update", "reading Debian's package lists", 2},
	{"downloading packages with apt", "downloading Debian", 8},
	{"installing essential packages", "installing Debian", 20},
	{"installing remaining packages", "installing Debian's packages", 30},
	{"cleaning package lists", "cleaning up", 55},
}

// bootstrap installs Debian into root.
func bootstrap(ctx context.Context, w *work, r recipe, root string, progress Progress) error {
	if _, err := os.Stat(debianKeyring); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing: install the package debian-archive-keyring", debianKeyring)
	}
	sources := filepath.Join(w.dir, "sources.list")
	if err := os.WriteFile(sources, []byte(strings.Join(r.Sources, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	args := []string{"--mode=root", "--variant=minbase", "--include=" + strings.Join(r.Packages, ",")}
	for _, o := range r.DpkgOpts {
		args = append(args, "--dpkgopt="+o)
	}
	// apt would drop to a user that cannot work in a sandbox.
	args = append(args, `--aptopt=APT::Sandbox::User "root"`, `--aptopt=APT::Install-Recommends "false"`)
	args = append(args, debianSuite, root, sources)
	progress.report("starting mmdebstrap", 1)
	return run(ctx, w.lock, func(line string) {
		for _, step := range bootstrapSteps {
			if strings.Contains(line, step.says) {
				progress.report(step.stage, step.percent)
			}
		}
	}, "mmdebstrap", args...)
}

// profile replaces Debian's own, which would take the runtime off the PATH
// of login shells.
const profile = `# System-wide profile for login shells. PATH is kept: it has the runtime.
export PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
if [ -n "${PS1-}" ]; then
  if [ -n "${BASH-}" ] && [ "$BASH" != "/bin/sh" ]; then
    [ -f /etc/bash.bashrc ] && . /etc/bash.bashrc
  elif [ "$(id -u)" -eq 0 ]; then
    PS1='# '
  else
    PS1='$ '
  fi
fi
for i in /etc/profile.d/*.sh; do
  [ -r "$i" ] && . "$i"
done
unset i
`

// expectedDirs are folders that the scripts of packages take for granted. They
// are gone with the documentation that is kept out.
var expectedDirs = []string{
	"usr/share/man/man1", "usr/share/man/man2", "usr/share/man/man3", "usr/share/man/man4", "usr/share/man/man5", "usr/share/man/man6",
	"usr/share/man/man7", "usr/share/man/man8", "usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/lintian/overrides",
}

// configFiles are files of the default image that no package has. sudo keeps
// the environment of the sandbox's user, so that it finds the runtime too.
var configFiles = []struct {
	path, content string
	mode          os.FileMode
}{
	{"etc/hostname", "sandbox\n", 0o644},
	{"etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n", 0o644},
	{"etc/resolv.conf", "", 0o644},
	{"etc/profile", profile, 0o644},
	{"etc/default/locale", "LANG=C.UTF-8\n", 0o644},
	{"etc/sudoers.d/" + skerry.DefaultUser, skerry.DefaultUser + " ALL=(ALL:ALL) NOPASSWD:ALL\n", 0o440},
	{"etc/sudoers.d/skerry-environment", wire.SudoEnvironment(skerry.DefaultUser, skerry.DefaultUID), 0o440},
}

// configure makes the user, its directories and the files of the image.
func configure(ctx context.Context, w *work, root string) error {
	uid := fmt.Sprint(skerry.DefaultUID)
	user := []string{
		root, "useradd", "--uid", uid, "--user-group", "--create-home", "--shell", "/bin/bash", skerry.DefaultUser,
	}
	if err := run(ctx, w.lock, nil, "chroot", user...); err != nil {
		return err
	}
	tree, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer tree.Close()
	for _, f := range configFiles {
		if err := replaceFile(tree, f.path, f.content, f.mode); err != nil {
			return err
		}
	}
	for _, dir := range expectedDirs {
		if err := tree.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := tree.Symlink("../proc/self/mounts", "etc/mtab"); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := allowPip(tree); err != nil {
		return err
	}
	if err := makeWorkDir(tree); err != nil {
		return err
	}
	if err := tree.Chmod("tmp", 0o777|os.ModeSticky); err != nil {
		return err
	}
	// Debian leaves unprivileged ping to a kernel setting that a sandbox lacks.
	if err := tree.Chmod("usr/bin/ping", 0o755|os.ModeSetuid); err != nil {
		return err
	}
	return ownNodeRuntimes(tree)
}

func replaceFile(tree *os.Root, path, content string, mode os.FileMode) error {
	if err := tree.RemoveAll(path); err != nil {
		return err
	}
	if err := tree.WriteFile(path, []byte(content), mode); err != nil {
		return err
	}
	return tree.Chmod(path, mode) // whatever the umask
}

// allowPip removes Debian's marker that makes pip refuse to install anything:
// there is nothing in a sandbox to protect from it.
func allowPip(tree *os.Root) error {
	markers, err := fs.Glob(tree.FS(), "usr/lib/python3*/EXTERNALLY-MANAGED")
	if err != nil {
		return err
	}
	for _, m := range markers {
		if err := tree.Remove(m); err != nil {
			return err
		}
	}
	return nil
}

func makeWorkDir(tree *os.Root) error {
	dir := strings.TrimPrefix(skerry.WorkDir, "/")
	if err := tree.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := tree.Chmod(dir, 0o755); err != nil {
		return err
	}
	return tree.Chown(dir, skerry.DefaultUID, skerry.DefaultGID)
}

// ownNodeRuntimes gives node's folders to the sandbox's user, so that
// "npm install -g" works and puts programs on the PATH. The user can become
// root anyway.
func ownNodeRuntimes(tree *os.Root) error {
	for _, name := range []string{"node26", "node24", "node22"} {
		err := fs.WalkDir(tree.FS(), "vercel/runtimes/"+name, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return tree.Lchown(path, skerry.DefaultUID, skerry.DefaultGID)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
