// What is done about unknown outcomes: whatever really happened, the replica ends as if everything had run once, in log order.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { doConflict } from "../../gateway/scheduler.ts";
import { settle } from "../../gateway/settlement.ts";
import { carryOutUndos } from "../../gateway/undo.ts";
import type { Evidence, Plan, Unsettled } from "../../gateway/settlement.ts";
import type { Rule } from "../../rules/rule.ts";
import { entry } from "../fixtures/records/samples.ts";

interface Facts {
  readonly method?: string;
  readonly order?: readonly string[];
  readonly headers?: readonly string[];
  readonly retry?: Rule["retry"];
  readonly unknown?: Rule["unknown"];
}

/** An entry of unknown outcome: a PUT of total order unless told otherwise. */
function unsettled(
  position: number,
  { method = "PUT", order = [], headers = [], retry = "auto", unknown = "hold" }: Facts = {},
): Unsettled {
  const rule = { name: "r", safe: null, retry, unknown } as unknown as Rule;
  return {
    position,
    rule,
    entry: entry({ method, orderKeys: order, headers: ["Host", "shop", ...headers] }),
  };
}

const evidence = (over: Partial<Evidence> = {}): Evidence => ({
  answered: new Set(),
  probe: () => Promise.resolve(null),
  isExact: true,
  saved: new Set(),
  done: [],
  ...over,
});
const probing =
  (found: Readonly<Record<number, boolean>>, asked: number[] = []): Evidence["probe"] =>
  (it) => {
    asked.push(it.position);
    return Promise.resolve(found[it.position] ?? null);
  };
const plans = async (range: readonly Unsettled[], over: Partial<Evidence> = {}): Promise<Record<number, string>> =>
  Object.fromEntries(
    [...(await settle(range, evidence(over)))].sort(([a], [b]) => a - b).map(([at, plan]) => [at, shown(plan)]),
  );
const shown = (plan: Plan): string => (plan.do === "done" ? `done by ${plan.by}` : plan.do);

const post = { method: "POST" } as const;

describe("one entry, exactly known to be in flight", () => {
  it.each([
    ["PUT is sent again", {}, "send-again"],
    ["DELETE is sent again", { method: "DELETE" }, "send-again"],
    ["POST is held", { method: "POST" }, "hold"],
    ["PATCH is held", { method: "PATCH" }, "hold"],
    ["POST with retry: safe is sent again", { method: "POST", retry: "safe" }, "send-again"],
    ["PUT with retry: never is held", { retry: "never" }, "hold"],
    [
      "POST with unknown: assume-applied counts as done",
      { method: "POST", unknown: "assume-applied" },
      "done by assumption",
    ],
    ["PUT with unknown: assume-applied is rather sent again", { unknown: "assume-applied" }, "send-again"],
    [
      "a conditional PUT is sent again: alone it can only fail or repeat itself",
      { headers: ["If-Match", '"1"'] },
      "send-again",
    ],
  ] as const)("%s", async (_name, facts, plan) => {
    expect(await plans([unsettled(1, facts as Facts)])).toEqual({ 1: plan });
  });

  it("a published answer settles it, and it is not asked for", async () => {
    const asked: number[] = [];
    expect(
      await plans([unsettled(1, post)], {
        answered: new Set([1]),
        probe: probing({ 1: false }, asked),
      }),
    ).toEqual({
      1: "done by digest",
    });
    expect(asked).toEqual([]);
  });

  it("a probe settles it either way, repeatable or not; one that cannot be asked does not", async () => {
    for (const facts of [post, {}]) {
      expect(await plans([unsettled(1, facts)], { probe: probing({ 1: true }) })).toEqual({
        1: "done by probe",
      });
      expect(await plans([unsettled(1, facts)], { probe: probing({ 1: false }) })).toEqual({
        1: "send",
      });
    }
    expect(await plans([unsettled(1, post)], { probe: probing({}) })).toEqual({ 1: "hold" });
  });

  it("what was saved before it is put back, where nothing better is known", async () => {
    const saved = new Set([1]);
    expect(await plans([unsettled(1, post)], { saved })).toEqual({ 1: "undo" });
    expect(await plans([unsettled(1, { ...post, unknown: "assume-applied" })], { saved })).toEqual({ 1: "undo" });
    expect(await plans([unsettled(1, {})], { saved })).toEqual({ 1: "send-again" });
    expect(await plans([unsettled(1, { retry: "never" })], { saved })).toEqual({ 1: "undo" });
    expect(await plans([unsettled(1, post)], { saved, answered: new Set([1]) })).toEqual({ 1: "done by digest" });
    expect(await plans([unsettled(1, post)], { saved, probe: probing({ 1: false }) })).toEqual({ 1: "send" });
    expect(await plans([unsettled(1, post)], { saved: new Set([2]) })).toEqual({ 1: "hold" });
  });

  it("there may be nothing to settle", async () => {
    expect(await plans([])).toEqual({});
  });
});

