// Group commit: who came together shares a record, one record is in flight, and only our own reader says what became of it.
import { describe, expect, it } from "vitest";
import { Appender } from "../../gateway/appender.ts";
import { itemsMax, positionOf as p } from "../../gateway/entry.ts";
import type { Item } from "../../gateway/entry.ts";
import { GatewayError } from "../../gateway/errors.ts";
import type { Fact } from "../../gateway/events.ts";
import { Events } from "../../gateway/events.ts";
import type { Appended, Log } from "../../gateway/log/log.ts";
import { decodeRecord, sha256 } from "../../gateway/record.ts";
import { ReaderState } from "../../gateway/state/state.ts";
import type { Folded } from "../../gateway/state/state.ts";
import { emptyStore, entry, id16, id32, keyed, Producer, stored } from "../fixtures/records/samples.ts";

const boot = id16(0xb007);

/** A log whose answers the test gives, and a reader that reads when the test says so. */
class Bench {
  readonly facts: Fact[] = [];
  readonly publishes: { readonly bytes: Buffer; readonly answer: (appended: Appended) => void }[] = [];
  readonly sleeps: { readonly ms: number; readonly wake: () => void }[] = [];
  readonly stored: Buffer[] = [];
  readonly regressions: GatewayError[] = [];
  readonly state: ReaderState;
  readonly appender: Appender;
  rules = id32(1);
  live: { names: readonly string[]; primary: string | null } = { names: ["a", "b"], primary: "a" };
  now = 0;

  constructor(options: { recordBytesMax?: number; first?: number } = {}) {
    this.state = new ReaderState(emptyStore(), "e", options.first ?? 1);
    const events = new Events();
    events.listen((fact) => this.facts.push(fact));
    const log = {
      recordBytesMax: options.recordBytesMax ?? 8 * 1024 * 1024,
      append: (bytes: Buffer) => new Promise<Appended>((answer) => this.publishes.push({ bytes, answer })),
    } as unknown as Log;
    this.appender = new Appender({
      log,
      boot,
      gateway: "g1",
      clock: {
        now: () => this.now,
        wallMs: () => 1_700_000_000_000 + this.now,
        sleep: (ms) => new Promise((wake) => this.sleeps.push({ ms, wake })),
      },
      events,
      rules: () => this.rules,
      live: () => this.live,
      tail: () => this.state.sequence,
      onRegressed: (error) => this.regressions.push(error),
    });
  }

  /** Appends and tells where it came to stand. */
  append(item: Item) {
    const told: { at: number | string | null; error: GatewayError | null; calls: number } = {
      at: null,
      error: null,
      calls: 0,
    };
    const ticket = this.appender.append(item, (placed) => {
      told.calls++;
      if (placed instanceof GatewayError) {
        told.error = placed;
        told.at = placed.code;
      } else told.at = placed.fate.kind === "duplicate" ? `duplicate of ${placed.fate.of}` : placed.position;
    });
    return { told, ticket };
  }
  /** The next turn of the event loop, and what follows from it. */
  async turn(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    await new Promise((resolve) => setImmediate(resolve));
  }
  /** The log keeps these bytes; the reader has not seen them yet. */
  store(bytes: Buffer = this.publishes.at(-1)?.bytes as Buffer): number {
    this.stored.push(bytes);
    return this.stored.length;
  }
  /** The reader reads everything that is stored. */
  async read(): Promise<Folded[]> {
    const folded: Folded[] = [];
    while (this.state.sequence < this.stored.length) {
      const sequence = this.state.sequence + 1;
      const it = this.state.fold(stored(sequence, this.stored[sequence - 1] as Buffer), this.appender.flight);
      this.appender.folded(it);
      folded.push(it);
    }
    await this.turn();
    return folded;
  }
  async answer(appended: Appended): Promise<void> {
    this.publishes.at(-1)?.answer(appended);
    await this.turn();
  }
  /** The pause before the next attempt is over. */
  async wake(): Promise<number> {
    const last = this.sleeps.pop();
    last?.wake();
    await this.turn();
    return last?.ms ?? -1;
  }
  items(publish: number): readonly string[] {
    return decodeRecord(this.publishes[publish]?.bytes as Buffer, 0).items.map((it) =>
      it.kind === "entry" ? it.target : it.kind,
    );
  }
  header(publish: number) {
    return decodeRecord(this.publishes[publish]?.bytes as Buffer, 0).header;
  }
  types(type: Fact["type"]): Fact[] {
    return this.facts.filter((it) => it.type === type);
  }
}

