import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import { createServer as createTcpServer } from "node:net";
import { expect, onTestFinished, test } from "vitest";
import { createHttpPlace } from "../../../recorder/capture/http.ts";
import { waitFor } from "../../helpers/wait.ts";
import { contentOf, never, restoreTo, stateOf } from "./single.ts";
import type { IncomingMessage, RequestListener } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import type { HttpPlaceLimits, HttpPlaceOptions } from "../../../recorder/capture/http.ts";

test("a state that was exported and imported into another service is equal, byte for byte", async () => {
  const state = randomBytes(20 * 1024 * 1024);
  const a = await serve((request, response) => {
    expect([request.method, request.url, request.headers["accept-encoding"]]).toEqual([
      "GET",
      "/dump?all=1",
      "identity",
    ]);
    response.write(state.subarray(0, 1000));
    response.end(state.subarray(1000));
  });
  const b = new Service();
  const { entry, bytes } = await stateOf(createPlace(a));
  expect(entry).toEqual({ kind: "file", path: "state", mode: 0o600, sizeBytes: 0, stamp: null });
  expect(bytes.equals(state)).toBe(true);

  await restoreTo(createPlace(await serve(b.take)), contentOf(bytes));
  expect(b.taken?.equals(state)).toBe(true);
  expect(b.heads).toMatchObject([
    {
      method: "PUT",
      url: "/dump",
      headers: { "transfer-encoding": "chunked", "content-type": "application/octet-stream" },
    },
  ]);
});

test("an export with a length is a state too, and one of no bytes", async () => {
  const url = await serve((_request, response) => response.setHeader("content-length", 0).end());
  expect((await stateOf(createPlace(url))).bytes.length).toBe(0);
});

test.each([204, 206, 202, 302, 404, 500, 503])("an export that is answered with %d is no state", async (status) => {
  let asked = 0;
  const url = await serve((_request, response) => {
    asked += 1;
    response
      .writeHead(status, { location: "/elsewhere" })
      .end(status === 204 ? undefined : "the table is\u0007 locked");
  });
  await expect(stateOf(createPlace(url))).rejects.toMatchObject({
    code: "GW_SNAPSHOT_FAILED",
    message: expect.stringMatching(
      status === 204
        ? /answered with 204; it takes 200/
        : new RegExp(`GET http://127.0.0.1:\\d+/dump was answered with ${status} \\(the table is locked\\)`),
    ),
  });
  // No redirect followed, nothing asked twice.
  expect(asked).toBe(1);
});

test("an export whose end cannot be told from a cut is no state", async () => {
  const url = await serveRaw((socket) => socket.end("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nstate"));
  await expect(stateOf(createPlace(url))).rejects.toMatchObject({
    code: "GW_SNAPSHOT_FAILED",
    message: expect.stringContaining("neither Content-Length nor chunks"),
  });
});

test("an export that comes encoded is no state", async () => {
  const url = await serve((_request, response) => response.setHeader("content-encoding", "gzip").end("state"));
  await expect(stateOf(createPlace(url))).rejects.toMatchObject({ message: expect.stringContaining('"gzip"') });
});

test.each([
  ["closed within its chunks", "Transfer-Encoding: chunked\r\n\r\n5\r\nstate\r\n", "end"],
  ["closed before its length", "Content-Length: 10\r\n\r\nstate", "end"],
  ["reset within its chunks", "Transfer-Encoding: chunked\r\n\r\n5\r\nstate\r\n", "reset"],
] as const)("an export that is %s is a failed capture", async (_how, head, cut) => {
  const url = await serveRaw((socket) => {
    socket.write(`HTTP/1.1 200 OK\r\n${head}`, () => void (cut === "end" ? socket.end() : socket.resetAndDestroy()));
  });
  await expect(stateOf(createPlace(url))).rejects.toMatchObject({
    code: "GW_SNAPSHOT_FAILED",
    message: expect.stringContaining("nothing was captured"),
  });
});

test("an export that falls silent, and one that never ends, are given up", async () => {
  const silent = await serve((_request, response) => void response.write("state"));
  await expect(stateOf(createPlace(silent, {}, { idleMs: 300 }))).rejects.toMatchObject({ code: "GW_SNAPSHOT_FAILED" });
  const endless = await serve((_request, response) => {
    const timer = setInterval(() => response.write("x"), 10);
    response.once("close", () => clearInterval(timer));
  });
  await expect(stateOf(createPlace(endless, { timeoutMs: 300 }))).rejects.toMatchObject({
    code: "GW_SNAPSHOT_FAILED",
    message: expect.stringContaining("did not end within 300 ms"),
  });
});

test("a service that is not there is a failed capture", async () => {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  server.close();
  await expect(stateOf(createPlace(url))).rejects.toMatchObject({
    code: "GW_SNAPSHOT_FAILED",
    message: expect.stringContaining("ECONNREFUSED"),
  });
});

test("a slow reader slows the export, and one that stops closes it", async () => {
  let written = 0;
  let isClosed = false;
  const url = await serve((_request, response) => {
    response.once("close", () => (isClosed = true));
    const more = (): void => {
      // Ends when the connection takes no more for now; a closed one never does.
      do written += 65_536;
      while (response.write(Buffer.alloc(65_536)));
      response.once("drain", more);
    };
    more();
  });
  for await (const { content } of createPlace(url).read(never)) {
    for await (const _ of content?.() ?? []) {
      let last = -1;
      await waitFor(() => last === (last = written), { what: "the service to wait" });
      // What sockets and streams hold: kernels give loopback up to a few MiB.
      expect(written).toBeLessThan(64 * 1024 * 1024);
      break;
    }
  }
  await waitFor(() => isClosed, { what: "the connection to be closed" });
});

