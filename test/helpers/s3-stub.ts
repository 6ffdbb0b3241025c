// An S3 server in memory, for what a real one does not do on demand: faults, full stores, servers that page or answer in other ways.
// It takes GetObject (with ranges), HeadObject, PutObject, DeleteObject and ListObjectsV2, path-style, and verifies every signature by the
// rules of "Signature Version 4 for API requests" of Amazon's S3 reference, written anew here.
import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { S3Access } from "./s3.ts";

/** What a request gets instead of its answer. "cut": half of the answer. */
export type S3Fault =
  | { readonly status: number; readonly code?: string; readonly body?: string; readonly location?: string }
  | "hang"
  | "reset"
  | "cut";

export interface StubObject {
  readonly bytes: Buffer;
  readonly at: Date;
  /** Headers `x-amz-meta-…`. */
  readonly metadata: Readonly<Record<string, string>>;
}

export interface S3Stub {
  readonly access: S3Access;
  /** Every request, as `METHOD /path?query`, in the order they came. */
  readonly requests: string[];
  /** Asked before each request is judged, until it is replaced. */
  fault: (line: string) => S3Fault | null;
  readonly objects: Map<string, StubObject>;
  /** False: a range is ignored, as servers may. */
  hasRanges: boolean;
  /** No more objects a page than this, whatever is asked for. */
  pageMax: number;
  close(): Promise<void>;
}

