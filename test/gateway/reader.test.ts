// The one reader: every record once, in order, to everybody, from memory as long as that lasts.
import { describe, expect, it, onTestFinished } from "vitest";
import { GatewayError } from "../../gateway/errors.ts";
import type { Fact } from "../../gateway/events.ts";
import { Events } from "../../gateway/events.ts";
import type { Log, StoredRecord } from "../../gateway/log/log.ts";
import { LogReader } from "../../gateway/reader.ts";
import { sha256 } from "../../gateway/record.ts";
import { openLmdbState } from "../../gateway/state/lmdb.ts";
import { MarksFile } from "../../gateway/state/marks.ts";
import { ReaderState } from "../../gateway/state/state.ts";
import type { Folded } from "../../gateway/state/state.ts";
import type { StateCut, StateStore } from "../../gateway/state/store.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import { waitFor } from "../helpers/wait.ts";
import { emptyStore, entry, id16, id32, keyed, Producer, stored } from "../fixtures/records/samples.ts";

const epoch = "0123456789abcdef";

/** A log to which the test appends, or which it breaks. */
class FakeLog {
  readonly records: StoredRecord[] = [];
  readonly reads: number[] = [];
  #error: Error | null = null;
  #wake: () => void = () => undefined;
  readonly log: Log;

