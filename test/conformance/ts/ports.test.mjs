// Published ports: routes, and that what they lead to answers.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Sandbox } from "@vercel/sandbox";

import { api, create, options, rejectsWith, uniqueName } from "./skerry.mjs";

const server = `require("http").createServer((req, res) => res.end("from " + req.url)).listen(Number(process.argv[1]))`;

// serve starts a web server in the sandbox and waits until its route answers.
async function serve(sandbox, port) {
  await sandbox.runCommand({ cmd: "node", args: ["-e", server, String(port)], detached: true });
  const { url } = sandbox.routes.find((r) => r.port === port);
  for (let tries = 0; tries < 200; tries++) {
    const response = await fetch(url);
    await response.arrayBuffer();
    if (response.status === 200) return url;
    assert.equal(response.status, 502);
    await new Promise((done) => setTimeout(done, 50));
  }
  assert.fail(`nothing answers at ${url}`);
}

test("ports at create are routes that answer", async (t) => {
  const sandbox = await create(t, { ports: [3000, 8080] });
  assert.deepEqual(sandbox.routes.map((r) => r.port), [3000, 8080]);
  for (const route of sandbox.routes) {
    // The SDK makes a name of the public service of the subdomain; ours is in the URL.
    assert.equal(sandbox.domain(route.port), `https://${route.subdomain}.vercel.run`);
    assert.match(route.subdomain, /^[a-z2-7]{26}$/);
    assert.match(route.url, /^https?:\/\//);
  }
  assert.throws(() => sandbox.domain(9999));
  const url = await serve(sandbox, 3000);
  assert.equal(await (await fetch(url + "/hello?x=1")).text(), "from /hello?x=1");
});

test("routes stay over stop and resume, and an update replaces them", async (t) => {
  const sandbox = await create(t, { name: uniqueName("ports"), ports: [3000, 4000] });
  const before = sandbox.routes;
  await sandbox.stop();
  const again = await Sandbox.get({ name: sandbox.name, resume: true, ...options });
  assert.deepEqual(again.routes, before);
  await again.update({ ports: [4000, 5000] });
  const later = await Sandbox.get({ name: sandbox.name, resume: false, ...options });
  assert.deepEqual(later.routes.map((r) => r.port), [4000, 5000]);
  assert.deepEqual(later.routes[0], before[1]);
  await later.update({ ports: [] });
  assert.deepEqual((await Sandbox.get({ name: sandbox.name, resume: false, ...options })).routes, []);
});

test("a request resumes a stopped sandbox", async (t) => {
  const sandbox = await create(t, { ports: [3000] });
  await sandbox.stop();
  const response = await fetch(sandbox.routes[0].url);
  await response.arrayBuffer();
  assert.equal(response.status, 502); // it runs, and nothing listens yet
  const now = await Sandbox.get({ name: sandbox.name, resume: false, ...options });
  assert.equal(now.status, "running");
});

test("ports that cannot be are refused by name", async () => {
  for (const ports of [[0], [65536], [3000, 3000], [1, 2, 3, 4, 5], ["3000"]]) {
    await assert.rejects(Sandbox.create({ ports, ...options }), rejectsWith(400, "bad_request"));
  }
  const { status, json } = await api("POST", "/v3/sandboxes", { ports: [3000, 70000] });
  assert.equal(status, 400);
  assert.match(json.error.message, /ports\[1\]/);
});
