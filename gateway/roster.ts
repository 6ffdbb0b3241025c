// Who the copies are, kept on the board.
//
// With the embedded log this gateway's file is what counts, and the document holds what was added and removed since. On NATS the document
// is the whole list, one for all gateways: at start each adds what its file names and nobody knows yet; what differs is told, and changed
// only when somebody asks for it (`gateway replica sync`). A copy that a gateway starts belongs to that gateway, and the others know its
// name alone: what it is started with stays in the file, because its environment may hold secrets. For the same reason, and because whoever may write
// to the server must not be able to run commands here, `state`, `stop` and `start` of a copy with a URL are each gateway's own: from its file alone.

import { dirname, join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { z } from "zod";
import type { Board } from "./board/board.ts";
import { isLoopback } from "./config.ts";
import type { Config, ReplicaConfig, UrlReplica } from "./config.ts";
import { origin, replicaName } from "./config/forms.ts";
import { GatewayError } from "./errors.ts";
import type { RosterChanges } from "./status.ts";

export interface RosterEntry {
  readonly name: string;
  /** Null: it cannot be started from here, as another gateway starts it, or as our file does not say how any more. */
  readonly config: ReplicaConfig | null;
  /** Which gateway starts it; null: it has a URL, and every gateway that its `owners` allow may feed it. */
  readonly gateway: string | null;
}

export type RosterConfig = Pick<Config, "name" | "log" | "replicas">;

export class Roster {
  readonly #board: Board;
  readonly #config: RosterConfig;
  readonly #isShared: boolean;
  readonly #listeners: (() => void)[] = [];
  #document: Document = { version: 1, entries: [], removed: [] };
  #revision = 0;
  #all: readonly RosterEntry[] = [];
  /** Calls take turns: none overtakes what another has read. */
  #turn: Promise<unknown> = Promise.resolve();

  private constructor(board: Board, config: RosterConfig) {
    this.#board = board;
    this.#config = config;
    this.#isShared = config.log.nats !== null;
  }

  /**
   * `isOnlyLooking`: what a start would find, and nothing is written. Rejects with GW_CONFLICT when our file and the roster mean different
   * things by one name, with GW_BOARD_LOST and with GW_LOG_UNAVAILABLE.
   */
  static async open(board: Board, config: RosterConfig, isOnlyLooking = false): Promise<Roster> {
    const roster = new Roster(board, config);
    await roster.#load();
    if (roster.#isShared) {
      if (isOnlyLooking) roster.#take(roster.#merged(roster.#document), roster.#revision);
      else await roster.#change((now) => roster.#merged(now));
    }
    return roster;
  }

  get all(): readonly RosterEntry[] {
    return this.#all;
  }

  /** Those that can be run or fed from here. */
  get here(): readonly ReplicaConfig[] {
    return this.#all.flatMap(({ config }) => (config === null ? [] : [config]));
  }

  /** Hears of each change of `all`, whoever made it. */
  onChange(listener: () => void): void {
    this.#listeners.push(listener);
  }

  /** True when another gateway has changed it since. */
  async refresh(): Promise<boolean> {
    return this.#inTurn(async () => {
      const before = this.#all;
      await this.#load();
      return this.#all !== before;
    });
  }

  /** A copy by its URL, or (null) one more of those that this gateway starts. Rejects with GW_CONFLICT. */
  async add(replica: UrlReplica | null): Promise<ReplicaConfig> {
    return this.#inTurn(async () => {
      const added = replica ?? this.#oneMore();
      if (this.#isShared && added.kind === "url" && (added.state ?? added.stop ?? added.start) !== null)
        throw new GatewayError(
          "GW_CONFLICT",
          `state, stop and start of ${added.name} are not told to other gateways: name it in the files of those that can reach them, and gateway replica sync`,
        );
      await this.#change((now, isRetry) => {
        const all = this.#view(now);
        const known = all.find((it) => it.name === added.name);
        // Ours, whose answer was lost.
        if (isRetry && isDeepStrictEqual(known?.config, added)) return now;
        if (known !== undefined) throw new GatewayError("GW_CONFLICT", `there is a replica ${added.name} already`);
        refuseTwin(added, all);
        const removed = now.removed.filter((it) => it !== added.name);
        const own = this.#isShared ? undefined : this.#configured(added.name);
        if (own === undefined) return { ...now, removed, entries: [...now.entries, this.#entryOf(added)] };
        if (own.kind === added.kind && urlOf(own) === urlOf(added)) return { ...now, removed };
        throw new GatewayError("GW_CONFLICT", `${added.name} is another one in this gateway's file: name it otherwise`);
      });
      return this.here.find((it) => it.name === added.name) ?? added;
    });
  }

  /** Rejects with GW_CONFLICT for the last one, and GW_NOT_FOUND. */
  async remove(name: string): Promise<void> {
    await this.#inTurn(() =>
      this.#change((now, isRetry) => {
        const all = this.#view(now);
        if (!all.some((it) => it.name === name)) {
          if (isRetry) return now;
          throw new GatewayError("GW_NOT_FOUND", `there is no replica ${name}`);
        }
        if (all.length === 1) throw new GatewayError("GW_CONFLICT", `${name} is the only replica`);
        const others = now.removed.filter((it) => it !== name);
        // Other gateways' files may name it too.
        const isNamed = this.#isShared || this.#configured(name) !== undefined;
        return {
          ...now,
          entries: now.entries.filter((it) => it.config.name !== name),
          removed: isNamed ? [...others, name] : others,
        };
      }),
    );
  }

  /**
   * The roster as this gateway's file has it; copies that other gateways start stay. `check` hears first which copies would leave or be
   * replaced, and throws what speaks against it. Rejects with GW_CONFLICT.
   */
  async sync(check: (leaving: readonly string[]) => void = () => undefined): Promise<RosterChanges> {
    return this.#inTurn(async () => {
      const before = this.#all;
      await this.#change((now) => {
        const next = this.#isShared ? this.#likeFile(now) : { ...now, entries: [], removed: [] };
        const { changed, removed } = changesBetween(this.#view(now), this.#view(next));
        check([...changed, ...removed]);
        return next;
      });
      return changesBetween(before, this.#all);
    });
  }

  /** How the roster is not what this gateway's file says, in sentences. */
  differences(): readonly string[] {
    const orphans = this.#all.filter((it) => it.config === null && this.#isOurs(it.gateway));
    const told = orphans.map(
      ({ name }) => `${name} is one that this gateway starts, and its file does not say how any more`,
    );
    if (!this.#isShared) return told;
    for (const replica of this.#config.replicas) {
      const { name } = replica;
      const known = this.#all.find((it) => it.name === name);
      if (known === undefined) told.push(`${name} stands in this gateway's file, and was removed at run time`);
      else if (replica.kind === "url" && known.config?.kind === "url") {
        const differing = differencesOf(known.config, replica);
        if (differing.length > 0) told.push(`${name} is not as in this gateway's file: ${differing.join(", ")}`);
      }
    }
    return told;
  }

  // ---- what it says ----------------------------------------------------------------------------------------------------------------

  #configured(name: string): ReplicaConfig | undefined {
    return this.#config.replicas.find((it) => it.name === name);
  }

  #isOurs(gateway: string | null): boolean {
    return gateway !== null && (!this.#isShared || gateway === this.#config.name);
  }

  #view({ entries, removed }: Document): readonly RosterEntry[] {
    const listed = entries.map((entry) => ({
      name: entry.config.name,
      config: this.#configOf(entry),
      gateway: entry.gateway,
    }));
    if (this.#isShared) return listed;
    const configured = this.#config.replicas
      .filter((it) => !removed.includes(it.name))
      .map((it) => ({ name: it.name, config: it, gateway: this.#gatewayOf(it) }));
    return [...configured, ...listed.filter((it) => this.#configured(it.name) === undefined)];
  }

  #configOf({ config, gateway }: Entry): ReplicaConfig | null {
    const own = this.#configured(config.name);
    if (config.kind === "url") {
      if (!this.#isShared) return config;
      const { state, stop, start } = own?.kind === "url" && own.url === config.url ? own : nothingToRun;
      return { ...config, state, stop, start };
    }
    if (!this.#isOurs(gateway)) return null;
    if (own !== undefined) return own.kind === config.kind ? own : null;
    const [like] = this.#config.replicas;
    return like === undefined || like.kind !== config.kind ? null : alike(like, config.name);
  }

  #gatewayOf(replica: ReplicaConfig): string | null {
    return replica.kind === "url" ? null : this.#config.name;
  }

  #entryOf(replica: ReplicaConfig): Entry {
    if (replica.kind === "url")
      return { config: this.#isShared ? { ...replica, ...nothingToRun } : replica, gateway: null };
    return { config: { kind: replica.kind, name: replica.name }, gateway: this.#config.name };
  }

  #oneMore(): ReplicaConfig {
    const [like] = this.#config.replicas;
    if (like === undefined || like.kind === "url")
      throw new GatewayError("GW_CONFLICT", "the replicas run without the gateway: give the new one's URL");
    // The first of those that are counted ends in 1.
    const prefix = like.name.slice(0, -1);
    let count = 1;
    while (this.#all.some((it) => it.name === `${prefix}${count}`)) count++;
    return alike(like, `${prefix}${count}`);
  }

  // ---- how it comes to say it ------------------------------------------------------------------------------------------------------

  /** With what our file names and nobody has added or removed yet. */
  #merged(now: Document): Document {
    const entries = [...now.entries];
    for (const replica of this.#config.replicas) {
      const known = entries.find((it) => it.config.name === replica.name);
      if (known !== undefined) this.#refuseOther(replica, known);
      else if (!now.removed.includes(replica.name)) {
        refuseTwin(replica, entries);
        entries.push(this.#entryOf(replica));
      }
    }
    return { ...now, entries };
  }

  #likeFile(now: Document): Document {
    const others = now.entries.filter(({ config, gateway }) =>
      this.#configured(config.name) === undefined ? gateway !== null && !this.#isOurs(gateway) : true,
    );
    const entries = others.map((entry) => {
      const own = this.#configured(entry.config.name);
      if (own === undefined) return entry;
      this.#refuseOther(own, entry);
      return this.#entryOf(own);
    });
    for (const replica of this.#config.replicas)
      if (!entries.some((it) => it.config.name === replica.name)) entries.push(this.#entryOf(replica));
    for (const [i, { config }] of entries.entries()) refuseTwin(config, entries.slice(0, i));
    return { ...now, entries, removed: now.removed.filter((it) => this.#configured(it) === undefined) };
  }

  /** One name, and two different copies: whoever is told of it could mean either. */
  #refuseOther(replica: ReplicaConfig, { config, gateway }: Entry): void {
    const { name } = replica;
    if (gateway === this.#gatewayOf(replica)) return;
    const who = gateway === null ? `has the URL ${urlOf(config) ?? ""}` : `is started by gateway ${gateway}`;
    const mend =
      replica.kind === "url"
        ? "name the copy otherwise"
        : `give this gateway's replicas names of their own (replicas.name), or this gateway the name that it had`;
    throw new GatewayError(
      "GW_CONFLICT",
      `replica ${name} ${who}, and gateway ${this.#config.name} names another one so: ${mend}`,
    );
  }

  /** Ends with a save that succeeded, with what `change` throws, or when the others never let us through. */
  async #change(change: (now: Document, isRetry: boolean) => Document): Promise<void> {
    for (let attempt = 0; attempt < attemptsMax; attempt++) {
      const next = change(this.#document, attempt > 0);
      if (isDeepStrictEqual(next, this.#document)) return;
      const saved = await this.#board.save(documentName, next, this.#revision);
      if (saved.kind === "saved") return this.#take(next, saved.revision);
      const isRepeatable = saved.kind === "conflict" || attempt < unknownsMax;
      if (!isRepeatable)
        throw new GatewayError("GW_LOG_UNAVAILABLE", "it is not known whether the roster was changed: ask again", {
          cause: saved.cause,
        });
      await this.#load();
    }
    throw new GatewayError("GW_LOG_UNAVAILABLE", "the roster is changed by others all the time: ask again");
  }

  async #load(): Promise<void> {
    const posted = await this.#board.load(documentName);
    if (posted === null && this.#revision > 0)
      throw new GatewayError("GW_BOARD_LOST", "The roster that this gateway has read before is gone.");
    if (posted === null) return this.#take(this.#document, 0);
    if (posted.revision !== this.#revision) this.#take(parseRoster(posted.value), posted.revision);
  }

  #take(document: Document, revision: number): void {
    this.#document = document;
    this.#revision = revision;
    const all = this.#view(document);
    if (isDeepStrictEqual(all, this.#all)) return;
    this.#all = all;
    for (const listener of this.#listeners) listener();
  }

  async #inTurn<T>(call: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(call);
    this.#turn = mine.catch(() => undefined);
    return mine;
  }
}

const documentName = "roster";
const attemptsMax = 100;
/** Answers that may be lost before the question is given up. */
const unknownsMax = 2;

/** A further one of those that are started alike. */
function alike<T extends Exclude<ReplicaConfig, UrlReplica>>(like: T, name: string): T {
  if (like.kind === "container" || like.state === null) return { ...like, name };
  return { ...like, name, state: join(dirname(like.state), name) };
}

/** Two names for one backend: everything would be executed twice on it. */
function refuseTwin(
  replica: Entry["config"],
  others: readonly { readonly config: Entry["config"] | ReplicaConfig | null }[],
): void {
  if (replica.kind !== "url") return;
  for (const { config } of others) {
    if (config?.kind !== "url" || config.name === replica.name || config.url !== replica.url) continue;
    // Loopback is another machine for another gateway.
    const isApart =
      Math.min(config.owners.length, replica.owners.length) > 0 &&
      !config.owners.some((it) => replica.owners.includes(it));
    if (isApart && isLoopback(new URL(replica.url).hostname)) continue;
    throw new GatewayError(
      "GW_CONFLICT",
      `${replica.url} is replica ${config.name} already, and would be ${replica.name} as well: the same copy twice would execute everything twice`,
    );
  }
}

function changesBetween(before: readonly RosterEntry[], after: readonly RosterEntry[]): RosterChanges {
  const names = (list: readonly RosterEntry[]): readonly string[] => list.map(({ name }) => name);
  const changed = after.filter((it) => {
    const former = before.find(({ name }) => name === it.name);
    return former !== undefined && !isDeepStrictEqual(former, it);
  });
  return {
    added: names(after).filter((name) => !names(before).includes(name)),
    changed: names(changed),
    removed: names(before).filter((name) => !names(after).includes(name)),
  };
}

const nothingToRun = { state: null, stop: null, start: null } as const;

const urlOf = (config: Entry["config"]): string | null => (config.kind === "url" ? config.url : null);

/** Which of the keys that all gateways share differ, with both values. */
function differencesOf(known: UrlReplica, file: UrlReplica): readonly string[] {
  const keys = ["url", "owners", "witness", "onReturn", "version"] as const;
  return keys
    .filter((key) => !isDeepStrictEqual(known[key], file[key]))
    .map((key) => `${key} is ${JSON.stringify(known[key])} and ${JSON.stringify(file[key])} there`);
}

// ---- as it is stored ---------------------------------------------------------------------------------------------------------------

const requestLine = z.strictObject({ method: z.string(), target: z.string().startsWith("/") });
const words = z.array(z.string()).min(1);

const urlEntry = z.strictObject({
  config: z.strictObject({
    kind: z.literal("url"),
    name: replicaName,
    url: origin(["http:"], "http://127.0.0.1:4001"),
    state: z.string().nullable(),
    stop: words.nullable(),
    start: words.nullable(),
    owners: z.array(z.string()),
    witness: z.array(requestLine),
    onReturn: z.enum(["verify", "trust", "rebuild"]),
    version: z.string(),
  }),
  gateway: z.null(),
});

const managedEntry = z.strictObject({
  config: z.strictObject({ kind: z.enum(["process", "container"]), name: replicaName }),
  gateway: z.string(),
});

const documentSchema: z.ZodType<Document> = z.strictObject({
  version: z.literal(1),
  entries: z.array(z.union([urlEntry, managedEntry])),
  removed: z.array(z.string()),
});

interface Document {
  readonly version: 1;
  readonly entries: readonly Entry[];
  /** Names that files may still have. */
  readonly removed: readonly string[];
}
type Entry =
  | { readonly config: UrlReplica; readonly gateway: null }
  | { readonly config: Pick<Exclude<ReplicaConfig, UrlReplica>, "kind" | "name">; readonly gateway: string };

function parseRoster(value: unknown): Document {
  const parsed = documentSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const field = parsed.error.issues[0]?.path.join(".") ?? "";
  throw new GatewayError(
    "GW_BOARD_LOST",
    `The roster cannot be used: its field "${field}" is not as this version writes it.`,
    {
      cause: parsed.error,
    },
  );
}
