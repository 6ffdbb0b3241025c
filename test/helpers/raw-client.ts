// A client below HTTP: it sends exact bytes and keeps exact bytes, latin1 throughout.

import { connect as connectTcp } from "node:net";
import { connect as connectTls } from "node:tls";
import type { Socket } from "node:net";
import { waitFor } from "./wait.ts";

export interface RawAnswer {
  readonly status: number;
  /** Status line and fields, with the empty line. */
  readonly head: string;
  /** Name, value, name, value. */
  readonly headers: readonly string[];
  /** Chunks are joined. */
  readonly body: string;
  /** Name, value …, of a chunked body. */
  readonly trailers: readonly string[];
  /** The first value of a field, or null. */
  field(name: string): string | null;
  fields(name: string): string[];
}

export interface RawClientOptions {
  readonly port: number;
  readonly host?: string;
  readonly tls?: { readonly ca: string };
  /** Address to connect from. */
  readonly from?: string;
}

export class RawClient {
  readonly socket: Socket;
  /** Everything received, also what answers were read from. */
  received = "";
  receivedBytes = 0;
  isEnded = false;
  isClosed = false;
  error: NodeJS.ErrnoException | null = null;
  /** Turned off for answers too large to keep. */
  keeps = true;
  #readTo = 0;

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (chunk: Buffer) => {
      this.receivedBytes += chunk.length;
      if (this.keeps) this.received += chunk.toString("latin1");
    });
    socket.on("end", () => {
      this.isEnded = true;
    });
    socket.on("close", () => {
      this.isClosed = true;
    });
    socket.on("error", (error) => {
      this.error = error;
    });
  }

  static async connect({ port, host = "127.0.0.1", tls, from }: RawClientOptions): Promise<RawClient> {
    const socket =
      tls === undefined
        ? connectTcp({ port, host, allowHalfOpen: true, ...(from === undefined ? null : { localAddress: from }) })
        : connectTls({ port, host, ca: tls.ca, ALPNProtocols: ["http/1.1"] });
    socket.setNoDelay(true);
    const client = new RawClient(socket);
    await new Promise<void>((resolve, reject) => {
      socket.once(tls === undefined ? "connect" : "secureConnect", () => resolve());
      socket.once("error", reject);
    });
    return client;
  }

  send(bytes: string | Buffer): boolean {
    return typeof bytes === "string" ? this.socket.write(bytes, "latin1") : this.socket.write(bytes);
  }

  /** What came and was not yet read as an answer. */
  get unread(): string {
    return this.received.slice(this.#readTo);
  }

  /** The next whole answer; `method` says whether it has a body. Interim answers are answers too. */
  async answer(method = "GET", timeoutMs = 10_000): Promise<RawAnswer> {
    const found = await waitFor(
      () => {
        const parsed = takeAnswer(this.unread, method, this.isEnded);
        return parsed ?? (this.isClosed ? { answer: null, length: 0 } : null);
      },
      { what: () => `an answer; came: ${JSON.stringify(this.unread.slice(0, 500))}`, timeoutMs },
    );
    if (found.answer === null) throw new Error(`closed without an answer: ${JSON.stringify(this.unread)}`);
    this.#readTo += found.length;
    return found.answer;
  }

  /** Resolves when the other side has ended or closed the connection. */
  async ended(timeoutMs = 10_000): Promise<void> {
    await waitFor(() => this.isEnded || this.isClosed, { what: "the end of the connection", timeoutMs });
  }

  async closed(timeoutMs = 10_000): Promise<void> {
    await waitFor(() => this.isClosed, { what: "the connection to close", timeoutMs });
  }

  close(): void {
    this.socket.destroy();
  }
}

/** One request on a connection of its own. */
export async function ask(port: number, bytes: string, method = bytes.split(" ", 1)[0]!): Promise<RawAnswer> {
  const client = await RawClient.connect({ port });
  try {
    client.send(bytes);
    return await client.answer(method);
  } finally {
    client.close();
  }
}

function takeAnswer(
  text: string,
  method: string,
  isEnded: boolean,
): { readonly answer: RawAnswer; readonly length: number } | null {
  const headEnd = text.indexOf("\r\n\r\n");
  if (headEnd < 0) return null;
  const head = text.slice(0, headEnd + 4);
  const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(head)?.[1] ?? Number.NaN);
  if (Number.isNaN(status)) throw new Error(`not an answer: ${JSON.stringify(head)}`);
  const headers = fieldsOf(head.slice(head.indexOf("\r\n") + 2));
  const rest = text.slice(headEnd + 4);
  const field = (name: string): string | null => valuesOf(headers, name)[0] ?? null;
  const whole = (body: string, trailers: string[], length: number) => ({
    answer: { status, head, headers, body, trailers, field, fields: (name: string) => valuesOf(headers, name) },
    length: headEnd + 4 + length,
  });
  if (status < 200 || status === 204 || status === 304 || method === "HEAD") return whole("", [], 0);
  if (field("transfer-encoding")?.toLowerCase() === "chunked") {
    const chunks = takeChunks(rest);
    return chunks === null ? null : whole(chunks.body, chunks.trailers, chunks.length);
  }
  const length = field("content-length");
  if (length !== null)
    return rest.length < Number(length) ? null : whole(rest.slice(0, Number(length)), [], Number(length));
  return isEnded ? whole(rest, [], rest.length) : null;
}

function takeChunks(text: string): { body: string; trailers: string[]; length: number } | null {
  let at = 0;
  let body = "";
  // Ends at the last chunk, or where the text does.
  for (;;) {
    const lineEnd = text.indexOf("\r\n", at);
    if (lineEnd < 0) return null;
    const size = Number.parseInt(text.slice(at, lineEnd), 16);
    at = lineEnd + 2;
    if (size === 0) {
      const end = text.startsWith("\r\n", at) ? at - 2 : text.indexOf("\r\n\r\n", at);
      if (end < 0) return null;
      return { body, trailers: fieldsOf(text.slice(at, end + 2)), length: end + 4 };
    }
    if (text.length < at + size + 2) return null;
    body += text.slice(at, at + size);
    at += size + 2;
  }
}

function fieldsOf(lines: string): string[] {
  const fields: string[] = [];
  for (const line of lines.split("\r\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields.push(line.slice(0, colon), line.slice(colon + 1).trim());
  }
  return fields;
}

function valuesOf(headers: readonly string[], name: string): string[] {
  const values: string[] = [];
  for (let i = 0; i + 1 < headers.length; i += 2) {
    if (headers[i]!.toLowerCase() === name.toLowerCase()) values.push(headers[i + 1]!);
  }
  return values;
}
