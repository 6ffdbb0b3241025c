// What the contract says when it refuses, in words that a person understands.

import { GatewayError } from "../../gateway/errors.ts";
import { contractInterface } from "./ethereum-line.ts";
import { RpcError } from "./ethereum-rpc.ts";
import type { ErrorDescription } from "ethers";

/** What a message is about. */
export interface Place {
  readonly service: string;
  readonly contract: string;
}

export const refused = ({ service, contract }: Place, why: string): GatewayError =>
  new GatewayError("GW_REGISTRY_REFUSED", `${service} at ${contract}: ${why}`);

export interface Refusal {
  readonly error: GatewayError;
  /** Somebody else's transaction came before: what stands now may make it right. */
  readonly isRace: boolean;
}

/** Null: the error is not the contract's. */
export function refusalOf(error: unknown, place: Place): Refusal | null {
  if (!(error instanceof RpcError) || !error.isRevert) return null;
  const parsed = parse(error.data);
  const why = parsed === null ? `it reverted without a reason that is known (${error.message})` : wordsOf(parsed);
  return {
    error: refused(place, why),
    isRace: ["WrongVersion", "AlreadyAttested", "AlreadyRegistered"].includes(parsed?.name ?? ""),
  };
}

function parse(data: string | null): ErrorDescription | null {
  try {
    return data === null ? null : contractInterface.parseError(data);
  } catch {
    return null;
  }
}

function wordsOf({ name, args }: ErrorDescription): string {
  const [first] = args.toArray().map((value) => String(value).toLowerCase());
  const words: Readonly<Record<string, string>> = {
    AlreadyRegistered: "the service is registered already",
    NotRegistered: "the service is not registered there",
    NotOwner: `only its owner ${first} may do that`,
    NotPublisher: `the account ${first} is not one of its publishers: its owner adds it with gateway registry publishers --add ${first}`,
    Paused: "its owner has paused the line: nothing is published until it is resumed",
    WrongVersion: `the line's next version is ${first}`,
    WrongPrevious: /^0x0+$/.test(first ?? "")
      ? "the publication builds on a version before it: the first of a line builds on none, and names zeros"
      : `the publication builds on another version than the one that stands, whose manifest is ${first?.slice(2)}`,
    PositionFell: `the position lies below ${first}, that of the version before`,
    NoHash: "the manifest's hash is zero",
    UriTooLong: "its uri has more than 256 bytes",
    AlreadyAttested: "this account attested it already",
    BadPublisher: `${first} is a publisher already, or is none that could be removed`,
    BadQuorum: "the quorum has to be at least 1, and there have to be as many publishers, at most 64",
  };
  return words[name] ?? name;
}
