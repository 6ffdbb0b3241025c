// Snapshots in a bucket of anything that speaks S3: one object each, path-style, written with one plain PUT.
//
// What the client (s3mini 1.0.2) leaves to us: it takes any answer of status 200 to a list for a list, an answer's size has no bound, a
// call has no end. So answers pass through `fetchWith` before it sees them, and every call has a client of its own, made for its signal.

import { createHash } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { S3ServiceError, S3mini } from "s3mini";
import { Agent, Response, fetch } from "undici";
import type { RequestInit } from "undici";

import { GatewayError } from "../../gateway/errors.ts";
import { corrupt, openGuarded, unavailable, withinMs } from "./guarded.ts";
import type { Backing, Range } from "./guarded.ts";
import { isObjectName, objectBytesMax } from "./store.ts";
import type { SnapshotStore, StoreOptions, StoredObject } from "./store.ts";

export type S3Options = Extract<StoreOptions, { kind: "s3" }>;

export interface S3Limits {
  /** One request and its answer: 32 MiB at 4.5 Mbit/s. */
  readonly attemptMs: number;
  /** No attempt begins later than this after the first. */
  readonly retryMs: number;
}

/** The bucket has to exist. Rejects with GW_STORE_UNAVAILABLE, also when the keys are refused. */
export function openS3Store(
  options: S3Options,
  limits: S3Limits = { attemptMs: 60_000, retryMs: 30_000 },
): Promise<SnapshotStore> {
  return openGuarded(new S3Backing(options, limits));
}

/** Objects a page: the most that S3 gives. */
const pageObjects = 1_000;
/** A page has about 300 bytes an object, and names may be long. */
const listBytesMax = 8 * 1024 * 1024;
const errorBytesMax = 64 * 1024;
/** Metadata of an object: of all its bytes. */
const hashHeader = "x-amz-meta-sha256";

class S3Backing implements Backing {
  readonly kind = "s3";
  readonly where: string;
  readonly callMs: number;
  readonly #options: S3Options;
  readonly #limits: S3Limits;
  readonly #agent = new Agent({ connections: 16, connect: { timeout: 10_000 } });

  constructor(options: S3Options, limits: S3Limits) {
    const { origin } = new URL(options.endpoint);
    this.#options = options;
    this.#limits = limits;
    this.where = `s3://${[options.bucket, options.prefix].filter(Boolean).join("/")} at ${origin}`;
    this.callMs = limits.attemptMs + limits.retryMs + 5_000; // the last attempt's own end tells more
  }

  async open(signal: AbortSignal): Promise<void> {
    await this.#insist(signal, (client) => this.#page(client, "", 1, undefined));
  }

  async put(name: string, bytes: Buffer, signal: AbortSignal): Promise<void> {
    const headers = { [hashHeader]: createHash("sha256").update(bytes).digest("hex") };
    await this.#insist(signal, (client) => client.putObject(this.#key(name), bytes, undefined, undefined, headers));
  }

  async get(name: string, range: Range | null, signal: AbortSignal): Promise<Buffer | null> {
    // Ends with the third answer: one that was read while the object was replaced is another one when it is asked for again.
    for (let attempt = 1; ; attempt += 1) {
      const found = await this.#insist(signal, (client) => this.#read(client, name, range));
      if (found === null) return null;
      const { bytes, hash } = found;
      // Servers that keep no metadata have none.
      if (range !== null || hash === null || createHash("sha256").update(bytes).digest("hex") === hash) return bytes;
      if (attempt === 3)
        throw corrupt(`The object ${name} in ${this.where} is not what was stored: its hash is another one`);
      await sleep(100, undefined, { signal });
    }
  }

