import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";

import WebSocket from "ws";

import { open, remove } from "./skerry.mjs";

// terminal opens an interactive command as the public CLI does.
async function terminal(sandbox, start) {
  const { url, token } = await sandbox.openInteractive();
  const socket = new WebSocket(`${url}?token=${encodeURIComponent(token)}`);
  const term = { socket, screen: "", exit: undefined, url, token };
  let changed = () => {};
  socket.on("message", (data, isBinary) => {
    if (isBinary) {
      term.screen += data.toString("latin1");
    } else {
      const message = JSON.parse(data.toString());
      if (message.type === "exit") term.exit = message.code;
    }
    changed();
  });
  term.closed = new Promise((resolve) => socket.once("close", (code) => resolve(code)));
  await new Promise((resolve, reject) => socket.once("open", resolve).once("error", reject));
  socket.send(JSON.stringify({ type: "start", cwd: "/vercel/sandbox", cols: 80, rows: 24, args: [], env: ["TERM=xterm-256color"], ...start }));
  term.type = (text) => socket.send(Buffer.from(text));
  term.resize = (cols, rows) => socket.send(JSON.stringify({ type: "resize", cols, rows }));
  // shows waits until the screen holds what is expected, and forgets it.
  term.shows = async (expected) => {
    const found = () => (expected instanceof RegExp ? expected.test(term.screen) : term.screen.includes(expected));
    const late = setTimeout(() => socket.terminate(), 20_000);
    while (!found()) {
      if (socket.readyState !== WebSocket.OPEN) assert.fail(`no ${expected} on the screen: ${JSON.stringify(term.screen)}`);
      await new Promise((resolve) => {
        changed = resolve;
        socket.once("close", resolve);
      });
    }
    clearTimeout(late);
    term.screen = "";
  };
  return term;
}

suite("interactive", () => {
  let sandbox;
  before(async () => {
    sandbox = await open();
  });
  after(() => remove(sandbox));

  test("a shell on a real terminal", async () => {
    const term = await terminal(sandbox, { command: "sh", env: ["TERM=xterm-256color", "PS1=> "] });
    await term.shows("> ");
    term.type("tty; id -un; pwd; echo $TERM\r");
    await term.shows(/\/dev\/pts\/\d+\r\nvercel-sandbox\r\n\/vercel\/sandbox\r\nxterm-256color/);
    term.type("stty size\r");
    await term.shows("24 80");
    term.resize(132, 50);
    term.type("stty size\r");
    await term.shows("50 132");
    term.type("exit 9\r");
    assert.equal(await term.closed, 1000);
    assert.equal(term.exit, 9);
  });

  test("a program is told when the window changes, as vim is", async () => {
    const term = await terminal(sandbox, { command: "bash", args: ["-c", "trap 'stty size; echo told' WINCH; echo ready; while :; do sleep 0.1; done"] });
    await term.shows("ready");
    term.resize(100, 30);
    await term.shows(/30 100\r\ntold/);
    term.resize(101, 31);
    // bash goes on after an interrupt that a child survives, and stty that has
    // written the size would: the interrupt waits until stty is gone.
    await term.shows(/31 101\r\ntold/);
    term.type("\x03");
    await term.closed;
    assert.equal(term.exit, 130);
  });

  test("control keys act on the foreground job", async () => {
    const term = await terminal(sandbox, { command: "sh", env: ["PS1=> "] });
    await term.shows("> ");
    term.type("sh -c 'echo job-is\"\"-up; exec sleep 1000'\r");
    await term.shows("job-is-up");
    term.type("\x03");
    await term.shows("> ");
    term.type("cat\r");
    await term.shows("cat\r\n");
    term.type("typed\r");
    await term.shows("typed\r\ntyped");
    term.type("\x04");
    await term.shows("> ");
    term.type("\x04");
    await term.closed;
    assert.equal(term.exit, 0);
  });

  test("bytes pass unchanged", async () => {
    const term = await terminal(sandbox, { command: "sh", args: ["-c", "stty raw -echo; printf ready; head -c 256 | od -An -v -tu1 | tr -s ' \\n' ' '; printf '\\000\\377end'"] });
    await term.shows("ready");
    term.type(Buffer.from(Array.from({ length: 256 }, (_, i) => i)));
    await term.closed;
    assert.equal(term.screen.replace(/\0\xffend$/, "").trim(), Array.from({ length: 256 }, (_, i) => i).join(" "));
    assert.ok(term.screen.endsWith("\0\xffend"));
  });

  test("much output arrives whole before the exit", async () => {
    const term = await terminal(sandbox, { command: "sh", args: ["-c", "stty -onlcr; head -c 3000000 /dev/zero | tr '\\0' x; echo end"] });
    await term.closed;
    assert.equal(term.screen.length, 3_000_004);
    assert.ok(term.screen.endsWith("end\n"));
    assert.equal(term.exit, 0);
  });

  test("sudo, as the public CLI asks for it", async () => {
    const term = await terminal(sandbox, { command: "sudo", args: ["id", "-u"] });
    await term.closed;
    assert.equal(term.screen, "0\r\n");
  });

  test("a command that does not exist", async () => {
    const term = await terminal(sandbox, { command: "no-such-command" });
    await term.closed;
    assert.equal(term.exit, 127);
    assert.notEqual(term.screen, "");
  });

  test("closing the connection hangs up", async () => {
    const term = await terminal(sandbox, { command: "sh", args: ["-c", "trap 'echo hung > hung-up; exit' HUP; echo ready; while :; do sleep 0.05; done"] });
    await term.shows("ready");
    term.socket.close();
    await term.closed;
    const waited = await sandbox.runCommand("sh", ["-c", "for i in $(seq 100); do [ -s hung-up ] && exit 0; sleep 0.1; done; exit 1"]);
    assert.equal(waited.exitCode, 0);
  });

  test("a token is good once", async () => {
    const term = await terminal(sandbox, { command: "true" });
    await term.closed;
    for (const token of [term.token, "wrong", ""]) {
      const refused = new WebSocket(`${term.url}?token=${token}`);
      const err = await new Promise((resolve) => refused.once("error", resolve).once("open", () => resolve(undefined)));
      assert.match(String(err?.message), /40[01]/);
    }
  });
});
