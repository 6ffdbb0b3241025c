// Publications that tests publish.

import { createHash } from "node:crypto";
import type { Publication } from "../../../recorder/registry/registry.ts";

export const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");
export const zeros = "0".repeat(64);

/** Of a line whose version n has the manifest sha256("manifest n"). */
export function publication(service: string, version: number, change: Partial<Publication> = {}): Publication {
  return {
    service,
    version,
    position: (version + 1) * 4096,
    manifestHash: sha256(`manifest ${version}`),
    previousHash: version === 0 ? zeros : sha256(`manifest ${version - 1}`),
    hash: sha256(`state ${version}`),
    uri: "s3://snapshots/shop",
    ...change,
  };
}
