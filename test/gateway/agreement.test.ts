// What the client gets of several answers, and who is noticed when they differ.
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Agreement } from "../../gateway/agreement.ts";
import type { Chosen } from "../../gateway/agreement.ts";
import type { DigestRow } from "../../gateway/digests/digests.ts";
import type { Answer } from "../../gateway/entry.ts";
import { GatewayError } from "../../gateway/errors.ts";
import type { Fact } from "../../gateway/events.ts";
import { Events } from "../../gateway/events.ts";
import { parseRules } from "../../rules/rule.ts";
import type { Rule } from "../../rules/rule.ts";
import { entry, id32 } from "../fixtures/records/samples.ts";

function rule(options: string): Rule {
  const { rules } = parseRules(`version: 1\nrules:\n  - { name: r, match: "POST /*", mode: replicate, ${options} }\n`, {
    file: "rules.yaml",
  });
  return rules.rules[0] as Rule;
}
const first = rule("respond: first");
const majority = rule("respond: majority, compare: { body: bytes }");
const all = rule("respond: all, compare: { body: bytes }");
const policy = id32(1);

class Bench {
  readonly rows: DigestRow[] = [];
  readonly facts: Fact[] = [];
  readonly minorities: string[] = [];
  readonly ties: number[] = [];
  readonly batches: number[] = [];
  append: (rows: readonly DigestRow[]) => Promise<void> = () => Promise.resolve();
  readonly agreement: Agreement;

  constructor() {
    const events = new Events();
    events.listen((fact) => this.facts.push(fact));
    this.agreement = new Agreement({
      epoch: "e",
      replicas: () => 6,
      digests: {
        append: async (rows) => {
          this.batches.push(rows.length);
          await this.append(rows);
          this.rows.push(...rows);
        },
        read: () => expect.unreachable(),
        truncate: () => Promise.resolve(),
        close: () => Promise.resolve(),
      },
      events,
      wallMs: () => 1000,
      onMinority: (replica, position, name) => this.minorities.push(`${replica} at ${position} (${name})`),
      onTie: (position) => this.ties.push(position),
    });
  }

  /** An entry that somebody waits for; what he gets, and how often he is told. */
  entry(position: number, by: Rule, live: readonly string[] = ["a", "b", "c"]) {
    const told = {
      got: null as string | null,
      calls: 0,
      chosen: null as Chosen | GatewayError | null,
    };
    this.agreement.expect(position, entry(), by, policy, live);
    this.agreement.wait(position, (chosen) => {
      told.calls++;
      told.chosen = chosen;
      told.got =
        chosen instanceof GatewayError
          ? chosen.code
          : `${chosen.answer.status} ${chosen.answer.body.toString()} of ${chosen.replica}`;
    });
    return told;
  }
  answer(
    position: number,
    replica: string,
    by: Rule,
    [status, body = ""]: readonly [number, string?],
    options: { second?: boolean; version?: string; rules?: string } = {},
  ): string {
    const by_ = { replica, incarnation: `${replica}1`, backendVersion: options.version ?? "" };
    return this.agreement.answered(
      position,
      by_,
      by,
      options.rules ?? policy,
      reply(status, body),
      options.second !== true,
    );
  }
  get disagreements(): Fact[] {
    return this.facts.filter((it) => it.type === "disagreement");
  }
}

