import assert from "node:assert/strict";
import { test } from "node:test";

import { Sandbox, Snapshot } from "@vercel/sandbox";

import { api, create, options, rejectsWith, remove, removeAfter, uniqueName } from "./skerry.mjs";

const day = 24 * 3600 * 1000;

// sh runs a script and returns what it writes.
async function sh(sandbox, script) {
  const result = await sandbox.runCommand("sh", ["-c", script]);
  assert.equal(result.exitCode, 0, `${script}: ${await result.stderr()}`);
  return (await result.stdout()).trim();
}

const get = (name, more) => Sandbox.get({ ...options, name, ...more });
const snapshotById = (snapshotId) => Snapshot.get({ ...options, snapshotId });
const fromSnapshot = (snapshotId) => ({ source: { type: "snapshot", snapshotId } });
const near = (date, ms, what) => assert.ok(Math.abs(date.getTime() - ms) < 60_000, `${what}: ${date}`);

// fork makes a fork that is removed when the test t ends.
async function fork(t, params) {
  const sandbox = await Sandbox.fork({ ...options, ...params });
  removeAfter(t, sandbox);
  return sandbox;
}

// ids returns the ids of a sandbox's snapshots, the newest first.
const all = async (sandbox) => (await (await sandbox.listSnapshots()).toArray());
const ids = async (sandbox) => (await all(sandbox)).filter((s) => s.status !== "deleted").map((s) => s.id);

test("files, packages and permissions survive a stop", async (t) => {
  const sandbox = await create(t);
  await sh(sandbox, "mkdir -p deep/er && echo kept > deep/er/file && chmod 640 deep/er/file && ln -s deep/er/file link && rm -rf /tmp/gone");
  await sh(sandbox, "sudo sh -c 'echo tool > /usr/local/bin/tool && chmod 4711 /usr/local/bin/tool && useradd kept && rm /etc/debian_version'");
  const stopped = await sandbox.stop();
  assert.equal(stopped.status, "stopped");
  assert.match(stopped.snapshot.id, /^snap_/);
  assert.equal(stopped.snapshot.creationMethod, "automatic");
  assert.ok(stopped.snapshot.sizeBytes > 0);
  assert.equal(sandbox.currentSnapshotId, stopped.snapshot.id);

  let resumed = 0;
  const again = await get(sandbox.name, { onResume: () => void resumed++ });
  assert.equal(again.status, "stopped");
  assert.equal(again.currentSnapshotId, stopped.snapshot.id);
  const report = await sh(again, "cat link; stat -c '%a %U' deep/er/file; stat -c '%a %U' /usr/local/bin/tool; id -un kept; ls /etc/debian_version 2>&1 | grep -c 'No such'");
  assert.equal(report, "kept\n640 vercel-sandbox\n4711 root\nkept\n1");
  assert.equal(resumed, 1);
  assert.equal(again.status, "running");
  assert.equal(again.sourceSnapshotId, stopped.snapshot.id);
});

test("a time-out saves as a stop does", async (t) => {
  const sandbox = await create(t, { timeout: 3_000 });
  await sh(sandbox, "echo in time > file");
  const session = `/v2/sandboxes/sessions/${sandbox.currentSession().sessionId}`;
  let status;
  for (const deadline = Date.now() + 30_000; status !== "stopped" && Date.now() < deadline; ) {
    await new Promise((resolve) => setTimeout(resolve, 200));
    status = (await api("GET", session)).json.session.status;
  }
  assert.equal(status, "stopped");
  assert.equal(await sh(await get(sandbox.name), "cat file"), "in time");
});

test("a sandbox that is not persistent starts clean", async (t) => {
  const sandbox = await create(t, { persistent: false, env: { KEPT: "yes" } });
  assert.equal(sandbox.persistent, false);
  await sh(sandbox, "echo lost > file");
  const stopped = await sandbox.stop();
  assert.equal(stopped.snapshot, undefined);
  assert.equal(await sh(sandbox, 'ls; echo "$KEPT"'), "yes");
  assert.deepEqual(await ids(sandbox), []);
});

