// The SDK's library for those who are forwarded requests, unmodified, with
// tokens and keys of our signer. It takes tokens of one issuer alone, so the
// signer is given that one's name, and what the library fetches there is
// fetched from the signer.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";

import { defineSandboxProxy } from "@vercel/sandbox/proxy";

const issuer = "https://oidc.vercel.com/skerry";
const forwardURL = "https://Forward.example.com:443/api/v1/";
let child, token;
const realFetch = globalThis.fetch;

before(async () => {
  child = spawn("go", ["run", "./issuer", issuer, forwardURL], { stdio: ["pipe", "pipe", "inherit"] });
  const [line] = await once(createInterface(child.stdout), "line");
  const made = JSON.parse(line);
  token = made.token;
  globalThis.fetch = (input, init) => realFetch(String(input).replace(issuer, made.url), init);
});

after(async () => {
  globalThis.fetch = realFetch;
  child.stdin.end();
  await once(child, "exit");
});

// forwarded asks the library for what it makes of a request as the proxy sends it.
async function forwarded(path, changes = {}) {
  const headers = {
    "vercel-forwarded-host": "web.example.com",
    "vercel-forwarded-scheme": "https",
    "vercel-forwarded-port": "443",
    "vercel-forwarded-path": path,
    "vercel-sandbox-oidc-token": token,
    ...changes,
  };
  let seen;
  const handler = defineSandboxProxy((request, meta) => {
    seen = { url: request.url, meta };
    return new Response("ok");
  });
  const response = await handler(new Request(`https://forward.example.com/api/v1${path}`, { headers }));
  return { status: response.status, ...seen };
}

test("the library accepts our tokens and reads the sandbox from them", async () => {
  for (const path of ["/", "/v1/things?a=b"]) {
    assert.deepEqual(await forwarded(path), {
      status: 200,
      url: `https://web.example.com${path}`,
      meta: { host: "forward.example.com", teamId: "team_1", projectId: "prj_1", sandboxId: "sbx_1", sandboxName: "demo" },
    });
  }
});

test("it refuses one that was changed or is for another place", async () => {
  const [head, claims, signature] = token.split(".");
  const forged = { ...JSON.parse(Buffer.from(claims, "base64url")), sandbox_id: "sbx_2" };
  const other = `${head}.${Buffer.from(JSON.stringify(forged)).toString("base64url")}.${signature}`;
  assert.equal((await forwarded("/", { "vercel-sandbox-oidc-token": other })).status, 403);
  const handler = defineSandboxProxy(() => new Response("ok"));
  const headers = {
    "vercel-forwarded-host": "a",
    "vercel-forwarded-scheme": "https",
    "vercel-forwarded-port": "443",
    "vercel-forwarded-path": "/",
    "vercel-sandbox-oidc-token": token,
  };
  assert.equal((await handler(new Request("https://elsewhere.example.com/api/v1/", { headers }))).status, 403);
});
