// A chunk as it is stored: plaintext ⇄ sealed bytes, smaller where that helps, encrypted where there is a key. Whoever unseals gets
// exactly the bytes whose SHA-256 is the chunk's id, or GW_SNAPSHOT_CORRUPT, or GW_RECOVERY_REFUSED where only the key is wrong.
//
// Sealed: "br2k", version 1, codec (0 raw, 1 brotli), encryption (0 none, 1 AES-256-GCM), 0, plaintext length (4 bytes, big-endian);
// where encrypted a random nonce of 96 bits; the body; where encrypted the tag of 128 bits. Header and id are authenticated with it.
//
// Why brotli at quality 1: on chunks of 64 KiB it took half the time of deflate at level 1 and made JSON a fifth smaller still; there is no zstd in Node 20.

import { createCipheriv, createDecipheriv, createHmac, hash, hkdfSync, randomBytes } from "node:crypto";
import { promisify } from "node:util";
import { brotliCompress, brotliDecompress, constants } from "node:zlib";
import { GatewayError } from "../gateway/errors.ts";
import { chunkBytesMax } from "./chunker.ts";

/** What is made of the 32 bytes in `snapshots.encrypt.keyFile`. */
export interface SnapshotKey {
  /** Says which key it is and nothing else about it: 32 hex digits. */
  readonly id: string;
  readonly sealing: Buffer;
  readonly naming: Buffer;
}

const magic = Buffer.from("br2k\u0001", "latin1");
const headerBytes = 12;
const nonceBytes = 12;
const tagBytes = 16;
const raw = 0;
const brotli = 1;
/** Below it the codec's own frame eats what it saves. */
const compressBytesMin = 64;
export const sealedBytesMax = headerBytes + nonceBytes + chunkBytesMax + tagBytes;

const compress = promisify(brotliCompress);
const decompress = promisify(brotliDecompress);

export function snapshotKey(bytes: Buffer): SnapshotKey {
  if (bytes.length !== 32)
    throw new GatewayError(
      "GW_CONFIG_INVALID",
      `snapshots.encrypt.keyFile must hold 32 bytes of randomness, there are ${bytes.length}`,
    );
  const derived = (purpose: string, length: number): Buffer =>
    Buffer.from(hkdfSync("sha256", bytes, "br2k-snapshot-key/1", purpose, length));
  return { id: derived("id", 16).toString("hex"), sealing: derived("sealing", 32), naming: derived("naming", 32) };
}

export const chunkId = (plain: Buffer): string => hash("sha256", plain);

/** The name of a chunk in the index of a pack: an id would tell whoever can read the store which known or guessable contents are in it. */
export const storedName = (id: string, key: SnapshotKey | null): string =>
  key === null ? id : createHmac("sha256", key.naming).update(id, "hex").digest("hex");

/** Compressed on the thread pool: several at once are faster than one after the other. */
export async function seal(id: string, plain: Buffer, key: SnapshotKey | null): Promise<Buffer> {
  if (plain.length > chunkBytesMax) throw new Error(`a chunk of ${plain.length} bytes is larger than any can be`);
  const smaller = isWorthCompressing(plain) ? await compress(plain, compressOptions(plain.length)) : plain;
  const [codec, body] = smaller.length < plain.length ? [brotli, smaller] : [raw, plain];
  const header = Buffer.alloc(headerBytes);
  magic.copy(header);
  header[5] = codec;
  header[6] = key === null ? 0 : 1;
  header.writeUInt32BE(plain.length, 8);
  if (key === null) return Buffer.concat([header, body]);
  const nonce = randomBytes(nonceBytes);
  const cipher = createCipheriv("aes-256-gcm", key.sealing, nonce).setAAD(authenticated(header, id));
  return Buffer.concat([header, nonce, cipher.update(body), cipher.final(), cipher.getAuthTag()]);
}

