import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { after, before, suite, test } from "node:test";
import { gzipSync } from "node:zlib";

import { credentials, open, rejectsWith, remove, serverURL } from "./skerry.mjs";

suite("files", () => {
  let sandbox;
  before(async () => {
    sandbox = await open();
  });
  after(() => remove(sandbox));

  test("write and read as buffer and as stream", async () => {
    const binary = randomBytes(100_000);
    await sandbox.writeFiles([
      { path: "text.txt", content: Buffer.from("grün €\n") },
      { path: "deep/down/here.bin", content: binary },
      { path: "/tmp/absolute.txt", content: Buffer.from("absolute") },
      { path: "empty", content: Buffer.alloc(0) },
    ]);
    assert.equal((await sandbox.readFileToBuffer({ path: "text.txt" })).toString(), "grün €\n");
    assert.ok(binary.equals(await buffer(await sandbox.readFile({ path: "deep/down/here.bin" }))));
    assert.ok(binary.equals(await sandbox.readFileToBuffer({ path: "here.bin", cwd: "/vercel/sandbox/deep/down" })));
    assert.equal((await sandbox.readFileToBuffer({ path: "/tmp/absolute.txt" })).toString(), "absolute");
    assert.equal((await sandbox.readFileToBuffer({ path: "empty" })).length, 0);
    const seen = await sandbox.runCommand("cat", ["text.txt"]);
    assert.equal(await seen.stdout(), "grün €\n");
  });

  test("a missing file is null", async () => {
    assert.equal(await sandbox.readFile({ path: "missing" }), null);
    assert.equal(await sandbox.readFileToBuffer({ path: "missing/deeper" }), null);
    assert.equal(await sandbox.downloadFile({ path: "missing" }, { path: "/nowhere" }), null);
  });

  test("files belong to the default user and keep their mode", async () => {
    await sandbox.writeFiles([
      { path: "owned/script.sh", content: Buffer.from("#!/bin/sh\necho ran\n"), mode: 0o755 },
      { path: "owned/secret", content: Buffer.from("s"), mode: 0o600 },
    ]);
    const stat = await sandbox.runCommand("stat", ["-c", "%U %a", "owned", "owned/script.sh", "owned/secret"]);
    const [dir, script, secret] = (await stat.stdout()).trim().split("\n");
    assert.match(dir, /^vercel-sandbox /);
    assert.equal(script, "vercel-sandbox 755");
    assert.equal(secret, "vercel-sandbox 600");
    assert.equal(await (await sandbox.runCommand("./owned/script.sh")).stdout(), "ran\n");
  });

  test("writing again replaces", async () => {
    await sandbox.writeFiles([{ path: "again", content: Buffer.from("a longer first content") }]);
    await sandbox.writeFiles([{ path: "again", content: Buffer.from("short") }]);
    assert.equal((await sandbox.readFileToBuffer({ path: "again" })).toString(), "short");
  });

  test("names of every kind", async () => {
    const names = ["with space", "ü€😀", "quote'\"\\", "x".repeat(200), "a/" + "y".repeat(120) + "/" + "z".repeat(120), "-dash", ".hidden"];
    await sandbox.writeFiles(names.map((path) => ({ path, content: Buffer.from(path) })));
    for (const path of names) {
      assert.equal((await sandbox.readFileToBuffer({ path })).toString(), path);
    }
  });

  test("many small files and one large", async () => {
    const files = Array.from({ length: 500 }, (_, i) => ({ path: `many/${i}`, content: Buffer.from(String(i)) }));
    await sandbox.writeFiles(files);
    assert.equal((await (await sandbox.runCommand("sh", ["-c", "ls many | wc -l"])).stdout()).trim(), "500");
    const large = randomBytes(32 << 20);
    await sandbox.writeFiles([{ path: "large", content: large }]);
    assert.ok(large.equals(await sandbox.readFileToBuffer({ path: "large" })));
  });

  test("download to this machine", async (t) => {
    const dir = await mkdtemp(join(tmpdir(), "conformance-"));
    t.after(() => rm(dir, { recursive: true }));
    await sandbox.writeFiles([{ path: "to-download", content: Buffer.from("downloaded") }]);
    const local = await sandbox.downloadFile({ path: "to-download" }, { path: "sub/file", cwd: dir }, { mkdirRecursive: true });
    assert.equal(local, join(dir, "sub/file"));
    assert.equal(await readFile(local, "utf8"), "downloaded");
  });

  test("mkDir makes one directory", async () => {
    await sandbox.mkDir("made");
    const stat = await sandbox.runCommand("stat", ["-c", "%F %U", "made"]);
    assert.equal(await stat.stdout(), "directory vercel-sandbox\n");
    for (const path of ["made", "no/parent"]) {
      await assert.rejects(sandbox.mkDir(path), (err) => err.response.status >= 400 && err.response.status < 500);
    }
  });

  test("reading what is no regular file is an error", async () => {
    for (const path of ["/vercel/sandbox", "/dev/zero"]) {
      await assert.rejects(sandbox.readFile({ path }), (err) => err.response.status >= 400 && err.response.status < 500);
    }
  });

  test("where the user may not write is an error", async () => {
    await assert.rejects(
      sandbox.writeFiles([{ path: "/usr/bin/planted", content: Buffer.from("x") }]),
      (err) => err.response.status >= 400 && err.response.status < 500,
    );
    assert.equal((await sandbox.runCommand("test", ["-e", "/usr/bin/planted"])).exitCode, 1);
  });

  test("uploads that are broken", async () => {
    const url = `${serverURL}/v2/sandboxes/sessions/${sandbox.currentSession().sessionId}/fs/write`;
    const whole = gzipSync(randomBytes(10_000));
    for (const [name, body] of Object.entries({
      empty: Buffer.alloc(0),
      "cut short": whole.subarray(0, 5_000),
      "not an archive": whole,
      "not compressed": Buffer.from("hello".repeat(1000)),
    })) {
      const response = await fetch(url, {
        method: "POST",
        headers: { authorization: `Bearer ${credentials.token}`, "content-type": "application/gzip", "x-cwd": "/" },
        body,
      });
      assert.equal(response.status, 400, name);
      assert.equal((await response.json()).error.code, "bad_request", name);
    }
  });

  test("abort signals", async () => {
    const signal = AbortSignal.abort();
    await assert.rejects(sandbox.writeFiles([{ path: "aborted", content: Buffer.from("x") }], { signal }));
    await assert.rejects(sandbox.readFile({ path: "text.txt" }, { signal }));
  });

  test("paths that are too long or hold a NUL", async () => {
    await assert.rejects(sandbox.readFile({ path: "x".repeat(5000) }), (err) => err.response.status === 400);
    await assert.rejects(sandbox.mkDir("a\0b"), rejectsWith(400, "bad_request"));
  });
});