const reply = (status: number, body: string): Answer => ({
  status,
  headers: ["Date", new Date().toUTCString()],
  body: Buffer.from(body),
  trailers: [],
});

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe("respond: first", () => {
  it("the first good answer is the client's, at once and once", () => {
    const bench = new Bench();
    const told = bench.entry(1, first);
    expect(told.got).toBe(null);
    bench.answer(1, "b", first, [201, "made"]);
    expect(told.got).toBe("201 made of b");
    bench.answer(1, "a", first, [200, "other"]);
    bench.answer(1, "c", first, [201, "made"]);
    expect([told.got, told.calls, bench.agreement.open]).toEqual(["201 made of b", 1, 0]);
  });

  it.each([500, 503, 599, 429])("%i is passed over for a good answer that comes later", (status) => {
    const bench = new Bench();
    const told = bench.entry(1, first);
    bench.answer(1, "a", first, [status]);
    expect(told.got).toBe(null);
    bench.answer(1, "b", first, [404, "none"]);
    expect(told.got).toBe("404 none of b");
  });

  it.each([500, 429])("%i is passed on when a majority gave it, without waiting for the rest", (status) => {
    const bench = new Bench();
    const told = bench.entry(1, first);
    bench.answer(1, "a", first, [status, "no"]);
    bench.answer(1, "b", first, [status, "no"]);
    expect(told.got).toBe(`${status} no of a`);
  });

  it("bad answers that differ are passed on when nobody else is left", () => {
    const bench = new Bench();
    const told = bench.entry(1, first);
    bench.answer(1, "a", first, [500, "x"]);
    bench.answer(1, "b", first, [502, "y"]);
    expect(told.got).toBe(null);
    bench.agreement.left("c");
    expect(told.got).toBe("500 x of a");
  });

  it("executed everywhere and usable nowhere is GW_BACKEND_FAILED, executed", () => {
    const bench = new Bench();
    const told = bench.entry(7, first);
    for (const replica of ["a", "b", "c"]) bench.agreement.unusable(7, replica);
    expect(told.chosen).toMatchObject({
      code: "GW_BACKEND_FAILED",
      outcome: "executed",
      position: 7,
    });
    expect(bench.agreement.open).toBe(0);
  });
});

describe("respond: majority", () => {
  it("is more than half of the live set", () => {
    const bench = new Bench();
    const told = bench.entry(1, majority);
    bench.answer(1, "a", majority, [200, "x"]);
    expect(told.got).toBe(null);
    bench.answer(1, "b", majority, [200, "y"]);
    expect(told.got).toBe(null);
    bench.answer(1, "c", majority, [200, "y"]);
    expect(told.got).toBe("200 y of b");
    const four = bench.entry(2, majority, ["a", "b", "c", "d"]);
    for (const replica of ["a", "b"]) bench.answer(2, replica, majority, [200, "x"]);
    expect(four.got).toBe(null);
    bench.answer(2, "c", majority, [200, "x"]);
    expect(four.got).toBe("200 x of a");
  });

  it("is counted anew when one leaves", () => {
    const bench = new Bench();
    const told = bench.entry(1, majority);
    bench.answer(1, "a", majority, [200, "x"]);
    bench.agreement.left("b");
    expect(told.got).toBe(null);
    bench.agreement.left("c");
    expect(told.got).toBe("200 x of a");
  });

  it("without one it is GW_NO_AGREEMENT, executed, when all have answered", () => {
    const bench = new Bench();
    const told = bench.entry(1, majority);
    ["x", "y", "z"].forEach((body, at) => bench.answer(1, "abc"[at] as string, majority, [200, body]));
    expect(told.chosen).toMatchObject({
      code: "GW_NO_AGREEMENT",
      outcome: "executed",
      position: 1,
    });
    expect([bench.ties, bench.minorities]).toEqual([[1], []]);
  });

  it("one that cannot be used still counts among the voters", () => {
    const bench = new Bench();
    const told = bench.entry(1, majority);
    bench.agreement.unusable(1, "c");
    bench.answer(1, "a", majority, [200, "x"]);
    expect(told.got).toBe(null);
    bench.answer(1, "b", majority, [200, "x"]);
    expect(told.got).toBe("200 x of a");
  });

  it("a replica that left has no vote any more", () => {
    const bench = new Bench();
    const told = bench.entry(1, majority, ["a", "b", "c", "d"]);
    bench.answer(1, "a", majority, [200, "x"]);
    bench.agreement.left("a");
    bench.answer(1, "b", majority, [200, "x"]);
    expect(told.got).toBe(null);
    bench.answer(1, "c", majority, [200, "x"]);
    expect(told.got).toBe("200 x of b");
  });
});

describe("respond: all", () => {
  it("waits for everyone, and then the majority's is given", () => {
    const bench = new Bench();
    const told = bench.entry(1, all);
    bench.answer(1, "a", all, [200, "x"]);
    bench.answer(1, "b", all, [200, "y"]);
    expect(told.got).toBe(null);
    bench.answer(1, "c", all, [200, "y"]);
    expect(told.got).toBe("200 y of b");
  });

  it("everyone is the live set of the record, minus those who left since", () => {
    const bench = new Bench();
    const told = bench.entry(1, all);
    bench.answer(1, "a", all, [200, "x"]);
    bench.answer(1, "b", all, [200, "x"]);
    bench.agreement.left("z");
    expect(told.got).toBe(null);
    bench.agreement.left("c");
    expect(told.got).toBe("200 x of a");
  });
});

