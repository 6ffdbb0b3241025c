// What Prometheus sees: counters and histograms fed by facts, gauges read from the status at each scrape.
// Labels come from the configuration and from fixed lists only: no method, path or header of a client ever becomes one.

import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from "prom-client";
import { codes } from "../errors.ts";
import type { ErrorCode } from "../errors.ts";
import type { Events, Fact, ReplicaState } from "../events.ts";
import type { Status } from "../status.ts";

export interface MetricsOptions {
  readonly events: Events;
  readonly status: () => Promise<Status>;
  /** Names of the rules, the two defaults included. */
  readonly rules: readonly string[];
  readonly replicas: readonly string[];
  /** Of this program. */
  readonly version: string;
}

export interface Metrics {
  readonly contentType: string;
  /** The exposition text. Never rejects: without a status it holds no gauges. */
  render(): Promise<string>;
}

type RequestFact = Extract<Fact, { type: "request" }>;
type KeyResult = Extract<Fact, { type: "key" }>["result"];

const seconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
const modes: ReadonlySet<string> = new Set(["replicate", "only-once", "refuse"]);
const keyResults: readonly KeyResult[] = [
  "fresh",
  "running",
  "replayed",
  "reused",
  "missing",
  "malformed",
  "unavailable",
];
const states: readonly ReplicaState[] = [
  "starting",
  "restoring",
  "replaying",
  "live",
  "lagging",
  "held",
  "quarantined",
  "draining",
  "gone",
];

export function createMetrics({ events, status, rules, replicas, version }: MetricsOptions): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  listen(events, registry, new Set(rules), new Set(replicas));
  gauge(registry, "build_info", "Which program this is", ["version", "node"]).set(
    { version, node: process.version },
    1,
  );
  gauge(registry, "config_last_reload_successful", "1: the last configuration that was read is in force").set(1);
  const ofStatus = new Registry();
  const set = createGauges(ofStatus);
  return {
    contentType: registry.contentType,
    async render() {
      const counted = await registry.metrics();
      try {
        set(await status());
      } catch {
        // A gauge that cannot be read is absent, which alerts notice; an old value would be a lie.
        return counted;
      }
      return `${counted}\n${await ofStatus.metrics()}`;
    },
  };
}

/** Facts are told on the path of every request: nothing here may wait, and little may be allocated. */
function listen(events: Events, registry: Registry, rules: ReadonlySet<string>, replicas: ReadonlySet<string>): void {
  const requests = counter(registry, "http_requests_total", "Answered requests", ["rule", "mode", "code"]);
  const durations = histogram(
    registry,
    "http_request_duration_seconds",
    "From the request's head to the answer's end",
    ["rule", "mode"],
  );
  const refused = counter(registry, "refused_total", "Answers that the gateway made itself, by code", ["code"]);
  const appends = histogram(registry, "log_append_duration_seconds", "From a record's publish until it is durable");
  const items = counter(registry, "log_appended_items_total", "Entries and control items appended here");
  const repeats = counter(registry, "log_append_repeats_total", "Publishes repeated because their outcome was unknown");
  const applies = histogram(registry, "apply_duration_seconds", "From an entry's send to its answer", ["replica"]);
  const keys = counter(registry, "keys_total", "Requests with an Idempotency-Key, by what was known of it", ["result"]);
  const unknowns = counter(registry, "unknown_outcomes_total", "Entries whose outcome was unknown at first", [
    "replica",
  ]);
  const disagreements = counter(registry, "disagreements_total", "Entries that copies answered differently", ["rule"]);
  const onceUnknown = counter(registry, "once_unknown_total", "Only-once requests whose outcome is not known", [
    "rule",
  ]);
  const incarnations = counter(registry, "replica_incarnations_total", "Lives of each backend seen", ["replica"]);

  const ruleOf = (rule: string): string => (rules.has(rule) ? rule : "none");
  const replicaOf = (replica: string): string => (replicas.has(replica) ? replica : "other");
  // A counter that begins with its first event hides that event from rate(): begin with 0.
  for (const code of Object.keys(codes)) if (codes[code as ErrorCode].status > 0) refused.inc({ code }, 0);
  for (const result of keyResults) keys.inc({ result }, 0);
  for (const rule of rules) disagreements.inc({ rule }, 0);
  for (const replica of replicas) unknowns.inc({ replica }, 0);

  const onRequest = (fact: RequestFact): void => {
    const rule = ruleOf(fact.rule);
    const mode = modes.has(fact.mode) ? fact.mode : "none";
    requests.inc({ rule, mode, code: fact.status >= 100 && fact.status <= 599 ? fact.status : "other" });
    durations.observe({ rule, mode }, fact.durationMs / 1000);
    if (fact.code !== null) refused.inc({ code: Object.hasOwn(codes, fact.code) ? fact.code : "other" });
  };

  events.listen((fact) => {
    switch (fact.type) {
      case "request":
        return onRequest(fact);
      case "appended":
        items.inc(fact.items);
        return appends.observe(fact.durationMs / 1000);
      case "append-repeated":
        return repeats.inc();
      case "applied":
        return applies.observe({ replica: replicaOf(fact.replica) }, fact.durationMs / 1000);
      case "key":
        return keys.inc({ result: fact.result });
      case "unknown-outcome":
        return unknowns.inc({ replica: replicaOf(fact.replica) });
      case "disagreement":
        return disagreements.inc({ rule: ruleOf(fact.rule) });
      case "once-unknown":
        return onceUnknown.inc({ rule: ruleOf(fact.rule) });
      case "incarnation":
        return incarnations.inc({ replica: replicaOf(fact.replica) });
      default:
        // The rest is told by gauges and log lines.
        return undefined;
    }
  });
}

