// oxlint-disable unicorn/consistent-function-scoping -- a helper stands where it is used
import crypto from "node:crypto";
import { request } from "node:http";
import { syncBuiltinESMExports } from "node:module";
import { connect } from "node:net";
import { afterEach, describe, expect, test, vi } from "vitest";
import { Secret } from "../../../gateway/config/secret.ts";
import { GatewayError } from "../../../gateway/errors.ts";
import { adminConnectionsPerAddress } from "../../../gateway/server/admin.ts";
import { RawClient } from "../../helpers/raw-client.ts";
import { waitFor } from "../../helpers/wait.ts";
import { fakeControl, openFakeAdmin, status } from "../cli.fake.ts";
import type { IncomingHttpHeaders, OutgoingHttpHeaders } from "node:http";
import type { FakeAdmin } from "../cli.fake.ts";

const open: FakeAdmin[] = [];
const start = async (...args: Parameters<typeof openFakeAdmin>): Promise<FakeAdmin> => {
  const admin = await openFakeAdmin(...args);
  open.push(admin);
  return admin;
};

afterEach(async () => {
  await Promise.all(open.splice(0).map(({ admin }) => admin.close()));
});

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
  readonly json: Record<string, unknown>;
}

function call(url: string, method = "GET", headers: OutgoingHttpHeaders = {}, body?: string): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const sent = request(url, { method, headers, agent: false }, (answer) => {
      const chunks: Buffer[] = [];
      answer.on("data", (chunk: Buffer) => chunks.push(chunk));
      answer.on("end", () => {
        const text = Buffer.concat(chunks).toString();
        const isJson = /json/.test(answer.headers["content-type"] ?? "");
        resolve({
          status: answer.statusCode ?? 0,
          headers: answer.headers,
          text,
          json: isJson ? (JSON.parse(text) as Record<string, unknown>) : {},
        });
      });
    });
    sent.on("error", reject);
    sent.end(body);
  });
}

const json = { "content-type": "application/json" };

describe("health", () => {
  test("/livez and /readyz say yes while requests can be served", async () => {
    const { url } = await start();
    expect((await call(`${url}/livez`)).status).toBe(200);
    const ready = await call(`${url}/readyz`);
    expect([ready.status, ready.json]).toEqual([200, { ready: true, reads: [], writes: [] }]);
  });

  test("/readyz is 200 while one class can be served, ?for=writes is stricter and says why not", async () => {
    const { url } = await start({ over: { readiness: () => ({ reads: [], writes: ["the log is full"] }) } });
    expect((await call(`${url}/readyz`)).status).toBe(200);
    expect((await call(`${url}/readyz?for=reads`)).status).toBe(200);
    const writes = await call(`${url}/readyz?for=writes`);
    expect([writes.status, writes.json["writes"]]).toEqual([503, ["the log is full"]]);
    expect((await call(`${url}/readyz?for=lunch`)).status).toBe(400);
  });

  test("/readyz is 503 when nothing can be served", async () => {
    const { url } = await start({ over: { readiness: () => ({ reads: ["x"], writes: ["x"] }) } });
    expect((await call(`${url}/readyz`)).status).toBe(503);
  });

  test("/readyz is 503 from the moment the gateway begins to stop, /livez is not", async () => {
    const { url, events } = await start();
    events.tell({ type: "gateway", state: "stopping", detail: "" });
    expect((await call(`${url}/readyz`)).status).toBe(503);
    expect((await call(`${url}/livez`)).status).toBe(200);
  });

  test("/ lists what there is", async () => {
    const { url } = await start();
    const index = await call(`${url}/`);
    expect(index.headers["content-type"]).toMatch(/^text\/plain/);
    expect(index.text).toContain("/v1/log/stream");
    expect(Math.max(...index.text.split("\n").map((line) => line.length))).toBeLessThanOrEqual(80);
  });
});