describe("a replica that is not live", () => {
  it.each([
    ["first", first],
    ["majority", majority],
    ["all", all],
  ] as const)("is not heard by respond: %s while the live set can answer", (_name, by) => {
    const bench = new Bench();
    const told = bench.entry(1, by, ["a"]);
    bench.answer(1, "d", by, [200, "of a state that nobody has compared"]);
    bench.answer(1, "e", by, [200, "of a state that nobody has compared"]);
    expect(told.got).toBe(null);
    bench.answer(1, "a", by, [200, "x"]);
    expect(told.got).toBe("200 x of a");
  });

  it("does not become one of the live set again by having been one", () => {
    const bench = new Bench();
    const told = bench.entry(1, first, ["a", "b"]);
    bench.agreement.left("b");
    bench.answer(1, "b", first, [200, "of a state that has to be compared first"]);
    expect(told.got).toBe(null);
    bench.answer(1, "a", first, [200, "x"]);
    expect(told.got).toBe("200 x of a");
  });

  it("is compared with the winner and cannot outvote it", () => {
    const bench = new Bench();
    bench.entry(1, majority, ["a", "b"]);
    bench.answer(1, "a", majority, [200, "x"]);
    for (const replica of ["d", "e", "f"]) bench.answer(1, replica, majority, [200, "y"]);
    bench.answer(1, "b", majority, [200, "x"]);
    expect(bench.minorities.sort()).toEqual(["d at 1 (r)", "e at 1 (r)", "f at 1 (r)"]);
  });
});

describe("with nobody live", () => {
  it("whoever comes back first answers", () => {
    const bench = new Bench();
    const told = bench.entry(1, first, []);
    expect([told.got, bench.agreement.open]).toEqual([null, 1]);
    bench.answer(1, "a", first, [200, "x"]);
    expect([told.got, bench.agreement.open]).toEqual(["200 x of a", 0]);
  });

  it("the last one leaving does not end the wait, and one that has nothing to say does not either", () => {
    const bench = new Bench();
    const told = bench.entry(1, majority, ["a"]);
    bench.agreement.left("a");
    bench.agreement.unusable(1, "a");
    expect([told.got, bench.agreement.open]).toEqual([null, 1]);
    bench.answer(1, "b", majority, [200, "x"]);
    expect(told.got).toBe("200 x of b");
  });
});

describe("second sends", () => {
  it("never enter agreement: they are no vote and nobody's minority", () => {
    const bench = new Bench();
    const told = bench.entry(1, majority);
    bench.answer(1, "a", majority, [200, "x"], { second: true });
    bench.answer(1, "b", majority, [200, "x"], { second: true });
    expect(told.got).toBe(null);
    bench.answer(1, "c", majority, [200, "y"]);
    expect([told.got, bench.minorities, bench.ties]).toEqual(["GW_NO_AGREEMENT", [], []]);
  });

  it("are passed on only where there is no first answer at all", () => {
    const bench = new Bench();
    const told = bench.entry(1, majority);
    for (const replica of ["a", "b"]) bench.answer(1, replica, majority, [409, "exists"], { second: true });
    bench.agreement.unusable(1, "c");
    expect(told.got).toBe("409 exists of a");
    const other = bench.entry(2, first);
    bench.answer(2, "a", first, [409, "exists"], { second: true });
    expect(other.got).toBe(null);
    bench.answer(2, "b", first, [201, "made"]);
    expect(other.got).toBe("201 made of b");
  });
});

