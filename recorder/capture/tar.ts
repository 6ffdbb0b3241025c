// Tar streams as container engines speak them, read and written entry by entry in constant memory. Names are bytes (latin1), whatever they mean.
//
// Read strictly: an archive without its end marker was cut short and is an error, as are wrong checksums, unknown kinds of entries and sparse
// entries (no engine writes them: holes come as zeros). ustar, PAX and GNU long names. tar-stream 3.2.2 was tried and dropped: it reads PAX
// names as UTF-8, so that others are lost, and takes an archive that was cut between two entries for a whole one.

export interface TarEntry {
  /** same: another name of a file that came before (`target`, as it stands in the archive). other: a pipe or a device. */
  readonly kind: "file" | "folder" | "link" | "same" | "other";
  /** As it stands in the archive, without "/" at its end. */
  readonly path: string;
  readonly target: string;
  /** 12 bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly sizeBytes: number;
}

export interface ReadTarEntry extends TarEntry {
  /** To be read at most once, and before the next entry is asked for. */
  readonly content: AsyncIterable<Buffer>;
}

const blockBytes = 512;
/** Of one long name or one PAX header. */
const headBytesMax = 1024 * 1024;

/** Ends with the archive; throws an Error that says what is wrong with it. */
export async function* readTar(source: AsyncIterable<Buffer>): AsyncGenerator<ReadTarEntry> {
  const bytes = new Bytes(source);
  let pax = new Map<string, Buffer>();
  try {
    // Ends with the end marker, or throws at the source's end.
    for (;;) {
      const block = await bytes.take(blockBytes);
      if (isZero(block)) break;
      const head = parseHead(block);
      if (head.kind === "long") {
        if (head.sizeBytes > headBytesMax) throw new Error(`the archive has a name of ${head.sizeBytes} bytes`);
        const value = (await bytes.take(padded(head.sizeBytes))).subarray(0, head.sizeBytes);
        if (head.field === "pax") for (const [name, it] of parsePax(value)) pax.set(name, it);
        else if (head.field !== "global") pax.set(head.field, untilZero(value));
        continue;
      }
      const entry = withPax(head.entry, pax);
      pax = new Map();
      const content = bytes.piecesOf(entry.sizeBytes);
      yield { ...entry, content };
      await bytes.skipRest();
    }
    if (!isZero(await bytes.take(blockBytes))) throw new Error("the archive has no end marker");
    await bytes.drain();
  } finally {
    await bytes.close();
  }
}

/** The head of one entry; its content follows, then `tarPadding` of its size. */
export function tarHead(entry: TarEntry, mtimeS: number): Buffer {
  const path = entry.kind === "folder" ? `${entry.path}/` : entry.path;
  const pax: Buffer[] = [];
  if (path.length > 100) pax.push(paxRecord("path", path));
  if (entry.target.length > 100) pax.push(paxRecord("linkpath", entry.target));
  if (entry.sizeBytes > octalMax(11)) pax.push(paxRecord("size", String(entry.sizeBytes)));
  if (entry.uid > octalMax(7)) pax.push(paxRecord("uid", String(entry.uid)));
  if (entry.gid > octalMax(7)) pax.push(paxRecord("gid", String(entry.gid)));
  const head = block(entry, path, mtimeS, flagOf[entry.kind]);
  if (pax.length === 0) return head;
  const records = Buffer.concat(pax);
  const long: TarEntry = { ...entry, uid: 0, gid: 0, mode: 0o644, target: "", sizeBytes: records.length };
  return Buffer.concat([block(long, "pax", mtimeS, "x"), records, tarPadding(records.length), head]);
}

export const tarPadding = (sizeBytes: number): Buffer => Buffer.alloc(padded(sizeBytes) - sizeBytes);
export const tarEnd: Buffer = Buffer.alloc(2 * blockBytes);

type Head =
  | { readonly kind: "entry"; readonly entry: TarEntry }
  | { readonly kind: "long"; readonly field: "path" | "linkpath" | "pax" | "global"; readonly sizeBytes: number };

