import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, suite, test } from "node:test";
import { fileURLToPath } from "node:url";

const wanted = ["SKERRY_URL", "SKERRY_TOKEN", "SKERRY_TEAM", "SKERRY_PROJECT"];
const missing = wanted.filter((name) => !process.env[name]);
if (missing.length > 0) {
  throw new Error(`set ${missing.join(", ")} to run this suite against a server`);
}
const { SKERRY_URL, SKERRY_TOKEN, SKERRY_TEAM, SKERRY_PROJECT } = process.env;

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const program = [process.execPath, "--import", here("redirect.mjs"), here("node_modules/sandbox/bin/sandbox.mjs")];

suite("the public CLI", () => {
  let home;
  const name = `cli-${randomBytes(6).toString("hex")}`;

  // run starts a program in a home of its own, so that no login of the user's
  // is used or changed, and returns how it ended.
  // With prompt and answer, it types the answer when the prompt is shown.
  function run(argv, { prompt, answer, env } = {}) {
    return new Promise((resolve, reject) => {
      const child = spawn(argv[0], argv.slice(1), {
        cwd: home,
        timeout: 60_000,
        killSignal: "SIGKILL",
        env: {
          PATH: process.env.PATH,
          HOME: home,
          XDG_CONFIG_HOME: home,
          XDG_DATA_HOME: home,
          XDG_CACHE_HOME: home,
          TMPDIR: home, // the CLI leaves answers to failed requests there
          SKERRY_URL,
          NO_COLOR: "1",
          SANDBOX_SKIP_VERSION_CHECK: "1",
          VERCEL_TELEMETRY_DISABLED: "1",
          ...env,
        },
      });
      const result = { stdout: "", stderr: "" };
      child.stdout.on("data", (data) => {
        result.stdout += data;
        if (prompt?.test(result.stdout)) {
          child.stdin.write(answer);
          prompt = undefined;
        }
      });
      child.stderr.on("data", (data) => (result.stderr += data));
      child.once("error", reject);
      child.once("exit", () => child.stdin.end());
      child.once("close", (code) => resolve({ ...result, code }));
      child.stdin.on("error", () => {}); // it may end before it takes the answer
      if (!prompt) child.stdin.end();
    });
  }

  const scope = ["--token", SKERRY_TOKEN, "--scope", SKERRY_TEAM, "--project", SKERRY_PROJECT];
  // sandbox runs the CLI; the scope goes after the subcommand.
  const sandbox = (command, ...args) => run([...program, ...command.split(" "), ...scope, ...args]);

  async function works(command, ...args) {
    const result = await sandbox(command, ...args);
    assert.equal(result.code, 0, `${command}: ${result.stdout}${result.stderr}`);
    return result;
  }

  before(async () => {
    home = await mkdtemp(join(tmpdir(), "conformance-cli-"));
    const created = await works("create", "--non-persistent", "--name", name, "--timeout", "5m", "--env", "FROM=create", "--tag", "suite=cli");
    assert.equal(created.stdout, name);
    assert.match(created.stderr, /created/);
  });

  after(async () => {
    await works("rm", name);
    await rm(home, { recursive: true });
  });

  test("exec passes output and exit code on", async () => {
    const result = await sandbox("exec", name, "--", "sh", "-c", 'echo "out $FROM"; echo problem >&2; exit 7');
    assert.equal(result.code, 7);
    assert.equal(result.stdout, "out create\n");
    assert.match(result.stderr, /problem/);
  });

  test("exec with environment, directory, sudo and timeout", async () => {
    const env = await works("exec", "--env", "FROM=exec", "--workdir", "/tmp", name, "--", "sh", "-c", 'echo "$FROM $PWD"');
    assert.equal(env.stdout, "exec /tmp\n");
    assert.equal((await works("exec", "--sudo", name, "id", "-u")).stdout, "0\n");
    assert.equal((await sandbox("exec", "--timeout", "1s", name, "sleep", "60")).code, 137);
    assert.match((await sandbox("exec", name, "no-such-command")).stderr, /command not found/);
  });

  test("list shows it", async () => {
    const { stdout } = await works("list", "--name-prefix", name);
    const [header, row] = stdout.trim().split("\n");
    assert.match(header, /^NAME\s+STATUS\s+CREATED/);
    assert.match(row, new RegExp(`^${name}\\s+running\\s`));
    assert.match(row, /suite:cli/);
    assert.doesNotMatch((await works("ls", "--tag", "suite=other")).stdout, new RegExp(name));
  });

  test("cp goes both ways", async () => {
    const content = randomBytes(200_000);
    await writeFile(join(home, "local.bin"), content);
    await works("cp", "local.bin", `${name}:dir/remote.bin`);
    await works("copy", `${name}:/vercel/sandbox/dir/remote.bin`, "back.bin");
    assert.ok(content.equals(await readFile(join(home, "back.bin"))));
    const missing = await works("cp", `${name}:missing`, "missing.bin");
    assert.match(missing.stderr, /File not found: missing/);
    await assert.rejects(readFile(join(home, "missing.bin")), { code: "ENOENT" });
  });

  test("a terminal", async () => {
    const quoted = [...program, "exec", ...scope, "-i", "--no-extend-timeout", name, "--", "sh", "-c", "stty -echo; tty; stty size; read x; echo got $x; exit 5"]
      .map((arg) => `'${arg.replaceAll("'", "'\\''")}'`)
      .join(" ");
    // script is what gives the CLI a terminal of its own.
    const argv = ["script", "-qefc", `stty cols 100 rows 30; exec ${quoted}`, "/dev/null"];
    const result = await run(argv, { prompt: /30 100\r/, answer: "typed\r", env: { TERM: "xterm" } });
    assert.match(result.stdout, /\/dev\/pts\/\d+\r/);
    assert.match(result.stdout, /got typed\r/);
    assert.equal(result.code, 5);
  });

  test("stop, and exec resumes", async () => {
    assert.match((await works("stop", name)).stderr, /Sandbox stopped/);
    assert.doesNotMatch((await works("list")).stdout, new RegExp(name));
    assert.match((await works("list", "--all", "--name-prefix", name)).stdout, new RegExp(`${name}\\s+stopped`));
    assert.equal((await works("exec", name, "echo", "again")).stdout, "again\n");
  });

  test("network policies", async () => {
    const guarded = `cli-${randomBytes(6).toString("hex")}`;
    await works("create", "--silent", "--name", guarded, "--allowed-domain", "*.example.test", "--allowed-cidr", "192.0.2.0/24", "--denied-cidr", "192.0.2.7/32");
    const list = async () => (await works("config list", guarded)).stdout;
    assert.match(await list(), /Network policy\s+restricted/);
    await works("config network-policy", guarded, "--network-policy", "deny-all");
    assert.match(await list(), /Network policy\s+deny-all/);
    await works("config network-policy", guarded, "--allowed-domain", "a.example.test");
    assert.match(await list(), /Network policy\s+restricted/);
    assert.notEqual((await sandbox("config network-policy", guarded, "--allowed-cidr", "10.0.0.0/40")).code, 0);
    assert.notEqual((await sandbox("config network-policy", guarded, "--network-policy", "deny-all", "--allowed-domain", "a.test")).code, 0);
    await works("config network-policy", guarded, "--mode", "allow-all");
    assert.match(await list(), /Network policy\s+allow-all/);
    await works("rm", guarded);
  });

  test("files survive a stop, and retention is configured", async () => {
    const kept = `${name}-kept`;
    await works("create", "--silent", "--name", kept, "--keep-last-snapshots", "2", "--snapshot-expiration", "7d");
    await works("exec", kept, "--", "sh", "-c", "echo kept > file");
    assert.match((await works("stop", kept)).stderr, /snap_\w+/);
    assert.equal((await works("exec", kept, "cat", "file")).stdout, "kept\n");
    const config = async () => (await works("config list", kept)).stdout;
    assert.match(await config(), /Persistent\s+true/i);
    await works("config persistent", kept, "false");
    assert.match(await config(), /Persistent\s+false/i);
    await works("config persistent", kept, "true");
    await works("config keep-last-snapshots", kept, "5");
    await works("config keep-last-snapshots-for", kept, "none");
    await works("config delete-evicted-snapshots", kept, "false");
    await works("config snapshot-expiration", kept, "none");
    assert.match(await config(), /5/);
    await works("config keep-last-snapshots", kept, "0");
    assert.notEqual((await sandbox("config keep-last-snapshots-for", kept, "1d")).code, 0);
    await works("rm", "--delete-orphan-snapshots", kept);
    for (const line of (await works("snapshots list", "--name", kept)).stdout.split("\n")) {
      if (line.includes("snap_")) assert.match(line, /deleted/);
    }
  });

  test("snapshots, and sandboxes from them", async () => {
    const source = `${name}-source`;
    const others = ["copy", "fork", "late"].map((end) => `${name}-${end}`);
    await works("create", "--silent", "--name", source, "--env", "FROM=source");
    await works("exec", source, "--", "sh", "-c", "echo saved > file");
    assert.match((await sandbox("snapshot", source)).stderr, /--stop/); // it wants to be sure
    const taken = await works("snapshot", source, "--stop", "--expiration", "2d");
    const [id] = taken.stderr.match(/snap_\w+/);

    const list = (await works("snapshots list", "--name", source)).stdout;
    assert.match(list, /^ID\s+STATUS\s+CREATED/);
    assert.match(list, new RegExp(`${id}\\s+created`));
    assert.match((await works("snapshots get", id)).stdout, new RegExp(`${id}\\s+created`));
    assert.notEqual((await sandbox("snapshots get", "snap_000000000000000000000000")).code, 0);

    await works("create", "--silent", "--name", others[0], "--snapshot", id);
    assert.equal((await works("exec", others[0], "cat", "file")).stdout, "saved\n");
    assert.match((await works("fork", source, "--name", others[1], "--tag", "suite=fork")).stderr, /forked from/);
    assert.equal((await works("exec", others[1], "--", "sh", "-c", 'cat file; echo "$FROM"')).stdout, "saved\nsource\n");
    await works("exec", source, "--", "sh", "-c", "echo unsaved > file");
    const late = await works("fork", source, "--name", others[2], "--non-persistent", "--vcpus", "1");
    assert.match(late.stderr, /is running/);
    assert.equal((await works("exec", others[2], "cat", "file")).stdout, "saved\n");

    await works("stop", source);
    const tree = (await works("snapshots tree", source)).stdout;
    assert.match(tree, new RegExp(`current[^]*${id}[^]*root`));
    const sessions = (await works("sessions list", source, "--all")).stdout;
    assert.match(sessions, new RegExp(`sbx_\\w+\\s+stopped.*${id}`));
    assert.equal(sessions.match(/sbx_/g).length, 2);
    await works("config current-snapshot", source, id);
    assert.equal((await works("exec", source, "cat", "file")).stdout, "saved\n");
    assert.notEqual((await sandbox("config current-snapshot", source, "snap_000000000000000000000000")).code, 0);

    await works("rm", "--delete-orphan-snapshots", ...others);
    await works("rm", "--delete-orphan-snapshots", source); // last: the others started from its snapshot
    await works("create", "--silent", "--name", source);
    const last = (await works("snapshot", source, "--stop")).stderr.match(/snap_\w+/)[0];
    await works("snapshots delete", last);
    assert.notEqual((await sandbox("snapshots rm", last)).code, 0);
    const stuck = await sandbox("exec", source, "true");
    assert.notEqual(stuck.code, 0);
    assert.match(stuck.stdout + stuck.stderr, /was deleted|snapshot_not_found|410/);
    await works("rm", source);
  });

  test("drives", async () => {
    const drive = `${name}-drive`, writer = `${name}-writer`, reader = `${name}-reader`;
    const made = await works("drives get-or-create", drive, "--max-size", String(64 << 20));
    assert.match(made.stderr, /ready/);
    await works("create", "--non-persistent", "--name", writer, "--mount", `${drive}:/data`);
    await works("exec", writer, "--", "sh", "-c", "echo kept > /data/file");
    const row = (await works("drives list", "--name-prefix", drive)).stdout.split("\n").find((line) => line.startsWith(drive));
    assert.match(row, /64\s?Mi?B/i);
    assert.match(row, new RegExp(`${writer}\\s+sbx_`));
    assert.notEqual((await sandbox("drives delete", drive)).code, 0);
    await works("create", "--non-persistent", "--name", reader, "--mount", `${drive}:/data:snapshot`);
    assert.equal((await works("exec", reader, "cat", "/data/file")).stdout, "kept\n");
    assert.notEqual((await sandbox("exec", reader, "touch", "/data/file")).code, 0);
    await works("rm", writer, reader);
    await works("drives delete", drive);
    assert.doesNotMatch((await works("drives ls")).stdout, new RegExp(drive));
  });

  test("rm removes, once", async () => {
    const other = `${name}-other`;
    await works("create", "--non-persistent", "--silent", "--name", other);
    await works("rm", other);
    assert.notEqual((await sandbox("rm", other)).code, 0);
    const gone = await sandbox("exec", other, "true");
    assert.notEqual(gone.code, 0);
    assert.match(gone.stdout + gone.stderr, /404|not found|not_found/i);
  });

  test("the scope is inferred from the token", async () => {
    const result = await run([...program, "list", "--token", SKERRY_TOKEN]);
    assert.equal(result.code, 0, result.stderr);
    assert.match(result.stdout, new RegExp(name));
    const wrong = await run([...program, "list", "--token", "wrong"]);
    assert.notEqual(wrong.code, 0);
  });

  test("ports are published and replaced", async () => {
    const name = `ports-${process.pid}`;
    const made = await sandbox("create", "--non-persistent", "--name", name, "--publish-port", "3000");
    assert.equal(made.code, 0, made.stderr);
    const changed = await sandbox("config", "ports", name, "--publish-port", "8080");
    assert.equal(changed.code, 0, changed.stderr);
    assert.match(changed.stdout + changed.stderr, /8080/);
    const removed = await sandbox("remove", name);
    assert.equal(removed.code, 0, removed.stderr);
  });

  test("nothing leaves for another host", async () => {
    const probe = 'await Promise.all(["https://telemetry.vercel.com/x", "https://vercel.com/other"].map((u) => fetch(u).then(() => process.exit(3), () => {})))';
    const result = await run([process.execPath, "--import", here("redirect.mjs"), "--input-type=module", "-e", probe]);
    assert.equal(result.code, 0, result.stderr);
  });
});
