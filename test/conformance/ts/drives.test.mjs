// Drives: the SDK's Drive class, and sandboxes that mount them.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Drive, Sandbox } from "@vercel/sandbox";

import { api, create, credentials, options, rejectsWith, remove, uniqueName } from "./skerry.mjs";

// open makes a drive that is deleted when the test t ends, with the sandbox that
// has it.
async function open(t, params = {}) {
  const drive = await Drive.getOrCreate({ name: uniqueName("drive"), ...options, ...params });
  t.after(async () => {
    const user = (await look(drive))?.currentSandboxName;
    if (user) await remove(await Sandbox.get({ name: user, resume: false, ...options }));
    try {
      await drive.delete();
    } catch (err) {
      if (err.response?.status !== 404) throw err; // a test may have deleted it
    }
  });
  return drive;
}

async function sh(sandbox, script, opts = {}) {
  const done = await sandbox.runCommand({ cmd: "bash", args: ["-c", script], ...opts });
  return { code: done.exitCode, out: (await done.output("both")).trim() };
}

async function look(drive) {
  const { drives } = await Drive.list({ ...options, namePrefix: drive.name, sortBy: "name" });
  return drives.find((d) => d.name === drive.name);
}

test("a drive is created once and got afterwards", async (t) => {
  const drive = await open(t, { maxSize: 64 << 20 });
  assert.match(drive.driveId, /^drv_/);
  assert.equal(drive.maxSize, 64 << 20);
  assert.equal(drive.projectId, credentials.projectId);
  assert.equal(drive.region, "local");
  assert.ok(Math.abs(Date.now() - drive.createdAt) < 60_000);
  assert.equal(drive.currentSessionId, undefined);
  const again = await Drive.getOrCreate({ name: drive.name, maxSize: 128 << 20, ...options });
  assert.equal(again.driveId, drive.driveId);
  assert.equal(again.maxSize, 64 << 20);
  const both = await Promise.all([1, 2, 3].map(() => Drive.getOrCreate({ name: `${drive.name}-b`, ...options })));
  assert.equal(new Set(both.map((d) => d.driveId)).size, 1);
  await both[0].delete();
});

test("drives are listed in pages", async (t) => {
  const prefix = uniqueName("pages");
  const names = ["a", "b", "c"].map((letter) => `${prefix}-${letter}`);
  for (const name of names) await open(t, { name });
  const page = await Drive.list({ ...options, namePrefix: prefix, sortBy: "name", sortOrder: "asc", limit: 2 });
  assert.deepEqual(page.drives.map((d) => d.name), names.slice(0, 2));
  assert.ok(page.pagination.next);
  assert.deepEqual((await page.toArray()).map((d) => d.name), names);
  const latest = await Drive.list({ ...options, namePrefix: prefix, sortBy: "updatedAt" });
  assert.deepEqual(latest.drives.map((d) => d.name), names.toReversed());
});

test("what is written to a drive outlives its sandboxes", async (t) => {
  const drive = await open(t);
  const first = await create(t, { mounts: { "/data/deep": drive }, persistent: false });
  assert.deepEqual(first.mounts, { "/data/deep": { drive: drive.name, mode: "read-write" } });
  assert.deepEqual(await sh(first, "ls -A /data/deep; stat -c %U /data/deep; echo kept > /data/deep/file && cat /data/deep/file"), { code: 0, out: "vercel-sandbox\nkept" });
  await first.writeFiles([{ path: "/data/deep/script.sh", content: Buffer.from("#!/bin/sh\necho runs\n"), mode: 0o755 }]);
  assert.equal((await sh(first, "/data/deep/script.sh")).out, "runs");
  const attached = await look(drive);
  assert.equal(attached.currentSandboxName, first.name);
  assert.equal(attached.currentSessionId, first.currentSession().sessionId);
  await assert.rejects(drive.delete(), (err) => rejectsWith(409, "conflict")(err) && err.message !== undefined && err.text.includes(first.name));
  // stop and resume
  await first.stop();
  assert.equal((await look(drive)).currentSandboxName, undefined);
  assert.equal((await sh(first, "cat /data/deep/file")).out, "kept");
  await first.delete();
  const second = await create(t, { mounts: { "/elsewhere": drive } });
  assert.equal((await sh(second, "cat /elsewhere/file")).out, "kept");
});

