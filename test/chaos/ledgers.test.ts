// Each ledger finds what it is there for, and nothing where nothing is wrong.

import { describe, expect, test } from "vitest";
import type { Attempt, Sent } from "../helpers/clients.ts";
import { historyOf, logEntriesOf } from "./history.ts";
import type { LogEntry } from "./history.ts";
import { checkLedgers } from "./ledgers.ts";
import type { Ledgers } from "./ledgers.ts";
import type { KvRow } from "./kv.ts";

const attempt = (outcome: Attempt["outcome"], position: number | null): Attempt => ({
  front: "",
  sentAtMs: 0,
  endedAtMs: 1,
  status: outcome === "executed" ? 200 : 503,
  outcome,
  position,
  epoch: null,
  isReplayed: false,
  code: null,
  contentType: null,
  body: null,
  error: null,
});

const sent = (id: string, outcome: Attempt["outcome"], position: number | null = null, isRepeatable = false): Sent => ({
  id,
  client: 1,
  key: null,
  call: { method: "POST", path: "/kv/l1/append", orderKeys: ["kv:l1"], isKeyed: false, isRepeatable, body: null },
  attempts: [attempt(outcome, position)],
});

const entry = (id: string, position: number, fate: LogEntry["fate"] = "applied"): LogEntry => ({ id, position, fate });
const row = (id: string, position: number, verb = "append"): KvRow => ({
  id,
  position,
  key: null,
  role: null,
  verb,
  k: "l1",
});

/** Two requests, acknowledged, in the log, executed once by two copies. */
const sound: Ledgers = {
  sent: [sent("one", "executed", 1), sent("two", "executed", 2)],
  entries: [entry("one", 1), entry("two", 2)],
  journals: new Map(["a", "b"].map((name) => [name, [row("one", 1), row("two", 2)]])),
  pastJournals: [],
  roots: new Map([
    ["a", "x"],
    ["b", "x"],
  ]),
};

const journals = (a: KvRow[], b: KvRow[] = [row("one", 1), row("two", 2)]): Ledgers["journals"] =>
  new Map(Object.entries({ a, b }));

test("a sound run has no faults", () => {
  expect(checkLedgers(sound)).toEqual({ lost: [], doubled: [], outOfOrder: [], others: [] });
});

describe("what is wrong is found and counted as what it is", () => {
  test.each<[string, keyof ReturnType<typeof checkLedgers>, Partial<Ledgers>]>([
    ["acknowledged and not in the log", "lost", { entries: [entry("one", 1)] }],
    ["acknowledged at another position", "lost", { sent: [sent("one", "executed", 2), sent("two", "executed", 1)] }],
    ["acknowledged and skipped", "lost", { entries: [entry("one", 1), entry("two", 2, "skipped")] }],
    ["in the log and not executed by one copy", "lost", { journals: journals([row("one", 1)]) }],
    ["executed twice", "doubled", { journals: journals([row("one", 1), row("one", 1), row("two", 2)]) }],
    ["twice in the log", "doubled", { entries: [entry("one", 1), entry("two", 2), entry("two", 3)] }],
    ["executed in another order", "outOfOrder", { journals: journals([row("two", 2), row("one", 1)]) }],
    [
      "executed in another order before a rebuild",
      "outOfOrder",
      { pastJournals: [["a", [row("two", 2), row("one", 1)]]] },
    ],
    ["executed twice before a rebuild", "doubled", { pastJournals: [["a", [row("one", 1), row("one", 1)]]] }],
    ["executed before a rebuild and nowhere in the log", "others", { pastJournals: [["a", [row("stray", 7)]]] }],
    [
      "answered not-executed and in the log",
      "others",
      { sent: [sent("one", "not-executed"), sent("two", "executed", 2)], journals: new Map() },
    ],
    ["states that differ", "others", { roots: new Map(Object.entries({ a: "x", b: "y" })) }],
  ])("%s", (_what, kind, change) => {
    expect(checkLedgers({ ...sound, ...change })[kind]).not.toEqual([]);
  });

  test("a PUT may be executed twice in a row", () => {
    const puts = { sent: sound.sent.map((one) => ({ ...one, call: { ...one.call, isRepeatable: true } })) };
    const twice = journals([row("one", 1, "put"), row("two", 2, "put"), row("two", 2, "put")]);
    expect(
      checkLedgers({ ...sound, ...puts, journals: twice, pastJournals: [["a", twice.get("a") ?? []]] }).doubled,
    ).toEqual([]);
  });
});

const lived = (id: string, outcome: Attempt["outcome"], position: number | null) => ({
  planned: {
    id,
    client: 1,
    dueMs: 0,
    key: "l1",
    verb: "append",
    level: "linearizable",
    value: id,
    isKeyed: false,
    isRepeated: false,
  } as const,
  sent: sent(id, outcome, position),
  expected: null,
  seen: 0,
  invokedAt: 1,
  respondedAt: outcome === "executed" ? 2 : Infinity,
  result: null,
});

test("what nobody was told is in the history when it is in the log, and only then", () => {
  const log = logEntriesOf(
    [
      { kind: "entry", target: "/kv/l1/append?id=told", position: 4096, fate: "applied" },
      { kind: "entry", target: "/kv/l1/append?id=untold", position: 8192, fate: "applied" },
      { kind: "entry", target: "/kv/l1/append?id=untold", position: 8193, fate: "duplicate" },
      { kind: "mark", target: null, position: 8194, fate: "control" },
    ].map((it) => ({ ...it, fate: it.fate as LogEntry["fate"] }) as Parameters<typeof logEntriesOf>[0][number]),
  );
  const history = historyOf(
    [lived("told", "executed", 4096), lived("untold", "unknown", null), lived("gone", "unknown", null)],
    log,
  );
  expect(history.map(({ id, position, respondedAt }) => [id, position, respondedAt])).toEqual([
    ["told", 4096, 2],
    ["untold", 8192, Infinity],
  ]);
});