describe("disagreement", () => {
  it("the minority is named, with what differs", () => {
    const bench = new Bench();
    bench.entry(1, majority);
    bench.answer(1, "a", majority, [200, "x"]);
    bench.answer(1, "b", majority, [201, "x"]);
    bench.answer(1, "c", majority, [200, "x"]);
    expect(bench.minorities).toEqual(["b at 1 (r)"]);
    expect(bench.disagreements).toEqual([
      { type: "disagreement", position: 1, rule: "r", minority: ["b"], decisive: true },
    ]);
    expect(bench.agreement.disagreements).toMatchObject([
      {
        position: 1,
        timeMs: 1000,
        rule: "r",
        method: "POST",
        target: "/orders",
        minority: ["b"],
        answers: [{ replica: "a", body: "x" }, { replica: "b", status: 201 }, { replica: "c" }],
        differences: [{ where: "status", left: "200", right: "201" }],
      },
    ]);
  });

  it("a tie names nobody", () => {
    const bench = new Bench();
    bench.entry(1, majority, ["a", "b"]);
    bench.answer(1, "a", majority, [200, "x"]);
    bench.answer(1, "b", majority, [200, "y"]);
    expect([bench.ties, bench.minorities]).toEqual([[1], []]);
    bench.entry(2, majority, ["a", "b", "c", "d", "e"]);
    ["x", "x", "y", "y", "z"].forEach((body, at) => bench.answer(2, "abcde"[at] as string, majority, [200, body]));
    expect([bench.ties, bench.minorities]).toEqual([[1, 2], []]);
  });

  it("the largest group is no majority and still names the others", () => {
    const bench = new Bench();
    bench.entry(1, majority, ["a", "b", "c", "d", "e"]);
    ["x", "x", "y", "z", "w"].forEach((body, at) => bench.answer(1, "abcde"[at] as string, majority, [200, body]));
    expect(bench.minorities).toEqual(["c at 1 (r)", "d at 1 (r)", "e at 1 (r)"]);
  });

  it("bodies that do not decide are reported and quarantine nobody", () => {
    const bench = new Bench();
    bench.entry(1, first);
    ["x", "y", "x"].forEach((body, at) => bench.answer(1, "abc"[at] as string, first, [200, body]));
    expect([bench.minorities, bench.ties]).toEqual([[], []]);
    expect(bench.disagreements).toMatchObject([{ minority: ["b"], decisive: false }]);
  });

  it("equal answers are no event, whatever their Date", () => {
    const bench = new Bench();
    bench.entry(1, majority);
    for (const replica of ["a", "b", "c"]) {
      vi.advanceTimersByTime(5000);
      bench.answer(1, replica, majority, [200, "x"]);
    }
    expect([bench.disagreements, bench.agreement.disagreements]).toEqual([[], []]);
  });

  it("another version of the backend is not a minority", () => {
    const bench = new Bench();
    bench.entry(1, majority);
    bench.answer(1, "a", majority, [200, "x"], { version: "1" });
    bench.answer(1, "b", majority, [200, "x"], { version: "1" });
    bench.answer(1, "c", majority, [200, "y"], { version: "2" });
    expect(bench.minorities).toEqual([]);
  });

  it("versions are compared each within itself: a rolling upgrade is no disagreement and no tie", () => {
    const bench = new Bench();
    bench.entry(1, majority, ["a", "b"]);
    bench.answer(1, "a", majority, [200, "x"], { version: "1" });
    bench.answer(1, "b", majority, [200, "y"], { version: "2" });
    expect([bench.minorities, bench.ties, bench.disagreements]).toEqual([[], [], []]);
    bench.entry(2, majority, ["a", "b", "c", "d", "e"]);
    for (const replica of ["a", "b"]) bench.answer(2, replica, majority, [200, "x"], { version: "1" });
    for (const replica of ["c", "d"]) bench.answer(2, replica, majority, [200, "y"], { version: "2" });
    bench.answer(2, "e", majority, [200, "x"], { version: "2" });
    expect([bench.minorities, bench.ties]).toEqual([["e at 2 (r)"], []]);
  });

  it("only so many are kept", () => {
    const bench = new Bench();
    for (let position = 1; position <= 1010; position++) {
      bench.entry(position, majority, ["a", "b"]);
      bench.answer(position, "a", majority, [200, "x"]);
      bench.answer(position, "b", majority, [200, "y"]);
    }
    expect(bench.agreement.disagreements).toHaveLength(1000);
    expect(bench.agreement.disagreements[0]?.position).toBe(11);
  });
});

const late = (options: object): string[] => {
  const bench = new Bench();
  bench.entry(1, majority, ["a"]);
  bench.answer(1, "a", majority, [200, "x"]);
  bench.answer(1, "b", majority, [200, "y"], options);
  expect(bench.disagreements).toHaveLength(bench.minorities.length);
  return bench.minorities;
};

