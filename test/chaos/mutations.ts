// Planted bugs, one line each, in the compiled program: what the suite has to find. The product has no switch for any of them.

import type { LogKind } from "./service.ts";

export interface Mutation {
  readonly name: string;
  /** What it breaks. */
  readonly breaks: string;
  /** Below dist/. */
  readonly file: string;
  /** Must be there exactly once. */
  readonly find: string;
  readonly replace: string;
  /** The chaos that is aimed at it. */
  readonly aim: {
    readonly log: LogKind;
    readonly gateways: number;
    readonly faults: readonly string[];
    readonly seconds: number;
  };
}

const embedded = { log: "embedded", gateways: 1, seconds: 20 } as const;
const nats = { log: "nats", gateways: 1, seconds: 25 } as const;

export const mutations: readonly Mutation[] = [
  {
    name: "acknowledge-before-append",
    breaks: "a request is acknowledged when it was handed to the log, although the log has not confirmed it",
    file: "gateway/intake.js",
    find: 'the entry may be in it and may still be applied`, { outcome: "unknown"',
    replace: 'the entry may be in it and may still be applied`, { outcome: "executed"',
    aim: { ...nats, faults: ["nats-kill", "nats-pause", "stall-nats"] },
  },
  {
    name: "no-intent",
    breaks: "it is not noted that an entry is about to be sent: after a crash it is sent again as if it had never been",
    file: "gateway/applier.js",
    find: "intents.sent(this.name, it.position);",
    replace: "",
    aim: { ...embedded, faults: ["gateway-kill", "backend-slow"] },
  },
  {
    name: "apply-twice-after-restart",
    breaks: "what was finished out of order before a crash is executed again after it",
    file: "gateway/applier.js",
    find: "const done = new Set([...cursor.finished, ...notes.done].filter(above));",
    replace: "const done = new Set(cursor.finished.filter(above));",
    aim: { ...embedded, faults: ["gateway-kill", "backend-slow"] },
  },
  {
    name: "skip-after-timeout",
    breaks: "an entry of unknown outcome that was not executed counts as executed",
    file: "gateway/settlement.js",
    find: 'isApplied ? { do: "done", by: "probe" } : { do: "send" }',
    replace: '{ do: "done", by: "probe" }',
    aim: { ...embedded, faults: ["backend-reset", "backend-kill", "backend-hang"] },
  },
  {
    name: "read-without-waiting",
    breaks: "a linearizable read goes to whatever copy, however far it is",
    file: "gateway/reads.js",
    find: 'const index = need.kind === "position" ? need.position : await this.#index();',
    replace: 'const index = need.kind === "position" ? need.position : 0;',
    aim: { ...embedded, faults: ["backend-slow", "delay-backend"] },
  },
  {
    name: "key-not-in-log",
    breaks: "a key is only claimed in the key store: what stands twice in the log is executed twice",
    file: "gateway/state/state.js",
    find: 'const of = this.#foldKey(entry.key, "entry", position, header, entry.retryOf);',
    replace: "const of = null;",
    aim: { ...nats, faults: ["redis-flush", "redis-empty", "nats-pause", "stall-nats"] },
  },
  {
    name: "duplicate-record-not-dropped",
    breaks: "a record that was published again because its acknowledgement was lost counts twice",
    file: "gateway/state/state.js",
    find: "const isDropped = this.#isRepeated(header, record.sequence);",
    replace: "const isDropped = false;",
    aim: { ...nats, faults: ["nats-pause", "stall-nats", "cut-nats"] },
  },
  {
    name: "returned-copy-trusted",
    breaks: "a copy that came back is used without a look at its state",
    file: "gateway/applier.js",
    find: "const needsProof = isSuspect && !isTrusted;",
    replace: "const needsProof = false;",
    aim: { ...embedded, faults: ["backend-empty", "backend-old"] },
  },
  {
    name: "done-out-of-order-forgotten",
    breaks: "notes that begin anew when a backend comes back do not say what is done above the watermark",
    file: "gateway/applier.js",
    find: "{ unknown: this.#unknownNow(), done: this.#finishedAbove(), isExact: true }",
    replace: "{ unknown: this.#unknownNow(), done: [], isExact: true }",
    aim: { ...embedded, faults: ["backend-hang", "gateway-kill"], seconds: 40 },
  },
  {
    name: "order-keys-ignored",
    breaks: "entries with the same order key are sent side by side",
    file: "gateway/scheduler.js",
    find: "if (earlier !== undefined)",
    replace: "if (false)",
    aim: { ...embedded, faults: ["delay-backend", "backend-slow"] },
  },
];
