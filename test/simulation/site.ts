// A service in one world: its gateways, backends and servers, what goes wrong with them, and when everything is well again.

import { endOf } from "../../gateway/entry.ts";
import type { ReplicaState } from "../../gateway/events.ts";
import { SimBackend, noBackendFaults } from "./backend.ts";
import { Clients } from "./clients.ts";
import { CursorServer } from "./cursors.ts";
import { leaseMs, MemoryDigests, SimGateway } from "./gateway.ts";
import type { Site } from "./gateway.ts";
import { KeyServer } from "./keys.ts";
import { LogServer } from "./log.ts";
import { Machine } from "./machine.ts";
import { PeerNet } from "./peers.ts";
import { planOf } from "./plan.ts";
import type { FaultKind, Plan } from "./plan.ts";
import { Random } from "./random.ts";
import { calm } from "./wire.ts";
import type { Wire } from "./wire.ts";
import { Process, World } from "./world.ts";

/** Where a gateway runs, one life after the other. */
interface Slot {
  readonly machine: Machine;
  gateway: SimGateway | null;
}

/** After this time nothing more goes wrong. */
const troubleMs = 15_000;
/** Healed, a service must be well within so long. */
const healMs = 60_000;

export class Service {
  readonly world: World;
  readonly plan: Plan;
  readonly site: Site;
  readonly clients: Clients;
  readonly slots: readonly Slot[];
  readonly #random: Random;
  #healedMs: number | null = null;
  #calmSinceMs: number | null = null;
  #isBorn = false;
  isOver = false;
  /** Each kind of fault, how often. */
  readonly faults = new Map<FaultKind, number>();

  constructor(seed: number, gateways: number | null, keepsTrace: boolean) {
    const random = new Random(seed);
    this.plan = planOf(random, gateways);
    const { plan } = this;
    this.world = new World(random.fork(), keepsTrace);
    const { world } = this;
    this.#random = random.fork();
    world.note(() => JSON.stringify(plan));
    const log = new LogServer(world, plan.isTailExact);
    const net = new PeerNet(world);
    const backends = ["a", "b", "c"].map((name) => new SimBackend(world, name, plan.isManaged));
    this.site = {
      world,
      plan,
      log,
      net,
      backends,
      cursors: new CursorServer(world),
      keys: new KeyServer(world, leaseMs, () => endOf(log.last)),
      digests: new MemoryDigests(),
    };
    this.slots = Array.from({ length: plan.gateways }, (_, at) => ({
      machine: new Machine(`g${at + 1}`),
      gateway: null,
    }));
    this.clients = new Clients(world, plan, () => this.gateways.filter((it) => it.isServing));
  }

  /** Those that live. */
  get gateways(): readonly SimGateway[] {
    return this.slots.flatMap(({ gateway }) => (gateway?.process.isAlive === true ? [gateway] : []));
  }

  begin(): void {
    const { world } = this;
    for (const slot of this.slots) this.#boot(slot, this.#random.between(0, 200));
    world.in(50, world.nature, () => this.#look());
  }

  /** A copy that comes late to its first start is new to a log that has entries, and waits for a person: so trouble begins once all are there. */
  #beginTrouble(): void {
    const { log, net, backends, world } = this.site;
    world.note("trouble begins");
    this.#isBorn = true;
    log.faults.twice = this.plan.storedTwice;
    log.faults.refused = this.plan.refused;
    net.lost = this.plan.peersLost;
    for (const it of backends) it.faults = this.plan.backend;
    for (const it of this.gateways) storm(it, this.plan);
    this.clients.start();
    if (this.plan.faults.length > 0) this.#troubleSoon();
  }

