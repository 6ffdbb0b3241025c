// Remembers: captures a copy's state at a position, puts the version into the line, publishes its hash, tries it, keeps as many as it was told, and lets
// the log forget what they hold. Off the path of every request: store, chain or recorder away, traffic does not notice.

import type { Applier } from "../gateway/applier.ts";
import type { Clock } from "../gateway/clock.ts";
import { endOf, sequenceOf } from "../gateway/entry.ts";
import { GatewayError } from "../gateway/errors.ts";
import type { Events } from "../gateway/events.ts";
import type { Log } from "../gateway/log/log.ts";
import type { Reporter } from "../gateway/operations.ts";
import type { LogReader } from "../gateway/reader.ts";
import type { Replicas } from "../gateway/replicas.ts";
import type { Space } from "../gateway/space.ts";
import { decodeKeyRows, encodeKeyRows } from "../gateway/state/keyrows.ts";
import type { KeyRow } from "../gateway/state/store.ts";
import type { Archivist, Captured, Writing } from "./archivist.ts";
import type { PlaceOptions } from "./capture/place.ts";
import type { Line, Version } from "./line.ts";
import { cutAtMark } from "./markedcut.ts";
import type { Manifest } from "./manifest.ts";
import { manifestFormat } from "./manifest.ts";
import { Patience } from "./patience.ts";
import { Publishing } from "./publishing.ts";
import { askToRest } from "./quiesce.ts";
import type { Quiesce } from "./quiesce.ts";
import type { Registry } from "./registry/registry.ts";
import { surplusOf, thinOut } from "./retention.ts";
import { truncateTo } from "./truncation.ts";
import type { TruncationParts } from "./truncation.ts";

export interface RecorderSettings {
  readonly service: string;
  readonly every: {
    readonly entries: number | null;
    readonly bytes: number | null;
    readonly timeMs: number | null;
    readonly atLeastMs: number;
  };
  readonly keep: number;
  readonly capture: Manifest["capture"];
  readonly quiesce: Quiesce;
  readonly drillMs: number | null;
  readonly truncate: "snapshot" | "applied" | "never";
  readonly truncateUnpublishedMs: number;
  readonly publishEveryMs: number;
  /** The store, for people; goes on chain. */
  readonly uri: string;
}

export interface RecorderParts extends TruncationParts {
  readonly settings: RecorderSettings;
  readonly line: Line;
  readonly registry: Registry;
  readonly archivist: Archivist;
  readonly replicas: Replicas;
  readonly reader: LogReader;
  readonly log: Log;
  readonly space: Space;
  readonly events: Events;
  readonly clock: Clock;
  /** Where a copy's state lies; null: it cannot be reached. */
  readonly placeOf: (applier: Applier) => PlaceOptions | null;
  readonly isStoppable: (replica: string) => boolean;
  /** It can be rebuilt. */
  readonly isReplaceable: (replica: string) => boolean;
  readonly imageDigest: (replica: string) => Promise<string | null>;
  /** Of several gateways this one records now. */
  readonly leads: () => boolean;
}

const everyMs = 500;
/** Above this share of `log.max` the log forgets up to the newest snapshot that counts, not only the oldest. */
const crowded = 0.7;

/** Of a version that somebody else took, or whose notes were lost, its log time tells when about. */
export const takenMsOf = ({ notes, logTimeMs }: Version): number => (notes.takenMs > 0 ? notes.takenMs : logTimeMs);

const silent: Reporter = { step: () => undefined, progress: () => undefined, finding: () => undefined };

