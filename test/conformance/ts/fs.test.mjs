import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";

import { open, remove } from "./skerry.mjs";

// The fs object of the SDK is made of commands whose output it parses.
suite("fs", () => {
  let sandbox, fs;
  before(async () => {
    sandbox = await open();
    fs = sandbox.fs;
    await fs.mkdir("/tmp/fs");
  });
  after(() => remove(sandbox));

  const at = (name) => `/tmp/fs/${name}`;
  const fails = (promise, code) => assert.rejects(promise, (err) => err.code === code);

  test("readFile, writeFile and appendFile", async () => {
    await fs.writeFile(at("a"), "one €\n");
    await fs.appendFile(at("a"), "two\n");
    await fs.appendFile(at("new"), Buffer.from([0, 255]));
    assert.equal(await fs.readFile(at("a"), "utf8"), "one €\ntwo\n");
    assert.deepEqual(await fs.readFile(at("new")), Buffer.from([0, 255]));
    await fs.writeFile(at("hex"), "00ff", "hex");
    assert.equal(await fs.readFile(at("hex"), { encoding: "hex" }), "00ff");
    await fails(fs.readFile(at("missing")), "ENOENT");
  });

  test("mkdir, readdir and rmdir", async () => {
    await fs.mkdir(at("d/e/f"), { recursive: true });
    await fs.mkdir(at("d/e/f"), { recursive: true });
    await fs.writeFile(at("d/file"), "x");
    await fs.symlink("file", at("d/link"));
    assert.deepEqual((await fs.readdir(at("d"))).toSorted(), ["e", "file", "link"]);
    const entries = await fs.readdir(at("d"), { withFileTypes: true });
    const kinds = entries.map((e) => [e.name, e.isDirectory(), e.isFile(), e.isSymbolicLink()]);
    assert.deepEqual(kinds.toSorted(), [["e", true, false, false], ["file", false, true, false], ["link", false, false, true]]);
    await fails(fs.readdir(at("missing")), "ENOENT");
    await fails(fs.rmdir(at("d")), "ENOTEMPTY");
    await fails(fs.rmdir(at("missing")), "ENOENT");
    await fs.rmdir(at("d/e/f"));
    assert.equal(await fs.exists(at("d/e/f")), false);
  });

  test("stat and lstat", async () => {
    await fs.writeFile(at("s"), "12345");
    await fs.symlink("s", at("s-link"));
    const stat = await fs.stat(at("s-link"));
    assert.ok(stat.isFile());
    assert.equal(stat.size, 5);
    assert.ok(Math.abs(stat.mtime.getTime() - Date.now()) < 120_000);
    assert.ok((await fs.lstat(at("s-link"))).isSymbolicLink());
    assert.ok((await fs.stat("/tmp")).isDirectory());
    assert.ok((await fs.stat("/dev/null")).isCharacterDevice());
    await fails(fs.stat(at("missing")), "ENOENT");
    await fails(fs.lstat(at("missing")), "ENOENT");
  });

  test("rm and unlink", async () => {
    await fs.writeFile(at("r1"), "x");
    await fs.unlink(at("r1"));
    await fails(fs.unlink(at("r1")), "ENOENT");
    await fails(fs.rm(at("r1")), "ENOENT");
    await fs.rm(at("r1"), { force: true });
    await fs.mkdir(at("r2/sub"), { recursive: true });
    await fs.rm(at("r2"), { recursive: true });
    await fails(fs.access(at("r2")), "ENOENT");
  });

  test("rename and copyFile", async () => {
    await fs.writeFile(at("from"), "moved");
    await fs.rename(at("from"), at("to"));
    await fs.copyFile(at("to"), at("copy"));
    assert.equal(await fs.readFile(at("copy"), "utf8"), "moved");
    assert.equal(await fs.exists(at("from")), false);
    await fs.access(at("to"));
    await fails(fs.rename(at("from"), at("x")), "ENOENT");
    await fails(fs.copyFile(at("from"), at("x")), "ENOENT");
  });

  test("chmod and chown", async () => {
    await fs.writeFile(at("m"), "x");
    await fs.chmod(at("m"), 0o640);
    assert.equal((await fs.stat(at("m"))).mode & 0o777, 0o640);
    const { uid, gid } = await fs.stat(at("m"));
    await fs.chown(at("m"), uid, gid);
    await fails(fs.chown(at("m"), 0, 0), "EACCES");
    await fails(fs.chmod(at("missing"), 0o600), "ENOENT");
  });

  test("symlink, readlink and realpath", async () => {
    await fs.symlink("/tmp/fs/target", at("l"));
    await fails(fs.symlink("/tmp/fs/target", at("l")), "EEXIST");
    assert.equal(await fs.readlink(at("l")), "/tmp/fs/target");
    await fs.writeFile(at("target"), "x");
    assert.equal(await fs.realpath(at("l")), "/tmp/fs/target");
    await assert.rejects(fs.readlink(at("target")));
    await fails(fs.realpath(at("missing/deep")), "ENOENT");
  });

  test("truncate and mkdtemp", async () => {
    await fs.writeFile(at("t"), "123456");
    await fs.truncate(at("t"), 3);
    assert.equal(await fs.readFile(at("t"), "utf8"), "123");
    await fs.truncate(at("t"));
    assert.equal((await fs.stat(at("t"))).size, 0);
    const dir = await fs.mkdtemp(at("temp-"));
    assert.match(dir, /^\/tmp\/fs\/temp-\w{6}$/);
    assert.ok((await fs.stat(dir)).isDirectory());
    await fails(fs.mkdtemp("/missing/temp-"), "EACCES");
  });
});
