// The header fields an entry is sent with: the client's, and what makes copies deterministic. Equal on all replicas but for the role.

import type { Entry, RawHeaders } from "./entry.ts";

/** `[primary's, others']`, made once an entry: three replicas are sent the same. */
const made = new WeakMap<Entry, [RawHeaders | null, RawHeaders | null]>();

/** `set`: fields an old entry is replayed with (the rule's `replay.set`); null: it is not a replay. */
export function headersOf(
  entry: Entry,
  position: number,
  isPrimary: boolean,
  set: Readonly<Record<string, string>> | null,
): RawHeaders {
  if (set !== null && Object.keys(set).length > 0)
    return withOurs(replaced(entry.headers, set), entry, position, isPrimary);
  let both = made.get(entry);
  if (both === undefined) made.set(entry, (both = [null, null]));
  const at = isPrimary ? 0 : 1;
  return (both[at] ??= withOurs(entry.headers, entry, position, isPrimary));
}

function withOurs(headers: RawHeaders, entry: Entry, position: number, isPrimary: boolean): RawHeaders {
  return headers.concat(
    "Replication-Position",
    String(position),
    "Replication-Time",
    timeText(entry.timeMs),
    "Replication-Seed",
    entry.seed,
    "Replication-Role",
    isPrimary ? "primary" : "secondary",
  );
}

function replaced(headers: RawHeaders, set: Readonly<Record<string, string>>): RawHeaders {
  const kept: string[] = [];
  for (let at = 0; at < headers.length; at += 2) {
    const name = headers[at] as string;
    if (!Object.hasOwn(set, name.toLowerCase())) kept.push(name, headers[at + 1] as string);
  }
  for (const [name, value] of Object.entries(set)) kept.push(name, value);
  return kept;
}

let lastTime = { ms: -1, text: "" };

/** RFC 3339 with ms; entries of one moment share the text. */
function timeText(ms: number): string {
  if (lastTime.ms !== ms) lastTime = { ms, text: new Date(ms).toISOString() };
  return lastTime.text;
}
