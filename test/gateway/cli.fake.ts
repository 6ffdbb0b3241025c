// A gateway that is all admin address: a Control made of plain values behind the real server, for the CLI and the admin tests.

import { parseNewReplica } from "../../gateway/config/newreplica.ts";
import { createAdmin } from "../../gateway/server/admin.ts";
import { createMetrics } from "../../gateway/server/metrics.ts";
import { Events } from "../../gateway/events.ts";
import { GatewayError } from "../../gateway/errors.ts";
import { runProgram } from "../../gateway/commands/program.ts";
import type { ProgramParts } from "../../gateway/commands/builder.ts";
import type { Address } from "../../gateway/config/address.ts";
import type { Admin, AdminOptions } from "../../gateway/server/admin.ts";
import type {
  Control,
  DisagreementRow,
  LogRow,
  Operation,
  ReplicaStatus,
  SnapshotRow,
  Status,
  UnknownRow,
} from "../../gateway/status.ts";

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

export function snapshotRow(version: number, facts: Partial<SnapshotRow> = {}): SnapshotRow {
  return {
    version,
    position: 4_000_000 + version * 4096,
    entries: 1000 * version,
    timeMs: Date.now() - 180_000,
    manifest: "1a".repeat(32),
    root: "2b".repeat(32),
    hash: "3c".repeat(32),
    epoch: "00112233aabbccdd",
    treeEntries: 10_000,
    treeBytes: 1_288_490_189,
    newBytes: 3_355_443,
    replica: "c",
    backendVersion: "2.1",
    isVerified: true,
    publication: "final",
    transaction: `0x${"4d".repeat(32)}`,
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
  registry: {
    kind: "ethereum",
    where: "0x5fbdb2315678afecb367f032d93f642f64180aa3",
    reachable: true,
    trouble: null,
    balanceWei: "51234567890123456",
    errors: 2,
    publishedPosition: 4_045_056,
    pendingSeconds: 120,
  },
  snapshots: {
    store: "/srv/snapshots",
    kept: 2,
    last: snapshotRow(12),
    lastSuccessMs: 1_795_000_000_000,
    trouble: null,
    isRecorder: true,
    bytes: 2_147_483_648,
  },
  parked: 1,
  unfinished: 1,
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

export function operation(kind: Operation["kind"], subject: string, facts: Partial<Operation> = {}): Operation {
  return {
    id: `op-${kind}`,
    kind,
    subject,
    state: "running",
    startedMs: 1_795_000_000_000,
    endedMs: null,
    step: "",
    progress: null,
    result: null,
    error: null,
    findings: [],
    ...facts,
  };
}

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
  // Each is asked for once while it runs, and is done then.
  const operations = new Map<string, Operation>();
  const begin = async (kind: Operation["kind"], subject: string, call: string): Promise<Operation> => {
    calls.push(call);
    const begun = operation(kind, subject);
    operations.set(begun.id, { ...begun, step: `${kind} ${subject}`, progress: { done: 1, total: 4, unit: "bytes" } });
    return begun;
  };
  return {
    calls,
    snapshots: async () => [
      snapshotRow(12),
      snapshotRow(11, { isVerified: false, publication: "waiting", newBytes: null }),
    ],
    snapshotCreate: () => begin("snapshot", "13", "snapshot"),
    snapshotVerify: (version) => begin("verify", String(version ?? 12), `verify ${version}`),
    audit: () => begin("audit", "", "audit"),
    replicaRebuild: (name, version) => begin("rebuild", name, `rebuild ${name} ${version}`),
    replicaAdd: (replica) => begin("add", replica?.name ?? "r4", `add ${JSON.stringify(replica)}`),
    replicaRemove: (name) => begin("remove", name, `remove ${name}`),
    replicaSync: async () => {
      calls.push("sync");
      return { added: ["c"], changed: [], removed: ["d", "e"] };
    },
    operation: (id) => {
      const now = operations.get(id) ?? null;
      if (now !== null) {
        operations.set(id, {
          ...now,
          state: "done",
          step: "",
          endedMs: 1,
          result: `${now.kind} of ${now.subject} is done`,
        });
      }
      return now;
    },
    operations: () => [...operations.values()],
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
    unfinished: async () => [
      {
        replica: "a",
        position: 4_931_570,
        rule: "create-order",
        method: "POST",
        target: "/orders?token=canary-query",
        what: "unknown",
        timeMs: Date.UTC(2026, 10, 20, 12, 0, 0),
      },
    ],
    parked: async () => [
      {
        position: 4_931_500,
        reason: "killed 2 copies",
        method: "POST",
        target: "/poison?secret=canary-query",
        timeMs: 0,
      },
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
  options: Partial<AdminOptions> & { over?: Partial<Control>; mayRunPrograms?: boolean } = {},
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
  const own: Address[] = [{ host: "127.0.0.1", port: 8080 }];
  const names: Readonly<Record<string, readonly string[]>> = {
    "shop.example": ["10.1.2.3"],
    "both.example": ["10.1.2.3", "169.254.169.254"],
  };
  const admin = createAdmin({
    listen: { host: "127.0.0.1", port: 0 },
    token: null,
    control,
    metrics,
    events,
    openMetrics: false,
    readReplica: (body) =>
      parseNewReplica(body, {
        own,
        mayRunPrograms: options.mayRunPrograms ?? true,
        resolve: async (host) => names[host] ?? [],
      }),
    ...options,
  });
  const url = await admin.listen();
  own.push({ host: "127.0.0.1", port: Number(new URL(url).port) });
  return { url, admin, control, events };
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
    /** What the person types when asked; absent: nobody is there. */
    typed?: string;
  } = {},
): Promise<CliResult> {
  let out = "";
  let err = "";
  const { env = {}, cwd = "/nonexistent", isTerminal = false, columns = 80, parts = {}, typed } = around;
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
      ask:
        typed === undefined
          ? null
          : async (question) => {
              err += question;
              return typed;
            },
    },
    parts,
  );
  return { exitCode, out, err };
}
