// Every key of gateway.yaml in one place: form, default, help. What is here is what may be written; nothing else is read.

import ipaddr from "ipaddr.js";
import { z } from "zod";
import { durationMs, sizeBytes } from "../../rules/document.ts";
import { canonicalTarget } from "../../rules/target.ts";
import { parseTemplate } from "../../rules/template.ts";
import { parseAddress } from "./address.ts";
import type { Parsed } from "../../rules/pointer.ts";
import type { Template } from "../../rules/template.ts";
import type { Address } from "./address.ts";

/** `GET /health`: a request without a body that the gateway makes itself. */
export interface RequestLine {
  readonly method: string;
  /** Canonical. */
  readonly target: string;
}

const serviceName = text(/^[a-z0-9-]{1,63}$/, 'has to be 1 to 63 of "a-z", "0-9" and "-"');
/** Names become labels, file names, NATS keys and parts of URLs. */
export const replicaName = text(
  /^[A-Za-z0-9]([A-Za-z0-9._-]{0,62})$/,
  'has to be 1 to 63 of letters, digits, ".", "_" and "-", beginning with a letter or digit',
);
const gatewayName = replicaName;
const file = z.string().min(1);
const command = z.array(z.string()).min(1);

const address = z.string().transform((value, context): Address => {
  const parsed = parseAddress(value);
  if (typeof parsed !== "string") return parsed;
  context.addIssue({ code: "custom", message: parsed });
  return z.NEVER;
});

const requestLine = z.string().transform((value, context): RequestLine => {
  const parsed = parseRequestLine(value);
  if (typeof parsed !== "string") return parsed;
  context.addIssue({ code: "custom", message: parsed });
  return z.NEVER;
});

const template = z.string().transform((value, context): Template => {
  const parsed: Parsed<Template> = parseTemplate(value);
  if (parsed.ok) return parsed.value;
  const meant = parsed.suggestion === undefined ? "" : ` (did you mean "${parsed.suggestion}"?)`;
  context.addIssue({ code: "custom", message: parsed.message + meant });
  return z.NEVER;
});

const cidr = z.string().refine((value) => isCidr(value), {
  error: (issue) => `${JSON.stringify(issue.input)} is not an address or a network such as 10.0.0.0/8`,
});

const origin = (protocols: readonly string[], example: string): z.ZodType<string, string> =>
  z.string().transform((value, context): string => {
    const wrong = originFault(value, protocols, example);
    if (wrong === null) return new URL(value).origin;
    context.addIssue({ code: "custom", message: wrong });
    return z.NEVER;
  });

const natsServer = z.string().refine((value) => /^((nats|tls):\/\/)?[^\s/@?#]+(:\d+)?$/.test(value), {
  error: (issue) =>
    String(issue.input).includes("@")
      ? "has credentials in it: they belong into credentialsFile"
      : `${JSON.stringify(issue.input)} is not a NATS server such as nats://127.0.0.1:4222`,
});

const readiness = {
  witness: z
    .array(requestLine)
    .optional()
    .meta({ description: 'Reads whose answers are equal on equal copies, such as ["GET /accounts"]' }),
  onReturn: z
    .enum(["verify", "trust", "rebuild"])
    .refine((value) => value !== "rebuild", { error: 'rebuild is not built yet: "verify" or "trust"' })
    .prefault("verify")
    .meta({ description: "A copy that came back: verify (by witness; held where there is none) | trust" }),
  version: z.string().optional().meta({ description: "Answers are compared only within one version" }),
};

const urlReplica = z.strictObject({
  name: replicaName.meta({ description: "Unique; its cursor is kept under it" }),
  url: origin(["http:"], "http://127.0.0.1:4001").meta({ description: "Scheme, host and port only" }),
  state: file.optional().meta({ description: "Its state folder, where this machine can reach it" }),
  stop: command.optional().meta({ description: "Command that ends it" }),
  start: command.optional().meta({ description: "Command that starts it" }),
  owners: notBuilt("several gateways are"),
  ...readiness,
});

