// The header fields an entry is sent with: the client's, and what makes copies deterministic. Equal on all replicas but for the role.

import type { Entry, RawHeaders } from "./entry.ts";

/** Of one entry, made once and shared by all replicas. */
export class Outgoing {
  readonly #entry: Entry;
  readonly #position: number;
  /** The gateway's own fields without the role. */
  #own: RawHeaders | null = null;
  #primarys: RawHeaders | null = null;
  #others: RawHeaders | null = null;

  constructor(entry: Entry, position: number) {
    this.#entry = entry;
    this.#position = position;
  }

  /** `set`: fields an old entry is replayed with (the rule's `replay.set`); null: it is not a replay. */
  headers(isPrimary: boolean, set: Readonly<Record<string, string>> | null): RawHeaders {
    const { headers } = this.#entry;
    if (set !== null && Object.keys(set).length > 0) return this.#with(replaced(headers, set), isPrimary);
    if (isPrimary) return (this.#primarys ??= this.#with(headers, true));
    return (this.#others ??= this.#with(headers, false));
  }

  #with(headers: RawHeaders, isPrimary: boolean): RawHeaders {
    this.#own ??= [
      "Replication-Position",
      String(this.#position),
      "Replication-Time",
      timeText(this.#entry.timeMs),
      "Replication-Seed",
      this.#entry.seed,
    ];
    return headers.concat(this.#own, "Replication-Role", isPrimary ? "primary" : "secondary");
  }
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