describe("exact notes", () => {
  it("a later one of the same key that was sent proves the earlier done, in flight or done itself", async () => {
    const range = [
      unsettled(1, { ...post, order: ["a"] }),
      unsettled(2, { ...post, order: ["b"] }),
      unsettled(3, { ...post, order: ["a"] }),
    ];
    expect(await plans(range)).toEqual({ 1: "done by later-entry", 2: "hold", 3: "hold" });
    expect(await plans(range, { done: [{ position: 9, orderKeys: ["b", "c"] }] })).toEqual({
      1: "done by later-entry",
      2: "done by later-entry",
      3: "hold",
    });
    // A barrier conflicts with everything.
    expect(await plans(range, { done: [{ position: 9, orderKeys: [] }] })).toEqual({
      1: "done by later-entry",
      2: "done by later-entry",
      3: "done by later-entry",
    });
  });

  it("an earlier one that is done proves nothing", async () => {
    expect(
      await plans([unsettled(5, { ...post, order: ["a"] })], {
        done: [{ position: 4, orderKeys: ["a"] }],
      }),
    ).toEqual({ 5: "hold" });
  });

  it("what is not repeatable beside it does not keep a repeatable one from being sent again", async () => {
    expect(await plans([unsettled(1, { ...post, order: ["a"] }), unsettled(2, { order: ["b"] })])).toEqual({
      1: "hold",
      2: "send-again",
    });
  });
});

const plan = (it: Unsettled, what: Plan): [number, Plan] => [it.position, what];

describe("putting back", () => {
  const [a, b] = [unsettled(1, { ...post, order: ["a"] }), unsettled(2, { ...post, order: ["b"] })];

  it("is of each order key by itself: what was saved for one helps no other", async () => {
    expect(await plans([a, b], { saved: new Set([1]) })).toEqual({ 1: "undo", 2: "hold" });
    expect(await plans([a, b], { saved: new Set([1, 2]) })).toEqual({ 1: "undo", 2: "undo" });
  });

  it("is not done where anything may have been sent: what was saved is then another owner's", async () => {
    expect(await plans([a, b], { isExact: false, saved: new Set([1, 2]) })).toEqual({ 1: "hold", 2: "hold" });
  });

  it("goes from the newest to the oldest", async () => {
    const undo = { do: "undo" } as const;
    const order: number[] = [];
    const put = (it: Unsettled): Promise<boolean> => Promise.resolve(order.push(it.position) > 0);
    const found = new Map([plan(a, undo), plan(b, undo)]);
    expect(await carryOutUndos([a, b], found, put)).toEqual(found);
    expect(order).toEqual([2, 1]);
  });

  it("holds what cannot be put back, and what it conflicts with before it", async () => {
    const undo = { do: "undo" } as const;
    const [x, y] = [unsettled(3, { ...post, order: ["a", "b"] }), unsettled(4, { ...post, order: ["c"] })];
    const asked: number[] = [];
    const found = new Map([plan(a, undo), plan(b, { do: "send" }), plan(x, undo), plan(y, undo)]);
    const carriedOut = await carryOutUndos([a, b, x, y], found, (it) => {
      asked.push(it.position);
      return Promise.resolve(it.position !== 3);
    });
    expect([...carriedOut].map(([at, { do: what }]) => `${at} ${what}`)).toEqual([
      "1 hold",
      "2 send",
      "3 hold",
      "4 undo",
    ]);
    expect(asked).toEqual([4, 3]);
  });
});

const put = (position: number, order: string) => unsettled(position, { order: [order] });

const around = (middle: Facts) => [put(1, "a"), put(2, "b"), unsettled(3, { order: ["a"], ...middle }), put(4, "a")];

