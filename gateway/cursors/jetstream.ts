// Cursors on NATS, in a bucket that `nats kv` can show: one value a replica.

import { BucketGoneError, NatsDocuments } from "../drivers/nats-documents.ts";
import type { StoredBytes } from "../drivers/nats-documents.ts";
import { serviceToken } from "../drivers/nats.ts";
import type { Nats } from "../drivers/nats.ts";
import type { Cursor, Cursors, Saved, StoredCursor } from "./cursors.ts";
import { cursorLost, encodeCursor, parseCursor } from "./stored.ts";

export interface JetStreamCursorsOptions {
  /** Opened and closed by the caller. */
  readonly nats: Nats;
  readonly service: string;
  readonly replicas: number;
  /** After it a save counts as unknown, and a load as failed. */
  readonly timeoutMs?: number;
}

/** Makes the bucket if there is none. Rejects with GW_LOG_CONFIGURATION for one that is not as it must be, and GW_LOG_UNAVAILABLE. */
export async function openJetStreamCursors({ service, ...options }: JetStreamCursorsOptions): Promise<Cursors> {
  const bucket = cursorsBucket(service);
  return new JetStreamCursors(
    await NatsDocuments.open({ ...options, bucket, leaf: "cursor", all: "the cursors", stepName: "cursor.save" }),
  );
}

export const cursorsBucket = (service: string): string => `GW_${serviceToken(service)}_CURSORS`;

class JetStreamCursors implements Cursors {
  readonly #documents: NatsDocuments;

  constructor(documents: NatsDocuments) {
    this.#documents = documents;
  }

  async load(replica: string): Promise<StoredCursor | null> {
    const stored = await this.#stored(replica);
    if (stored === null) return null;
    return { cursor: parseCursor(stored.bytes, replica, stored.revision), revision: stored.revision };
  }

  async save(cursor: Cursor, revision: number): Promise<Saved> {
    return await this.#documents.save(cursor.replica, encodeCursor(cursor), revision);
  }

  async list(): Promise<readonly string[]> {
    return await this.#documents.list();
  }

  async close(): Promise<void> {
    this.#documents.close();
  }

  async #stored(replica: string): Promise<StoredBytes | null> {
    try {
      return await this.#documents.load(replica);
    } catch (error) {
      if (!(error instanceof BucketGoneError)) throw error;
      throw cursorLost(replica, 0, "the bucket of the cursors is gone", error);
    }
  }
}
