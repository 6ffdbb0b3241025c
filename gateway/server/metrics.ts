// What Prometheus sees: counters and histograms fed by facts, gauges read from the status at each scrape.
// Labels come from the configuration and from fixed lists only: no method, path or header of a client ever becomes one.

import { collectDefaultMetrics, Counter, Gauge, Registry } from "prom-client";
import type { Histogram } from "prom-client";
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
  /** Default: there are none. */
  readonly certificates?: () => readonly CertificateFacts[];
  /** Of this program. */
  readonly version: string;
}

export interface CertificateFacts {
  /** Where the configuration names it, such as `upstream`. */
  readonly use: string;
  /** Null: none is shown there. */
  readonly notAfterMs: number | null;
  /** Why what its files hold now is not used; null: it is. */
  readonly trouble: string | null;
}

export interface Metrics {
  readonly contentType: string;
  /** The exposition text. Never rejects: without a status it holds no gauges. */
  render(): Promise<string>;
}

type RequestFact = Extract<Fact, { type: "request" }>;
type KeyResult = Extract<Fact, { type: "key" }>["result"];
type SnapshotResult = Exclude<Extract<Fact, { type: "snapshot" }>["state"], "begun" | "removed">;
type RecoveryResult = Exclude<Extract<Fact, { type: "recovery" }>["state"], "begun" | "restored">;
type AuditResult = Extract<Fact, { type: "audit" }>["result"];

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
/** Verified and unsound are the drills' and `snapshot verify`'s. */
const snapshotResults: ReadonlySet<string> = new Set<SnapshotResult>(["taken", "failed", "verified", "unsound"]);
const recoveryResults: ReadonlySet<string> = new Set<RecoveryResult>(["done", "failed"]);
const auditResults: ReadonlySet<string> = new Set<AuditResult>(["equal", "unequal", "impossible"]);
/** Replicas may be added while it runs; labels are for ever. */
const replicaLabelsMax = 256;
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

