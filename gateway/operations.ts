// What takes time and was asked for: captures, verifications, audits, rebuilds. Each can be looked at while it runs and for a while afterwards.

import type { Clock } from "./clock.ts";
import { GatewayError } from "./errors.ts";
import type { Operation } from "./status.ts";

/** What work tells of itself. */
export interface Reporter {
  step(text: string): void;
  progress(done: number, total: number, unit: "bytes" | "entries"): void;
  /** A disagreement or mismatch that was found: the operation ends as failed, exit code 3. */
  finding(text: string): void;
}

const keptMax = 100;

export class Operations {
  readonly #clock: Clock;
  readonly #randomHex: (bytes: number) => string;
  readonly #operations = new Map<string, Operation>();

  constructor(clock: Clock, randomHex: (bytes: number) => string) {
    this.#clock = clock;
    this.#randomHex = randomHex;
  }

  /** Newest first. */
  list(): readonly Operation[] {
    return [...this.#operations.values()].reverse();
  }
  get(id: string): Operation | null {
    return this.#operations.get(id) ?? null;
  }

  /** Begins the work and tells of it; `work` resolves with one sentence. Rejects with GW_CONFLICT while the same is done to the same. */
  begin(kind: Operation["kind"], subject: string, work: (reporter: Reporter) => Promise<string>): Operation {
    const same = [...this.#operations.values()].find(
      (it) => it.state === "running" && it.kind === kind && it.subject === subject,
    );
    if (same !== undefined)
      throw new GatewayError("GW_CONFLICT", `${kind} ${subject} is under way already: operation ${same.id}`);
    const id = this.#randomHex(8);
    const begun: Operation = {
      id,
      kind,
      subject,
      state: "running",
      startedMs: this.#clock.wallMs(),
      endedMs: null,
      step: "",
      progress: null,
      result: null,
      error: null,
      findings: [],
    };
    this.#operations.set(id, begun);
    this.#forget();
    const change = (patch: Partial<Operation>): void => {
      this.#operations.set(id, { ...(this.#operations.get(id) ?? begun), ...patch });
    };
    const findings: string[] = [];
    work({
      step: (step) => change({ step, progress: null }),
      progress: (done, total, unit) => change({ progress: { done, total, unit } }),
      finding: (text) => {
        findings.push(text);
        change({ findings: [...findings] });
      },
    }).then(
      (result) =>
        change({ state: findings.length === 0 ? "done" : "failed", endedMs: this.#clock.wallMs(), result, step: "" }),
      (error: unknown) =>
        change({
          state: "failed",
          endedMs: this.#clock.wallMs(),
          error: {
            code: error instanceof GatewayError ? error.code : "GW_INTERNAL",
            detail: error instanceof Error ? error.message : String(error),
          },
        }),
    );
    return begun;
  }

  #forget(): void {
    for (const [id, it] of this.#operations) {
      if (this.#operations.size <= keptMax) return;
      if (it.state !== "running") this.#operations.delete(id);
    }
  }
}