const to = (target: string): Item => entry({ target });
const unknown: Appended = { kind: "unknown", cause: new Error("timed out") };

const large = (bytes: number): Item => entry({ body: Buffer.alloc(bytes) });

describe("grouping", () => {
  it("what arrives in one turn shares a record; while it is in flight the others wait and share the next", async () => {
    const bench = new Bench();
    const first = [bench.append(to("/1")), bench.append(to("/2"))];
    expect(bench.publishes).toHaveLength(0);
    await bench.turn();
    expect(bench.items(0)).toEqual(["/1", "/2"]);
    const second = [bench.append(to("/3"))];
    await bench.turn();
    second.push(bench.append({ kind: "tick" }));
    await bench.turn();
    expect(bench.publishes).toHaveLength(1);
    expect(bench.appender.queuedBytes).toBeGreaterThan(0);
    bench.store();
    await bench.read();
    expect(first.map((it) => it.told.at)).toEqual([p(1, 0), p(1, 1)]);
    expect(bench.items(1)).toEqual(["/3", "tick"]);
    expect(bench.appender.queuedBytes).toBe(0);
    bench.store();
    await bench.read();
    expect(second.map((it) => it.told.at)).toEqual([p(2, 0), p(2, 1)]);
    expect([...first, ...second].map((it) => it.told.calls)).toEqual([1, 1, 1, 1]);
  });

  it("a mark is the last item of its record", async () => {
    const bench = new Bench();
    for (const item of [
      to("/1"),
      { kind: "mark", reason: "m" } as const,
      to("/2"),
      { kind: "mark", reason: "n" } as const,
    ])
      bench.append(item);
    await bench.turn();
    expect(bench.items(0)).toEqual(["/1", "mark"]);
    bench.store();
    await bench.read();
    expect(bench.items(1)).toEqual(["/2", "mark"]);
  });

  it("a record holds at most 4,096 items", async () => {
    const bench = new Bench();
    const all = Array.from({ length: itemsMax + 1 }, () => bench.append({ kind: "tick" }));
    await bench.turn();
    expect(bench.items(0)).toHaveLength(itemsMax);
    bench.store();
    await bench.read();
    expect(bench.items(1)).toHaveLength(1);
    bench.store();
    await bench.read();
    expect(all.at(-2)?.told.at).toBe(p(1, 4095));
    expect(all.at(-1)?.told.at).toBe(p(2, 0));
  });

  it("a record stays below what the log takes, but for one item that is larger alone", async () => {
    const recordBytesMax = 512 * 1024;
    const bench = new Bench({ recordBytesMax });
    for (const bytes of [150_000, 150_000, 150_000, 450_000, 10]) bench.append(large(bytes));
    const sizes: number[] = [];
    for (let left = 5; left > 0; left -= sizes.at(-1) as number) {
      await bench.turn();
      expect(bench.publishes.at(-1)?.bytes.length).toBeLessThanOrEqual(recordBytesMax);
      sizes.push(bench.items(bench.publishes.length - 1).length);
      bench.store();
      await bench.read();
    }
    expect(sizes).toEqual([2, 1, 1, 1]);
  });

  it("records are numbered, name their predecessor, the tail and what is in force at their first publish", async () => {
    const bench = new Bench();
    bench.append(to("/1"));
    await bench.turn();
    expect(bench.header(0)).toMatchObject({
      producer: boot,
      n: 0,
      previous: Buffer.alloc(32),
      base: 0,
      rules: id32(1),
      gateway: "g1",
      live: ["a", "b"],
      primary: "a",
    });
    bench.store(new Producer(9).record([{ kind: "tick" }]));
    bench.store();
    bench.rules = id32(2);
    bench.live = { names: ["b"], primary: "b" };
    await bench.read();
    bench.now = 5;
    bench.append(to("/2"));
    await bench.turn();
    const previous = sha256(bench.publishes[0]?.bytes as Buffer);
    expect(bench.header(1)).toMatchObject({
      n: 1,
      previous,
      base: 2,
      rules: id32(2),
      timeMs: 1_700_000_000_005,
      live: ["b"],
      primary: "b",
    });
  });

  it("what is in flight can be asked for, as its bytes will be read: nobody need read them again", async () => {
    const bench = new Bench();
    expect(bench.appender.flight).toBe(null);
    bench.append(keyed(1, { headers: ["X-Latin", "\u00fc"], orderKeys: ["konto:\u20ac"] }));
    bench.append({ kind: "mark", reason: "m" });
    await bench.turn();
    const { header, items, hash } = bench.appender.flight ?? expect.unreachable();
    const bytes = bench.publishes[0]?.bytes as Buffer;
    expect({ header, items }).toEqual(decodeRecord(bytes, 1));
    expect(hash).toEqual(sha256(bytes));
    bench.store();
    const [folded] = await bench.read();
    expect(folded).toEqual(new ReaderState(emptyStore(), "e", 1).fold(stored(1, bytes)));
    expect(bench.appender.flight).toBe(null);
  });

  it("a duplicate is told where the first stands", async () => {
    const bench = new Bench();
    const both = [bench.append(keyed(1)), bench.append(keyed(1))];
    await bench.turn();
    bench.store();
    await bench.read();
    expect(both.map((it) => it.told.at)).toEqual([p(1, 0), `duplicate of ${p(1, 0)}`]);
  });
});

