// Files of certificates and keys that the configuration names: found, readable, and fit for each other, or a fault at the key that names them.

import { readFileSync, statSync } from "node:fs";
import { judgeTls, tlsKeys } from "../drivers/certificates.ts";
import { readFault, shown } from "./sources.ts";
import type { Fault } from "../../rules/document.ts";
import type { TlsParts } from "../drivers/certificates.ts";
import type { ParsedConfig } from "./schema.ts";
import type { Sources } from "./sources.ts";
import type { TlsFiles } from "./values.ts";

interface Collect {
  readonly faults: Fault[];
  readonly warnings: Fault[];
}

type Given = Readonly<Partial<Record<keyof TlsFiles, string | undefined>>>;

const fileBytesMax = 1024 * 1024;

/** The front's: who vouches for clients is `clientCaFile` there. */
export function frontTlsOf(tls: ParsedConfig["tls"], sources: Sources, collect: Collect): TlsFiles | null {
  if (tls === undefined) return null;
  const { certFile, keyFile, clientCaFile } = tls;
  return tlsFilesOf(["tls"], { certFile, keyFile, caFile: clientCaFile }, sources, collect, { caFile: "clientCaFile" });
}

/** With faults it is what is left of it. */
export function tlsFilesOf(
  path: readonly string[],
  given: Given | undefined,
  sources: Sources,
  collect: Collect,
  names: Given = {},
): TlsFiles | null {
  if (given === undefined) return null;
  const files: { -readonly [key in keyof TlsFiles]: TlsFiles[key] } = {};
  const texts: { -readonly [part in keyof TlsParts]: TlsParts[part] } = {};
  const placed = (key: keyof TlsFiles, message: string): Fault => sources.fault([...path, names[key] ?? key], message);
  const before = collect.faults.length;
  for (const part of ["ca", "cert", "key"] as const) {
    const key = tlsKeys[part];
    const file = given[key];
    if (file === undefined) continue;
    const at = sources.resolve([...path, names[key] ?? key], file);
    files[key] = at;
    const read = textOf(at);
    if (typeof read === "string") collect.faults.push(placed(key, `${shown(at)} ${read}`));
    else texts[part] = read.text;
    if (part === "key" && typeof read !== "string" && (read.mode & 0o077) !== 0) {
      const octal = (read.mode & 0o777).toString(8).padStart(4, "0");
      collect.warnings.push(placed(key, `${shown(at)} can be read by others (mode ${octal}): chmod 600 it`));
    }
  }
  if (files.certFile !== undefined && files.keyFile === undefined)
    collect.faults.push(placed("certFile", "means nothing without keyFile"));
  if (files.keyFile !== undefined && files.certFile === undefined)
    collect.faults.push(placed("keyFile", "means nothing without certFile"));
  if (collect.faults.length > before) return files;
  const { faults, warnings } = judgeTls(texts, Date.now());
  const told = ({ of, message }: { of: keyof TlsParts; message: string }): Fault =>
    placed(tlsKeys[of], `${shown(files[tlsKeys[of]] ?? "")} ${message}`);
  collect.faults.push(...faults.map(told));
  collect.warnings.push(...warnings.map(told));
  return files;
}

/** Or what keeps it from being read. */
function textOf(file: string): { readonly text: string; readonly mode: number } | string {
  try {
    const { mode, size } = statSync(file);
    if (size > fileBytesMax) return "is larger than 1 MiB: is it the right file?";
    return { text: readFileSync(file, "utf8"), mode };
  } catch (error) {
    return readFault(error);
  }
}