  constructor() {
    this.log = {
      epoch,
      read: (from: number, signal: AbortSignal) => this.#read(from, signal),
    } as unknown as Log;
  }
  append(bytes: Buffer): void {
    this.records.push(stored(this.records.length + 1, bytes));
    this.#wake();
  }
  fail(error: Error): void {
    this.#error = error;
    this.#wake();
  }
  async *#read(from: number, signal: AbortSignal): AsyncIterable<StoredRecord> {
    this.reads.push(from);
    signal.addEventListener("abort", () => this.#wake());
    for (let sequence = from; !signal.aborted;) {
      const record = this.records[sequence - 1];
      if (record !== undefined) {
        sequence++;
        yield record;
      } else if (this.#error !== null) throw this.#error;
      else await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}

function bench(
  options: {
    folder?: string;
    store?: StateStore;
    marks?: MarksFile;
    bufferBytesMax?: number;
    log?: FakeLog;
  } = {},
) {
  const facts: Fact[] = [];
  const events = new Events();
  events.listen((fact) => facts.push(fact));
  const log = options.log ?? new FakeLog();
  const marks = options.marks ?? MarksFile.open(temporaryFolder("marks"));
  const state = new ReaderState(options.store ?? emptyStore(), epoch, 1);
  const taken = { sequence: 0 };
  const reader = new LogReader({
    log: log.log,
    state,
    marks,
    events,
    bufferBytesMax: options.bufferBytesMax ?? 1024 * 1024,
    own: () => null,
    taken: () => taken.sequence,
  });
  const stop = new AbortController();
  let closed: Promise<void> | null = null;
  const close = (): Promise<void> => {
    stop.abort();
    return (closed ??= reader.close());
  };
  onTestFinished(close);
  return { reader, state, log, marks, facts, taken, close, start: () => reader.start(stop.signal) };
}

describe("reading", () => {
  it("hands every record to every listener, in order, before an applier can miss it", async () => {
    const { reader, log, start } = bench();
    const heard: string[] = [];
    reader.onFolded(({ sequence }) => heard.push(`first ${sequence} of ${reader.sequence}`));
    reader.onFolded(({ sequence }) => heard.push(`second ${sequence}, ${typeof reader.get(sequence)}`));
    const producer = new Producer(1);
    log.append(producer.record([entry()]));
    start();
    log.append(producer.record([entry()]));
    await reader.reached(2);
    expect(heard).toEqual(["first 1 of 1", "second 1, object", "first 2 of 2", "second 2, object"]);
  });

  it("goes on behind what was folded before, and saves the rest when it is closed", async () => {
    const folder = temporaryFolder("state");
    const log = new FakeLog();
    const producer = new Producer(1);
    for (const [life, key] of [1, 2].entries()) {
      const store = openLmdbState(folder);
      const { reader, start, close } = bench({ log, store });
      log.append(producer.record([keyed(key)]));
      start();
      await reader.reached(life + 1);
      await close();
      await store.close();
    }
    expect(log.reads).toEqual([1, 2]);
    const store = openLmdbState(folder);
    const state = new ReaderState(store, epoch, 1);
    expect([state.sequence, state.key(id16(1))?.position, state.key(id16(2))?.position]).toEqual([2, 4096, 8192]);
    await store.close();
  });

  it("notes in the own marks what it has seen", async () => {
    const { reader, log, marks, start } = bench();
    const bytes = new Producer(1).record([entry()]);
    log.append(bytes);
    start();
    await reader.reached(1);
    expect(marks.current).toMatchObject({
      epoch,
      sequence: 1,
      recordHash: sha256(bytes).toString("hex"),
      hash: reader.state.hash,
    });
  });

  it("saves the fold while it goes on, and a save that fails is a warning", async () => {
    const commits: number[] = [];
    const store = emptyStore(({ head }) => {
      commits.push(head.sequence);
      return commits.length === 1 ? Promise.reject(new Error("no space")) : Promise.resolve();
    });
    const { reader, log, facts, start } = bench({ store });
    const producer = new Producer(1);
    log.append(producer.record([keyed(1)]));
    start();
    await waitFor(() => facts.some((it) => it.type === "warning" && it.about === "reader state"), {
      what: "the warning",
    });
    expect(reader.failure).toBe(null);
    log.append(producer.record([keyed(2)]));
    await waitFor(() => commits.includes(2), { what: "the next save" });
  });
});

describe("reached", () => {
  it("resolves when the record was folded, at once for the past", async () => {
    const { reader, log, start } = bench();
    const producer = new Producer(1);
    start();
    let isThere = false;
    const arrival = reader.reached(2).then(() => (isThere = true));
    log.append(producer.record([entry()]));
    await waitFor(() => reader.sequence === 1, { what: "the first record" });
    await reader.reached(1);
    await reader.reached(0);
    expect(isThere).toBe(false);
    log.append(producer.record([entry()]));
    await arrival;
  });

  it("rejects when reading stops before", async () => {
    const { reader, start, close } = bench();
    start();
    const arrival = expect(reader.reached(5)).rejects.toMatchObject({ code: "GW_STOPPING" });
    await close();
    await arrival;
  });

  it("who waits for less is not held up by who waits for more", async () => {
    const { reader, log, start, close } = bench();
    start();
    const far = expect(reader.reached(100)).rejects.toThrow();
    const near = reader.reached(1);
    log.append(new Producer(1).record([entry()]));
    await near;
    await close();
    await far;
  });
});

/** A store whose commits the test lets through one by one. */
function gated() {
  const store = openLmdbState(temporaryFolder("state"));
  const waiting: (() => void)[] = [];
  const gate = { isOpen: false };
  let running = 0;
  const commit: StateStore["commit"] = async (batch) => {
    expect(++running, "commits at a time").toBe(1);
    if (!gate.isOpen) await new Promise<void>((resolve) => waiting.push(resolve));
    await store.commit(batch);
    running--;
  };
  const open = (): void => {
    gate.isOpen = true;
    for (const resolve of waiting.splice(0)) resolve();
  };
  onTestFinished(() => store.close());
  return { store: { ...store, commit }, waiting, open };
}
async function positions(cut: StateCut): Promise<number[]> {
  const found: number[] = [];
  for await (const row of cut.keys()) found.push(row.position);
  return found;
}

describe("a cut of the state", () => {
  const mark = { kind: "mark" as const, reason: "snapshot" };

  it("is exactly that of its record, for a listener of it, although a commit is under way and reading goes on", async () => {
    const { store, waiting, open } = gated();
    const { reader, log, start } = bench({ store });
    const cuts: Promise<StateCut>[] = [];
    reader.onFolded(({ sequence, items }) => {
      if (items.at(-1)?.item.kind === "mark") cuts.push(reader.cutAt(sequence));
    });
    const producer = new Producer(1);
    log.append(producer.record([keyed(1)]));
    start();
    await waitFor(() => waiting.length === 1, { what: "a commit" });
    log.append(producer.record([keyed(2), mark]));
    for (let key = 3; key <= 20; key++) log.append(producer.record([keyed(key)]));
    await reader.reached(20);
    open();
    const cut = await (cuts[0] as Promise<StateCut>);
    expect([cut.head.sequence, cut.head.hash, await positions(cut)]).toEqual([
      2,
      (reader.get(2) as Folded).hash,
      [4096, 8192],
    ]);
    // What came after it was saved behind it.
    await waitFor(() => store.head()?.sequence === 20, { what: "the rest" });
    expect(await positions(cut)).toEqual([4096, 8192]);
    cut.close();
  });

  it("may be asked for before its record is there, and not after the next one", async () => {
    const { store, open } = gated();
    open();
    const { reader, log, start } = bench({ store });
    start();
    const asked = reader.cutAt(3);
    const producer = new Producer(1);
    for (let key = 1; key <= 5; key++) log.append(producer.record([keyed(key)]));
    const cut = await asked;
    expect([cut.head.sequence, (await positions(cut)).length]).toEqual([3, 3]);
    cut.close();
    await reader.reached(5);
    await expect(reader.cutAt(3)).rejects.toMatchObject({ code: "GW_CONFLICT" });
    const now = await reader.cutAt(5);
    expect(now.head.sequence).toBe(5);
    now.close();
  });

  it("is refused while another one waits, which is not disturbed", async () => {
    const { store, waiting, open } = gated();
    const { reader, log, start } = bench({ store });
    log.append(new Producer(1).record([keyed(1)]));
    start();
    await waitFor(() => waiting.length === 1, { what: "a commit" });
    const first = reader.cutAt(1);
    await expect(reader.cutAt(1)).rejects.toMatchObject({ code: "GW_CONFLICT" });
    open();
    const cut = await first;
    expect(cut.head.sequence).toBe(1);
    cut.close();
  });

  it("fails when it cannot be saved; the next one does not", async () => {
    const { store, open } = gated();
    open();
    let isFull = true;
    const commit: StateStore["commit"] = (batch) =>
      isFull ? Promise.reject(new Error("no space")) : store.commit(batch);
    const { reader, log, start } = bench({ store: { ...store, commit } });
    log.append(new Producer(1).record([keyed(1)]));
    start();
    await reader.reached(1);
    await expect(reader.cutAt(1)).rejects.toThrow("no space");
    isFull = false;
    const cut = await reader.cutAt(1);
    expect(await positions(cut)).toEqual([4096]);
    cut.close();
  });

  it("rejects when reading stops before its record, and when nothing is saved any more", async () => {
    const stopped = bench();
    stopped.start();
    const far = expect(stopped.reader.cutAt(9)).rejects.toMatchObject({ code: "GW_STOPPING" });
    await stopped.close();
    await far;

    const { store, waiting, open } = gated();
    const failed = bench({ store });
    failed.log.append(new Producer(1).record([keyed(1)]));
    failed.start();
    await waitFor(() => waiting.length === 1, { what: "a commit" });
    const waits = expect(failed.reader.cutAt(1)).rejects.toMatchObject({ code: "GW_LOG_REGRESSED" });
    failed.reader.fail(new GatewayError("GW_LOG_REGRESSED", "another epoch"));
    await waits;
    await expect(failed.reader.cutAt(1)).rejects.toMatchObject({ code: "GW_LOG_REGRESSED" });
    open();
  });

  it("that waits when the reader is closed still comes, and everything is saved", async () => {
    const { store, waiting, open } = gated();
    const { reader, log, start, close } = bench({ store });
    const producer = new Producer(1);
    log.append(producer.record([keyed(1)]));
    start();
    await waitFor(() => waiting.length === 1, { what: "a commit" });
    log.append(producer.record([keyed(2)]));
    await reader.reached(2);
    const cutting = reader.cutAt(2);
    log.append(producer.record([keyed(3)]));
    await reader.reached(3);
    const closed = close();
    open();
    await closed;
    const cut = await cutting;
    expect([cut.head.sequence, store.head()?.sequence]).toEqual([2, 3]);
    cut.close();
  });
});

const size = new Producer(1).record([entry()]).length;

async function filled(options: { bufferBytesMax: number; records: number; taken?: number }) {
  const it = bench(options);
  it.taken.sequence = options.taken ?? 0;
  const producer = new Producer(1);
  for (let left = options.records; left > 0; left--) it.log.append(producer.record([entry()]));
  it.start();
  await it.reader.reached(options.records);
  return it;
}

describe("the buffer", () => {
  it("says ahead for what is not there yet and gone for what fell out", async () => {
    const { reader } = await filled({ bufferBytesMax: 4 * size, records: 10 });
    expect([reader.get(11), reader.get(99), reader.get(6), reader.get(1)]).toEqual(["ahead", "ahead", "gone", "gone"]);
    for (const sequence of [7, 8, 9, 10]) expect((reader.get(sequence) as Folded).sequence).toBe(sequence);
  });

  it("always keeps the newest record, however large", async () => {
    const { reader } = await filled({ bufferBytesMax: 1, records: 3 });
    expect([reader.get(2), (reader.get(3) as Folded).sequence]).toEqual(["gone", 3]);
  });

  it("lets go what every applier has taken, and nothing that one has not", async () => {
    const { reader } = await filled({ bufferBytesMax: 1024 * 1024, records: 10, taken: 6 });
    expect([reader.get(5), (reader.get(6) as Folded).sequence, (reader.get(10) as Folded).sequence]).toEqual([
      "gone",
      6,
      10,
    ]);
  });

  it("is empty at the start: what was folded by a former process is gone", async () => {
    const store: StateStore = {
      ...emptyStore(),
      head: () => ({
        version: 1,
        epoch,
        sequence: 7,
        hash: id32(0),
        entries: 0,
        logTimeMs: 0,
        keyCount: 0,
        producers: [],
        rules: {},
        parts: {},
      }),
    };
    const { reader } = bench({ store });
    expect([reader.sequence, reader.get(7), reader.get(8)]).toEqual([7, "gone", "ahead"]);
  });
});

async function failure(arrange: (it: ReturnType<typeof bench>) => void, options: Parameters<typeof bench>[0] = {}) {
  const it = bench(options);
  const heard: number[] = [];
  it.reader.onFolded(({ sequence }) => heard.push(sequence));
  arrange(it);
  it.start();
  await expect(it.reader.reached(1000)).rejects.toBeInstanceOf(GatewayError);
  await expect(it.reader.reached(1000)).rejects.toBe(it.reader.failure);
  expect(it.facts.filter((fact) => fact.type === "log")).toMatchObject([{ state: "regressed" }]);
  return { code: it.reader.failure?.code, heard };
}

describe("a log that cannot be trusted", () => {
  it("is read no further than to the record that cannot be read", async () => {
    const producer = new Producer(1);
    const found = await failure(({ log }) => {
      log.append(producer.record([entry()]));
      log.append(Buffer.from("garbage"));
      log.append(producer.record([entry()]));
    });
    expect(found).toEqual({ code: "GW_LOG_CORRUPT", heard: [1] });
  });

  it("a record that is another than the one that was seen there is a rollback", async () => {
    const marks = MarksFile.open(temporaryFolder("marks"));
    marks.note(epoch, 2, id32(77), id32(78));
    const producer = new Producer(1);
    const found = await failure(
      ({ log }) => {
        log.append(producer.record([entry()]));
        log.append(producer.record([entry()]));
      },
      { marks },
    );
    expect(found).toEqual({ code: "GW_LOG_REGRESSED", heard: [1] });
  });

  it("the log's own word, and any other failure, end the reading for good", async () => {
    expect(await failure(({ log }) => log.fail(new GatewayError("GW_LOG_REGRESSED", "another epoch")))).toMatchObject({
      code: "GW_LOG_REGRESSED",
    });
    expect(await failure(({ log }) => log.fail(new TypeError("a defect")))).toMatchObject({
      code: "GW_INTERNAL",
    });
  });

  it("is not saved: the next start reads it again", async () => {
    let commits = 0;
    const store = emptyStore(() => Promise.resolve(void commits++));
    const { reader, log, start, close } = bench({ store });
    start();
    reader.fail(new GatewayError("GW_LOG_REGRESSED", "said by the appender"));
    reader.fail(new GatewayError("GW_INTERNAL", "later"));
    log.append(new Producer(1).record([entry()]));
    await close();
    expect([reader.failure?.code, reader.sequence, commits]).toEqual(["GW_LOG_REGRESSED", 0, 0]);
  });
});
