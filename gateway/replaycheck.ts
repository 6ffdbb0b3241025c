// Compares what a copy answers while the log is replayed on it with what was answered at first: equal, different, or nobody kept it.

import { digestAnswer } from "../rules/compare.ts";
import type { Rule } from "../rules/rule.ts";
import type { DigestRow, Digests } from "./digests/digests.ts";
import type { Answer, Entry } from "./entry.ts";

export interface Difference {
  readonly position: number;
  readonly rule: string;
  /** What it answered now. */
  readonly status: number;
  /** Where it refused who sent the entry (401, 403): the header fields that may be too old by now. */
  readonly oldCredentials: readonly string[];
}

interface Replayed extends Difference {
  readonly rules: string;
  readonly digest: string;
}

export interface ReplayCheckParts {
  readonly digests: Digests;
  readonly epoch: string;
  /** Only answers of one version of a backend are compared. */
  readonly backendVersion: string;
  readonly oldCredentials: (entry: Entry, rule: Rule) => readonly string[];
  /** Heard once, at the first difference. */
  readonly onDifference: (difference: Difference) => void;
}

const batchMax = 1024;
const differencesMax = 20;

export class ReplayCheck {
  readonly #parts: ReplayCheckParts;
  #batch: Replayed[] = [];
  #checking: Promise<void> = Promise.resolve();
  #isChecking = false;
  #equal = 0;
  #unverified = 0;
  readonly #differences: Difference[] = [];

  constructor(parts: ReplayCheckParts) {
    this.#parts = parts;
  }

  get equal(): number {
    return this.#equal;
  }
  /** Answers that nobody's digest was kept of: never "equal". */
  get unverified(): number {
    return this.#unverified;
  }
  /** The first of them. */
  get differences(): readonly Difference[] {
    return this.#differences;
  }

  answered(position: number, entry: Entry, rule: Rule, rules: string, answer: Answer): void {
    const digest = digestAnswer(rule, answer).decisive.toString("hex");
    const { status } = answer;
    const isRefusal = status === 401 || status === 403;
    const oldCredentials = isRefusal ? this.#parts.oldCredentials(entry, rule) : [];
    this.#batch.push({ position, rule: rule.name, rules, digest, status, oldCredentials });
    // What takes no old credentials is found out before more is replayed in vain.
    if (this.#batch.length >= batchMax || (oldCredentials.length > 0 && !this.#isChecking)) this.#next();
  }

  /** Resolves when everything that was answered so far is compared. */
  async settle(): Promise<void> {
    this.#next();
    await this.#checking;
  }

  #next(): void {
    const batch = this.#batch;
    if (batch.length === 0) return;
    this.#batch = [];
    this.#isChecking = true;
    const checking = this.#checking.then(() => this.#compare(batch));
    this.#checking = checking;
    void checking.finally(() => (this.#isChecking = this.#checking !== checking));
  }

  async #compare(batch: readonly Replayed[]): Promise<void> {
    const first = Math.min(...batch.map((it) => it.position));
    const last = Math.max(...batch.map((it) => it.position));
    const rows = new Map<number, DigestRow[]>();
    try {
      for await (const row of this.#parts.digests.read(first, last)) {
        if (row.epoch !== this.#parts.epoch || !row.isFirstSend) continue;
        if (row.backendVersion !== this.#parts.backendVersion) continue;
        const known = rows.get(row.position);
        if (known === undefined) rows.set(row.position, [row]);
        else known.push(row);
      }
    } catch {
      // Digests that cannot be read verify nothing; they vouch for nothing either.
      rows.clear();
    }
    for (const it of batch) this.#judge(it, rows.get(it.position) ?? []);
  }

  #judge(it: Replayed, rows: readonly DigestRow[]): void {
    const winners = winnersOf(rows.filter((row) => row.rules === it.rules));
    if (winners.size === 0) this.#unverified++;
    else if (winners.has(it.digest)) this.#equal++;
    else {
      const { position, rule, status, oldCredentials } = it;
      const difference = { position, rule, status, oldCredentials };
      if (this.#differences.length < differencesMax) this.#differences.push(difference);
      if (this.#differences.length === 1) this.#parts.onDifference(difference);
    }
  }
}

/** The digests that most copies gave; several where no majority was. Replays are written down as second sends: they do not vouch for each other. */
function winnersOf(rows: readonly DigestRow[]): ReadonlySet<string> {
  const counts = new Map<string, number>();
  for (const row of rows) counts.set(row.digest, (counts.get(row.digest) ?? 0) + 1);
  const most = Math.max(0, ...counts.values());
  return new Set([...counts].filter(([, count]) => count === most).map(([digest]) => digest));
}
