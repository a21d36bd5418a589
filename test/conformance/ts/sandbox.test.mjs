import assert from "node:assert/strict";
import { test } from "node:test";

import { Sandbox } from "@vercel/sandbox";

import { api, create, credentials, options, rejectsWith, remove, serverURL, uniqueName } from "./skerry.mjs";

test("the quickstart", async (t) => {
  const sandbox = await create(t, { runtime: "node24" });
  assert.equal(sandbox.status, "running");
  const result = await sandbox.runCommand("node", ["-e", "console.log(process.version)"]);
  assert.equal(result.exitCode, 0);
  assert.match(await result.stdout(), /^v24\./);
  await sandbox.stop();
  assert.equal(sandbox.status, "stopped");
});

test("what a new sandbox says of itself", async (t) => {
  const name = uniqueName("props");
  const sandbox = await create(t, { name, timeout: 90_000, tags: { suite: "conformance" }, resources: { vcpus: 2 } });
  assert.equal(sandbox.name, name);
  assert.equal(sandbox.timeout, 90_000);
  assert.equal(sandbox.vcpus, 2);
  assert.equal(sandbox.memory, 4096);
  assert.equal(sandbox.persistent, true);
  assert.equal(sandbox.cwd, "/vercel/sandbox");
  assert.deepEqual(sandbox.tags, { suite: "conformance" });
  assert.deepEqual(sandbox.routes, []);
  assert.ok(Math.abs(sandbox.createdAt.getTime() - Date.now()) < 60_000);
  assert.ok(sandbox.expiresAt.getTime() > Date.now());
  assert.match(sandbox.currentSession().sessionId, /^sbx_/);
  assert.throws(() => sandbox.domain(3000), /No route/);
});

test("every runtime", async (t) => {
  for (const [runtime, command, version] of [
    ["node24", "node", /^v24\./],
    ["node26", "node", /^v26\./],
    ["node22", "node", /^v22\./],
    ["python3.13", "python3", /^Python 3\.13\./],
  ]) {
    const sandbox = await create(t, { runtime });
    assert.equal(sandbox.runtime, runtime);
    assert.match(await (await sandbox.runCommand(command, ["--version"])).stdout(), version);
    await remove(sandbox);
  }
});

test("get finds a sandbox, and not one that is not there", async (t) => {
  const sandbox = await create(t);
  const found = await Sandbox.get({ ...options, name: sandbox.name });
  assert.equal(found.currentSession().sessionId, sandbox.currentSession().sessionId);
  await assert.rejects(Sandbox.get({ ...options, name: uniqueName("none") }), rejectsWith(404, "not_found"));
});

test("a name is taken once", async (t) => {
  const sandbox = await create(t);
  await assert.rejects(Sandbox.create({ ...options, name: sandbox.name }), rejectsWith(409, "conflict"));
});

test("getOrCreate creates once and then gets", async (t) => {
  const name = uniqueName("once");
  let created = 0;
  const params = { ...options, name, timeout: 120_000, onCreate: () => void created++ };
  const first = await Sandbox.getOrCreate(params);
  t.after(() => remove(first));
  const second = await Sandbox.getOrCreate(params);
  assert.equal(created, 1);
  assert.equal(second.currentSession().sessionId, first.currentSession().sessionId);
});

test("all who get or create at once get the same sandbox", async (t) => {
  const name = uniqueName("race");
  const params = { ...options, name, timeout: 120_000 };
  const all = await Promise.all(Array.from({ length: 8 }, () => Sandbox.getOrCreate(params)));
  t.after(() => remove(all[0]));
  assert.equal(new Set(all.map((s) => s.currentSession().sessionId)).size, 1);
  for (const s of all) assert.equal((await s.runCommand("true")).exitCode, 0);
  await assert.rejects(Sandbox.create({ ...options, name }), rejectsWith(409, "conflict"));
});

test("list pages through a prefix in order", async (t) => {
  const prefix = uniqueName("page");
  const names = ["a", "b", "c"].map((end) => `${prefix}-${end}`);
  for (const name of names) await create(t, { name, tags: { page: name.slice(-1) } });
  const query = { ...options, namePrefix: prefix, sortBy: "name", sortOrder: "asc", limit: 2 };
  const page = await Sandbox.list(query);
  assert.equal(page.sandboxes.length, 2);
  assert.equal(page.pagination.count, 2);
  assert.equal(typeof page.pagination.next, "string");
  assert.deepEqual((await page.toArray()).map((s) => s.name), names);
  const last = await Sandbox.list({ ...query, cursor: page.pagination.next });
  assert.deepEqual(last.sandboxes.map((s) => s.name), names.slice(2));
  assert.equal(last.pagination.next, null);
  const down = await Sandbox.list({ ...query, sortOrder: "desc", limit: 1 });
  assert.deepEqual((await down.toArray()).map((s) => s.name), names.toReversed());
  const tagged = await Sandbox.list({ ...query, tags: { page: "b" } });
  assert.deepEqual(tagged.sandboxes.map((s) => s.name), [names[1]]);
  await assert.rejects(Sandbox.list({ ...query, limit: 101 }), rejectsWith(400, "bad_request"));
});

test("update changes tags and timeout", async (t) => {
  const sandbox = await create(t, { tags: { old: "1" } });
  await sandbox.update({ tags: { new: "2" }, timeout: 180_000 });
  const found = await Sandbox.get({ ...options, name: sandbox.name });
  assert.deepEqual(found.tags, { new: "2" });
  assert.equal(found.timeout, 180_000);
  // The SDK extends the running session by the difference.
  assert.equal(sandbox.currentSession().timeout, 180_000);
});