describe("the API", () => {
  test("/v1/status is the status", async () => {
    const { url } = await start();
    expect((await call(`${url}/v1/status`)).json).toEqual(JSON.parse(JSON.stringify(status)));
  });

  test("replicas are listed, drained, resumed and quarantined", async () => {
    const { url, control } = await start();
    expect((await call(`${url}/v1/replicas`)).json["replicas"]).toHaveLength(3);
    expect((await call(`${url}/v1/replicas/b`)).json["name"]).toBe("b");
    const drained = await call(`${url}/v1/replicas/a/drain`, "POST", json, '{"reason":"new disk"}');
    expect([drained.status, (drained.json["replica"] as { name: string }).name]).toEqual([200, "a"]);
    await call(`${url}/v1/replicas/a/resume`, "POST", json, "{}");
    await call(`${url}/v1/replicas/a/quarantine`, "POST", json);
    expect(control.calls).toEqual(["a drain new disk", "a resume by an operator", "a quarantine by an operator"]);
  });

  test("a replica that is not there is a 404 that names those that are", async () => {
    const { url, control } = await start();
    const answer = await call(`${url}/v1/replicas/x/drain`, "POST", json, "{}");
    expect([answer.status, answer.json["code"], answer.json["detail"]]).toEqual([
      404,
      "GW_NOT_FOUND",
      'There is no replica "x", only a, b, c.',
    ]);
    expect(control.calls).toEqual([]);
  });

  test("entries are resolved one by one or all at once, and nothing else is taken for an answer", async () => {
    const { url, control } = await start();
    const post = (body: string): Promise<Answer> => call(`${url}/v1/replicas/b/resolve`, "POST", json, body);
    expect((await post('{"position":4931584,"applied":true}')).json).toEqual({ resolved: 1 });
    expect((await post('{"position":"all","applied":false}')).status).toBe(200);
    for (const wrong of [
      "{}",
      '{"position":1}',
      '{"position":"1","applied":true}',
      '{"position":-1,"applied":true}',
      '{"position":1.5,"applied":true}',
      '{"position":1,"applied":"true"}',
      "[]",
      "null",
      "{",
    ]) {
      const answer = await post(wrong);
      expect([wrong, answer.status, answer.json["code"]]).toEqual([wrong, 400, "GW_BAD_REQUEST"]);
    }
    expect(control.calls).toEqual(["resolve b 4931584 true", "resolve b all false"]);
  });

  test("the log is read from a position, from its end, and one by one", async () => {
    const { url } = await start();
    const page = await call(`${url}/v1/log?from=4931585&limit=1`);
    expect((page.json["rows"] as { position: number }[]).map(({ position }) => position)).toEqual([4_931_585]);
    expect(page.json["next"]).toBe(4_931_586);
    const last = await call(`${url}/v1/log?last=2`);
    expect((last.json["rows"] as { position: number }[]).map(({ position }) => position)).toEqual([
      4_931_585, 4_931_588,
    ]);
    expect((await call(`${url}/v1/log/4931584`)).json["position"]).toBe(4_931_584);
    for (const path of ["/v1/log/7", "/v1/log/x", "/v1/log/-1", "/v1/nothing"]) {
      expect([path, (await call(url + path)).status]).toEqual([path, 404]);
    }
    for (const query of ["from=x", "from=-1", "limit=0", "limit=1e3"]) {
      expect([query, (await call(`${url}/v1/log?${query}`)).status]).toEqual([query, 400]);
    }
  });

  test("the last rows are found across records however thin these are", async () => {
    const positions = Array.from({ length: 40 }, (_, i) => (i + 1) * 4096);
    const rows = await Promise.all(
      positions.map(async (position) => ({ ...(await fakeControl().log(0, 1))[0], position })),
    );
    const { url } = await start({
      over: {
        status: async () => ({ ...status, tail: 40 * 4096 + 4095, log: { ...status.log, firstPosition: 4096 } }),
        log: async (from, limit) => rows.filter((row) => row.position >= from).slice(0, limit) as never,
      },
    });
    const last = await call(`${url}/v1/log?last=7`);
    expect((last.json["rows"] as { position: number }[]).map(({ position }) => position)).toEqual(positions.slice(-7));
    expect((await call(`${url}/v1/log?last=100`)).json["rows"]).toHaveLength(40);
  });

  test("parked entries, unknown ones and disagreements are there", async () => {
    const { url, control } = await start();
    expect((await call(`${url}/v1/parked`)).json["parked"]).toHaveLength(1);
    expect((await call(`${url}/v1/parked/4931500/retry`, "POST", json, "{}")).json).toEqual({ position: 4_940_000 });
    expect((await call(`${url}/v1/parked/4931501/skip`, "POST", json, '{"reason":"poison"}')).status).toBe(200);
    expect((await call(`${url}/v1/unknown`)).json["unknown"]).toHaveLength(1);
    expect((await call(`${url}/v1/unknown?replica=a`)).json["unknown"]).toHaveLength(0);
    expect((await call(`${url}/v1/unknown?replica=z`)).status).toBe(404);
    expect((await call(`${url}/v1/disagreements`)).json["disagreements"]).toHaveLength(1);
    expect((await call(`${url}/v1/disagreements/4931584`)).json["rule"]).toBe("create-order");
    expect((await call(`${url}/v1/disagreements/1`)).status).toBe(404);
    expect((await call(`${url}/v1/log/verify`)).json["findings"]).toEqual([]);
    expect(control.calls).toEqual(["retry 4931500", "skip 4931501 poison"]);
  });

  test("pause and resume reach the control; a reason is one short line", async () => {
    const { url, control } = await start();
    await call(`${url}/v1/pause`, "POST", json, '{"reason":"backup"}');
    await call(`${url}/v1/resume`, "POST", json);
    expect(control.calls).toEqual(["pause backup", "resume"]);
    for (const reason of ["a\nb", "x".repeat(501), 7, "\u001b[31m"]) {
      expect((await call(`${url}/v1/pause`, "POST", json, JSON.stringify({ reason }))).status).toBe(400);
    }
  });

  test("what the control refuses arrives as a problem with its code", async () => {
    const { url } = await start();
    const answer = await call(`${url}/v1/parked/7/retry`, "POST", json, "{}");
    expect(answer.status).toBe(409);
    expect(answer.headers["content-type"]).toMatch(/^application\/problem\+json\b/);
    expect(answer.headers["replication-outcome"]).toBeUndefined();
    expect(answer.json).toMatchObject({ code: "GW_CONFLICT", status: 409, detail: "entry 7 is not parked" });
  });

  test("a defect is a 500 that shows nothing of it, and is told to the journal", async () => {
    const { url, events } = await start({ over: { status: () => Promise.reject(new Error("canary-internal")) } });
    const told: string[] = [];
    events.listen((fact) => void (fact.type === "warning" && told.push(fact.detail)));
    const answer = await call(`${url}/v1/status`);
    expect([answer.status, answer.json["code"]]).toEqual([500, "GW_INTERNAL"]);
    expect(answer.text).not.toContain("canary");
    expect(told).toEqual(["GET /v1/status: Error: canary-internal"]);
  });

  test("an error that never reaches clients is a 500, not a status of 0", async () => {
    const { url } = await start({
      over: { status: () => Promise.reject(new GatewayError("GW_LOG_CORRUPT", "record 7")) },
    });
    expect((await call(`${url}/v1/status`)).status).toBe(500);
  });

  test("credentials in rows are not shown", async () => {
    const { url } = await start();
    const rows = ["/v1/log?from=0", "/v1/log/4931584", "/v1/disagreements", "/v1/disagreements/4931584"];
    for (const path of [...rows, "/v1/parked", "/v1/unfinished"]) {
      const { text } = await call(url + path);
      expect(text, path).not.toContain("canary");
      expect(text, path).toContain("[redacted]");
    }
    expect((await call(`${url}/v1/log/4931584`)).text).toContain('"Accept","*/*"');
  });
});

