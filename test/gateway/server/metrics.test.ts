import { Histogram, Registry } from "prom-client";
import { describe, expect, test } from "vitest";
import { codes } from "../../../gateway/errors.ts";
import { Events } from "../../../gateway/events.ts";
import { createMetrics } from "../../../gateway/server/metrics.ts";
import { status } from "../cli.fake.ts";
import type { Fact } from "../../../gateway/events.ts";
import type { Metrics } from "../../../gateway/server/metrics.ts";
import type { Status } from "../../../gateway/status.ts";

function create(read: () => Promise<Status> = async () => status): { events: Events; metrics: Metrics } {
  const events = new Events();
  const metrics = createMetrics({
    events,
    status: read,
    rules: ["create-order", "default-safe", "default-other"],
    replicas: ["a", "b", "c"],
    version: "1.2.3",
  });
  return { events, metrics };
}

const requestFact: Extract<Fact, { type: "request" }> = {
  type: "request",
  rule: "create-order",
  mode: "replicate",
  method: "POST",
  path: "/orders",
  status: 201,
  code: null,
  outcome: "executed",
  position: 1,
  replica: "a",
  durationMs: 12,
  peer: "127.0.0.1",
};

/** Samples of ours by name, labels as text. */
async function samples(metrics: Metrics): Promise<Map<string, number>> {
  const lines = (await metrics.render()).split("\n").filter((line) => line.startsWith("gateway_"));
  return new Map(
    lines.map((line) => [
      line.slice(0, line.lastIndexOf(" ")),
      Number(line.slice(line.lastIndexOf(" ") + 1).replace("+Inf", "Infinity")),
    ]),
  );
}

/** Lines that facts change. */
const counted = (text: string): string[] =>
  text.split("\n").filter((line) => /^gateway_\w+(_total|_seconds_bucket|_seconds_sum|_seconds_count)\b/.test(line));

// interface.md, without that of certificates.
const required = [
  "http_requests_total{rule,mode,code}",
  "http_request_duration_seconds",
  "refused_total{code}",
  "log_append_duration_seconds",
  "log_tail_position",
  "log_first_position",
  "log_bytes",
  "log_max_bytes",
  "log_seconds_until_full",
  "guarantee_info{level}",
  "replicas_live",
  "replica_applied_position{replica}",
  "replica_lag_entries{replica}",
  "replica_lag_seconds{replica}",
  "replica_state{replica,state}",
  "apply_duration_seconds{replica}",
  "disagreements_total{rule}",
  "unknown_outcomes_total{replica}",
  "parked_entries",
  "keys_total{result}",
  "snapshots_total{result}",
  "snapshot_position",
  "snapshot_last_success_timestamp_seconds",
  "registry_published_position",
  "registry_pending_seconds",
  "registry_balance_wei",
  "registry_errors_total",
  "recoveries_total{result}",
  "audits_total{result}",
  "disk_free_bytes{dir}",
  "config_last_reload_successful",
  "rules_mismatch",
  "build_info",
];

