// Brings a publication to stand in its line, whatever comes between: a crash, a reorganisation, another publisher, a chain that is away.

import { GatewayError } from "../../gateway/errors.ts";
import { awaits, contractInterface, holds } from "./ethereum-line.ts";
import { refusalOf, refused } from "./ethereum-refusal.ts";
import { pause } from "./ethereum-sender.ts";
import { versionMax } from "./registry.ts";
import type { Blocks } from "./ethereum-blocks.ts";
import type { Line, LineReader, View } from "./ethereum-line.ts";
import type { Place } from "./ethereum-refusal.ts";
import type { Rpc } from "./ethereum-rpc.ts";
import type { Call, Sender } from "./ethereum-sender.ts";
import type { Publication } from "./registry.ts";

export interface PublisherOptions {
  readonly rpc: Rpc;
  readonly blocks: Blocks;
  readonly reader: LineReader;
  /** Null: read only. */
  readonly sender: Sender | null;
  readonly place: Place;
  /** Who registered the service, or may. */
  readonly owner: string;
  readonly confirmations: number;
  readonly pollMs: number;
  readonly waitMs: number;
}

type Standing =
  /** In as many blocks as the confirmations ask. */
  | { readonly kind: "deep" }
  /** In fewer: it may still be undone. */
  | { readonly kind: "shallow" }
  | { readonly kind: "open"; readonly head: number }
  | { readonly kind: "unregistered"; readonly head: number };

const sendsMax = 5;

export class Publisher {
  readonly #options: PublisherOptions;

  constructor(options: PublisherOptions) {
    this.#options = options;
  }

  /** Resolves when it stands as deep as the confirmations ask: final, or attested by this account and short of others. */
  async publish(publication: Publication, signal: AbortSignal): Promise<void> {
    const { rpc, place, pollMs, waitMs, confirmations } = this.#options;
    const fault = faultOf(publication, place.service);
    if (fault !== null) throw refused(place, `the publication cannot stand: ${fault}`);
    const { version } = publication;
    if (signal.aborted) throw unavailable(place, "interrupted before anything was sent");
    const untilMs = performance.now() + waitMs;
    let sends = 0;
    // Ends when it stands, is refused, cannot be sent, has waited long enough, or the signal aborts.
    for (;;) {
      rpc.distrust();
      const now = await this.#standing(publication);
      if (now.kind === "deep") return;
      if (now.kind === "open" || now.kind === "unregistered") {
        const step = await this.#bring(publication, now, sends < sendsMax, signal);
        if (step === "sent") sends += 1;
        if (step !== "wait") continue;
      }
      if (performance.now() > untilMs)
        throw unavailable(
          place,
          `version ${version} stands, and not yet in ${confirmations} blocks after ${Math.round(waitMs / 1000)} s: does the chain make blocks?`,
        );
      await pause(pollMs, signal, () => `version ${version} stands, and waits for its confirmations`);
    }
  }

  /** A transaction of the owner; resolves when it is in a block. */
  async order(data: string, what: string, signal: AbortSignal): Promise<void> {
    const { rpc, place, sender } = this.#options;
    if (sender === null) throw refused(place, "that takes the owner's key, and none is configured");
    rpc.distrust();
    await sender.settle(signal);
    const receipt = await sender.send({ to: place.contract, data, what, publication: null }, signal);
    if (receipt === null || receipt.isReverted)
      throw unavailable(
        place,
        `the transaction that ${what} was overtaken by another one: look at the line, then try again`,
      );
  }

