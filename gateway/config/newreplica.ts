// A copy that somebody asks the admin address to add: its keys are those of the configuration, and its URL may lead to a backend only.
//
// Whoever may order the gateway about must not make it ask others in its name: names are resolved once, here, and what is kept is the
// address; link-local addresses (where clouds keep credentials), the gateway's own ports and what no backend listens on are refused.
// At https:// the name is kept, because the certificate is checked by it: who could lead it elsewhere later has no certificate for it there.

import { lookup } from "node:dns/promises";
import { isAbsolute } from "node:path";
import ipaddr from "ipaddr.js";
import { checkDocument, FaultsError, parseDocument } from "../../rules/document.ts";
import { GatewayError } from "../errors.ts";
import { formatAddress, reaches } from "./address.ts";
import { urlReplica } from "./schema.ts";
import type { NewReplica } from "../status.ts";
import type { Address } from "./address.ts";

export interface NewReplicaParts {
  /** Where this gateway listens: front and admin address, with their real ports. */
  readonly own: readonly Address[];
  /**
   * Whether `state`, `stop` and `start` may be given: they let whoever asks run programs and replace folders as this user. Without a token
   * everybody on this machine may ask.
   */
  readonly mayRunPrograms: boolean;
  /** Default: the system's. Rejects where the name is not known. */
  readonly resolve?: (host: string) => Promise<readonly string[]>;
}

const schema = urlReplica.pick({ name: true, url: true, state: true, stop: true, start: true, witness: true });
const resolveMs = 5000;

/** Null: one more of those that the gateway starts, as an empty body asks for. Rejects with GW_BAD_REQUEST. */
export async function parseNewReplica(body: unknown, parts: NewReplicaParts): Promise<NewReplica | null> {
  if (isEmpty(body)) return null;
  const { name, url, state, stop, start, witness } = checked(body);
  if (!parts.mayRunPrograms && (state ?? stop ?? start) !== undefined) {
    throw new GatewayError(
      "GW_FORBIDDEN",
      "state, stop and start make the gateway replace folders and run programs: that takes admin.tokenFile, or the configuration file.",
    );
  }
  if (state !== undefined && !isAbsolute(state)) throw bad(`state: "${state}" has to be an absolute path`);
  if ((stop === undefined) !== (start === undefined)) throw bad("stop and start mean nothing without each other");
  return {
    name,
    url: await pinned(url, parts),
    state: state ?? null,
    stop: stop ?? null,
    start: start ?? null,
    witness: (witness ?? []).map(({ method, target }) => `${method} ${target}`),
  };
}

const bad = (message: string): GatewayError => new GatewayError("GW_BAD_REQUEST", `${message}.`);

function isEmpty(body: unknown): boolean {
  return body === undefined || body === null || (typeof body === "object" && Object.keys(body).length === 0);
}

function checked(body: unknown) {
  try {
    return checkDocument(parseDocument(JSON.stringify(body), { file: "body" }), schema);
  } catch (error) {
    if (!(error instanceof FaultsError)) throw error;
    const told = error.faults.map(({ path, message, suggestion }) => {
      const meant = suggestion === undefined ? "" : ` (did you mean "${suggestion}"?)`;
      return `${path === "" ? "The body" : `${path}:`} ${message}${meant}`;
    });
    throw bad(told.join("; "));
  }
}

async function pinned(url: string, { own, resolve = addressesOf }: NewReplicaParts): Promise<string> {
  const { hostname, origin, port: digits, protocol } = new URL(url);
  const host = hostname.replace(/^\[|\]$/g, "");
  const port = digits === "" ? (protocol === "https:" ? 443 : 80) : Number(digits);
  const found = ipaddr.isValid(host) ? [host] : await known(host, resolve);
  const addresses = found.map((text) => ({ host: ipaddr.process(text).toString(), port }));
  for (const address of addresses) {
    const where = address.host === host ? address.host : `${host} (${address.host})`;
    if (isForbidden(address.host)) throw bad(`url: ${where} is no address of a backend: it is refused`);
    if (own.some((one) => reaches(address, one))) throw bad(`url: ${url} is this gateway itself`);
  }
  return protocol === "https:" ? origin : `http://${formatAddress(addresses[0] as Address)}`;
}

async function known(host: string, resolve: (host: string) => Promise<readonly string[]>): Promise<readonly string[]> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error("timeout")), resolveMs);
  });
  try {
    const found = await Promise.race([resolve(host), late]);
    if (found.length > 0) return found;
  } catch {
    // Told below: which resolver said what is nobody's business here.
  } finally {
    clearTimeout(timer);
  }
  throw bad(`url: the name ${host} is not known`);
}

async function addressesOf(host: string): Promise<readonly string[]> {
  const found = await lookup(host, { all: true, order: "ipv4first" });
  return found.map(({ address }) => address);
}

const ranges: ReadonlySet<string> = new Set([
  "unspecified",
  "broadcast",
  "multicast",
  "linkLocal",
  "deprecatedSiteLocal",
  "reserved",
  // IPv4 addresses in other clothes.
  "rfc6145",
  "rfc6052",
  "6to4",
  "teredo",
]);
/** Where clouds answer outside the link-local range: Alibaba, Azure, Amazon and Google over IPv6. */
const metadata: ReadonlySet<string> = new Set(["100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"]);
/** IPv4 addresses written as IPv6 ones (RFC 4291, 2.5.5.1): nobody lives there but loopback. */
const compatible = ipaddr.parseCIDR("::/96") as [ipaddr.IPv6, number];

function isForbidden(host: string): boolean {
  const address = ipaddr.parse(host);
  if (address instanceof ipaddr.IPv6 && address.match(compatible) && address.range() !== "loopback") return true;
  return ranges.has(address.range()) || metadata.has(address.toString());
}
