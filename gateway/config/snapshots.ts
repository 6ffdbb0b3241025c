// What `snapshots:` and `audit:` mean: the way to get at the state, the store with its credentials, the key, and every default that depends on others.

import { join } from "node:path";
import { Secret } from "./secret.ts";
import { readSecret, readSecretBytes } from "./secretfile.ts";
import { endpointFault, isRegion, trimmed } from "./storeaddress.ts";
import type { Fault } from "../../rules/document.ts";
import type { Quiesce } from "./forms.ts";
import type { ParsedConfig } from "./schema.ts";
import type { Sources } from "./sources.ts";
import type { StoreAddress } from "./storeaddress.ts";
import type { CaptureConfig, Config, SnapshotsConfig, StoreConfig } from "./values.ts";

type Parsed = NonNullable<ParsedConfig["snapshots"]>;

interface Collect {
  readonly faults: Fault[];
  readonly warnings: Fault[];
}

/** With faults it is what is left of it. */
export function snapshotsOf(
  { snapshots, data }: ParsedConfig,
  sources: Sources,
  collect: Collect,
): SnapshotsConfig | null {
  if (snapshots === undefined) return null;
  const { every, keep, drill } = snapshots;
  const capture = captureOf(snapshots, sources, collect.faults);
  return {
    every: { entries: every.entries, bytes: every.bytes, timeMs: every.time, atLeastMs: every.atLeast },
    keep,
    capture,
    quiesce: snapshots.quiesce ?? quiesceOf(capture),
    store: storeOf(snapshots, sources.resolve(["data"], data), sources, collect),
    encryptionKey: encryptionKeyOf(snapshots, sources, collect),
    drillMs: drill ?? null,
  };
}

/** Files are torn while somebody writes them; a dump or an export is made by a service that runs. */
function quiesceOf({ kind }: CaptureConfig): Quiesce {
  return { kind: kind === "directory" ? "stop" : "none" };
}

function captureOf({ capture }: Parsed, sources: Sources, faults: Fault[]): CaptureConfig {
  const bad = (key: string, message: string): number =>
    faults.push(sources.fault(["snapshots", "capture", key], message));
  const forms = [
    ["dump", "restore"],
    ["export", "import"],
    ["directory", "exclude"],
  ] as const;
  const written = forms.flatMap((keys) => keys.filter((key) => capture[key] !== undefined));
  const [first = "directory"] = written;
  const form = forms.find((keys) => keys.some((key) => key === first)) ?? forms[2];
  for (const key of written) {
    if (!form.some((own) => own === key)) bad(key, `stands beside ${first}: state is captured in one way`);
  }
  if (first === "dump" || first === "restore") {
    if (capture.dump === undefined) bad("dump", "is missing: the command that writes what restore reads back");
    if (capture.restore === undefined) bad("restore", "is missing: the command that reads back what dump wrote");
    return { kind: "command", dump: capture.dump ?? [], restore: capture.restore ?? [] };
  }
  if (first === "export" || first === "import") {
    const none = { method: "GET", target: "/" };
    if (capture.export === undefined) bad("export", "is missing: the request that gives what import takes back");
    if (capture.import === undefined) bad("import", "is missing: the request that takes back what export gave");
    return { kind: "http", export: capture.export ?? none, import: capture.import ?? none };
  }
  return { kind: "directory", exclude: capture.exclude ?? [] };
}

function storeOf(snapshots: Parsed, data: string, sources: Sources, collect: Collect): StoreConfig {
  const { store: address, storePassword: value, storePasswordFile: file } = snapshots;
  const store: StoreAddress = address ?? { kind: "folder", folder: join(data, "snapshots") };
  const path = ["snapshots", "storePassword"];
  const password = readSecret(sources, path, { value, file }, collect);
  if (password !== null && store.kind !== "mysql") {
    const key = file === undefined ? "storePassword" : "storePasswordFile";
    collect.faults.push(sources.fault(["snapshots", key], "means nothing without a store in mysql://"));
  }
  switch (store.kind) {
    case "folder":
      return { kind: "folder", folder: sources.resolve(["snapshots", "store"], store.folder) };
    case "s3":
      return s3Of(store, sources, collect.faults);
    case "mysql":
      return { ...store, password };
    case "nats":
      return store;
    default:
      return store satisfies never;
  }
}

