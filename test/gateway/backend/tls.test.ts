// Copies at https://: whose certificate is believed, what the gateway shows, and that a refusal is never taken for an execution.

import { createServer } from "node:https";
import { createSecureContext } from "node:tls";
import { describe, expect, onTestFinished, test } from "vitest";
import { createHttpBackend } from "../../../gateway/backend/http.ts";
import { checkAccepts, checkReady } from "../../../gateway/launch/ready.ts";
import { Authority, expired } from "../../helpers/certificates.ts";
import type { AddressInfo } from "node:net";
import type { SecureContextOptions, SecureVersion } from "node:tls";
import type { BackendRequest } from "../../../gateway/backend/backend.ts";
import type { Pair } from "../../helpers/certificates.ts";

const authority = new Authority("test");
const stranger = new Authority("stranger");
const limits = { firstByteMs: 10_000, answerBytesMax: 1024 * 1024 };
const post: BackendRequest = {
  method: "POST",
  target: "/x",
  headers: ["Host", "shop.example", "Content-Length", "2"],
  body: Buffer.from("hi"),
  trailers: [],
};

interface Copy {
  readonly url: string;
  readonly port: number;
  /** Requests that reached the service. */
  readonly executed: () => number;
}

interface CopyOptions {
  readonly pair?: Pair;
  readonly asks?: boolean;
  readonly version?: SecureVersion;
}

async function startCopy({ pair = authority.issue(), asks = false, version }: CopyOptions = {}): Promise<Copy> {
  let executed = 0;
  const server = createServer(
    {
      ...pair,
      ca: authority.cert,
      requestCert: asks,
      rejectUnauthorized: asks,
      ...(version === undefined ? null : { maxVersion: version }),
    },
    (_request, response) => {
      executed += 1;
      response.end("done");
    },
  );
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  return { url: `https://localhost:${port}`, port, executed: () => executed };
}

function connected(url: string, tls?: SecureContextOptions) {
  const context = tls === undefined ? null : { tls: () => createSecureContext(tls) };
  const backend = createHttpBackend({ url, connectMs: 5_000, idleMs: 10_000, connections: 4, ...context });
  onTestFinished(() => backend.close());
  return backend;
}

const ready = (url: string, tls: SecureContextOptions, request: { method: string; path: string } | null) =>
  checkReady({ url, request, tls: () => createSecureContext(tls) }, 5_000);
const health = { method: "GET", path: "/health" };

describe("a copy at https://", () => {
  test("is believed by name and by address where its authority is, and is shown our certificate", async () => {
    const { port, executed } = await startCopy({ asks: true });
    const tls = { ca: authority.cert, ...authority.issue({ name: "gw-1" }) };
    for (const url of [`https://localhost:${port}`, `https://127.0.0.1:${port}`]) {
      expect(await connected(url, tls).execute(post, limits)).toMatchObject({ kind: "done", answer: { status: 200 } });
      for (const request of [null, health]) expect(await ready(url, tls, request)).toMatchObject({ isReady: true });
    }
    expect(executed()).toBe(4);
  });

  test.each([
    ["by nobody who is believed", () => stranger.issue(), { ca: authority.cert }, "unable to|self-signed"],
    ["by nobody the system believes", () => authority.issue(), undefined, "unable to|self-signed"],
    [
      "for another name",
      () => authority.issue({ hosts: ["elsewhere.example"] }),
      { ca: authority.cert },
      "does not match",
    ],
    ["until last year", () => authority.issue(expired), { ca: authority.cert }, "certificate has expired"],
  ])("whose certificate was made %s is sent nothing, and is not ready", async (_what, pair, tls, why) => {
    const { url, executed } = await startCopy({ pair: pair() });
    const outcome = await connected(url, tls).execute(post, limits);
    expect(outcome).toMatchObject({
      kind: "not-started",
      cause: expect.objectContaining({ message: expect.stringMatching(why) }),
    });
    for (const request of [null, health]) {
      const seen = await ready(url, tls ?? {}, request);
      expect(seen).toMatchObject({ isReady: false, reason: expect.stringMatching(why) });
    }
    expect(executed()).toBe(0);
  });

  test.each(["TLSv1.2", "TLSv1.3"] as const)(
    "that refuses our certificate by %s was certainly not asked: nothing is unknown",
    async (version) => {
      const { url, executed } = await startCopy({ asks: true, version });
      const refused = [
        { ca: authority.cert },
        { ca: authority.cert, ...stranger.issue() },
        { ca: authority.cert, ...authority.issue(expired) },
      ];
      for (const tls of refused) {
        const backend = connected(url, tls);
        for (let time = 0; time < 5; time += 1)
          expect(await backend.execute(post, limits)).toMatchObject({ kind: "not-started" });
        for (const request of [null, health]) expect((await ready(url, tls, request)).isReady).toBe(false);
      }
      expect(executed()).toBe(0);
      expect(await checkAccepts(url, 5_000)).toMatchObject({ isReady: true });
    },
  );

  test("is asked with a renewed certificate from the next connection on", async () => {
    const { url } = await startCopy({ asks: true });
    let shown = stranger.issue();
    const backend = createHttpBackend({
      url,
      connectMs: 5_000,
      idleMs: 10_000,
      connections: 1,
      tls: () => createSecureContext({ ca: authority.cert, ...shown }),
    });
    onTestFinished(() => backend.close());
    expect(await backend.execute(post, limits)).toMatchObject({ kind: "not-started" });
    shown = authority.issue();
    expect(await backend.execute(post, limits)).toMatchObject({ kind: "done" });
  });
});
