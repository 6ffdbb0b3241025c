// The board on NATS, in a bucket that `nats kv` can show: one value a document.

import { BucketGoneError, NatsDocuments } from "../drivers/nats-documents.ts";
import type { StoredBytes } from "../drivers/nats-documents.ts";
import { serviceToken } from "../drivers/nats.ts";
import type { Nats } from "../drivers/nats.ts";
import type { Board, Posted, Saved } from "./board.ts";
import { boardLost, checkName, encodeDocument, parseDocument } from "./stored.ts";

export interface JetStreamBoardOptions {
  /** Opened and closed by the caller. */
  readonly nats: Nats;
  readonly service: string;
  readonly replicas: number;
  /** After it a save counts as unknown, and a load as failed. */
  readonly timeoutMs?: number;
}

/** Makes the bucket if there is none. Rejects with GW_LOG_CONFIGURATION for one that is not as it must be, and GW_LOG_UNAVAILABLE. */
export async function openJetStreamBoard({ service, ...options }: JetStreamBoardOptions): Promise<Board> {
  const bucket = boardBucket(service);
  return new JetStreamBoard(
    await NatsDocuments.open({ ...options, bucket, leaf: "value", all: "the board", stepName: "board.save" }),
  );
}

export const boardBucket = (service: string): string => `GW_${serviceToken(service)}_BOARD`;

class JetStreamBoard implements Board {
  readonly #documents: NatsDocuments;

  constructor(documents: NatsDocuments) {
    this.#documents = documents;
  }

  async load(name: string): Promise<Posted | null> {
    checkName(name);
    const stored = await this.#stored(name);
    return stored === null ? null : { value: parseDocument(stored.bytes, name), revision: stored.revision };
  }

  async save(name: string, value: unknown, revision: number): Promise<Saved> {
    checkName(name);
    return await this.#documents.save(name, encodeDocument(name, value), revision);
  }

  async close(): Promise<void> {
    this.#documents.close();
  }

  async #stored(name: string): Promise<StoredBytes | null> {
    try {
      return await this.#documents.load(name);
    } catch (error) {
      if (!(error instanceof BucketGoneError)) throw error;
      throw boardLost(name, "its bucket is gone", error);
    }
  }
}
