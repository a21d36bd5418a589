// Development tokens: "sandbox link" and "sandbox env pull" write one, the public SDK needs
// nothing else, and gets a new one by itself when it has expired.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, suite, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { api, credentials, serverURL } from "./skerry.mjs";

const { SKERRY_BIN } = process.env;
assert.ok(SKERRY_BIN, "set SKERRY_BIN to run this suite");

const program = fileURLToPath(new URL("linked.mjs", import.meta.url));

suite("a development token", () => {
  let folder, environment;
  const run = (file, ...args) => promisify(execFile)(file, args, { cwd: folder, env: environment, timeout: 60_000 });
  const claims = (token) => JSON.parse(Buffer.from(token.split(".")[1], "base64url"));
  const stored = async () => /^VERCEL_OIDC_TOKEN="(.*)"$/m.exec(await readFile(join(folder, ".env.local"), "utf8"))[1];

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "linked-"));
    // Nothing of the user who runs this is used or changed.
    environment = { PATH: process.env.PATH, HOME: folder, XDG_CONFIG_HOME: join(folder, "config"), XDG_DATA_HOME: join(folder, "data"), SKERRY_URL: serverURL };
    const { token, teamId, projectId } = credentials;
    await run(join(SKERRY_BIN, "sandbox"), "link", "--token", token, "--scope", teamId, "--project", projectId);
  });
  after(() => rm(folder, { recursive: true }));

  test("is all that the SDK needs in a linked folder", async () => {
    const { owner_id, project_id, environment, exp, iat } = claims(await stored());
    assert.deepEqual([environment, exp - iat], ["development", 12 * 3600]);
    const project = await api("GET", `/v2/projects/${credentials.projectId}?teamId=${credentials.teamId}`);
    assert.deepEqual([owner_id, project_id], [project.json.accountId, project.json.id]);
    const { stdout } = await run(process.execPath, "--env-file=.env.local", program);
    assert.equal(stdout, "hello\n");
  });

  test("is refreshed by the SDK with the login of the public CLI", async () => {
    const token = await stored();
    const old = Buffer.from(JSON.stringify({ ...claims(token), exp: Math.floor(Date.now() / 1000) - 60 })).toString("base64url");
    const expired = [token.split(".")[0], old, token.split(".")[2]].join(".");
    await writeFile(join(folder, ".env.local"), `VERCEL_OIDC_TOKEN="${expired}"\n`);
    await assert.rejects(run(process.execPath, "--env-file=.env.local", program), /auth|log ?in/i);

    await mkdir(join(folder, "data", "com.vercel.cli"), { recursive: true });
    await writeFile(join(folder, "data", "com.vercel.cli", "auth.json"), JSON.stringify({ token: credentials.token }));
    const { stdout } = await run(process.execPath, "--env-file=.env.local", program);
    assert.equal(stdout, "hello\n");
    const { project_id } = claims(token);
    const kept = JSON.parse(await readFile(join(folder, "data", "com.vercel.token", `${project_id}.json`), "utf8"));
    assert.equal(claims(kept.token).project_id, project_id);
    assert.notEqual(kept.token, token);
  });

  test("is refreshed by env pull", async () => {
    await run(join(SKERRY_BIN, "sandbox"), "env", "pull", "--token", credentials.token);
    const { stdout } = await run(process.execPath, "--env-file=.env.local", program);
    assert.equal(stdout, "hello\n");
  });
});
