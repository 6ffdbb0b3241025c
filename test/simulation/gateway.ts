// One gateway of the simulation: the real flow over ports in memory, put together as gateway/gateway.ts does it, without its edges.

import { Agreement } from "../../gateway/agreement.ts";
import { Appender } from "../../gateway/appender.ts";
import { Applier } from "../../gateway/applier.ts";
import type { Backend } from "../../gateway/backend/backend.ts";
import type { Bodies } from "../../gateway/bodies/bodies.ts";
import type { DigestRow, Digests } from "../../gateway/digests/digests.ts";
import { GatewayError } from "../../gateway/errors.ts";
import { Events } from "../../gateway/events.ts";
import type { Exchange } from "../../gateway/exchange.ts";
import { Exposure } from "../../gateway/exposure.ts";
import { FirstEntry } from "../../gateway/firstentry.ts";
import { Fleet } from "../../gateway/fleet.ts";
import { Intake } from "../../gateway/intake.ts";
import { Once } from "../../gateway/once.ts";
import { Owners } from "../../gateway/owners.ts";
import type { Feeding } from "../../gateway/owners.ts";
import { Policies } from "../../gateway/policies.ts";
import { LogReader } from "../../gateway/reader.ts";
import { Reads } from "../../gateway/reads.ts";
import { Replicas } from "../../gateway/replicas.ts";
import { Rest } from "../../gateway/rest.ts";
import { ReaderState, rulesItems } from "../../gateway/state/state.ts";
import { Turn } from "../../gateway/turn.ts";
import { parseTemplate } from "../../rules/template.ts";
import { BackendPort, isReady, SimLaunch } from "./backend.ts";
import type { SimBackend } from "./backend.ts";
import { CursorPort } from "./cursors.ts";
import type { CursorServer } from "./cursors.ts";
import { KeyPort } from "./keys.ts";
import type { KeyServer } from "./keys.ts";
import { LogPort } from "./log.ts";
import type { LogServer } from "./log.ts";
import { MemoryIntents } from "./machine.ts";
import type { Machine } from "./machine.ts";
import { PeerPort } from "./peers.ts";
import type { PeerNet } from "./peers.ts";
import { rulesOf } from "./plan.ts";
import type { Plan } from "./plan.ts";
import { calm, Wire } from "./wire.ts";
import type { Process, World } from "./world.ts";

export const leaseMs = 3000;
export const firstByteMs = 1000;
const queueWaitMs = 1500;

/** What all gateways share. */
export interface Site {
  readonly world: World;
  readonly plan: Plan;
  readonly log: LogServer;
  readonly cursors: CursorServer;
  readonly keys: KeyServer;
  readonly digests: MemoryDigests;
  readonly net: PeerNet;
  readonly backends: readonly SimBackend[];
}

export class MemoryDigests implements Digests {
  readonly #rows: DigestRow[] = [];

