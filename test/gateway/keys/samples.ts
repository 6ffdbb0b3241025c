// Keys and answers as the key stores' tests use them; also by child processes, where vitest is not.

import { randomBytes } from "node:crypto";
import type { Answer, EntryKey, Hash16 } from "../../../gateway/entry.ts";

export const hash = (): Hash16 => randomBytes(16).toString("hex");
export const newKey = (): EntryKey => ({ id: hash(), fingerprint: hash() });
export const answer = (text: string): Answer => ({
  status: 201,
  headers: ["Content-Type", "text/plain", "Set-Cookie", "a=1", "set-cookie", "b=\u00e9", "X-Empty", ""],
  body: Buffer.from(text),
  trailers: ["X-Sum", "1"],
});
