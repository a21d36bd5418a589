// The public SDK, pointed at the server that the environment names. The SDK
// itself is not modified: it takes a fetch, and this one sends what is meant
// for https://vercel.com/api to the server, and nothing anywhere else.
import { randomBytes } from "node:crypto";

import { Sandbox } from "@vercel/sandbox";

export { Sandbox };

const wanted = ["SKERRY_URL", "SKERRY_TOKEN", "SKERRY_TEAM", "SKERRY_PROJECT"];
const missing = wanted.filter((name) => !process.env[name]);
if (missing.length > 0) {
  throw new Error(`set ${missing.join(", ")} to run this suite against a server`);
}

const publicBase = "https://vercel.com/api";
export const serverURL = process.env.SKERRY_URL.replace(/\/+$/, "");

export const credentials = {
  token: process.env.SKERRY_TOKEN,
  teamId: process.env.SKERRY_TEAM,
  projectId: process.env.SKERRY_PROJECT,
};

export async function redirected(input, init) {
  const url = String(input);
  if (!url.startsWith(publicBase + "/")) {
    throw new Error(`the SDK called ${url}, which is not the API`);
  }
  return fetch(serverURL + "/api" + url.slice(publicBase.length), init);
}

// What every entry point of the SDK is given.
export const options = { ...credentials, fetch: redirected };

export function uniqueName(prefix) {
  return `${prefix}-${randomBytes(6).toString("hex")}`;
}

// open makes a sandbox, which its caller removes.
export function open(params = {}) {
  return Sandbox.create({ timeout: 120_000, ...params, ...options });
}

const leftovers = new WeakMap(); // what each test has to remove

// removeAfter removes a sandbox when the test t ends, those that were made
// later before it: they may start from its snapshots.
export function removeAfter(t, sandbox) {
  if (!leftovers.has(t)) {
    leftovers.set(t, []);
    t.after(async () => {
      for (const left of leftovers.get(t).reverse()) await remove(left);
    });
  }
  leftovers.get(t).push(sandbox);
}

// create makes a sandbox that is removed when the test t ends.
export async function create(t, params) {
  const sandbox = await open(params);
  removeAfter(t, sandbox);
  return sandbox;
}

// remove leaves nothing of a sandbox, its snapshots neither.
export async function remove(sandbox) {
  try {
    await sandbox.delete({ deleteOrphanSnapshots: true });
  } catch (err) {
    if (err.response?.status !== 404) throw err; // a test may have deleted it
  }
}

// api calls the server without the SDK, for what the SDK hides.
export async function api(method, path, body) {
  const response = await fetch(serverURL + path, {
    method,
    headers: { authorization: `Bearer ${credentials.token}`, "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return { status: response.status, json: await response.json() };
}

// rejectsWith is for assert.rejects: an error of the API with a status and code.
export function rejectsWith(status, code) {
  return (err) => {
    if (err.response?.status !== status || err.json?.error?.code !== code) {
      throw new Error(`expected ${status} ${code}, not ${err.response?.status} ${err.text ?? err.stack}`);
    }
    return true;
  };
}
