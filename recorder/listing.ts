// The listing of a tree ("br2k-tree/1"): every entry with its chunks as lines of text, and the root, the one hash of all of it.
//
//   br2k-tree/1
//   d <mode> <path>
//   f <mode> <size> <count> <path>       then <count> lines, one a chunk, in order: <SHA-256> <length>
//   l <target> <path>
//
// Lines end with "\n"; modes are three octal digits, numbers decimal without needless zeros, names as `encodeName` writes them; entries are sorted by
// the bytes of their paths. One tree has one listing, and lines far apart do not depend on each other, so that its own chunks are found again.
//
// The root is SHA-256 over "br2k-root/1 br2k-cdc/1\n" and a line an entry, in the same order: `d <mode> <path>`, `f <mode> <digest> <path>`,
// `l <target> <path>`; a file's digest is SHA-256 over its chunks' digests in order (32 bytes each). Names, permission bits and contents, nothing else.

import { createHash, hash } from "node:crypto";
import { GatewayError } from "../gateway/errors.ts";
import { chunkBytesMax, chunkerFormat } from "./chunker.ts";
import type { ChunkRef } from "./manifest.ts";
import { byPath, decodeName, encodeName, faultOfTree, shownPath } from "./tree.ts";
import type { ChunkList, ListedEntry } from "./tree.ts";

export const listingFormat = "br2k-tree/1";
const refBytes = 36;
const pieceChars = 256 * 1024;
/** The longest line is a link: a target and a path, every byte of them as %XX. */
const lineChars = 32 * 1024;

export interface Tree {
  /** Sorted by path. */
  readonly entries: readonly ListedEntry[];
  readonly root: string;
  /** Of all files together. */
  readonly sizeBytes: number;
}

export function encodeChunks(chunks: readonly ChunkRef[]): ChunkList {
  const list = Buffer.alloc(chunks.length * refBytes);
  chunks.forEach(({ id, sizeBytes }, i) => {
    list.write(id, i * refBytes, "hex");
    list.writeUInt32BE(sizeBytes, i * refBytes + 32);
  });
  return list;
}

export function* decodeChunks(list: ChunkList): Generator<ChunkRef, void, undefined> {
  for (let at = 0; at < list.length; at += refBytes) {
    yield { id: list.toString("hex", at, at + 32), sizeBytes: list.readUInt32BE(at + 32) };
  }
}

/** Sorts; throws GW_SNAPSHOT_FAILED where this is no tree that could be brought back. */
export function makeTree(unsorted: readonly ListedEntry[]): Tree {
  const entries = unsorted.toSorted(byPath);
  const wrong = faultOfTree(entries);
  if (wrong !== null)
    throw new GatewayError(
      "GW_SNAPSHOT_FAILED",
      `${shownPath(wrong.path)} could not be brought back: ${wrong.fault}; mend it, or leave it out with snapshots.capture.exclude`,
    );
  return treeOf(entries);
}

export function* encodeListing({ entries }: Tree): Generator<Buffer, void, undefined> {
  let text = `${listingFormat}\n`;
  for (const entry of entries) {
    const path = encodeName(entry.path);
    if (entry.kind === "folder") text += `d ${octal(entry.mode)} ${path}\n`;
    else if (entry.kind === "link") text += `l ${encodeName(entry.target)} ${path}\n`;
    else {
      text += `f ${octal(entry.mode)} ${entry.sizeBytes} ${entry.chunks.length / refBytes} ${path}\n`;
      for (const { id, sizeBytes } of decodeChunks(entry.chunks)) {
        text += `${id} ${sizeBytes}\n`;
        if (text.length < pieceChars) continue;
        yield Buffer.from(text, "latin1");
        text = "";
      }
    }
    if (text.length < pieceChars) continue;
    yield Buffer.from(text, "latin1");
    text = "";
  }
  if (text !== "") yield Buffer.from(text, "latin1");
}

/** Strict: a text that `encodeListing` would not have written is GW_SNAPSHOT_CORRUPT, with its line. */
export async function parseListing(stream: AsyncIterable<Buffer>): Promise<Tree> {
  const parser = new ListingParser();
  let held = "";
  // Ends with the stream.
  for await (const piece of stream) {
    const lines = (held + piece.toString("latin1")).split("\n");
    held = lines.pop() ?? "";
    for (const line of lines) parser.line(line);
    if (held.length > lineChars) throw parser.fault("a line is too long");
  }
  if (held !== "") throw parser.fault("the last line has no end");
  const entries = parser.end();
  const wrong = faultOfTree(entries);
  if (wrong !== null)
    throw new GatewayError("GW_SNAPSHOT_CORRUPT", `the listing is no tree: ${shownPath(wrong.path)}: ${wrong.fault}`);
  return treeOf(entries);
}

