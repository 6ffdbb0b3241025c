// PORT: where snapshots are kept: named objects, nothing more. Adapters: folder.ts, s3.ts, mysql.ts, nats.ts.
//
// Law
// - `put` resolves when the object is durable and whole; whatever is killed before leaves the former object, or none, never a part of one.
//   Putting again replaces. Names are `[a-z0-9][a-z0-9._-]*` in at most four segments parted by "/"; objects have at most `objectBytesMax`.
// - `get` and `list` see every `put` and `remove` that had resolved before they began.
// - What was stored comes back byte for byte, or `get` rejects; who tampers with the store is found out above, by hashes.
// - `remove` of what is not there is no error. `list` yields in no order, and may miss or show what changes meanwhile.
// - Every call ends within the adapter's own time limit: GW_STORE_UNAVAILABLE (may be tried again), GW_STORE_FULL (no room).

export const objectBytesMax = 32 * 1024 * 1024;

export interface StoredObject {
  readonly name: string;
  readonly sizeBytes: number;
  /** Wall clock of the store, ms since 1970. */
  readonly storedAtMs: number;
}

export interface SnapshotStore {
  readonly kind: "folder" | "s3" | "mysql" | "nats";
  /** Where it is, for people; never holds a secret. */
  readonly where: string;
  put(name: string, bytes: Buffer): Promise<void>;
  /** Null: there is none. `range`: bytes from `start` up to but without `end`; both within the object. */
  get(name: string, range?: { readonly start: number; readonly end: number }): Promise<Buffer | null>;
  /** Every object whose name begins with `prefix`. */
  list(prefix: string): AsyncIterable<StoredObject>;
  remove(name: string): Promise<void>;
  close(): Promise<void>;
}

const segment = /^[a-z0-9][a-z0-9._-]{0,127}$/;
export const isObjectName = (name: string): boolean => {
  const parts = name.split("/");
  return parts.length <= 4 && parts.every((part) => segment.test(part));
};

/** Which store, as the configuration says; secrets are in it. */
export type StoreOptions =
  | { readonly kind: "folder"; readonly folder: string }
  | {
      readonly kind: "s3";
      readonly bucket: string;
      /** Without slashes at its ends; may be empty. */
      readonly prefix: string;
      readonly endpoint: string;
      readonly region: string;
      readonly accessKeyId: string;
      readonly secretAccessKey: string;
    }
  | {
      readonly kind: "mysql";
      readonly host: string;
      readonly port: number;
      readonly user: string;
      readonly password: string;
      readonly database: string;
    }
  | {
      readonly kind: "nats";
      readonly bucket: string;
      readonly servers: readonly string[];
      readonly replicas: number;
      readonly credentialsFile: string | null;
      readonly auth: { readonly user: string; readonly password: string } | { readonly token: string } | null;
      readonly tls: { readonly caFile?: string; readonly certFile?: string; readonly keyFile?: string } | null;
    };
