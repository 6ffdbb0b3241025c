// A process that publishes version after version into a file until it is killed: prints each that is durable.

import { openFileRegistry } from "../../../recorder/registry/file.ts";
import { publication } from "./samples.ts";

const registry = openFileRegistry({ folder: process.argv[2] ?? "", service: "shop", name: "gw-1" });
const signal = new AbortController().signal;
// Ends when it is killed.
for (let version = ((await registry.latest())?.version ?? -1) + 1; ; version += 1) {
  await registry.publish(publication("shop", version), signal);
  process.stdout.write(`${version}\n`);
}
