// All gateways of a service, as this one hears them: who is there, what each one's replicas do, who feeds what. What it believes is never needed to be
// right, only to be quick: ownership is decided by cursors, order by the log.

import type { Agreement } from "./agreement.ts";
import type { Backend } from "./backend/backend.ts";
import type { Clock } from "./clock.ts";
import { Courier } from "./courier.ts";
import { GatewayError } from "./errors.ts";
import type { Events } from "./events.ts";
import type { Exposure } from "./exposure.ts";
import type { Message, Peers, Question, Reply, ReplicaNews, Role } from "./peers/peers.ts";
import { RemoteReplica } from "./remote.ts";
import type { Proof, Replicas } from "./replicas.ts";

export interface FleetParts {
  readonly peers: Peers;
  readonly name: string;
  readonly boot: string;
  readonly roles: readonly Role[];
  readonly rules: () => string;
  readonly keys: "embedded" | "redis";
  readonly replicas: Replicas;
  readonly agreement: Agreement;
  readonly exposure: Exposure;
  readonly clock: Clock;
  readonly events: Events;
  readonly connect: (url: string) => Backend;
  /** Entries of the log that were folded here. */
  readonly entries: () => number;
  /** Carries out what a person ordered at another gateway. Rejects with why not. */
  readonly onOrder: (replica: string, action: "drain" | "resume" | "quarantine", reason: string) => Promise<void>;
}

/** A gateway that was heard. */
export interface Member {
  readonly boot: string;
  readonly name: string;
  readonly roles: readonly Role[];
  readonly rules: string;
  readonly keys: "embedded" | "redis";
  readonly replicas: readonly ReplicaNews[];
  readonly heardMs: number;
}

const helloEveryMs = 500;
/** Whoever is there answers a first hello at once. */
const listenMs = 300;
/** Not heard for so long: it is not counted on, and its replicas are nobody's. */
const silentMs = 2000;
/** W is told at most this often. */
const movedEveryMs = 2;
/** How long a grant lasts, and how long before its end the next one is asked for. */
const grantMs = 1000;
const grantAheadMs = 500;
const askMs = 1000;
/** An answer that should be here for so long is asked for again. */
const missingAfterMs = 300;
/** Reading a large state takes long; a reply that is lost is asked for again. */
const proofMs = 600_000;
const proofAskMs = 5000;
const proofPauseMs = 250;

export class Fleet {
  readonly courier: Courier;
  readonly #parts: FleetParts;
  readonly #members = new Map<string, Member>();
  readonly #remotes = new Map<string, RemoteReplica>();
  /** When each revision of a cursor was first heard of: the newest one a replica. */
  readonly #revisions = new Map<string, { readonly revision: number; readonly atMs: number }>();
  readonly #listening = new Map<string, Promise<string | null>>();
  readonly #timers: NodeJS.Timeout[] = [];
  #movedTimer: NodeJS.Timeout | null = null;
  #survived = new Map<string, [number, string, number][]>();
  #isSurvivedScheduled = false;
  #isLeaving = false;
  /** Since when an answer of a replica is missing: position by replica. */
  readonly #missing = new Map<string, { readonly position: number; readonly sinceMs: number }>();

