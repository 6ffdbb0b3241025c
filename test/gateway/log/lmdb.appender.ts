// Run by lmdb.test.ts as a process of its own: appends to a log for ever (or so many times) and says so with write(2).
import { writeSync } from "node:fs";

import { openLmdbLog } from "../../../gateway/log/lmdb.ts";

const [folder = "", times = "Infinity", goOn] = process.argv.slice(2);
const log = await openLmdbLog({
  folder,
  maxBytes: 1024 ** 3,
  create: { epoch: "0123456789abcdef", firstSequence: 1 },
});
if (log === null) throw new Error("there is no log");
const reading = new AbortController();
const isSequential = times !== "Infinity";
let next = (await log.tail()) + 1;
let hasRead: () => void = () => {};
const reader = (async () => {
  for await (const { sequence } of log.read(next, reading.signal)) {
    if (isSequential) writeSync(1, `read ${sequence}\n`);
    hasRead();
  }
})();

async function appendOne(): Promise<void> {
  // Its own sequence, ten digits, repeated: shows a torn or misplaced record. Only true because calls keep their order.
  const record = Buffer.from(
    String(next++)
      .padStart(10, "0")
      .repeat(1 + Math.floor(Math.random() * 500)),
  );
  const seen = new Promise<void>((resolve) => (hasRead = resolve));
  const appended = await log!.append(record);
  if (appended.kind !== "stored" && goOn === undefined) throw new Error("not stored", { cause: appended });
  if (appended.kind !== "stored") return;
  writeSync(1, `ack ${appended.sequence}\n`);
  if (isSequential) await seen;
}

if (isSequential) {
  // `goOn`: as a program would that catches every error and never notices.
  if (goOn !== undefined) void reader.catch(() => {});
  for (let n = 0; n < Number(times); n++) await appendOne();
  if (goOn !== undefined) await new Promise((resolve) => setTimeout(resolve, 60_000));
} else {
  const for_ever = async (): Promise<never> => {
    for (;;) await appendOne();
  };
  await Promise.all(Array.from({ length: 8 }, for_ever));
}
reading.abort();
await reader;
await log.close();