  get #isHealed(): boolean {
    return this.#healedMs !== null;
  }

  #look(): void {
    const { world } = this;
    for (const it of this.gateways) {
      const failure = it.reader?.failure ?? null;
      if (failure !== null) {
        world.fail(`${it.process.name} does not believe the log: ${failure.message}`);
        this.isOver = true;
        return;
      }
    }
    if (!this.#isBorn) {
      if (this.#whyNotCalm() === null) this.#beginTrouble();
      else if (world.nowMs > healMs) {
        world.fail(`it does not come up: ${this.#whyNotCalm()}`);
        this.isOver = true;
        return;
      }
    } else if (!this.#isHealed && (world.nowMs > troubleMs || (this.clients.areDone && world.nowMs > 1000)))
      this.#heal();
    if (this.#healedMs !== null) {
      const why = this.#whyNotCalm();
      if (why !== null) this.#calmSinceMs = null;
      else this.#calmSinceMs ??= world.nowMs;
      if (this.#calmSinceMs !== null && world.nowMs - this.#calmSinceMs > 300) {
        this.isOver = true;
        return;
      }
      if (world.nowMs - this.#healedMs > healMs) {
        world.fail(`it is not well ${healMs / 1000} s after everything was healed: ${why ?? "it changes"}`);
        this.isOver = true;
        return;
      }
    }
    world.in(50, world.nature, () => this.#look());
  }

  /** Null: everybody serves and every copy is up to date, or waits for a person for good reason. */
  #whyNotCalm(): string | null {
    const { log, backends } = this.site;
    if (this.#isBorn && !this.clients.areDone) return "clients are waiting";
    for (const slot of this.slots) if (slot.gateway?.isServing !== true) return `${slot.machine.name} does not serve`;
    const end = endOf(log.last);
    for (const backend of backends) {
      const feeding = this.gateways.flatMap(
        (it) => it.replicas?.own.filter((own) => own.name === backend.name && own.state !== "gone") ?? [],
      );
      const owned = feeding.filter((it) => !it.isWaiting);
      const [applier] = owned;
      if (applier === undefined) return `nobody feeds ${backend.name}`;
      if (owned.length > 1) return `${owned.length} gateways feed ${backend.name}`;
      if (this.#mayWait(backend, applier.state, applier.reason)) continue;
      if (applier.state !== "live") return `${backend.name} is ${applier.state}: ${applier.reason}`;
      if (applier.applied < end) return `${backend.name} has applied ${applier.applied} of ${end}`;
      if (applier.lag > 0) return `${backend.name} lags`;
    }
    return null;
  }

  /** For a person: it forgot its state, or did what nothing can tell of. */
  #mayWait(backend: SimBackend, state: ReplicaState, reason: string): boolean {
    // Compared with one that forgot, a sound one may be what differs.
    if (state === "held") return this.site.backends.some((it) => it.hasForgotten) || this.plan.hasHazards;
    return state === "quarantined" && (backend.hasForgotten || reason.endsWith("which is parked"));
  }

  // ---- what goes wrong -------------------------------------------------------------------------------------------------------------

  #troubleSoon(): void {
    const { world } = this;
    world.in(this.#random.between(0.2, 1.8) * this.plan.everyMs, world.nature, () => {
      if (this.#isHealed) return;
      const kind = this.#random.pick(this.plan.faults);
      if (this.#strike(kind)) {
        this.faults.set(kind, (this.faults.get(kind) ?? 0) + 1);
        world.note(`fault: ${kind}`);
      }
      this.#troubleSoon();
    });
  }

  /** False: there is nothing that it could happen to. */
  #strike(kind: FaultKind): boolean {
    const random = this.#random;
    const { world, site } = this;
    const { gateways } = this;
    const slot = random.pick(this.slots);
    const { gateway } = slot;
    const backend = random.pick(site.backends);
    const forMs = (low: number, high: number, undo: () => void): void =>
      void world.in(random.between(low, high), world.nature, undo);
    const cut = (wire: Wire | undefined): boolean => {
      if (wire === undefined) return false;
      wire.isCut = true;
      forMs(20, 2500, () => wire.mend());
      return true;
    };
    switch (kind) {
      case "kill-gateway":
        if (gateway?.process.isAlive !== true) return false;
        this.#kill(slot);
        return true;
      case "reboot-machine":
        if (gateway?.process.isAlive !== true) return false;
        this.#kill(slot);
        slot.machine.reboot();
        return true;
      case "kill-in-turn":
        if (gateway?.isServing !== true) return false;
        gateway.diesInTurn = true;
        return true;
      case "stop-gateway":
        if (gateway?.isServing !== true) return false;
        world.in(0, gateway.process, () => {
          void gateway.stop().then(() => gateway.process.kill());
        });
        forMs(6000, 8000, () => gateway.process.kill());
        return true;
      case "pause-gateway": {
        if (gateway?.process.isAlive !== true || gateway.process.isPaused) return false;
        const { process } = gateway;
        world.pause(process);
        // Shorter than its lease, or so long that somebody else feeds its copies when it goes on.
        if (random.chance(0.5)) forMs(10, 800, () => world.resume(process));
        else forMs(leaseMs, 2.5 * leaseMs, () => world.resume(process));
        return true;
      }
      case "cut-log":
        return cut(gateway?.wires.log);
      case "cut-cursors":
        return cut(gateway?.wires.cursors);
      case "cut-keys":
        return cut(gateway?.wires.keys);
      case "cut-peers":
        if (gateways.length < 2) return false;
        site.net.cut.add(slot.machine.name);
        forMs(50, 4000, () => site.net.cut.delete(slot.machine.name));
        return true;
      case "cut-backend":
        backend.cut.add(slot.machine.name);
        forMs(20, 2000, () => backend.cut.delete(slot.machine.name));
        return true;
      case "kill-backend":
      case "forget-backend":
        if (!backend.isUp || (kind === "forget-backend" && !this.#isFedLive(backend))) return false;
        backend.crash(kind === "forget-backend");
        if (!backend.isManaged) forMs(20, 2000, () => backend.begin());
        return true;
      case "pause-backend": {
        const { process } = backend;
        if (!backend.isUp || process.isPaused) return false;
        world.pause(process);
        forMs(10, 2500, () => world.resume(process));
        return true;
      }
      case "empty-keys":
        site.keys.empty();
        return true;
      case "full-disk":
        if (gateway?.process.isAlive !== true) return false;
        gateway.intents.failing = 1 + random.below(3);
        return true;
      case "jump-clock":
        if (gateway === null) return false;
        gateway.process.skewMs = random.between(-3_600_000, 3_600_000);
        return true;
      default:
        kind satisfies never;
        return false;
    }
  }

  #isFedLive(backend: SimBackend): boolean {
    return this.gateways.some((it) =>
      it.replicas?.own.some((own) => own.name === backend.name && own.state === "live"),
    );
  }

  #kill(slot: Slot): void {
    if (slot.gateway === null) return;
    this.world.note(`${slot.machine.name} is killed`);
    slot.gateway.process.kill();
  }

  /** A life of a gateway; whatever ends it, the next one follows. */
  #boot(slot: Slot, delayMs: number): void {
    const { world } = this;
    world.in(delayMs, world.nature, () => {
      const process = new Process(slot.machine.name);
      process.onEnd(() => {
        slot.gateway = null;
        const later = this.#isHealed ? 100 : this.#random.chance(0.7) ? this.#random.between(50, 800) : 2 * leaseMs;
        this.#boot(slot, later);
      });
      world.in(0, process, () => {
        world.note(`${slot.machine.name} starts`);
        const gateway = new SimGateway(this.site, slot.machine, process);
        slot.gateway = gateway;
        if (this.#isBorn && !this.#isHealed) storm(gateway, this.plan);
        gateway.start().catch((error: unknown) => {
          world.note(`${slot.machine.name} cannot start: ${String(error)}`);
          process.kill();
        });
      });
    });
  }

  #heal(): void {
    const { world, site } = this;
    world.note("everything is healed");
    this.#healedMs = world.nowMs;
    site.net.cut.clear();
    site.net.lost = 0;
    site.log.faults.twice = 0;
    site.log.faults.refused = 0;
    for (const it of this.gateways) calmDown(it);
    for (const { gateway } of this.slots) if (gateway !== null) world.resume(gateway.process);
    for (const it of site.backends) {
      it.faults = noBackendFaults;
      it.cut.clear();
      world.resume(it.process);
      if (!it.isUp && !it.isManaged) it.begin();
    }
  }
}

function storm({ wires }: SimGateway, { logWeather, cursorWeather, keyWeather }: Plan): void {
  wires.log.weather = logWeather;
  wires.cursors.weather = cursorWeather;
  wires.keys.weather = keyWeather;
}

function calmDown(gateway: SimGateway): void {
  gateway.diesInTurn = false;
  gateway.intents.failing = 0;
  for (const wire of Object.values(gateway.wires)) {
    wire.weather = calm;
    wire.mend();
  }
}
