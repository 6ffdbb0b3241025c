// A gateway that is all admin address: a Control made of plain values behind the real server, for the CLI and the admin tests.

import { createAdmin } from "../../gateway/server/admin.ts";
import { createMetrics } from "../../gateway/server/metrics.ts";
import { Events } from "../../gateway/events.ts";
import { GatewayError } from "../../gateway/errors.ts";
import { runProgram } from "../../gateway/commands/program.ts";
import type { ProgramParts } from "../../gateway/commands/builder.ts";
import type { Admin, AdminOptions } from "../../gateway/server/admin.ts";
import type { Control, DisagreementRow, LogRow, ReplicaStatus, Status, UnknownRow } from "../../gateway/status.ts";

export function replicaStatus(name: string, facts: Partial<ReplicaStatus> = {}): ReplicaStatus {
  return {
    name,
    url: `http://127.0.0.1:400${name.charCodeAt(0) - 96}`,
    state: "live",
    reason: "",
    applied: 4_931_588,
    lag: 0,
    lagSeconds: 0,
    inFlight: 0,
    unknown: [],
    owner: "gw-1",
    role: name === "a" ? "primary" : "secondary",
    version: "",
    incarnation: `life-of-${name}`,
    managed: false,
    pid: null,
    ...facts,
  };
}

export const status: Status = {
  service: "shop",
  name: "gw-1",
  boot: "0123456789abcdef0123456789abcdef",
  version: "0.1.0",
  guarantee: { level: "power-loss", why: "Each record is synced before it is acknowledged." },
  paused: null,
  stopping: false,
  tail: 4_931_588,
  live: 2,
  log: {
    kind: "embedded",
    reachable: true,
    state: "ok",
    epoch: "00112233aabbccdd",
    firstPosition: 4096,
    bytes: 3_355_443,
    maxBytes: 10_737_418_240,
    secondsUntilFull: null,
    entries: 1204,
    hash: "ab".repeat(32),
    rules: "cd".repeat(32),
  },
  keys: { kind: "embedded", reachable: true, windowRows: 204, windowMax: 20_000_000 },
  registry: null,
  parked: 1,
  disagreements: 1,
  diskFree: [{ dir: "data", bytes: 1_000_000 }],
  rulesMismatch: false,
  replicas: [
    replicaStatus("a"),
    replicaStatus("b", { state: "held", reason: "the outcome of 1 entry is unknown", unknown: [4_931_584], lag: 4 }),
    replicaStatus("c"),
  ],
};

export function logRow(position: number, facts: Partial<LogRow> = {}): LogRow {
  return {
    position,
    kind: "entry",
    timeMs: Date.UTC(2026, 10, 20, 12, 0, 0),
    rule: "create-order",
    method: "POST",
    target: "/orders?token=canary-query",
    headers: ["Authorization", "Bearer canary-auth", "X-Api-Key", "canary-key", "Accept", "*/*"],
    bodyBytes: 15,
    body: null,
    keyed: true,
    orderKeys: [],
    detail: "",
    fate: "applied",
    producer: "gw-1 01234567",
    ...facts,
  };
}

export const disagreement: DisagreementRow = {
  position: 4_931_584,
  timeMs: Date.UTC(2026, 10, 20, 12, 0, 0),
  rule: "create-order",
  method: "POST",
  target: "/orders",
  decisive: true,
  minority: ["c"],
  answers: [
    answer("a", "d1", '{"id":7,"total":12}'),
    answer("b", "d1", '{"id":7,"total":12}'),
    answer("c", "d2", '{"id":7,"total":13}'),
  ],
  differences: [{ where: "/total", left: "12", right: "13" }],
};

function answer(replica: string, digest: string, body: string): DisagreementRow["answers"][number] {
  const headers = ["Content-Type", "application/json", "Set-Cookie", "sid=canary-cookie"];
  return { replica, status: 201, digest, headers, body };
}

