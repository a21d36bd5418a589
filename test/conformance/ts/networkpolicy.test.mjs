// Network policies. The names end in .test, which nothing on the internet does.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Sandbox } from "@vercel/sandbox";

import { api, create, credentials, options, rejectsWith, serverURL } from "./skerry.mjs";

const custom = {
  allow: {
    "api.rules.test": [
      { match: { path: { startsWith: "/v1/" }, method: ["GET"] }, response: { statusCode: 201, body: "from the rule", contentType: "text/plain" } },
      { match: { headers: [{ key: { exact: "x-key" } }] }, transform: [{ headers: { authorization: "Bearer s3cr3t" } }] },
      { response: { statusCode: 403 } },
    ],
    "*.example.test": [],
    "forward.test": [{ forwardURL: "https://proxy.test/in" }],
  },
  subnets: { allow: ["192.0.2.0/24"], deny: ["192.0.2.128/25"] },
};

async function sh(sandbox, script) {
  const done = await sandbox.runCommand("sh", ["-c", script]);
  return { code: done.exitCode, out: (await done.stdout()).trim() };
}

test("a custom policy is enforced and shown without its secrets", async (t) => {
  const sandbox = await create(t, { networkPolicy: custom });
  assert.deepEqual(sandbox.networkPolicy.subnets, custom.subnets);
  assert.deepEqual(Object.keys(sandbox.networkPolicy.allow), Object.keys(custom.allow)); // in the order given
  assert.deepEqual(sandbox.networkPolicy.allow["forward.test"], custom.allow["forward.test"]);
  assert.deepEqual(sandbox.networkPolicy.allow["api.rules.test"][0].transform, [{ headers: { authorization: "<redacted>" } }]);
  const { json } = await api("GET", `/v2/sandboxes/${sandbox.name}?projectId=${credentials.projectId}`);
  assert.ok(!JSON.stringify(json).includes("s3cr3t"));

  // Answered by the rule, over TLS that the sandbox trusts.
  const at = "--resolve api.rules.test:443:198.51.100.1 -sS -m 20";
  assert.deepEqual(await sh(sandbox, `curl ${at} -w ' %{http_code}' https://api.rules.test/v1/x`), { code: 0, out: "from the rule 201" });
  assert.deepEqual(await sh(sandbox, `curl ${at} -w '%{http_code}' https://api.rules.test/v2/x`), { code: 0, out: "403" });
  assert.notEqual((await sh(sandbox, "curl --resolve other.test:443:198.51.100.1 -sS -m 20 https://other.test/")).code, 0);
  const script = `process.env.NODE_EXTRA_CA_CERTS && require('https').get({host:'198.51.100.1',servername:'api.rules.test',path:'/v1/x',headers:{host:'api.rules.test'}},r=>{console.log(r.statusCode);process.exit()})`;
  assert.deepEqual(await sh(sandbox, `node -e "${script}"`), { code: 0, out: "201" });
});

test("a policy is changed while a sandbox runs", async (t) => {
  const sandbox = await create(t, { networkPolicy: "deny-all" });
  assert.equal(sandbox.networkPolicy, "deny-all");
  const got = await sandbox.updateNetworkPolicy({ allow: ["a.example.test"] });
  assert.deepEqual(got, { allow: ["a.example.test"] });
  // The session's alone.
  assert.equal((await Sandbox.get({ ...options, name: sandbox.name })).networkPolicy, "deny-all");
  await sandbox.update({ networkPolicy: custom });
  const again = await Sandbox.get({ ...options, name: sandbox.name });
  assert.deepEqual(again.networkPolicy, sandbox.networkPolicy);
  assert.deepEqual(again.currentSession().networkPolicy, sandbox.networkPolicy);
  assert.deepEqual(await sh(sandbox, "curl --resolve api.rules.test:443:198.51.100.1 -sS -m 20 https://api.rules.test/v1/x"), { code: 0, out: "from the rule" });
  await sandbox.stop();
  assert.deepEqual(await sh(sandbox, "curl --resolve api.rules.test:443:198.51.100.1 -sS -m 20 https://api.rules.test/v1/x"), { code: 0, out: "from the rule" });
});

test("bad policies name the rule", async () => {
  const bad = {
    "networkPolicy.allow.a b": { allow: ["a b"] },
    "networkPolicy.subnets.deny[0]": { subnets: { deny: ["10.0.0.0/40"] } },
    "networkPolicy.allow.a.test[0].forwardURL": { allow: { "a.test": [{ forwardURL: "http://p.test" }] } },
    "networkPolicy.allow.a.test[0].match.path.regex": { allow: { "a.test": [{ match: { path: { regex: "(" } }, response: { statusCode: 200 } }] } },
  };
  for (const [field, networkPolicy] of Object.entries(bad)) {
    await assert.rejects(Sandbox.create({ ...options, networkPolicy }), rejectsWith(400, "bad_request"), field);
    const { json } = await api("POST", "/v3/sandboxes", { projectId: credentials.projectId, networkPolicy });
    assert.equal(json.error.field, field);
  }
});

test("the keys of the server's and the node's tokens are public", async () => {
  const discovery = await (await fetch(`${serverURL}/.well-known/openid-configuration`)).json();
  assert.equal(discovery.issuer, serverURL);
  const { keys } = await (await fetch(`${serverURL}/.well-known/jwks`)).json();
  assert.deepEqual(keys.map(({ kty, alg, use, d }) => [kty, alg, use, d]), [["RSA", "RS256", "sig", undefined], ["RSA", "RS256", "sig", undefined]]);
  assert.notEqual(keys[0].kid, keys[1].kid);
});
