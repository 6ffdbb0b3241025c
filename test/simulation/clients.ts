// Clients of the simulated service: they write, read, retry with their keys, and remember what they were told and when.

import type { Answer, RawHeaders } from "../../gateway/entry.ts";
import type { Exchange } from "../../gateway/exchange.ts";
import type { GatewayError } from "../../gateway/errors.ts";
import { canonicalTarget } from "../../rules/target.ts";
import { valueOf } from "./backend.ts";
import type { SimGateway } from "./gateway.ts";
import type { Plan } from "./plan.ts";
import type { Random } from "./random.ts";
import type { World } from "./world.ts";

export type Told =
  | {
      readonly kind: "answer";
      readonly status: number;
      readonly body: string;
      readonly outcome: string | null;
      readonly position: number | null;
      readonly isReplayed: boolean;
    }
  | {
      readonly kind: "problem";
      readonly code: string;
      readonly outcome: string | null;
      readonly position: number | null;
    }
  /** Refused before anything was sent. */
  | { readonly kind: "refused" }
  /** The connection ended, or nothing came in time. */
  | { readonly kind: "lost" };

/** One request of a client, as it was sent once. */
export interface Try {
  readonly id: string;
  readonly invokedMs: number;
  endedMs: number;
  told: Told | null;
}

export interface Operation {
  readonly op: string;
  readonly kind: "put" | "put-all" | "cas" | "count" | "hazard" | "once" | "get" | "get-count";
  readonly method: string;
  readonly target: string;
  readonly id: string;
  readonly body: string;
  /** Idempotency-Key. */
  readonly key: string | null;
  readonly tries: Try[];
}

const wireMs = [0.1, 2] as const;
const patienceMs = 4000;

export class Clients {
  readonly operations: Operation[] = [];
  readonly #world: World;
  readonly #plan: Plan;
  readonly #random: Random;
  readonly #gateways: () => readonly SimGateway[];
  #left: number;
  #busy = 0;
  #tries = 0;

  constructor(world: World, plan: Plan, gateways: () => readonly SimGateway[]) {
    this.#world = world;
    this.#plan = plan;
    this.#random = world.random.fork();
    this.#gateways = gateways;
    this.#left = plan.operations;
  }

  get areDone(): boolean {
    return this.#left === 0 && this.#busy === 0;
  }

  start(): void {
    for (let client = 0; client < this.#plan.clients; client++) {
      this.#busy++;
      void this.#live(client).finally(() => this.#busy--);
    }
  }