const processReplicas = z.strictObject({
  count: z.int().min(1).max(64).meta({ description: "How many copies: r1 r2 r3 …" }),
  command: command.meta({ description: "{port} {state} {name} are filled in; PORT and STATE_DIR are set" }),
  cwd: file.optional().meta({ description: "Folder the command runs in" }),
  state: file.optional().meta({ description: "One folder a replica: STATE/NAME" }),
  seed: file.optional().meta({ description: "Copied into each new state folder" }),
  env: z
    .record(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/), z.string())
    .optional()
    .meta({ description: "More environment for it" }),
  ready: requestLine.optional().meta({ description: "Answers 2xx or 3xx when ready; default: the port accepts" }),
  image: notBuilt("replicas in containers are"),
  port: notBuilt("replicas in containers are"),
  ...readiness,
});

const nats = z.strictObject({
  servers: z.array(natsServer).min(1).meta({ description: "Servers of one cluster" }),
  replicas: z
    .union([z.literal(1), z.literal(3), z.literal(5)], { error: "expected 1, 3 or 5" })
    .prefault(1)
    .meta({ description: "Copies of the stream: 1, 3 or 5" }),
  monitor: z
    .array(origin(["http:", "https:"], "http://127.0.0.1:8222"))
    .prefault([])
    .meta({ description: "Monitoring addresses: sync_interval is read there" }),
  credentialsFile: file.optional().meta({ description: "A .creds file" }),
  tls: z
    .strictObject({
      caFile: file.optional().meta({ description: "Who may vouch for the servers" }),
      certFile: file.optional().meta({ description: "What this gateway shows" }),
      keyFile: file.optional().meta({ description: "Its private key" }),
    })
    .optional()
    .meta({ description: "TLS to the servers" }),
});

