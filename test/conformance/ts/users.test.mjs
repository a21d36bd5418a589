import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";

import { SandboxUserAlreadyExistsError } from "@vercel/sandbox";

import { open, remove } from "./skerry.mjs";

suite("users and groups", () => {
  let sandbox, alice, bob;
  before(async () => {
    sandbox = await open();
    alice = await sandbox.createUser("alice");
    bob = await sandbox.createUser("bob");
  });
  after(() => remove(sandbox));

  const output = async (user, ...command) => (await (await user.runCommand(command[0], command.slice(1))).stdout()).trim();

  test("a user runs as itself, at home", async () => {
    assert.equal(await output(alice, "id", "-un"), "alice");
    assert.equal(await output(alice, "pwd"), "/home/alice");
    const result = await alice.runCommand({ cmd: "sh", args: ["-c", 'echo "$A"; pwd'], env: { A: "b c" }, cwd: "/tmp" });
    assert.equal(await result.stdout(), "b c\n/tmp\n");
  });

  test("a name is taken once", async () => {
    await assert.rejects(sandbox.createUser("alice"), SandboxUserAlreadyExistsError);
    assert.equal(await output(sandbox.asUser("alice"), "id", "-un"), "alice");
  });

  test("users cannot reach each other's files", async () => {
    await alice.writeFiles([{ path: "secret.txt", content: Buffer.from("of alice") }]);
    assert.equal((await alice.readFileToBuffer({ path: "secret.txt" })).toString(), "of alice");
    for (const command of [["cat", "/home/alice/secret.txt"], ["ls", "/home/alice"], ["touch", "/home/alice/planted"], ["rm", "-f", "/home/alice/secret.txt"]]) {
      assert.notEqual((await bob.runCommand(command[0], command.slice(1))).exitCode, 0, command.join(" "));
    }
    await assert.rejects(bob.readFileToBuffer({ path: "/home/alice/secret.txt" }), /Permission denied/);
    assert.equal(await alice.readFileToBuffer({ path: "missing" }), null);
  });

  test("users cannot signal each other's processes or become root", async () => {
    const sleeper = await alice.runCommand({ cmd: "sleep", args: ["1000"], detached: true });
    assert.notEqual((await bob.runCommand("pkill", ["-u", "alice", "sleep"])).exitCode, 0);
    assert.notEqual((await bob.runCommand("sudo", ["-n", "id"])).exitCode, 0);
    await sleeper.kill("SIGKILL");
  });

  test("directories that a user makes are its own", async () => {
    await alice.mkDir("made");
    await alice.writeFiles([{ path: "tree/branch/leaf", content: Buffer.from("x"), mode: 0o600 }]);
    const result = await sandbox.runCommand({ cmd: "stat", args: ["-c", "%U %a", "/home/alice/made", "/home/alice/tree", "/home/alice/tree/branch/leaf"], sudo: true });
    assert.equal(await result.stdout(), "alice 770\nalice 770\nalice 600\n");
  });

  test("a group shares a directory until a user leaves it", async () => {
    const { sharedDir } = await sandbox.createGroup("crew");
    assert.equal(sharedDir, "/shared/crew");
    await sandbox.addUserToGroup("alice", "crew");
    await sandbox.addUserToGroup("bob", "crew");
    assert.equal((await alice.runCommand("sh", ["-c", `umask 007; echo shared > ${sharedDir}/note`])).exitCode, 0);
    assert.equal(await output(bob, "cat", `${sharedDir}/note`), "shared");
    await sandbox.removeUserFromGroup("bob", "crew");
    assert.notEqual((await bob.runCommand("cat", [`${sharedDir}/note`])).exitCode, 0);
    await assert.rejects(sandbox.createGroup("crew"), /already exists/);
    await assert.rejects(sandbox.addUserToGroup("nobody-there", "crew"));
  });
});
