// Preloaded into the public CLI, which has no setting for where its API is:
// sends what is meant for https://vercel.com/api to the server that SKERRY_URL
// names, and lets nothing reach any other host.
import dns from "node:dns";

const publicBase = "https://vercel.com/api";
const server = new URL(process.env.SKERRY_URL);
const base = server.href.replace(/\/+$/, "");

function redirect(url) {
  if (url === publicBase || url.startsWith(publicBase + "/")) return base + "/api" + url.slice(publicBase.length);
  // Before it opens a terminal, the CLI asks the terminal's host for its
  // health, by https and without a port.
  if (url === `https://${server.hostname}/health`) return base + "/health";
  if (new URL(url).origin === server.origin) return url;
  throw new Error(`refused to call ${url}`);
}

const realFetch = globalThis.fetch;
globalThis.fetch = (input, init) => {
  try {
    if (input instanceof Request) return realFetch(new Request(redirect(input.url), input), init);
    return realFetch(redirect(String(input)), init);
  } catch (err) {
    return Promise.reject(err);
  }
};

// Whatever does not go through fetch needs a name resolved.
const realLookup = dns.lookup;
dns.lookup = (hostname, ...rest) => {
  if (hostname === server.hostname) return realLookup(hostname, ...rest);
  rest.at(-1)(new Error(`refused to look up ${hostname}`));
};
