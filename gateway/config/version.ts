// Which program this is, as package.json says.

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** Looks upwards, because the compiled files lie one folder deeper than the sources. */
export function programVersion(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  for (let i = 0; i < 5; i++, folder = dirname(folder)) {
    try {
      const { name, version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as Record<
        string,
        unknown
      >;
      if (name === "br2k-gateway" && typeof version === "string") return version;
    } catch {
      // Not here.
    }
  }
  return "unknown";
}