describe("late answers", () => {
  it("are compared with what won", () => {
    expect(late({})).toEqual(["b at 1 (r)"]);
    const bench = new Bench();
    bench.entry(1, majority, ["a"]);
    bench.answer(1, "a", majority, [200, "x"]);
    bench.answer(1, "b", majority, [200, "x"]);
    expect(bench.minorities).toEqual([]);
  });

  it("are not compared under other rules, of another version, or of a second send", () => {
    expect([late({ rules: id32(2) }), late({ version: "2" }), late({ second: true })]).toEqual([[], [], []]);
  });

  it("are not compared with a tie, or with an entry nobody knows", () => {
    const bench = new Bench();
    bench.entry(1, majority, ["a", "b"]);
    bench.answer(1, "a", majority, [200, "x"]);
    bench.answer(1, "b", majority, [200, "y"]);
    bench.answer(1, "c", majority, [200, "z"]);
    bench.answer(99, "c", majority, [200, "z"]);
    expect(bench.minorities).toEqual([]);
  });
});

describe("the end of a wait", () => {
  it("a parked entry is GW_PARKED, not executed, and is forgotten", () => {
    const bench = new Bench();
    const told = bench.entry(1, first);
    bench.agreement.parked(1, "it ended 2 replicas");
    expect(told.chosen).toMatchObject({
      code: "GW_PARKED",
      outcome: "not-executed",
      message: "it ended 2 replicas",
      position: 1,
    });
    bench.agreement.parked(1, "again");
    expect([told.calls, bench.agreement.open]).toEqual([1, 0]);
  });

  it("who has forgotten is not told, and the answers are still compared", () => {
    const bench = new Bench();
    const told = bench.entry(1, majority);
    bench.agreement.forget(1);
    ["x", "x", "y"].forEach((body, at) => bench.answer(1, "abc"[at] as string, majority, [200, body]));
    expect([told.calls, bench.minorities, bench.agreement.open]).toEqual([0, ["c at 1 (r)"], 0]);
  });

  it("an entry that nobody expects any more has lost its answer", () => {
    const bench = new Bench();
    let got: unknown = null;
    bench.agreement.wait(5, (chosen) => (got = chosen));
    expect(got).toMatchObject({ code: "GW_ANSWER_LOST", outcome: "executed", position: 5 });
  });

  it("isWaiting is true until the first answer", () => {
    const bench = new Bench();
    expect(bench.agreement.isWaiting(1)).toBe(false);
    bench.entry(1, majority);
    expect(bench.agreement.isWaiting(1)).toBe(true);
    bench.answer(1, "a", majority, [200, "x"]);
    expect(bench.agreement.isWaiting(1)).toBe(false);
  });

  it("closing answers everyone with unknown, and saves what was not saved", async () => {
    const bench = new Bench();
    const told = bench.entry(1, majority);
    bench.answer(1, "a", majority, [200, "x"]);
    await bench.agreement.close();
    expect(told.chosen).toMatchObject({ code: "GW_STOPPING", outcome: "unknown", position: 1 });
    expect(bench.rows).toHaveLength(1);
  });
});

describe("digests", () => {
  it("every answer is a row, late, second and unexpected ones too", async () => {
    const bench = new Bench();
    bench.entry(1, majority, ["a"]);
    const digest = bench.answer(1, "a", majority, [200, "x"], { version: "7" });
    expect(bench.answer(1, "b", majority, [200, "x"], { second: true })).toBe(digest);
    expect(bench.answer(1, "c", majority, [200, "z"])).not.toBe(digest);
    bench.answer(2, "c", majority, [200, "x"]);
    await vi.advanceTimersByTimeAsync(200);
    expect(bench.rows).toMatchObject([
      {
        epoch: "e",
        position: 1,
        replica: "a",
        incarnation: "a1",
        backendVersion: "7",
        rules: policy,
        digest,
        isFirstSend: true,
      },
      { position: 1, replica: "b", digest, isFirstSend: false },
      { position: 1, replica: "c", isFirstSend: true },
      { position: 2, replica: "c", digest },
    ]);
    expect(bench.batches).toEqual([4]);
  });

  it("are written after 50 ms, or when 4,096 have come together", async () => {
    const bench = new Bench();
    for (let position = 0; position < 4096 + 3; position++) bench.answer(position, "a", first, [200]);
    await vi.advanceTimersByTimeAsync(0);
    expect(bench.batches).toEqual([4096]);
    await vi.advanceTimersByTimeAsync(49);
    expect(bench.batches).toEqual([4096]);
    await vi.advanceTimersByTimeAsync(1);
    expect(bench.batches).toEqual([4096, 3]);
  });

  it("that cannot be written are a warning, and the next are written all the same", async () => {
    const bench = new Bench();
    bench.append = () => Promise.reject(new Error("no space"));
    bench.answer(1, "a", first, [200]);
    await vi.advanceTimersByTimeAsync(200);
    expect(bench.facts).toMatchObject([{ type: "warning", about: "answer digests" }]);
    bench.append = () => Promise.resolve();
    bench.answer(2, "a", first, [200]);
    await vi.advanceTimersByTimeAsync(200);
    expect(bench.rows.map((it) => it.position)).toEqual([2]);
  });
});

