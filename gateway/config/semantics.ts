// What each key alone cannot tell: loops, twins, and promises that the chosen parts cannot keep.

import { guarantees } from "../log/log.ts";
import { formatAddress, isLoopback, reaches } from "./address.ts";
import { redisFault } from "./forms.ts";
import { checkRecording, isInside } from "./recording.ts";
import { roles } from "./schema.ts";
import type { DocumentPath, Fault } from "../../rules/document.ts";
import type { Config, ReplicaConfig } from "./values.ts";
import type { Address } from "./address.ts";
import type { Report } from "./recording.ts";
import type { Sources } from "./sources.ts";

/** Faults and warnings of a configuration whose keys are each in order. */
export function checkSemantics(config: Config, sources: Sources): { faults: Fault[]; warnings: Fault[] } {
  const faults: Fault[] = [];
  const warnings: Fault[] = [];
  const bad = (path: DocumentPath, message: string): number => faults.push(sources.fault(path, message));
  const doubtful = (path: DocumentPath, message: string): number => warnings.push(sources.fault(path, message));

  checkAddresses(config, bad);
  checkReplicas(config, bad, doubtful);
  checkSharing(config, bad);
  const { minLive } = config.agreement;
  if (minLive > config.replicas.length) {
    bad(["agreement", "minLive"], `${minLive} live replicas can never be reached: there are ${config.replicas.length}`);
  }
  checkLog(config, bad);
  const { redis } = config.keys;
  const wrong = redis === null ? null : redisFault(redis.url.reveal());
  if (wrong !== null) bad(["keys", "redis", "urlFile"], wrong);
  else if (redis !== null && redis.tls !== null && !/^rediss:/i.test(redis.url.reveal()))
    bad(["keys", "redis", "tls"], "means nothing with redis://: TLS is spoken to rediss://");
  if (config.upstream !== null && !config.replicas.some((it) => it.kind === "url" && it.url.startsWith("https:")))
    doubtful(["upstream"], "means nothing: no replica is at https://");
  checkLimits(config, bad, doubtful);
  checkRecording(config, bad, doubtful);
  return { faults, warnings };
}

function checkAddresses({ admin, listen, roles }: Config, bad: Report): void {
  if (roles.includes("front") && (reaches(admin.listen, listen) || reaches(listen, admin.listen))) {
    bad(["admin", "listen"], `is the address of the front (${formatAddress(listen)}): it needs one of its own`);
  }
  if (!isLoopback(admin.listen.host) && admin.token === null) {
    const address = formatAddress(admin.listen);
    bad(["admin", "listen"], `${address} can be reached from other machines: that takes admin.tokenFile`);
  }
}

function checkReplicas(config: Config, bad: Report, doubtful: Report): void {
  const names = new Map<string, number>();
  const urls = new Map<string, string>();
  const states = new Map<string, string>();
  for (const [i, replica] of config.replicas.entries()) {
    const at = replica.kind === "url" ? ["replicas", i] : ["replicas"];
    const first = names.get(replica.name);
    if (first === undefined) names.set(replica.name, i);
    else bad([...at, "name"], `"${replica.name}" is the name of replicas[${first}] already`);
    if (replica.kind === "url") checkUrl(replica.name, replica.url, [...at, "url"], config, urls, bad);
    // Of a container it is a path inside: each has a volume of its own.
    if (replica.kind !== "container") checkState(replica, [...at, "state"], config, states, bad);
    if (replica.kind === "url" && (replica.stop === null) !== (replica.start === null)) {
      const [has, lacks] = replica.stop === null ? ["start", "stop"] : ["stop", "start"];
      bad([...at, has], `means nothing without ${lacks}`);
    }
  }
  if (config.replicas.length === 2) {
    doubtful(["replicas"], "of two copies that disagree neither has a majority; three can outvote one");
  }
}

