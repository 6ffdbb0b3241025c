// What can go wrong, as a table: each row says what it hits, how it begins and ends, and what clients must see meanwhile. To add one, add a row.

import { rmSync } from "node:fs";
import { join } from "node:path";
import { waitFor } from "../helpers/wait.ts";
import type { KvFaultKind } from "./kv.ts";
import type { Service, Shape } from "./service.ts";

export interface Fault {
  /** What it can hit in such a service; empty: it does not apply. */
  targets(shape: Shape): readonly string[];
  /** How long it lasts, least and most. */
  readonly forMs: readonly [number, number];
  /** Its target, by default; two faults that touch the same thing come one after the other. */
  touches?(shape: Shape, target: string): readonly string[];
  /** It takes away what cannot be made up for by fewer copies: it begins only while all others are live. */
  readonly needsOthers?: boolean;
  begin(service: Service, target: string, dice: number): Promise<void>;
  /** After it nothing of the fault is left but what the gateway has to mend itself. */
  end(service: Service, target: string): Promise<void>;
  /** Whose requests must go on, with gaps no longer than `gapMsMax`: all, those without a key, or nobody's. */
  readonly expects: "all-go-on" | "unkeyed-go-on" | "may-stop";
}

/** The longest time without an answer that a fault may cause where requests have to go on. */
export const gapMsMax = 5_000;

const short = [200, 1_500] as const;
const long = [500, 3_000] as const;

const gateways = ({ gateways: names }: Shape): readonly string[] => names;
const backends = ({ backends: names }: Shape): readonly string[] => names;
const nats = ({ nats: names }: Shape): readonly string[] => names;
const cluster = ({ log, nats: names }: Shape): readonly string[] => (log === "nats-r3" ? names : []);
const theCluster = ({ log }: Shape): readonly string[] => (log === "nats-r3" ? ["cluster"] : []);
const redis = ({ hasRedis }: Shape): readonly string[] => (hasRedis ? ["redis"] : []);
const everything = ({ gateways: g, backends: b, nats: n, hasRedis }: Shape): readonly string[] => [
  ...g,
  ...b,
  ...n,
  ...(hasRedis ? ["redis"] : []),
];

const gateway = (begin: (service: Service, name: string) => Promise<unknown>): Fault => ({
  targets: gateways,
  forMs: [200, 1_000],
  begin: async (service, name) => void (await begin(service, name)),
  end: (service, name) => service.startGateway(name),
  expects: "may-stop",
});

const server = (
  service: Service,
  name: string,
): {
  kill9(): Promise<void>;
  stop(): Promise<void>;
  pause(): Promise<void>;
  resume(): void;
  restart(): Promise<void>;
} => {
  const one = name === "redis" ? service.redis : service.nats.get(name);
  if (!one) throw new Error(`there is no ${name}`);
  return one;
};

const killed = (targets: Fault["targets"], expects: Fault["expects"]): Fault => ({
  targets,
  forMs: short,
  begin: (service, name) => server(service, name).kill9(),
  end: (service, name) => server(service, name).restart(),
  expects,
});

const paused = (targets: Fault["targets"], expects: Fault["expects"]): Fault => ({
  targets,
  forMs: long,
  begin: (service, name) => server(service, name).pause(),
  end: async (service, name) => server(service, name).resume(),
  expects,
});

const restarted = (targets: Fault["targets"], expects: Fault["expects"]): Fault => ({
  targets,
  forMs: [200, 500],
  begin: (service, name) => server(service, name).stop(),
  end: (service, name) => server(service, name).restart(),
  expects,
});

/** The backend's process behaves otherwise for a while. */
const misbehaving = (kinds: readonly [KvFaultKind, ...KvFaultKind[]], more: Partial<Fault> = {}): Fault => ({
  targets: backends,
  forMs: short,
  begin: (service, name, dice) =>
    service.backend(name).fault({
      kind: kinds[Math.floor(dice * kinds.length)] ?? kinds[0],
      ms: Math.round(20 + dice * 300),
      // What one copy says to a read is the client's answer: only answers that are compared can be found out.
      writesOnly: kinds[0] === "differ",
    }),
  end: (service, name) => service.backend(name).fault({ kind: "none" }),
  expects: "all-go-on",
  ...more,
});

/** A backend that ends, and comes back with another state than it had. */
const lost = (lose: (service: Service, name: string) => unknown): Fault => ({
  targets: backends,
  forMs: short,
  needsOthers: true,
  begin: async (service, name) => {
    await service.killBackend(name);
    lose(service, name);
  },
  end: (service, name) => service.startBackend(name),
  expects: "all-go-on",
});

