// Adapter of the place port: a state that the service itself gives and takes over HTTP, `{export, import}`. The export's body is the one file
// `state`; the import is sent it. One request on one connection, never sent again, no redirects. What such a place promises: single.ts.

import { Client } from "undici";
import { GatewayError } from "../../gateway/errors.ts";
import { createSinglePlace } from "./single.ts";
import type { Readable } from "node:stream";
import type { Dispatcher } from "undici";
import type { ErrorCode } from "../../gateway/errors.ts";
import type { Place, PlaceOptions } from "./place.ts";

export type HttpPlaceOptions = Extract<PlaceOptions, { readonly kind: "http" }>;

export interface HttpPlaceLimits {
  readonly connectMs: number;
  /** Longest silence within a body, in either direction. */
  readonly idleMs: number;
}

const defaultLimits: HttpPlaceLimits = { connectMs: 10_000, idleMs: 60_000 };
/** Of an answer that says why not. */
const excerptCharsMax = 300;

export function createHttpPlace(options: HttpPlaceOptions, limits = defaultLimits): Place {
  const calls = { export: new Call(options, "export", limits), import: new Call(options, "import", limits) };
  return createSinglePlace({
    where: `${calls.export.name} and ${calls.import.name}`,
    dump: (signal) => calls.export.dump(signal),
    restore: (content, signal) => calls.import.restore(content, signal),
  });
}

class Call {
  /** For people: without the query, which may hold a token. */
  readonly name: string;
  readonly #options: HttpPlaceOptions;
  readonly #limits: HttpPlaceLimits;
  readonly #method: string;
  readonly #target: string;
  readonly #code: ErrorCode;
  /** What is known after a failure. */
  readonly #known: string;

  constructor(options: HttpPlaceOptions, way: "export" | "import", limits: HttpPlaceLimits) {
    const { method, target } = options[way];
    this.#options = options;
    this.#limits = limits;
    this.#method = method;
    this.#target = target;
    this.name = `${method} ${new URL(options.url).origin}${target.split("?", 1)[0]}`;
    this.#code = way === "export" ? "GW_SNAPSHOT_FAILED" : "GW_RESTORE_FAILED";
    this.#known =
      way === "export"
        ? "nothing was captured"
        : "the state that it writes is unknown now, and must be restored again before it is used";
  }

