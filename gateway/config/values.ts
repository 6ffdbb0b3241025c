// What a configuration holds once it is known to be sound. Types only.

import type { Fault } from "../../rules/document.ts";
import type { RuleSet } from "../../rules/rule.ts";
import type { Template } from "../../rules/template.ts";
import type { Guarantee } from "../log/log.ts";
import type { Address } from "./address.ts";
import type { Quiesce, RequestLine } from "./forms.ts";
import type { Secret } from "./secret.ts";

/** Every path in it is absolute, every duration in ms, every size in bytes. */
export interface Config {
  /** The file it was read from; null: flags and environment alone. */
  readonly file: string | null;
  readonly service: string;
  readonly name: string;
  readonly listen: Address;
  readonly admin: { readonly listen: Address; readonly token: Secret | null; readonly metrics: "token" | "open" };
  readonly data: string;
  /** Parsed, warned of, frozen. */
  readonly rules: RuleSet;
  /** The rules' file; null: inline, or the defaults. */
  readonly rulesFile: string | null;
  readonly rulesMismatch: "warn" | "refuse";
  /** Of the front, `caFile` for clients; null: HTTP. */
  readonly tls: TlsFiles | null;
  /** Of replicas at https://; null: as the system does. */
  readonly upstream: TlsFiles | null;
  /** Addresses and networks (CIDR). */
  readonly trustedProxies: readonly string[];
  readonly paths: { readonly encodedSlash: "refuse" | "keep" };
  readonly limits: {
    readonly bodyBytes: number;
    readonly inlineBytes: number;
    readonly answerBytes: number;
    readonly inFlight: number;
    readonly queueWaitMs: number;
  };
  readonly timeouts: {
    readonly connectMs: number;
    readonly firstByteMs: number;
    readonly idleMs: number;
    readonly shutdownDelayMs: number;
    readonly shutdownMs: number;
  };
  readonly logs: LogsConfig;
  readonly log: {
    /** Null: embedded. */
    readonly nats: NatsConfig | null;
    readonly minGuarantee: Guarantee;
    readonly maxBytes: number;
    /** What is behind may be forgotten: kept snapshots | what every replica has applied | nothing. */
    readonly truncate: "snapshot" | "applied" | "never";
    /** After so long without a chain, a verified snapshot in the store is enough. */
    readonly truncateUnpublishedMs: number;
  };
  readonly keys: {
    /** Null: embedded. The URL may hold a password. */
    readonly redis: { readonly url: Secret; readonly tls: TlsFiles | null } | null;
    readonly retentionMs: number;
    readonly window: number;
    readonly onRunning: "conflict" | "wait";
    readonly maxAnswerBytes: number;
    readonly caller: Template;
  };
  readonly replicas: readonly ReplicaConfig[];
  readonly health: {
    /** Null: the port accepts. */
    readonly request: RequestLine | null;
    readonly everyMs: number;
    readonly fall: number;
    readonly rise: number;
  };
  readonly agreement: {
    readonly onMinority: "quarantine" | "rebuild" | "alarm";
    readonly onTie: "alarm" | "halt";
    /** Majority of the configured replicas already counted out. */
    readonly minLive: number;
    readonly maxLag: number;
    /** Rebuilds that the gateway begins by itself. */
    readonly rebuildsPerHour: number;
  };
  /** Null: nothing is captured. */
  readonly snapshots: SnapshotsConfig | null;
  readonly audit: {
    /** Null: only when asked for. */
    readonly everyMs: number | null;
    /** auto: root for state folders, witness where given, else off. */
    readonly compare: "auto" | "root" | "witness" | "off";
  };
  /** Null: a hash-chained file in `data`. */
  readonly registry: EthereumConfig | null;
  readonly leaseMs: number;
  readonly poison: { readonly kills: number };
  /** Each once, in the schema's order. */
  readonly roles: readonly Role[];
  /** What works but is probably not meant: shadowed rules, readable secrets, … */
  readonly warnings: readonly Fault[];
}

export type Role = "front" | "applier" | "recorder";

/** Absolute paths; what is not given is left out. A certificate and its key come together. */
export interface TlsFiles {
  readonly caFile?: string;
  readonly certFile?: string;
  readonly keyFile?: string;
}

export interface LogsConfig {
  readonly level: "trace" | "debug" | "info" | "warn" | "error" | "silent";
  readonly format: "auto" | "json" | "pretty";
}