/** What is shared among several gateways, which the embedded log is not. */
function checkSharing({ log, name, replicas, roles: mine }: Config, bad: Report): void {
  const missing = roles.filter((role) => !mine.includes(role));
  if (log.nats === null && missing.length > 0) {
    const list = missing.join(" and ");
    bad(["roles"], `nobody else could be ${list}, as the log is embedded: remove this key, or share it with log.nats`);
  }
  if (log.nats !== null && !mine.includes("applier") && replicas.some((it) => it.kind !== "url")) {
    bad(["roles"], "without applier nobody would start the replicas of this file: name their URLs, or add applier");
  }
  for (const [i, replica] of replicas.entries()) {
    if (log.nats !== null || replica.kind !== "url" || replica.owners.length === 0) continue;
    if (replica.owners.includes(name)) continue;
    bad(
      ["replicas", i, "owners"],
      `nobody could feed ${replica.name}, as the log is embedded and this gateway is ${name}: remove this key`,
    );
  }
}

function checkUrl(
  name: string,
  url: string,
  path: DocumentPath,
  config: Config,
  urls: Map<string, string>,
  bad: Report,
): void {
  const target = addressOf(url);
  const front: [Address, string][] = config.roles.includes("front") ? [[config.listen, "front"]] : [];
  const own: [Address, string][] = [...front, [config.admin.listen, "admin address"]];
  for (const [address, what] of own) {
    if (reaches(target, address)) bad(path, `${url} is this gateway's own ${what}: requests would run in a circle`);
  }
  const id = `${isLoopback(target.host) ? "loopback" : target.host}:${target.port}`;
  const twin = urls.get(id);
  if (twin === undefined) urls.set(id, name);
  else
    bad(
      path,
      `${url} is replica ${twin} already: the same copy twice would execute everything twice (GW_REPLICAS_SHARE_STATE)`,
    );
}

function checkState(
  { name, state }: ReplicaConfig,
  path: DocumentPath,
  config: Config,
  states: Map<string, string>,
  bad: Report,
): void {
  if (state === null) return;
  for (const [other, of] of states) {
    if (isInside(state, other) || isInside(other, state)) bad(path, `${state} is part of the state of replica ${of}`);
  }
  if (isInside(config.data, state)) bad(path, `${state} holds the gateway's own data folder`);
  states.set(state, name);
}

function checkLog({ log }: Config, bad: Report): void {
  const { nats, minGuarantee } = log;
  if (nats !== null && nats.monitor.length === 0 && nats.credentialsFile === null && nats.auth === null) {
    // Without either, nobody can tell whether the servers sync: that counts as process-crash, or node-loss with several copies.
    const best = nats.replicas === 1 ? "process-crash" : "node-loss";
    if (guarantees.indexOf(minGuarantee) > guarantees.indexOf(best)) {
      bad(
        ["log", "minGuarantee"],
        `${minGuarantee} can only be found out at the servers' monitoring addresses: give log.nats.monitor`,
      );
    }
  }
  if (log.maxBytes < 1024 * 1024) bad(["log", "max"], "is less than 1MiB, which leaves no room for control records");
}

function checkLimits({ limits, timeouts, keys, leaseMs, health }: Config, bad: Report, doubtful: Report): void {
  if (limits.inlineBytes > limits.bodyBytes) bad(["limits", "inline"], "is larger than limits.body");
  // A record has to fit into one message of a NATS server as it is delivered (max_payload 1 MiB).
  if (limits.inlineBytes > 512 * 1024) bad(["limits", "inline"], "is larger than 512KiB: a record has to hold it");
  if (keys.maxAnswerBytes > limits.answerBytes) doubtful(["keys", "maxAnswer"], "is larger than limits.answer");
  const positive: [DocumentPath, number][] = [
    [["timeouts", "connect"], timeouts.connectMs],
    [["timeouts", "firstByte"], timeouts.firstByteMs],
    [["timeouts", "idle"], timeouts.idleMs],
    [["limits", "queueWait"], limits.queueWaitMs],
    [["limits", "body"], limits.bodyBytes],
    [["limits", "answer"], limits.answerBytes],
    [["keys", "retention"], keys.retentionMs],
    [["health", "every"], health.everyMs],
  ];
  for (const [path, value] of positive) if (value === 0) bad(path, "has to be more than nothing");
  if (leaseMs < 1000) bad(["lease"], "is less than 1s: the owner could not renew it in time");
}

function addressOf(url: string): Address {
  const { hostname, port, protocol } = new URL(url);
  const host = hostname.replace(/^\[|\]$/g, "");
  return { host, port: port === "" ? (protocol === "https:" ? 443 : 80) : Number(port) };
}