describe("what takes time", () => {
  /** Answers 202 with an operation, and says where to ask for it. */
  async function begin(url: string, method: string, path: string, body?: string): Promise<Record<string, unknown>> {
    const answer = await call(url + path, method, json, body);
    expect([path, answer.status]).toEqual([path, 202]);
    expect(answer.headers.location).toBe(`/v1/operations/${String(answer.json["id"])}`);
    return answer.json;
  }

  test("is an operation that can be asked for until it is done", async () => {
    const { url, control } = await start();
    const begun = await begin(url, "POST", "/v1/snapshots", "{}");
    expect(begun).toMatchObject({ id: "op-snapshot", kind: "snapshot", subject: "13", state: "running", result: null });
    const place = `${url}/v1/operations/op-snapshot`;
    expect((await call(place)).json).toMatchObject({
      state: "running",
      progress: { done: 1, total: 4, unit: "bytes" },
    });
    expect((await call(place)).json).toMatchObject({ state: "done", result: "snapshot of 13 is done", findings: [] });
    expect((await call(`${url}/v1/operations`)).json["operations"]).toHaveLength(1);
    const gone = await call(`${url}/v1/operations/nothing`);
    expect([gone.status, gone.json["code"]]).toEqual([404, "GW_NOT_FOUND"]);
    expect(control.calls).toEqual(["snapshot"]);
  });

  test("is a snapshot, a verification, an audit, a new, a removed or a rebuilt replica", async () => {
    const { url, control } = await start();
    await begin(url, "POST", "/v1/snapshots");
    await begin(url, "POST", "/v1/snapshots/verify");
    await begin(url, "POST", "/v1/snapshots/11/verify", "{}");
    await begin(url, "POST", "/v1/audit");
    await begin(url, "POST", "/v1/replicas");
    await begin(url, "DELETE", "/v1/replicas/b");
    await begin(url, "POST", "/v1/replicas/b/rebuild");
    await begin(url, "POST", "/v1/replicas/b/rebuild", '{"version":11}');
    expect(control.calls).toEqual([
      "snapshot",
      "verify null",
      "verify 11",
      "audit",
      "add null",
      "remove b",
      "rebuild b null",
      "rebuild b 11",
    ]);
  });

  test("a sync of the roster is no operation: it answers with what it changed", async () => {
    const { url, control } = await start();
    const answer = await call(`${url}/v1/replicas/sync`, "POST", json, "{}");
    expect([answer.status, answer.json]).toEqual([200, { added: ["c"], changed: [], removed: ["d", "e"] }]);
    expect((await call(`${url}/v1/replicas/sync`, "POST", json, '{"force":true}')).status).toBe(400);
    expect(control.calls).toEqual(["sync"]);
  });

  test("is refused where it names what is not there, or says what nobody understands", async () => {
    const { url, control } = await start();
    const wrong: readonly (readonly [string, string, string | undefined, number, string])[] = [
      ["POST", "/v1/replicas/z/rebuild", "{}", 404, "GW_NOT_FOUND"],
      ["DELETE", "/v1/replicas/z", undefined, 404, "GW_NOT_FOUND"],
      ["POST", "/v1/snapshots/newest/verify", "{}", 404, "GW_NOT_FOUND"],
      ["POST", "/v1/replicas/b/rebuild", '{"version":"11"}', 400, "GW_BAD_REQUEST"],
      ["POST", "/v1/replicas/b/rebuild", '{"version":-1}', 400, "GW_BAD_REQUEST"],
      // Taken for nothing, it would be a rebuild from another version than was meant.
      ["POST", "/v1/replicas/b/rebuild", '{"vresion":11}', 400, "GW_BAD_REQUEST"],
      ["POST", "/v1/snapshots", '{"version":11}', 400, "GW_BAD_REQUEST"],
      ["POST", "/v1/audit", "[]", 400, "GW_BAD_REQUEST"],
    ];
    for (const [method, path, body, code, name] of wrong) {
      const answer = await call(url + path, method, json, body);
      expect([path, body, answer.status, answer.json["code"]]).toEqual([path, body, code, name]);
    }
    expect(control.calls).toEqual([]);
  });

  test("arrives as a problem where the control cannot begin it", async () => {
    const { url } = await start({
      over: { snapshotCreate: () => Promise.reject(new GatewayError("GW_CONFLICT", "a snapshot is being taken")) },
    });
    const answer = await call(`${url}/v1/snapshots`, "POST", json, "{}");
    expect([answer.status, answer.json["code"], answer.headers.location]).toEqual([409, "GW_CONFLICT", undefined]);
  });

  test("needs the token, and no page of another origin can begin it", async () => {
    const { url, control } = await start({ token: new Secret("correct-horse-battery-staple") });
    for (const [method, path] of [
      ["POST", "/v1/snapshots"],
      ["POST", "/v1/audit"],
      ["POST", "/v1/replicas"],
      ["POST", "/v1/replicas/sync"],
      ["DELETE", "/v1/replicas/b"],
      ["POST", "/v1/replicas/b/rebuild"],
      ["GET", "/v1/operations"],
    ] as const) {
      expect([path, (await call(url + path, method, json)).status]).toEqual([path, 401]);
      const bearer = { authorization: "Bearer correct-horse-battery-staple", origin: "http://evil.example" };
      expect([path, (await call(url + path, method, { ...json, ...bearer })).status]).toEqual([path, 403]);
    }
    expect(control.calls).toEqual([]);
  });
});