export function createMetrics(options: MetricsOptions): Metrics {
  const { events, status, rules, replicas, version, certificates = () => [] } = options;
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  listen(events, registry, new Set(rules), replicas);
  gauge(registry, "build_info", "Which program this is", ["version", "node"]).set(
    { version, node: process.version },
    1,
  );
  gaugeOf(registry, "certificate_not_after_timestamp_seconds", "When what is shown ends", certificates, (it) =>
    it.notAfterMs === null ? null : it.notAfterMs / 1000,
  );
  gaugeOf(registry, "certificate_last_reload_successful", "1: what the files hold is in use", certificates, (it) =>
    Number(it.trouble === null),
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

/**
 * Facts are told on the path of every request: nothing here may wait, and little may be allocated. What each request tells is
 * counted by ourselves and handed over at a scrape; what is rare is prom-client's.
 */
function listen(events: Events, registry: Registry, rules: ReadonlySet<string>, configured: readonly string[]): void {
  const replicas = new Set(configured);
  const routes = new Routes(rules);
  counter(registry, "http_requests_total", "Answered requests", ["rule", "mode", "code"], (requests) => {
    for (const { labels, codes } of routes.all()) {
      for (const [code, count] of codes) requests.inc({ ...labels, code }, count);
    }
  });
  histogram(registry, "http_request_duration_seconds", "From the request's head to the answer's end", () =>
    Array.from(routes.all(), ({ durations }) => durations),
  );
  const refused = counter(registry, "refused_total", "Answers that the gateway made itself, by code", ["code"]);
  const appends = new Durations({});
  histogram(registry, "log_append_duration_seconds", "From a record's publish until it is durable", () => [appends]);
  const items = counter(registry, "log_appended_items_total", "Entries and control items appended here");
  const repeats = counter(registry, "log_append_repeats_total", "Publishes repeated because their outcome was unknown");
  const applies = new Map<string, Durations>();
  histogram(registry, "apply_duration_seconds", "From an entry's send to its answer", () => applies.values());
  const keys = new Map<KeyResult, number>(keyResults.map((result) => [result, 0]));
  counter(registry, "keys_total", "Requests with an Idempotency-Key, by what was known of it", ["result"], (asked) => {
    for (const [result, count] of keys) asked.inc({ result }, count);
  });
  const unknowns = counter(registry, "unknown_outcomes_total", "Entries whose outcome was unknown at first", [
    "replica",
  ]);
  const disagreements = counter(registry, "disagreements_total", "Entries that copies answered differently", ["rule"]);
  const onceUnfinished = counter(registry, "once_unfinished_total", "Entries whose primary did not finish them", [
    "rule",
  ]);
  const snapshots = counter(registry, "snapshots_total", "Snapshots by what became of them", ["result"]);
  const recoveries = counter(registry, "recoveries_total", "Replicas brought back from a snapshot", ["result"]);
  const audits = counter(registry, "audits_total", "Comparisons of the states of all replicas", ["result"]);
  const handshakes = counter(registry, "tls_handshake_failures_total", "Clients with which no TLS came about");
  const onceUnknown = counter(registry, "once_unknown_total", "Only-once requests whose outcome is not known", [
    "rule",
  ]);
  const incarnations = counter(registry, "replica_incarnations_total", "Lives of each backend seen", ["replica"]);

  const ruleOf = (rule: string): string => (rules.has(rule) ? rule : noLabel);
  const replicaOf = (replica: string): string => (replicas.has(replica) ? replica : "other");
  // A counter that begins with its first event hides that event from rate(): begin with 0.
  for (const code of Object.keys(codes)) if (codes[code as ErrorCode].status > 0) refused.inc({ code }, 0);
  for (const rule of rules) disagreements.inc({ rule }, 0);
  for (const replica of replicas) unknowns.inc({ replica }, 0);
  for (const result of snapshotResults) snapshots.inc({ result }, 0);
  for (const result of recoveryResults) recoveries.inc({ result }, 0);
  for (const result of auditResults) audits.inc({ result }, 0);

  const onRequest = (fact: RequestFact): void => {
    const { codes: counts, durations } = routes.of(fact.rule, fact.mode);
    const code = fact.status >= 100 && fact.status <= 599 ? fact.status : "other";
    counts.set(code, (counts.get(code) ?? 0) + 1);
    durations.observe(fact.durationMs);
    if (fact.code !== null) refused.inc({ code: Object.hasOwn(codes, fact.code) ? fact.code : "other" });
  };
  const appliesOf = (replica: string): Durations => {
    const known = applies.get(replica) ?? new Durations({ replica });
    applies.set(replica, known);
    return known;
  };

  events.listen((fact) => {
    switch (fact.type) {
      case "request":
        return onRequest(fact);
      case "appended":
        items.inc(fact.items);
        return appends.observe(fact.durationMs);
      case "append-repeated":
        return repeats.inc();
      case "applied":
        return (applies.get(fact.replica) ?? appliesOf(replicaOf(fact.replica))).observe(fact.durationMs);
      case "key":
        return void keys.set(fact.result, (keys.get(fact.result) ?? 0) + 1);
      case "unknown-outcome":
        return unknowns.inc({ replica: replicaOf(fact.replica) });
      case "disagreement":
        return disagreements.inc({ rule: ruleOf(fact.rule) });
      case "once-unknown":
        return onceUnknown.inc({ rule: ruleOf(fact.rule) });
      case "once-unfinished":
        return onceUnfinished.inc({ rule: ruleOf(fact.rule) });
      case "replica":
        // One that was added is told of by its gateway: its name is an operator's, like those of the configuration.
        if (replicas.size < replicaLabelsMax) replicas.add(fact.replica);
        return undefined;
      case "snapshot":
        return snapshotResults.has(fact.state) ? snapshots.inc({ result: fact.state }) : undefined;
      case "recovery":
        return recoveryResults.has(fact.state) ? recoveries.inc({ result: fact.state }) : undefined;
      case "handshake-failed":
        return handshakes.inc();
      case "audit":
        return audits.inc({ result: fact.result });
      case "incarnation":
        return incarnations.inc({ replica: replicaOf(fact.replica) });
      default:
        // The rest is told by gauges and log lines.
        return undefined;
    }
  });
}

/** Of a rule that is not configured, and of a mode that is not on the list. */
const noLabel = "none";

/** What is counted of the requests of one rule in one mode. */
interface Route {
  readonly labels: Labels;
  readonly codes: Map<number | "other", number>;
  readonly durations: Durations;
}

type Labels = Readonly<Record<string, string>>;

/** By rule and mode. As many as there are rules and modes, whatever a fact says. */
class Routes {
  readonly #rules: ReadonlySet<string>;
  readonly #routes = new Map<string, Map<string, Route>>();

  constructor(rules: ReadonlySet<string>) {
    this.#rules = rules;
  }

  of(rule: string, mode: string): Route {
    return this.#routes.get(rule)?.get(mode) ?? this.#make(rule, mode);
  }

  #make(askedRule: string, askedMode: string): Route {
    const rule = this.#rules.has(askedRule) ? askedRule : noLabel;
    const mode = modes.has(askedMode) ? askedMode : noLabel;
    const ofRule = this.#routes.get(rule) ?? new Map<string, Route>();
    this.#routes.set(rule, ofRule);
    const labels = { rule, mode };
    const route = ofRule.get(mode) ?? { labels, codes: new Map(), durations: new Durations(labels) };
    ofRule.set(mode, route);
    return route;
  }

  *all(): Generator<Route> {
    for (const ofRule of this.#routes.values()) yield* ofRule.values();
  }
}

/** Place of the sum: after the buckets, of which the last is for what is above all of `seconds`. */
const sumAt = seconds.length + 1;

/**
 * One series of a histogram. prom-client 15 checks and hashes the labels at every `observe`, that of a child made by `labels()`
 * too: 200 ns where this takes 20.
 */
class Durations {
  readonly #labels: Labels;
  /** How many were in each bucket and in none before it; then the sum. */
  readonly #counts = new Float64Array(sumAt + 1);

  constructor(labels: Labels) {
    this.#labels = labels;
  }

  observe(durationMs: number): void {
    const duration = durationMs / 1000;
    // One that is no number would make the sum none for ever.
    if (!Number.isFinite(duration)) throw new TypeError(`A duration of ${durationMs} ms was told.`);
    const counts = this.#counts;
    let bucket = 0;
    while (bucket < seconds.length && duration > (seconds[bucket] as number)) bucket++;
    counts[bucket] = (counts[bucket] ?? 0) + 1;
    counts[sumAt] = (counts[sumAt] ?? 0) + duration;
  }

  /** As prom-client wants them: buckets count all that are below, too. */
  samples(name: string): { metricName: string; labels: Record<string, string | number>; value: number }[] {
    let count = 0;
    const buckets = [...seconds, "+Inf"].map((le, index) => {
      count += this.#counts[index] ?? 0;
      return { metricName: `${name}_bucket`, labels: { le, ...this.#labels }, value: count };
    });
    const sum = this.#counts[sumAt] ?? 0;
    return [
      ...buckets,
      { metricName: `${name}_sum`, labels: { ...this.#labels }, value: sum },
      { metricName: `${name}_count`, labels: { ...this.#labels }, value: count },
    ];
  }
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
  const setRecorder = createRecorderGauges(registry, make);

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
    setRecorder(status);
  };
}

/** Of snapshots and the registry. What is not configured, or not known, has no value: 0 would be an alarm, or a calm, that is not there. */
function createRecorderGauges(
  registry: Registry,
  make: (name: string, help: string) => Gauge,
): (status: Status) => void {
  const position = make("snapshot_position", "Position of the newest snapshot");
  const lastSuccess = make("snapshot_last_success_timestamp_seconds", "When the last snapshot was taken, 0: never");
  const kept = make("snapshots_kept", "Snapshots in the store");
  const published = make("registry_published_position", "Position of the newest final publication");
  const pending = make("registry_pending_seconds", "Age of the oldest snapshot that waits for its publication");
  const balance = make("registry_balance_wei", "What the publishing account can still spend");
  const reachable = make("registry_reachable", "1: the registry can be reached");
  const errors = counter(registry, "registry_errors_total", "Failures of the registry since the start");

  return ({ snapshots, registry: told }) => {
    put(position, snapshots?.last?.position ?? null);
    put(lastSuccess, snapshots === null ? null : (snapshots.lastSuccessMs ?? 0) / 1000);
    put(kept, snapshots?.kept ?? null);
    put(published, told?.publishedPosition ?? null);
    put(pending, told?.pendingSeconds ?? null);
    put(balance, told === null || told.balanceWei === null ? null : Number(told.balanceWei));
    put(reachable, told === null ? null : Number(told.reachable));
    errors.inc(told?.errors ?? 0);
  };
}

const put = (gauge: Gauge, value: number | null): void => (value === null ? gauge.remove() : gauge.set(value));

/** With `count` it is not added to but counted anew at each scrape. */
function counter(
  registry: Registry,
  name: string,
  help: string,
  labelNames: readonly string[] = [],
  count?: (counter: Counter) => void,
): Counter {
  const options = { name: `gateway_${name}`, help, labelNames: [...labelNames], registers: [registry] };
  if (count === undefined) return new Counter(options);
  return new Counter({
    ...options,
    collect() {
      this.reset();
      count(this);
    },
  });
}

function gauge(registry: Registry, name: string, help: string, labelNames: readonly string[] = []): Gauge {
  return new Gauge({ name: `gateway_${name}`, help, labelNames: [...labelNames], registers: [registry] });
}

/** Read anew at each scrape; null: no value. */
function gaugeOf(
  registry: Registry,
  name: string,
  help: string,
  certificates: () => readonly CertificateFacts[],
  value: (of: CertificateFacts) => number | null,
): Gauge {
  return new Gauge({
    name: `gateway_${name}`,
    help,
    labelNames: ["use"],
    registers: [registry],
    collect() {
      this.reset();
      for (const one of certificates()) {
        const now = value(one);
        if (now !== null) this.set({ use: one.use }, now);
      }
    },
  });
}

/** A Histogram of prom-client takes observations only, never counts. A registry asks of a metric its name and `get()`, no more. */
function histogram(registry: Registry, shortName: string, help: string, series: () => Iterable<Durations>): void {
  const name = `gateway_${shortName}`;
  const get = async (): Promise<unknown> => {
    const values = Array.from(series(), (one) => one.samples(name)).flat();
    return { name, help, type: "histogram", aggregator: "sum", values };
  };
  registry.registerMetric({ name, get } as unknown as Histogram);
}