  async *list(prefix: string, signal: AbortSignal): AsyncGenerator<StoredObject> {
    let token: string | undefined;
    // Ends with the last page, which names no next one.
    do {
      const page = await this.#insist(signal, (client) => this.#page(client, prefix, pageObjects, token));
      for (const { Key, Size, LastModified } of page.objects) {
        const name = Key.slice(this.#key("").length);
        if (isObjectName(name)) yield { name, sizeBytes: Size, storedAtMs: LastModified.getTime() };
      }
      token = page.next;
    } while (token !== undefined);
  }

  async remove(name: string, signal: AbortSignal): Promise<void> {
    await this.#insist(signal, async (client) => {
      try {
        await client.deleteObject(this.#key(name));
      } catch (error) {
        const { status, code } = refusalOf(error);
        if (status !== 404 || code === "NoSuchBucket") throw error;
      }
    });
  }

  async close(): Promise<void> {
    await this.#agent.destroy();
  }

  /** The causes are left out where they hold what the server said of a request: that may hold the key's id and its signature. */
  failure(error: unknown, what: string): GatewayError {
    const { bucket, region } = this.#options;
    const { status, code } = refusalOf(error);
    if (status === 0) return unavailable(`${what}: ${reasonOf(error)}`, error);
    const answer = `the server answered ${status}${code === "" ? "" : ` ${code}`}`;
    if (status === 507 || /Quota|StorageFull|InsufficientStorage|NoSpace/i.test(code)) {
      return new GatewayError(
        "GW_STORE_FULL",
        `${what}: ${answer}. Nothing was stored. Raise the quota, make room, or keep fewer snapshots.`,
      );
    }
    if (status === 401 || status === 403) {
      return unavailable(
        `${what}: ${answer}. Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, what these keys may do in the bucket ${bucket}, ` +
          `the region (${region}), and the clock of this machine`,
      );
    }
    if (code === "NoSuchBucket")
      return unavailable(`${what}: there is no bucket ${bucket}. Make it, or mend snapshots.store`);
    if (status < 500) return unavailable(`${what}: ${answer}. Check the endpoint and the region (${region})`);
    return unavailable(`${what}: ${answer}`);
  }

