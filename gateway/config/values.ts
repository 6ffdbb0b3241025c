// What a configuration holds once it is known to be sound. Types only.

import type { Fault } from "../../rules/document.ts";
import type { RuleSet } from "../../rules/rule.ts";
import type { Template } from "../../rules/template.ts";
import type { Guarantee } from "../log/log.ts";
import type { Address } from "./address.ts";
import type { RequestLine } from "./schema.ts";
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
  };
  readonly keys: {
    /** Null: embedded. The URL may hold a password. */
    readonly redis: { readonly url: Secret } | null;
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
    readonly onMinority: "quarantine" | "alarm";
    readonly onTie: "alarm" | "halt";
    /** Majority of the configured replicas already counted out. */
    readonly minLive: number;
    readonly maxLag: number;
  };
  readonly leaseMs: number;
  readonly poison: { readonly kills: number };
  /** What works but is probably not meant: shadowed rules, readable secrets, … */
  readonly warnings: readonly Fault[];
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
  readonly tls: { readonly caFile?: string; readonly certFile?: string; readonly keyFile?: string } | null;
}

export type ReplicaConfig = UrlReplica | ProcessReplica;

interface Returning {
  readonly name: string;
  /** Reads whose answers are compared; empty: none known. */
  readonly witness: readonly RequestLine[];
  readonly onReturn: "verify" | "trust";
  /** Empty: not told. */
  readonly version: string;
}

export interface UrlReplica extends Returning {
  readonly kind: "url";
  /** `http://host:port` */
  readonly url: string;
  readonly state: string | null;
  readonly stop: readonly string[] | null;
  readonly start: readonly string[] | null;
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