interface OpenFile {
  readonly path: string;
  readonly mode: number;
  readonly sizeBytes: number;
  readonly count: number;
  chunks: Buffer;
  filled: number;
  seenBytes: number;
}

class ListingParser {
  readonly #entries: ListedEntry[] = [];
  #lines = 0;
  /** The file whose chunks come next. */
  #file: OpenFile | null = null;

  line(line: string): void {
    this.#lines += 1;
    if (this.#lines === 1) {
      if (line !== listingFormat) throw this.fault(`its format is not ${listingFormat}`);
    } else if (this.#file === null) this.#entry(line);
    else this.#chunk(this.#file, line);
  }

  end(): readonly ListedEntry[] {
    if (this.#lines === 0) throw this.fault("it is empty");
    if (this.#file !== null) throw this.fault("chunks are missing");
    return this.#entries;
  }

  fault(what: string): GatewayError {
    return new GatewayError("GW_SNAPSHOT_CORRUPT", `the listing is malformed at line ${this.#lines}: ${what}`);
  }

  #entry(line: string): void {
    if (line.length > lineChars) throw this.fault("a line is too long");
    const [kind, ...words] = line.split(" ");
    if (kind === "d" && words.length === 2)
      this.#entries.push({ kind: "folder", path: this.#name(words[1]), mode: this.#mode(words[0]) });
    else if (kind === "l" && words.length === 2)
      this.#entries.push({ kind: "link", path: this.#name(words[1]), target: this.#name(words[0]) });
    else if (kind === "f" && words.length === 4) {
      const sizeBytes = this.#number(words[1]);
      const count = this.#number(words[2]);
      if (count > sizeBytes || count * chunkBytesMax < sizeBytes)
        throw this.fault("so many chunks cannot have that size");
      // A liar gets no more memory than a thousand chunks need.
      const chunks = Buffer.alloc(Math.min(count, 1024) * refBytes);
      const path = this.#name(words[3]);
      this.#file = { mode: this.#mode(words[0]), sizeBytes, path, count, chunks, filled: 0, seenBytes: 0 };
      this.#endFile(this.#file);
    } else throw this.fault("this is no entry");
  }

  #chunk(file: OpenFile, line: string): void {
    const sizeBytes = this.#number(line.slice(65));
    if (!/^[0-9a-f]{64} /.test(line) || sizeBytes === 0 || sizeBytes > chunkBytesMax)
      throw this.fault("this is no chunk");
    if (file.filled * refBytes === file.chunks.length)
      file.chunks = Buffer.concat([file.chunks], Math.min(file.count, 2 * file.filled) * refBytes);
    file.chunks.write(line.slice(0, 64), file.filled * refBytes, "hex");
    file.chunks.writeUInt32BE(sizeBytes, file.filled * refBytes + 32);
    file.filled += 1;
    file.seenBytes += sizeBytes;
    this.#endFile(file);
  }

  #endFile(file: OpenFile): void {
    if (file.filled < file.count) return;
    if (file.seenBytes !== file.sizeBytes)
      throw this.fault(`its chunks have ${file.seenBytes} bytes, not ${file.sizeBytes}`);
    const { path, mode, sizeBytes, chunks } = file;
    this.#entries.push({ kind: "file", path, mode, sizeBytes, chunks });
    this.#file = null;
  }

  #name(word = ""): string {
    const name = decodeName(word);
    if (name === null) throw this.fault("a name is not written as names are");
    return name;
  }

  #mode(word = ""): number {
    if (!/^[0-7]{3}$/.test(word)) throw this.fault("a mode is not three octal digits");
    return Number.parseInt(word, 8);
  }

  #number(word = ""): number {
    const number = Number(word);
    if (!/^(0|[1-9][0-9]{0,15})$/.test(word) || !Number.isSafeInteger(number)) throw this.fault("a number is not one");
    return number;
  }
}

const octal = (mode: number): string => mode.toString(8).padStart(3, "0");

function treeOf(entries: readonly ListedEntry[]): Tree {
  const root = createHash("sha256").update(`br2k-root/1 ${chunkerFormat}\n`);
  let sizeBytes = 0;
  for (const entry of entries) {
    const path = encodeName(entry.path);
    if (entry.kind === "folder") root.update(`d ${octal(entry.mode)} ${path}\n`);
    else if (entry.kind === "link") root.update(`l ${encodeName(entry.target)} ${path}\n`);
    else {
      root.update(`f ${octal(entry.mode)} ${digestOf(entry.chunks)} ${path}\n`);
      sizeBytes += entry.sizeBytes;
    }
  }
  return { entries, root: root.digest("hex"), sizeBytes };
}

function digestOf(chunks: ChunkList): string {
  const ids = Buffer.alloc((chunks.length / refBytes) * 32);
  for (let from = 0, to = 0; from < chunks.length; from += refBytes, to += 32) chunks.copy(ids, to, from, from + 32);
  return hash("sha256", ids);
}
