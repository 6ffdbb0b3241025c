// PORT: where the hashes of manifests are published, so that nobody can pass off another state as the recorded one.
// Adapters: file.ts (a hash-chained file), ethereum.ts (the contract SnapshotRegistry on any EVM chain).
//
// Law
// - A service's line only grows. It begins with the version of its first publication, whichever that is (a new registry may come to a service that has
//   versions already), which names zeros: the line knows nothing before it. From there on versions have no gaps, and each publication names the manifest
//   hash of the one before it; positions never fall. What breaks that rejects with GW_REGISTRY_REFUSED, and nothing is published.
// - Where several publishers have to agree, they may attest several first versions: the one that enough of them attest first is the first, and a version
//   below it is never published. `othersFor` tells who else attests a publication, so that they can come to agree.
// - `publish` is idempotent: the same publication again attests it, or finds that it stands, and resolves. It resolves when the publication stands as deep as
//   the adapter's confirmations ask; until then it may be undone (a reorganisation), and is published again by the next `publish` or `check`.
//   Rejects with GW_REGISTRY_UNAVAILABLE (may be tried again: nothing is lost, nothing is published twice) or GW_REGISTRY_REFUSED.
// - `latest` and `history` tell only what is final there: enough publishers attested the same hash, and the chain will not undo it ("finalized", or the
//   confirmations on chains that have no such block). Publications by unknown publishers are not told.

/** The contract counts in 40 bits, and counts the version after this one, too. */
export const versionMax = 2 ** 40 - 2;

export interface Publication {
  readonly service: string;
  /** From 0 to versionMax. */
  readonly version: number;
  readonly position: number;
  /** SHA-256 of the manifest's bytes, lower-case hex. */
  readonly manifestHash: string;
  /** Of the version before; 64 zeros for the first of the line. */
  readonly previousHash: string;
  /** H at the position, lower-case hex. */
  readonly hash: string;
  /** Where the store is, for people; never a secret. At most 256 bytes. */
  readonly uri: string;
}

export interface Published extends Publication {
  /** Who attested it: addresses, or the gateway's name for a file. */
  readonly publishers: readonly string[];
  readonly quorum: number;
  readonly isFinal: boolean;
  /** Transaction of the last attestation that is known, 0x…; null for a file. */
  readonly transaction: string | null;
  readonly block: number | null;
}

export interface RegistryStatus {
  readonly kind: "file" | "ethereum";
  /** Contract address or path, for people. */
  readonly where: string;
  readonly chainId: string | null;
  readonly isReachable: boolean;
  /** Why not, or null. */
  readonly trouble: string | null;
  /** Of the publishing account, decimal; null for a file or when not known. */
  readonly balanceWei: string | null;
  readonly errors: number;
}

export interface Registry {
  readonly kind: "file" | "ethereum";
  /** What manifests name: decimal chain id, and 0x… contract address in lower case; nulls for a file. */
  readonly chainId: string | null;
  readonly contract: string | null;
  publish(publication: Publication, signal: AbortSignal): Promise<Published>;
  /** The version's publication as it stands now, final or not; null: none stands (any more), or the line begins behind it. */
  find(version: number): Promise<Published | null>;
  /** Publishers beside this one that attest exactly this, which is not final yet; those that count here. */
  othersFor(publication: Publication): Promise<readonly string[]>;
  /** The newest final one; null: none. */
  latest(): Promise<Published | null>;
  /** Final ones from `fromVersion`, or where the line begins behind it from there, upwards, at most `limit`, oldest first. */
  history(fromVersion: number, limit: number): Promise<readonly Published[]>;
  status(): Promise<RegistryStatus>;
  close(): Promise<void>;
}
