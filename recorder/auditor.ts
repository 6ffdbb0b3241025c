// Do the copies hold the same state? All of them answer for themselves at one position, or two by two where a copy must be stopped to be read, so that
// one serves on. Equal is proof of agreement; unequal names the culprit, where a majority can.

import { Applier } from "../gateway/applier.ts";
import type { Clock } from "../gateway/clock.ts";
import { GatewayError } from "../gateway/errors.ts";
import type { Events } from "../gateway/events.ts";
import type { Reporter } from "../gateway/operations.ts";
import type { Replica } from "../gateway/replica.ts";
import type { Replicas } from "../gateway/replicas.ts";
import type { Archivist } from "./archivist.ts";
import type { PlaceOptions } from "./capture/place.ts";
import { askToRest } from "./quiesce.ts";
import type { Quiesce } from "./quiesce.ts";

export interface AuditorSettings {
  readonly everyMs: number | null;
  readonly compare: "auto" | "root" | "witness" | "off";
  readonly quiesce: Quiesce;
}

export interface AuditorParts {
  readonly settings: AuditorSettings;
  readonly replicas: Replicas;
  /** Null: states cannot be read. */
  readonly archivist: Archivist | null;
  readonly placeOf: (applier: Applier) => PlaceOptions | null;
  readonly isStoppable: (replica: string) => boolean;
  /** Of several gateways this one audits on schedule. */
  readonly leads: () => boolean;
  readonly events: Events;
  readonly clock: Clock;
}

export interface Verdict {
  readonly position: number;
  readonly isEqual: boolean;
  /** Those that differ from the majority; empty when there is none. */
  readonly culprits: readonly string[];
  readonly detail: string;
}

const checkMs = 1000;

export class Auditor {
  readonly #parts: AuditorParts;
  readonly #stop = new AbortController();
  #done: Promise<void> = Promise.resolve();
  #turn: Promise<unknown> = Promise.resolve();
  /** Of the audit under way; of another gateway's audit nobody here waits for news. */
  #onRead: (done: number, total: number) => void = () => undefined;

  constructor(parts: AuditorParts) {
    this.#parts = parts;
  }

  start(): void {
    this.#parts.replicas.readRootsBy((applier, position) => this.#rootOf(applier, position));
    this.#done = this.#run();
  }
  async close(): Promise<void> {
    this.#stop.abort();
    await this.#done;
    await this.#turn.catch(() => undefined);
  }

  /** Ends with `close`. */
  async #run(): Promise<void> {
    const { clock, settings, events } = this.#parts;
    const { signal } = this.#stop;
    if (settings.everyMs === null) return;
    let lastMs = clock.now();
    for (; !signal.aborted; await clock.sleep(checkMs, signal).catch(() => undefined)) {
      if (!this.#parts.leads() || clock.now() - lastMs < settings.everyMs) continue;
      lastMs = clock.now();
      await this.audit(silent).catch((error: unknown) => {
        if (!signal.aborted)
          events.tell({ type: "audit", result: "impossible", position: null, culprits: [], detail: messageOf(error) });
      });
    }
  }

  /** One at a time. Rejects with GW_CONFLICT when there is nothing to compare. */
  audit(reporter: Reporter): Promise<Verdict> {
    const result = this.#turn.then(() => this.#audit(reporter));
    this.#turn = result.catch(() => undefined);
    return result;
  }

  async #audit(reporter: Reporter): Promise<Verdict> {
    const { replicas, events } = this.#parts;
    const live = replicas.liveReplicas();
    if (live.length < 2)
      throw new GatewayError(
        "GW_CONFLICT",
        `an audit compares live copies; ${live.length} of ${replicas.all.length} is live`,
      );
    const verdict = await (this.#byRoot(live)
      ? this.#compareRoots(live, reporter)
      : this.#compareWitnesses(live, reporter));
    const { isEqual, position, culprits, detail } = verdict;
    if (!isEqual) reporter.finding(detail);
    events.tell({ type: "audit", result: isEqual ? "equal" : "unequal", position, culprits, detail });
    for (const name of culprits) replicas.diverged(name, `its state at ${position} differs from the majority's`);
    return verdict;
  }