test("a drive has one writer and any number of readers", async (t) => {
  const drive = await open(t);
  const writer = await create(t, { mounts: { "/data": drive } });
  await sh(writer, "echo one > /data/file");
  await assert.rejects(create(t, { mounts: { "/data": drive } }), (err) => rejectsWith(409, "conflict")(err) && err.text.includes(writer.name));
  const [a, b] = await Promise.all([1, 2].map(() => create(t, { mounts: { "/data": drive.snapshot() } })));
  assert.deepEqual(a.mounts, { "/data": { drive: drive.name, mode: "snapshot" } });
  await sh(writer, "echo two > /data/file");
  for (const reader of [a, b]) {
    assert.equal((await sh(reader, "cat /data/file")).out, "one");
    const write = await sh(reader, "echo x > /data/file", { sudo: true });
    assert.notEqual(write.code, 0);
    assert.match(write.out, /Read-only file system/);
  }
  // A fork cannot be a second writer.
  await writer.stop();
  const fork = await Sandbox.fork({ sourceSandbox: writer.name, ...options });
  t.after(() => fork.delete());
  assert.deepEqual(fork.mounts, { "/data": { drive: drive.name, mode: "snapshot" } });
  assert.equal((await sh(fork, "cat /data/file")).out, "two");
  assert.equal((await sh(writer, "cat /data/file && echo three > /data/file && cat /data/file")).out, "two\nthree");
  await writer.delete();
  await drive.delete();
  assert.equal((await sh(fork, "cat /data/file")).out, "two");
});

test("a full drive fails its writes and nothing else", async (t) => {
  const drive = await open(t, { maxSize: 64 << 20 });
  const sandbox = await create(t, { mounts: { "/data": drive } });
  const full = await sh(sandbox, "dd if=/dev/zero of=/data/big bs=1M count=100");
  assert.notEqual(full.code, 0);
  assert.match(full.out, /No space left on device/);
  assert.equal((await sh(sandbox, "echo fine > /tmp/file && rm /data/big && echo fits > /data/small && cat /tmp/file /data/small")).out, "fine\nfits");
});

test("mounts change with the next session", async (t) => {
  const [one, two] = [await open(t), await open(t)];
  const sandbox = await create(t, { mounts: { "/one": one } });
  await sh(sandbox, "echo 1 > /one/file");
  await sandbox.update({ mounts: { "/two": two, "/one": one.snapshot() } });
  assert.deepEqual(sandbox.mounts, { "/one": { drive: one.name, mode: "snapshot" }, "/two": { drive: two.name, mode: "read-write" } });
  assert.equal((await sh(sandbox, "test -e /two; echo $?; echo more >> /one/file; cat /one/file")).out, "1\n1\nmore");
  await sandbox.stop();
  assert.equal((await sh(sandbox, "cat /one/file; echo 2 > /two/file; cat /two/file")).out, "1\nmore\n2");
  await sandbox.update({ mounts: {} });
  await sandbox.stop();
  // The places stay; what was mounted there is not part of the sandbox's files.
  assert.equal((await sh(sandbox, "ls -A /one /two")).out, "/one:\n\n/two:");
});

test("bad mounts name the path", async (t) => {
  const drive = await open(t);
  const tries = {
    "data": drive, "/": drive, "/etc": drive, "/proc/x": drive, "/.skerry": drive, "/dev": drive, "/sys/fs": drive,
    "/vercel": drive, "/etc/passwd": drive, "/a/../etc": drive, "/a/": drive, "/missing": { drive: "no-such-drive", mode: "read-write" },
  };
  for (const [path, mount] of Object.entries(tries)) {
    await assert.rejects(create(t, { mounts: { [path]: mount } }), (err) => rejectsWith(400, "bad_request")(err) && err.text.includes(path), path);
  }
  await assert.rejects(create(t, { mounts: { "/a": drive, "/b": drive.snapshot() } }), rejectsWith(400, "bad_request"));
  await assert.rejects(Drive.getOrCreate({ name: uniqueName("d"), maxSize: 1, ...options }), rejectsWith(400, "bad_request"));
  await assert.rejects(Drive.getOrCreate({ name: "a/b", ...options }), rejectsWith(400, "bad_request"));
  assert.equal((await api("GET", `/v2/sandboxes/drives/${uniqueName("none")}`)).status, 404);
  assert.equal((await api("DELETE", `/v2/sandboxes/drives/${uniqueName("none")}`)).status, 404);
});