export const configSchema = z.strictObject({
  version: z.literal(1).prefault(1).meta({ description: "Of this file's format" }),
  service: serviceName.prefault("service").meta({ description: "Names the stream and the keys" }),
  name: gatewayName.optional().meta({ description: "This gateway; default: the host name" }),
  listen: address.prefault("127.0.0.1:8080").meta({ description: "The front: every path belongs to the service" }),
  admin: z
    .strictObject({
      listen: address.prefault("127.0.0.1:9070").meta({ description: "Health, metrics, API" }),
      tokenFile: file.optional().meta({ description: "Required off loopback" }),
      token: z.string().min(1).optional().meta({ description: "The token itself: ${VAR}, or rather tokenFile" }),
      metrics: z
        .enum(["token", "open"])
        .prefault("token")
        .meta({ description: "token | open: whether /metrics needs the token, where there is one" }),
    })
    .prefault({}),
  data: file.prefault("./data").meta({ description: "Everything embedded lives here" }),
  rules: z
    .union([file, z.array(z.unknown())], { error: "expected the path of a rules file, or a list of rules" })
    .optional()
    .meta({ description: "A rules file, or the list; default: safe methods only-once, all else replicate" }),
  rulesMismatch: z
    .enum(["warn", "refuse"])
    .prefault("warn")
    .meta({ description: "warn | refuse, when another gateway runs other rules" }),
  trustedProxies: z.array(cidr).prefault([]).meta({ description: "Networks whose X-Forwarded-… fields are kept" }),
  paths: z
    .strictObject({
      encodedSlash: z
        .enum(["refuse", "keep"])
        .prefault("refuse")
        .meta({ description: "refuse | keep: %2F is part of one segment, forwarded as it came" }),
    })
    .prefault({}),
  limits: z
    .strictObject({
      body: sizeBytes.prefault("64MiB").meta({ description: "Larger request bodies: 413" }),
      inline: sizeBytes.prefault("256KiB").meta({ description: "Larger bodies are kept beside the log" }),
      answer: sizeBytes.prefault("8MiB").meta({ description: "Larger answers to replicated requests: 502" }),
      inFlight: z.int().min(1).max(1_000_000).prefault(1024).meta({ description: "Requests at a time" }),
      queueWait: durationMs.prefault("5s").meta({ description: "Longest wait for a place, then 503" }),
    })
    .prefault({}),
  timeouts: z
    .strictObject({
      connect: durationMs.prefault("2s").meta({ description: "To a backend" }),
      firstByte: durationMs.prefault("30s").meta({ description: "From request to answer" }),
      idle: durationMs.prefault("60s").meta({ description: "Silence inside an answer or a request" }),
      shutdownDelay: durationMs.prefault("0s").meta({ description: "Unready this long before it stops accepting" }),
      shutdown: durationMs.prefault("25s").meta({ description: "Then what is left is cut" }),
    })
    .prefault({}),
  logs: z
    .strictObject({
      level: z
        .enum(["trace", "debug", "info", "warn", "error", "silent"])
        .prefault("info")
        .meta({ description: "trace | debug | info | warn | error | silent" }),
      format: z
        .enum(["auto", "json", "pretty"])
        .prefault("auto")
        .meta({ description: "auto (pretty on a terminal, JSON lines elsewhere) | json | pretty" }),
    })
    .prefault({}),
  log: z
    .strictObject({
      nats: nats.optional().meta({ description: "Absent: embedded, in data" }),
      minGuarantee: z
        .enum(["process-crash", "node-loss", "power-loss"])
        .prefault("process-crash")
        .meta({ description: "process-crash | node-loss | power-loss: below it, refuse to start" }),
      max: sizeBytes.prefault("10GiB").meta({ description: "Full: 503" }),
      truncate: z
        .enum(["snapshot", "applied", "never"])
        .refine((value) => value === "never", { error: 'is not built yet: "never" is all there is' })
        .prefault("never")
        .meta({ description: "never (snapshot and applied come with snapshots)" }),
      truncateUnpublished: notBuilt("snapshots are"),
    })
    .prefault({}),
  keys: z
    .strictObject({
      redis: z
        .strictObject({
          url: z
            .string()
            .refine((value) => redisFault(value) === null, { error: (issue) => redisFault(issue.input) ?? "" })
            .optional()
            .meta({ description: "redis://HOST:PORT/DB, rediss:// for TLS" }),
          urlFile: file.optional().meta({ description: "A file with the URL, where a password is in it" }),
        })
        .optional()
        .meta({ description: "Absent: embedded, in data" }),
      retention: durationMs.prefault("1h").meta({ description: "A key is known at least this long" }),
      window: z
        .int()
        .min(1000)
        .max(1_000_000_000)
        .prefault(20_000_000)
        .meta({ description: "Rows on disk; 503 only when full of keys younger than the retention" }),
      onRunning: z
        .enum(["conflict", "wait"])
        .prefault("conflict")
        .meta({ description: "conflict (409) | wait, while the first request with the key runs" }),
      maxAnswer: sizeBytes.prefault("1MiB").meta({ description: "Larger answers are not kept for retries" }),
      caller: template.prefault("{header.authorization}").meta({ description: "Whose key it is" }),
    })
    .prefault({}),
  replicas: z.union([z.array(urlReplica).min(1), processReplicas]).meta({ description: "The copies of the service" }),
  health: z
    .strictObject({
      request: requestLine.optional().meta({ description: "Such as GET /health; default: the port accepts" }),
      every: durationMs.prefault("2s").meta({ description: "Between two questions" }),
      fall: z.int().min(1).max(1000).prefault(3).meta({ description: "Bad answers in a row until unhealthy" }),
      rise: z.int().min(1).max(1000).prefault(2).meta({ description: "Good answers in a row until healthy" }),
    })
    .prefault({}),
  agreement: z
    .strictObject({
      onMinority: z
        .enum(["quarantine", "rebuild", "alarm"])
        .refine((value) => value !== "rebuild", { error: 'rebuild is not built yet: "quarantine" or "alarm"' })
        .prefault("quarantine")
        .meta({ description: "quarantine | alarm, for copies that answer unlike the majority" }),
      onTie: z.enum(["alarm", "halt"]).prefault("alarm").meta({ description: "alarm | halt, without a majority" }),
      minLive: z
        .union([z.literal("majority"), z.int().min(1)], { error: 'expected "majority" or a number of replicas' })
        .prefault("majority")
        .meta({ description: "Quarantine never goes below; majority of the configured ones" }),
      maxLag: z
        .int()
        .min(1)
        .prefault(10_000)
        .meta({ description: "Entries behind the tail: beyond, a copy is lagging" }),
      rebuildsPerHour: notBuilt("rebuilds are"),
    })
    .prefault({}),
  lease: durationMs.prefault("15s").meta({ description: "Of a replica's owner and of running keys" }),
  poison: z
    .strictObject({
      kills: z.int().min(1).max(100).prefault(2).meta({ description: "Copies an entry may kill before it is parked" }),
    })
    .prefault({}),
  tls: notBuilt("TLS on the front is"),
  upstream: notBuilt("TLS to backends is"),
  snapshots: notBuilt("snapshots are"),
  audit: notBuilt("audits are"),
  registry: notBuilt("the registry is"),
  egress: notBuilt("egress is"),
  roles: notBuilt("roles are"),
});

