// What a seed stands for: how many gateways, which rules, which faults how often, and how many operations by how many clients.

import { parseRules } from "../../rules/rule.ts";
import type { RuleSet } from "../../rules/rule.ts";
import type { BackendFaults } from "./backend.ts";
import type { Random } from "./random.ts";
import type { Weather } from "./wire.ts";

export interface Plan {
  readonly gateways: number;
  readonly isManaged: boolean;
  readonly isTailExact: boolean;
  /** Entries of different keys run side by side. */
  readonly isOrdered: boolean;
  /** Some requests can be neither repeated nor asked for. */
  readonly hasHazards: boolean;
  readonly clients: number;
  readonly operations: number;
  readonly keys: number;
  /** Between two operations of one client, at most. */
  readonly thinkMs: number;
  readonly logWeather: Weather;
  readonly cursorWeather: Weather;
  readonly keyWeather: Weather;
  readonly storedTwice: number;
  readonly refused: number;
  readonly peersLost: number;
  readonly backend: BackendFaults;
  /** Each as often as it stands here. */
  readonly faults: readonly FaultKind[];
  /** Between two of them, ms, on average. */
  readonly everyMs: number;
}

export const faultKinds = [
  "kill-gateway",
  "kill-in-turn",
  "stop-gateway",
  "reboot-machine",
  "pause-gateway",
  "cut-log",
  "cut-cursors",
  "cut-keys",
  "cut-peers",
  "cut-backend",
  "kill-backend",
  "forget-backend",
  "pause-backend",
  "empty-keys",
  "full-disk",
  "jump-clock",
] as const;
export type FaultKind = (typeof faultKinds)[number];

export function planOf(random: Random, gateways: number | null): Plan {
  const count = gateways ?? random.pick([1, 1, 2, 2, 3]);
  const often = (low: number, high: number): number => (random.chance(0.5) ? 0 : random.between(low, high));
  const weather = (): Weather => ({
    delayMs: random.pick([
      [0.1, 1],
      [0.2, 5],
      [0.5, 40],
    ] as const),
    lostRequests: often(0.01, 0.08),
    lostAnswers: often(0.01, 0.08),
    lateRequests: often(0.01, 0.05),
  });
  const isManaged = count === 1 && random.chance(0.4);
  // A backend that loses its state while its gateway is away cannot be told from one that has not: that limit is stated.
  const forgets = random.chance(0.1);
  const usual = faultKinds.filter((kind) => kind !== "forget-backend" && (kind !== "cut-backend" || !isManaged));
  const faults: FaultKind[] = forgets
    ? ["forget-backend", "cut-log", "cut-keys", "kill-backend", "empty-keys"]
    : usual.filter(() => random.chance(0.5));
  return {
    gateways: count,
    isManaged: isManaged && !forgets,
    isTailExact: random.chance(0.5),
    isOrdered: random.chance(0.6),
    hasHazards: random.chance(0.15),
    clients: 2 + random.below(5),
    operations: 30 + random.below(120),
    keys: 1 + random.below(4),
    thinkMs: random.pick([60, 60, 800]),
    logWeather: weather(),
    cursorWeather: weather(),
    keyWeather: weather(),
    storedTwice: often(0.02, 0.2),
    refused: often(0.01, 0.05),
    peersLost: often(0.02, 0.2),
    backend: {
      slow: often(0.01, 0.06),
      resetBefore: often(0.005, 0.03),
      resetAfter: often(0.005, 0.03),
      late: often(0.005, 0.03),
      refused: often(0.005, 0.02),
      garbage: often(0.005, 0.02),
    },
    faults,
    everyMs: random.between(200, 1500),
  };
}

const probe = 'probe: { request: "GET /seen/{header.x-op}", applied: { body: { /applied: [true] } } }';
const sets = new Map<string, RuleSet>();

/** Parsed once for all seeds: rules are frozen. */
export function rulesOf({ isOrdered, hasHazards }: Plan): RuleSet {
  const id = `${isOrdered} ${hasHazards}`;
  const known = sets.get(id);
  if (known !== undefined) return known;
  const register = isOrdered ? 'order: ["r:{path.id}"], ' : "";
  const counter = isOrdered ? 'order: ["c:{path.id}"], ' : "";
  const text = `version: 1
rules:
  - { name: put, match: "PUT /r/:id", mode: replicate, ${register}timeout: 1s }
  - { name: put-all, match: "PUT /all", mode: replicate, timeout: 1s }
  - { name: cas, match: "POST /cas/:id", mode: replicate, ${register}timeout: 1s, ${probe} }
  - { name: count, match: "POST /c/:id", mode: replicate, ${counter}timeout: 1s, ${probe} }
  - { name: hazard, match: "POST /h/:id", mode: replicate, ${counter}timeout: 1s }
  - { name: once, match: "POST /once/:id", mode: only-once, timeout: 1s, key: { required: true } }
  - { name: get, match: "GET /r/:id", mode: only-once, ${register}timeout: 1s }
  - { name: get-count, match: "GET /c/:id", mode: only-once, ${counter}timeout: 1s }
`;
  const { rules } = parseRules(text, { file: "simulation" });
  sets.set(id, rules);
  return rules;
}
