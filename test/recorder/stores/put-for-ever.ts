// Run by store.contract.ts as a process of its own: puts "victim" again and again and says so with write(2). Its orders come by stdin.
import { readFileSync, writeSync } from "node:fs";

import { openStore } from "../../../recorder/stores/open.ts";
import type { StoreOptions } from "../../../recorder/stores/store.ts";
import { victim } from "./victim.ts";

const { options, former } = JSON.parse(readFileSync(0, "utf8")) as { options: StoreOptions; former: number };
const store = await openStore(options);
for (let n = former + 1; ; n += 1) {
  const bytes = victim(n, 4_000_000 + n * 1_000);
  writeSync(1, `begun ${n}\n`);
  await store.put("victim", bytes);
  writeSync(1, `done ${n}\n`);
}
