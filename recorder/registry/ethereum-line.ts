// A service's line in the contract, as one endpoint shows it at one block: state first, and what is in events by the blocks that the state names.

import { AbiCoder, Interface, keccak256 } from "ethers";
import { GatewayError } from "../../gateway/errors.ts";
import { abi } from "../contract/artifact.ts";
import { noManifest } from "../manifest.ts";
import { RpcFailure, toHex, toNumber } from "./ethereum-rpc.ts";
import type { LogDescription, Result } from "ethers";
import type { Endpoint, Rpc } from "./ethereum-rpc.ts";
import type { Publication } from "./registry.ts";

export const contractInterface = new Interface(abi);

export interface View {
  readonly endpoint: Endpoint;
  readonly block: number;
}

export interface Line {
  readonly isRegistered: boolean;
  readonly owner: string;
  readonly nextOwner: string | null;
  /** 0 while it is empty. */
  readonly firstVersion: number;
  /** 0 while it is empty: then the next may be any. */
  readonly nextVersion: number;
  readonly position: number;
  /** Of the newest one's event. */
  readonly block: number;
  readonly quorum: number;
  readonly isPaused: boolean;
}

const emptyLine: Line = {
  isRegistered: false,
  owner: `0x${"0".repeat(40)}`,
  nextOwner: null,
  firstVersion: 0,
  nextVersion: 0,
  position: 0,
  block: 0,
  quorum: 0,
  isPaused: false,
};

/** Whether the version is final in it. */
export const holds = (line: Line, version: number): boolean =>
  version >= line.firstVersion && version < line.nextVersion;

/** Whether the version may be the line's next. */
export const awaits = (line: Line, version: number): boolean => line.nextVersion === 0 || version === line.nextVersion;

/** One attestation, final or not, as its event tells. */
export interface Attested extends Publication {
  readonly publisher: string;
  readonly transaction: string;
  readonly block: number;
  /** Of the event of the version before; 0 where it is not final. */
  readonly previousBlock: number;
}

export interface Attestation {
  readonly publisher: string;
  readonly block: number;
}

/** Versions that an endpoint is followed back: one question each. */
const walkMax = 10_000;
const candidatesMax = 64;

export class LineReader {
  readonly #rpc: Rpc;
  readonly #contract: string;
  readonly #service: string;
  readonly id: string;
  /** Events by version, looked up once; what one endpoint shows never stands for another. */
  readonly #known = new WeakMap<Endpoint, Map<number, Attested>>();

  constructor(rpc: Rpc, contract: string, owner: string, service: string) {
    this.#rpc = rpc;
    this.#contract = contract;
    this.#service = service;
    this.id = keccak256(AbiCoder.defaultAbiCoder().encode(["address", "string"], [owner, service]));
  }

