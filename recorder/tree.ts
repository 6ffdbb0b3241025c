// What a captured tree may be: names that can be brought back anywhere, folders before what is in them, links that stay inside.
// Both ends ask: a capture, so that nothing is recorded that cannot be restored; a restore, so that a listing by a stranger does no harm.

import type { TreeFolder, TreeLink } from "./capture/place.ts";

/** 36 bytes a chunk, in order: its SHA-256 and its length (big-endian). Compact: a state of 100 GiB has 1.6 million. */
export type ChunkList = Buffer;

export interface ListedFile {
  readonly kind: "file";
  readonly path: string;
  readonly mode: number;
  readonly sizeBytes: number;
  readonly chunks: ChunkList;
}
export type ListedEntry = ListedFile | TreeFolder | TreeLink;

export const treeCaps = { entries: 20_000_000, pathBytes: 4096, nameBytes: 255, targetBytes: 4095, mode: 0o777 };

/** By the bytes of their paths: a folder before what is in it. Paths are latin1, so code units are bytes. */
export const byPath = (a: { readonly path: string }, b: { readonly path: string }): number =>
  a.path < b.path ? -1 : a.path > b.path ? 1 : 0;

export function faultOfPath(path: string): string | null {
  if (path.length > treeCaps.pathBytes) return `its path is longer than ${treeCaps.pathBytes} bytes`;
  // oxlint-disable-next-line no-control-regex -- NUL ends a name for every system call
  if (/[\u0000\u0100-\uffff]/.test(path)) return "its path holds what no name can hold";
  for (const name of path.split("/")) {
    if (name === "" || name === "." || name === "..") return `"${name}" is no name`;
    if (name.length > treeCaps.nameBytes) return `a name in it is longer than ${treeCaps.nameBytes} bytes`;
  }
  return null;
}

/** The first thing that is wrong in a tree, or null. The entries are sorted by path. */
export function faultOfTree(entries: readonly ListedEntry[]): { readonly path: string; readonly fault: string } | null {
  if (entries.length > treeCaps.entries)
    return { path: "", fault: `there are ${entries.length} entries, more than ${treeCaps.entries}` };
  const folders = new Set<string>([""]);
  const links = new Map<string, string>();
  let former = "";
  for (const entry of entries) {
    const { path } = entry;
    const fault = faultOfEntry(entry, former, folders);
    if (fault !== null) return { path, fault };
    if (entry.kind === "folder") folders.add(path);
    if (entry.kind === "link") links.set(path, entry.target);
    former = path;
  }
  return faultOfLinks(links);
}

function faultOfEntry(entry: ListedEntry, former: string, folders: ReadonlySet<string>): string | null {
  const { path } = entry;
  const fault = faultOfPath(path);
  if (fault !== null) return fault;
  if (path === former) return "it is there twice";
  if (path < former) return "it is not in its place: entries are sorted by path";
  if (!folders.has(path.slice(0, Math.max(0, path.lastIndexOf("/")))))
    return "what it lies in is no folder of the tree";
  if (entry.kind === "link") return faultOfTarget(entry.target);
  const { mode } = entry;
  return Number.isInteger(mode) && mode >= 0 && mode <= treeCaps.mode ? null : "its mode is more than permission bits";
}

function faultOfTarget(target: string): string | null {
  if (target === "" || target.length > treeCaps.targetBytes) return "its target is empty or too long";
  // oxlint-disable-next-line no-control-regex -- as above
  if (/[\u0000\u0100-\uffff]/.test(target)) return "its target holds what no name can hold";
  return target.startsWith("/") ? "its target is absolute" : null;
}

/** Path → target. A link may lead nowhere; it may not lead out, not even through another link or with a `..` behind one. */
export function faultOfLinks(
  links: ReadonlyMap<string, string>,
): { readonly path: string; readonly fault: string } | null {
  for (const [path, target] of links) {
    const fault = faultOfTarget(target) ?? (leadsOut(path, target, links) ? "it leads out of the tree" : null);
    if (fault !== null) return { path, fault };
  }
  return null;
}

/** As the kernel follows more links than these it gives up: such a link leads nowhere. */
const linksFollowedMax = 40;

function leadsOut(path: string, target: string, links: ReadonlyMap<string, string>): boolean {
  const at = path.split("/").slice(0, -1);
  const todo = target.split("/").reverse();
  let followed = 0;
  // Ends when no name is left: links add names at most 40 times.
  for (let name = todo.pop(); name !== undefined; name = todo.pop()) {
    if (name === "" || name === ".") continue;
    if (name === "..") {
      if (at.pop() === undefined) return true;
      continue;
    }
    const next = links.get([...at, name].join("/"));
    if (next === undefined) {
      at.push(name);
      continue;
    }
    followed += 1;
    if (followed > linksFollowedMax) return false;
    if (next.startsWith("/")) return true;
    todo.push(...next.split("/").reverse());
  }
  return false;
}

/** For people and messages: what is not plain is shown as %XX, as in the listing. */
export const shownPath = (path: string): string => encodeName(path);

/** Everything but these is written as %XX, so that a name is one word of ASCII. */
const plain = /^[A-Za-z0-9._/+@=,:~-]*$/;

export function encodeName(name: string): string {
  if (plain.test(name)) return name;
  let text = "";
  for (const letter of name) {
    text += plain.test(letter) ? letter : `%${letter.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`;
  }
  return text;
}

/** Null unless the text is what `encodeName` gives for a name. */
export function decodeName(text: string): string | null {
  if (plain.test(text)) return text;
  const name = text.replaceAll(/%([0-9A-F]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  return encodeName(name) === text ? name : null;
}