describe("snapshots", () => {
  test("are listed newest first and found by their version", async () => {
    const { url } = await start();
    const versions = (answer: Answer): number[] =>
      (answer.json["snapshots"] as { version: number }[]).map(({ version }) => version);
    expect(versions(await call(`${url}/v1/snapshots`))).toEqual([12, 11]);
    expect(versions(await call(`${url}/v1/snapshots?version=11`))).toEqual([11]);
    expect((await call(`${url}/v1/snapshots/11`)).json).toMatchObject({ version: 11, publication: "waiting" });
    const missing = await call(`${url}/v1/snapshots/7`);
    expect([missing.status, missing.json["code"], missing.json["detail"]]).toEqual([
      404,
      "GW_SNAPSHOT_MISSING",
      "There is no snapshot of version 7: kept are 12, 11.",
    ]);
    expect((await call(`${url}/v1/snapshots?version=x`)).status).toBe(400);
  });
});

describe("a replica that is added", () => {
  const add = (url: string, body: unknown): Promise<Answer> =>
    call(`${url}/v1/replicas`, "POST", json, JSON.stringify(body));

  test("is a name and a URL, with what is needed to rebuild it", async () => {
    const { url, control } = await start();
    const full = {
      name: "d",
      url: "http://127.0.0.1:4004/",
      state: "/srv/d",
      stop: ["systemctl", "stop", "d"],
      start: ["systemctl", "start", "d"],
      witness: ["GET /accounts?b=1"],
    };
    expect((await add(url, full)).status).toBe(202);
    expect((await add(url, { name: "e", url: "http://127.0.0.1:4005" })).status).toBe(202);
    expect(control.calls.map((text) => JSON.parse(text.slice(4)) as unknown)).toEqual([
      { ...full, url: "http://127.0.0.1:4004", witness: ["GET /accounts?b=1"] },
      { name: "e", url: "http://127.0.0.1:4005", state: null, stop: null, start: null, witness: [] },
    ]);
  });

  test("by its name is looked up once and kept by its address", async () => {
    const { url, control } = await start();
    expect((await add(url, { name: "d", url: "http://shop.example:4004" })).status).toBe(202);
    expect(control.calls[0]).toContain('"url":"http://10.1.2.3:4004"');
  });

  test("at https:// keeps its name, by which its certificate is checked", async () => {
    const { url, control } = await start();
    expect((await add(url, { name: "d", url: "https://shop.example:4004" })).status).toBe(202);
    expect(control.calls[0]).toContain('"url":"https://shop.example:4004"');
  });

  test("is no twin of another: neither its name nor its address", async () => {
    const { url } = await start();
    for (const [name, at, detail] of [
      ["b", "http://127.0.0.1:4009", 'There is a replica "b" already.'],
      ["d", "http://127.0.0.1:4002", "http://127.0.0.1:4002 is replica b already: the same copy twice"],
      ["d", "http://[::1]:4002", "http://[::1]:4002 is replica b already"],
      ["d", "http://127.0.0.99:4002", "http://127.0.0.99:4002 is replica b already"],
    ] as const) {
      const answer = await add(url, { name, url: at });
      expect([answer.status, answer.json["code"]]).toEqual([409, "GW_CONFLICT"]);
      expect(answer.json["detail"]).toContain(detail);
    }
  });

  test("cannot lead to the gateway itself, to where clouds keep credentials, or to nobody", async () => {
    const { url, control } = await start();
    const { port } = new URL(url);
    const refused = "is no address of a backend: it is refused";
    for (const [at, detail] of [
      ["http://169.254.169.254", `169.254.169.254 ${refused}`],
      ["http://169.254.1.1:80", refused],
      ["http://0xa9fea9fe", refused],
      ["http://[fe80::1]:80", refused],
      ["http://[::ffff:169.254.169.254]", refused],
      ["http://[64:ff9b::a9fe:a9fe]", refused],
      ["http://[fd00:ec2::254]", refused],
      ["http://[fd20:ce::254]", refused],
      ["http://[::169.254.169.254]", refused],
      ["http://[::127.0.0.1]", refused],
      ["http://[64:ff9b:1::a9fe:a9fe]", refused],
      ["http://[::ffff:0:169.254.169.254]", refused],
      ["http://[2002:a9fe:a9fe::]", refused],
      ["http://[fec0::1]", refused],
      ["http://2852039166", refused],
      ["http://0251.0376.0251.0376", refused],
      ["http://169.254.43518", refused],
      ["http://100.100.100.200", refused],
      ["http://0.0.0.0:4004", refused],
      ["http://[::]:4004", refused],
      ["http://224.0.0.1", refused],
      ["http://255.255.255.255", refused],
      ["http://both.example", `both.example (169.254.169.254) ${refused}`],
      ["http://nobody.example", "the name nobody.example is not known"],
      [`http://127.0.0.1:${port}`, "is this gateway itself"],
      [`http://localhost.:${port}`, "the name localhost. is not known"],
      ["http://127.0.0.1:8080", "is this gateway itself"],
      ["http://[::1]:8080", "is this gateway itself"],
      ["https://169.254.169.254", refused],
      ["https://both.example", `both.example (169.254.169.254) ${refused}`],
      [`https://127.0.0.1:${port}`, "is this gateway itself"],
      ["ftp://127.0.0.1", "is not a URL such as http://127.0.0.1:4001"],
      ["http://user:canary@127.0.0.1:4004", "has credentials in it"],
      ["http://127.0.0.1:4004/x", "has a path"],
      ["http://127.0.0.1:4004?x", "has a path"],
      ["nonsense", "is not a URL"],
    ] as const) {
      const answer = await add(url, { name: "d", url: at });
      expect([at, answer.status, answer.json["code"]]).toEqual([at, 400, "GW_BAD_REQUEST"]);
      expect(answer.json["detail"], at).toContain(detail);
      expect(answer.text).not.toContain("canary");
    }
    expect(control.calls).toEqual([]);
  });

  test("may not run programs or replace folders where nobody has to show who he is", async () => {
    const { url, control } = await start({ mayRunPrograms: false });
    const sound = { name: "d", url: "http://127.0.0.1:4004" };
    for (const more of [{ state: "/srv/d" }, { stop: ["x"], start: ["y"] }, { stop: [] }]) {
      const answer = await add(url, { ...sound, ...more });
      expect([answer.status, answer.json["code"]]).toEqual([
        "stop" in more && more.stop.length === 0 ? 400 : 403,
        "stop" in more && more.stop.length === 0 ? "GW_BAD_REQUEST" : "GW_FORBIDDEN",
      ]);
    }
    expect(control.calls).toEqual([]);
    expect((await add(url, sound)).status).toBe(202);
  });

  test("has no other keys than those of the configuration, each in its form", async () => {
    const { url, control } = await start();
    const sound = { name: "d", url: "http://127.0.0.1:4004" };
    for (const [body, detail] of [
      [{ name: "d" }, "url: is missing"],
      [{ url: "http://127.0.0.1:4004" }, "name: is missing"],
      [{ ...sound, name: "a/b" }, 'name: "a/b" has to be 1 to 63 of letters'],
      [{ ...sound, naem: "d" }, 'naem: is not known here (did you mean "name"?)'],
      [{ ...sound, onReturn: "trust" }, "onReturn: is not known here"],
      [{ ...sound, state: "srv/d" }, 'state: "srv/d" has to be an absolute path'],
      [{ ...sound, stop: ["x"] }, "stop and start mean nothing without each other"],
      [{ ...sound, stop: "x", start: "y" }, "stop: expected a list"],
      [{ ...sound, witness: ["/x"] }, 'witness[0]: "/x" is not a request such as "GET /health"'],
      [[], "The body has to be a JSON object"],
    ] as const) {
      const answer = await add(url, body);
      expect([body, answer.status, answer.json["code"]]).toEqual([body, 400, "GW_BAD_REQUEST"]);
      expect(answer.json["detail"]).toContain(detail);
    }
    expect(control.calls).toEqual([]);
  });
});

