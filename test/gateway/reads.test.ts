// Which copy answers a read, and not before it has seen what the read may rely on.
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Appender } from "../../gateway/appender.ts";
import type { Replica } from "../../gateway/replica.ts";
import { endOf } from "../../gateway/entry.ts";
import { GatewayError } from "../../gateway/errors.ts";
import type { ReplicaState } from "../../gateway/events.ts";
import type { Log } from "../../gateway/log/log.ts";
import type { LogReader } from "../../gateway/reader.ts";
import { Reads } from "../../gateway/reads.ts";
import type { Need } from "../../gateway/reads.ts";
import type { Replicas } from "../../gateway/replicas.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

/** A replica that is where the test says. */
class Copy {
  readonly name: string;
  state: ReplicaState = "live";
  applied = 0;
  /** Requests it is answering. */
  reading = 0;
  /** Order keys of which everything is applied, whatever `applied` says. */
  readonly keysApplied = new Set<string>();
  #waiters: { readonly check: () => boolean; readonly resolve: (isThere: boolean) => void }[] = [];

  constructor(name: string, applied = 0) {
    this.name = name;
    this.applied = applied;
  }
  isOwn = true;
  /** Of one that another gateway feeds: whether that one has let us read from it. */
  isGranted = true;
  isSure(): boolean {
    return this.state === "live" && this.isGranted;
  }
  whenSure(): Promise<boolean> {
    return Promise.resolve(this.isSure());
  }
  hasApplied(position: number, orderKeys: readonly string[]): boolean {
    return this.applied >= position || (orderKeys.length > 0 && orderKeys.every((key) => this.keysApplied.has(key)));
  }
  whenApplied(position: number, orderKeys: readonly string[]): Promise<boolean> {
    return new Promise((resolve) => {
      this.#waiters.push({ check: () => this.hasApplied(position, orderKeys), resolve });
      this.tell();
    });
  }
  tell(): void {
    for (const { check, resolve } of this.#waiters) if (check()) resolve(true);
    this.#waiters = this.#waiters.filter(({ check }) => !check());
  }
  reach(position: number): void {
    this.applied = position;
    this.tell();
  }
  leave(state: ReplicaState): void {
    this.state = state;
    for (const { resolve } of this.#waiters.splice(0)) resolve(false);
  }
}

interface LookUp {
  readonly answer: (sequence: number) => void;
  readonly fail: (error: Error) => void;
}

function bench(copies: readonly Copy[], options: { kind?: Log["kind"]; isTailExact?: boolean } = {}) {
  const tails: LookUp[] = [];
  const barriers: LookUp[] = [];
  const asked = (list: LookUp[]) => (): Promise<number> => new Promise((answer, fail) => list.push({ answer, fail }));
  const reader = { failure: null as GatewayError | null };
  const reads = new Reads({
    log: {
      kind: options.kind ?? "nats",
      isTailExact: options.isTailExact ?? true,
      tail: asked(tails),
    } as unknown as Log,
    reader: reader as LogReader,
    appender: { barrier: asked(barriers) } as unknown as Appender,
    replicas: {
      all: copies,
      liveReplicas: () => copies.filter((it) => it.state === "live"),
    } as unknown as Replicas,
    clock: {
      now: () => Date.now(),
      wallMs: () => Date.now(),
      sleep: (ms) => new Promise((resolve) => void setTimeout(resolve, ms)),
    },
    queueWaitMs: 1000,
  });
  return {
    tails,
    barriers,
    reader,
    /** The name of the chosen copy, or the code of the error; null while it waits. */
    read: (
      need: Need = { kind: "linearizable" },
      over: { keys?: readonly string[]; affinity?: string; except?: readonly string[] } = {},
    ) => {
      const told: { got: string | null; error: unknown } = { got: null, error: null };
      reads.choose(need, over.keys ?? [], over.affinity ?? null, new Set(over.except)).then(
        (it: Replica) => (told.got = it.name),
        (error: unknown) => {
          told.error = error;
          told.got = error instanceof GatewayError ? error.code : String(error);
        },
      );
      return told;
    },
    turn: (ms = 0) => vi.advanceTimersByTimeAsync(ms),
  };
}

describe("the read index", () => {
  it("is the tail, looked up after the read arrived: one look-up for all that wait", async () => {
    const { read, turn, tails } = bench([new Copy("a", endOf(10))]);
    const first = [read(), read()];
    await turn();
    expect(tails).toHaveLength(1);
    // Under way: it began too early for these.
    const second = [read(), read(), read()];
    await turn();
    expect(tails).toHaveLength(1);
    tails[0]?.answer(10);
    await turn();
    expect(first.map((it) => it.got)).toEqual(["a", "a"]);
    expect(second.map((it) => it.got)).toEqual([null, null, null]);
    expect(tails).toHaveLength(2);
    const third = read();
    await turn();
    tails[1]?.answer(10);
    await turn();
    expect(second.map((it) => it.got)).toEqual(["a", "a", "a"]);
    expect([third.got, tails.length]).toEqual([null, 3]);
    tails[2]?.answer(10);
    await turn();
    expect(third.got).toBe("a");
  });

  it("with nothing under way a look-up begins at once", async () => {
    const { read, turn, tails } = bench([new Copy("a", endOf(1))]);
    for (const at of [0, 1]) {
      const told = read();
      await turn();
      tails[at]?.answer(1);
      await turn();
      expect(told.got).toBe("a");
    }
    expect(tails).toHaveLength(2);
  });

  it("a look-up that failed fails its reads and nobody else's", async () => {
    const { read, turn, tails } = bench([new Copy("a", endOf(1))]);
    const first = read();
    await turn();
    const second = read();
    await turn();
    tails[0]?.fail(new GatewayError("GW_LOG_UNAVAILABLE", "away"));
    await turn();
    expect([first.got, second.got, tails.length]).toEqual(["GW_LOG_UNAVAILABLE", null, 2]);
    tails[1]?.answer(1);
    await turn();
    expect(second.got).toBe("a");
  });

  it("where the tail may be stale it is the place of a record that was begun after the read", async () => {
    const { read, turn, tails, barriers } = bench([new Copy("a", endOf(4)), new Copy("b", endOf(5))], {
      isTailExact: false,
    });
    const told = read();
    await turn();
    expect([tails.length, barriers.length, told.got]).toEqual([0, 1, null]);
    barriers[0]?.answer(5);
    await turn();
    expect(told.got).toBe("b");
  });

  it("in the embedded log it is the tail, at once", async () => {
    const { read, turn, tails } = bench([new Copy("a", endOf(3)), new Copy("b", endOf(2))], {
      kind: "embedded",
    });
    const told = [read(), read()];
    await turn();
    for (const it of tails) it.answer(3);
    await turn();
    expect(told.map((it) => it.got)).toEqual(["a", "a"]);
  });

  it("a log that cannot be trusted is read no more; reads of any consistency still are", async () => {
    const { read, turn, reader, tails } = bench([new Copy("a")]);
    reader.failure = new GatewayError("GW_LOG_REGRESSED", "rolled back");
    const told = [read(), read({ kind: "any" })];
    await turn();
    expect([told[0]?.got, told[1]?.got, tails.length]).toEqual(["GW_LOG_REGRESSED", "a", 0]);
  });

  it.each([true, false])(
    "a log that is away holds a read for queueWait and no longer (exact tail: %s)",
    async (isTailExact) => {
      const { read, turn, tails, barriers } = bench([new Copy("a")], { isTailExact });
      const first = read();
      for (let left = 5; left > 0; left--) {
        await turn(150);
        read();
      }
      await turn(249);
      expect(first.got).toBe(null);
      await turn(1);
      expect(first.got).toBe("GW_LOG_UNAVAILABLE");
      // And it is not asked for every read: who waits shares.
      expect(tails.length + barriers.length).toBe(1);
    },
  );
});

const at = (position: number): Need => ({ kind: "position", position });

describe("the copy", () => {
  it("is one that is there; those take turns, a run of 32 reads each", async () => {
    const { read, turn } = bench([new Copy("a", 10), new Copy("behind", 9), new Copy("b", 11)]);
    const told = Array.from({ length: 96 }, () => read(at(10)));
    await turn();
    const runs = [told.slice(0, 32), told.slice(32, 64), told.slice(64)].map((run) => [
      ...new Set(run.map((it) => it.got)),
    ]);
    expect(runs.flat()).toEqual(runs[0]?.[0] === "a" ? ["a", "b", "a"] : ["b", "a", "b"]);
  });

  it("is not one that has clearly more to do than another", async () => {
    const [a, b] = [new Copy("a", 10), new Copy("b", 10)];
    const { read, turn } = bench([a, b]);
    a.reading = 9;
    const told = [1, 2, 3].map(() => read(at(10)));
    await turn();
    expect(told.map((it) => it.got)).toEqual(["b", "b", "b"]);
  });

  it("is the first that gets there, when none is", async () => {
    const [a, b] = [new Copy("a", 1), new Copy("b", 2)];
    const { read, turn } = bench([a, b]);
    const told = read(at(10));
    await turn(100);
    a.reach(9);
    b.reach(10);
    await turn();
    expect(told.got).toBe("b");
  });

  it("is waited for no longer than queueWait: then 503, and the position is named", async () => {
    const { read, turn } = bench([new Copy("a", 1)]);
    const told = read(at(10));
    await turn(999);
    expect(told.got).toBe(null);
    await turn(5);
    expect(told.error).toMatchObject({
      code: "GW_READ_TOO_NEW",
      status: 503,
      position: 10,
      retryAfterS: 1,
    });
  });

  it("need only have what shares an order key with the read", async () => {
    const a = new Copy("a", 1);
    a.keysApplied.add("account:1");
    const { read, turn } = bench([a]);
    const told = [read(at(10), { keys: ["account:1"] }), read(at(10), { keys: ["account:2"] }), read(at(10))];
    await turn();
    expect(told.map((it) => it.got)).toEqual(["a", null, null]);
  });

  it("may be anywhere for consistency any", async () => {
    const { read, turn, tails } = bench([new Copy("a", 0), new Copy("b", 0)]);
    const told = [read({ kind: "any" }), read({ kind: "any" })];
    await turn();
    expect([told.map((it) => it.got), tails.length]).toEqual([[told[0]?.got, told[0]?.got], 0]);
  });

  it("one that leaves while it is waited for is not chosen, and another is", async () => {
    const [a, b] = [new Copy("a", 1), new Copy("b", 1)];
    const { read, turn } = bench([a, b]);
    const told = read(at(10));
    await turn();
    a.leave("quarantined");
    a.applied = 10;
    await turn(10);
    expect(told.got).toBe(null);
    b.reach(10);
    await turn(10);
    expect(told.got).toBe("b");
  });

  it("one that gets there when it is live no longer is not chosen", async () => {
    const [a, b] = [new Copy("a", 1), new Copy("b", 1)];
    const { read, turn } = bench([a, b]);
    const told = read(at(10));
    await turn();
    a.state = "lagging";
    a.reach(10);
    await turn(10);
    expect(told.got).toBe(null);
    b.reach(10);
    await turn(10);
    expect(told.got).toBe("b");
  });

  it("one that comes back in time is chosen", async () => {
    const a = new Copy("a", 10);
    a.state = "replaying";
    const { read, turn } = bench([a]);
    const told = read(at(10));
    await turn(500);
    expect(told.got).toBe(null);
    a.state = "live";
    await turn(60);
    expect(told.got).toBe("a");
  });

  it.each(["held", "quarantined", "draining", "gone", "starting"] as const)(
    "where all are %s nobody can get there: GW_NO_REPLICA at once",
    async (state) => {
      const a = new Copy("a", 10);
      a.state = state;
      const { read, turn } = bench([a]);
      const told = [read(at(10)), read({ kind: "any" })];
      await turn();
      expect(told.map((it) => it.got)).toEqual(["GW_NO_REPLICA", "GW_NO_REPLICA"]);
      expect(told[0]?.error).toMatchObject({
        outcome: "not-executed",
        message: `no replica is live: a is ${state}`,
      });
    },
  );

  it("is none that was tried already", async () => {
    const { read, turn } = bench([new Copy("a", 10), new Copy("b", 10)]);
    const told = [1, 2, 3].map(() => read(at(10), { except: ["a"] }));
    await turn();
    expect(told.map((it) => it.got)).toEqual(["b", "b", "b"]);
    const none = read({ kind: "any" }, { except: ["a", "b"] });
    await turn();
    expect(none.got).toBe("GW_NO_REPLICA");
  });

  it("is the same for the same client as long as the live set stays, and clients are spread", async () => {
    const copies = [new Copy("a", 10), new Copy("b", 10), new Copy("c", 10)];
    const { read, turn } = bench(copies);
    const clients = Array.from({ length: 30 }, (_, number) => `client ${number}`);
    const rounds = [0, 1].map(() => clients.map((affinity) => read(at(10), { affinity })));
    await turn();
    const [one, two] = rounds.map((round) => round.map((it) => it.got));
    expect(one).toEqual(two);
    expect(new Set(one)).toEqual(new Set(["a", "b", "c"]));
    copies[0]?.leave("held");
    const later = clients.map((affinity) => read(at(10), { affinity }));
    await turn();
    expect(new Set(later.map((it) => it.got))).toEqual(new Set(["b", "c"]));
  });

  it("the same client waits for its own copy, though another is there", async () => {
    const copies = [new Copy("a", 1), new Copy("b", 1)];
    const { read, turn } = bench(copies);
    const told = read(at(10), { affinity: "x" });
    const any = read({ kind: "any" }, { affinity: "x" });
    await turn();
    const own = copies.find((it) => it.name === any.got);
    const other = copies.find((it) => it !== own);
    other?.reach(10);
    await turn(10);
    expect(told.got).toBe(null);
    own?.reach(10);
    await turn(10);
    expect(told.got).toBe(own?.name);
  });
});