export interface NatsConfig {
  readonly servers: readonly string[];
  readonly replicas: 1 | 3 | 5;
  /** Origins of the servers' monitoring addresses. */
  readonly monitor: readonly string[];
  readonly credentialsFile: string | null;
  /** Null: by `credentialsFile`, by certificate, or nothing is asked. */
  readonly auth: { readonly user: string; readonly password: Secret } | { readonly token: Secret } | null;
  readonly tls: TlsFiles | null;
}

export interface SnapshotsConfig {
  /** Whichever comes first; null: not by this. Never when nothing was appended. */
  readonly every: {
    readonly entries: number | null;
    readonly bytes: number | null;
    readonly timeMs: number | null;
    /** Never sooner than this after the last one. */
    readonly atLeastMs: number;
  };
  readonly keep: number;
  readonly capture: CaptureConfig;
  readonly quiesce: Quiesce;
  readonly store: StoreConfig;
  /** 32 bytes as 64 hex digits; null: not encrypted. */
  readonly encryptionKey: Secret | null;
  /** How often the newest is restored into a scratch folder and compared; null: never by itself. */
  readonly drillMs: number | null;
}

export type CaptureConfig =
  | { readonly kind: "directory"; readonly exclude: readonly string[] }
  /** {name} {url} {state} are still to be filled in. */
  | { readonly kind: "command"; readonly dump: readonly string[]; readonly restore: readonly string[] }
  | { readonly kind: "http"; readonly export: RequestLine; readonly import: RequestLine };

export type StoreConfig =
  | { readonly kind: "folder"; readonly folder: string }
  | {
      readonly kind: "s3";
      readonly bucket: string;
      readonly prefix: string;
      readonly endpoint: string;
      readonly region: string;
      readonly accessKeyId: Secret;
      readonly secretAccessKey: Secret;
    }
  | {
      readonly kind: "mysql";
      readonly host: string;
      readonly port: number;
      readonly user: string;
      readonly database: string;
      readonly password: Secret | null;
    }
  | { readonly kind: "nats"; readonly bucket: string };

export interface EthereumConfig {
  /** One or two endpoints: the second is asked when the first fails, and compared with it. URLs may hold keys. */
  readonly rpc: readonly Secret[];
  /** 0x… in lower case. */
  readonly contract: string;
  /** The owner the service id is bound to; null: the account of `key`. */
  readonly owner: string | null;
  /** Private key (0x + 64 hex), or an encrypted keystore (JSON) with `keyPassword`; null: read only. */
  readonly key: Secret | null;
  readonly keyPassword: Secret | null;
  readonly confirmations: number;
  /** Addresses whose attestations count here, whatever the contract says; empty: those of the contract. */
  readonly publishers: readonly string[];
  /** At most one publication in so long; 0: each snapshot. */
  readonly publishEveryMs: number;
  /** 0: no limit. */
  readonly maxFeeGwei: number;
}

export type ReplicaConfig = UrlReplica | ProcessReplica | ContainerReplica;

interface Returning {
  readonly name: string;
  /** Reads whose answers are compared; empty: none known. */
  readonly witness: readonly RequestLine[];
  readonly onReturn: "verify" | "trust" | "rebuild";
  /** Empty: not told. */
  readonly version: string;
}

export interface UrlReplica extends Returning {
  readonly kind: "url";
  /** `http://host:port` or `https://host:port` */
  readonly url: string;
  readonly state: string | null;
  readonly stop: readonly string[] | null;
  readonly start: readonly string[] | null;
  /** Gateways that may feed it, in order; empty: any. */
  readonly owners: readonly string[];
}

export interface ProcessReplica extends Returning {
  readonly kind: "process";
  /** {port} {state} {name} are still to be filled in. */
  readonly command: readonly string[];
  readonly cwd: string;
  /** This replica's own folder. */
  readonly state: string | null;
  readonly seed: string | null;
  readonly env: Readonly<Record<string, string>>;
  readonly ready: RequestLine | null;
}

export interface ContainerReplica extends Returning {
  readonly kind: "container";
  readonly image: string;
  /** The port it listens on inside. */
  readonly port: number;
  /** Path of its state inside: a volume of its own; null: it keeps none. */
  readonly state: string | null;
  /** Null: the image's own. */
  readonly command: readonly string[] | null;
  readonly env: Readonly<Record<string, string>>;
  readonly ready: RequestLine | null;
  /** Of the engine: DOCKER_HOST, else unix:///var/run/docker.sock. */
  readonly engine: string;
}