type Way = readonly [from: string, to: string];
const way = (target: string): Way => target.split(">") as [string, string];

/** The ways between gateways and what they need. */
const between = (what: "nats" | "redis" | "backend", expects: Fault["expects"]): Omit<Fault, "begin" | "end"> => ({
  targets: (shape) => {
    if (what === "backend") return shape.backends.map((name) => `*>${name}`);
    const far = what === "nats" ? shape.nats : redis(shape);
    return shape.gateways.flatMap((name) => far.map((other) => `${name}>${other}`));
  },
  forMs: long,
  touches: (_shape, target) => [what === "backend" ? way(target)[1] : target],
  expects,
});

const heal = (service: Service, target: string): Promise<void> => service.link(...way(target)).heal();

const cut = (what: "nats" | "redis" | "backend", expects: Fault["expects"]): Fault => ({
  ...between(what, expects),
  begin: (service, target) => service.link(...way(target)).cut(),
  end: heal,
});

const stalled = (what: "nats" | "redis" | "backend", expects: Fault["expects"]): Fault => ({
  ...between(what, expects),
  begin: async (service, target) => service.link(...way(target)).pause(),
  end: heal,
});

const delayed = (what: "nats" | "redis" | "backend"): Fault => ({
  ...between(what, "all-go-on"),
  begin: async (service, target, dice) => service.link(...way(target)).delay(Math.round(10 + dice * 190)),
  end: heal,
});

/** All ways between one server of the cluster and the others. */
const waysOf = (service: Service, name: string): ReturnType<Service["links"]> =>
  service.links((from, to) => from.startsWith("nats-") && to.startsWith("nats-") && (from === name || to === name));

const leaderOf = async (service: Service): Promise<string> => {
  const leader = await service.cluster?.streamLeader(await logStream(service));
  const name = [...service.nats].find(([, one]) => one === leader)?.[0];
  if (name === undefined) throw new Error("the stream has no leader");
  return name;
};

/** The stream of the log: of all that are not buckets, the one with most messages. */
async function logStream(service: Service): Promise<string> {
  return waitFor(
    async () => {
      for (const one of service.nats.values()) {
        const jsz = await one.monitor("/jsz?streams=true").catch(() => null);
        const accounts = (jsz?.["account_details"] ?? []) as readonly {
          readonly stream_detail?: readonly { readonly name: string; readonly state: { readonly messages: number } }[];
        }[];
        const streams = accounts
          .flatMap((account) => account.stream_detail ?? [])
          .filter(({ name }) => !/^(KV|OBJ)_/.test(name));
        const [first] = streams.toSorted((a, b) => b.state.messages - a.state.messages);
        if (first) return first.name;
      }
      return null;
    },
    { what: "the stream of the log", timeoutMs: 30_000 },
  );
}

/** Which server a fault of "the leader" hit, from its begin to its end. */
const hit = new WeakMap<Service, readonly string[]>();

const ofLeader = (
  act: (service: Service, name: string) => Promise<void>,
  undo: (service: Service, name: string) => Promise<void>,
): Fault => ({
  targets: theCluster,
  touches: (shape) => shape.nats,
  forMs: long,
  begin: async (service) => {
    const name = await leaderOf(service);
    hit.set(service, [name]);
    await act(service, name);
  },
  end: async (service) => {
    for (const name of hit.get(service) ?? []) await undo(service, name);
  },
  expects: "may-stop",
});

