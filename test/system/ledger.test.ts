// Each check of the ledger accepts a good history and rejects the broken one that it is there for.

import { describe, expect, test } from "vitest";
import type { Attempt, Call, Sent } from "../helpers/clients.ts";
import {
  acknowledgedOnce,
  checkLedger,
  inLogOrder,
  logAndJournalsAgree,
  notExecutedNowhere,
  nothingFromNowhere,
  oneAnswer,
  onePosition,
  onePrimary,
  repeatedOnlyWhereAllowed,
  sameEverywhere,
} from "../helpers/ledger.ts";
import type { Evidence, Executed } from "../helpers/ledger.ts";

const call = (facts: Partial<Call> = {}): Call => ({
  method: "POST",
  path: "/c/k/add",
  orderKeys: ["k"],
  isKeyed: true,
  isRepeatable: false,
  body: {},
  ...facts,
});

const attempt = (facts: Partial<Attempt> = {}): Attempt => ({
  front: "http://front",
  sentAtMs: 0,
  endedAtMs: 1,
  status: 200,
  outcome: "executed",
  position: 4096,
  epoch: "e",
  isReplayed: false,
  code: null,
  contentType: "application/json",
  body: Buffer.from("1"),
  error: null,
  ...facts,
});

const sent = (id: string, attempts: readonly Attempt[], facts: Partial<Call> = {}): Sent => {
  const of = call(facts);
  return { id, client: 0, call: of, key: of.isKeyed ? `key-${id}` : null, attempts: [...attempts] };
};

const row = (id: string, position: number, facts: Partial<Executed> = {}): Executed => ({
  id,
  position,
  key: `key-${id}`,
  role: "secondary",
  ...facts,
});

const evidence = (requests: readonly Sent[], ...journals: readonly (readonly Executed[])[]): Evidence => ({
  sent: requests,
  journals: new Map(journals.map((journal, i) => ["abc"[i] ?? "", journal])),
});

const again = (facts: Partial<Attempt>): Evidence =>
  evidence([sent("1", [attempt(), attempt({ isReplayed: true, ...facts })])]);
const broken = attempt({ status: null, outcome: null, position: null, body: null, error: "ECONNRESET" });
const rejected = attempt({ status: 503, outcome: "not-executed", position: null, code: "GW_OVERLOADED" });
const one = sent("1", [attempt()]);
const two = sent("2", [attempt({ position: 4097 })]);
const put = (id: string, position: number): Sent =>
  sent(id, [attempt({ position })], { method: "PUT", isRepeatable: true });