  /** One step towards it: what was under way is seen to its end first. */
  async #bring(
    publication: Publication,
    now: Extract<Standing, { readonly head: number }>,
    maySend: boolean,
    signal: AbortSignal,
  ): Promise<"sent" | "settled" | "wait"> {
    const { place, sender, owner } = this.#options;
    const { service, version } = publication;
    if (sender === null) throw refused(place, "no key is configured: this gateway only reads what others publish");
    if (now.kind === "unregistered" && sender.address !== owner)
      throw refused(
        place,
        `it is not registered: its owner ${owner} does that with gateway registry deploy --service ${service}, or publishes first`,
      );
    const former = await sender.settle(signal);
    if (former.kind === "ended") return "settled";
    // The block it is in is newer than the one that was looked at.
    if (former.kind === "mined" && former.block > now.head) return "wait";
    if (!maySend) throw unavailable(place, `version ${version} was sent ${sendsMax} times and does not stand`);
    try {
      await sender.send(now.kind === "open" ? this.#publishCall(publication) : this.#registerCall(sender), signal);
    } catch (error) {
      // Where somebody was faster, what stands now decides.
      if (refusalOf(error, place)?.isRace !== true) throw error;
    }
    return "sent";
  }

  #publishCall(publication: Publication): Call {
    const { service, version, position, manifestHash, previousHash, hash, uri } = publication;
    const { reader, place } = this.#options;
    const hashes = [manifestHash, previousHash, hash].map((one) => `0x${one}`);
    return {
      to: place.contract,
      data: contractInterface.encodeFunctionData("publish", [reader.id, version, position, ...hashes, uri]),
      what: `publishes version ${version} of ${service}`,
      publication,
    };
  }

  #registerCall({ address }: Sender): Call {
    const { contract, service } = this.#options.place;
    return {
      to: contract,
      data: contractInterface.encodeFunctionData("register", [service, [address], 1]),
      what: `registers ${service}`,
      publication: null,
    };
  }

  /** Rejects with GW_REGISTRY_REFUSED where it can never stand. */
  async #standing(publication: Publication): Promise<Standing> {
    const { rpc, blocks, reader, place } = this.#options;
    const read = async (view: View): Promise<Standing> => {
      const { endpoint, block: head } = view;
      const line = await reader.line(view);
      if (!line.isRegistered) return { kind: "unregistered", head };
      const { version, manifestHash } = publication;
      if (!awaits(line, version) && !holds(line, version))
        throw refused(
          place,
          `version ${version} cannot be published: the line begins with version ${line.firstVersion}, and its next one is ${line.nextVersion}`,
        );
      if (await this.#stands(view, line, publication)) {
        const deep = { endpoint, block: blocks.deepest(head) };
        const isDeep = await this.#stands(deep, await reader.line(deep), publication);
        return { kind: isDeep ? "deep" : "shallow" };
      }
      if (awaits(line, version)) return { kind: "open", head };
      const [other] = await reader.manifests(view, version, 1);
      throw refused(place, `version ${version} stands with the manifest ${other ?? "?"}, not with ${manifestHash}`);
    };
    return rpc.withOne((endpoint) => blocks.readHead(endpoint, read));
  }

  async #stands(view: View, line: Line, publication: Publication): Promise<boolean> {
    const { reader, sender } = this.#options;
    const { version, manifestHash } = publication;
    if (holds(line, version)) return (await reader.manifests(view, version, 1))[0] === manifestHash;
    if (!awaits(line, version) || line.quorum < 2 || sender === null) return false;
    const attestations = await reader.attestations(view, reader.candidateOf(publication));
    if (!attestations.some(({ publisher }) => publisher === sender.address)) return false;
    // Attested as the first of a line that began elsewhere, and has come this far since: it can never be final.
    if ((await reader.tip(view, line)) !== publication.previousHash) return false;
    const present = new Set(await reader.publishers(view));
    // Enough of them since the quorum became smaller: attesting once more makes it final.
    return attestations.filter(({ publisher }) => present.has(publisher)).length < line.quorum;
  }
}

function faultOf(
  { service, version, position, manifestHash, previousHash, hash, uri }: Publication,
  expected: string,
): string | null {
  if (service !== expected) return `it is of ${service}`;
  if (!Number.isSafeInteger(version) || version < 0 || version > versionMax) return `${version} is no version`;
  if (!Number.isSafeInteger(position) || position < 0) return `${position} is no position`;
  if (![manifestHash, previousHash, hash].every((one) => /^[0-9a-f]{64}$/.test(one)))
    return "a hash is not 64 hex digits";
  if (/^0+$/.test(manifestHash)) return "the manifest's hash is zero";
  return Buffer.byteLength(uri) > 256 ? "its uri has more than 256 bytes" : null;
}

const unavailable = ({ service, contract }: Place, why: string): GatewayError =>
  new GatewayError("GW_REGISTRY_UNAVAILABLE", `${service} at ${contract}: ${why}`);