function parseHead(head: Buffer): Head {
  let sum = 8 * 32;
  for (const [i, byte] of head.entries()) if (i < 148 || i >= 156) sum += byte;
  if (sum !== number(head, 148, 8))
    throw new Error("what the engine sent is no tar archive, or was damaged on its way");
  const flag = String.fromCharCode(head[156] ?? 0);
  const sizeBytes = number(head, 124, 12);
  const long = ({ L: "path", K: "linkpath", x: "pax", g: "global" } as const)[flag];
  if (long !== undefined) return { kind: "long", field: long, sizeBytes };
  const isUstar = string(head, 257, 6) === "ustar";
  const prefix = isUstar ? string(head, 345, 155) : "";
  const name = string(head, 0, 100);
  const path = prefix === "" ? name : `${prefix}/${name}`;
  const kind = kindOf(flag);
  if (kind === null) throw new Error(`${JSON.stringify(path)} is an entry of the unknown kind ${JSON.stringify(flag)}`);
  return {
    kind: "entry",
    entry: {
      kind,
      path,
      target: string(head, 157, 100),
      mode: number(head, 100, 8) & 0o7777,
      uid: number(head, 108, 8),
      gid: number(head, 116, 8),
      // Some writers give links and folders the size of what they stand for; no content follows them.
      sizeBytes: kind === "file" ? sizeBytes : 0,
    },
  };
}

const flagOf = { file: "0", same: "1", link: "2", other: "6", folder: "5" } as const;

function kindOf(flag: string): TarEntry["kind"] | null {
  if (flag === "0" || flag === "\0" || flag === "7") return "file";
  if (flag === "3" || flag === "4") return "other";
  return (Object.entries(flagOf).find(([, it]) => it === flag)?.[0] as TarEntry["kind"] | undefined) ?? null;
}

function withPax(entry: TarEntry, pax: ReadonlyMap<string, Buffer>): TarEntry {
  const value = (name: string): string | null => pax.get(name)?.toString("latin1") ?? null;
  const count = (name: string, otherwise: number): number => {
    const said = value(name);
    if (said === null) return otherwise;
    if (!/^\d{1,15}$/.test(said)) throw new Error(`the archive has the ${name} ${JSON.stringify(said.slice(0, 40))}`);
    return Number(said);
  };
  const path = value("path") ?? entry.path;
  if ([...pax.keys()].some((name) => name.startsWith("GNU.sparse.")))
    throw new Error(`${JSON.stringify(path)} is a sparse entry: those are not understood`);
  return {
    ...entry,
    path: path.length > 1 ? path.replace(/\/+$/, "") || "/" : path,
    target: value("linkpath") ?? entry.target,
    uid: count("uid", entry.uid),
    gid: count("gid", entry.gid),
    sizeBytes: entry.kind === "file" ? count("size", entry.sizeBytes) : 0,
  };
}

/** `<length> <name>=<value>\n`, the length counting itself. */
function parsePax(records: Buffer): Map<string, Buffer> {
  const found = new Map<string, Buffer>();
  // Ends with the buffer: each record takes at least its length's own digits.
  for (let at = 0; at < records.length;) {
    const space = records.indexOf(0x20, at);
    const length = Number(records.toString("latin1", at, space));
    const end = at + length;
    const equals = records.indexOf(0x3d, space);
    if (space < 0 || !(length > 0) || end > records.length || equals < 0 || equals >= end)
      throw new Error("the archive has a PAX header that cannot be read");
    found.set(records.toString("latin1", space + 1, equals), records.subarray(equals + 1, end - 1));
    at = end;
  }
  return found;
}

function paxRecord(name: string, value: string): Buffer {
  const rest = ` ${name}=${value}\n`;
  let length = rest.length + 1;
  // Ends when the length's own digits are counted: it grows by one at most twice.
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
  return Buffer.from(String(length) + rest, "latin1");
}