describe("what became of a record", () => {
  it("an acknowledgement alone tells nobody anything: the reader does, and then the next may fly", async () => {
    const bench = new Bench();
    const { told } = bench.append(to("/1"));
    await bench.turn();
    const next = bench.append(to("/2"));
    const sequence = bench.store();
    await bench.answer({ kind: "stored", sequence });
    expect([told.calls, bench.publishes.length]).toEqual([0, 1]);
    bench.now = 7;
    await bench.read();
    expect([told.at, bench.publishes.length]).toEqual([p(1, 0), 2]);
    expect(bench.types("appended")).toMatchObject([{ items: 1, durationMs: 7 }]);
    expect(next.told.calls).toBe(0);
  });

  it("the reader may be faster than the acknowledgement", async () => {
    const bench = new Bench();
    const { told } = bench.append(to("/1"));
    await bench.turn();
    const sequence = bench.store();
    await bench.read();
    expect(told.at).toBe(p(1, 0));
    await bench.answer({ kind: "stored", sequence });
    expect([told.calls, bench.publishes.length, bench.regressions.length]).toEqual([1, 1, 0]);
  });

  it("unknown: the same bytes are published again, ever more slowly, until the reader has seen them", async () => {
    const bench = new Bench();
    const { told } = bench.append(to("/1"));
    await bench.turn();
    const pauses: number[] = [];
    for (let attempt = 0; attempt < 8; attempt++) {
      await bench.answer(unknown);
      expect(bench.appender.isStuck).toBe(true);
      pauses.push(await bench.wake());
    }
    expect(pauses).toEqual([20, 50, 100, 250, 500, 1000, 1000, 1000]);
    expect(new Set(bench.publishes.map((it) => it.bytes.toString("hex"))).size).toBe(1);
    expect(bench.types("append-repeated")).toHaveLength(8);
    expect(told.calls).toBe(0);
    // Several of them were stored: one counts.
    bench.store();
    bench.store();
    await bench.read();
    expect(told).toMatchObject({ at: p(1, 0), calls: 1 });
    expect([bench.appender.isStuck, bench.state.entries]).toEqual([false, 1]);
  });

  it("unknown, then seen in the pause: nothing is published again", async () => {
    const bench = new Bench();
    const { told } = bench.append(to("/1"));
    await bench.turn();
    await bench.answer(unknown);
    bench.store();
    await bench.read();
    expect(told.at).toBe(p(1, 0));
    await bench.wake();
    expect(bench.publishes).toHaveLength(1);
  });

  it("full at the first publish is certain: not executed, and the next one may try", async () => {
    const bench = new Bench();
    const { told } = bench.append(to("/1"));
    await bench.turn();
    const waiting = bench.append(to("/2"));
    await bench.answer({ kind: "full" });
    expect(told.error).toMatchObject({
      code: "GW_LOG_FULL",
      outcome: "not-executed",
      retryAfterS: 1,
    });
    expect(bench.types("log")).toMatchObject([{ state: "full" }]);
    // The number was never used: the next record has it.
    expect([bench.items(1), bench.header(1).n]).toEqual([["/2"], 0]);
    bench.store();
    await bench.read();
    expect(waiting.told.at).toBe(p(1, 0));
  });

  it("unknown, then full: it may be stored all the same, so it is tried until the reader tells", async () => {
    const bench = new Bench();
    const { told } = bench.append(to("/1"));
    await bench.turn();
    await bench.answer(unknown);
    await bench.wake();
    for (const appended of [
      { kind: "full" },
      { kind: "refused", error: new GatewayError("GW_LOG_UNAVAILABLE", "no") },
    ] as const) {
      await bench.answer(appended);
      expect(told.calls).toBe(0);
      await bench.wake();
    }
    bench.store(bench.publishes[0]?.bytes);
    await bench.read();
    expect(told.at).toBe(p(1, 0));
  });

  it("refused is certain, with the log's own reason", async () => {
    const bench = new Bench();
    const { told } = bench.append(to("/1"));
    await bench.turn();
    await bench.answer({
      kind: "refused",
      error: new GatewayError("GW_LOG_CONFIGURATION", "max_payload was made smaller"),
    });
    expect(told.error).toMatchObject({
      code: "GW_LOG_CONFIGURATION",
      message: "max_payload was made smaller",
      outcome: "not-executed",
    });
  });

  it("stored at or below the tail that was known before: the log lost its end, and the outcome is unknown", async () => {
    for (const behind of [0, 1]) {
      const bench = new Bench();
      bench.store(new Producer(9).record([{ kind: "tick" }]));
      bench.store(new Producer(8).record([{ kind: "tick" }]));
      await bench.read();
      const { told } = bench.append(to("/1"));
      await bench.turn();
      await bench.answer({ kind: "stored", sequence: 2 - behind });
      expect(told.error).toMatchObject({ code: "GW_LOG_REGRESSED", outcome: "unknown" });
      expect(bench.regressions).toHaveLength(1);
      expect(bench.regressions[0]).toMatchObject({ code: "GW_LOG_REGRESSED" });
    }
  });

  it("stored right behind the known tail is no regression", async () => {
    const bench = new Bench();
    bench.store(new Producer(9).record([{ kind: "tick" }]));
    await bench.read();
    const { told } = bench.append(to("/1"));
    await bench.turn();
    await bench.answer({ kind: "stored", sequence: bench.store() });
    await bench.read();
    expect([told.at, bench.regressions.length]).toEqual([p(2, 0), 0]);
  });

  it("records of others, and late copies of our own, are not taken for the one in flight", async () => {
    const bench = new Bench();
    bench.append(to("/1"));
    await bench.turn();
    bench.store();
    await bench.read();
    const { told } = bench.append(to("/2"));
    await bench.turn();
    bench.store(bench.publishes[0]?.bytes);
    bench.store(new Producer(9).record([to("/other")]));
    await bench.read();
    expect(told.calls).toBe(0);
    bench.store();
    await bench.read();
    expect(told.at).toBe(p(4, 0));
  });

  it("a record that comes too late to count was certainly not executed, and the next one may fly", async () => {
    const bench = new Bench();
    const { told } = bench.append(to("/1"));
    await bench.turn();
    await bench.answer(unknown);
    await bench.wake();
    const next = bench.append(to("/2"));
    // What the reader says of a record whose base is more than 65,536 records back.
    const { header, items } = decodeRecord(bench.publishes[0]?.bytes as Buffer, 70_000);
    const recordHash = sha256(bench.publishes[0]?.bytes as Buffer).toString("hex");
    const dropped: Folded = {
      sequence: 70_000,
      header,
      isDropped: true,
      items: items.map((item) => ({ position: p(70_000, 0), item, fate: { kind: "control" } })),
      hash: "",
      previousHash: "",
      recordHash,
      entries: 0,
      bytes: 0,
    };
    bench.appender.folded(dropped);
    await bench.turn();
    expect(told.error).toMatchObject({ outcome: "not-executed" });
    const at = bench.publishes.length - 1;
    expect([bench.items(at), bench.header(at).n]).toEqual([["/2"], 0]);
    // Another late copy, which has the number of the one in flight now.
    bench.appender.folded({ ...dropped, sequence: 70_001 });
    expect(next.told.calls).toBe(0);
    bench.store();
    await bench.read();
    expect(next.told.at).toBe(p(1, 0));
  });
});

