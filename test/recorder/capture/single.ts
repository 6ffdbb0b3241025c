// What the tests of places with one file have in common.
import type { Place, TreeEntry } from "../../../recorder/capture/place.ts";

export const never = new AbortController().signal;

/** The only entry and its bytes. */
export async function stateOf(place: Place, signal = never): Promise<{ entry: TreeEntry; bytes: Buffer }> {
  const entries: { entry: TreeEntry; bytes: Buffer }[] = [];
  for await (const { entry, content } of place.read(signal)) {
    const pieces: Buffer[] = [];
    for await (const piece of content?.() ?? []) pieces.push(piece);
    entries.push({ entry, bytes: Buffer.concat(pieces) });
  }
  const [only] = entries;
  if (only === undefined || entries.length !== 1) throw new Error(`${entries.length} entries instead of one`);
  return only;
}

export async function restoreTo(place: Place, content: AsyncIterable<Buffer>, signal = never): Promise<void> {
  const replacement = await place.replace(signal);
  await replacement.put({ kind: "file", path: "state", mode: 0o600, sizeBytes: 0, stamp: null }, content);
  await replacement.commit();
}

export async function* contentOf(
  bytes: Buffer,
  pieceBytes = 64 * 1024,
  onPiece: (sizeBytes: number) => void = () => {},
): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += pieceBytes) {
    const piece = bytes.subarray(at, at + pieceBytes);
    onPiece(piece.length);
    yield piece;
  }
}