describe("metrics", () => {
  test("every metric of the interface is there, with its labels", async () => {
    const { events, metrics } = create();
    events.tell({ ...requestFact, code: "GW_LOG_FULL", status: 503 });
    events.tell({ type: "applied", replica: "a", position: 1, durationMs: 1 });
    const text = await metrics.render();
    for (const one of required) {
      const [name = "", labels] = one.replace("}", "").split("{");
      expect(text, one).toContain(`# HELP gateway_${name} `);
      const line = text.split("\n").find((sample) => new RegExp(`^gateway_${name}(_bucket)?[{ ]`).test(sample));
      expect(line, one).toBeDefined();
      for (const label of labels?.split(",") ?? []) expect(line, one).toContain(`${label}="`);
    }
    expect(text).toContain("# HELP process_cpu_seconds_total");
    expect(text).toContain('gateway_build_info{version="1.2.3",node="');
  });

  test("names follow the conventions: prefix, base units, _total on counters and on nothing else", async () => {
    const text = await create().metrics.render();
    const types = [...text.matchAll(/^# TYPE (gateway_\S+) (\S+)$/gm)].map(([, name = "", type = ""]) => ({
      name,
      type,
    }));
    expect(types.length).toBeGreaterThan(30);
    for (const { name, type } of types) {
      expect(name).toMatch(/^gateway_[a-z][a-z0-9_]*[a-z0-9]$/);
      expect(`${name} ${name.endsWith("_total")}`).toBe(`${name} ${type === "counter"}`);
      if (type === "histogram") expect(name).toMatch(/_(seconds|bytes)$/);
      expect(name).not.toMatch(/_(ms|millis|milliseconds|minutes|kb|mb|count|sum|bucket)(_|$)/);
    }
    expect(new Set(types.map(({ name }) => name)).size).toBe(types.length);
    const helps = [...text.matchAll(/^# HELP (gateway_\S+) (.*)$/gm)];
    for (const [, name, help = ""] of helps) expect(help.length, name).toBeGreaterThan(10);
    // One exposition: no family twice, no empty line that ends it early for strict readers.
    expect(text.endsWith("\n")).toBe(true);
  });

  test("facts count", async () => {
    const { events, metrics } = create();
    for (let i = 0; i < 3; i++) events.tell(requestFact);
    events.tell({ ...requestFact, status: 503, code: "GW_LOG_FULL" });
    events.tell({ type: "appended", items: 5, bytes: 100, durationMs: 2 });
    events.tell({ type: "key", result: "replayed" });
    events.tell({ type: "unknown-outcome", replica: "b", position: 1, cause: "x" });
    events.tell({ type: "disagreement", position: 1, rule: "create-order", minority: ["c"], decisive: true });
    const found = await samples(metrics);
    expect(found.get('gateway_http_requests_total{rule="create-order",mode="replicate",code="201"}')).toBe(3);
    expect(found.get('gateway_http_request_duration_seconds_count{rule="create-order",mode="replicate"}')).toBe(4);
    expect(
      found.get('gateway_http_request_duration_seconds_bucket{le="0.025",rule="create-order",mode="replicate"}'),
    ).toBe(4);
    expect(found.get('gateway_refused_total{code="GW_LOG_FULL"}')).toBe(1);
    expect(found.get("gateway_log_append_duration_seconds_count")).toBe(1);
    expect(found.get("gateway_log_appended_items_total")).toBe(5);
    expect(found.get('gateway_keys_total{result="replayed"}')).toBe(1);
    expect(found.get('gateway_unknown_outcomes_total{replica="b"}')).toBe(1);
    expect(found.get('gateway_disagreements_total{rule="create-order"}')).toBe(1);
  });

  test("durations are counted as prom-client counts them, whatever they are", async () => {
    const { events, metrics } = create();
    const registry = new Registry();
    const reference = new Histogram({
      name: "gateway_apply_duration_seconds",
      help: "From an entry's send to its answer",
      labelNames: ["replica"],
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
      registers: [registry],
    });
    const bounds = [1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];
    const durations = [...bounds, ...bounds.map((ms) => ms + 0.001), 0, -1, 0.0001, 60_000];
    for (const [index, durationMs] of durations.entries()) {
      const replica = ["a", "b", "nobody"][index % 3] ?? "";
      events.tell({ type: "applied", replica, position: index, durationMs });
      reference.observe({ replica: replica === "nobody" ? "other" : replica }, durationMs / 1000);
    }
    const text = await metrics.render();
    expect(text).toContain(`${(await registry.metrics()).trimEnd()}\n\n`);
  });

  test("a second scrape counts nothing again", async () => {
    const { events, metrics } = create();
    events.tell(requestFact);
    events.tell({ type: "applied", replica: "a", position: 1, durationMs: 1 });
    events.tell({ type: "key", result: "fresh" });
    const first = counted(await metrics.render());
    expect(first.length).toBeGreaterThan(50);
    expect(counted(await metrics.render())).toEqual(first);
  });

  test("a duration that is no number is refused and leaves the sum whole", async () => {
    const { events, metrics } = create();
    for (const durationMs of [Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => events.tell({ type: "applied", replica: "a", position: 1, durationMs })).toThrow(TypeError);
    }
    events.tell({ type: "applied", replica: "a", position: 1, durationMs: 2000 });
    const found = await samples(metrics);
    expect(found.get('gateway_apply_duration_seconds_sum{replica="a"}')).toBe(2);
    expect(found.get('gateway_apply_duration_seconds_count{replica="a"}')).toBe(1);
  });

  test("counters that alerts watch begin with 0", async () => {
    const found = await samples(create().metrics);
    for (const [code, { status: http }] of Object.entries(codes)) {
      expect(found.get(`gateway_refused_total{code="${code}"}`)).toBe(http === 0 ? undefined : 0);
    }
    expect(found.get('gateway_disagreements_total{rule="default-other"}')).toBe(0);
    expect(found.get('gateway_unknown_outcomes_total{replica="c"}')).toBe(0);
    expect(found.get('gateway_keys_total{result="fresh"}')).toBe(0);
  });

  test("what a client sends never becomes a label", async () => {
    const { events, metrics } = create();
    for (let i = 0; i < 50; i++) {
      const evil = `canary${i}`;
      events.tell({
        ...requestFact,
        rule: evil,
        mode: evil,
        method: evil,
        path: evil,
        code: evil,
        replica: evil,
        peer: evil,
        status: 1000 + i,
      });
      events.tell({ type: "unknown-outcome", replica: evil, position: i, cause: evil });
      events.tell({ type: "disagreement", position: i, rule: evil, minority: [evil], decisive: true });
      events.tell({ type: "incarnation", replica: evil, id: evil, url: evil });
      events.tell({ type: "applied", replica: evil, position: i, durationMs: 1 });
    }
    const text = await metrics.render();
    expect(text).not.toContain("canary");
    expect(text).toContain('gateway_http_requests_total{rule="none",mode="none",code="other"} 50');
    expect(text).toContain('gateway_http_request_duration_seconds_count{rule="none",mode="none"} 50');
    expect(text).toContain('gateway_apply_duration_seconds_count{replica="other"} 50');
  });

  test("gauges are the status at the scrape, and what is gone disappears", async () => {
    let now = status;
    const { metrics } = create(async () => now);
    const first = await samples(metrics);
    expect(first.get("gateway_replicas_live")).toBe(2);
    expect(first.get('gateway_replica_state{replica="b",state="held"}')).toBe(1);
    expect(first.get('gateway_replica_state{replica="b",state="live"}')).toBe(0);
    expect(first.get('gateway_guarantee_info{level="power-loss"}')).toBe(1);
    expect(first.get("gateway_log_seconds_until_full")).toBe(Infinity);
    expect(first.get('gateway_disk_free_bytes{dir="data"}')).toBe(1_000_000);
    now = {
      ...status,
      live: 1,
      guarantee: { level: "process-crash", why: "" },
      replicas: status.replicas.slice(0, 1),
      log: { ...status.log, state: "full", secondsUntilFull: 60 },
    };
    const second = await samples(metrics);
    expect(second.get("gateway_replicas_live")).toBe(1);
    expect(second.has('gateway_replica_state{replica="b",state="held"}')).toBe(false);
    expect(second.has('gateway_guarantee_info{level="power-loss"}')).toBe(false);
    expect(second.get("gateway_log_seconds_until_full")).toBe(60);
    expect(second.get('gateway_log_state{state="full"}')).toBe(1);
  });

  test("snapshots, recoveries and audits are counted by what became of them", async () => {
    const { events, metrics } = create();
    const snapshot = { type: "snapshot", version: 3, replica: "c", position: 7, detail: "" } as const;
    for (const state of ["begun", "taken", "verified", "removed", "begun", "failed", "unsound"] as const)
      events.tell({ ...snapshot, state });
    for (const state of ["begun", "restored", "done", "begun", "failed"] as const)
      events.tell({ type: "recovery", replica: "b", state, detail: "" });
    for (const result of ["equal", "equal", "unequal"] as const)
      events.tell({ type: "audit", result, position: 7, culprits: [], detail: "" });
    const found = await samples(metrics);
    const of = (name: string): Record<string, number> =>
      Object.fromEntries(
        [...found]
          .filter(([key]) => key.startsWith(`gateway_${name}{`))
          .map(([key, value]) => [/="(.*)"/.exec(key)?.[1] ?? "", value]),
      );
    expect(of("snapshots_total")).toEqual({ taken: 1, failed: 1, verified: 1, unsound: 1 });
    expect(of("recoveries_total")).toEqual({ done: 1, failed: 1 });
    expect(of("audits_total")).toEqual({ equal: 2, unequal: 1, impossible: 0 });
  });

  test("the recorder's gauges are the status, and absent where there is nothing to tell", async () => {
    let now = status;
    const { metrics } = create(async () => now);
    const first = await samples(metrics);
    expect(first.get("gateway_snapshot_position")).toBe(4_049_152);
    expect(first.get("gateway_snapshot_last_success_timestamp_seconds")).toBe(1_795_000_000);
    expect(first.get("gateway_registry_published_position")).toBe(4_045_056);
    expect(first.get("gateway_registry_pending_seconds")).toBe(120);
    expect(first.get("gateway_registry_balance_wei")).toBeCloseTo(51_234_567_890_123_456);
    expect(first.get("gateway_registry_errors_total")).toBe(2);
    expect((await samples(metrics)).get("gateway_registry_errors_total")).toBe(2);
    now = { ...status, snapshots: null, registry: null };
    const second = await samples(metrics);
    for (const name of ["snapshot_position", "registry_pending_seconds", "registry_balance_wei", "registry_reachable"])
      expect([name, second.has(`gateway_${name}`)]).toEqual([name, false]);
  });

  test("a replica that is added while it runs gets labels of its own, not without end", async () => {
    const { events, metrics } = create();
    const add = (replica: string): void =>
      events.tell({ type: "replica", replica, from: null, to: "starting", reason: "" });
    add("d");
    events.tell({ type: "unknown-outcome", replica: "d", position: 1, cause: "x" });
    expect((await samples(metrics)).get('gateway_unknown_outcomes_total{replica="d"}')).toBe(1);
    for (let i = 0; i < 1000; i++) {
      add(`many${i}`);
      events.tell({ type: "unknown-outcome", replica: `many${i}`, position: 1, cause: "x" });
    }
    const found = await samples(metrics);
    expect(found.get('gateway_unknown_outcomes_total{replica="other"}')).toBeGreaterThan(700);
  });

  test("without a status there are counters and no gauges, rather than old ones", async () => {
    let isBroken = false;
    const { metrics } = create(async () => {
      if (isBroken) throw new Error("away");
      return status;
    });
    await metrics.render();
    isBroken = true;
    const found = await samples(metrics);
    expect(found.has("gateway_replicas_live")).toBe(false);
    expect(found.has('gateway_refused_total{code="GW_LOG_FULL"}')).toBe(true);
  });

  test("a request costs microseconds", () => {
    const { events } = create();
    for (let i = 0; i < 5000; i++) events.tell(requestFact);
    const begin = performance.now();
    for (let i = 0; i < 20_000; i++) events.tell(requestFact);
    const eachUs = ((performance.now() - begin) * 1000) / 20_000;
    expect(eachUs).toBeLessThan(5); // 0.04 alone on a machine
  });
});
