package workloads

// groups is what is run. What gVisor cannot run is in docs/compatibility.md.
var groups = []group{
	{"tools", []workload{
		{
			name: "git as root", // in a repository of the user's
			run:  "git init -q repo; sudo git -C repo status --short --branch; sudo sh -c 'echo $SUDO_USER'",
			want: []string{"No commits yet", "vercel-sandbox"},
		},
		{
			name: "py-spy", install: "pip install -q --disable-pip-version-check py-spy",
			run:  `python3 -c 'import time; time.sleep(60)' & sleep 1; sudo $(command -v py-spy || echo ~/.local/bin/py-spy) dump --pid $!; kill $!`,
			want: []string{"python3 -c", "<module>"},
		},
		{
			name: "gdb", packages: "gdb gcc libc6-dev",
			install: "printf 'int f(int x){return x+1;}\\nint main(){int y=f(41);return y-42;}\\n' >t.c; gcc -g t.c -o t",
			run:     "gdb -q -batch -ex 'break f' -ex run -ex bt -ex 'print x' -ex continue ./t 2>&1",
			want:    []string{"Breakpoint 1, f (x=41)", "main () at t.c", "$1 = 41", "exited normally"},
		},
		{
			name: "bubblewrap", packages: "bubblewrap",
			run:  "bwrap --ro-bind / / --dev /dev --proc /proc --unshare-all sh -c 'echo inside; ls /proc | grep -c \"^[0-9]\"; touch x 2>&1 || true; ip -br addr'",
			want: []string{"inside", "Read-only file system", "127.0.0.1"},
		},
		{
			name: "sandbox-runtime", packages: "socat ripgrep", install: "npm install -s -g @anthropic-ai/sandbox-runtime",
			run:  "srt echo inside; srt touch ~/x 2>&1 || echo refused; srt curl -sSf https://registry.npmjs.org/ 2>&1 || echo unreached",
			want: []string{"inside", "refused", "unreached"},
		},
		{
			name: "codex", slow: true, install: "npm install -s -g @openai/codex",
			run:  "codex sandbox -- echo inside; codex sandbox -- touch ~/x 2>&1 || echo refused",
			want: []string{"inside", "refused"},
		},
	}},
	{"containers", []workload{
		{
			name: "docker", packages: "docker.io docker-cli busybox-static", slow: true,
			install: `sudo sh -c 'nohup dockerd --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs >/tmp/dockerd.log 2>&1 &'
for i in $(seq 300); do sudo docker info >/dev/null 2>&1 && break; sleep 0.2; done
mkdir -p rootfs/bin && cp /bin/busybox rootfs/bin/ && tar -C rootfs -c . | sudo docker import - bb >/dev/null
printf 'FROM bb\nRUN ["/bin/busybox","touch","/made"]\nCMD ["/bin/busybox","ls","/made"]\n' >Dockerfile`,
			run: `sudo docker run --rm --network host bb /bin/busybox echo with the host network
sudo docker run --rm --network none -m 64m --pids-limit 20 --cpus 0.5 -u 1000 -v /tmp:/seen bb /bin/busybox sh -c '/bin/busybox id -u; /bin/busybox ls /seen/dockerd.log'
sudo DOCKER_BUILDKIT=0 docker build -q -t made --network host . 2>/dev/null; sudo docker run --rm --network none made`,
			want: []string{"with the host network", "1000", "/seen/dockerd.log", "/made"},
		},
		{
			name: "rootless podman", packages: "podman uidmap crun busybox-static", slow: true,
			install: "mkdir -p podman/bin && cp /bin/busybox podman/bin/ && tar -C podman -c . | podman --storage-driver=vfs import - bb >/dev/null 2>&1",
			run:     "podman --storage-driver=vfs run --rm --cgroups=disabled --network host -v /tmp:/seen bb /bin/busybox sh -c '/bin/busybox id -u; /bin/busybox ls -d /seen'",
			want:    []string{"0", "/seen"},
		},
	}},
	{"java", []workload{{
		name: "default-jdk", packages: "default-jdk-headless", slow: true,
		install: `printf 'public class T { public static void main(String[] a) throws Exception { System.out.println(((java.net.HttpURLConnection) java.net.URI.create("https://pypi.org/simple/six/").toURL().openConnection()).getResponseCode()); } }' >T.java; javac T.java`,
		run:     "java T", want: []string{"200"},
	}}},
	{"servers", []workload{
		{
			name: "PostgreSQL", packages: "postgresql", slow: true,
			install: "sudo pg_ctlcluster $(pg_lsclusters -h | cut -d' ' -f1) main start",
			run:     "cd /; sudo -u postgres psql -qAtc 'create table t(x int); insert into t select generate_series(1,10000); create index on t(x); select sum(x) from t'",
			want:    []string{"50005000"},
		},
		{
			name: "Chromium with Playwright", packages: "chromium", slow: true,
			install: "mkdir -p browser; cd browser; PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm install -s --no-audit --no-fund playwright-core",
			run: `cd browser; node -e '
const { chromium } = require("playwright-core");
(async () => {
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
  const page = await browser.newPage();
  await page.setContent("<button onclick=\"document.title=6*7\">go</button>");
  await page.click("button");
  console.log("title", await page.title(), (await page.screenshot()).length > 1000);
  await browser.close();
})();'`,
			want: []string{"title 42 true"},
		},
	}},
}
