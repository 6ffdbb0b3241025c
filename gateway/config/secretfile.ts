// Secrets that stand in files of their own, as `tokenFile` and `urlFile` name them.

import { readFileSync, statSync } from "node:fs";
import { Secret } from "./secret.ts";
import { readFault, shown } from "./sources.ts";
import type { Fault } from "../../rules/document.ts";
import type { Sources } from "./sources.ts";

const secretBytesMax = 64 * 1024;

interface Collect {
  readonly faults: Fault[];
  readonly warnings: Fault[];
}

/** The secret at `path` (`admin.token`) or in the file at its twin (`admin.tokenFile`); null where neither is given. */
export function readSecret(
  sources: Sources,
  path: readonly string[],
  given: { readonly value: string | undefined; readonly file: string | undefined },
  collect: Collect,
): Secret | null {
  const bytes = readSecretBytes(sources, path, given, collect);
  if (bytes === null) return null;
  const text = bytes.toString("utf8");
  // Editors end files with a line feed.
  return new Secret(given.file === undefined ? text : text.trim());
}

/** The same, as it stands there. */
export function readSecretBytes(
  sources: Sources,
  path: readonly string[],
  { value, file }: { readonly value: string | undefined; readonly file: string | undefined },
  { faults, warnings }: Collect,
): Buffer | null {
  const twin = [...path.slice(0, -1), `${path.at(-1)}File`];
  if (value !== undefined && file !== undefined) {
    faults.push(sources.fault(twin, `stands beside ${path.at(-1)}: one of the two`));
  }
  if (file === undefined) return value === undefined ? null : Buffer.from(value, "utf8");
  const at = sources.resolve(twin, file);
  try {
    const { mode, size } = statSync(at);
    if ((mode & 0o077) !== 0) {
      const octal = (mode & 0o777).toString(8).padStart(4, "0");
      warnings.push(sources.fault(twin, `${shown(at)} can be read by others (mode ${octal}): chmod 600 it`));
    }
    if (size > secretBytesMax) {
      faults.push(sources.fault(twin, `${shown(at)} is larger than 64 KiB: is it the right file?`));
      return null;
    }
    const bytes = readFileSync(at);
    if (bytes.toString("latin1").trim() === "") faults.push(sources.fault(twin, `${shown(at)} is empty`));
    return bytes;
  } catch (error) {
    faults.push(sources.fault(twin, `${shown(at)} ${readFault(error)}`));
    return null;
  }
}
