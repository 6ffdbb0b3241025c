// What the publisher must not forget: the transaction it sends, written down before it is sent, and the newest version it saw final.

import { closeSync, fsyncSync, openSync, readdirSync, readFileSync, renameSync, writeSync } from "node:fs";
import { join } from "node:path";
import { GatewayError } from "../../gateway/errors.ts";
import { step } from "../../gateway/steps.ts";
import type { Publication } from "./registry.ts";

export interface SentTransaction {
  readonly account: string;
  readonly nonce: number;
  /** Signed, the oldest first: each but the first replaces the one before, with a higher fee. Sent again byte for byte. */
  readonly raws: readonly string[];
  /** What it does, for people. */
  readonly what: string;
  /** Null: it does something else. */
  readonly publication: Publication | null;
}

export interface Notes {
  readonly chainId: string;
  readonly contract: string;
  readonly sent: SentTransaction | null;
  /** The chain may not tell less later: that would be another chain, or a lie. */
  readonly seen: { readonly version: number; readonly manifestHash: string } | null;
}

export interface NotesKeeper {
  readonly where: string;
  read(): Notes;
  /** Durable when it returns. */
  write(notes: Notes): void;
}

const format = "br2k-registry-notes/1";

export function keepInMemory(chainId: string, contract: string): NotesKeeper {
  let notes: Notes = { chainId, contract, sent: null, seen: null };
  return {
    where: "memory",
    read: () => notes,
    write: (next) => {
      notes = next;
    },
  };
}

export function keepInFile(folder: string, chainId: string, contract: string): NotesKeeper {
  const path = join(folder, nameOf(chainId, contract));
  let notes = readNotes(path) ?? { chainId, contract, sent: null, seen: null };
  return {
    where: path,
    read: () => notes,
    write: (next) => {
      try {
        replaceFile(folder, path, `${JSON.stringify({ format, ...next })}\n`);
      } catch (cause) {
        throw new GatewayError(
          "GW_REGISTRY_UNAVAILABLE",
          `${path} cannot be written (${(cause as NodeJS.ErrnoException).code ?? "unknown error"}): nothing is sent to the chain until it can`,
          { cause },
        );
      }
      notes = next;
    },
  };
}

/** The chain that a contract was found on before, where there is exactly one. */
export function chainOfNotes(folder: string, contract: string): string | null {
  const ids = readdirSync(folder).flatMap((name) => {
    const [, id, of] = /^registry-(\d+)-(0x[0-9a-f]{40})\.json$/.exec(name) ?? [];
    return id !== undefined && of === contract ? [id] : [];
  });
  return ids.length === 1 ? (ids[0] as string) : null;
}

const nameOf = (chainId: string, contract: string): string => `registry-${chainId}-${contract}.json`;

function readNotes(path: string): Notes | null {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
  try {
    const value = JSON.parse(text) as Notes & { readonly format?: unknown };
    if (value.format !== format) throw new Error(`its format is ${JSON.stringify(value.format)}`);
    const { chainId, contract, sent, seen } = value;
    return { chainId, contract, sent, seen };
  } catch (cause) {
    throw new GatewayError(
      "GW_REGISTRY_UNAVAILABLE",
      `${path} cannot be read: move it away, the nonce is then found from the chain, and what was seen final is no longer compared`,
      { cause },
    );
  }
}

/** After a crash the former text stands there or the new one. */
function replaceFile(folder: string, path: string, text: string): void {
  const file = openSync(`${path}.new`, "w", 0o600);
  try {
    writeSync(file, text);
    step("notes.fsync");
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  step("notes.rename");
  renameSync(`${path}.new`, path);
  const handle = openSync(folder, "r");
  try {
    step("notes.fsync");
    fsyncSync(handle);
  } finally {
    closeSync(handle);
  }
}