describe("a range of which anything may have been sent", () => {
  const total = [unsettled(1, post), unsettled(2, post), unsettled(3, post), unsettled(4, post)];

  it("is asked newest first, and one found done settles every earlier one it conflicts with", async () => {
    const asked: number[] = [];
    const found = await plans(total, {
      isExact: false,
      probe: probing({ 4: false, 3: true, 2: false }, asked),
    });
    expect(found).toEqual({
      1: "done by later-entry",
      2: "done by later-entry",
      3: "done by probe",
      4: "send",
    });
    expect(asked).toEqual([4, 3]);
  });

  it("a published answer settles the earlier ones, over any number of steps and of their keys only", async () => {
    const range = [
      unsettled(1, { ...post, order: ["a"] }),
      unsettled(2, { ...post, order: ["b"] }),
      unsettled(3, { ...post, order: ["a", "c"] }),
      unsettled(4, { ...post, order: ["c"] }),
    ];
    expect(await plans(range, { isExact: false, answered: new Set([3]) })).toEqual({
      1: "done by later-entry",
      2: "hold",
      3: "done by digest",
      4: "hold",
    });
  });

  it("entries noted as done prove nothing there: nobody knows the notes", async () => {
    expect(
      await plans([unsettled(1, { ...post, order: ["a"] })], {
        isExact: false,
        done: [{ position: 2, orderKeys: ["a"] }],
      }),
    ).toEqual({ 1: "hold" });
  });

  it("a run of repeatable entries is sent again as a whole", async () => {
    expect(
      await plans([unsettled(1), unsettled(2, { method: "DELETE" }), unsettled(3)], {
        isExact: false,
      }),
    ).toEqual({
      1: "send-again",
      2: "send-again",
      3: "send-again",
    });
  });

  it("one that is not repeatable, or is conditional, keeps all it conflicts with from being sent again", async () => {
    expect(await plans(around(post), { isExact: false })).toEqual({
      1: "hold",
      2: "send-again",
      3: "hold",
      4: "hold",
    });
    for (const name of ["If-Match", "if-none-match", "IF-UNMODIFIED-SINCE"])
      expect(await plans(around({ headers: [name, "x"] }), { isExact: false })).toEqual({
        1: "hold",
        2: "send-again",
        3: "hold",
        4: "hold",
      });
    // Only a field's name makes it conditional.
    expect(await plans(around({ headers: ["X-Note", "if-match"] }), { isExact: false })).toMatchObject({
      1: "send-again",
    });
  });

  it("an earlier one that is known to be done is in nobody's way", async () => {
    const range = [unsettled(1, post), unsettled(2), unsettled(3)];
    expect(await plans(range, { isExact: false, answered: new Set([1]) })).toEqual({
      1: "done by digest",
      2: "send-again",
      3: "send-again",
    });
  });

  it("one is not sent again when another between it and what is held cannot be", async () => {
    const range = [
      unsettled(1, { order: ["a"] }),
      unsettled(2, { order: ["a", "b"] }),
      unsettled(3, { ...post, order: ["b"] }),
    ];
    expect(await plans(range, { isExact: false })).toEqual({ 1: "hold", 2: "hold", 3: "hold" });
  });

  it("one that certainly did not run shows that nothing behind it did", async () => {
    expect(
      await plans([unsettled(1, post), unsettled(2, post)], {
        isExact: false,
        probe: probing({ 1: false }),
      }),
    ).toEqual({ 1: "send", 2: "send" });
  });
});

// ---- the property ------------------------------------------------------------------------------------------------------------------

interface Random {
  readonly kind: "put" | "post" | "conditional";
  readonly order: readonly string[];
  readonly value: number;
  readonly if: number;
  readonly hasProbe: boolean;
  readonly isSaved: boolean;
  readonly fate: number;
}

const keys = ["x", "y", "z"];
const random: fc.Arbitrary<Random> = fc.record({
  kind: fc.constantFrom("put" as const, "put" as const, "post" as const, "conditional" as const),
  order: fc.oneof(
    { weight: 5, arbitrary: fc.subarray(keys, { minLength: 1, maxLength: 2 }) },
    { weight: 1, arbitrary: fc.constant<string[]>([]) },
  ),
  value: fc.nat(2),
  if: fc.nat(2),
  hasProbe: fc.boolean(),
  isSaved: fc.boolean(),
  fate: fc.nat(7),
});