describe("withdrawing", () => {
  it("before the flight it is certain: it is in no record, and nobody is told", async () => {
    const bench = new Bench();
    const all = [bench.append(to("/1")), bench.append(to("/2")), bench.append(to("/3"))];
    expect(all[1]?.ticket.withdraw()).toBe(true);
    expect(all[1]?.ticket.withdraw()).toBe(false);
    await bench.turn();
    expect(bench.items(0)).toEqual(["/1", "/3"]);
    bench.store();
    await bench.read();
    expect(all.map((it) => it.told.at)).toEqual([p(1, 0), null, p(1, 1)]);
    expect(bench.appender.queuedBytes).toBe(0);
  });

  it("in flight it may be stored: whoever asked is told all the same when it is known", async () => {
    const bench = new Bench();
    const all = [bench.append(to("/1")), bench.append(to("/2"))];
    await bench.turn();
    expect(all[0]?.ticket.withdraw()).toBe(false);
    bench.store();
    await bench.read();
    expect(all.map((it) => it.told.at)).toEqual([p(1, 0), p(1, 1)]);
    expect(all[1]?.ticket.withdraw()).toBe(false);
  });

  it("everything withdrawn makes no record", async () => {
    const bench = new Bench();
    bench.append(to("/1")).ticket.withdraw();
    await bench.turn();
    expect(bench.publishes).toHaveLength(0);
  });
});