export async function unseal(id: string, sealed: Buffer, key: SnapshotKey | null): Promise<Buffer> {
  const header = sealed.subarray(0, headerBytes);
  if (header.length < headerBytes || !header.subarray(0, magic.length).equals(magic))
    throw corrupt(id, "its header is not one");
  const [codec, encryption, zero] = [header[5]!, header[6]!, header[7]!];
  const plainBytes = header.readUInt32BE(8);
  if (codec > brotli || encryption > 1 || zero !== 0)
    throw corrupt(id, "its header names what this version does not know");
  if (plainBytes > chunkBytesMax) throw corrupt(id, `it says that it has ${plainBytes} bytes, more than any chunk`);
  const body = encryption === 1 ? decrypted(id, sealed, key) : sealed.subarray(headerBytes);
  const plain = codec === raw ? body : await decompressed(id, body, plainBytes);
  if (plain.length !== plainBytes) throw corrupt(id, `it has ${plain.length} bytes instead of ${plainBytes}`);
  const found = chunkId(plain);
  if (found !== id) throw corrupt(id, `its bytes have the SHA-256 ${found}`);
  return plain;
}

function decrypted(id: string, sealed: Buffer, key: SnapshotKey | null): Buffer {
  if (key === null)
    throw new GatewayError(
      "GW_RECOVERY_REFUSED",
      `chunk ${id} is encrypted and there is no key: name the key of these snapshots in snapshots.encrypt.keyFile`,
    );
  if (sealed.length < headerBytes + nonceBytes + tagBytes) throw corrupt(id, "it is shorter than nonce and tag");
  const decipher = createDecipheriv(
    "aes-256-gcm",
    key.sealing,
    sealed.subarray(headerBytes, headerBytes + nonceBytes),
    {
      authTagLength: tagBytes,
    },
  );
  decipher.setAAD(authenticated(sealed.subarray(0, headerBytes), id));
  decipher.setAuthTag(sealed.subarray(sealed.length - tagBytes));
  try {
    return Buffer.concat([
      decipher.update(sealed.subarray(headerBytes + nonceBytes, sealed.length - tagBytes)),
      decipher.final(),
    ]);
  } catch (cause) {
    throw corrupt(id, "it was changed, or sealed under another key than the one in snapshots.encrypt.keyFile", cause);
  }
}

async function decompressed(id: string, body: Buffer, plainBytes: number): Promise<Buffer> {
  try {
    // One byte more, so that what is too long is seen; never more memory than a chunk may have.
    return await decompress(body, { maxOutputLength: plainBytes + 1, chunkSize: Math.max(64, plainBytes + 1) });
  } catch (cause) {
    throw corrupt(id, "it cannot be decompressed", cause);
  }
}

const authenticated = (header: Buffer, id: string): Buffer => Buffer.concat([header, Buffer.from(id, "hex")]);

const compressOptions = (bytes: number) => ({
  chunkSize: bytes + 1024,
  params: {
    [constants.BROTLI_PARAM_QUALITY]: 1,
    [constants.BROTLI_PARAM_LGWIN]: 18,
    [constants.BROTLI_PARAM_SIZE_HINT]: bytes,
  },
});

/**
 * No, where a sample of 4 KiB shows all byte values about equally often: already compressed or encrypted, and 300 µs would be spent to
 * find that out. Uniform bytes give a sum of squares near n + n²/256.
 */
function isWorthCompressing(plain: Buffer): boolean {
  if (plain.length < compressBytesMin) return false;
  const counts = new Uint16Array(256);
  const n = Math.min(plain.length, 4096);
  const stride = Math.floor((plain.length - n) / 16);
  for (let i = 0; i < n; i += 1) counts[plain[i + (i >> 8) * stride]!]! += 1;
  let squares = 0;
  for (const count of counts) squares += count * count;
  return squares > 1.15 * (n + (n * n) / 256);
}

function corrupt(id: string, what: string, cause?: unknown): GatewayError {
  return new GatewayError("GW_SNAPSHOT_CORRUPT", `chunk ${id} is not what was recorded: ${what}`, { cause });
}