export async function startS3Stub(): Promise<S3Stub> {
  const objects: S3Stub["objects"] = new Map();
  const server = createServer((request, response) => {
    answer(request, response).catch((error: unknown) => response.destroy(error as Error));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const stub: S3Stub = {
    access: {
      endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      region: "eu-central-1",
      bucket: "stub",
      accessKeyId: "KEYOFSTUB",
      secretAccessKey: "the-secret-of-the-stub",
    },
    requests: [],
    fault: () => null,
    objects,
    hasRanges: true,
    pageMax: 1_000,
    close: async () => {
      server.closeAllConnections();
      if (server.listening) await new Promise((resolve) => server.close(resolve));
    },
  };

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const line = `${request.method} ${request.url}`;
    stub.requests.push(line);
    const fault = stub.fault(line);
    if (fault === "hang") return;
    if (fault === "reset") return void request.socket.resetAndDestroy();
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const send = (status: number, headers: Record<string, string>, body: Buffer | string): void => {
      const bytes = Buffer.from(body);
      response.writeHead(status, { ...headers, "content-length": String(bytes.length) });
      if (request.method === "HEAD") return void response.end();
      if (fault !== "cut") return void response.end(bytes);
      response.write(bytes.subarray(0, bytes.length / 2), () => request.socket.destroy());
    };
    const refuse = (status: number, code: string): void =>
      send(
        status,
        { "content-type": "application/xml" },
        `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${code}</Code><Message>m</Message>` +
          `<AWSAccessKeyId>${stub.access.accessKeyId}</AWSAccessKeyId></Error>`,
      );
    if (fault !== null && fault !== "cut") {
      if (fault.location !== undefined) return send(fault.status, { location: fault.location }, "");
      if (fault.body !== undefined) return send(fault.status, { "content-type": "text/html" }, fault.body);
      return refuse(fault.status, fault.code ?? "InternalError");
    }
    const wrong = signatureFault(request, stub.access);
    if (wrong !== null) return refuse(403, wrong);
    const url = new URL(request.url ?? "/", stub.access.endpoint);
    const [, bucket, ...rest] = url.pathname.split("/");
    if (bucket !== stub.access.bucket) return refuse(404, "NoSuchBucket");
    const key = rest.map(decodeURIComponent).join("/");
    const held = objects.get(key);
    switch (request.method) {
      case "PUT":
        objects.set(key, { bytes: Buffer.concat(chunks), at: new Date(), metadata: metadataOf(request) });
        return send(200, {}, "");
      case "DELETE":
        objects.delete(key);
        return send(204, {}, "");
      case "GET":
      case "HEAD":
        if (key === "") return send(200, { "content-type": "application/xml" }, page(url.searchParams));
        if (held === undefined) return refuse(404, "NoSuchKey");
        return sendObject(held, request.headers.range);
      default:
        return refuse(405, "MethodNotAllowed");
    }

    function sendObject({ bytes, metadata }: StubObject, range: string | undefined): void {
      const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(stub.hasRanges ? (range ?? "") : "") ?? [];
      if (from === undefined) return send(200, metadata, bytes);
      const last = Math.min(Number(to), bytes.length - 1);
      if (Number(from) > last) return refuse(416, "InvalidRange");
      send(
        206,
        { ...metadata, "content-range": `bytes ${from}-${last}/${bytes.length}` },
        bytes.subarray(Number(from), last + 1),
      );
    }
  }

  /** Keys in the order of their bytes; the token is the last key, as nobody outside may rely on what it is. */
  function page(query: URLSearchParams): string {
    const prefix = query.get("prefix") ?? "";
    const after = Buffer.from(query.get("continuation-token") ?? "", "base64").toString();
    const all = [...objects.keys()].filter((key) => key.startsWith(prefix) && key > after).toSorted();
    const keys = all.slice(0, Math.min(stub.pageMax, Number(query.get("max-keys") ?? 1_000)));
    const contents = keys.map((key) => {
      const { bytes, at } = objects.get(key)!;
      const etag = createHash("md5").update(bytes).digest("hex");
      return (
        `<Contents><Key>${key}</Key><LastModified>${at.toISOString()}</LastModified><ETag>&quot;${etag}&quot;</ETag>` +
        `<Size>${bytes.length}</Size><StorageClass>STANDARD</StorageClass></Contents>`
      );
    });
    const isTruncated = keys.length < all.length;
    const next = Buffer.from(keys.at(-1) ?? "").toString("base64");
    return (
      `<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">` +
      `<Name>${stub.access.bucket}</Name><Prefix>${prefix}</Prefix><KeyCount>${keys.length}</KeyCount>` +
      `<IsTruncated>${isTruncated}</IsTruncated>${contents.join("")}` +
      `${isTruncated ? `<NextContinuationToken>${next}</NextContinuationToken>` : ""}</ListBucketResult>`
    );
  }

  return stub;
}

const metadataOf = ({ headers }: IncomingMessage): Record<string, string> =>
  Object.fromEntries(
    Object.entries(headers).flatMap(([name, value]) => (name.startsWith("x-amz-meta-") ? [[name, String(value)]] : [])),
  );

const encode = (text: string): string =>
  encodeURIComponent(text).replaceAll(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);

/** The error code that S3 would answer with; null: the signature is right. */
function signatureFault(request: IncomingMessage, access: S3Access): string | null {
  const { authorization = "", host = "" } = request.headers;
  const header = (name: string): string => String(request.headers[name] ?? "");
  const scheme =
    /^AWS4-HMAC-SHA256 Credential=([^/,]+)\/(\d{8})\/([^/,]+)\/s3\/aws4_request, ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})$/;
  const [, id, day = "", region, signedNames = "", signature = ""] = scheme.exec(authorization) ?? [];
  if (id === undefined) return "AccessDenied";
  if (id !== access.accessKeyId) return "InvalidAccessKeyId";
  if (region !== access.region) return "AuthorizationHeaderMalformed";
  const stamp = header("x-amz-date");
  const at = Date.parse(stamp.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/, "$1-$2-$3T$4:$5:$6Z"));
  if (!stamp.startsWith(day) || !(Math.abs(Date.now() - at) < 900_000)) return "RequestTimeTooSkewed";
  const names = signedNames.split(";");
  const needed = ["host", ...Object.keys(request.headers).filter((name) => name.startsWith("x-amz-"))];
  if (host === "" || !needed.every((name) => names.includes(name))) return "AccessDenied";

  const [path = "", query = ""] = (request.url ?? "").split("?");
  const canonicalQuery = [...new URLSearchParams(query)]
    .map(([name, value]) => `${encode(name)}=${encode(value)}`)
    .toSorted()
    .join("&");
  const canonical = [
    request.method,
    path,
    canonicalQuery,
    ...names.map((name) => `${name}:${header(name).trim().replaceAll(/ +/g, " ")}`),
    "",
    signedNames,
    header("x-amz-content-sha256"),
  ].join("\n");
  const sha256 = createHash("sha256").update(canonical).digest("hex");
  const toSign = ["AWS4-HMAC-SHA256", stamp, `${day}/${region}/s3/aws4_request`, sha256].join("\n");
  const key = [day, region, "s3", "aws4_request"].reduce<Buffer>(
    (secret, part) => createHmac("sha256", secret).update(part).digest(),
    Buffer.from(`AWS4${access.secretAccessKey}`),
  );
  const expected = createHmac("sha256", key).update(toSign).digest();
  return timingSafeEqual(expected, Buffer.from(signature, "hex")) ? null : "SignatureDoesNotMatch";
}