describe("place and barrier", () => {
  it("place resolves with where the item stands, and rejects with why it does not", async () => {
    const bench = new Bench();
    const placed = bench.appender.place({ kind: "mark", reason: "m" });
    await bench.turn();
    bench.store();
    await bench.read();
    expect(await placed).toMatchObject({ position: p(1, 0) });
    const refused = expect(bench.appender.place({ kind: "tick" })).rejects.toMatchObject({
      code: "GW_LOG_FULL",
    });
    await bench.turn();
    await bench.answer({ kind: "full" });
    await refused;
  });

  it("a barrier is a record whose first publish began after it was asked for, not the one in flight", async () => {
    const bench = new Bench();
    bench.append(to("/1"));
    await bench.turn();
    const barriers = [bench.appender.barrier(), bench.appender.barrier()];
    const told: number[] = [];
    for (const it of barriers) void it.then((sequence) => told.push(sequence));
    bench.store();
    await bench.read();
    expect(told).toEqual([]);
    expect(bench.items(1)).toEqual(["tick", "tick"]);
    bench.store();
    await bench.read();
    expect(told).toEqual([2, 2]);
  });

  it("a barrier that cannot be appended rejects", async () => {
    const bench = new Bench();
    const barrier = bench.appender.barrier();
    await bench.turn();
    const rejected = expect(barrier).rejects.toMatchObject({ code: "GW_LOG_FULL" });
    await bench.answer({ kind: "full" });
    await rejected;
  });
});

describe("closing", () => {
  it("takes nothing more, and waits for what was taken", async () => {
    const bench = new Bench();
    const all = [bench.append(to("/1"))];
    await bench.turn();
    all.push(bench.append(to("/2")));
    let isClosed = false;
    const closing = bench.appender.close(1000).then(() => (isClosed = true));
    const late = bench.append(to("/3"));
    expect(late.told.error).toMatchObject({ code: "GW_STOPPING", outcome: "not-executed" });
    expect(late.ticket.withdraw()).toBe(true);
    bench.store();
    await bench.read();
    expect(isClosed).toBe(false);
    bench.store();
    await bench.read();
    await closing;
    expect(all.map((it) => it.told.at)).toEqual([p(1, 0), p(2, 0)]);
    expect(bench.stored).toHaveLength(2);
  });

  it("at the deadline what waits was not executed, and what may be stored is unknown", async () => {
    const bench = new Bench();
    const flying = bench.append(to("/1"));
    await bench.turn();
    await bench.answer(unknown);
    const waiting = bench.append(to("/2"));
    const closing = bench.appender.close(1000);
    expect(bench.sleeps.at(-1)?.ms).toBe(1000);
    await bench.wake();
    await closing;
    expect(flying.told.error).toMatchObject({ code: "GW_STOPPING", outcome: "unknown" });
    expect(waiting.told.error).toMatchObject({ code: "GW_STOPPING", outcome: "not-executed" });
    expect([flying.told.calls, waiting.told.calls]).toEqual([1, 1]);
    // Nothing is published after the close.
    while (bench.sleeps.length > 0) await bench.wake();
    expect(bench.publishes).toHaveLength(1);
  });

  it("a first publish that has not been answered may be stored: unknown, never not-executed", async () => {
    const bench = new Bench();
    const flying = bench.append(to("/1"));
    await bench.turn();
    const closing = bench.appender.close(1000);
    await bench.wake();
    await closing;
    expect(flying.told.error).toMatchObject({ code: "GW_STOPPING", outcome: "unknown" });
  });

  it("with nothing to do it closes at once, twice if asked", async () => {
    const bench = new Bench();
    await bench.appender.close(1000);
    await bench.appender.close(1000);
    expect(bench.sleeps).toHaveLength(0);
  });
});
