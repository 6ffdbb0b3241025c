// A front over a service of functions: what tests of the edge share.

import { systemClock } from "../../../gateway/clock.ts";
import { Events } from "../../../gateway/events.ts";
import { GatewayError } from "../../../gateway/errors.ts";
import { createFront } from "../../../gateway/server/front.ts";
import { RawClient } from "../../helpers/raw-client.ts";
import { waitFor } from "../../helpers/wait.ts";
import type { Answer } from "../../../gateway/entry.ts";
import type { Fact } from "../../../gateway/events.ts";
import type { Account, Exchange, Service } from "../../../gateway/exchange.ts";
import type { Front, FrontOptions } from "../../../gateway/server/front.ts";

export type Handle = (exchange: Exchange) => Promise<void> | void;

export interface Settings {
  readonly limits?: Partial<FrontOptions["limits"]>;
  readonly timeouts?: Partial<FrontOptions["timeouts"]>;
  readonly trustedProxies?: readonly string[];
  readonly encodedSlash?: FrontOptions["encodedSlash"];
  readonly tls?: NonNullable<FrontOptions["tls"]>;
  readonly upgrade?: Service["upgrade"];
  readonly dial?: NonNullable<FrontOptions["dial"]>;
  readonly onFact?: (fact: Fact) => void;
}

export const account: Account = { rule: "test", mode: "only-once", position: 7, replica: "a" };

export type RequestFact = Extract<Fact, { type: "request" }>;

export interface TestFront {
  readonly front: Front;
  readonly port: number;
  /** What the service was given. */
  readonly seen: Exchange[];
  readonly facts: RequestFact[];
  connect(): Promise<RawClient>;
  /** Sends on a connection of its own, and keeps it open until the test's end. */
  send(bytes: string | Buffer): Promise<RawClient>;
  fact(count?: number): Promise<RequestFact>;
  close(): Promise<void>;
}

export async function startFront(handle: Handle, settings: Settings = {}): Promise<TestFront> {
  const seen: Exchange[] = [];
  const facts: RequestFact[] = [];
  const clients: RawClient[] = [];
  const events = new Events();
  events.listen((fact) => {
    settings.onFact?.(fact);
    if (fact.type === "request") facts.push(fact);
  });
  const front = createFront({
    listen: { host: "127.0.0.1", port: 0 },
    service: {
      handle: async (exchange) => {
        seen.push(exchange);
        await handle(exchange);
        return account;
      },
      upgrade: settings.upgrade ?? (async () => new GatewayError("GW_UPGRADE_REFUSED", "no rule allows this upgrade")),
    },
    limits: { bodyBytes: 64 * 1024 * 1024, inFlight: 1024, ...settings.limits },
    timeouts: { idleMs: 60_000, shutdownMs: 25_000, ...settings.timeouts },
    encodedSlash: settings.encodedSlash ?? "refuse",
    trustedProxies: settings.trustedProxies ?? [],
    ...(settings.tls === undefined ? null : { tls: settings.tls }),
    ...(settings.dial === undefined ? null : { dial: settings.dial }),
    events,
    clock: systemClock,
  });
  await front.start();
  const { port } = front.address;
  const connect = async (): Promise<RawClient> => {
    const client = await RawClient.connect({ port });
    clients.push(client);
    return client;
  };
  return {
    front,
    port,
    seen,
    facts,
    connect,
    send: async (bytes) => {
      const client = await connect();
      client.send(bytes);
      return client;
    },
    fact: async (count = 1) => {
      await waitFor(() => facts.length >= count, { what: `fact ${count}` });
      return facts[count - 1]!;
    },
    close: async () => {
      for (const client of clients) client.close();
      await front.close();
    },
  };
}

export const text = (body: string, headers: readonly string[] = [], status = 200): Answer => ({
  status,
  headers,
  body: Buffer.from(body, "latin1"),
  trailers: [],
});

/** Reads the body, then answers with its size. */
export const echoSize: Handle = async (exchange) => {
  try {
    const body = await exchange.body.collect(Infinity);
    exchange.reply.answer(text(String(body!.length)), []);
  } catch (error) {
    exchange.reply.problem(error as GatewayError, []);
  }
};

/** Resolves with the value when it is above `min` and a dozen looks in a row found it unchanged: what moves would have moved. */
export async function untilStill(read: () => number, min: number, what: string): Promise<number> {
  let last = -1;
  let looks = 0;
  await waitFor(
    () => {
      const value = read();
      looks = value === last && value > min ? looks + 1 : 0;
      last = value;
      return looks >= 12;
    },
    { what, timeoutMs: 20_000 },
  );
  return last;
}

/** Sends the chunk `count` times, each when the one before has left; tells how many have. */
export function pour(client: RawClient, chunk: Buffer, count: number): { readonly sent: number } {
  const poured = { sent: 0 };
  const next = (): void => {
    if (poured.sent < count) client.socket.write(chunk, gone);
  };
  const gone = (error?: Error | null): void => {
    if (error !== undefined && error !== null) return;
    poured.sent += 1;
    next();
  };
  next();
  return poured;
}

/** A promise that a test settles. */
export function gate(): { readonly opened: Promise<void>; open(): void } {
  let settle: (() => void) | null = null;
  const opened = new Promise<void>((resolve) => {
    settle = resolve;
  });
  return { opened, open: () => settle?.() };
}