export const faults: Readonly<Record<string, Fault>> = {
  "gateway-kill": gateway((service, name) => service.killGateway(name)),
  "gateway-restart": gateway((service, name) => service.stopGateway(name)),
  "gateway-pause": {
    ...gateway(async (service, name) => service.gateway(name).pause()),
    forMs: long,
    end: async (service, name) => service.gateway(name).resume(),
  },

  "backend-kill": {
    targets: backends,
    forMs: short,
    begin: (service, name) => service.killBackend(name),
    end: (service, name) => service.startBackend(name),
    expects: "all-go-on",
  },
  "backend-restart": {
    targets: backends,
    forMs: [200, 400],
    begin: (service, name) => service.stopBackend(name),
    end: (service, name) => service.startBackend(name),
    expects: "all-go-on",
  },
  "backend-pause": {
    targets: backends,
    forMs: long,
    begin: async (service, name) => service.backend(name).pause(),
    end: async (service, name) => service.backend(name).resume(),
    expects: "all-go-on",
  },
  "backend-slow": misbehaving(["slow"]),
  "backend-reset": misbehaving(["reset", "reset-after"]),
  "backend-garbage": misbehaving(["garbage", "noise", "half"]),
  "backend-differ": misbehaving(["differ"], { needsOthers: true }),
  // What hangs is never answered: only a new life of the backend ends it.
  "backend-hang": misbehaving(["hang", "hang-after"], {
    end: async (service, name) => {
      await service.killBackend(name);
      await service.startBackend(name);
    },
  }),
  "backend-empty": lost((service, name) => service.backend(name).empty()),
  "backend-old": lost((service, name) => service.backend(name).setBack(0.7)),

  "nats-kill": killed(nats, "may-stop"),
  "nats-pause": paused(nats, "may-stop"),
  "nats-restart": restarted(nats, "may-stop"),
  "nats-leader-kill": ofLeader(
    (service, name) => server(service, name).kill9(),
    (service, name) => server(service, name).restart(),
  ),
  "nats-leader-pause": ofLeader(
    (service, name) => server(service, name).pause(),
    async (service, name) => server(service, name).resume(),
  ),
  "nats-isolate": {
    targets: cluster,
    touches: (shape) => shape.nats,
    forMs: long,
    begin: async (service, name) => void (await Promise.all(waysOf(service, name).map((link) => link.cut()))),
    end: async (service, name) => void (await Promise.all(waysOf(service, name).map((link) => link.heal()))),
    expects: "may-stop",
  },
  "nats-stall": {
    targets: cluster,
    touches: (shape) => shape.nats,
    forMs: long,
    begin: async (service, name) => {
      for (const link of waysOf(service, name)) link.pause();
    },
    end: async (service, name) => void (await Promise.all(waysOf(service, name).map((link) => link.heal()))),
    expects: "may-stop",
  },
  "nats-majority-kill": {
    targets: cluster,
    touches: (shape) => shape.nats,
    forMs: short,
    begin: async (service, spared) => {
      const hurt = service.shape.nats.filter((name) => name !== spared);
      await Promise.all(hurt.map((name) => server(service, name).kill9()));
    },
    end: async (service, spared) => {
      const hurt = service.shape.nats.filter((name) => name !== spared);
      await Promise.all(hurt.map((name) => server(service, name).restart()));
    },
    expects: "may-stop",
  },

  "redis-kill": killed(redis, "unkeyed-go-on"),
  "redis-pause": paused(redis, "unkeyed-go-on"),
  "redis-restart": restarted(redis, "unkeyed-go-on"),
  "redis-flush": {
    targets: redis,
    forMs: [200, 400],
    begin: (service) => service.redisCall("FLUSHALL"),
    end: async () => {},
    expects: "all-go-on",
  },
  "redis-empty": {
    targets: redis,
    forMs: short,
    begin: async (service) => {
      await server(service, "redis").kill9();
      rmSync(join(service.redis?.folder ?? "", "appendonlydir"), { recursive: true, force: true });
    },
    end: (service) => server(service, "redis").restart(),
    expects: "unkeyed-go-on",
  },

  "cut-backend": cut("backend", "all-go-on"),
  "stall-backend": stalled("backend", "all-go-on"),
  "delay-backend": delayed("backend"),
  "cut-nats": cut("nats", "may-stop"),
  "stall-nats": stalled("nats", "may-stop"),
  "delay-nats": delayed("nats"),
  "cut-redis": cut("redis", "unkeyed-go-on"),
  "stall-redis": stalled("redis", "unkeyed-go-on"),
  "delay-redis": delayed("redis"),

  "all-kill": {
    targets: () => ["everything"],
    touches: everything,
    forMs: [200, 800],
    begin: async (service) => {
      const { shape } = service;
      await Promise.all([
        ...shape.gateways.map((name) => service.killGateway(name)),
        ...shape.backends.map((name) => service.killBackend(name)),
        ...[...shape.nats, ...redis(shape)].map((name) => server(service, name).kill9()),
      ]);
    },
    end: async (service) => {
      const { shape } = service;
      await Promise.all([
        ...shape.backends.map((name) => service.startBackend(name)),
        ...[...shape.nats, ...redis(shape)].map((name) => server(service, name).restart()),
      ]);
      await Promise.all(shape.gateways.map((name) => service.startGateway(name)));
    },
    expects: "may-stop",
  },
};