  append(rows: readonly DigestRow[]): Promise<void> {
    this.#rows.push(...rows);
    return Promise.resolve();
  }
  async *read(from: number, to: number): AsyncGenerator<DigestRow> {
    for (const row of this.#rows) if (row.position >= from && row.position <= to) yield row;
  }
  truncate(): Promise<void> {
    return Promise.resolve();
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
}

const noBodies: Bodies = {
  put: () => Promise.reject(new Error("no simulated body is large")),
  read: () => {
    throw new Error("no simulated body is large");
  },
  sweep: () => Promise.resolve(0),
  close: () => Promise.resolve(),
};

/** One life of a gateway. */
export class SimGateway {
  readonly process: Process;
  readonly wires: { readonly log: Wire; readonly cursors: Wire; readonly keys: Wire };
  readonly intents: MemoryIntents;
  readonly boot: string;
  /** The next turn that has something to note is its last. */
  diesInTurn = false;
  readonly #site: Site;
  readonly #machine: Machine;
  readonly #stop = new AbortController();
  readonly #copies = new Map<
    string,
    { readonly applier: Applier; readonly ending: AbortController; done: Promise<void> }
  >();
  #intake: Intake | null = null;
  #reader: LogReader | null = null;
  #replicas: Replicas | null = null;
  #isStopping = false;
  #stopInOrder: () => Promise<void> = () => Promise.resolve();

  /** In an event of its process. */
  constructor(site: Site, machine: Machine, process: Process) {
    const { world } = site;
    this.#site = site;
    this.#machine = machine;
    this.process = process;
    this.boot = world.random.hex(16);
    this.wires = {
      log: new Wire(world, process, "log", calm),
      cursors: new Wire(world, process, "cursors", calm),
      keys: new Wire(world, process, "keys", calm),
    };
    this.intents = new MemoryIntents(machine, this.boot, world, process, () => this.diesInTurn);
  }

  get isServing(): boolean {
    return this.process.isAlive && this.#intake !== null && !this.#isStopping;
  }
  get replicas(): Replicas | null {
    return this.#replicas;
  }
  get reader(): LogReader | null {
    return this.#reader;
  }

  /** Answers by the exchange's reply; before it serves, the connection is refused (false). */
  handle(exchange: Exchange): boolean {
    if (this.#intake === null || this.#isStopping) return false;
    void this.#intake.handle(exchange);
    return true;
  }

  /** Resolves when it takes requests. Rejects with why it cannot be. */
  async start(): Promise<void> {
    const { world, plan, backends, digests, net } = this.#site;
    const { process, wires, boot, intents } = this;
    const { marks, formerBoots, state: store, name } = this.#machine;
    const former = new Set(formerBoots);
    formerBoots.add(boot);
    const clock = world.clockOf(process);
    const randomHex = (bytes: number): string => world.random.hex(bytes);
    const rules = rulesOf(plan);
    const events = new Events();
    events.listen((fact) => {
      if (fact.type === "applied" || fact.type === "appended" || fact.type === "key") return;
      world.note(() => `${name} tells ${JSON.stringify(fact)}`);
    });
    if (plan.isManaged) for (const it of backends) it.crash(false);

    const log = new LogPort(this.#site.log, world, process, wires.log);
    const cursors = new CursorPort(this.#site.cursors, wires.cursors);
    const keys = new KeyPort(this.#site.keys, process, wires.keys);
    const info = await log.info();
    const state = new ReaderState(store, log.epoch, info.first);
    const reader = new LogReader({
      log,
      state,
      marks,
      events,
      own: () => appender.flight,
      bufferBytesMax: 16 * 1024,
      taken: () => replicas.taken,
    });
    this.#reader = reader;
    const policies = new Policies(rules, { retentionMs: 3_600_000, window: 100_000 }, {}, (digest) =>
      state.policy(digest),
    );
    const replicas = new Replicas({ onMinority: "quarantine", onTie: "alarm", liveMin: 2 }, events);
    this.#replicas = replicas;
    const agreement = new Agreement({
      epoch: log.epoch,
      replicas: () => replicas.all.length,
      digests,
      events,
      wallMs: () => clock.wallMs(),
      onMinority: (replica, position, rule) => {
        const hasForgotten = backends.some((it) => it.name === replica && it.hasForgotten);
        if (!hasForgotten) world.fail(`${replica} is in the minority at ${position} (${rule})`);
        replicas.disagrees(replica, position, rule);
      },
      onTie: (position) => {
        if (!backends.some((it) => it.hasForgotten)) world.fail(`no majority at ${position}`);
      },
    });
    const appender = new Appender({
      log,
      boot,
      gateway: name,
      clock,
      events,
      rules: () => policies.digest,
      live: () => ({ names: replicas.live, primary: replicas.primary }),
      tail: () => reader.sequence,
      onRegressed: (error) => reader.fail(error),
    });
    const exposure = new Exposure(clock, 2, (position, kills) => void park(position, kills));
    const park = async (position: number, kills: number): Promise<void> => {
      // Ends when it is in the log, or with the gateway.
      for (; !this.#stop.signal.aborted; await clock.sleep(1000, this.#stop.signal))
        try {
          await replicas.skip(position, `it ended ${kills} replicas`);
          return;
        } catch (error) {
          events.tell({ type: "warning", about: "poison", detail: String(error) });
        }
    };
    exposure.liveIs(() => replicas.live);
    exposure.finishedIs((position) => replicas.all.some((it) => it.applied >= position));
    exposure.elsewhereIs((replica) => replicas.liveReplicas().some((it) => it.name === replica && !it.isOwn));
    const connect = (url: string): Backend => {
      const backend = backends.find((it) => it.url === url);
      if (backend === undefined) throw new Error(`there is nothing at ${url}`);
      return new BackendPort(backend, process);
    };
    const peers = new PeerPort(net, process, boot);
    const fleet = new Fleet({
      peers,
      name,
      boot,
      roles: ["front", "applier"],
      rules: () => policies.digest,
      keys: keys.kind,
      replicas,
      agreement,
      exposure,
      clock,
      events,
      connect,
      entries: () => state.entries,
      onOrder: () => Promise.reject(new Error("nobody orders anything")),
    });
    const wakeAll = (): void => {
      for (const applier of replicas.own) applier.wake();
    };
    const firstEntry = new FirstEntry(state.entries > 0, wakeAll, (sharing) =>
      world.fail(`${sharing.join(", ")} seem to share their state`),
    );
    const turn = new Turn(intents);
    const rest = new Rest({
      clock,
      members: () => replicas.own,
      isNeeded: () => replicas.liveReplicas().every((it) => it.isOwn),
    });
    const create = (backend: SimBackend): Applier =>
      new Applier({
        settings: {
          name: backend.name,
          backendVersion: "",
          url: backend.isManaged ? null : backend.url,
          keepsState: true,
          witness: ["GET /state"],
          onReturn: "verify",
          firstByteMs,
          answerBytesMax: 1 << 20,
          beforeBytesMax: 1 << 20,
          concurrency: 64,
          leaseMs,
          lagMax: 10_000,
          health: { everyMs: 500, fall: 3, rise: 2 },
        },
        launch: new SimLaunch(backend, process),
        connect,
        pidOf: () => null,
        checkReady: (_url, timeoutMs) => isReady(backend, process, timeoutMs),
        log,
        reader,
        policies,
        cursors,
        marks,
        intents,
        turn,
        exposure,
        firstEntry,
        rest,
        agreement,
        keys,
        bodies: noBodies,
        digests,
        events,
        clock,
        randomHex,
        owner: { name, boot },
        formerBoots: former,
        verify: (replica) => replicas.verify(replica),
        firstSequence: info.first,
        shutdownMs: 2000,
        onState: (applier, from) => {
          replicas.changed(applier, from);
          fleet.hello();
        },
        onMoved: () => fleet.moved(),
        deliver: (producer, answer) => fleet.courier.deliver(producer, answer),
        survived: (replica, position, rule, tookMs) => fleet.survived(replica, position, rule, tookMs),
        died: (replica, positions) => fleet.died(replica, positions),
        heardRevision: (replica, revision) => fleet.heardRevision(replica, revision),
      });
    const feeding: Feeding = {
      entries: backends.map((it) => ({
        name: it.name,
        owners: [],
        home: it.isManaged ? name : null,
        url: it.isManaged ? null : it.url,
        version: "",
      })),
      take: (replica) => {
        const backend = backends.find((it) => it.name === replica);
        if (backend === undefined || this.#copies.has(replica)) return;
        const applier = create(backend);
        const copy = { applier, ending: new AbortController(), done: Promise.resolve() };
        this.#copies.set(replica, copy);
        replicas.put(applier);
        copy.done = applier.run(copy.ending.signal).then(() => {
          if (this.#copies.get(replica) === copy) this.#copies.delete(replica);
        });
      },
      release: async (replica) => {
        const copy = this.#copies.get(replica);
        copy?.ending.abort();
        await copy?.done;
      },
    };
    replicas.arrange(backends.map((it) => it.name));
    const reads = new Reads({ log, reader, appender, replicas, clock, queueWaitMs });
    const once = new Once({
      epoch: log.epoch,
      reads,
      appender,
      events,
      firstByteMs,
      idleMs: 2000,
      inlineBytes: 1 << 18,
      answerBytesMax: 1 << 20,
    });
    replicas.onChange(() => exposure.leftAll(replicas.live));
    replicas.onChange(() => rest.changed());
    replicas.join(agreement, appender, reader, (reason) => world.fail(`${name} is paused: ${reason}`));
    exposure.onOpened(wakeAll);

    let isServing = false;
    reader.onFolded((folded) => {
      const { producer, rules: digest, live: named } = folded.header;
      const isOurs = producer === boot;
      if (isServing && (isOurs || !fleet.isThere(producer))) {
        const from = isOurs ? replicas.live : replicas.liveAppliers().map((it) => it.name);
        const live = named.filter((it) => from.includes(it));
        for (const { position, item, fate } of folded.items)
          if (item.kind === "entry" && fate.kind === "applied" && !folded.isDropped)
            agreement.expect(position, item, policies.rule(digest, item.rule), digest, live);
      }
      appender.folded(folded);
      replicas.folded(folded);
    });
    reader.start(this.#stop.signal);
    await reader.reached(info.last);
    if (state.entries > 0) firstEntry.isPast();
    isServing = true;

    if (state.policy(policies.digest) === null)
      await Promise.all(rulesItems(policies.text, 256 * 1024).map((item) => appender.place(item)));
    await fleet.start();
    const caller = parseTemplate("{header.authorization}");
    if (!caller.ok) throw new Error("the caller's template is wrong");
    const intake = new Intake({
      service: "sim",
      epoch: log.epoch,
      boot,
      policies,
      reader,
      appender,
      agreement,
      replicas,
      reads,
      once,
      keys,
      bodies: noBodies,
      events,
      clock,
      randomHex,
      limits: { bodyBytes: 1 << 20, inlineBytes: 1 << 18, queueWaitMs, firstByteMs, lagMax: 10_000 },
      onRunning: "conflict",
      caller: caller.value,
      refusal: () =>
        reader.failure === null
          ? null
          : new GatewayError(reader.failure.code, reader.failure.message, { outcome: "not-executed" }),
      whyUnsendable: () => null,
    });
    const owners = new Owners({
      fleet,
      feeding,
      replicas,
      name,
      boot,
      roles: ["front", "applier"],
      clock,
      formerlyOurs: async () => {
        const stored = await Promise.all(backends.map((it) => cursors.load(it.name)));
        return backends.flatMap((it, at) => (former.has(stored[at]?.cursor.owner?.boot ?? "") ? [it.name] : []));
      },
    });
    owners.start();
    const measuring = setInterval(() => replicas.measure(clock.now()), 1000);
    this.#stopInOrder = async () => {
      await appender.close(1000);
      await owners.close();
      for (const { ending } of this.#copies.values()) ending.abort();
      await Promise.all([...this.#copies.values()].map((it) => it.done));
      fleet.leave();
      clearInterval(measuring);
      await agreement.close();
      this.#stop.abort();
      await reader.close();
      fleet.close();
      await peers.close();
      exposure.close();
      await keys.close();
      await log.close();
    };
    this.#intake = intake;
    if (!firstEntry.isOpen) {
      for (let waited = 0; waited < 1000 && replicas.live.length < backends.length; waited += 20) await clock.sleep(20);
      const report = await firstEntry.begin(replicas.liveAppliers());
      if (report instanceof GatewayError) throw report;
    }
  }

  /** As SIGTERM does it. */
  async stop(): Promise<void> {
    if (this.#isStopping) return;
    this.#isStopping = true;
    await this.#stopInOrder();
  }
}
