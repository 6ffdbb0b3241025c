// Publishes the line's versions, oldest first, and brings several publishers to one beginning of it. Registry away: everything waits, and nothing else.

import type { Clock } from "../gateway/clock.ts";
import { GatewayError } from "../gateway/errors.ts";
import type { Events } from "../gateway/events.ts";
import type { Line, Waiting } from "./line.ts";
import { noManifest } from "./manifest.ts";
import { Patience } from "./patience.ts";
import type { Publication, Registry } from "./registry/registry.ts";

export interface PublishingSettings {
  readonly service: string;
  readonly publishEveryMs: number;
  /** The store, for people; goes on chain. */
  readonly uri: string;
}

export interface PublishingParts {
  readonly settings: PublishingSettings;
  readonly line: Line;
  readonly registry: Registry;
  readonly events: Events;
  readonly clock: Clock;
}

const finalAgainMs = 15_000;
/** Versions that may be the first of a line, beside the oldest: each is a question to the chain. */
const comparedMax = 64;
/** So that a publication costs at most 60,000 gas. */
const uriCharsMax = 60;

export class Publishing {
  readonly #parts: PublishingParts;
  readonly #patience = new Patience();
  /** The line was compared with the registry: until then nobody knows what the next version is called. */
  #isPlaced = false;
  #isUnderWay = false;
  #publishedAtMs = Number.NEGATIVE_INFINITY;
  /** A publication that is not final yet is looked at again then. */
  #finalAtMs = Number.NEGATIVE_INFINITY;
  /** Manifest hashes of what people were told to be sent, or to wait for others: once is enough. */
  #toldSent = "";
  #toldWaiting = "";

  constructor(parts: PublishingParts) {
    this.#parts = parts;
  }

  get isPlaced(): boolean {
    return this.#isPlaced;
  }

  /** Age of the oldest version that waits for its publication, ms; 0: none waits, or nobody knows. */
  get pendingMs(): number {
    const oldest = this.#parts.line.waiting.find((it) => it.takenMs > 0);
    return oldest === undefined ? 0 : Math.max(0, this.#parts.clock.wallMs() - oldest.takenMs);
  }

  /** Rejects with GW_REGISTRY_UNAVAILABLE while only the registry could tell what the next version is called. */
  async place(): Promise<void> {
    const { line, clock } = this.#parts;
    if (this.#isPlaced) return;
    try {
      await line.lookUp(clock.wallMs());
    } catch (error) {
      // With versions of our own in the store the line is known without the chain.
      if (line.newest === null || !(error instanceof GatewayError)) throw error;
    }
    this.#isPlaced = true;
  }

  /** Another recorder was at the line meanwhile. */
  displace(): void {
    this.#isPlaced = false;
  }

  /** Takes the next step, if it is time for one and none is under way; never rejects. With `publishEvery` all that wait go one after the other, and then none for so long. */
  async goOn(signal: AbortSignal): Promise<void> {
    const { clock } = this.#parts;
    if (this.#isUnderWay || !this.#patience.isOver(clock.now()) || clock.now() < this.#finalAtMs) return;
    this.#isUnderWay = true;
    await this.#publishNext(signal).finally(() => (this.#isUnderWay = false));
  }

  async #publishNext(signal: AbortSignal): Promise<void> {
    const { clock, events, line, registry, settings } = this.#parts;
    let at: Publication | null = null;
    try {
      await this.place();
      if (line.waiting.length === 0 || clock.now() - this.#publishedAtMs < settings.publishEveryMs) return;
      // Whether the line is empty, or could not be asked so far, makes a difference.
      if (line.published === null) await line.lookUp(clock.wallMs());
      at = line.published === null ? await this.#first() : await this.#next(line.published.manifestHash);
      if (at === null) return;
      const { version, position, manifestHash } = at;
      if (this.#toldSent !== manifestHash)
        events.tell({ type: "publication", state: "sent", version, position, detail: manifestHash });
      this.#toldSent = manifestHash;
      const published = await registry.publish(at, signal);
      this.#patience.succeeded();
      line.note(version, { transaction: published.transaction });
      await line.lookUp(clock.wallMs());
      if ((line.published?.version ?? -1) < version) {
        // It stands, and waits for other publishers or for the chain to be sure: both take minutes.
        this.#finalAtMs = clock.now() + finalAgainMs;
        const missing = published.quorum - published.publishers.length;
        if (missing > 0 && this.#toldWaiting !== manifestHash) {
          const detail = `attested by ${published.publishers.length} of ${published.quorum} publishers: it waits for ${missing} more`;
          events.tell({ type: "publication", state: "waiting", version, position, detail });
          this.#toldWaiting = manifestHash;
        }
        return;
      }
      if (line.waiting.length === 0) this.#publishedAtMs = clock.now();
      events.tell({ type: "publication", state: "final", version, position, detail: published.transaction ?? "" });
    } catch (error) {
      if (signal.aborted) return;
      this.#patience.failed(clock.now());
      const { version, position } = at ?? { version: -1, position: 0 };
      const detail = error instanceof Error ? error.message : String(error);
      events.tell({ type: "publication", state: "failed", version, position, detail });
      // Another publisher may have been faster: the next try begins from what stands now.
      if (error instanceof GatewayError && error.code === "GW_REGISTRY_REFUSED")
        await line.lookUp(clock.wallMs()).catch(() => null);
    }
  }

  async #next(previousHash: string): Promise<Publication | null> {
    const [oldest] = this.#parts.line.waiting;
    return oldest === undefined ? null : this.#publicationOf(oldest, previousHash);
  }

  /**
   * An empty line begins anywhere, and publishers whose stores begin at several versions would attest several: what others have attested, and is the same
   * here, comes before the oldest that is whole. Of several the one that most attested, then the newest, which every store comes to have. All may be
   * attested: the first one that enough publishers share is the first of the line.
   */
  async #first(): Promise<Publication | null> {
    const { line, registry } = this.#parts;
    const whole = line.waiting.filter((it) => it.isWhole);
    let chosen: Publication | null = null;
    let most = 0;
    for (const it of [...whole.slice(0, 1), ...whole.slice(1).slice(-comparedMax)]) {
      const publication = await this.#publicationOf(it, noManifest);
      chosen ??= publication;
      const others = await registry.othersFor(publication);
      if (others.length === 0 || others.length < most) continue;
      most = others.length;
      chosen = publication;
    }
    return chosen;
  }

  async #publicationOf(waiting: Waiting, previousHash: string): Promise<Publication> {
    const { line, settings } = this.#parts;
    const { version, manifestHash } = waiting;
    const whole = line.find(version);
    const { position, hash } = whole?.manifestHash === manifestHash ? whole : await line.waitingManifest(waiting);
    const uri = settings.uri.slice(0, uriCharsMax);
    // A registry that is newer than the service begins in the middle of its line.
    return { service: settings.service, version, position, manifestHash, previousHash, hash, uri };
  }
}
