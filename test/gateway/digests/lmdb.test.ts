// Digests beside the embedded log.
import { expect, test } from "vitest";

import { openLmdbDigests } from "../../../gateway/digests/lmdb.ts";
import { createFolder, removeFolder, temporaryFolder } from "../../helpers/folder.ts";
import { digestsContract, positions, row } from "./digests.contract.ts";

digestsContract("lmdb", async () => {
  const folder = createFolder("digests");
  return { open: () => openLmdbDigests({ folder }), close: async () => removeFolder(folder) };
});

test("digests beside the embedded log are bounded: the lowest positions go first", async () => {
  const digests = await openLmdbDigests({ folder: temporaryFolder(), rowsMax: 100 });
  for (let n = 0; n < 30; n++) {
    await digests.append(Array.from({ length: 10 }, (_, index) => row({ position: n * 10 + index })));
  }
  expect(await positions(digests, 0, 1000)).toEqual(Array.from({ length: 100 }, (_, n) => 200 + n));
  await digests.close();
});
