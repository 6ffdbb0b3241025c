// Every key of gateway.yaml in one place: form, default, help. What is here is what may be written; nothing else is read.

import { z } from "zod";
import { durationMs, sizeBytes } from "../../rules/document.ts";
import {
  address,
  cidr,
  command,
  ethereumAddress,
  file,
  gatewayName,
  namePrefix,
  imageName,
  natsServer,
  notBuilt,
  origin,
  orOff,
  pattern,
  quiesce,
  redisUrl,
  replicaName,
  requestLine,
  rpcUrl,
  secretText,
  serviceName,
  storeAddress,
  template,
} from "./forms.ts";

/** What a gateway can be: it takes requests, it feeds copies, it remembers their states. */
export const roles = ["front", "applier", "recorder"] as const;

const readiness = {
  witness: z
    .array(requestLine)
    .optional()
    .meta({ description: 'Reads whose answers are equal on equal copies, such as ["GET /accounts"]' }),
  onReturn: z
    .enum(["verify", "trust", "rebuild"])
    .prefault("verify")
    .meta({ description: "A copy that came back: verify (by witness, else held) | trust | rebuild" }),
  version: z.string().optional().meta({ description: "Answers are compared only within one version" }),
};

export const urlReplica = z.strictObject({
  name: replicaName.meta({ description: "Unique; its cursor is kept under it" }),
  url: origin(["http:", "https:"], "http://127.0.0.1:4001").meta({ description: "Scheme, host and port only" }),
  state: file.optional().meta({ description: "Its state folder, where this machine can reach it" }),
  stop: command.optional().meta({ description: "Command that ends it" }),
  start: command.optional().meta({ description: "Command that starts it" }),
  owners: z.array(gatewayName).prefault([]).meta({ description: "Gateways that may feed it, by name; none: any" }),
  ...readiness,
});

/** Processes with `command`, containers with `image`: which of the others go with which is checked where they are read. */
const managedReplicas = z.strictObject({
  count: z.int().min(1).max(64).meta({ description: "How many copies: r1 r2 r3 …" }),
  name: namePrefix.prefault("r").meta({ description: "What their names begin with; of several gateways one each" }),
  command: command.optional().meta({ description: "{port} {state} {name} are filled in; PORT and STATE_DIR are set" }),
  cwd: file.optional().meta({ description: "Folder the command runs in" }),
  state: file.optional().meta({ description: "One folder a replica: STATE/NAME; of images: a path inside" }),
  seed: file.optional().meta({ description: "Copied into each new state folder" }),
  env: z
    .record(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/), z.string())
    .optional()
    .meta({ description: "More environment for it" }),
  ready: requestLine.optional().meta({ description: "Answers 2xx or 3xx when ready; default: the port accepts" }),
  image: imageName.optional().meta({ description: "Containers instead, from this image (DOCKER_HOST)" }),
  port: z.int().min(1).max(65_535).optional().meta({ description: "Of images: the port it listens on inside" }),
  ...readiness,
});

/** What a side shows, and whom it believes. */
const tlsFiles = (whom: string): z.ZodObject<Record<"caFile" | "certFile" | "keyFile", z.ZodOptional<typeof file>>> =>
  z.strictObject({
    caFile: file.optional().meta({ description: `Who may vouch for ${whom}; default: whom the system believes` }),
    certFile: file.optional().meta({ description: "What this gateway shows, with its chain" }),
    keyFile: file.optional().meta({ description: "Its private key" }),
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
  user: z.string().min(1).optional().meta({ description: "Or a user, with passwordFile" }),
  password: secretText.optional().meta({ description: "Of user: ${VAR}, or rather passwordFile" }),
  passwordFile: file.optional().meta({ description: "A file with the password of user" }),
  token: secretText.optional().meta({ description: "Or a token: ${VAR}, or rather tokenFile" }),
  tokenFile: file.optional().meta({ description: "A file with the token" }),
  tls: tlsFiles("the servers").optional().meta({ description: "TLS to the servers" }),
});

const snapshots = z.strictObject({
  every: z
    .strictObject({
      entries: orOff(z.int().min(1), "a number of entries")
        .prefault(50_000)
        .meta({ description: "Entries since the last one, or off" }),
      bytes: orOff(sizeBytes, "a size")
        .prefault("1GiB")
        .meta({ description: "Bytes of the log since the last one, or off" }),
      time: orOff(durationMs, "a duration")
        .prefault("1h")
        .meta({ description: "Since the last one, or off; none when nothing was appended" }),
      atLeast: durationMs.prefault("10m").meta({ description: "Between two of them, whatever else is due" }),
    })
    .prefault({}),
  keep: z.int().min(1).max(10_000).prefault(10).meta({
    description: "Older ones go; unpublished manifests stay until published",
  }),
  capture: z
    .strictObject({
      directory: z
        .literal(true)
        .optional()
        .meta({ description: "The state folder or volume of each copy; the default" }),
      exclude: z.array(pattern).optional().meta({ description: 'Of directory: left out, such as ["cache/**"]' }),
      dump: command.optional().meta({ description: "Or a command that writes the state; {name} {url} {state}" }),
      restore: command.optional().meta({ description: "And the one that reads it back" }),
      export: requestLine.optional().meta({ description: 'Or a request that gives the state, such as "GET /dump"' }),
      import: requestLine.optional().meta({ description: 'And the one that takes it back, such as "PUT /dump"' }),
    })
    .prefault({}),
  quiesce: quiesce.optional().meta({ description: "stop (default of directory) | none (of the others) | POST /path" }),
  store: storeAddress
    .optional()
    .meta({ description: "Folder (default: snapshots in data), s3://, mysql:// or nats://" }),
  storePassword: secretText.optional().meta({ description: "Of mysql://: ${VAR}, or rather storePasswordFile" }),
  storePasswordFile: file.optional().meta({ description: "A file with the password of mysql://" }),
  encrypt: z
    .strictObject({
      keyFile: file.optional().meta({ description: "32 bytes: raw, as 64 hex digits, or as base64" }),
      key: secretText.optional().meta({ description: "The key itself: ${VAR}, or rather keyFile" }),
    })
    .optional()
    .meta({ description: "AES-256-GCM. Keep the key elsewhere as well" }),
  drill: durationMs.optional().meta({ description: "So often the newest is restored and compared" }),
});

