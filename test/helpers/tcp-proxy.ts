// A TCP proxy that a test can cut, stall or slow down: the network between two real processes, misbehaving on demand.
import { connect, createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { Server, Socket } from "node:net";
import { freePort } from "./servers.ts";

export interface TcpProxy {
  readonly port: number;
  /** Open connections from clients. */
  readonly connections: number;
  /** Resets every connection and refuses new ones. */
  cut(): Promise<void>;
  /** Half-open: connections stay and are accepted, but no byte and no end is passed on, in either direction. */
  pause(): void;
  /** Every byte and every end arrives this much later, in both directions; throughput stays. */
  delay(ms: number): void;
  /** Undoes cut, pause and delay. What was held back by a pause is delivered. */
  heal(): Promise<void>;
  /** Resets everything. May be called twice. */
  close(): Promise<void>;
}

export interface TcpProxyOptions {
  readonly targetPort: number;
  readonly targetHost?: string;
  /** Default: a free one, kept over cut and heal. */
  readonly port?: number;
}

export async function startTcpProxy(options: TcpProxyOptions): Promise<TcpProxy> {
  const { targetPort, targetHost = "127.0.0.1", port = await freePort() } = options;
  const clients = new Set<Socket>();
  const upstreams = new Set<Socket>();
  const flow: Flow = { delayMs: 0, gate: undefined };
  let server: Server | undefined;
  let isClosed = false;

  const accept = (client: Socket): void => {
    track(clients, client);
    // A paused proxy accepts, but the target must not even see the connection.
    void passed(flow).then(() => {
      if (client.destroyed) return;
      const upstream = connect({ port: targetPort, host: targetHost, allowHalfOpen: true, noDelay: true });
      track(upstreams, upstream);
      join(flow, client, upstream);
      join(flow, upstream, client);
    });
  };
  const listen = (): Promise<void> =>
    new Promise((resolve, reject) => {
      server = createServer({ allowHalfOpen: true, noDelay: true }, accept);
      server.once("error", reject);
      server.listen(port, "127.0.0.1", resolve);
    });
  const open = (): void => {
    flow.gate?.open();
    flow.gate = undefined;
  };
  const cut = async (): Promise<void> => {
    const listening = server;
    server = undefined;
    const closed = new Promise<void>((resolve) => (listening ? listening.close(() => resolve()) : resolve()));
    for (const socket of [...clients, ...upstreams]) socket.resetAndDestroy();
    await closed;
  };

  await listen();
  return {
    port,
    get connections() {
      return clients.size;
    },
    cut,
    pause: () => {
      flow.gate ??= createGate();
    },
    delay: (ms) => {
      flow.delayMs = ms;
    },
    heal: async () => {
      if (isClosed) throw new Error("the proxy is closed");
      flow.delayMs = 0;
      open();
      if (!server) await listen();
    },
    close: async () => {
      isClosed = true;
      await cut();
      open();
    },
  };
}

interface Flow {
  delayMs: number;
  gate: Gate | undefined;
}

interface Gate {
  readonly opened: Promise<void>;
  readonly open: () => void;
}

function createGate(): Gate {
  let open!: () => void;
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { opened, open };
}

/** Ends when nothing holds traffic back: a gate may be shut again while this one opens. */
async function passed(flow: Flow): Promise<void> {
  while (flow.gate) await flow.gate.opened;
}

function track(sockets: Set<Socket>, socket: Socket): void {
  sockets.add(socket);
  socket.on("error", () => {}); // `join` passes a reset on
  socket.on("close", () => sockets.delete(socket));
}

const heldBytesMax = 1024 * 1024;

/** One direction. Chunks keep their order because each waits for the one before it. */
function join(flow: Flow, from: Socket, to: Socket): void {
  let last = Promise.resolve();
  let heldBytes = 0;
  const later = (deliver: () => void): void => {
    const dueAt = performance.now() + flow.delayMs;
    last = last.then(async () => {
      const leftMs = dueAt - performance.now();
      if (leftMs > 0) await sleep(leftMs);
      await passed(flow);
      if (!to.destroyed) deliver();
    });
  };
  const relieve = (): void => {
    if (heldBytes + to.writableLength < heldBytesMax) from.resume();
  };
  from.on("data", (chunk: Buffer) => {
    heldBytes += chunk.length;
    if (heldBytes + to.writableLength >= heldBytesMax) from.pause();
    later(() => {
      heldBytes -= chunk.length;
      to.write(chunk, relieve);
    });
  });
  from.on("end", () => later(() => to.end()));
  from.on("error", () => later(() => to.resetAndDestroy()));
}