  /** What another gateway feeds is taken to be as ours are: it says so when it is not. */
  #byRoot(live: readonly Replica[]): boolean {
    const { archivist, placeOf, settings } = this.#parts;
    const own = live.filter((it) => it instanceof Applier);
    const canRead = archivist !== null && own.every((it) => placeOf(it) !== null);
    const canAsk = own.every((it) => it.settings.witness.length > 0);
    if (settings.compare === "root" && !canRead)
      throw new GatewayError("GW_CONFLICT", "audit.compare is root, and not every copy's state can be read");
    if (settings.compare === "witness" && !canAsk)
      throw new GatewayError("GW_CONFLICT", "audit.compare is witness, and not every copy has one");
    if (settings.compare !== "witness" && canRead) return true;
    if (canAsk) return false;
    throw new GatewayError(
      "GW_CONFLICT",
      "there is nothing to compare: give snapshots.capture, or each copy a witness",
    );
  }

  /** A question takes moments: all of them answer at one position. */
  async #compareWitnesses(live: readonly Replica[], reporter: Reporter): Promise<Verdict> {
    reporter.step("asking the witnesses at a mark");
    const { position, proofs } = await this.#parts.replicas.proofsAtMark(live, "audit", "witness");
    const silentOne = live.find((_, index) => proofs[index] === null);
    if (silentOne !== undefined) throw new GatewayError("GW_CONFLICT", `${silentOne.name} did not answer its witness`);
    return judge(
      position,
      live.map((it, index) => [it.name, proofs[index] as string]),
      "witness",
    );
  }

  /**
   * Two at a time are stopped at a mark of their own and read. With three copies and more one of them serves all along: each is compared with the first, and
   * where they differ, with the others, until a majority is found. Two copies pause the service for as long as reading takes.
   */
  async #compareRoots(live: readonly Replica[], reporter: Reporter): Promise<Verdict> {
    const classes: Replica[][] = [];
    let position = 0;
    for (const it of live) {
      let found: Replica[] | null = null;
      for (const equals of classes) {
        const [representative] = equals as [Replica];
        const pair = await this.#rootsAt([representative, it], reporter);
        position = pair.position;
        if (pair.roots[0] !== pair.roots[1]) continue;
        found = equals;
        break;
      }
      if (found === null) classes.push([it]);
      else found.push(it);
    }
    return judge(
      position,
      classes.flatMap((equals, index) => equals.map((it): [string, string] => [it.name, String(index)])),
      "state",
    );
  }

  async #rootsAt(
    pair: readonly Replica[],
    reporter: Reporter,
  ): Promise<{ position: number; roots: readonly string[] }> {
    const names = pair.map((it) => it.name).join(" and ");
    this.#onRead = (done, total) => reporter.progress(done, total, "bytes");
    reporter.step(`reading ${names} at a mark`);
    const { position, proofs } = await this.#parts.replicas.proofsAtMark(pair, `audit of ${names}`, "root");
    const roots = proofs.filter((it) => it !== null);
    if (roots.length < pair.length)
      throw new GatewayError("GW_CONFLICT", `${names} could not both be read at the mark`);
    return { position, roots };
  }

  async #rootOf(applier: Applier, position: number): Promise<string> {
    const { archivist, isStoppable, placeOf } = this.#parts;
    const { quiesce } = this.#parts.settings;
    const place = placeOf(applier);
    if (archivist === null || place === null)
      throw new GatewayError("GW_CONFLICT", `the state of ${applier.name} cannot be read`);
    let root = "";
    await applier.visit({
      state: "lagging",
      reason: `audited at ${position}`,
      isStopped: quiesce.kind === "stop" && isStoppable(applier.name),
      kind: "keep",
      run: async (visited, signal) => {
        const refusal = await askToRest(visited, quiesce);
        if (refusal !== null)
          throw new GatewayError("GW_CONFLICT", `${applier.name} did not agree to be read: ${refusal}`);
        const either = AbortSignal.any([signal, this.#stop.signal]);
        // What is proof must be read, not remembered.
        root = await archivist.rootOf(place, null, either, this.#onRead);
        return null;
      },
    });
    return root;
  }
}

/** Most alike is the majority; nobody is named where there is none. */
function judge(position: number, answers: readonly (readonly [name: string, answer: string])[], what: string): Verdict {
  const groups = new Map<string, string[]>();
  for (const [name, answer] of answers) groups.set(answer, [...(groups.get(answer) ?? []), name]);
  const sorted = [...groups.values()].toSorted((a, b) => b.length - a.length);
  const [largest = [], second = []] = sorted;
  if (sorted.length === 1)
    return {
      position,
      isEqual: true,
      culprits: [],
      detail: `${what} of ${largest.join(", ")} is equal at ${position}`,
    };
  const hasMajority = largest.length * 2 > answers.length && largest.length > second.length;
  const culprits = hasMajority ? sorted.slice(1).flat() : [];
  const groupsShown = sorted.map((names) => names.join(", ")).join(" | ");
  return {
    position,
    isEqual: false,
    culprits,
    detail: hasMajority
      ? `${what} of ${culprits.join(", ")} differs from that of ${largest.join(", ")} at ${position}`
      : `${what} differs and there is no majority at ${position}: ${groupsShown}`,
  };
}

const silent: Reporter = { step: () => undefined, progress: () => undefined, finding: () => undefined };
const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