export class Recorder {
  readonly #parts: RecorderParts;
  readonly #stop = new AbortController();
  #done: Promise<void> = Promise.resolve();
  /** Captures, drills and collections take turns: a collection must not meet a version that does not stand yet. */
  #turn: Promise<unknown> = Promise.resolve();
  #trouble: string | null = null;
  #lastSuccessMs: number | null = null;
  /** By the monotonic clock, as everything that says when the next is due: a wall clock that is set back would put it off by hours. */
  #lastAt: number;
  #bytesAtLast = 0;
  #appendedBytes = 0;
  #storeBytes = 0;
  #drilledAt: number;
  readonly #patience = {
    capture: new Patience(),
    tidy: new Patience(),
    drill: new Patience(),
  };
  readonly #publishing: Publishing;
  /** It leads, and knows of everything that was recorded before. */
  #isCurrent: boolean;

  constructor(parts: RecorderParts) {
    this.#parts = parts;
    const { clock, events, line, registry, settings } = parts;
    this.#publishing = new Publishing({ settings, line, registry, events, clock });
    this.#lastAt = this.#takenAt();
    this.#drilledAt = clock.now();
    this.#isCurrent = parts.leads();
    parts.events.listen((fact) => {
      if (fact.type === "appended") this.#appendedBytes += fact.bytes;
    });
  }

  get trouble(): string | null {
    return this.#trouble;
  }
  get lastSuccessMs(): number | null {
    return this.#lastSuccessMs;
  }
  get storeBytes(): number {
    return this.#storeBytes;
  }
  get pendingMs(): number {
    return this.#publishing.pendingMs;
  }

  start(): void {
    this.#done = this.#run();
  }

  /** What is under way is given up: the store keeps whole versions only. */
  async close(): Promise<void> {
    this.#stop.abort();
    await this.#done;
    await this.#turn.catch(() => undefined);
  }

  /** Ends with `close`. */
  async #run(): Promise<void> {
    const { clock } = this.#parts;
    const { signal } = this.#stop;
    for (; !signal.aborted; await clock.sleep(everyMs, signal).catch(() => undefined)) {
      this.#isCurrent &&= this.#parts.leads();
      // What another gateway has recorded is read before anything follows it.
      if (!this.#isCurrent && this.#parts.leads()) await this.#attempt("tidy", () => this.#takeOver());
      if (!this.#isCurrent) continue;
      const now = clock.now();
      void this.#publishing.goOn(signal);
      if (this.#isDue(now)) await this.#attempt("capture", () => this.capture(silent));
      if (signal.aborted) return;
      await this.#attempt("tidy", () => this.#tidy());
      const { drillMs } = this.#parts.settings;
      if (drillMs !== null && now - this.#drilledAt >= drillMs && this.#parts.line.newest !== null) {
        this.#drilledAt = now;
        await this.#attempt("drill", () => this.verify(null, silent));
      }
    }
  }

  /** When the newest version was taken, by the monotonic clock; one from the future was taken now. */
  #takenAt(): number {
    const { clock, line } = this.#parts;
    const ageMs = line.newest === null ? Number.POSITIVE_INFINITY : clock.wallMs() - takenMsOf(line.newest);
    return clock.now() - Math.max(0, ageMs);
  }

  async #takeOver(): Promise<void> {
    this.#publishing.displace();
    await this.#parts.line.load();
    this.#lastAt = this.#takenAt();
    this.#bytesAtLast = this.#appendedBytes;
    this.#isCurrent = true;
  }

  async #attempt(what: "capture" | "tidy" | "drill", work: () => Promise<unknown>): Promise<void> {
    const patience = this.#patience[what];
    const { clock, events } = this.#parts;
    if (!patience.isOver(clock.now())) return;
    try {
      await work();
      patience.succeeded();
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      patience.failed(clock.now());
      // A capture has told of itself.
      if (what !== "capture") events.tell({ type: "warning", about: `snapshots: ${what}`, detail: messageOf(error) });
    }
  }

  // ---- capture ---------------------------------------------------------------------------------------------------------------------

  #isDue(now: number): boolean {
    const { line, settings, reader, replicas } = this.#parts;
    const { every } = settings;
    const live = replicas.liveAppliers();
    if (!this.#publishing.isPlaced || live.length === 0 || reader.failure !== null) return false;
    // Nothing is captured from the last live copy of several, unless a person asks for it.
    if (live.length === 1 && replicas.all.length > 1 && settings.quiesce.kind === "stop") return false;
    const { newest } = line;
    // A log that was begun anew is followed by no snapshot of the former one.
    if (newest === null || newest.epoch !== reader.state.epoch) return true;
    const entries = reader.state.entries - newest.entries;
    if (entries <= 0 || now - this.#lastAt < every.atLeastMs) return false;
    return (
      (every.entries !== null && entries >= every.entries) ||
      (every.bytes !== null && this.#appendedBytes - this.#bytesAtLast >= every.bytes) ||
      (every.timeMs !== null && now - this.#lastAt >= every.timeMs)
    );
  }

  /** Takes the next version. Rejects with GW_SNAPSHOT_FAILED, GW_STORE_… or GW_CONFLICT; the copy that was asked comes back by itself. */
  capture(reporter: Reporter): Promise<Version> {
    return this.#inTurn(() => this.#capture(reporter));
  }

  async #capture(reporter: Reporter): Promise<Version> {
    const { events, line } = this.#parts;
    await this.#publishing.place();
    const { version, previousHash } = line.next();
    const applier = this.#chooseCopy();
    events.tell({ type: "snapshot", state: "begun", version, replica: applier.name, position: null, detail: "" });
    try {
      const taken = await this.#captureFrom(applier, version, previousHash, reporter);
      const { clock } = this.#parts;
      this.#trouble = null;
      this.#lastSuccessMs = clock.wallMs();
      this.#lastAt = clock.now();
      this.#bytesAtLast = this.#appendedBytes;
      const { position, treeBytes, notes } = taken;
      const detail = `${taken.treeEntries} files and folders, ${treeBytes} bytes, ${notes.newBytes ?? 0} new in the store`;
      events.tell({ type: "snapshot", state: "taken", version, replica: applier.name, position, detail });
      this.#storeBytes = await this.#parts.archivist.size().catch(() => this.#storeBytes);
      return taken;
    } catch (error) {
      this.#trouble = messageOf(error);
      if (!this.#stop.signal.aborted)
        events.tell({
          type: "snapshot",
          state: "failed",
          version,
          replica: applier.name,
          position: null,
          detail: this.#trouble,
        });
      throw error;
    }
  }

  /** Not the primary, when there is a choice: it is the one that once-only parts wait for. */
  #chooseCopy(): Applier {
    const { replicas, placeOf } = this.#parts;
    const able = replicas.liveAppliers().filter((it) => placeOf(it) !== null && !it.isVisited);
    const chosen = able.findLast((it) => it.name !== replicas.primary) ?? able[0];
    if (chosen !== undefined) return chosen;
    throw new GatewayError(
      "GW_SNAPSHOT_FAILED",
      replicas.live.length === 0
        ? "no replica is live: there is no state that could be captured"
        : "no live replica has a state that can be reached",
    );
  }

  async #captureFrom(applier: Applier, version: number, previousHash: string, reporter: Reporter): Promise<Version> {
    const { archivist, events, line } = this.#parts;
    const writing = await archivist.write(this.#stop.signal);
    const former = line.find(version);
    try {
      const taken = await this.#captureUnder(writing, applier, version, previousHash, reporter);
      try {
        writing.check();
      } catch (error) {
        await line.retract(taken);
        throw error;
      }
      if (former !== null) {
        await line.replaced(former);
        const detail =
          "the registry is away for so long that no more versions can wait for it: a newer snapshot took its number";
        events.tell({
          type: "snapshot",
          state: "removed",
          version,
          replica: former.notes.replica,
          position: former.position,
          detail,
        });
      }
      return taken;
    } finally {
      await writing.close();
    }
  }

  async #captureUnder(
    writing: Writing,
    applier: Applier,
    version: number,
    previousHash: string,
    reporter: Reporter,
  ): Promise<Version> {
    const { clock, line, registry, settings } = this.#parts;
    reporter.step(`waiting for ${applier.name} at a mark`);
    const marked = await cutAtMark([applier], `snapshot ${version} from`, this.#parts);
    if (marked === null) throw new GatewayError("GW_SNAPSHOT_FAILED", `${applier.name} left before it was at the mark`);
    const { cut, position } = marked;
    const { head, skips } = cut;
    // Beside the visit: pages that the cut holds cannot be used again until it is closed.
    const keeping = writing.keep(encodeKeyRows(cut.keys())).finally(() => cut.close());
    keeping.catch(() => undefined);
    const captured = await this.#visit(applier, position, reporter).catch((error: unknown) => {
      cut.close();
      throw error;
    });
    reporter.step("storing the key table");
    const keys = await keeping;
    const manifest: Manifest = {
      format: manifestFormat,
      service: settings.service,
      chainId: registry.chainId,
      contract: registry.contract,
      epoch: head.epoch,
      version,
      position,
      hash: head.hash,
      entries: head.entries,
      logTimeMs: head.logTimeMs,
      state: head,
      skips,
      keys,
      backendVersion: applier.settings.backendVersion,
      imageDigest: await this.#parts.imageDigest(applier.name),
      capture: settings.capture,
      root: captured.root,
      listing: captured.listing,
      treeEntries: captured.treeEntries,
      treeBytes: captured.treeBytes,
      previousHash,
    };
    reporter.step("storing the manifest");
    const { newBytes } = captured;
    return line.add(manifest, { replica: applier.name, newBytes, takenMs: clock.wallMs() });
  }

  async #visit(applier: Applier, position: number, reporter: Reporter): Promise<Captured> {
    const { archivist, events, placeOf, settings } = this.#parts;
    const place = placeOf(applier);
    if (place === null)
      throw new GatewayError("GW_SNAPSHOT_FAILED", `${applier.name} has no state that can be reached`);
    const { quiesce } = settings;
    const isStopped = quiesce.kind === "stop" && this.#parts.isStoppable(applier.name);
    // A process that runs on may write through mapped memory, which no time stamp tells of.
    const memory = isStopped ? applier.name : null;
    let captured: Captured | null = null;
    await applier
      .visit({
        state: "lagging",
        reason: `captured at ${position}`,
        isStopped,
        kind: "keep",
        run: async (visited, signal) => {
          const refusal = await askToRest(visited, quiesce);
          if (refusal !== null)
            throw new GatewayError("GW_SNAPSHOT_FAILED", `${applier.name} did not agree to be captured: ${refusal}`);
          reporter.step(`reading the state of ${applier.name}`);
          const either = AbortSignal.any([signal, this.#stop.signal]);
          captured = await archivist.capture(place, memory, either, (done, total) =>
            reporter.progress(done, total, "bytes"),
          );
          return null;
        },
      })
      .catch((error: unknown) => {
        applier.goOn();
        throw error;
      });
    const { skipped } = captured as unknown as Captured;
    if (skipped.length > 0)
      events.tell({
        type: "warning",
        about: `snapshot of ${applier.name}`,
        detail: `left out (no files, folders or links): ${skipped.slice(0, 5).join(", ")}${skipped.length > 5 ? ` and ${skipped.length - 5} more` : ""}`,
      });
    return captured as unknown as Captured;
  }

  // ---- verification ----------------------------------------------------------------------------------------------------------------

  /** Restores a version (null: the newest) into a scratch place and compares. Rejects with GW_SNAPSHOT_CORRUPT or GW_SNAPSHOT_MISSING. */
  verify(version: number | null, reporter: Reporter): Promise<Version> {
    return this.#inTurn(async () => {
      const { archivist, events, line } = this.#parts;
      const found = version === null ? line.newest : line.find(version);
      if (found === null)
        throw new GatewayError(
          "GW_SNAPSHOT_MISSING",
          version === null ? "there is no snapshot yet" : `there is no snapshot of version ${version}`,
        );
      const told = { type: "snapshot", version: found.version, replica: null, position: found.position } as const;
      try {
        reporter.step(`restoring version ${found.version} into a scratch place`);
        const manifest = await line.manifest(found);
        await archivist.drill(manifest, this.#stop.signal, (done, total) => reporter.progress(done, total, "bytes"));
        for await (const _ of keyRowsOf(manifest, archivist)) continue;
      } catch (error) {
        if (error instanceof GatewayError && error.code === "GW_SNAPSHOT_CORRUPT") {
          line.note(found.version, { isVerified: false });
          events.tell({ ...told, state: "unsound", detail: error.message });
        }
        throw error;
      }
      line.note(found.version, { isVerified: true });
      events.tell({ ...told, state: "verified", detail: `its root is ${found.root}` });
      return found;
    });
  }

  // ---- what is kept ----------------------------------------------------------------------------------------------------------------

  async #tidy(): Promise<void> {
    await this.#truncate();
    const { line, settings } = this.#parts;
    await line.settleOwed();
    if (surplusOf(line, settings.keep).length > 0) await this.#inTurn(() => this.#retain());
  }

  async #retain(): Promise<void> {
    const { archivist, events, line, settings } = this.#parts;
    await thinOut(line, settings.keep, events);
    // Somebody who writes is not disturbed: what is not needed any more goes with the next one.
    if (await archivist.collect(this.#keptChunks(), this.#stop.signal)) this.#storeBytes = await archivist.size();
  }

  async *#keptChunks(): AsyncGenerator<string> {
    const { archivist, line } = this.#parts;
    for (const it of line.versions) {
      const manifest = await line.manifest(it);
      yield* archivist.chunksOf(manifest);
      for (const { id } of manifest.keys) yield id;
    }
  }

  async #truncate(): Promise<void> {
    const { line, log, reader, settings, space } = this.#parts;
    if (settings.truncate !== "snapshot" || reader.failure !== null || !log.isReachable()) return;
    const isCrowded = space.info.bytes > space.info.maxBytes * crowded;
    const counting = line.versions.filter((it) => it.epoch === log.epoch && this.#counts(it, isCrowded));
    const target = isCrowded ? counting.at(-1) : counting[0];
    if (target === undefined) return;
    const sequence = sequenceOf(target.position);
    if (sequence < space.info.first) return;
    const behind = this.#parts.replicas.all.filter((it) => it.applied < endOf(sequence));
    // A copy that is behind gets what it needs while there is room; without room it is rebuilt, where it can be.
    if (behind.some((it) => !isCrowded || !this.#parts.isReplaceable(it.name))) return;
    if (!target.notes.isVerified) await this.verify(target.version, silent);
    const manifest = await line.manifest(target);
    await truncateTo(
      { head: manifest.state, skips: manifest.skips, keys: keyRowsOf(manifest, this.#parts.archivist) },
      `snapshot ${target.version} holds what was before`,
      this.#parts,
    );
  }

  /** Final in the registry; or, when it was away for long or the log nears its end, in the store (and tried, before anything is forgotten). */
  #counts(it: Version, isCrowded: boolean): boolean {
    if (it.notes.finalMs !== null) return true;
    return isCrowded || this.#parts.clock.wallMs() - takenMsOf(it) >= this.#parts.settings.truncateUnpublishedMs;
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work, work);
    this.#turn = result.catch(() => undefined);
    return result;
  }
}

/** Throws GW_SNAPSHOT_CORRUPT on bytes that are no rows. */
export const keyRowsOf = (manifest: Manifest, archivist: Archivist): AsyncIterable<KeyRow> =>
  decodeKeyRows(
    archivist.read(manifest.keys),
    (why) =>
      new GatewayError("GW_SNAPSHOT_CORRUPT", `the key table of snapshot ${manifest.version} is damaged: ${why}`),
  );

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