const ethereum = z.strictObject({
  rpc: z
    .array(rpcUrl, { error: () => "expected a list of one or two URLs" })
    .min(1)
    .max(2)
    .meta({ description: "One endpoint, or two that have to agree" }),
  contract: ethereumAddress.meta({ description: "Of SnapshotRegistry: gateway registry deploy" }),
  keyFile: file.optional().meta({ description: "Private key or keystore; without: nothing is published" }),
  key: secretText.optional().meta({ description: "The key itself: ${VAR}, or rather keyFile" }),
  keyPassword: secretText.optional().meta({ description: "Of a keystore: ${VAR}, or rather keyPasswordFile" }),
  keyPasswordFile: file.optional().meta({ description: "A file with the password of a keystore" }),
  owner: ethereumAddress.optional().meta({ description: "Of the service there; default: the key's account" }),
  confirmations: z.int().min(1).max(10_000).prefault(2).meta({ description: "Blocks until a publication stands" }),
  publishers: z
    .array(ethereumAddress)
    .prefault([])
    .meta({ description: "Whose word counts here; none: whom the contract names" }),
  publishEvery: durationMs.prefault("0s").meta({ description: "At most one publication in so long" }),
  maxFeeGwei: z.number().min(0).prefault(0).meta({ description: "Waits while gas costs more; 0: no limit" }),
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
        .optional()
        .meta({ description: "snapshot (default with snapshots) | applied (default without) | never" }),
      truncateUnpublished: durationMs
        .prefault("24h")
        .meta({ description: "So long without a chain, and a verified snapshot is enough" }),
    })
    .prefault({}),
  keys: z
    .strictObject({
      redis: z
        .strictObject({
          url: redisUrl.optional().meta({ description: "redis://HOST:PORT/DB, rediss:// for TLS" }),
          urlFile: file.optional().meta({ description: "A file with the URL, where a password is in it" }),
          tls: tlsFiles("the server").optional().meta({ description: "Of rediss://" }),
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
  replicas: z.union([z.array(urlReplica).min(1), managedReplicas]).meta({ description: "The copies of the service" }),
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
        .prefault("quarantine")
        .meta({ description: "quarantine | rebuild | alarm: copies that answer unlike the majority" }),
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
      rebuildsPerHour: z
        .int()
        .min(0)
        .max(1000)
        .prefault(1)
        .meta({ description: "That the gateway begins by itself; beyond: quarantined" }),
    })
    .prefault({}),
  snapshots: snapshots.optional().meta({ description: "Absent: nothing is captured, no copy can be rebuilt" }),
  audit: z
    .strictObject({
      every: durationMs.optional().meta({ description: "All copies compare their states; default: when asked" }),
      compare: z
        .enum(["auto", "root", "dump", "witness", "off"])
        .prefault("auto")
        .meta({ description: "auto | root | dump | witness | off; auto: root, else witness, else off" }),
    })
    .prefault({}),
  registry: z
    .strictObject({ ethereum: ethereum.optional().meta({ description: "On any EVM chain" }) })
    .optional()
    .meta({ description: "Who vouches for snapshots; absent: a hash-chained file in data" }),
  lease: durationMs.prefault("15s").meta({ description: "Of a replica's owner and of running keys" }),
  poison: z
    .strictObject({
      kills: z.int().min(1).max(100).prefault(2).meta({ description: "Copies an entry may kill before it is parked" }),
    })
    .prefault({}),
  tls: z
    .strictObject({
      certFile: file.meta({ description: "What the front shows, with its chain; read again when it changes" }),
      keyFile: file.meta({ description: "Its private key" }),
      clientCaFile: file.optional().meta({ description: "Who may vouch for clients: each has to show a certificate" }),
    })
    .optional()
    .meta({ description: "HTTPS on the front; absent: HTTP" }),
  upstream: tlsFiles("backends").optional().meta({ description: "Of replicas at https://" }),
  egress: notBuilt("egress is"),
  roles: z
    .array(z.enum(roles))
    .min(1)
    .prefault([...roles])
    .meta({ description: "front | applier | recorder: what this gateway does; default all" }),
});

export type ParsedConfig = z.output<typeof configSchema>;

/** Dotted paths whose values are secrets: never in a fault, never in a log line. `*` is any one key. */
export const secretPaths: readonly (readonly string[])[] = [
  ["admin", "token"],
  ["keys", "redis", "url"],
  ["log", "nats", "password"],
  ["log", "nats", "token"],
  ["replicas", "env", "*"],
  ["snapshots", "storePassword"],
  ["snapshots", "encrypt", "key"],
  ["registry", "ethereum", "key"],
  ["registry", "ethereum", "keyPassword"],
  ["registry", "ethereum", "rpc"],
  ["registry", "ethereum", "rpc", "*"],
];