test("extendTimeout adds, up to the maximum", async (t) => {
  const sandbox = await create(t, { timeout: 60_000 });
  await sandbox.extendTimeout(30_000);
  assert.equal(sandbox.currentSession().timeout, 90_000);
  const tooLong = 10 * 365 * 24 * 3600 * 1000;
  await assert.rejects(sandbox.extendTimeout(tooLong), rejectsWith(400, "sandbox_timeout_invalid"));
  await assert.rejects(sandbox.extendTimeout(-1), rejectsWith(400, "sandbox_timeout_invalid"));
  await assert.rejects(Sandbox.create({ ...options, timeout: tooLong }), rejectsWith(400, "sandbox_timeout_invalid"));
});

test("a session ends when its time is up", async (t) => {
  const sandbox = await create(t, { timeout: 2_000 });
  const session = `/v2/sandboxes/sessions/${sandbox.currentSession().sessionId}`;
  let status;
  for (const deadline = Date.now() + 30_000; status !== "stopped" && Date.now() < deadline; ) {
    await new Promise((resolve) => setTimeout(resolve, 200));
    status = (await api("GET", session)).json.session.status;
  }
  assert.equal(status, "stopped");
});

test("a stopped sandbox resumes at the next call", async (t) => {
  let resumed = 0;
  const sandbox = await create(t, { onResume: () => void resumed++ });
  const before = sandbox.currentSession().sessionId;
  const { json } = await api("POST", `/v2/sandboxes/sessions/${before}/stop`);
  assert.equal(json.session.status, "stopped");
  assert.ok(json.session.stoppedAt >= json.session.startedAt);
  const result = await sandbox.runCommand("echo", ["again"]);
  assert.equal(await result.stdout(), "again\n");
  assert.notEqual(sandbox.currentSession().sessionId, before);
  assert.equal(resumed, 1);
  const sessions = await (await sandbox.listSessions()).toArray();
  assert.deepEqual(sessions.map((s) => s.status), ["running", "stopped"]);
});

test("stop is idempotent, and resuming waits for it", async (t) => {
  const sandbox = await create(t);
  const stop = `/v2/sandboxes/sessions/${sandbox.currentSession().sessionId}/stop`;
  const stopping = [api("POST", stop), api("POST", stop)];
  const result = await sandbox.runCommand("echo", ["after"]);
  assert.ok([0, 137, 143].includes(result.exitCode), `exit code ${result.exitCode}`);
  for (const { status } of await Promise.all(stopping)) assert.equal(status, 200);
  assert.equal((await api("POST", stop)).status, 200);
});

test("calls on a stopped session are 410", async (t) => {
  const sandbox = await create(t);
  const session = `/v2/sandboxes/sessions/${sandbox.currentSession().sessionId}`;
  await sandbox.stop();
  for (const [path, body] of [
    ["/cmd", { command: "true" }],
    ["/fs/read", { path: "a" }],
    ["/fs/mkdir", { path: "a" }],
    ["/interactive", {}],
    ["/extend-timeout", { duration: 1000 }],
  ]) {
    const { status, json } = await api("POST", session + path, body);
    assert.equal(status, 410, path);
    assert.equal(json.error.code, "sandbox_stopped", path);
  }
});

test("calls on a stopping session are 422 or, once it has stopped, 410", async (t) => {
  const sandbox = await create(t);
  const session = `/v2/sandboxes/sessions/${sandbox.currentSession().sessionId}`;
  let stopped = false;
  const stop = api("POST", session + "/stop").then(() => void (stopped = true));
  const seen = new Set();
  while (!stopped) {
    const { status, json } = await api("POST", session + "/fs/mkdir", { path: uniqueName("d") });
    seen.add(status === 200 ? "200" : `${status} ${json.error.code}`);
  }
  await stop;
  for (const answer of seen) {
    assert.ok(["200", "422 sandbox_snapshotting", "422 sandbox_stopping", "410 sandbox_stopped"].includes(answer), answer);
  }
});

test("delete removes the name", async (t) => {
  const sandbox = await create(t);
  await sandbox.delete({ deleteOrphanSnapshots: true });
  await assert.rejects(Sandbox.get({ ...options, name: sandbox.name }), rejectsWith(404, "not_found"));
  await assert.rejects(sandbox.delete(), rejectsWith(404, "not_found"));
});

test("what is not built says so and names the field", async (t) => {
  for (const [field, params] of Object.entries({
    networkId: { networkId: "network_1" },
    region: { region: "iad1" },
  })) {
    const { status, json } = await api("POST", "/v3/sandboxes", { projectId: credentials.projectId, ...params });
    assert.equal(status, 501, field);
    assert.deepEqual([json.error.code, json.error.field], ["not_implemented", field]);
  }
});

test("bad requests name the field", async () => {
  for (const [field, body] of Object.entries({
    timeout: { timeout: "5m" },
    "resources.vcpus": { resources: { vcpus: 0 } },
    runtime: { runtime: "node1" },
    "env.A": { env: { A: 1 } },
    name: { name: "x".repeat(10_000) },
  })) {
    const { status, json } = await api("POST", "/v3/sandboxes", body);
    assert.equal(status, 400, field);
    assert.deepEqual([json.error.code, json.error.field], ["bad_request", field]);
  }
});

test("a token that is wrong or names another scope is refused", async () => {
  const attempt = (change) => Sandbox.list({ ...options, ...change });
  await assert.rejects(attempt({ token: "wrong" }), rejectsWith(401, "unauthorized"));
  await assert.rejects(attempt({ teamId: "team_other" }), rejectsWith(403, "forbidden"));
  await assert.rejects(attempt({ projectId: "prj_other" }), rejectsWith(403, "forbidden"));
  const anonymous = await fetch(`${serverURL}/v2/sandboxes`);
  assert.equal(anonymous.status, 401);
});