describe("the ledger", () => {
  test("accepts a good history", () => {
    const unknown = sent("3", [broken], { isKeyed: false });
    const retried = sent("4", [broken, attempt({ position: 4099, isReplayed: true })]);
    const nowhere = sent("5", [rejected]);
    const journal = [row("1", 4096), row("2", 4097), row("3", 4098, { key: null }), row("4", 4099)];
    const primary = [row("1", 4096, { role: "primary" }), ...journal.slice(1)];
    const good = evidence([one, two, unknown, retried, nowhere], primary, journal, journal);
    expect(checkLedger({ ...good, log: new Set([4096, 4097, 4098, 4099]) })).toEqual([]);
  });

  test("accepts a run of repeatable requests that was executed again as a run", () => {
    const run = [row("1", 1), row("2", 2), row("3", 3), row("2", 2), row("3", 3)];
    const requests = [put("1", 1), put("2", 2), put("3", 3)];
    expect(checkLedger(evidence(requests, run, [row("1", 1), row("2", 2), row("3", 3)]))).toEqual([]);
  });

  test("accepts another order of requests that share no key", () => {
    const other = sent("2", [attempt({ position: 4097 })], { orderKeys: ["other"] });
    const journals = [
      [row("1", 4096), row("2", 4097)],
      [row("2", 4097), row("1", 4096)],
    ];
    expect(inLogOrder(evidence([one, other], ...journals))).toEqual([]);
  });

  test("rejects an acknowledged request that one backend lacks", () => {
    expect(acknowledgedOnce(evidence([one], [row("1", 4096)], []))).toEqual([expect.stringContaining("b: ")]);
  });

  test("rejects an acknowledged request at another position, or without one", () => {
    expect(acknowledgedOnce(evidence([one], [row("1", 4097)]))).toHaveLength(1);
    expect(acknowledgedOnce(evidence([sent("1", [attempt({ position: null })])], [row("1", 4096)]))).toHaveLength(1);
  });

  test("rejects an acknowledged request that lost its key on the way", () => {
    expect(acknowledgedOnce(evidence([one], [row("1", 4096, { key: null })]))).toHaveLength(1);
  });

  test("rejects a second execution, unless the request is repeatable", () => {
    expect(repeatedOnlyWhereAllowed(evidence([one], [row("1", 4096), row("1", 4096)]))).toHaveLength(1);
    expect(repeatedOnlyWhereAllowed(evidence([put("1", 4096)], [row("1", 4096), row("1", 4096)]))).toEqual([]);
  });

  test("rejects a second execution of a request whose outcome nobody was told", () => {
    expect(repeatedOnlyWhereAllowed(evidence([sent("1", [broken])], [row("1", 1), row("1", 2)]))).toHaveLength(1);
  });

  test("rejects an execution of what was answered not-executed", () => {
    expect(notExecutedNowhere(evidence([sent("1", [rejected])], [row("1", 4096)]))).toHaveLength(1);
    expect(notExecutedNowhere(evidence([sent("1", [rejected, attempt()])], [row("1", 4096)]))).toEqual([]);
  });

  test("rejects an unacknowledged request that only some backends executed", () => {
    expect(sameEverywhere(evidence([sent("1", [broken])], [row("1", 4096)], []))).toEqual([
      "b: 1 is missing, a executed it",
    ]);
  });

  test("rejects two requests of one order key in another order than the log's", () => {
    expect(inLogOrder(evidence([one, two], [row("2", 4097), row("1", 4096)]))).toHaveLength(1);
  });

  test("rejects a request without order keys that was overtaken, or that overtook", () => {
    const barrier = sent("2", [attempt({ position: 4097 })], { orderKeys: [] });
    expect(inLogOrder(evidence([one, barrier], [row("2", 4097), row("1", 4096)]))).toHaveLength(1);
    const barriers = [sent("1", [attempt()], { orderKeys: [] }), barrier];
    expect(inLogOrder(evidence(barriers, [row("2", 4097), row("1", 4096)]))).toHaveLength(1);
  });

  test("rejects a repeated request whose successors were not repeated", () => {
    const requests = [put("1", 1), put("2", 2), put("3", 3)];
    const gap = [row("1", 1), row("2", 2), row("3", 3), row("1", 1), row("3", 3)];
    const cut = [row("1", 1), row("2", 2), row("1", 1)];
    expect(inLogOrder(evidence(requests, gap))).toHaveLength(1);
    expect(inLogOrder(evidence(requests, cut))).toHaveLength(1);
  });

  test("rejects a request that stands at two positions, and a position that holds two", () => {
    expect(onePosition(evidence([one], [row("1", 1)], [row("1", 2)]))).toHaveLength(1);
    expect(onePosition(evidence([one, two], [row("1", 1)], [row("2", 1)]))).toHaveLength(1);
  });

  test("rejects a retry that was answered differently", () => {
    expect(oneAnswer(again({}))).toEqual([]);
    expect(oneAnswer(again({ body: Buffer.from("2") }))).toHaveLength(1);
    expect(oneAnswer(again({ status: 201 }))).toHaveLength(1);
    expect(oneAnswer(again({ position: 5 }))).toHaveLength(1);
    expect(oneAnswer(again({ isReplayed: false }))).toHaveLength(1);
  });

  test("rejects a second primary", () => {
    const primary = [row("1", 4096, { role: "primary" })];
    expect(onePrimary(evidence([one], primary, primary))).toHaveLength(1);
  });

  test("rejects an execution that nobody asked for", () => {
    expect(nothingFromNowhere(evidence([one], [row("1", 4096), row("9", 4097)]))).toHaveLength(1);
  });

  test("rejects a log that holds more or less than the journals", () => {
    const good = evidence([one], [row("1", 4096)]);
    expect(logAndJournalsAgree({ ...good, log: new Set([4096]) })).toEqual([]);
    expect(logAndJournalsAgree({ ...good, log: new Set([4096, 4097]) })).toHaveLength(1);
    expect(logAndJournalsAgree({ ...good, log: new Set() })).toHaveLength(1);
  });

  test("names at most a few faults of each kind", () => {
    const requests = Array.from({ length: 40 }, (_, i) => sent(String(i), [attempt({ position: i + 1 })]));
    const faults = checkLedger(evidence(requests, []), 5);
    expect(faults).toHaveLength(6);
    expect(faults.at(-1)).toBe("acknowledgedOnce: 35 more");
  });
});
