// Measures what a user of the public TypeScript SDK waits for: the start of a sandbox
// and its first command, one after the other, staggered, and all at once. It needs
// SKERRY_URL, SKERRY_TOKEN, SKERRY_TEAM and SKERRY_PROJECT, and SKERRY_METRICS, the URL
// of the server's /metrics, to wait until sandboxes are ready. Arguments: the number of
// sandboxes, and the comma-separated names of measurements.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

import { Sandbox, options, remove } from "../../test/conformance/ts/skerry.mjs";

const count = Number(process.argv[2] ?? 100);
const wanted = (process.argv[3] ?? "sequential,staggered,burst,cold").split(",");
const ticks = 100; // of /proc/stat in a second

// busy is the CPU time in ms that everything on this machine has used.
function busy() {
  const [user, nice, system, , , irq, softirq] = readFileSync("/proc/stat", "utf8").split("\n", 1)[0].split(/\s+/).slice(1).map(Number);
  return ((user + nice + system + irq + softirq) * 1000) / ticks;
}

function client() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

const at = (sorted, part) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))];

function report(name, times, note = "") {
  const sorted = times.toSorted((a, b) => a - b);
  const figures = [at(sorted, 0.5), at(sorted, 0.95), at(sorted, 0.99)];
  console.log(name.padEnd(44) + figures.map((ms) => `${ms.toFixed(1)} ms`.padStart(12)).join("") + (note && "   " + note));
  return figures[0];
}

// ready waits until the server has that many sandboxes ready, or as many as it wants.
async function ready(least) {
  for (const end = Date.now() + 300_000; ; await sleep(250)) {
    const text = await (await fetch(process.env.SKERRY_METRICS)).text();
    const value = (name) => Number(text.match(new RegExp(`^${name} (\\d+)`, "m"))?.[1] ?? 0);
    if (value("skerry_warm_ready") >= least) break;
    if (Date.now() > end) throw new Error(`waited in vain for ${least} sandboxes to be ready`);
  }
  await sleep(2000);
}

const open = (params) => Sandbox.create({ timeout: 600_000, persistent: false, ...params, ...options });

async function version(sandbox) {
  const command = await sandbox.runCommand("node", ["-v"]);
  if (command.exitCode !== 0) throw new Error(`node -v ended with ${command.exitCode}`);
}

// one creates a sandbox and runs its first command.
async function one(params, results) {
  const begin = performance.now();
  const sandbox = await open(params);
  const created = performance.now();
  await version(sandbox);
  results.create.push(created - begin);
  results.total.push(performance.now() - begin);
  results.sandboxes.push(sandbox);
}

const empty = () => ({ create: [], total: [], sandboxes: [] });

// during runs work and returns the CPU time that the machine and this process used.
async function during(work) {
  const before = [busy(), client()];
  await work();
  return { all: busy() - before[0], own: client() - before[1] };
}

function summary(name, results, used) {
  const n = results.total.length;
  report(`${name}: create`, results.create);
  return report(
    `${name}: create, then node -v`, results.total,
    `CPU for each: ${(used.all / n).toFixed(0)} ms, ${(used.own / n).toFixed(0)} of it the client's`,
  );
}

async function removeAll(sandboxes) {
  for (let i = 0; i < sandboxes.length; i += 8) await Promise.all(sandboxes.slice(i, i + 8).map(remove));
}

const measurements = {
  async sequential() {
    await ready(count);
    const results = empty();
    const used = await during(async () => {
      for (let i = 0; i < count; i++) await one({}, results);
    });
    const median = summary(`${count} one after the other`, results, used);
    console.log("  of a warm node -v".padEnd(44) + `${(median / base).toFixed(2)}x`.padStart(12));
    await removeAll(results.sandboxes);
  },
  async staggered() {
    await ready(count);
    const results = empty();
    const used = await during(async () => {
      const all = [];
      for (let i = 0; i < count; i++) {
        all.push(one({}, results));
        await sleep(200);
      }
      await Promise.all(all);
    });
    summary(`${count}, one every 200 ms`, results, used);
    await removeAll(results.sandboxes);
  },
  async burst() {
    await ready(count);
    const results = empty();
    const used = await during(() => Promise.all(Array.from({ length: count }, () => one({}, results))));
    summary(`${count} at once, all ready`, results, used);
    await removeAll(results.sandboxes);
  },
  // Sandboxes of another size, of which none is ready.
  async cold() {
    const results = empty();
    const used = await during(() => Promise.all(Array.from({ length: count }, () => one({ resources: { vcpus: 1 } }, results))));
    summary(`${count} at once, none ready`, results, used);
    await removeAll(results.sandboxes);
  },
};

console.log("".padEnd(44) + ["median", "p95", "p99"].map((s) => s.padStart(12)).join(""));
const warm = await open({ resources: { vcpus: 4 } });
for (let i = 0; i < 5; i++) await version(warm);
const times = [];
const used = await during(async () => {
  for (let i = 0; i < 50; i++) {
    const begin = performance.now();
    await version(warm);
    times.push(performance.now() - begin);
  }
});
const base = report("node -v in a sandbox that has run it", times, `CPU for each: ${(used.all / 50).toFixed(0)} ms, ${(used.own / 50).toFixed(0)} of it the client's`);
await remove(warm);
for (const name of wanted) await measurements[name]();
