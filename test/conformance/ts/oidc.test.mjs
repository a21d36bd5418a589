// The public SDK with nothing but VERCEL_OIDC_TOKEN, a token of an issuer that the server
// was told to accept. The SDK takes the team and the project from the token's claims.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, suite, test } from "node:test";
import { promisify } from "node:util";

import { credentials, redirected, rejectsWith, Sandbox, uniqueName } from "./skerry.mjs";

const { SKERRY_BIN, SKERRY_STATE, SKERRY_ISSUER } = process.env;
assert.ok(SKERRY_BIN && SKERRY_STATE && SKERRY_ISSUER, "set SKERRY_BIN, SKERRY_STATE and SKERRY_ISSUER to run this suite");

const audience = "https://sandbox.example.com";
const sandboxd = (...args) => promisify(execFile)(join(SKERRY_BIN, "sandboxd"), args);

suite("a token of another issuer", () => {
  const id = uniqueName("ci");
  let issuer, lines, url, folder;
  const ask = async (request) => {
    issuer.stdin.write(JSON.stringify(request) + "\n");
    return JSON.parse((await lines.next()).value);
  };
  // token returns one whose team and project are not known here by their ids.
  const token = async (claims) =>
    (await ask({ kind: "vercel", claims: { aud: audience, owner_id: "team_theirs", project_id: "prj_theirs", ...claims } })).token;
  const only = async (token, use) => {
    process.env.VERCEL_OIDC_TOKEN = token;
    try {
      return await use();
    } finally {
      delete process.env.VERCEL_OIDC_TOKEN;
    }
  };

  before(async () => {
    issuer = spawn(SKERRY_ISSUER, { stdio: ["pipe", "pipe", "inherit"] });
    lines = createInterface({ input: issuer.stdout })[Symbol.asyncIterator]();
    url = JSON.parse((await lines.next()).value).issuer;
    folder = await mkdtemp(join(tmpdir(), "issuer-"));
    await writeFile(join(folder, "keys.json"), JSON.stringify(await ask({ kind: "keys" })));
    await sandboxd("issuer", "add", id, "--url", url, "--audience", audience, "--keys", join(folder, "keys.json"));
    await sandboxd("issuer", "allow", id, "web", "--match", "project=web", "--team", credentials.teamId, "--project", credentials.projectId);
    await sandboxd("issuer", "allow", id, "looks", "--match", "project=looks", "--team", credentials.teamId, "--project", credentials.projectId, "--role", "viewer");
  });
  after(async () => {
    await sandboxd("issuer", "rm", id);
    issuer.stdin.end();
    await once(issuer, "close");
    await rm(folder, { recursive: true });
  });

  test("is all that the SDK needs", async () => {
    await only(await token(), async () => {
      const sandbox = await Sandbox.create({ fetch: redirected });
      try {
        const result = await sandbox.runCommand("echo", ["hello"]);
        assert.equal(await result.stdout(), "hello\n");
        const again = await Sandbox.get({ name: sandbox.name, fetch: redirected });
        assert.equal(again.name, sandbox.name);
      } finally {
        await sandbox.delete();
      }
    });
  });

  test("may do no more than its rule says", async () => {
    await only(await token({ project: "looks" }), async () => {
      await Sandbox.list({ fetch: redirected });
      await assert.rejects(Sandbox.create({ fetch: redirected }), rejectsWith(403, "forbidden"));
    });
    await only(await token({ project: "other" }), () => assert.rejects(Sandbox.create({ fetch: redirected }), rejectsWith(403, "forbidden")));
  });

  test("is refused for another audience, and when it has expired", async () => {
    const past = Math.floor(Date.now() / 1000) - 3600;
    for (const claims of [{ aud: "https://elsewhere.example.com" }, { exp: past, iat: past - 60 }]) {
      const bad = await token(claims);
      await assert.rejects(
        only(bad, () => Sandbox.list({ fetch: redirected, token: bad, teamId: credentials.teamId, projectId: credentials.projectId })),
        rejectsWith(401, "unauthorized"),
      );
    }
  });
});
