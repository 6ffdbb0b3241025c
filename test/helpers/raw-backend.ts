// A backend below HTTP: it keeps the exact bytes that it received and answers whatever bytes a test writes.

import { createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";

export interface RawConnection {
  /** Everything received on this connection, latin1. */
  readonly received: string;
  /** Whole requests on this connection so far. */
  readonly requests: number;
  readonly isClosed: boolean;
  send(bytes: string | Buffer): void;
  /** FIN. */
  end(bytes?: string): void;
  /** RST. */
  reset(): void;
  readonly socket: Socket;
}

export interface RawBackend {
  readonly url: string;
  readonly port: number;
  readonly connections: readonly RawConnection[];
  /** Whole requests, in order of their ends, as exact bytes in latin1. */
  readonly requests: readonly string[];
  /** Stops accepting; connections stay. */
  refuse(): Promise<void>;
  close(): Promise<void>;
}

export interface RawScript {
  /** A connection was accepted. */
  readonly onConnection?: (connection: RawConnection) => void;
  /** Bytes came; they may be a part of a request. */
  readonly onData?: (connection: RawConnection, bytes: string) => void;
  /** A request is whole: `\r\n\r\n`, and the body its framing announces. */
  readonly onRequest?: (request: string, connection: RawConnection) => void;
  /** Do not read from accepted connections. */
  readonly isDeaf?: boolean;
}

export async function startRawBackend(script: RawScript): Promise<RawBackend> {
  const connections: Connection[] = [];
  const requests: string[] = [];
  const server = createServer({ pauseOnConnect: script.isDeaf === true }, (socket) => {
    const connection = new Connection(socket);
    connections.push(connection);
    script.onConnection?.(connection);
    socket.on("data", (chunk) => {
      const bytes = chunk.toString("latin1");
      connection.received += bytes;
      connection.unread += bytes;
      script.onData?.(connection, bytes);
      for (let request = takeRequest(connection); request !== null; request = takeRequest(connection)) {
        connection.requests += 1;
        requests.push(request);
        script.onRequest?.(request, connection);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const refuse = (): Promise<void> => new Promise((resolve) => server.close(() => resolve()));
  return {
    url: `http://127.0.0.1:${port}`,
    port,
    connections,
    requests,
    refuse: async () => {
      void refuse();
    },
    close: async () => {
      const closed = refuse();
      for (const connection of connections) connection.socket.destroy();
      await closed;
    },
  };
}

/** A whole answer with Content-Length. */
export const answerOf = (body: string, status = "200 OK", headers = ""): string =>
  `HTTP/1.1 ${status}\r\n${headers}Content-Length: ${Buffer.byteLength(body, "latin1")}\r\n\r\n${body}`;

class Connection implements RawConnection {
  readonly socket: Socket;
  received = "";
  unread = "";
  requests = 0;
  isClosed = false;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("error", () => {});
    socket.once("close", () => {
      this.isClosed = true;
    });
  }

  send(bytes: string | Buffer): void {
    if (typeof bytes === "string") this.socket.write(bytes, "latin1");
    else this.socket.write(bytes);
  }

  end(bytes = ""): void {
    this.socket.end(bytes, "latin1");
  }

  reset(): void {
    this.socket.resetAndDestroy();
  }
}

/** The request at the front of what is unread, if it is whole. */
function takeRequest(connection: Connection): string | null {
  const text = connection.unread;
  const headEnd = text.indexOf("\r\n\r\n");
  if (headEnd < 0) return null;
  const head = text.slice(0, headEnd).toLowerCase();
  const length = /\r\ncontent-length: *(\d+)/.exec(head)?.[1];
  let end = headEnd + 4 + Number(length ?? 0);
  if (/\r\ntransfer-encoding: *chunked/.test(head)) {
    const last = text.indexOf("\r\n0\r\n\r\n", headEnd + 2);
    if (last < 0) return null;
    end = last + 7;
  }
  if (text.length < end) return null;
  connection.unread = text.slice(end);
  return text.slice(0, end);
}