  async #read(
    client: S3mini,
    name: string,
    range: Range | null,
  ): Promise<{ bytes: Buffer; hash: string | null } | null> {
    // HTTP has no empty range.
    if (range !== null && range.start === range.end) {
      return (await client.objectExists(this.#key(name))) === true ? { bytes: Buffer.alloc(0), hash: null } : null;
    }
    try {
      const response = await client.getObjectRaw(this.#key(name), range === null, range?.start, range?.end);
      const bytes = await bytesOf(response as unknown as Response, objectBytesMax);
      if (bytes === null) throw corrupt(`The object ${name} in ${this.where} is larger than any that was stored`);
      if (range === null) return { bytes, hash: response.headers.get(hashHeader) };
      if (response.status !== 206) return { bytes: bytes.subarray(range.start, range.end), hash: null }; // no ranges there
      const sent = response.headers.get("content-range") ?? "";
      if (!sent.startsWith(`bytes ${range.start}-`)) throw new Error(`asked for ${range.start}-, got "${sent}"`);
      return { bytes, hash: null };
    } catch (error) {
      const { status, code } = refusalOf(error);
      if (status === 404 && code !== "NoSuchBucket") return null;
      if (status === 416) return { bytes: Buffer.alloc(0), hash: null };
      throw error;
    }
  }

  /** Repeats what may pass by itself, within the limits. All that is done here may be done twice. */
  async #insist<T>(signal: AbortSignal, work: (client: S3mini) => Promise<T>): Promise<T> {
    const until = performance.now() + this.#limits.retryMs;
    // Ends with a result, with a refusal, when the time is over, or when `signal` aborts.
    for (let waitMs = 100; ; waitMs = Math.min(waitMs * 2, 5_000)) {
      try {
        return await withinMs(signal, this.#limits.attemptMs, (signal) => work(this.#client(signal)));
      } catch (error) {
        const pauseMs = waitMs * (0.5 + Math.random() / 2);
        if (!mayPass(error) || performance.now() + pauseMs > until) throw error;
        await sleep(pauseMs, undefined, { signal });
      }
    }
  }

  #client(signal: AbortSignal): S3mini {
    const { accessKeyId, secretAccessKey, endpoint, region, bucket } = this.#options;
    const url = `${endpoint.replace(/\/+$/, "")}/${bucket}`;
    return new S3mini({ accessKeyId, secretAccessKey, region, endpoint: url, fetch: fetchWith(this.#agent, signal) });
  }

  async #page(
    client: S3mini,
    prefix: string,
    objects: number,
    token: string | undefined,
  ): Promise<{ objects: readonly { Key: string; Size: number; LastModified: Date }[]; next: string | undefined }> {
    const page = await client.listObjectsPaged("/", this.#key(prefix), objects, token);
    // The client's own way to say 404.
    if (!page?.objects) throw new S3ServiceError("no bucket", 404, "NoSuchBucket");
    return { objects: page.objects, next: page.nextContinuationToken };
  }

  #key(name: string): string {
    return this.#options.prefix === "" ? name : `${this.#options.prefix}/${name}`;
  }
}

/** For one call: ends with its signal, follows no redirect (signatures hold for one host), and looks at answers first. */
function fetchWith(agent: Agent, signal: AbortSignal): typeof globalThis.fetch {
  const checked = async (url: string, init: RequestInit): Promise<Response> => {
    const response = await fetch(url, { ...init, dispatcher: agent, signal, redirect: "manual" });
    const isList = new URL(url).searchParams.has("list-type");
    if (response.ok && !isList) return response;
    const bytes = init.method === "HEAD" ? null : await bytesOf(response, response.ok ? listBytesMax : errorBytesMax);
    const text = bytes?.toString("utf8") ?? "";
    if (response.ok && !isWholeList(text)) throw new Error("what answers there does not speak S3: its list is none");
    const { status, headers } = response;
    return new Response(text === "" ? null : text, { status, headers });
  };
  return checked as unknown as typeof globalThis.fetch;
}

/** A page that is cut short, or something else altogether, must not look like an empty store. */
const isWholeList = (xml: string): boolean =>
  /<ListBucketResult[\s>]/.test(xml) &&
  xml.includes("</ListBucketResult>") &&
  (!/<IsTruncated>\s*true\s*</.test(xml) || /<NextContinuationToken>[^<]/.test(xml));

/** Null, and the connection is given up, when there are more bytes. */
async function bytesOf(response: Response, bytesMax: number): Promise<Buffer | null> {
  const chunks: Uint8Array[] = [];
  let sizeBytes = 0;
  for await (const chunk of response.body ?? []) {
    sizeBytes += (chunk as Uint8Array).length;
    if (sizeBytes > bytesMax) return null; // leaving the loop cancels the body
    chunks.push(chunk as Uint8Array);
  }
  return Buffer.concat(chunks, sizeBytes);
}

/** Status 0: the server did not judge the request. */
function refusalOf(error: unknown): { readonly status: number; readonly code: string } {
  if (!(error instanceof S3ServiceError)) return { status: 0, code: "" };
  // The client finds the code only where the answer's type is exactly application/xml.
  const named = error.serviceCode === "Unknown" ? undefined : error.serviceCode;
  const code = named ?? /<Code>([^<]*)<\/Code>/.exec(error.body ?? "")?.[1] ?? "";
  return { status: error.status, code: /^[A-Za-z0-9.]{1,64}$/.test(code) ? code : "" };
}

/** No answer, or one that says "later". What was found out about the stored object, and a refusal, stay so. */
function mayPass(error: unknown): boolean {
  if (error instanceof GatewayError) return false;
  const { status, code } = refusalOf(error);
  if (status === 0) return true;
  return code === "RequestTimeout" || status === 429 || [500, 502, 503, 504].includes(status);
}

function reasonOf(error: unknown): string {
  const { message, cause } = error as Error;
  const inner = cause as NodeJS.ErrnoException | undefined;
  return inner?.code ?? inner?.message ?? message;
}