test("persistence is turned on and off for the next session", async (t) => {
  const sandbox = await create(t, { persistent: false });
  await sandbox.update({ persistent: true });
  assert.equal(sandbox.persistent, true);
  await sh(sandbox, "echo lost > file");
  assert.equal((await sandbox.stop()).snapshot, undefined); // this session began without
  await sh(sandbox, "test ! -e file && echo kept > file");
  assert.ok((await sandbox.stop()).snapshot);
  assert.equal(await sh(sandbox, "cat file"), "kept");
});

test("snapshot saves and stops", async (t) => {
  const sandbox = await create(t);
  await sh(sandbox, "echo saved > file");
  const snapshot = await sandbox.snapshot();
  assert.match(snapshot.snapshotId, /^snap_/);
  assert.equal(snapshot.status, "created");
  assert.equal(snapshot.sourceSessionId, sandbox.currentSession().sessionId);
  assert.ok(snapshot.sizeBytes > 0);
  assert.equal(snapshot.regions.length, 1);
  near(snapshot.createdAt, Date.now(), "createdAt");
  near(snapshot.expiresAt, Date.now() + 30 * day, "expiresAt");
  assert.equal(sandbox.status, "stopped");
  assert.ok(sandbox.currentSession().snapshottedAt);

  const found = await snapshotById(snapshot.snapshotId);
  assert.equal(found.sizeBytes, snapshot.sizeBytes);
  assert.equal(found.sourceSessionId, snapshot.sourceSessionId);
  assert.equal(await sh(sandbox, "cat file"), "saved");
  assert.equal(sandbox.sourceSnapshotId, snapshot.snapshotId);
});

test("expiration: of one, of a sandbox, never, and what is refused", async (t) => {
  const sandbox = await create(t, { snapshotExpiration: 2 * day });
  assert.equal(sandbox.snapshotExpiration, 2 * day);
  near((await sandbox.snapshot()).expiresAt, Date.now() + 2 * day, "as the sandbox says");
  near((await sandbox.snapshot({ expiration: 5 * day })).expiresAt, Date.now() + 5 * day, "as the call says");
  assert.equal((await sandbox.snapshot({ expiration: 0 })).expiresAt, undefined);
  await sandbox.update({ snapshotExpiration: 0 });
  assert.equal(sandbox.snapshotExpiration, 0);
  assert.equal((await sandbox.snapshot()).expiresAt, undefined);
  await assert.rejects(sandbox.snapshot({ expiration: 1 }), rejectsWith(400, "bad_request"));
  await assert.rejects(sandbox.snapshot({ expiration: -day }), rejectsWith(400, "bad_request"));
  await assert.rejects(sandbox.update({ snapshotExpiration: 5 }), rejectsWith(400, "bad_request"));
});

test("create from a snapshot, twice, and apart from each other", async (t) => {
  const source = await create(t, { runtime: "python3.13" });
  await sh(source, "echo original > file; sudo touch /root/also");
  const { snapshotId } = await source.snapshot();
  const [one, two] = await Promise.all([create(t, fromSnapshot(snapshotId)), create(t, fromSnapshot(snapshotId))]);
  assert.equal(one.sourceSnapshotId, snapshotId);
  await sh(one, "echo changed > file");
  assert.equal(await sh(two, "cat file; sudo ls /root/also; python3 --version | cut -d. -f1,2"), "original\n/root/also\nPython 3.13");
  assert.equal(await sh(source, "cat file"), "original");
  await one.stop();
  assert.equal(await sh(one, "cat file"), "changed");
  assert.equal((await snapshotById(snapshotId)).status, "created");
});

test("a sandbox from a snapshot that is not persistent starts from it each time", async (t) => {
  const source = await create(t);
  await sh(source, "echo original > file");
  const { snapshotId } = await source.snapshot();
  const sandbox = await create(t, { ...fromSnapshot(snapshotId), persistent: false });
  await sh(sandbox, "echo changed > file");
  await sandbox.stop();
  assert.equal(await sh(sandbox, "cat file"), "original");
});