  /** Before the contract was there, a line is empty; where it is not there now either, rejects. */
  async line(view: View): Promise<Line> {
    const answer = await this.#call(view, "lineOf", [this.id], true);
    if (answer === null) {
      const block = toNumber(await this.#rpc.callAt(view.endpoint, "eth_blockNumber", []));
      await this.#call({ ...view, block }, "lineOf", [this.id], false);
      return emptyLine;
    }
    const [owner, nextOwner, nextVersion, position, block, quorum, isPaused, firstVersion] = answer;
    return {
      isRegistered: BigInt(owner) !== 0n,
      owner: lower(owner),
      nextOwner: BigInt(nextOwner) === 0n ? null : lower(nextOwner),
      firstVersion: count(firstVersion),
      nextVersion: count(nextVersion),
      position: count(position),
      block: count(block),
      quorum: count(quorum),
      isPaused: isPaused === true,
    };
  }

  /** Manifest hashes of final versions from `from` on, at most `limit`, bare hex; zeros below the line's first. */
  async manifests(view: View, from: number, limit: number): Promise<readonly string[]> {
    const [hashes] = await this.#call(view, "history", [this.id, from, limit]);
    return [...(hashes as readonly string[])].map(bare);
  }

  /** What the line's next version has to name. */
  async tip(view: View, { nextVersion }: Line): Promise<string> {
    return nextVersion === 0 ? noManifest : ((await this.manifests(view, nextVersion - 1, 1))[0] ?? "none");
  }

  async publishers(view: View): Promise<readonly string[]> {
    const [publishers] = await this.#call(view, "publishersOf", [this.id]);
    return [...(publishers as readonly string[])].map(lower);
  }

  candidateOf({ version, position, manifestHash, previousHash, hash }: Publication): string {
    return keccak256(
      AbiCoder.defaultAbiCoder().encode(
        ["bytes32", "uint40", "uint56", "bytes32", "bytes32", "bytes32"],
        [this.id, version, position, `0x${manifestHash}`, `0x${previousHash}`, `0x${hash}`],
      ),
    );
  }

  async attestations(view: View, candidate: string): Promise<readonly Attestation[]> {
    const [all] = await this.#call(view, "attestations", [this.id, candidate]);
    return [...(all as readonly Result[])].map(([publisher, block]) => ({
      publisher: lower(publisher),
      block: count(block),
    }));
  }

  /** The first ones: nobody can be kept from attesting any number. */
  async candidates(view: View, version: number): Promise<readonly string[]> {
    const [all] = await this.#call(view, "candidates", [this.id, version, 0, candidatesMax]);
    return [...(all as readonly string[])];
  }

  /** The event that made a version final, whose manifest the contract shows. */
  async final(view: View, line: Line, version: number, manifestHash: string): Promise<Attested> {
    const known = this.#knownOf(view.endpoint);
    let event = await this.#walk(view, line, version, known);
    if (event?.manifestHash !== manifestHash && known.size > 0) {
      // What is known from before may have been undone by a reorganisation.
      known.clear();
      event = await this.#walk(view, line, version, known);
    }
    if (event?.manifestHash === manifestHash) return event;
    throw new GatewayError(
      "GW_REGISTRY_UNAVAILABLE",
      `${view.endpoint.name} shows version ${version} of ${this.#service} with the manifest ${manifestHash} in the contract, and with ${event?.manifestHash ?? "none"} in the events of the blocks that the contract names: it does not tell the truth, or keeps no events of that age`,
    );
  }

  /** From the newest back to the version, over the blocks that state and events name; null: an event is not where it has to be. */
  async #walk(view: View, line: Line, version: number, known: Map<number, Attested>): Promise<Attested | null> {
    if (line.nextVersion - version > walkMax)
      throw new GatewayError(
        "GW_REGISTRY_UNAVAILABLE",
        `version ${version} of ${this.#service} is more than ${walkMax} versions back: nothing that old is looked up`,
      );
    if (known.size > walkMax) known.clear();
    let block = line.block;
    for (let at = line.nextVersion - 1; at >= version; at -= 1) {
      let event = known.get(at);
      if (event?.block !== block) event = (await this.#events(view, "Final", block)).find((one) => one.version === at);
      if (event === undefined) return null;
      known.set(at, event);
      if (at === version) return event;
      block = event.previousBlock;
    }
    return null;
  }

  /** The event of an attestation that was not the last one. */
  async attested(view: View, candidate: string, { publisher, block }: Attestation): Promise<Attested | null> {
    const events = await this.#events(view, "Attested", block);
    return events.find((one) => one.publisher === publisher && this.candidateOf(one) === candidate) ?? null;
  }

  async #events(view: View, name: "Final" | "Attested", block: number): Promise<readonly Attested[]> {
    const topic = contractInterface.getEvent(name)?.topicHash as string;
    const filter = {
      address: this.#contract,
      fromBlock: toHex(block),
      toBlock: toHex(block),
      topics: [topic, this.id],
    };
    const logs = (await this.#rpc.callAt(view.endpoint, "eth_getLogs", [filter])) as readonly Log[];
    if (!Array.isArray(logs))
      throw new RpcFailure(`${view.endpoint.name} answers with something that is no list of events`);
    return logs.flatMap((log) => {
      const isOurs = log.address?.toLowerCase() === this.#contract && log.topics?.[1] === this.id;
      const parsed = isOurs ? parseLog(log) : null;
      // A hostile publisher may attest numbers that no gateway writes: what others did in that block is read nevertheless.
      const isReadable = parsed?.name === name && Number.isSafeInteger(Number(parsed.args["position"]));
      return isReadable ? [attestedOf(this.#service, parsed, log)] : [];
    });
  }

  async #call(view: View, name: string, args: readonly unknown[]): Promise<Result>;
  async #call(view: View, name: string, args: readonly unknown[], mayBeMissing: boolean): Promise<Result | null>;
  async #call(view: View, name: string, args: readonly unknown[], mayBeMissing = false): Promise<Result | null> {
    const data = contractInterface.encodeFunctionData(name, args);
    const answer = await this.#rpc.callAt(view.endpoint, "eth_call", [{ to: this.#contract, data }, toHex(view.block)]);
    if (answer === "0x" && mayBeMissing) return null;
    try {
      return contractInterface.decodeFunctionResult(name, answer as string);
    } catch {
      throw new GatewayError(
        "GW_REGISTRY_UNAVAILABLE",
        `${view.endpoint.name} shows no SnapshotRegistry at ${this.#contract} in block ${view.block}: check the address (gateway registry deploy prints it) and the chain`,
      );
    }
  }

  #knownOf(endpoint: Endpoint): Map<number, Attested> {
    let known = this.#known.get(endpoint);
    if (known === undefined) this.#known.set(endpoint, (known = new Map()));
    return known;
  }
}

interface Log {
  readonly address?: string;
  readonly topics?: readonly string[];
  readonly data?: string;
  readonly transactionHash?: string;
  readonly blockNumber?: string;
}

function parseLog({ topics = [], data = "0x" }: Log): LogDescription | null {
  try {
    return contractInterface.parseLog({ topics: [...topics], data });
  } catch {
    return null;
  }
}

function attestedOf(service: string, { args, name }: LogDescription, log: Log): Attested {
  return {
    service,
    version: count(args["version"]),
    position: count(args["position"]),
    manifestHash: bare(args["manifestHash"]),
    previousHash: bare(args["previousHash"]),
    hash: bare(args["stateHash"]),
    uri: String(args["uri"]),
    publisher: lower(args["publisher"]),
    transaction: String(log.transactionHash),
    block: toNumber(log.blockNumber),
    previousBlock: name === "Final" ? count(args["previousBlock"]) : 0,
  };
}

const lower = (address: unknown): string => String(address).toLowerCase();
const bare = (hash: unknown): string => String(hash).slice(2).toLowerCase();

/** The contract's numbers are wider than ours: what does not fit was never written by a gateway. */
function count(value: unknown): number {
  const number = Number(value);
  if (!Number.isSafeInteger(number))
    throw new RpcFailure(`the contract holds ${String(value)}, which no gateway writes`);
  return number;
}