  async *dump(signal: AbortSignal): AsyncGenerator<Buffer> {
    const exchange = this.#open(signal);
    try {
      const answer = await this.#send(exchange, null);
      // Any other 2xx has no state in it, a part of it, or says that it comes later.
      if (answer.statusCode !== 200) throw await this.#refused(exchange, answer, "200");
      const { "content-length": length, "transfer-encoding": coding, "content-encoding": encoding } = answer.headers;
      if (length === undefined && coding === undefined) {
        throw this.#failure("sent neither Content-Length nor chunks, so a cut cannot be told from the end");
      }
      if (encoding !== undefined && encoding !== "identity") {
        throw this.#failure(`was encoded as ${JSON.stringify(encoding)}, though Accept-Encoding allows none`);
      }
      // Throws unless the body is as long as its framing says.
      for await (const piece of this.#bodyOf(exchange, answer)) yield piece;
    } finally {
      await exchange.close();
    }
  }

  async restore(content: AsyncIterable<Buffer>, signal: AbortSignal): Promise<void> {
    const exchange = this.#open(signal);
    try {
      const body = new Feed(content, this.#limits.idleMs, () =>
        exchange.end(this.#failure(`took no bytes for ${this.#limits.idleMs} ms`)),
      );
      const answer = await this.#send(exchange, body);
      // "Accepted" would mean that it goes on writing its state while entries are replayed onto it.
      const isDone = answer.statusCode >= 200 && answer.statusCode < 300 && answer.statusCode !== 202;
      if (!isDone) throw await this.#refused(exchange, answer, "2xx, and when all is done (so not 202)");
      if (!body.isSent) throw this.#failure(`was answered with ${answer.statusCode} before it had been sent all of it`);
      // A cut within it is a failure too.
      for await (const _ of this.#bodyOf(exchange, answer));
    } finally {
      await exchange.close();
    }
  }

  #open(signal: AbortSignal): Exchange {
    const { tls, timeoutMs, url } = this.#options;
    const { connectMs, idleMs } = this.#limits;
    return new Exchange(
      // The whole time limit is for the head: dumps and restores take their time before they answer.
      new Client(new URL(url).origin, {
        connect: { timeout: connectMs, ...tls },
        headersTimeout: timeoutMs,
        bodyTimeout: idleMs,
      }),
      signal,
      { timeoutMs, late: this.#failure(`did not end within ${timeoutMs} ms`) },
    );
  }

  async #send(exchange: Exchange, body: Feed | null): Promise<Dispatcher.ResponseData> {
    try {
      const answer = await exchange.client.request({
        method: this.#method,
        path: this.#target,
        headers: body === null ? { "accept-encoding": "identity" } : { "content-type": "application/octet-stream" },
        // Of unknown length, so sent in chunks: the last one only when all of it was there. undici takes iterables, its types do not.
        body: body === null ? null : (body.pieces() as unknown as Readable),
        signal: exchange.signal,
      });
      // Nobody may be reading it when its connection is closed.
      answer.body.on("error", () => {});
      return answer;
    } catch (error) {
      throw body?.failure ?? this.#translate(exchange, error);
    }
  }

  async *#bodyOf(exchange: Exchange, { body }: Dispatcher.ResponseData): AsyncGenerator<Buffer> {
    try {
      for await (const piece of body as AsyncIterable<Buffer>) yield piece;
    } catch (error) {
      throw this.#translate(exchange, error);
    }
  }

  async #refused(exchange: Exchange, answer: Dispatcher.ResponseData, wanted: string): Promise<GatewayError> {
    let text = "";
    try {
      // Ends with the body, or when enough was read; its connection is closed after that.
      for await (const piece of this.#bodyOf(exchange, answer)) {
        text += piece.toString("utf8");
        if (text.length >= excerptCharsMax) break;
      }
    } catch {
      // The status says enough.
    }
    const excerpt = text
      .slice(0, excerptCharsMax)
      .replaceAll(/[\p{C}\s]+/gu, " ")
      .trim();
    return this.#failure(
      `was answered with ${answer.statusCode}${excerpt === "" ? "" : ` (${excerpt})`}; it takes ${wanted}`,
    );
  }

  #translate(exchange: Exchange, error: unknown): unknown {
    if (exchange.signal.aborted) return exchange.signal.reason;
    return this.#failure(`failed: ${error instanceof Error ? error.message : String(error)}`, error);
  }

  #failure(what: string, cause?: unknown): GatewayError {
    return new GatewayError(this.#code, `${this.name} ${what}: ${this.#known}`, { cause });
  }
}

/** One connection, and what ends it: the caller's signal, the time limit, a stall. */
class Exchange {
  readonly client: Client;
  readonly #over = new AbortController();
  readonly #release: () => void;

  constructor(client: Client, signal: AbortSignal, limit: { readonly timeoutMs: number; readonly late: Error }) {
    this.client = client;
    const onAbort = (): void => this.#over.abort(signal.reason);
    const timer = setTimeout(() => this.#over.abort(limit.late), limit.timeoutMs);
    signal.addEventListener("abort", onAbort);
    if (signal.aborted) onAbort();
    this.#release = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
    };
  }

  get signal(): AbortSignal {
    return this.#over.signal;
  }

  end(reason: Error): void {
    this.#over.abort(reason);
  }

  async close(): Promise<void> {
    this.#release();
    await this.client.destroy();
  }
}

/** A request body that notices when nobody takes its pieces, and keeps what its source threw. */
class Feed {
  isSent = false;
  /** What the source threw; undici's own error says less. */
  failure: unknown = null;
  readonly #content: AsyncIterable<Buffer>;
  readonly #idleMs: number;
  readonly #onStall: () => void;

  constructor(content: AsyncIterable<Buffer>, idleMs: number, onStall: () => void) {
    this.#content = content;
    this.#idleMs = idleMs;
    this.#onStall = onStall;
  }

  async *pieces(): AsyncGenerator<Buffer> {
    let timer: NodeJS.Timeout | undefined;
    try {
      for await (const piece of this.#content) {
        timer = setTimeout(this.#onStall, this.#idleMs);
        yield piece;
        clearTimeout(timer);
      }
      this.isSent = true;
    } catch (error) {
      this.failure = error;
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }
}