test("a source that is no snapshot", async (t) => {
  const sandbox = await create(t);
  const snapshot = await sandbox.snapshot();
  await snapshot.delete();
  for (const id of [snapshot.snapshotId, "snap_000000000000000000000000"]) {
    await assert.rejects(Sandbox.create({ ...options, ...fromSnapshot(id) }), rejectsWith(410, "snapshot_not_found"));
  }
  await assert.rejects(Sandbox.create({ ...options, source: { type: "snapshot" } }), rejectsWith(400, "bad_request"));
  await assert.rejects(snapshotById("snap_000000000000000000000000"), rejectsWith(404, "not_found"));
  await assert.rejects(Snapshot.tree({ ...options, snapshotId: "snap_000000000000000000000000" }), rejectsWith(404, "not_found"));
});

test("list pages through a sandbox's snapshots and outlives it", async (t) => {
  const name = uniqueName("listed");
  const sandbox = await create(t, { name });
  const made = [];
  for (let i = 0; i < 3; i++) made.push((await sandbox.snapshot()).snapshotId);
  t.after(async () => {
    for (const id of made) await (await snapshotById(id)).delete();
  });
  const page = await Snapshot.list({ ...options, name, limit: 2, sortOrder: "asc" });
  assert.deepEqual(page.snapshots.map((s) => s.id), made.slice(0, 2));
  assert.equal(page.pagination.count, 2);
  assert.equal(typeof page.pagination.next, "string");
  assert.deepEqual((await page.toArray()).map((s) => s.id), made);
  assert.deepEqual(await ids(sandbox), made.toReversed());
  assert.deepEqual(page.snapshots.map((s) => s.creationMethod), ["manual", "manual"]);
  assert.equal(page.snapshots[1].parentId, made[0]);
  const all = await Snapshot.list({ ...options, limit: 100 });
  assert.ok(all.snapshots.length >= 3);
  await sandbox.delete();
  assert.deepEqual((await (await Snapshot.list({ ...options, name })).toArray()).map((s) => s.id), made.toReversed());
  await assert.rejects(Snapshot.list({ ...options, limit: 101 }), rejectsWith(400, "bad_request"));
});

test("the tree goes both ways and shows siblings", async (t) => {
  const sandbox = await create(t);
  const chain = [];
  for (let i = 0; i < 4; i++) chain.push((await sandbox.snapshot()).snapshotId);
  const twin = await create(t, fromSnapshot(chain[1]));
  const sibling = (await twin.snapshot()).snapshotId;

  const up = await Snapshot.tree({ ...options, snapshotId: chain[3], limit: 2 });
  assert.equal(up.anchor.snapshot.id, chain[3]);
  assert.deepEqual(up.snapshots.map((n) => n.snapshot.id), [chain[2], chain[1]]);
  assert.deepEqual(up.snapshots.map((n) => [n.count, n.siblings.map((s) => s.id)]), [["2", [sibling]], ["1", []]]);
  assert.deepEqual((await up.toArray()).map((n) => n.snapshot.id), [chain[2], chain[1], chain[0]]);
  const down = await Snapshot.tree({ ...options, snapshotId: chain[0], sortOrder: "asc" });
  assert.deepEqual(down.snapshots.map((n) => n.snapshot.id), [chain[1], sibling]); // the newest child
});

test("delete: once more is no error, and the sandbox cannot be resumed", async (t) => {
  const name = uniqueName("gone");
  const sandbox = await create(t, { name });
  await sh(sandbox, "echo gone > file");
  const snapshot = await sandbox.snapshot();
  await snapshot.delete();
  assert.equal(snapshot.status, "deleted");
  await snapshot.delete();
  assert.equal((await snapshotById(snapshot.snapshotId)).status, "deleted");
  assert.deepEqual((await all(sandbox)).map((s) => [s.id, s.status]), [[snapshot.snapshotId, "deleted"]]); // listed still
  await assert.rejects(sandbox.runCommand("true"), rejectsWith(410, "snapshot_not_found"));
  await assert.rejects(get(name, { resume: true }), rejectsWith(410, "snapshot_not_found"));
  assert.equal((await get(name, { resume: false })).status, "stopped");
  await assert.rejects(Sandbox.fork({ ...options, sourceSandbox: name }), rejectsWith(410, "snapshot_not_found"));
});