const unknown: UnknownRow = {
  replica: "b",
  position: 4_931_584,
  rule: "create-order",
  method: "POST",
  target: "/orders",
  timeMs: Date.UTC(2026, 10, 20, 12, 0, 0),
  reason: "the connection closed before the answer",
};

export interface FakeControl extends Control {
  /** What was ordered, in order. */
  readonly calls: string[];
}

export function fakeControl(over: Partial<Control> = {}): FakeControl {
  const calls: string[] = [];
  const rows = [
    logRow(4_931_584),
    logRow(4_931_585),
    logRow(4_931_588, {
      kind: "tick",
      method: null,
      target: null,
      headers: null,
      rule: null,
      bodyBytes: null,
      fate: "control",
    }),
  ];
  return {
    calls,
    status: async () => status,
    log: async (from, limit) => rows.filter((row) => row.position >= from).slice(0, limit),
    logShow: async (position) => {
      const row = rows.find((one) => one.position === position);
      return row === undefined ? null : { ...row, body: Buffer.from('{"item":"tea"}\n').toString("base64") };
    },
    async *logFollow(from, signal) {
      for (const row of rows) if (row.position >= from && !signal.aborted) yield row;
      await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
    },
    logVerify: async () => ({ records: 1204, hash: "ab".repeat(32), findings: [] }),
    unknown: async (replica) => (replica === null || replica === "b" ? [unknown] : []),
    resolve: async (...args) => {
      calls.push(`resolve ${args.join(" ")}`);
      return 1;
    },
    disagreements: async () => [disagreement],
    parked: async () => [
      { position: 4_931_500, reason: "killed 2 copies", method: "POST", target: "/poison", timeMs: 0 },
    ],
    retryParked: async (position) => {
      calls.push(`retry ${position}`);
      if (position !== 4_931_500) throw new GatewayError("GW_CONFLICT", `entry ${position} is not parked`);
      return 4_940_000;
    },
    skip: async (...args) => void calls.push(`skip ${args.join(" ")}`),
    replica: async (...args) => void calls.push(args.join(" ")),
    pause: async (reason) => void calls.push(`pause ${reason}`),
    resume: async () => void calls.push("resume"),
    readiness: () => ({ reads: [], writes: [] }),
    ...over,
  };
}

export interface FakeAdmin {
  readonly url: string;
  readonly admin: Admin;
  readonly control: FakeControl;
  readonly events: Events;
}

export async function openFakeAdmin(
  options: Partial<AdminOptions> & { over?: Partial<Control> } = {},
): Promise<FakeAdmin> {
  const events = new Events();
  const control = fakeControl(options.over);
  const metrics = createMetrics({
    events,
    status: () => control.status(),
    rules: ["create-order", "default-safe", "default-other"],
    replicas: ["a", "b", "c"],
    version: "0.1.0",
  });
  const admin = createAdmin({
    listen: { host: "127.0.0.1", port: 0 },
    token: null,
    control,
    metrics,
    events,
    openMetrics: false,
    ...options,
  });
  return { url: await admin.listen(), admin, control, events };
}

export interface CliResult {
  readonly exitCode: number;
  readonly out: string;
  readonly err: string;
}

/** One call of the program, in this process. */
export async function cli(
  args: readonly string[],
  around: {
    env?: Record<string, string>;
    cwd?: string;
    isTerminal?: boolean;
    columns?: number;
    parts?: ProgramParts;
  } = {},
): Promise<CliResult> {
  let out = "";
  let err = "";
  const { env = {}, cwd = "/nonexistent", isTerminal = false, columns = 80, parts = {} } = around;
  const exitCode = await runProgram(
    args,
    {
      out: (text) => void (out += text),
      err: (text) => void (err += text),
      env,
      cwd,
      isTerminal,
      columns,
      isErrTerminal: isTerminal,
    },
    parts,
  );
  return { exitCode, out, err };
}
