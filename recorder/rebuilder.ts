// Makes a copy anew: a verified snapshot, then the log after it. What held, quarantined, forgetful and new copies get, in a running gateway and in `gateway recover`.

import type { Applier, Former, Standpoint, Visited } from "../gateway/applier.ts";
import type { Clock } from "../gateway/clock.ts";
import type { Digests } from "../gateway/digests/digests.ts";
import { endOf, sequenceOf } from "../gateway/entry.ts";
import { GatewayError } from "../gateway/errors.ts";
import type { Events } from "../gateway/events.ts";
import type { Log } from "../gateway/log/log.ts";
import type { Reporter } from "../gateway/operations.ts";
import type { Policies } from "../gateway/policies.ts";
import { firstHash } from "../gateway/record.ts";
import type { LogReader } from "../gateway/reader.ts";
import type { Difference } from "../gateway/replaycheck.ts";
import { ReplayCheck } from "../gateway/replaycheck.ts";
import type { Replicas } from "../gateway/replicas.ts";
import type { Archivist } from "./archivist.ts";
import type { PlaceOptions } from "./capture/place.ts";
import { findStale, oldCredentials } from "./credentials.ts";
import type { Line, Version } from "./line.ts";
import type { Manifest } from "./manifest.ts";
import type { Origin } from "./origin.ts";
import type { Recorder } from "./recorder.ts";
import type { Registry } from "./registry/registry.ts";

export interface RebuilderParts {
  readonly line: Line;
  readonly registry: Registry;
  readonly archivist: Archivist;
  /** Takes a snapshot where there is none to begin with. */
  readonly recorder: Pick<Recorder, "capture">;
  readonly replicas: Replicas;
  readonly reader: LogReader;
  readonly policies: Policies;
  readonly log: Log;
  readonly digests: Digests;
  readonly events: Events;
  readonly clock: Clock;
  readonly placeOf: (applier: Applier) => PlaceOptions | null;
  /** Its backend can be ended and started by us. */
  readonly isStoppable: (replica: string) => boolean;
  /** Its state can be replaced, whether or not it runs now. */
  readonly isReplaceable: (replica: string) => boolean;
  readonly imageDigest: (replica: string) => Promise<string | null>;
  readonly rebuildsPerHour: number;
  /** Exports and imports need a backend that runs. */
  readonly needsBackend: boolean;
  /** Where this log goes on from, when it was begun anew after a loss. */
  readonly origin: Origin | null;
  readonly isOtherImageAllowed: boolean;
  /** Of several gateways this one records. */
  readonly leads: () => boolean;
}

/** From which version, and how what was replayed was answered: as at first, or with nothing to compare with. */
export interface Rebuilt {
  readonly version: number;
  readonly equal: number;
  readonly unverified: number;
}

const everyMs = 500;
const hourMs = 3_600_000;
const againMs = [5_000, 30_000, 120_000, 600_000];

export class Rebuilder {
  readonly #parts: RebuilderParts;
  readonly #stop = new AbortController();
  #done: Promise<void> = Promise.resolve();
  #turn: Promise<unknown> = Promise.resolve();
  readonly #failures = new Map<string, { count: number; atMs: number }>();
  /** Copies whose backends took no old credentials, and under which rules: by themselves they are rebuilt under others only. */
  readonly #refused = new Map<string, string>();
  /** Of copies that disagreed, the last hour's. */
  #begunMs: number[] = [];

  constructor(parts: RebuilderParts) {
    this.#parts = parts;
  }

  start(): void {
    this.#done = this.#run();
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#done;
    await this.#turn.catch(() => undefined);
  }