describe("memory", () => {
  const mebibyte = Buffer.alloc(1024 * 1024, 0x78);
  /** How many answers are still there whole, found by what a disagreement can show. */
  function fill(bench: Bench, count: number, options: { waits: boolean }): number {
    for (let position = 1; position <= count; position++) {
      if (options.waits) bench.entry(position, majority, ["a", "slow"]);
      else bench.agreement.expect(position, entry(), majority, policy, ["a", "slow"]);
      if (options.waits) bench.agreement.forget(position);
      bench.agreement.answered(
        position,
        { replica: "a", incarnation: "", backendVersion: "" },
        majority,
        policy,
        { status: 200, headers: [], body: Buffer.from(mebibyte), trailers: [] },
        true,
      );
    }
    for (let position = 1; position <= count; position++) bench.answer(position, "slow", majority, [200, "other"]);
    return bench.agreement.disagreements.filter((it) => it.answers[0]?.body !== "").length;
  }

  it("bodies of answered entries are let go above 64 MiB, oldest first, and are still compared", () => {
    const bench = new Bench();
    for (let position = 1; position <= 100; position++) {
      bench.entry(position, first, ["a", "slow"]);
      bench.agreement.answered(
        position,
        { replica: "a", incarnation: "", backendVersion: "" },
        first,
        policy,
        { status: 200, headers: [], body: Buffer.from(mebibyte), trailers: [] },
        true,
      );
    }
    for (let position = 1; position <= 100; position++) bench.answer(position, "slow", first, [500, "other"]);
    const shown = bench.agreement.disagreements.map((it) => it.answers[0]?.body !== "");
    expect(shown).toHaveLength(100);
    expect(shown.filter(Boolean).length).toBeLessThanOrEqual(64);
    expect(shown.filter(Boolean).length).toBeGreaterThanOrEqual(32);
    expect(shown.indexOf(true)).toBe(shown.length - shown.filter(Boolean).length);
  });

  it("so are those that nobody waits for: a client that left, an entry of another gateway", () => {
    for (const waits of [true, false]) {
      const kept = fill(new Bench(), 100, { waits });
      expect(kept).toBeLessThanOrEqual(64);
      expect(kept).toBeGreaterThanOrEqual(32);
    }
  });

  it("a parked entry gives its share back", () => {
    const bench = new Bench();
    for (let position = 1; position <= 200; position++) {
      bench.entry(position, first, ["a", "slow"]);
      bench.agreement.answered(
        position,
        { replica: "a", incarnation: "", backendVersion: "" },
        first,
        policy,
        { status: 200, headers: [], body: Buffer.from(mebibyte), trailers: [] },
        true,
      );
      bench.agreement.parked(position, "poison");
    }
    bench.entry(1000, first, ["a", "slow"]);
    bench.answer(1000, "a", first, [200, "kept"]);
    bench.entry(1001, first, ["a", "slow"]);
    bench.answer(1001, "a", first, [200, "kept"]);
    bench.answer(1000, "slow", first, [500, "other"]);
    expect(bench.agreement.disagreements.at(-1)?.answers[0]?.body).toBe("kept");
  });

  it("an answer that the client still waits for is never let go", () => {
    const bench = new Bench();
    const told = bench.entry(1, all, ["a", "slow"]);
    bench.answer(1, "a", all, [200, "wanted"]);
    fill(bench, 0, { waits: true });
    for (let position = 2; position <= 100; position++) {
      bench.entry(position, first, ["a", "slow"]);
      bench.agreement.answered(
        position,
        { replica: "a", incarnation: "", backendVersion: "" },
        first,
        policy,
        { status: 200, headers: [], body: Buffer.from(mebibyte), trailers: [] },
        true,
      );
    }
    bench.answer(1, "slow", all, [200, "wanted"]);
    expect(told.got).toBe("200 wanted of a");
  });
});
