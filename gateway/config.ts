// The configuration: defaults, file, environment and flags become one frozen Config, or every fault of it and of the rules.

import { hostname } from "node:os";
import { FaultsError, formatFault } from "../rules/document.ts";
import { ethereumOf } from "./config/ethereum.ts";
import { replicaName } from "./config/forms.ts";
import { guarded, masked } from "./config/mask.ts";
import { replicasOf } from "./config/replicas.ts";
import { readRules } from "./config/rules.ts";
import { roles } from "./config/schema.ts";
import { readSecret } from "./config/secretfile.ts";
import { checkSemantics } from "./config/semantics.ts";
import { auditOf, snapshotsOf } from "./config/snapshots.ts";
import { openSources, secretsIn, shown } from "./config/sources.ts";
import { frontTlsOf, tlsFilesOf } from "./config/tls.ts";
import type { Fault } from "../rules/document.ts";
import type { RulesRead } from "./config/rules.ts";
import type { ParsedConfig } from "./config/schema.ts";
import type { Secret } from "./config/secret.ts";
import type { Flags, Sources } from "./config/sources.ts";
import type { Config, NatsConfig } from "./config/values.ts";

export { formatAddress, isLoopback } from "./config/address.ts";
export { Secret } from "./config/secret.ts";
export type { Address } from "./config/address.ts";
export type { RequestLine } from "./config/forms.ts";
export type { Flags } from "./config/sources.ts";
export type {
  CaptureConfig,
  Config,
  ContainerReplica,
  EthereumConfig,
  LogsConfig,
  NatsConfig,
  ProcessReplica,
  ReplicaConfig,
  Role,
  SnapshotsConfig,
  StoreConfig,
  TlsFiles,
  UrlReplica,
} from "./config/values.ts";

export interface ConfigSources {
  /** Null: no file. */
  readonly file: string | null;
  /** The file's text, when it is not to be read from disk. */
  readonly text?: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly flags?: Flags;
  /** Relative paths of flags and environment start here; default: the working folder. */
  readonly cwd?: string;
}

/** The whole configuration, or a FaultsError with every fault of it and of the rules. Never prints, never exits. */
export function loadConfig(from: ConfigSources): Config {
  const options = { ...from, flags: from.flags ?? {}, cwd: from.cwd ?? process.cwd() };
  const secrets = secretsIn(options);
  const loaded = guarded(secrets, () => load(openSources(options)));
  if (loaded.config === null || loaded.faults.length > 0) throw new FaultsError(masked(loaded.faults, secrets));
  return deepFreeze({ ...loaded.config, warnings: masked(loaded.warnings, secrets) });
}

interface Collect {
  readonly faults: Fault[];
  readonly warnings: Fault[];
}

interface Loaded {
  readonly config: Config | null;
  readonly faults: readonly Fault[];
  readonly warnings: readonly Fault[];
}

function load(sources: Sources): Loaded {
  const checked = sources.check();
  const rules = readRules(sources);
  const faults = [...checked.faults, ...rules.faults];
  const warnings = [...checked.warnings, ...rules.warnings];
  if (checked.config === null) return { config: null, faults: inReadingOrder(faults, sources), warnings };
  const files = { faults: [] as Fault[], warnings: [] as Fault[] };
  const config = configOf(checked.config, sources, rules, files);
  const semantic = checkSemantics(config, sources);
  // Of a value that was wrong already nothing more is said: what stands in for it is not what was written.
  const wrong = new Set(checked.faults.map((fault) => fault.path));
  const further = [...files.faults, ...semantic.faults].filter((fault) => !wrong.has(fault.path));
  return {
    config,
    faults: inReadingOrder([...faults, ...further], sources),
    warnings: inReadingOrder([...warnings, ...files.warnings, ...semantic.warnings], sources),
  };
}

/** The configuration from top to bottom, then variables and flags, then the rules. */
function inReadingOrder(faults: readonly Fault[], sources: Sources): Fault[] {
  const main = sources.file === null ? "" : shown(sources.file);
  const rank = ({ file, line }: Fault): number => (line === 0 ? 1 : file === main ? 0 : 2);
  return faults.toSorted((a, b) => rank(a) - rank(b) || a.line - b.line || a.column - b.column);
}

/** As `formatFault`, for faults that stand in no file: `--listen: …`, `GATEWAY_LOG__MAX: …`. */
export function formatConfigFault(fault: Fault): string {
  return formatFault(fault).replace(":0:0: ", ": ");
}