test("getOrCreate makes a sandbox anew whose snapshot was deleted", async (t) => {
  const name = uniqueName("anew");
  const first = await create(t, { name });
  await sh(first, "echo gone > file");
  await (await first.snapshot()).delete();
  let created = 0;
  const second = await Sandbox.getOrCreate({ ...options, name, resume: true, timeout: 60_000, onCreate: () => void created++ });
  assert.equal(created, 1);
  assert.equal(await sh(second, "ls"), "");
  const third = await Sandbox.getOrCreate({ ...options, name, onCreate: () => void created++ });
  assert.equal(created, 1);
  assert.equal(third.currentSession().sessionId, second.currentSession().sessionId);
});

test("currentSnapshotId rolls back", async (t) => {
  const sandbox = await create(t);
  await sh(sandbox, "echo first > file");
  const first = await sandbox.snapshot();
  await sh(sandbox, "echo second > file");
  const { snapshot: second } = await sandbox.stop();
  await sandbox.update({ currentSnapshotId: first.snapshotId });
  assert.equal(sandbox.currentSnapshotId, first.snapshotId);
  assert.equal(await sh(sandbox, "cat file"), "first");
  await sandbox.stop();
  await sandbox.update({ currentSnapshotId: second.id });
  assert.equal(await sh(sandbox, "cat file"), "second");
  await assert.rejects(sandbox.update({ currentSnapshotId: "snap_000000000000000000000000" }), rejectsWith(404, "not_found"));
  await first.delete();
  await assert.rejects(sandbox.update({ currentSnapshotId: first.snapshotId }), rejectsWith(410, "snapshot_not_found"));
});

test("keepLastSnapshots keeps so many, and null lifts it", async (t) => {
  const sandbox = await create(t, { keepLastSnapshots: { count: 2, expiration: 3 * day } });
  assert.deepEqual(sandbox.keepLastSnapshots, { count: 2, expiration: 3 * day, deleteEvicted: true });
  const made = [];
  for (let i = 0; i < 3; i++) {
    const snapshot = await sandbox.snapshot();
    near(snapshot.expiresAt, Date.now() + 3 * day, "expiresAt");
    made.push(snapshot.snapshotId);
  }
  assert.deepEqual(await ids(sandbox), [made[2], made[1]]);
  assert.equal((await snapshotById(made[0])).status, "deleted");
  assert.equal(await sh(sandbox, "echo works"), "works"); // on what is left of the chain

  await sandbox.update({ keepLastSnapshots: { count: 1, deleteEvicted: false } });
  assert.deepEqual(sandbox.keepLastSnapshots, { count: 1, deleteEvicted: false });
  const { snapshot } = await sandbox.stop();
  assert.deepEqual(await ids(sandbox), [snapshot.id, made[2], made[1]]);
  near((await snapshotById(made[2])).expiresAt, Date.now() + 30 * day, "an evicted one");

  await sandbox.update({ keepLastSnapshots: null });
  assert.equal((await get(sandbox.name, { resume: false })).keepLastSnapshots, undefined);
  for (let i = 0; i < 2; i++) await sandbox.snapshot();
  assert.equal((await ids(sandbox)).length, 5);
  for (const count of [0, 11, 1.5]) {
    await assert.rejects(sandbox.update({ keepLastSnapshots: { count } }), rejectsWith(400, "bad_request"));
  }
});

test("an evicted snapshot that another sandbox starts from stays", async (t) => {
  const sandbox = await create(t, { keepLastSnapshots: { count: 1 } });
  await sh(sandbox, "echo shared > file");
  const first = await sandbox.snapshot();
  const other = await create(t, { ...fromSnapshot(first.snapshotId), persistent: false });
  await other.stop();
  await sandbox.snapshot();
  assert.equal((await snapshotById(first.snapshotId)).status, "created");
  assert.equal(await sh(other, "cat file"), "shared");
});