describe("the stream", () => {
  /** Reads events until `count` came. */
  function events(url: string, count: number, headers: OutgoingHttpHeaders = {}): Promise<string[]> {
    return new Promise((resolve, reject) => {
      const sent = request(url, { headers, agent: false }, (answer) => {
        let text = "";
        answer.on("data", (chunk: Buffer) => {
          text += chunk.toString();
          const whole = text.split("\n\n").filter((part) => part.startsWith("id: "));
          if (whole.length < count || !text.endsWith("\n\n")) return;
          sent.destroy();
          resolve(whole);
        });
      });
      sent.on("error", (error: NodeJS.ErrnoException) => error.code !== "ECONNRESET" && reject(error));
      sent.end();
    });
  }

  test("sends rows as events and resumes behind the last one seen", async () => {
    const { url } = await start();
    const rows = await events(`${url}/v1/log/stream?from=4931584`, 3);
    expect(rows[0]).toMatch(/^id: 4931584\nevent: entry\ndata: \{"position":4931584,/);
    expect(rows[2]).toMatch(/^id: 4931588\nevent: tick\n/);
    expect(rows.join()).not.toContain("canary");
    const rest = await events(`${url}/v1/log/stream?from=1`, 2, { "last-event-id": "4931584" });
    expect(rest[0]).toMatch(/^id: 4931585\n/);
  });

  test("close ends streams and idle keep-alive connections at once", async () => {
    const { url, admin } = await start();
    const { port } = new URL(url);
    const sockets = [
      "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
      "GET /v1/log/stream?from=0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
      "POST /v1/pause HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n{",
    ].map((text) => {
      const socket = connect(Number(port), "127.0.0.1");
      socket.on("error", () => undefined);
      socket.write(text);
      return socket.resume();
    });
    await Promise.all(sockets.map((socket) => new Promise((resolve) => socket.once("data", resolve))));
    const ended = Promise.all(sockets.map((socket) => new Promise((resolve) => socket.once("close", resolve))));
    const begin = performance.now();
    await Promise.all([admin.close(), admin.close()]);
    expect(performance.now() - begin).toBeLessThan(3000);
    await ended;
  });
});

describe("who may ask", () => {
  const token = new Secret("correct-horse-battery-staple");
  const bearer = { authorization: "Bearer correct-horse-battery-staple" };

  test("with a token every request shows it, but for /livez and /readyz", async () => {
    const { url } = await start({ token });
    for (const path of ["/livez", "/readyz"]) expect((await call(url + path)).status).toBe(200);
    for (const path of ["/", "/metrics", "/v1/status", "/v1/nothing"]) {
      const answer = await call(url + path);
      expect([path, answer.status, answer.json["code"]]).toEqual([path, 401, "GW_UNAUTHORIZED"]);
      expect(answer.headers["www-authenticate"]).toMatch(/^Bearer/);
    }
    expect((await call(`${url}/v1/status`, "GET", bearer)).status).toBe(200);
    for (const wrong of [
      "Bearer correct-horse-battery-stapl",
      "Bearer correct-horse-battery-staple2",
      "Basic correct-horse-battery-staple",
      "correct-horse-battery-staple",
      "Bearer ",
      "Bearer x correct-horse-battery-staple",
    ]) {
      expect([wrong, (await call(`${url}/v1/status`, "GET", { authorization: wrong })).status]).toEqual([wrong, 401]);
    }
    expect((await call(`${url}/v1/pause`, "POST", json, "{}")).status).toBe(401);
  });

  test("/metrics is open where the configuration says so", async () => {
    const { url } = await start({ token, openMetrics: true });
    expect((await call(`${url}/metrics`)).status).toBe(200);
    expect((await call(`${url}/v1/status`)).status).toBe(401);
  });

  test("on loopback a Host that is a name of another machine is refused (DNS rebinding)", async () => {
    const { url } = await start();
    const { port } = new URL(url);
    for (const host of [
      `127.0.0.1:${port}`,
      `localhost:${port}`,
      "localhost",
      `[::1]:${port}`,
      "10.1.2.3",
      "a.localhost",
    ]) {
      expect([host, (await call(`${url}/v1/status`, "GET", { host })).status]).toEqual([host, 200]);
    }
    for (const host of [`evil.example:${port}`, "localhost.evil.example", "127.0.0.1.evil.example", "localhost@evil"]) {
      const answer = await call(`${url}/v1/status`, "GET", { host });
      expect([host, answer.status, answer.json["code"]]).toEqual([host, 403, "GW_FORBIDDEN"]);
    }
    // A probe asks by whatever name, and learns nothing.
    expect((await call(`${url}/livez`, "GET", { host: "gateway.internal" })).status).toBe(200);
  });

  test("pages of other origins are refused, reading or writing", async () => {
    const { url, control } = await start();
    for (const origin of ["http://evil.example", "null", "https://127.0.0.1:1", url.replace("http:", "https:")]) {
      expect([origin, (await call(`${url}/v1/status`, "GET", { origin })).status]).toEqual([origin, 403]);
      expect([origin, (await call(`${url}/v1/pause`, "POST", { ...json, origin }, "{}")).status]).toEqual([
        origin,
        403,
      ]);
    }
    expect(
      (await call(`${url}/v1/status`, "GET", { "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors" })).status,
    ).toBe(403);
    expect((await call(`${url}/v1/status`, "GET", { origin: url })).status).toBe(200);
    expect(control.calls).toEqual([]);
  });

  test("nothing a browser page can post without a preflight is taken", async () => {
    const { url, control } = await start();
    const forms: [OutgoingHttpHeaders, string | undefined][] = [
      [{ "content-type": "text/plain" }, '{"reason":"x"}'],
      [{ "content-type": "application/x-www-form-urlencoded" }, "reason=x"],
      [{ "content-type": "multipart/form-data; boundary=x" }, "--x--"],
      [{ "content-type": "application/jsonp" }, "{}"],
      [{}, '{"reason":"no type"}'],
      [{ referer: "http://evil.example/" }, undefined],
      [{ cookie: "a=b" }, undefined],
      [{ "sec-fetch-site": "none" }, undefined],
    ];
    for (const [headers, body] of forms) {
      const answer = await call(`${url}/v1/pause`, "POST", headers, body);
      expect([headers, answer.status]).toEqual([headers, 403]);
    }
    expect(control.calls).toEqual([]);
    for (const headers of [{ "x-gateway-request": "1" }, {}]) {
      expect((await call(`${url}/v1/pause`, "POST", { ...headers, "content-length": 0 })).status).toBe(200);
    }
    expect(control.calls).toHaveLength(2);
  });

  test("there is no CORS", async () => {
    const { url } = await start();
    const answer = await call(`${url}/v1/status`, "OPTIONS", {
      origin: "http://evil.example",
      "access-control-request-method": "POST",
    });
    expect(answer.status).toBe(403);
    for (const path of ["/v1/status", "/livez"]) {
      const names = Object.keys((await call(url + path, "GET", { origin: url })).headers);
      expect(names.filter((name) => name.startsWith("access-control"))).toEqual([]);
    }
  });

  test("bodies are small", async () => {
    const { url, control } = await start();
    const answer = await call(`${url}/v1/pause`, "POST", json, JSON.stringify({ reason: "x".repeat(20_000) }));
    expect([answer.status, answer.json["code"]]).toEqual([413, "GW_BODY_TOO_LARGE"]);
    expect(control.calls).toEqual([]);
  });

  test("one address can take its share of connections, and no more", async () => {
    const { url } = await start();
    const port = Number(new URL(url).port);
    const greedy = await Promise.all(
      Array.from({ length: adminConnectionsPerAddress + 20 }, () => RawClient.connect({ port })),
    );
    try {
      await waitFor(() => greedy.filter(({ isClosed, isEnded }) => isClosed || isEnded).length === 20, {
        what: "twenty refused ones",
      });
      const other = await RawClient.connect({ port, from: "127.0.0.2" });
      other.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
      expect((await other.answer()).status).toBe(200);
      other.close();
    } finally {
      for (const client of greedy) client.close();
    }
    await waitFor(async () => (await call(`${url}/livez`)).status === 200, { what: "the share to be given back" });
  });

  test("a head that trickles is cut, whoever sends it", async () => {
    const { url } = await start({ headersMs: 300, token });
    const client = await RawClient.connect({ port: Number(new URL(url).port) });
    client.send("GET /v1/status HTTP/1.1\r\nHost: localhost\r\n");
    const trickle = setInterval(() => client.send("X-A: 1\r\n"), 20);
    try {
      expect((await client.answer()).status).toBe(408);
      await client.ended();
    } finally {
      clearInterval(trickle);
      client.close();
    }
  });

  test("the token is compared by what takes the same time for every guess, and never taken from a target", async () => {
    const { url } = await start({ token });
    const text = token.reveal();
    const compare = vi.spyOn(crypto, "timingSafeEqual");
    syncBuiltinESMExports();
    try {
      for (const guess of ["", "x", text.slice(0, -1), `${text}x`, text, "y".repeat(5000)]) {
        await call(`${url}/v1/status`, "GET", { authorization: `Bearer ${guess}` });
      }
      // Hashes: neither length nor common beginnings show.
      const lengths = compare.mock.calls.map(([one, other]) => [one.byteLength, other.byteLength]);
      expect(lengths).toEqual(Array.from({ length: 6 }, () => [32, 32]));
    } finally {
      compare.mockRestore();
      syncBuiltinESMExports();
    }
    for (const query of [`token=${text}`, `access_token=${text}`, `authorization=Bearer%20${text}`]) {
      expect((await call(`${url}/v1/status?${query}`)).status).toBe(401);
    }
    const [, port = ""] = /:(\d+)$/.exec(url) ?? [];
    expect((await call(`http://${text}:${text}@127.0.0.1:${port}/v1/status`)).status).toBe(401);
  });

  test("answers are not kept, sniffed or framed", async () => {
    const { url } = await start();
    const { headers } = await call(`${url}/v1/status`);
    expect(headers).toMatchObject({ "cache-control": "no-store", "x-content-type-options": "nosniff" });
    expect(headers["content-security-policy"]).toContain("frame-ancestors 'none'");
  });
});