function configOf(parsed: ParsedConfig, sources: Sources, rules: RulesRead, collect: Collect): Config {
  const { limits, timeouts, keys, health, agreement } = parsed;
  const replicas = replicasOf(parsed, sources, collect.faults);
  const snapshots = snapshotsOf(parsed, sources, collect);
  const secret = (path: readonly string[], value: string | undefined, file: string | undefined): Secret | null =>
    readSecret(sources, path, { value, file }, collect);
  const redisUrl =
    keys.redis === undefined ? null : secret(["keys", "redis", "url"], keys.redis.url, keys.redis.urlFile);
  return {
    file: sources.file,
    service: parsed.service,
    name: parsed.name ?? hostName(),
    listen: parsed.listen,
    admin: {
      listen: parsed.admin.listen,
      token: secret(["admin", "token"], parsed.admin.token, parsed.admin.tokenFile),
      metrics: parsed.admin.metrics,
    },
    data: sources.resolve(["data"], parsed.data),
    rules: rules.rules,
    rulesFile: rules.file,
    rulesMismatch: parsed.rulesMismatch,
    tls: frontTlsOf(parsed.tls, sources, collect),
    upstream: tlsFilesOf(["upstream"], parsed.upstream, sources, collect),
    trustedProxies: parsed.trustedProxies,
    paths: parsed.paths,
    limits: {
      bodyBytes: limits.body,
      inlineBytes: limits.inline,
      answerBytes: limits.answer,
      inFlight: limits.inFlight,
      queueWaitMs: limits.queueWait,
    },
    timeouts: {
      connectMs: timeouts.connect,
      firstByteMs: timeouts.firstByte,
      idleMs: timeouts.idle,
      shutdownDelayMs: timeouts.shutdownDelay,
      shutdownMs: timeouts.shutdown,
    },
    logs: parsed.logs,
    log: {
      nats: parsed.log.nats === undefined ? null : natsOf(parsed.log.nats, sources, collect),
      minGuarantee: parsed.log.minGuarantee,
      maxBytes: parsed.log.max,
      truncate: parsed.log.truncate ?? (snapshots === null ? "applied" : "snapshot"),
      truncateUnpublishedMs: parsed.log.truncateUnpublished,
    },
    keys: {
      redis:
        redisUrl === null
          ? null
          : { url: redisUrl, tls: tlsFilesOf(["keys", "redis", "tls"], keys.redis?.tls, sources, collect) },
      retentionMs: keys.retention,
      window: keys.window,
      onRunning: keys.onRunning,
      maxAnswerBytes: keys.maxAnswer,
      caller: keys.caller,
    },
    replicas,
    health: { request: health.request ?? null, everyMs: health.every, fall: health.fall, rise: health.rise },
    agreement: {
      onMinority: agreement.onMinority,
      onTie: agreement.onTie,
      minLive: agreement.minLive === "majority" ? Math.floor(replicas.length / 2) + 1 : agreement.minLive,
      maxLag: agreement.maxLag,
      rebuildsPerHour: agreement.rebuildsPerHour,
    },
    snapshots,
    audit: auditOf(parsed, snapshots, sources, collect.faults),
    registry: ethereumOf(parsed, sources, collect),
    leaseMs: parsed.lease,
    poison: parsed.poison,
    roles: roles.filter((role) => parsed.roles.includes(role)),
    warnings: [],
  };
}

function natsOf(nats: NonNullable<ParsedConfig["log"]["nats"]>, sources: Sources, collect: Collect): NatsConfig {
  const at = ["log", "nats"];
  return {
    servers: nats.servers,
    replicas: nats.replicas,
    monitor: nats.monitor,
    credentialsFile:
      nats.credentialsFile === undefined ? null : sources.resolve([...at, "credentialsFile"], nats.credentialsFile),
    auth: natsAuthOf(nats, sources, collect),
    tls: tlsFilesOf([...at, "tls"], nats.tls, sources, collect),
  };
}

/** One way to say who asks: credentials, a user, or a token. */
function natsAuthOf(
  nats: NonNullable<ParsedConfig["log"]["nats"]>,
  sources: Sources,
  collect: Collect,
): NatsConfig["auth"] {
  const at = ["log", "nats"];
  const secret = (key: "password" | "token"): Secret | null =>
    readSecret(sources, [...at, key], { value: nats[key], file: nats[`${key}File`] }, collect);
  const [password, token] = [secret("password"), secret("token")];
  const bad = (key: string, message: string): number => collect.faults.push(sources.fault([...at, key], message));
  const given = (key: "password" | "token"): string => (nats[key] === undefined ? `${key}File` : key);
  const hasPassword = nats.password !== undefined || nats.passwordFile !== undefined;
  if (nats.user !== undefined && !hasPassword) bad("user", "means nothing without passwordFile (or password)");
  if (nats.user === undefined && hasPassword) bad(given("password"), "means nothing without user");
  if (nats.user !== undefined && token !== null) bad(given("token"), "stands beside user: one of the two");
  if (nats.credentialsFile !== undefined && (nats.user !== undefined || token !== null))
    bad("credentialsFile", `stands beside ${token === null ? "user" : given("token")}: one of the two`);
  if (token !== null) return { token };
  return nats.user === undefined || password === null ? null : { user: nats.user, password };
}

/** Host names may hold what a name of ours may not. */
function hostName(): string {
  const name = hostname()
    .replaceAll(/[^A-Za-z0-9._-]/g, "-")
    .replace(/^[^A-Za-z0-9]+/, "")
    .slice(0, 63);
  return replicaName.safeParse(name).success ? name : "gateway";
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const item of Object.values(value)) deepFreeze(item);
  }
  return value;
}