test("fork copies configuration and files", async (t) => {
  const source = await create(t, { env: { FROM: "source", ONLY: "source" }, tags: { team: "web" }, timeout: 111_000, keepLastSnapshots: { count: 4 } });
  await sh(source, "echo saved > file");
  const { snapshot } = await source.stop();
  const name = uniqueName("fork");
  const plain = await fork(t, { sourceSandbox: source.name, name });
  assert.equal(plain.name, name);
  assert.equal(plain.status, "running");
  assert.equal(plain.sourceSnapshotId, snapshot.id);
  assert.equal(plain.timeout, 111_000);
  assert.equal(plain.persistent, true);
  assert.deepEqual(plain.tags, { team: "web" });
  assert.equal(plain.keepLastSnapshots.count, 4);
  assert.equal(await sh(plain, 'cat file; echo "$FROM $ONLY"'), "saved\nsource source");

  await sh(plain, "echo forked > file");
  await plain.stop();
  assert.equal(await sh(source, "cat file"), "saved");
  assert.equal(await sh(plain, "cat file"), "forked");
  await assert.rejects(Sandbox.fork({ ...options, sourceSandbox: source.name, name }), rejectsWith(409, "conflict"));
  await assert.rejects(Sandbox.fork({ ...options, sourceSandbox: uniqueName("none") }), rejectsWith(404, "not_found"));
});

test("fork with overrides", async (t) => {
  const source = await create(t, { env: { FROM: "source", ONLY: "source" }, tags: { team: "web" } });
  await sh(source, "echo saved > file");
  await source.snapshot();
  const sandbox = await fork(t, {
    sourceSandbox: source.name,
    timeout: 99_000,
    resources: { vcpus: 1 },
    env: { FROM: "fork" },
    tags: { stage: "test" },
    persistent: false,
    snapshotExpiration: 2 * day,
    keepLastSnapshots: { count: 3 },
  });
  assert.notEqual(sandbox.name, source.name);
  assert.equal(sandbox.timeout, 99_000);
  assert.deepEqual([sandbox.vcpus, sandbox.memory], [1, 2048]);
  assert.deepEqual(sandbox.tags, { stage: "test" });
  assert.equal(sandbox.persistent, false);
  assert.equal(sandbox.snapshotExpiration, 2 * day);
  assert.equal(sandbox.keepLastSnapshots.count, 3);
  assert.equal(await sh(sandbox, 'cat file; echo "$FROM [$ONLY]"; nproc'), "saved\nfork []\n1");
  assert.equal((await get(source.name, { resume: false })).tags.team, "web");
  assert.deepEqual(sandbox.routes, []);
});

test("fork of a running sandbox starts from its last snapshot, or its image", async (t) => {
  const source = await create(t);
  await sh(source, "echo unsaved > file");
  const early = await fork(t, { sourceSandbox: source.name });
  assert.equal(early.sourceSnapshotId, undefined);
  assert.equal(await sh(early, "ls"), "");
  await source.snapshot();
  await sh(source, "echo later > file");
  const late = await fork(t, { sourceSandbox: source.name });
  assert.equal(await sh(late, "cat file"), "unsaved");
  assert.equal(source.status, "running");
});

test("live is ours: a fork of a running sandbox's files of this moment", async (t) => {
  const source = await create(t);
  await sh(source, "echo unsaved > file");
  const { status, json } = await api("POST", `/v2/sandboxes/${source.name}/fork`, { live: true, persistent: false });
  assert.equal(status, 200);
  const copy = await get(json.sandbox.name);
  removeAfter(t, copy);
  assert.equal(await sh(copy, "cat file"), "unsaved");
  assert.equal((await api("GET", `/v2/sandboxes/sessions/${source.currentSession().sessionId}`)).json.session.status, "running");
  const { snapshot } = (await api("GET", `/v2/sandboxes/snapshots/${copy.sourceSnapshotId}`)).json;
  assert.equal(snapshot.creationMethod, "fork");
  await remove(copy);
  assert.equal((await snapshotById(snapshot.id)).status, "deleted"); // nobody asked for it by itself
});