export type ParsedConfig = z.output<typeof configSchema>;

/** Dotted paths whose values are secrets: never in a fault, never in a log line. `*` is any one key. */
export const secretPaths: readonly (readonly string[])[] = [
  ["admin", "token"],
  ["keys", "redis", "url"],
  ["replicas", "env", "*"],
];

/** A key of interface.md that a later issue builds: refused rather than ignored. */
function notBuilt(what: string): z.ZodOptional<z.ZodNever> {
  return z
    .never({ error: `is not built yet: ${what} to come. Remove this key` })
    .optional()
    .meta({ description: "Not built yet" });
}

function text(pattern: RegExp, rule: string): z.ZodString {
  return z.string().regex(pattern, { error: (issue) => `${JSON.stringify(issue.input)} ${rule}` });
}

function parseRequestLine(text: string): RequestLine | string {
  const [, method, target] = /^([!#$%&'*+\-.^_`|~0-9A-Z]+) (\/\S*)$/.exec(text) ?? [];
  if (method === undefined || target === undefined) return `"${text}" is not a request such as "GET /health"`;
  const canonical = canonicalTarget(target, { encodedSlash: "keep" });
  return canonical.ok ? { method, target: canonical.target } : `"${target}" cannot be requested: ${canonical.reason}`;
}

function isCidr(text: string): boolean {
  return text.includes("/") ? ipaddr.isValidCIDR(text) : ipaddr.isValid(text) && ipaddr.parse(text).toString() !== "";
}

function originFault(text: string, protocols: readonly string[], example: string): string | null {
  if (!URL.canParse(text)) return `"${text}" is not a URL such as ${example}`;
  const url = new URL(text);
  if (url.username !== "" || url.password !== "") return "has credentials in it, which is not supported";
  if (!protocols.includes(url.protocol)) {
    return url.protocol === "https:"
      ? "https to backends is not built yet"
      : `"${text}" is not a URL such as ${example}`;
  }
  if (url.pathname !== "/" || url.search !== "" || url.hash !== "" || text.includes("?") || text.includes("#")) {
    return `"${text}" has a path: the paths are the clients' own, only scheme, host and port stand here`;
  }
  return null;
}

/** What is wrong with a URL of Redis; never shows it. */
export function redisFault(value: unknown): string | null {
  const example = "is not a Redis URL such as redis://127.0.0.1:6379";
  if (typeof value !== "string" || !URL.canParse(value)) return example;
  const { protocol, hostname } = new URL(value);
  return (protocol === "redis:" || protocol === "rediss:") && hostname !== "" ? null : example;
}