/** What every other program that speaks S3 takes from the environment. */
function s3Of(store: Extract<StoreAddress, { kind: "s3" }>, sources: Sources, faults: Fault[]): StoreConfig {
  const { env } = sources;
  const bad = (message: string): number => faults.push(sources.fault(["snapshots", "store"], message));
  const given = (name: string): string | null => ((env[name] ?? "") === "" ? null : (env[name] ?? null));
  const accessKeyId = given("AWS_ACCESS_KEY_ID");
  const secretAccessKey = given("AWS_SECRET_ACCESS_KEY");
  const missing = [
    ...(accessKeyId === null ? ["AWS_ACCESS_KEY_ID"] : []),
    ...(secretAccessKey === null ? ["AWS_SECRET_ACCESS_KEY"] : []),
  ];
  if (missing.length > 0) bad(`needs ${missing.join(" and ")} in the environment`);
  const fromEnvironment = store.endpoint === null ? given("AWS_ENDPOINT_URL") : null;
  const wrong = fromEnvironment === null ? null : endpointFault(fromEnvironment);
  if (wrong !== null) bad(`AWS_ENDPOINT_URL ${wrong}`);
  const endpoint = store.endpoint ?? (fromEnvironment === null ? null : trimmed(fromEnvironment));
  const region = store.region ?? given("AWS_REGION");
  if (store.region === null && region !== null && !isRegion(region)) bad("AWS_REGION is not one such as eu-central-1");
  if (region === null && endpoint === null) {
    bad("names no region: add ?region=… (with &endpoint=… where it is not Amazon's), or set AWS_REGION");
  }
  // Servers that have no regions take this one.
  const own = region ?? "us-east-1";
  return {
    kind: "s3",
    bucket: store.bucket,
    prefix: store.prefix,
    endpoint: endpoint ?? `https://s3.${own}.amazonaws.com`,
    region: own,
    accessKeyId: new Secret(accessKeyId ?? ""),
    secretAccessKey: new Secret(secretAccessKey ?? ""),
  };
}

function encryptionKeyOf({ encrypt }: Parsed, sources: Sources, collect: Collect): Secret | null {
  if (encrypt === undefined) return null;
  const path = ["snapshots", "encrypt", "key"];
  const { key: value, keyFile: file } = encrypt;
  if (value === undefined && file === undefined) {
    collect.faults.push(sources.fault(["snapshots", "encrypt"], "needs keyFile, or key"));
  }
  const bytes = readSecretBytes(sources, path, { value, file }, collect);
  if (bytes === null) return null;
  const hex = keyIn(bytes);
  if (hex !== null) return new Secret(hex);
  const at = file === undefined ? path : ["snapshots", "encrypt", "keyFile"];
  const mend = "make one with: openssl rand -hex 32";
  collect.faults.push(
    sources.fault(at, `does not hold 32 bytes (raw, as 64 hex digits, or as 44 characters of base64): ${mend}`),
  );
  return null;
}

/** 64 hex digits; null: this is no key of 32 bytes. */
function keyIn(bytes: Buffer): string | null {
  const text = bytes.toString("latin1").trim();
  if (/^[0-9a-fA-F]{64}$/.test(text)) return text.toLowerCase();
  if (/^[A-Za-z0-9+/_-]{43}=?$/.test(text)) {
    const decoded = Buffer.from(text, "base64");
    return decoded.length === 32 ? decoded.toString("hex") : null;
  }
  // 32 characters that can be typed are a pass phrase, or half a key: they hold far less than they seem to.
  return bytes.length === 32 && !/^[\t\n\r -~]*$/.test(bytes.toString("latin1")) ? bytes.toString("hex") : null;
}

export function auditOf(
  { audit }: ParsedConfig,
  snapshots: SnapshotsConfig | null,
  sources: Sources,
  faults: Fault[],
): Config["audit"] {
  const { compare } = audit;
  const needs = (what: string): number => faults.push(sources.fault(["audit", "compare"], `${compare} ${what}`));
  if (compare === "dump" && snapshots?.capture.kind !== "command") {
    needs("compares what snapshots.capture.dump writes, and there is none");
  } else if (compare === "root" && snapshots === null) {
    needs("needs snapshots: they say how the state is read");
  }
  // A dump is a tree of one file, which has a root like any other.
  return { everyMs: audit.every ?? null, compare: compare === "dump" ? "root" : compare };
}

/** Where a store is, for people. */
export function describeStore(store: StoreConfig): string {
  switch (store.kind) {
    case "folder":
      return store.folder;
    case "s3":
      return `s3://${store.bucket}/${store.prefix} at ${store.endpoint}, region ${store.region}`;
    case "mysql":
      return `mysql://${store.user}@${store.host}:${store.port}/${store.database}`;
    case "nats":
      return `nats://${store.bucket}, on the servers of the log`;
    default:
      return store satisfies never;
  }
}