test("an aborted capture closes the connection and rejects with the reason", async () => {
  let isClosed = false;
  const given = new AbortController();
  const url = await serve((_request, response) => {
    response.once("close", () => (isClosed = true));
    response.write("state", () => given.abort(new Error("not now")));
  });
  await expect(stateOf(createPlace(url), given.signal)).rejects.toThrow("not now");
  await waitFor(() => isClosed, { what: "the connection to be closed" });
});

test.each([202, 302, 400, 500])("an import that is answered with %d has failed", async (status) => {
  const service = new Service(status);
  await expect(
    restoreTo(createPlace(await serve(service.take)), contentOf(Buffer.from("state"))),
  ).rejects.toMatchObject({
    code: "GW_RESTORE_FAILED",
    message: expect.stringMatching(
      new RegExp(`PUT http://127.0.0.1:\\d+/dump was answered with ${status} \\(so\\).*unknown now`),
    ),
  });
  expect(service.heads.length).toBe(1);
});

test.each([200, 201, 204])("an import that is answered with %d is done", async (status) => {
  const service = new Service(status);
  await restoreTo(createPlace(await serve(service.take)), contentOf(Buffer.from("state")));
  expect(service.taken?.toString()).toBe("state");
});

test("an import that is answered before all of it was sent has failed, even with 200", async () => {
  const url = await serve((_request, response) => void response.end("fine"));
  await expect(restoreTo(createPlace(url), contentOf(Buffer.alloc(50_000_000)))).rejects.toMatchObject({
    code: "GW_RESTORE_FAILED",
  });
});

test("an import whose answer is cut off has failed", async () => {
  const url = await serve((request, response) => {
    request.resume().once("end", () => {
      response.writeHead(200, { "content-length": 100 }).write("fi", () => response.destroy());
    });
  });
  await expect(restoreTo(createPlace(url), contentOf(Buffer.from("state")))).rejects.toMatchObject({
    code: "GW_RESTORE_FAILED",
  });
});

test("when the rest of the state cannot be had, the service never sees an end of the body", async () => {
  const service = new Service();
  const broken = async function* (): AsyncGenerator<Buffer> {
    yield Buffer.from("ab");
    await waitFor(() => service.heads.length === 1, { what: "the service to have begun" });
    throw new Error("chunk 2 is damaged");
  };
  await expect(restoreTo(createPlace(await serve(service.take)), broken())).rejects.toThrow("chunk 2 is damaged");
  await waitFor(() => service.isCut, { what: "the service to see the cut" });
  expect(service.taken).toBe(null);
});

test("a service that takes no more bytes, and one that never answers, are given up", async () => {
  const deaf = await serve(() => {});
  await expect(
    restoreTo(createPlace(deaf, {}, { idleMs: 300 }), contentOf(Buffer.alloc(50_000_000))),
  ).rejects.toMatchObject({ code: "GW_RESTORE_FAILED", message: expect.stringContaining("took no bytes for 300 ms") });
  await expect(restoreTo(createPlace(deaf, { timeoutMs: 300 }), contentOf(Buffer.from("state")))).rejects.toMatchObject(
    { code: "GW_RESTORE_FAILED", message: expect.stringContaining("did not end within 300 ms") },
  );
});

test("no token of a query reaches a message or the place's name", async () => {
  const url = await serve((_request, response) => void response.writeHead(403).end());
  const place = createPlace(url, { export: { method: "GET", target: "/dump?token=hunter2" } });
  const error = await stateOf(place).catch((error: Error) => error);
  expect((error as Error).message).toContain("/dump was answered with 403");
  expect(`${(error as Error).message} ${place.where}`).not.toContain("hunter2");
});

function createPlace(
  url: string,
  options: Partial<HttpPlaceOptions> = {},
  limits: Partial<HttpPlaceLimits> = {},
): ReturnType<typeof createHttpPlace> {
  return createHttpPlace(
    {
      kind: "http",
      url,
      export: { method: "GET", target: "/dump?all=1" },
      import: { method: "PUT", target: "/dump" },
      timeoutMs: 20_000,
      ...options,
    },
    { connectMs: 5_000, idleMs: 10_000, ...limits },
  );
}

/** Takes an import, and remembers whether it was whole. */
class Service {
  taken: Buffer | null = null;
  isCut = false;
  readonly heads: { method: string | undefined; url: string | undefined; headers: IncomingMessage["headers"] }[] = [];
  readonly #status: number;

  constructor(status = 200) {
    this.#status = status;
  }

  readonly take: RequestListener = (request, response) => {
    this.heads.push({ method: request.method, url: request.url, headers: request.headers });
    drain(request).then(
      (body) => {
        this.taken = body;
        response.writeHead(this.#status, { location: "/elsewhere" }).end(this.#status === 204 ? undefined : "so");
      },
      () => (this.isCut = true),
    );
  };
}

async function drain(request: IncomingMessage): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of request) pieces.push(piece as Buffer);
  return Buffer.concat(pieces);
}

async function serve(listener: RequestListener): Promise<string> {
  const server = createServer(listener).listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function serveRaw(answer: (socket: Socket) => void): Promise<string> {
  const server = createTcpServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", () => answer(socket));
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => void server.close());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}
