// Cursors as the tests use them; also by child processes, where vitest is not.

import type { Cursor } from "../../../gateway/cursors/cursors.ts";

export const cursor = (replica: string, changed: Partial<Cursor> = {}): Cursor => ({
  version: 1,
  replica,
  owner: { name: "gw-1", boot: "0123456789abcdef0123456789abcdef" },
  incarnation: "boot-7",
  epoch: "00112233445566aa",
  applied: 4096 * 3 + 1,
  entries: 17,
  hash: "ab".repeat(32),
  state: "busy",
  bound: 4096 * 9,
  nonce: "n-1",
  standing: { state: "held", reason: "waits for \u00e4 person" },
  isSuspect: true,
  restored: 4096 * 3,
  unknown: [4096 * 3 + 2],
  finished: [4096 * 3 + 3, 4096 * 3 + 4],
  barred: 4096 * 3 + 5,
  slowestMs: { "create-order": 12.5 },
  backendVersion: "2.1",
  ...changed,
});
