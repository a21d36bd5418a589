package e2e

import (
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

// TestLeftovers: whatever root leaves in a sandbox's files, the sandbox is
// resumed and runs commands.
func TestLeftovers(t *testing.T) {
	s := newServer(t)
	const mountPoints = "/sys /dev /.skerry /proc" // umount needs the last one
	const unmount = "umount -l /.skerry/cgroup " + mountPoints + "; rm -rf " + mountPoints + "; "
	for name, script := range map[string]string{
		"files of the system are folders": `for f in hosts hostname resolv.conf passwd group; do rm -f /etc/$f; mkdir -p /etc/$f/full; done; rm -rf /home /etc/sudoers.d; touch /home /etc/sudoers.d`,
		"folders are links":               `rm -rf /tmp /home; ln -s gone /tmp; ln -s home /home; mv /etc /was; ln -s was /etc`,
		"mount points are links":          unmount + `ln -s gone /proc; ln -s sys /sys; ln -s /gone/dev /dev; ln -s .skerry /.skerry`,
		"mount points are files":          unmount + `touch ` + mountPoints,
		"every name to move them to":      `for m in ` + mountPoints + `; do seq -f "$m.displaced-%g" 0 200 | xargs touch; done; ` + unmount + `touch ` + mountPoints,
		"mount points are gone":           unmount,
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			sb := s.create(client.CreateOptions{VCPUs: 1})
			defer s.delete(sb)
			leave := sb.Command(t.Context(), "sh", "-c", script)
			leave.Sudo = true
			if out, err := leave.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if _, err := sb.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			const look = `id -u; wc -l </etc/hostname; test -c /dev/null && test -d /proc/1 && test -d /sys/class && test -w /tmp && echo whole`
			if got := s.output(sb, "sh", "-c", look); got != "1000\n1\nwhole" {
				t.Errorf("the sandbox that was resumed says %q", got)
			}
		})
	}
}

// TestWorkFolderGone: a sandbox whose work folder leads nowhere is resumed, says
// so where the folder is needed, and has it again once files are written.
func TestWorkFolderGone(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{VCPUs: 1})
	leave := sb.Command(t.Context(), "sh", "-c", "rm -rf /vercel/sandbox && ln -s /data/work /vercel/sandbox")
	leave.Sudo = true
	if out, err := leave.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := sb.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err := sb.Command(t.Context(), "true").CombinedOutput()
	if err == nil || !strings.Contains(string(out)+err.Error(), "working directory /vercel/sandbox") {
		t.Errorf("a command in the work folder: %v\n%s", err, out)
	}
	elsewhere := sb.Command(t.Context(), "readlink", "/vercel/sandbox")
	elsewhere.Dir = "/"
	if out, err := elsewhere.Output(); err != nil || strings.TrimSpace(string(out)) != "/data/work" {
		t.Errorf("a command elsewhere: %q, %v", out, err)
	}
	if err := sb.WriteFile(t.Context(), "made/again", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := s.output(sb, "sh", "-c", "pwd; stat -c %U . made; cat made/again"); got != "/vercel/sandbox\nvercel-sandbox\nvercel-sandbox\nx" {
		t.Errorf("the work folder that was made again: %q", got)
	}
}