function block(entry: TarEntry, path: string, mtimeS: number, flag: string): Buffer {
  const head = Buffer.alloc(blockBytes);
  const octal = (value: number, at: number, digits: number): void => {
    head.write(Math.min(value, octalMax(digits)).toString(8).padStart(digits, "0"), at, "latin1");
  };
  head.write(path.slice(0, 100), 0, "latin1");
  octal(entry.mode, 100, 7);
  octal(entry.uid, 108, 7);
  octal(entry.gid, 116, 7);
  octal(entry.sizeBytes, 124, 11);
  octal(Math.max(0, mtimeS), 136, 11);
  head.write("        ", 148, "latin1");
  head.write(flag, 156, "latin1");
  head.write(entry.target.slice(0, 100), 157, "latin1");
  head.write("ustar\u000000", 257, "latin1");
  let sum = 0;
  for (const byte of head) sum += byte;
  head.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return head;
}

/** A source of bytes that is taken in exact lengths. */
class Bytes {
  readonly #source: AsyncIterator<Buffer>;
  #chunk: Buffer = Buffer.alloc(0);
  /** Of the entry that is being read: content, and padding after it. */
  #contentLeft = 0;
  #paddingLeft = 0;

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  async take(count: number): Promise<Buffer> {
    const pieces: Buffer[] = [];
    // Ends when there are enough; throws at the source's end.
    for (let left = count; left > 0;) {
      const piece = await this.#piece(left);
      pieces.push(piece);
      left -= piece.length;
    }
    return pieces.length === 1 && pieces[0] !== undefined ? pieces[0] : Buffer.concat(pieces);
  }

  piecesOf(count: number): AsyncIterable<Buffer> {
    this.#contentLeft = count;
    this.#paddingLeft = padded(count) - count;
    const read = async function* (this: Bytes): AsyncGenerator<Buffer> {
      // Ends with the content.
      while (this.#contentLeft > 0) {
        const piece = await this.#piece(this.#contentLeft);
        this.#contentLeft -= piece.length;
        yield piece;
      }
    };
    return { [Symbol.asyncIterator]: () => read.call(this) };
  }

  async skipRest(): Promise<void> {
    for (let left = this.#contentLeft + this.#paddingLeft; left > 0;) left -= (await this.#piece(left)).length;
    this.#contentLeft = 0;
    this.#paddingLeft = 0;
  }

  /** Whatever comes after the end marker: engines fill up to a full record. */
  async drain(): Promise<void> {
    // Ends with the source.
    while ((await this.#source.next()).done !== true);
  }

  async close(): Promise<void> {
    await this.#source.return?.();
  }

  async #piece(most: number): Promise<Buffer> {
    while (this.#chunk.length === 0) {
      const { done, value } = await this.#source.next();
      if (done === true) throw new Error("the archive was cut short");
      this.#chunk = value;
    }
    const piece = this.#chunk.subarray(0, most);
    this.#chunk = this.#chunk.subarray(piece.length);
    return piece;
  }
}

const padded = (sizeBytes: number): number => Math.ceil(sizeBytes / blockBytes) * blockBytes;
const octalMax = (digits: number): number => 8 ** digits - 1;
const isZero = (it: Buffer): boolean => it.every((byte) => byte === 0);
const untilZero = (it: Buffer): Buffer => (it.includes(0) ? it.subarray(0, it.indexOf(0)) : it);
const string = (head: Buffer, at: number, length: number): string =>
  untilZero(head.subarray(at, at + length)).toString("latin1");

/** Octal digits, or base 256 where they would not be enough. */
function number(head: Buffer, at: number, length: number): number {
  const field = head.subarray(at, at + length);
  if (((field[0] ?? 0) & 0x80) !== 0) {
    let value = (field[0] ?? 0) & 0x7f;
    for (const byte of field.subarray(1)) value = value * 256 + byte;
    if (!Number.isSafeInteger(value)) throw new Error("the archive has a number that is too large");
    return value;
  }
  const digits = field.toString("latin1").replaceAll(/[\0 ]/g, "");
  if (!/^[0-7]*$/.test(digits)) throw new Error("the archive has a number that cannot be read");
  return digits === "" ? 0 : Number.parseInt(digits, 8);
}
