// Bodies beside the embedded log: the contract, and what only a file can suffer.
import { randomBytes } from "node:crypto";
import { EventEmitter, once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { describe, expect, test } from "vitest";

import { openLmdbBodies } from "../../../gateway/bodies/lmdb.ts";
import { openLmdb } from "../../../gateway/drivers/lmdb.ts";
import { createFolder, removeFolder, temporaryFolder } from "../../helpers/folder.ts";
import { MiB, bodiesContract, inPieces, read } from "./bodies.contract.ts";

bodiesContract("lmdb", async (maxBytes, clock) => {
  const folder = createFolder("bodies");
  return {
    open: () => openLmdbBodies({ folder, maxBytes, clock }),
    close: async () => removeFolder(folder),
  };
});

describe("bodies beside the embedded log", () => {
  test("throw before the last chunk when a byte has changed on disk", async () => {
    const folder = temporaryFolder();
    const bodies = await openLmdbBodies({ folder, maxBytes: MiB });
    const bytes = randomBytes(600_000);
    const ref = await bodies.put(inPieces(bytes, 1), MiB);
    await bodies.close();
    const file = join(folder, "data.mdb");
    const data = readFileSync(file);
    data[data.indexOf(bytes.subarray(0, 1000)) + 500]! ^= 1;
    writeFileSync(file, data);
    const again = await openLmdbBodies({ folder, maxBytes: MiB });
    const chunks: Buffer[] = [];
    const reading = (async () => {
      for await (const chunk of again.read(ref)) chunks.push(chunk);
    })();
    await expect(reading).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
    expect(chunks.length).toBe(2);
    await again.close();
  });

  test("that a crash left unfinished are removed at the next start, and take no room", async () => {
    const folder = temporaryFolder();
    const crashed = await openLmdbBodies({ folder, maxBytes: 2 * MiB });
    await crashed.put(inPieces(randomBytes(10_000), 1), MiB);
    const half = new EventEmitter();
    const abandoned = async function* (): AsyncGenerator<Buffer> {
      yield randomBytes(1.5 * MiB);
      half.emit("put");
      await new Promise(() => {}); // the client never goes on, and the process ends here
    };
    void crashed.put(abandoned(), 2 * MiB).catch(() => {});
    await once(half, "put");
    await crashed.close();
    const again = await openLmdbBodies({ folder, maxBytes: 2 * MiB });
    const bytes = randomBytes(1.9 * MiB);
    const ref = await again.put(inPieces(bytes, 2), 2 * MiB);
    expect(Buffer.concat(await read(again, ref)).equals(bytes)).toBe(true);
    await again.close();
    const root = openLmdb(folder, { maxDbs: 4, durable: true });
    const chunks = root.openDB({ name: "chunks", encoding: "binary" });
    expect(Array.from(chunks.getKeys()).length).toBe(1 + 8);
    await root.close();
  });
});