  /** Ends with `close`. */
  async #run(): Promise<void> {
    const { clock, replicas } = this.#parts;
    const { signal } = this.#stop;
    for (; !signal.aborted; await clock.sleep(everyMs, signal).catch(() => undefined)) {
      const needy = replicas.own.find((it) => this.#needs(it));
      if (needy === undefined) continue;
      await this.rebuild(needy.name, null, silent).then(
        () => this.#failures.delete(needy.name),
        () =>
          this.#failures.set(needy.name, {
            count: (this.#failures.get(needy.name)?.count ?? 0) + 1,
            atMs: clock.now(),
          }),
      );
    }
  }

  #needs(it: Applier): boolean {
    const { clock, isReplaceable, replicas } = this.#parts;
    if (it.isVisited || !isReplaceable(it.name)) return false;
    if (this.#refused.get(it.name) === this.#parts.policies.digest) return false;
    const failed = this.#failures.get(it.name);
    if (failed !== undefined) {
      const patienceMs = againMs[Math.min(failed.count - 1, againMs.length - 1)] as number;
      if (clock.now() - failed.atMs < patienceMs) return false;
    }
    if (it.state === "held" || it.state === "restoring") return true;
    if (it.state !== "quarantined" || !replicas.wantsRebuild(it.name)) return false;
    this.#begunMs = this.#begunMs.filter((atMs) => clock.now() - atMs < hourMs);
    if (this.#begunMs.length >= this.#parts.rebuildsPerHour) return false;
    this.#begunMs.push(clock.now());
    return true;
  }

  /**
   * One at a time. Resolves when the copy is live again; rejects with what stopped it, and the copy stays out of service. Where its backend takes no old
   * credentials it has its former state again, as far as that was kept aside (GW_RECOVERY_REFUSED), and goes on from where that stood: `former`, or what its
   * applier knows.
   */
  rebuild(name: string, version: number | null, reporter: Reporter, former: Former | null = null): Promise<Rebuilt> {
    const result = this.#turn.then(() => this.#rebuild(name, version, reporter, former));
    this.#turn = result.catch(() => undefined);
    return result;
  }

  async #rebuild(name: string, version: number | null, reporter: Reporter, former: Former | null): Promise<Rebuilt> {
    const { events, clock, replicas } = this.#parts;
    const applier = replicas.applier(name);
    const begunMs = clock.now();
    events.tell({ type: "recovery", replica: name, state: "begun", detail: "" });
    try {
      if (!this.#parts.isReplaceable(name))
        throw new GatewayError(
          "GW_RECOVERY_REFUSED",
          `the state of ${name} cannot be replaced from here: give it state, stop and start, or snapshots.capture with restore or import`,
        );
      // Another gateway records: what it has taken since is not known here.
      if (!this.#parts.leads()) await this.#parts.line.load();
      const result = await this.#firstThatServes(applier, version, reporter, former);
      this.#refused.delete(name);
      replicas.rebuilt(name);
      const { version: from, equal, unverified } = result;
      const seconds = ((clock.now() - begunMs) / 1000).toFixed(1);
      const detail = `snapshot ${from}, ${equal} replayed answers equal, ${unverified} unverified, in ${seconds} s`;
      events.tell({ type: "recovery", replica: name, state: "done", detail });
      return result;
    } catch (error) {
      const detail = error instanceof Error ? error.message : String(error);
      if (!this.#stop.signal.aborted) events.tell({ type: "recovery", replica: name, state: "failed", detail });
      throw error;
    }
  }

  /** The newest version that is sound; a damaged one is told of, and the next older one is taken, unless a person named it. */
  async #firstThatServes(
    applier: Applier,
    version: number | null,
    reporter: Reporter,
    former: Former | null,
  ): Promise<Rebuilt> {
    const { events, line } = this.#parts;
    const refused: string[] = [];
    // Of a snapshot that is damaged nothing was put in place: what stood there is the former state for the next one, too.
    const stood = { former };
    for (const candidate of await this.#candidates(version, reporter)) {
      try {
        await this.#vouchFor(candidate);
        return await this.#from(applier, candidate, await line.manifest(candidate), reporter, stood);
      } catch (error) {
        const isDamaged =
          error instanceof GatewayError &&
          (error.code === "GW_SNAPSHOT_CORRUPT" || error.code === "GW_SNAPSHOT_MISSING");
        if (!isDamaged || version !== null) throw error;
        refused.push(`version ${candidate.version}: ${error.message}`);
        const { position } = candidate;
        const detail = error.message;
        events.tell({
          type: "snapshot",
          state: "unsound",
          version: candidate.version,
          replica: null,
          position,
          detail,
        });
      }
    }
    throw new GatewayError(
      "GW_RECOVERY_REFUSED",
      refused.length === 0
        ? "there is no snapshot that the log goes on from"
        : `no snapshot is sound: ${refused.join("; ")}`,
    );
  }

  async #candidates(version: number | null, reporter: Reporter): Promise<readonly Version[]> {
    const { line, log, recorder } = this.#parts;
    const { first } = await log.info();
    const fits = (it: Version): boolean => {
      const from = this.#sequenceOf(it);
      return from !== null && from + 1 >= first;
    };
    if (version !== null) {
      const found = line.find(version);
      if (found === null) throw new GatewayError("GW_SNAPSHOT_MISSING", `there is no snapshot of version ${version}`);
      if (!fits(found))
        throw new GatewayError(
          "GW_RECOVERY_REFUSED",
          `the log does not hold what follows snapshot ${version}: it begins at record ${first}`,
        );
      return [found];
    }
    const fitting = line.versions.filter(fits).toReversed();
    if (fitting.length > 0) return fitting;
    reporter.step("there is no snapshot yet: one is taken from a live copy");
    return [await recorder.capture(reporter)];
  }

  /** The record of this log that a version stands behind; null: it is of another log. */
  #sequenceOf(it: Version): number | null {
    const { log, origin } = this.#parts;
    if (it.epoch === log.epoch) return sequenceOf(it.position);
    const isOrigin = origin !== null && origin.epoch === log.epoch && origin.manifestHash === it.manifestHash;
    return isOrigin ? origin.firstSequence - 1 : null;
  }

  /** What the registry knows of a version must be what the store offers; a version it does not know yet is vouched for by this recorder alone. */
  async #vouchFor({ version, manifestHash }: Version): Promise<void> {
    const { line, registry } = this.#parts;
    if (line.published === null || version > line.published.version) return;
    const stands = await registry.find(version).catch(() => null);
    if (stands !== null && stands.isFinal && stands.manifestHash !== manifestHash)
      throw new GatewayError(
        "GW_SNAPSHOT_CORRUPT",
        `the store offers the manifest ${manifestHash} as version ${version}, the registry knows ${stands.manifestHash}`,
      );
  }

  async #from(
    applier: Applier,
    at: Version,
    manifest: Manifest,
    reporter: Reporter,
    stood: { former: Former | null },
  ): Promise<Rebuilt> {
    const { clock, log, policies } = this.#parts;
    const { signal } = this.#stop;
    await this.#checkImage(applier.name, manifest);
    reporter.step("looking through what is to be replayed");
    await this.#checkCredentials(at);
    const differences: Difference[] = [];
    const check = new ReplayCheck({
      digests: this.#parts.digests,
      epoch: log.epoch,
      backendVersion: applier.settings.backendVersion,
      oldCredentials: (entry, rule) => oldCredentials(entry, rule, policies),
      onDifference: (difference) => {
        differences.push(difference);
        applier.order("quarantined", saidOf(difference));
      },
    });
    await applier.visit({
      state: "restoring",
      reason: `rebuilt from snapshot ${at.version}`,
      isStopped: this.#parts.isStoppable(applier.name),
      kind: "replace",
      run: (visited, life) => {
        stood.former ??= visited.former;
        return this.#restore(applier, at, manifest, check, visited, life, reporter);
      },
    });
    reporter.step(`replaying the log on ${applier.name}`);
    const entriesToReplay = applier.lag;
    // Ends when the copy is live or out of service: both are decided by the applier.
    while (applier.state !== "live") {
      if (signal.aborted) throw new GatewayError("GW_STOPPING", "the gateway is stopping");
      const [difference] = differences;
      if (difference !== undefined && difference.oldCredentials.length > 0)
        throw await this.#putBack(applier, stood.former, saidOf(difference), reporter);
      if (difference !== undefined) throw new GatewayError("GW_REPLAY_DIFFERS", saidOf(difference));
      if (applier.state === "quarantined" || applier.state === "held" || applier.state === "gone")
        throw new GatewayError("GW_RESTORE_FAILED", `${applier.name} is ${applier.state}: ${applier.reason}`);
      reporter.progress(Math.max(0, entriesToReplay - applier.lag), entriesToReplay, "entries");
      await clock.sleep(20, signal).catch(() => undefined);
    }
    return { version: at.version, equal: check.equal, unverified: check.unverified };
  }

  /** The state that the copy had before, and its place in the log: a backend that takes no old credentials cannot be rebuilt, and keeps what it has. */
  async #putBack(applier: Applier, former: Former | null, why: string, reporter: Reporter): Promise<GatewayError> {
    const { archivist, placeOf, policies } = this.#parts;
    const { name } = applier;
    this.#refused.set(name, policies.digest);
    const place = placeOf(applier);
    const differs = (what: string): GatewayError => new GatewayError("GW_REPLAY_DIFFERS", `${why}. ${what}`);
    if (place === null || place.kind === "command" || place.kind === "http")
      return differs(`What ${name} had before was not kept aside: it stays out of service until it is rebuilt`);
    reporter.step(`putting back what ${name} had before`);
    let isBack = false;
    const whyAgain = `not rebuilt: ${why}`;
    try {
      await applier.visit({
        state: "restoring",
        reason: whyAgain,
        isStopped: this.#parts.isStoppable(name),
        kind: "replace",
        run: async (_visited, life) => {
          isBack = await archivist.putBack(place, AbortSignal.any([life, this.#stop.signal]));
          if (!isBack) throw differs(`${name} had no state before: it stays out of service until it is rebuilt`);
          if (former === null)
            throw new GatewayError(
              "GW_RECOVERY_REFUSED",
              `${why}. ${name} has its former state again; what that is the state of is not known here`,
            );
          const { applied, entries, hash, standing } = former;
          const formerReason = standing?.reason.split("; not rebuilt: ")[0] ?? "";
          return {
            applied,
            entries,
            hash,
            check: null,
            former: {
              ...former,
              whyAgain,
              standing: standing === null ? null : { ...standing, reason: `${formerReason}; ${whyAgain}` },
            },
          };
        },
      });
    } catch (error) {
      if (error instanceof GatewayError && error.message.startsWith(why)) return error;
      return differs(
        `What it had before could not be put back: ${error instanceof Error ? error.message : String(error)}`,
      );
    }
    return new GatewayError("GW_RECOVERY_REFUSED", `${why}. ${name} has its former state again, and stands as before`);
  }

  /** Rejects with what would stop a rebuild from this version before anything is touched. */
  async examine(name: string, version: number): Promise<void> {
    const found = this.#parts.line.find(version);
    if (found === null) throw new GatewayError("GW_SNAPSHOT_MISSING", `there is no snapshot of version ${version}`);
    await this.#vouchFor(found);
    await this.#checkImage(name, await this.#parts.line.manifest(found));
    await this.#checkCredentials(found);
  }

  async #checkCredentials(at: Version): Promise<void> {
    const { clock, log, policies, reader } = this.#parts;
    const from = (this.#sequenceOf(at) ?? 0) + 1;
    const stale = await findStale(log, policies, from, reader.sequence, clock.wallMs(), this.#stop.signal);
    if (stale !== null)
      throw new GatewayError(
        "GW_RECOVERY_REFUSED",
        `entry ${stale.position} (rule ${stale.rule}) carries a token that expired ${new Date(stale.expiredMs).toISOString()}: give the rule replay: { set: { authorization: … } }. Nothing was touched`,
      );
  }

  async #checkImage(name: string, manifest: Manifest): Promise<void> {
    const own = await this.#parts.imageDigest(name);
    if (this.#parts.isOtherImageAllowed) return;
    if (manifest.imageDigest !== null && own !== null && own !== manifest.imageDigest)
      throw new GatewayError(
        "GW_RECOVERY_REFUSED",
        `snapshot ${manifest.version} is of the image ${manifest.imageDigest}, ${name} runs ${own}`,
      );
  }

  async #restore(
    applier: Applier,
    at: Version,
    manifest: Manifest,
    check: ReplayCheck,
    visited: Visited,
    life: AbortSignal,
    reporter: Reporter,
  ): Promise<Standpoint> {
    const { archivist, needsBackend, placeOf } = this.#parts;
    if (needsBackend) await visited.start(life);
    const place = placeOf(applier);
    if (place === null)
      throw new GatewayError("GW_RECOVERY_REFUSED", `there is no way to the state of ${applier.name}`);
    reporter.step(`restoring version ${at.version} on ${applier.name}`);
    await archivist.restore(manifest, place, AbortSignal.any([life, this.#stop.signal]), (done, total) =>
      reporter.progress(done, total, "bytes"),
    );
    const sequence = this.#sequenceOf(at) ?? 0;
    // A log that was begun anew has its own running hash, from its first record on.
    const hash = at.epoch === this.#parts.log.epoch ? at.hash : firstHash.toString("hex");
    return { applied: endOf(sequence), entries: at.entries, hash, check };
  }
}

const silent: Reporter = { step: () => undefined, progress: () => undefined, finding: () => undefined };

const saidOf = ({ position, rule, status, oldCredentials: fields }: Difference): string =>
  `entry ${position} (rule ${rule}) was answered with status ${status} when it was replayed, and otherwise at first` +
  (fields.length === 0
    ? ""
    : `: its credentials are old; give the rule replay: { set: { ${fields.map((it) => `${it}: …`).join(", ")} } }`);
