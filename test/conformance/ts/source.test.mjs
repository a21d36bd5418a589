import assert from "node:assert/strict";
import { test } from "node:test";

import { Sandbox } from "@vercel/sandbox";

import { options, rejectsWith } from "./skerry.mjs";

// Sources that work need a server to fetch from, which this suite cannot
// assume the sandbox host reaches; those that cannot work need none.
test("a source that cannot be fetched says so and leaves no sandbox", async () => {
  const name = `source-${process.pid}`;
  for (const source of [
    { type: "git", url: "http://127.0.0.1:9/nothing.git" },
    { type: "tarball", url: "http://127.0.0.1:9/nothing.tar.gz" },
  ]) {
    await assert.rejects(Sandbox.create({ ...options, name, source }), (err) => {
      assert.ok(err.response.status >= 400 && err.response.status < 500, `status ${err.response.status}`);
      return true;
    });
    await assert.rejects(Sandbox.get({ ...options, name }), rejectsWith(404, "not_found"));
  }
});

test("a source without a URL is refused", async () => {
  await assert.rejects(Sandbox.create({ ...options, source: { type: "git" } }), rejectsWith(400, "bad_request"));
});