  constructor(parts: FleetParts) {
    this.#parts = parts;
    const { agreement, peers, replicas } = parts;
    this.courier = new Courier({ peers, agreement, isThere: (boot) => this.#members.has(boot) });
    peers.hear((message, from) => this.#heard(message, from));
    peers.reply((question, from) => this.#reply(question, from));
    replicas.joinFleet({
      onDisagrees: (replica, position, rule) => {
        const owner = this.#remotes.get(replica.name)?.ownerBoot ?? null;
        if (owner !== null) peers.send(owner, { kind: "disagrees", replica: replica.name, position, rule });
      },
      bar: (position) => this.#barElsewhere(position),
      proof: (replica, reason, what) => this.#proofElsewhere(replica.name, reason, what),
    });
  }

  /** Resolves when whoever is there has had time to answer. Rejects with why this gateway cannot be one of them. */
  async start(): Promise<void> {
    const { clock, keys, name } = this.#parts;
    this.hello();
    this.#timers.push(
      setInterval(() => this.hello(), helloEveryMs),
      setInterval(() => this.#sweep(), 100),
    );
    await clock.sleep(listenMs);
    const twin = this.members.find((it) => it.name === name);
    if (twin !== undefined)
      throw new GatewayError(
        "GW_CONFLICT",
        `another gateway of this service runs under the name ${name}: give each its own (name:)`,
      );
    const alone = [{ name, keys }, ...this.members].find((it) => it.keys === "embedded");
    if (this.members.length > 0 && alone !== undefined)
      throw new GatewayError(
        "GW_CONFIG_INVALID",
        `several gateways share this log, and ${alone.name} keeps keys by itself: give each of them the same keys.redis`,
      );
  }

  /** Says good-bye: what this gateway feeds is free, as its cursors say. */
  leave(): void {
    this.#isLeaving = true;
    this.hello();
  }

  close(): void {
    for (const timer of this.#timers) clearInterval(timer);
    if (this.#movedTimer !== null) clearTimeout(this.#movedTimer);
    for (const it of this.#remotes.values()) it.close();
  }

  /** The others that were heard lately. */
  get members(): readonly Member[] {
    return [...this.#members.values()];
  }

  isThere(boot: string): boolean {
    return this.#members.has(boot);
  }

  /** Who appends under other rules than ours; null: nobody. */
  get otherRules(): string | null {
    return this.members.find((it) => it.roles.includes("front") && it.rules !== this.#parts.rules())?.rules ?? null;
  }

  /** When a revision of a replica's cursor was first heard of; null: it was not, or a newer one was. */
  heardRevision(replica: string, revision: number): number | null {
    const known = this.#revisions.get(replica);
    return known?.revision === revision ? known.atMs : null;
  }

  /** The view of a replica that is not ours. It becomes that of `replicas` when nobody of ours stands there. */
  remote(name: string, url: string | null, backendVersion: string): RemoteReplica {
    const known = this.#remotes.get(name);
    if (known !== undefined) return known;
    const { clock, connect, entries, replicas } = this.#parts;
    const remote = new RemoteReplica({
      name,
      url,
      backendVersion,
      clock,
      connect,
      entries,
      askGrant: (it) => this.#askGrant(it),
      onState: (it, from) => {
        if (replicas.all.includes(it)) replicas.changed(it, from);
      },
    });
    this.#remotes.set(name, remote);
    for (const member of this.#members.values())
      for (const news of member.replicas)
        if (news.name === name && news.revision > 0) remote.heard(news, member.name, member.boot);
    return remote;
  }

  /** Its replica was removed. */
  forget(name: string): void {
    this.#remotes.get(name)?.close();
    this.#remotes.delete(name);
  }

  // ---- what is told ----------------------------------------------------------------------------------------------------------------

  hello(): void {
    const { name, peers, replicas, roles, rules } = this.#parts;
    peers.tell({
      kind: "hello",
      gateway: name,
      roles,
      rules: rules(),
      keys: this.#parts.keys,
      isLeaving: this.#isLeaving,
      replicas: replicas.own.map((it) => it.news()),
    });
  }

  /** W of a replica of ours has moved: told soon, together with what moves meanwhile. */
  moved(): void {
    if (this.#movedTimer !== null || this.#members.size === 0) return;
    this.#movedTimer = setTimeout(() => {
      this.#movedTimer = null;
      const rows = this.#parts.replicas.own.map((it): [string, number, number] => {
        const { applied, entries } = it.news();
        return [it.name, applied, entries];
      });
      this.#parts.peers.tell({ kind: "moved", replicas: rows });
    }, movedEveryMs);
  }

  survived(replica: string, position: number, rule: string, tookMs: number): void {
    if (this.#members.size === 0) return;
    const list = this.#survived.get(replica);
    if (list === undefined) this.#survived.set(replica, [[position, rule, tookMs]]);
    else list.push([position, rule, tookMs]);
    if (this.#isSurvivedScheduled) return;
    this.#isSurvivedScheduled = true;
    setImmediate(() => {
      this.#isSurvivedScheduled = false;
      const survived = this.#survived;
      this.#survived = new Map();
      for (const [name, entries] of survived) this.#parts.peers.tell({ kind: "survived", replica: name, entries });
    });
  }

  died(replica: string, positions: readonly number[]): void {
    if (positions.length > 0) this.#parts.peers.tell({ kind: "died", replica, positions });
  }

  /** Orders something of a replica that another gateway feeds. Null: that one did not answer. */
  order(replica: string, action: "drain" | "resume" | "quarantine", reason: string): Promise<Reply | null> {
    const owner = this.#remotes.get(replica)?.ownerBoot ?? null;
    if (owner === null) return Promise.resolve(null);
    return this.#parts.peers.ask(owner, { kind: "order", replica, action, reason }, askMs * 5);
  }

  // ---- what is heard ---------------------------------------------------------------------------------------------------------------

  #heard(message: Message, from: string): void {
    const { exposure, replicas } = this.#parts;
    switch (message.kind) {
      case "hello":
        this.#met(message, from);
        break;
      case "moved":
        for (const [name, applied, entries] of message.replicas) this.#remotes.get(name)?.moved(from, applied, entries);
        break;
      case "answers":
        this.courier.received(message.answers);
        break;
      case "again":
        this.courier.again(from, message.replica, message.positions);
        break;
      case "survived":
        for (const [position, rule, tookMs] of message.entries)
          exposure.answered(message.replica, position, rule, tookMs);
        break;
      case "died":
        exposure.died(message.replica, message.positions);
        break;
      case "disagrees":
        if (replicas.own.some((it) => it.name === message.replica))
          replicas.disagrees(message.replica, message.position, message.rule);
        break;
      default:
        message satisfies never;
    }
  }

  #met(message: Extract<Message, { kind: "hello" }>, boot: string): void {
    const { clock, events } = this.#parts;
    const known = this.#members.get(boot);
    if (message.isLeaving) {
      if (known !== undefined) this.#left(known, "has stopped");
      return;
    }
    const { gateway: name, keys, replicas, roles, rules } = message;
    this.#members.set(boot, { boot, name, roles, rules, keys, replicas, heardMs: clock.now() });
    if (known === undefined) events.tell({ type: "peer", gateway: name, boot, state: "heard" });
    for (const news of replicas) {
      const heard = this.#revisions.get(news.name);
      if (news.revision > (heard?.revision ?? 0))
        this.#revisions.set(news.name, { revision: news.revision, atMs: clock.now() });
      // Before its cursor is its own it owns nothing: it may still wait for the one before it.
      if (news.revision > 0) this.#remotes.get(news.name)?.heard(news, name, boot);
    }
    for (const remote of this.#remotes.values())
      if (remote.ownerBoot === boot && !replicas.some((it) => it.name === remote.name)) remote.lost(boot);
    // Whoever is new hears of us at once, and not only with our next hello.
    if (known === undefined) this.hello();
  }

  #left(member: Member, why: string): void {
    this.#members.delete(member.boot);
    this.#parts.events.tell({ type: "peer", gateway: member.name, boot: member.boot, state: "gone" });
    for (const it of this.#remotes.values()) it.lost(member.boot, `the gateway ${member.name}, which fed it, ${why}`);
  }

  #sweep(): void {
    const now = this.#parts.clock.now();
    for (const member of this.#members.values())
      if (now - member.heardMs > silentMs) this.#left(member, "is not heard any more");
    for (const remote of this.#remotes.values()) {
      // Whoever reads now goes on reading.
      if (remote.reading > 0 && !remote.isSureFor(grantAheadMs)) void this.#askGrant(remote);
      this.#askMissing(remote, now);
    }
  }

  /** A message may be lost: an answer that a replica must have given for a while is asked for again. */
  #askMissing(remote: RemoteReplica, now: number): void {
    const { agreement, peers } = this.#parts;
    const missing = remote.ownerBoot === null ? [] : agreement.missing(remote.name, remote.applied);
    const [position] = missing;
    if (position === undefined || remote.ownerBoot === null) {
      this.#missing.delete(remote.name);
      return;
    }
    const known = this.#missing.get(remote.name);
    if (known?.position !== position) this.#missing.set(remote.name, { position, sinceMs: now });
    else if (now - known.sinceMs > missingAfterMs) {
      this.#missing.delete(remote.name);
      peers.send(remote.ownerBoot, { kind: "again", replica: remote.name, positions: missing });
    }
  }

  // ---- questions -------------------------------------------------------------------------------------------------------------------

  async #askGrant(remote: RemoteReplica): Promise<void> {
    const { clock, peers } = this.#parts;
    const { incarnation, ownerBoot } = remote;
    if (ownerBoot === null) return;
    // From the sending: its owner counts from the receipt, which is later.
    const sentMs = clock.now();
    const reply = await peers.ask(ownerBoot, { kind: "grant", replicas: [[remote.name, incarnation]] }, askMs);
    if (reply?.ok === true && reply.ms !== undefined) remote.granted(incarnation, sentMs + reply.ms);
  }

  async #barElsewhere(position: number): Promise<readonly string[]> {
    const { peers } = this.#parts;
    const appliers = this.members.filter((it) => it.roles.includes("applier"));
    const replies = await Promise.all(appliers.map((it) => peers.ask(it.boot, { kind: "bar", position }, askMs * 5)));
    const silent = appliers.filter((_, at) => replies[at]?.ok !== true).map((it) => it.name);
    // A replica that nobody feeds is taken by somebody who has not heard of this: then its cursor must know.
    const unfed = [...this.#remotes.values()].filter((it) => it.ownerBoot === null && this.#isShown(it));
    if (silent.length === 0 && unfed.length === 0) return replies.flatMap((it) => it?.names ?? []);
    for (const it of appliers) void peers.ask(it.boot, { kind: "unbar", position }, askMs);
    throw new Error(
      silent.length > 0
        ? `entry ${position} is not parked yet: the gateway ${silent.join(", ")} did not answer`
        : `entry ${position} is not parked yet: no gateway feeds ${unfed.map((it) => it.name).join(", ")}`,
    );
  }

  #isShown(it: RemoteReplica): boolean {
    return this.#parts.replicas.all.includes(it);
  }

  #proofElsewhere(
    replica: string,
    reason: string,
    what: Proof,
  ): { readonly isHeard: Promise<boolean>; proof(): Promise<string | null> } {
    const { peers } = this.#parts;
    const owner = this.#remotes.get(replica)?.ownerBoot ?? "";
    return {
      isHeard: peers.ask(owner, { kind: "listen", replica, reason, what }, askMs).then((it) => it?.ok === true),
      proof: () => this.#proof(owner, { kind: "proof", replica, reason }),
    };
  }

  /** Asked again and again: one reply may be lost, and whoever owed it may be gone. Null: there is none. */
  async #proof(owner: string, question: Extract<Question, { kind: "proof" }>): Promise<string | null> {
    const { clock, peers } = this.#parts;
    const until = clock.now() + proofMs;
    // Ends with a reply, when its owner is not heard any more, or when the time is over.
    while (clock.now() < until && this.#members.has(owner)) {
      const reply = await peers.ask(owner, question, proofAskMs);
      if (reply !== null) return reply.text ?? null;
      await clock.sleep(proofPauseMs);
    }
    return null;
  }

  async #reply(question: Question, from: string): Promise<Reply> {
    const { onOrder, replicas } = this.#parts;
    switch (question.kind) {
      case "grant": {
        const granted = question.replicas.map(
          ([name, incarnation]) => replicas.own.find((it) => it.name === name)?.grant(incarnation, grantMs) ?? null,
        );
        const ms = granted.every((it) => it !== null) ? grantMs : null;
        return ms === null ? { ok: false } : { ok: true, ms };
      }
      case "bar":
        return { ok: true, names: await replicas.bar(question.position) };
      case "unbar":
        replicas.unbar(question.position);
        return { ok: true };
      case "listen": {
        const key = `${from} ${question.reason}`;
        const proof = replicas.proofAt(question.replica, from, question.reason, question.what, proofMs);
        proof.catch(() => undefined);
        this.#listening.set(key, proof);
        setTimeout(() => this.#listening.delete(key), proofMs).unref();
        return { ok: true };
      }
      case "proof":
        return { ok: true, text: (await this.#listening.get(`${from} ${question.reason}`)) ?? null };
      case "order":
        await onOrder(question.replica, question.action, question.reason);
        return { ok: true };
      default:
        question satisfies never;
        return { ok: false };
    }
  }
}