/** What `status` says becomes gauges, each time anew: what is no longer there disappears. */
function createGauges(registry: Registry): (status: Status) => void {
  const make = (name: string, help: string, labels: readonly string[] = []): Gauge =>
    gauge(registry, name, help, labels);
  const guarantee = make("guarantee_info", "What an acknowledged request survives, as found out", ["level"]);
  const tail = make("log_tail_position", "Position of the log's last entry");
  const first = make("log_first_position", "Position of the log's first entry");
  const bytes = make("log_bytes", "Size of the log");
  const maxBytes = make("log_max_bytes", "Size at which the log is full");
  const untilFull = make("log_seconds_until_full", "Time left at the present rate; +Inf when it does not grow");
  const entries = make("log_entries", "Entries in the log");
  const logReachable = make("log_reachable", "1: the log can be reached");
  const logState = make("log_state", "1 for the state the log is in", ["state"]);
  const keysReachable = make("keys_reachable", "1: the key store can be reached");
  const keyRows = make("keys_window_rows", "Keys in the window");
  const keyRowsMax = make("keys_window_max_rows", "Keys that fit into the window");
  const configured = make("replicas", "Configured replicas");
  const live = make("replicas_live", "Replicas that serve");
  const applied = make("replica_applied_position", "Everything up to it is finished on the replica", ["replica"]);
  const lag = make("replica_lag_entries", "Entries between the replica and the tail", ["replica"]);
  const lagSeconds = make("replica_lag_seconds", "Age of the oldest entry the replica has not finished", ["replica"]);
  const inFlight = make("replica_in_flight", "Entries sent to the replica and not answered", ["replica"]);
  const unknown = make("replica_unknown_entries", "Entries whose outcome a person has to settle", ["replica"]);
  const state = make("replica_state", "1 for the state the replica is in", ["replica", "state"]);
  const parked = make("parked_entries", "Entries that will not be executed");
  const paused = make("paused", "1: an operator has paused the gateway");
  const free = make("disk_free_bytes", "Room left where the gateway writes", ["dir"]);
  const mismatch = make("rules_mismatch", "1: another gateway runs other rules");

  return (status) => {
    registry.resetMetrics();
    guarantee.set({ level: status.guarantee.level }, 1);
    tail.set(status.tail);
    first.set(status.log.firstPosition);
    bytes.set(status.log.bytes);
    maxBytes.set(status.log.maxBytes);
    untilFull.set(status.log.secondsUntilFull ?? Number.POSITIVE_INFINITY);
    entries.set(status.log.entries);
    logReachable.set(Number(status.log.reachable));
    for (const one of ["ok", "away", "full", "regressed"])
      logState.set({ state: one }, Number(status.log.state === one));
    keysReachable.set(Number(status.keys.reachable));
    keyRows.set(status.keys.windowRows);
    keyRowsMax.set(status.keys.windowMax);
    configured.set(status.replicas.length);
    live.set(status.live);
    for (const replica of status.replicas) {
      const label = { replica: replica.name };
      applied.set(label, replica.applied);
      lag.set(label, replica.lag);
      lagSeconds.set(label, replica.lagSeconds);
      inFlight.set(label, replica.inFlight);
      unknown.set(label, replica.unknown.length);
      for (const one of states) state.set({ replica: replica.name, state: one }, Number(replica.state === one));
    }
    parked.set(status.parked);
    paused.set(Number(status.paused !== null));
    for (const { dir, bytes: left } of status.diskFree) free.set({ dir }, left);
    mismatch.set(Number(status.rulesMismatch));
  };
}

function counter(registry: Registry, name: string, help: string, labelNames: readonly string[] = []): Counter {
  return new Counter({ name: `gateway_${name}`, help, labelNames: [...labelNames], registers: [registry] });
}

function gauge(registry: Registry, name: string, help: string, labelNames: readonly string[] = []): Gauge {
  return new Gauge({ name: `gateway_${name}`, help, labelNames: [...labelNames], registers: [registry] });
}

function histogram(registry: Registry, name: string, help: string, labelNames: readonly string[] = []): Histogram {
  const options = { name: `gateway_${name}`, help, labelNames: [...labelNames], buckets: seconds };
  return new Histogram({ ...options, registers: [registry] });
}
