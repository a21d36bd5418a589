import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { Writable } from "node:stream";

import { api, open, rejectsWith, remove, uniqueName } from "./skerry.mjs";

// collector is a stream that keeps what is written to it.
function collector() {
  const stream = new Writable({
    write(chunk, _encoding, done) {
      stream.text += chunk.toString();
      done();
    },
  });
  stream.text = "";
  return stream;
}

suite("commands", () => {
  let sandbox;
  before(async () => {
    sandbox = await open({ env: { FROM: "sandbox", KEPT: "sandbox" } });
  });
  after(() => remove(sandbox));

  const sh = (script, params = {}) => sandbox.runCommand({ cmd: "sh", args: ["-c", script], ...params });

  test("output, error output and exit code", async () => {
    const result = await sh("echo out; echo err >&2; exit 7");
    assert.equal(result.exitCode, 7);
    assert.equal(await result.stdout(), "out\n");
    assert.equal(await result.stderr(), "err\n");
    assert.ok(result.durationMs >= 0 && result.durationMs < 60_000);
    assert.match(result.cmdId, /^cmd_/);
  });

  test("arguments are passed as they are", async () => {
    const args = ["a b", "", "$HOME", "'\"\\", "ü€😀", "-n", "line\nbreak"];
    const result = await sandbox.runCommand("printf", ["[%s]", ...args]);
    assert.equal(await result.stdout(), args.map((a) => `[${a}]`).join(""));
  });

  test("the user, directory and environment of a command", async () => {
    const result = await sh('id -un; pwd; echo "$HOME"; id -u');
    const [user, cwd, home, uid] = (await result.stdout()).split("\n");
    assert.equal(user, "vercel-sandbox");
    assert.equal(cwd, "/vercel/sandbox");
    assert.notEqual(home, "");
    assert.notEqual(uid, "0");
  });

  test("cwd is absolute or relative to the working directory", async () => {
    await sandbox.runCommand("mkdir", ["-p", "sub/dir"]);
    assert.equal(await (await sandbox.runCommand({ cmd: "pwd", cwd: "sub/dir" })).stdout(), "/vercel/sandbox/sub/dir\n");
    assert.equal(await (await sandbox.runCommand({ cmd: "pwd", cwd: "/usr" })).stdout(), "/usr\n");
  });

  test("a command's environment wins over the sandbox's", async () => {
    const result = await sh('echo "$FROM $KEPT $NEW"', { env: { FROM: "command", NEW: "ü=x" } });
    assert.equal(await result.stdout(), "command sandbox ü=x\n");
  });

  test("sudo is root and keeps the environment", async () => {
    const result = await sh('id -u; echo "$HOME"; echo "$KEPT"; pwd', { sudo: true });
    assert.equal(await result.stdout(), "0\n/root\nsandbox\n/vercel/sandbox\n");
    const inner = await sh("sudo id -u");
    assert.equal(await inner.stdout(), "0\n");
  });

  test("a stream bears the blank lines of its silence", async () => {
    const quiet = await sh("sleep 2.2; echo over; exit 3");
    assert.deepEqual([quiet.exitCode, await quiet.stdout()], [3, "over\n"]);
    const detached = await sandbox.runCommand({ cmd: "sleep", args: ["2.2"], detached: true });
    assert.equal((await detached.wait()).exitCode, 0); // white space before the JSON
  });

  test("a command that does not exist is refused", async () => {
    for (const detached of [false, true]) {
      await assert.rejects(sandbox.runCommand({ cmd: "no-such-command", detached }), (err) => {
        assert.match(err.message, /no-such-command: command not found/);
        return rejectsWith(400, "executable_not_found")(err);
      });
    }
  });

  test("PATH has /vercel/bin, and sudo says who asked", async () => {
    const env = await sh('echo ":$PATH:"; echo "$USER $SUDO_USER $SUDO_UID $SUDO_GID"', { sudo: true });
    const [path, who] = (await env.stdout()).trim().split("\n");
    for (const dir of ["/vercel/bin", "/usr/local/bin"]) assert.ok(path.includes(`:${dir}:`), path);
    assert.equal(who, "root vercel-sandbox 1000 1000");
  });

  test("a signal is 128 and its number", async () => {
    assert.equal((await sh("kill -9 $$")).exitCode, 137);
    assert.equal((await sh("kill -15 $$")).exitCode, 143);
  });

  test("timeoutMs kills", async () => {
    const result = await sandbox.runCommand({ cmd: "sleep", args: ["60"], timeoutMs: 500 });
    assert.equal(result.exitCode, 137);
    assert.ok(result.durationMs >= 400 && result.durationMs < 20_000, `${result.durationMs} ms`);
  });

  test("output reaches writable streams as it comes", async () => {
    const stdout = collector();
    const stderr = collector();
    const running = sh("echo first; echo problem >&2; while [ ! -e go-on ]; do sleep 0.05; done; echo last", { stdout, stderr });
    while (!stdout.text.includes("first\n")) await new Promise((resolve) => setTimeout(resolve, 10));
    assert.equal(stdout.text, "first\n");
    await sandbox.runCommand("touch", ["go-on"]);
    assert.equal((await running).exitCode, 0);
    assert.equal(stdout.text, "first\nlast\n");
    assert.equal(stderr.text, "problem\n");
  });

  test("a detached command is followed, waited for and read again", async () => {
    const command = await sh("for i in 1 2 3; do echo $i; sleep 0.1; done; echo done >&2; exit 4", { detached: true });
    assert.equal(command.exitCode, null);
    const lines = [];
    for await (const log of command.logs()) lines.push([log.stream, log.data]);
    const of = (stream) => lines.filter(([s]) => s === stream).map(([, data]) => data).join("");
    assert.equal(of("stdout"), "1\n2\n3\n");
    assert.equal(of("stderr"), "done\n");
    const finished = await command.wait();
    assert.equal(finished.exitCode, 4);
    const again = await sandbox.getCommand(command.cmdId);
    assert.equal(again.exitCode, 4);
    assert.equal(await again.stdout(), "1\n2\n3\n");
    assert.equal(await again.output("both"), lines.map(([, data]) => data).join(""));
  });

  test("kill ends a command and what it started", async () => {
    const marker = uniqueName("marker");
    const command = await sh(`sh -c 'sleep 1000; : ${marker}' & wait`, { detached: true });
    await command.kill("SIGKILL");
    assert.equal((await command.wait()).exitCode, 137);
    const left = await sh(`ps -eo args | grep '[;] : ${marker}' | wc -l`);
    assert.equal((await left.stdout()).trim(), "0");
    const polite = await sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done", { detached: true });
    for await (const log of polite.logs()) {
      assert.equal(log.data, "ready\n");
      break;
    }
    await polite.kill();
    assert.equal((await polite.wait()).exitCode, 5);
    await polite.kill("SIGINT"); // one that has ended ignores it
  });

  test("an abort signal ends the call and not the command", async () => {
    const flag = uniqueName("flag");
    const controller = new AbortController();
    const stdout = collector();
    const running = sh(`echo up; sleep 1; touch ${flag}`, { signal: controller.signal, stdout });
    while (!stdout.text) await new Promise((resolve) => setTimeout(resolve, 10));
    controller.abort();
    await assert.rejects(running);
    const waited = await sh(`for i in $(seq 100); do [ -e ${flag} ] && exit 0; sleep 0.1; done; exit 1`);
    assert.equal(waited.exitCode, 0);
    await assert.rejects(sandbox.runCommand("true", [], { signal: AbortSignal.abort() }));
  });

  test("an abort signal ends waiting and following", async () => {
    const command = await sandbox.runCommand({ cmd: "sleep", args: ["1000"], detached: true });
    await assert.rejects(command.wait({ signal: AbortSignal.timeout(200) }));
    const following = async () => {
      for await (const _ of command.logs({ signal: AbortSignal.timeout(200) }));
    };
    await assert.rejects(following());
    assert.equal((await sandbox.getCommand(command.cmdId)).exitCode, null);
    await command.kill("SIGKILL");
  });

  test("large output arrives whole", async () => {
    const size = 20_000_000;
    const result = await sh(`head -c ${size} /dev/zero | tr '\\0' x; printf end >&2`);
    const stdout = await result.stdout();
    assert.equal(stdout.length, size);
    assert.ok(/^x+$/.test(stdout.slice(-1000)));
    assert.equal(await result.stderr(), "end");
  });

  test("characters survive wherever the stream is cut", async () => {
    const line = "grün € 😀 漢字 ";
    const count = 30_000;
    const result = await sh(`yes '${line}' | head -n ${count}`);
    const stdout = await result.stdout();
    assert.ok(stdout === (line + "\n").repeat(count), "the text was changed");
    const slow = await sh("printf '\\342'; sleep 0.2; printf '\\202'; sleep 0.2; printf '\\254'");
    assert.equal(await slow.stdout(), "€");
  });

  test("bytes that are not text become U+FFFD, and control characters survive", async () => {
    const result = await sh("printf 'a\\377b\\000c\\033[31m\\t\\\\\"'");
    assert.equal(await result.stdout(), 'a\uFFFDb\0c\u001b[31m\t\\"');
  });

  test("many commands at once", async () => {
    const results = await Promise.all(Array.from({ length: 20 }, (_, i) => sh(`sleep 0.1; echo ${i}; exit ${i}`)));
    for (const [i, result] of results.entries()) {
      assert.equal(result.exitCode, i);
      assert.equal(await result.stdout(), `${i}\n`);
    }
  });

  test("commands share the filesystem and outlive their shell", async () => {
    const command = await sh("(sleep 0.3; echo late > late.txt) & echo started");
    assert.equal(command.exitCode, 0);
    const waited = await sh("for i in $(seq 100); do [ -s late.txt ] && exec cat late.txt; sleep 0.1; done; exit 1");
    assert.equal(await waited.stdout(), "late\n");
  });

  test("unknown commands and bad parameters", async () => {
    await assert.rejects(sandbox.getCommand("cmd_000000000000000000000000"), rejectsWith(404, "not_found"));
    await assert.rejects(sandbox.runCommand("a\0b"), rejectsWith(400, "bad_request"));
    await assert.rejects(sandbox.runCommand(""), rejectsWith(400, "bad_request"));
    await assert.rejects(sandbox.runCommand({ cmd: "true", timeoutMs: -1 }), rejectsWith(400, "sandbox_timeout_invalid"));
    await assert.rejects(sandbox.runCommand({ cmd: "true", env: { "A=B": "x" } }), rejectsWith(400, "bad_request"));
    const { status, json } = await api("POST", `/v2/sandboxes/sessions/${sandbox.currentSession().sessionId}/cmd`, { command: "true", args: "x" });
    assert.deepEqual([status, json.error.field], [400, "args"]);
  });
});
