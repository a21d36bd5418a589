// A program in a linked folder: it has no credentials but VERCEL_OIDC_TOKEN, which the SDK
// refreshes when it has expired. What is meant for the public service goes to the server.
import { Sandbox } from "@vercel/sandbox";

const server = process.env.SKERRY_URL.replace(/\/+$/, "");
const { fetch } = globalThis;
const redirected = (input, init) => {
  const url = String(input);
  const path = ["https://vercel.com", "https://api.vercel.com"].map((at) => url.startsWith(at + "/") && url.slice(at.length)).find(Boolean);
  if (!path) throw new Error(`the SDK called ${url}`);
  return fetch(server + path, init);
};
globalThis.fetch = redirected;

const sandbox = await Sandbox.create({ timeout: 60_000, fetch: redirected });
try {
  const result = await sandbox.runCommand("echo", ["hello"]);
  process.stdout.write(await result.stdout());
} finally {
  await sandbox.delete();
}
