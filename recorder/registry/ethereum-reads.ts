// What stands in a service's line, and whose word counts: state and events of the contract as publications.

import { GatewayError } from "../../gateway/errors.ts";
import { noManifest } from "../manifest.ts";
import { awaits, holds } from "./ethereum-line.ts";
import type { Blocks } from "./ethereum-blocks.ts";
import type { Decider } from "./ethereum-decided.ts";
import type { Attested, Line, LineReader, View } from "./ethereum-line.ts";
import type { NotesKeeper } from "./ethereum-notes.ts";
import type { Rpc } from "./ethereum-rpc.ts";
import type { Publication, Published } from "./registry.ts";

export interface ReadsOptions {
  readonly rpc: Rpc;
  readonly blocks: Blocks;
  readonly decider: Decider;
  readonly reader: LineReader;
  readonly notes: NotesKeeper;
  /** Whose attestations count; empty: whose the contract takes. */
  readonly publishers: readonly string[];
}

const historyMax = 1000;

export class Reads {
  readonly #options: ReadsOptions;
  readonly #allowed: ReadonlySet<string>;

  constructor(options: ReadsOptions) {
    this.#options = options;
    this.#allowed = new Set(options.publishers.map((address) => address.toLowerCase()));
  }

  async latest(): Promise<Published | null> {
    const { decider, reader, notes } = this.#options;
    const { seen } = notes.read();
    const { newest, stood } = await decider.decide(async (view) => {
      const line = await reader.line(view);
      const stood = seen === null ? undefined : await this.#manifest(view, line, seen.version);
      // Down to the newest that counts here; ends at the first version.
      for (let version = line.nextVersion - 1; version >= line.firstVersion; version -= 1) {
        const newest = await this.#final(view, line, version);
        if (newest.isFinal) return { newest, stood };
      }
      return { newest: null, stood };
    });
    if (seen !== null && stood !== seen.manifestHash)
      throw new GatewayError(
        "GW_REGISTRY_UNAVAILABLE",
        `version ${seen.version} of the line was final with the manifest ${seen.manifestHash}, and now the chain shows ${stood ?? "no such version"}: an endpoint does not tell the truth, or the chain was begun anew (then remove ${notes.where})`,
      );
    if (newest !== null && (seen === null || newest.version > seen.version)) this.#note(newest);
    return newest;
  }

  async history(fromVersion: number, limit: number): Promise<readonly Published[]> {
    const { decider, reader } = this.#options;
    return decider.decide(async (view) => {
      const line = await reader.line(view);
      const told: Published[] = [];
      const most = Math.min(limit, historyMax);
      const from = Math.max(fromVersion, line.firstVersion);
      for (let version = from; version < line.nextVersion && told.length < most; version += 1) {
        const published = await this.#final(view, line, version);
        if (published.isFinal) told.push(published);
      }
      return told;
    });
  }

  async find(version: number): Promise<Published | null> {
    const { decider, reader, rpc, blocks } = this.#options;
    const settled = await decider.decide(async (view) => {
      const line = await reader.line(view);
      return holds(line, version) ? this.#final(view, line, version) : null;
    });
    if (settled !== null) return settled;
    const read = async (view: View): Promise<Published | null> => {
      const line = await reader.line(view);
      if (holds(line, version)) return { ...(await this.#final(view, line, version)), isFinal: false };
      return awaits(line, version) ? this.#pending(view, line, version) : null;
    };
    return rpc.withOne((endpoint) => blocks.readHead(endpoint, read));
  }

  /** At the chain's head: who attests again what was undone does no harm. */
  async othersFor(publication: Publication, own: string | null): Promise<readonly string[]> {
    const { reader, rpc, blocks } = this.#options;
    const read = async (view: View): Promise<readonly string[]> => {
      const line = await reader.line(view);
      if (line.quorum < 2 || !awaits(line, publication.version)) return [];
      const attestations = await reader.attestations(view, reader.candidateOf(publication));
      const others = attestations.map(({ publisher }) => publisher).filter((it) => it !== own && this.#counts(it));
      if (others.length === 0) return [];
      const present = new Set(await reader.publishers(view));
      return others.filter((it) => present.has(it));
    };
    return rpc.withOne((endpoint) => blocks.readHead(endpoint, read));
  }

  /** Of a version that is final in the contract, as the view shows it. */
  async #final(view: View, line: Line, version: number): Promise<Published> {
    const { reader } = this.#options;
    const from = Math.max(line.firstVersion, version - 1);
    const hashes = await reader.manifests(view, from, version - from + 1);
    const event = await reader.final(view, line, version, hashes[version - from] ?? "none");
    const others = await reader.attestations(view, reader.candidateOf(event));
    const attesters = [...new Set([...others.map(({ publisher }) => publisher), event.publisher])];
    const counted = attesters.filter((publisher) => this.#counts(publisher));
    return {
      ...publicationOf(event),
      previousHash: version === line.firstVersion ? noManifest : (hashes[0] as string),
      publishers: counted,
      quorum: line.quorum,
      // The quorum may have been another one then: all who attested it were enough.
      isFinal: counted.length >= Math.min(line.quorum, attesters.length),
      transaction: event.transaction,
      block: event.block,
    };
  }

  /** Of what was attested for the next version: our own, else what most publishers attested. */
  async #pending(view: View, line: Line, version: number): Promise<Published | null> {
    if (line.quorum < 2) return null;
    const { reader, notes } = this.#options;
    const present = new Set(await reader.publishers(view));
    const own = notes.read().sent?.publication ?? null;
    const ownCandidate = own?.version === version ? reader.candidateOf(own) : null;
    const others = await reader.candidates(view, version);
    const tip = await reader.tip(view, line);
    let best: { readonly event: Attested; readonly counted: readonly string[] } | null = null;
    for (const candidate of ownCandidate === null ? others : [ownCandidate, ...others]) {
      const attestations = await reader.attestations(view, candidate);
      const counting = attestations.filter(({ publisher }) => present.has(publisher) && this.#counts(publisher));
      const newest = counting.at(-1);
      if (newest === undefined || counting.length <= (best?.counted.length ?? 0)) continue;
      const event = await reader.attested(view, candidate, newest);
      // What was attested as the first of a line that began elsewhere can never be final.
      if (event?.previousHash === tip) best = { event, counted: counting.map(({ publisher }) => publisher) };
      if (candidate === ownCandidate && best !== null) break;
    }
    if (best === null) return null;
    const { event, counted } = best;
    const { transaction, block } = event;
    return { ...publicationOf(event), publishers: counted, quorum: line.quorum, isFinal: false, transaction, block };
  }

  async #manifest(view: View, line: Line, version: number): Promise<string | undefined> {
    return holds(line, version) ? (await this.#options.reader.manifests(view, version, 1))[0] : undefined;
  }

  #counts(publisher: string): boolean {
    return this.#allowed.size === 0 || this.#allowed.has(publisher);
  }

  #note({ version, manifestHash }: Published): void {
    const { notes } = this.#options;
    try {
      notes.write({ ...notes.read(), seen: { version, manifestHash } });
    } catch {
      // A full disk keeps nobody from reading what is on the chain.
    }
  }
}

function publicationOf({ service, version, position, manifestHash, previousHash, hash, uri }: Attested): Publication {
  return { service, version, position, manifestHash, previousHash, hash, uri };
}