/** A backend with one register a key: PUT sets, POST appends, a conditional PUT sets if the first of its registers is as it says. */
class Registers {
  readonly #values = new Map<string, string>();
  run(it: Random): void {
    const order = it.order.length === 0 ? keys : it.order;
    const first = this.#values.get(order[0] as string) ?? "0";
    if (it.kind === "conditional" && first !== String(it.if)) return;
    for (const key of order)
      this.#values.set(key, it.kind === "post" ? `${this.#values.get(key) ?? "0"}+${it.value}` : String(it.value));
  }
  save({ order }: Random): ReadonlyMap<string, string> {
    return new Map((order.length === 0 ? keys : order).map((key) => [key, this.#values.get(key) ?? "0"]));
  }
  putBack(saved: ReadonlyMap<string, string>): void {
    for (const [key, value] of saved) this.#values.set(key, value);
  }
  get shown(): string {
    return keys.map((key) => this.#values.get(key) ?? "0").join(" ");
  }
}

/** How far a replica got: sent only when everything before it that conflicts was answered. */
function crashed(list: readonly Random[]) {
  const answered = new Set<number>();
  const executed = new Set<number>();
  const sent = new Set<number>();
  const noted = new Set<number>();
  list.forEach((it, at) => {
    const mayRun = list.every(
      (other, before) => before >= at || answered.has(before) || !doConflict(other.order, it.order),
    );
    if (!mayRun || it.fate === 0) return;
    sent.add(at);
    if (it.fate >= 2) executed.add(at);
    if (it.fate >= 3) answered.add(at);
    if (it.fate >= 5) noted.add(at);
  });
  return { answered, executed, sent, noted };
}

const check = (isExact: boolean) =>
  fc.asyncProperty(fc.array(random, { maxLength: 7 }), fc.nat(3), async (list, published) => {
    const truth = crashed(list);
    const backend = new Registers();
    const wanted = new Registers();
    const saved = new Map<number, ReadonlyMap<string, string>>();
    list.forEach((it, at) => {
      wanted.run(it);
      if (truth.sent.has(at) && it.isSaved) saved.set(at, backend.save(it));
      if (truth.executed.has(at)) backend.run(it);
    });
    const all = list.map((it, at) =>
      unsettled(at, {
        method: it.kind === "post" ? "POST" : "PUT",
        order: it.order,
        headers: it.kind === "conditional" ? ["If-Match", `"${it.if}"`] : [],
      }),
    );
    const found = await settle(
      isExact ? all.filter((_, at) => truth.sent.has(at) && !truth.noted.has(at)) : all,
      evidence({
        isExact,
        answered: new Set([...truth.answered].filter((at) => at % 4 === published)),
        probe: (it) => Promise.resolve(list[it.position]?.hasProbe === true ? truth.executed.has(it.position) : null),
        saved: new Set(saved.keys()),
        done: [...truth.noted].map((position) => ({
          position,
          orderKeys: list[position]?.order ?? [],
        })),
      }),
    );
    for (const [at, plan] of [...found].sort(([one], [other]) => other - one))
      if (plan.do === "undo") backend.putBack(saved.get(at) ?? new Map());
    // Then everything in log order, as it was decided; what is held is settled by a person who knows.
    list.forEach((it, at) => {
      const plan = found.get(at)?.do ?? (truth.noted.has(at) ? "done" : "send");
      if (plan === "done" || (plan === "hold" && truth.executed.has(at))) return;
      backend.run(it);
    });
    expect(backend.shown).toBe(wanted.shown);
    // Certain is certain.
    for (const [at, plan] of found) {
      if (plan.do === "done") expect(truth.executed.has(at), `${at} did not run`).toBe(true);
      if (plan.do === "send") expect(truth.executed.has(at), `${at} did run`).toBe(false);
      if (list[at]?.kind === "post") expect(plan.do).not.toBe("send-again");
      if (plan.do === "undo") expect(isExact).toBe(true);
    }
  });

describe("whatever really happened", () => {
  it("with exact notes the replica ends in the state of the log's order", async () => {
    await fc.assert(check(true), { numRuns: 2000 });
  });

  it("without notes the replica ends in the state of the log's order", async () => {
    await fc.assert(check(false), { numRuns: 3000 });
  });
});

describe("what one answer proves, over several entries", () => {
  const order = { put: ["r:1"], add: ["c:1"] };

  it("what came before an entry that a later one proves done is done as well", async () => {
    // A barrier between them: the last one was sent after its answer, and it after the first one's.
    const range = [unsettled(1, { order: order.put }), unsettled(2, post), unsettled(3, { ...post, order: order.add })];
    expect(await plans(range, { isExact: false, probe: probing({ 3: true }) })).toEqual({
      1: "done by later-entry",
      2: "done by later-entry",
      3: "done by probe",
    });
  });

  it("what waited for an entry that waited for one that did not run did not run either", async () => {
    const range = [
      unsettled(1, { ...post, order: order.add }),
      unsettled(2, post),
      unsettled(3, { ...post, order: order.put }),
    ];
    expect(await plans(range, { isExact: false, probe: probing({ 1: false }) })).toEqual({
      1: "send",
      2: "send",
      3: "send",
    });
  });
});
