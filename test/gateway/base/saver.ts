// A process that saves one base after the other and prints which was acknowledged. Arguments: how many, first record, keys, then "file" and
// a folder, or "jetstream", a URL and a service.

import { writeSync } from "node:fs";
import { openFileBases } from "../../../gateway/base/file.ts";
import { openJetStreamBases } from "../../../gateway/base/jetstream.ts";
import { openNats } from "../../../gateway/drivers/nats.ts";
import { sampleState } from "../state/samples.ts";

const [, , times = "", first = "", keys = "", kind = "", place = "", service = ""] = process.argv;

const open = async () => {
  if (kind === "file") return openFileBases({ folder: place });
  const nats = await openNats({ servers: [place], name: "saver" }, AbortSignal.timeout(15_000));
  return openJetStreamBases({ nats, service, replicas: 1, maxBytes: 256 * 1024 * 1024 });
};
const bases = await open();
for (let sequence = Number(first); sequence < Number(first) + Number(times); sequence++) {
  writeSync(1, `begin ${sequence}\n`);
  await bases.save(sampleState(sequence, Number(keys)));
  writeSync(1, `saved ${sequence}\n`);
}
