// Keeps as many versions as it was told. What goes before it was published leaves its manifest behind (line.ts): its publication is still to come.

import type { Events } from "../gateway/events.ts";
import type { Line, Version } from "./line.ts";

/** Versions beyond `keep`, oldest first. The newest one, and the newest one that is final, always stay. */
export function surplusOf(line: Line, keep: number): readonly Version[] {
  const { newest, versions } = line;
  const anchor = versions.findLast((it) => it.notes.finalMs !== null);
  return versions
    .slice(0, Math.max(0, versions.length - keep))
    .filter((it) => it !== anchor && it !== newest && !(line.isOwingAll && line.isWaiting(it)));
}

export async function thinOut(line: Line, keep: number, events: Events): Promise<void> {
  // Each removal may be the one after which no more can be owed.
  for (let [it] = surplusOf(line, keep); it !== undefined; [it] = surplusOf(line, keep)) {
    const { version, position } = it;
    const isOwed = line.isWaiting(it);
    await line.remove(version);
    const detail = isOwed ? "beyond snapshots.keep; its manifest stays until it is published" : "beyond snapshots.keep";
    events.tell({ type: "snapshot", state: "removed", version, replica: null, position, detail });
  }
}