  /** Ends when all operations are made. */
  async #live(client: number): Promise<void> {
    let last = "";
    for (let n = 0; this.#left > 0; n++) {
      this.#left--;
      await this.#sleep(this.#random.chance(0.5) ? 0 : this.#random.between(0, this.#plan.thinkMs));
      const operation = this.#next(`${client}.${n}`, last);
      this.operations.push(operation);
      await this.#carryOut(operation);
      const told = operation.tries.at(-1)?.told;
      if (told?.kind === "answer" && told.status === 200)
        last = String((JSON.parse(told.body) as { value: unknown }).value);
    }
  }

  #next(op: string, last: string): Operation {
    const random = this.#random;
    const id = String(random.below(this.#plan.keys));
    const isKeyed = random.chance(0.6);
    const chosen = random.fraction();
    const make = (
      kind: Operation["kind"],
      method: string,
      path: string,
      body: string,
      key = isKeyed ? `k${op}` : null,
    ): Operation => ({ op, kind, method, target: path, id, body, key, tries: [] });
    if (chosen < 0.35) return make("get", "GET", `/r/${id}`, "", null);
    if (chosen < 0.4) return make("get-count", "GET", `/c/${id}`, "", null);
    if (chosen < 0.6) return make("put", "PUT", `/r/${id}`, op);
    if (chosen < 0.62) return make("put-all", "PUT", "/all", op);
    if (chosen < 0.78) return make("cas", "POST", `/cas/${id}`, `${random.chance(0.7) ? last : "nothing"}>${op}`);
    if (chosen < 0.95) return make("count", "POST", `/c/${id}`, "");
    if (this.#plan.hasHazards && chosen < 0.98) return make("hazard", "POST", `/h/${id}`, "");
    return make("once", "POST", `/once/${id}`, "", `k${op}`);
  }

  /** Ends when it is certain what became of it, or when its client has had enough. */
  async #carryOut(operation: Operation): Promise<void> {
    const most = operation.key === null ? 1 : 4;
    for (let attempt = 0; attempt < most; attempt++) {
      const made: Try = {
        id: `t${this.#tries++}`,
        invokedMs: this.#world.nowMs,
        endedMs: Number.POSITIVE_INFINITY,
        told: null,
      };
      operation.tries.push(made);
      // Some send again while the first is still under way.
      const isHasty = operation.key !== null && this.#random.chance(0.1);
      const sent = this.#send(operation, made);
      const told = await (isHasty
        ? Promise.race([sent, this.#sleep(this.#random.between(0, 20)).then(() => null)])
        : sent);
      if (told !== null && isCertain(told)) return;
      await this.#sleep(this.#random.between(5, 300));
    }
  }

  #send(operation: Operation, made: Try): Promise<Told> {
    const world = this.#world;
    const random = this.#random;
    const gateways = this.#gateways();
    return new Promise((resolve) => {
      const tell = (told: Told): void => {
        if (made.told !== null) return;
        made.told = told;
        made.endedMs = world.nowMs;
        timeout.run = null;
        world.note(() => `client has ${operation.op}/${made.id}: ${JSON.stringify(told)}`);
        resolve(told);
      };
      let isGone = false;
      const onGone: (() => void)[] = [];
      const timeout = world.in(patienceMs, world.nature, () => {
        isGone = true;
        tell({ kind: "lost" });
        if (gateway !== undefined)
          world.in(0, gateway.process, () => onGone.splice(0).forEach((listener) => listener()));
      });
      const gateway = gateways.length === 0 ? undefined : random.pick(gateways);
      world.note(
        () =>
          `client asks ${operation.op}/${made.id}: ${operation.method} ${operation.target} ${operation.body} of ${gateway?.process.name ?? "nobody"}`,
      );
      if (gateway === undefined) {
        world.in(random.between(...wireMs), world.nature, () => tell({ kind: "refused" }));
        return;
      }
      const { process } = gateway;
      process.onEnd(() => world.in(random.between(...wireMs), world.nature, () => tell({ kind: "lost" })));
      const back = (told: Told): void => {
        if (process.isAlive) world.in(random.between(...wireMs), world.nature, () => tell(told));
      };
      world.in(random.between(...wireMs), process, () => {
        const exchange = exchangeOf(
          operation,
          made,
          back,
          () => isGone,
          (listener) => onGone.push(listener),
        );
        if (!gateway.handle(exchange)) back({ kind: "refused" });
      });
    });
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => void this.#world.in(ms, this.#world.nature, resolve));
  }
}

/** What it was told will not change by asking again. */
const isCertain = (told: Told): boolean =>
  told.kind === "answer" ||
  (told.kind === "problem" &&
    (told.outcome === "executed" || told.code === "GW_ONCE_UNKNOWN" || told.code === "GW_PARKED"));

function exchangeOf(
  operation: Operation,
  made: Try,
  back: (told: Told) => void,
  isGone: () => boolean,
  onGone: (listener: () => void) => void,
): Exchange {
  const target = canonicalTarget(operation.target, { encodedSlash: "refuse" });
  if (!target.ok) throw new Error(target.reason);
  const headers = ["Host", "shop.test", "X-Op", operation.op, "X-Try", made.id];
  if (operation.key !== null) headers.push("Idempotency-Key", operation.key);
  const bytes = Buffer.from(operation.body);
  const answered = ({ status, body }: Pick<Answer, "status" | "body">, extra: RawHeaders): void =>
    back({
      kind: "answer",
      status,
      body: body.toString("utf8"),
      outcome: valueOf(extra, "replication-outcome"),
      position: positionIn(extra),
      isReplayed: valueOf(extra, "idempotency-replayed") === "true",
    });
  return {
    head: { method: operation.method, target, host: "shop.test", headers },
    target,
    headers,
    sessionPosition: null,
    peer: "10.0.0.1",
    body: {
      sizeBytes: bytes.length,
      collect: () => Promise.resolve(bytes),
      stream: () => {
        throw new Error("no simulated body is streamed");
      },
      trailers: () => [],
    },
    reply: {
      answer: answered,
      problem: (error: GatewayError) =>
        back({
          kind: "problem",
          code: error.code,
          outcome: error.outcome ?? null,
          position: error.position ?? null,
        }),
      stream: (extra) => {
        let status = 0;
        const chunks: Buffer[] = [];
        return {
          head: (given) => {
            status = given;
            return true;
          },
          data: (chunk) => {
            chunks.push(chunk);
            return true;
          },
          end: () => answered({ status, body: Buffer.concat(chunks) }, extra(status)),
          fail: () => back({ kind: "lost" }),
          onDrain: () => undefined,
        };
      },
    },
    isGone,
    onGone,
  };
}

function positionIn(extra: RawHeaders): number | null {
  const text = valueOf(extra, "replication-position");
  return text === null ? null : Number(text.split("@")[0]);
}