test("sessions tell what each started from", async (t) => {
  const sandbox = await create(t);
  const snapshots = [];
  for (let i = 0; i < 2; i++) {
    snapshots.push((await sandbox.snapshot()).snapshotId);
    await sh(sandbox, "true");
  }
  const page = await sandbox.listSessions({ limit: 2 });
  assert.equal(page.sessions.length, 2);
  const sessions = await page.toArray();
  assert.deepEqual(sessions.map((s) => s.status), ["running", "stopped", "stopped"]);
  assert.deepEqual(sessions.map((s) => s.sourceSnapshotId), [snapshots[1], snapshots[0], undefined]);
  assert.ok(sessions[1].snapshottedAt >= sessions[1].startedAt);
  const oldest = await sandbox.listSessions({ sortOrder: "asc", limit: 1 });
  assert.equal(oldest.sessions[0].id, sessions[2].id);
  const found = await get(sandbox.name);
  assert.ok(found.totalDurationMs > 0);
});

test("calls while a snapshot is taken wait for the next session", async (t) => {
  const sandbox = await create(t);
  await sh(sandbox, "head -c 50000000 /dev/urandom > big; echo kept > file");
  const session = `/v2/sandboxes/sessions/${sandbox.currentSession().sessionId}`;
  let saved = false;
  const seen = new Set();
  const saving = api("POST", session + "/snapshot", {}).then((answer) => {
    saved = true;
    return answer;
  });
  while (!saved) {
    const { status, json } = await api("POST", session + "/extend-timeout", { duration: 1 });
    seen.add(status === 200 ? "200" : `${status} ${json.error.code}`);
  }
  assert.equal((await saving).json.session.status, "stopped");
  for (const answer of seen) {
    assert.ok(["200", "422 sandbox_snapshotting", "422 sandbox_stopping", "410 sandbox_stopped"].includes(answer), answer);
  }
  const later = await api("POST", session + "/snapshot", {});
  assert.deepEqual([later.status, later.json.error.code], [410, "sandbox_stopped"]);

  // The SDK meets whichever of these there is, and goes on where it was saved.
  // What starts before the snapshot is taken ends with its session, so the
  // command waits until the snapshot has begun.
  const again = await get(sandbox.name, { resume: true });
  const next = again.snapshot();
  const taken = `/v2/sandboxes/sessions/${again.currentSession().sessionId}`;
  while ((await api("GET", taken)).json.session.status === "running");
  assert.equal(await sh(await get(sandbox.name), "cat file"), "kept");
  await next;
});

test("stops and snapshots at the same time make one snapshot each session", async (t) => {
  const sandbox = await create(t);
  const session = `/v2/sandboxes/sessions/${sandbox.currentSession().sessionId}`;
  const answers = await Promise.all([1, 2, 3].map(() => api("POST", session + "/stop")));
  assert.deepEqual(answers.map((a) => a.status), [200, 200, 200]);
  assert.equal(new Set(answers.map((a) => a.json.snapshot?.id).filter(Boolean)).size, 1);
  assert.equal((await ids(sandbox)).length, 1);
  const resumed = await Promise.all([1, 2, 3].map(() => get(sandbox.name, { resume: true })));
  assert.equal(new Set(resumed.map((s) => s.currentSession().sessionId)).size, 1);
});

test("deleteOrphanSnapshots deletes what nothing else starts from", async (t) => {
  const sandbox = await create(t);
  await sh(sandbox, "echo shared > file");
  const used = await sandbox.snapshot();
  const unused = await sandbox.snapshot();
  const other = await create(t, fromSnapshot(used.snapshotId));
  t.after(async () => (await snapshotById(used.snapshotId)).delete());
  await sandbox.delete({ deleteOrphanSnapshots: true });
  assert.equal((await snapshotById(used.snapshotId)).status, "created");
  assert.equal((await snapshotById(unused.snapshotId)).status, "deleted");
  assert.equal(await sh(other, "cat file"), "shared");
});

test("without it the snapshots of a deleted sandbox stay", async (t) => {
  const sandbox = await create(t);
  await sh(sandbox, "echo kept > file");
  const snapshot = await sandbox.snapshot();
  t.after(() => snapshot.delete());
  await sandbox.delete();
  await assert.rejects(get(sandbox.name), rejectsWith(404, "not_found"));
  assert.equal((await snapshotById(snapshot.snapshotId)).status, "created");
  assert.equal(await sh(await create(t, fromSnapshot(snapshot.snapshotId)), "cat file"), "kept");
});
