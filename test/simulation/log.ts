// Adapter of the log's port, in memory: a server that any number of processes reach over wires of their own.

import { GatewayError } from "../../gateway/errors.ts";
import type { Appended, GuaranteeReport, Log, LogInfo, StoredRecord } from "../../gateway/log/log.ts";
import type { Wire } from "./wire.ts";
import type { Process, World } from "./world.ts";

export interface LogFaults {
  /** Stored twice: a server's own retry. */
  twice: number;
  /** Certainly not stored: full, refused. */
  refused: number;
}

const timeoutMs = 400;
const maxBytes = 1 << 30;

export class LogServer {
  readonly epoch: string;
  readonly isTailExact: boolean;
  readonly records: Buffer[] = [];
  readonly faults: LogFaults = { twice: 0, refused: 0 };
  readonly #world: World;
  readonly #ports = new Set<LogPort>();
  bytes = 0;

  constructor(world: World, isTailExact: boolean) {
    this.#world = world;
    this.isTailExact = isTailExact;
    this.epoch = world.random.hex(8);
  }

  get last(): number {
    return this.records.length;
  }

  store(bytes: Buffer, by: string): number {
    this.records.push(bytes);
    this.bytes += bytes.length;
    this.#world.note(() => `log stores record ${this.last} of ${by}`);
    for (const port of this.#ports) port.grown();
    return this.last;
  }

  join(port: LogPort): void {
    this.#ports.add(port);
  }
  leave(port: LogPort): void {
    this.#ports.delete(port);
  }
}

export class LogPort implements Log {
  readonly kind = "nats";
  readonly recordBytesMax = 1024 * 1024;
  readonly #server: LogServer;
  readonly #world: World;
  readonly #process: Process;
  readonly #wire: Wire;
  /** What has come here; readers of this process see no more. */
  #seen = 0;
  #isComing = false;
  #waiting: (() => void)[] = [];
  #isClosed = false;

  constructor(server: LogServer, world: World, process: Process, wire: Wire) {
    this.#server = server;
    this.#world = world;
    this.#process = process;
    this.#wire = wire;
    server.join(this);
    process.onEnd(() => server.leave(this));
    this.grown();
  }

  get epoch(): string {
    return this.#server.epoch;
  }
  get isTailExact(): boolean {
    return this.#server.isTailExact;
  }

  /** The server has more: it comes here in its own time, in order. */
  grown(): void {
    if (this.#isComing || this.#isClosed) return;
    this.#isComing = true;
    this.#world.in(this.#wire.delay(), this.#process, () => {
      this.#isComing = false;
      if (this.#wire.isCut) {
        this.#wire.onMended(() => this.grown());
        return;
      }
      // Not always all of it.
      const { last } = this.#server;
      this.#seen = this.#world.random.chance(0.8) ? last : Math.min(last, this.#seen + 1);
      for (const wake of this.#waiting.splice(0)) wake();
      if (this.#seen < this.#server.last) this.grown();
    });
  }

  async append(record: Buffer): Promise<Appended> {
    const world = this.#world;
    const { faults } = this.#server;
    const by = this.#process.name;
    const called = await this.#wire.call(timeoutMs, (): Appended => {
      if (world.random.chance(faults.refused))
        return world.random.chance(0.5)
          ? { kind: "full" }
          : { kind: "refused", error: new GatewayError("GW_LOG_UNAVAILABLE", "the log takes nothing now") };
      const sequence = this.#server.store(record, by);
      if (world.random.chance(faults.twice))
        world.in(world.random.between(0, 50), world.nature, () => void this.#server.store(record, by));
      return { kind: "stored", sequence };
    });
    if (called.kind === "answered") return called.value;
    return { kind: "unknown", cause: new Error("the append timed out") };
  }

  async *read(from: number, signal: AbortSignal): AsyncGenerator<StoredRecord> {
    // Ends with the signal, or when the port is closed.
    for (let next = from; !signal.aborted && !this.#isClosed;) {
      if (next <= this.#seen) {
        const bytes = this.#server.records[next - 1] as Buffer;
        yield { sequence: next, bytes };
        next++;
        continue;
      }
      await new Promise<void>((resolve) => {
        const wake = (): void => {
          signal.removeEventListener("abort", wake);
          resolve();
        };
        this.#waiting.push(wake);
        signal.addEventListener("abort", wake, { once: true });
      });
    }
  }

  async tail(): Promise<number> {
    return (await this.info()).last;
  }

  async info(): Promise<LogInfo> {
    const called = await this.#wire.call(timeoutMs, () => {
      const { last } = this.#server;
      // A deposed leader answers with an older end.
      const back = this.isTailExact || !this.#world.random.chance(0.2) ? 0 : this.#world.random.below(4);
      return { first: 1, last: Math.max(0, last - back), bytes: this.#server.bytes, maxBytes };
    });
    if (called.kind === "answered") return called.value;
    throw new GatewayError("GW_LOG_UNAVAILABLE", "the log does not answer");
  }

  guarantee(): Promise<GuaranteeReport> {
    return Promise.resolve({ level: "power-loss", why: "the simulated log forgets nothing" });
  }
  truncate(): Promise<void> {
    return Promise.reject(new Error("the simulated log is never truncated"));
  }
  isReachable(): boolean {
    return !this.#wire.isCut;
  }
  onReachable(): void {}

  close(): Promise<void> {
    this.#isClosed = true;
    this.#server.leave(this);
    for (const wake of this.#waiting.splice(0)) wake();
    return Promise.resolve();
  }
}
