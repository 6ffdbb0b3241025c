import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, onTestFinished, test } from "vitest";
import { demoRules } from "../../../gateway/demo/rules.ts";
import { createProcessLaunch } from "../../../gateway/launch/process.ts";
import { parseRules } from "../../../rules/rule.ts";
import { temporaryFolder } from "../../helpers/folder.ts";

test("accounts are opened, filled, moved between, changed and closed", async () => {
  const { ask } = await open();
  expect(await ask("POST", "/accounts", { owner: "ada" })).toEqual([201, { id: 1, owner: "ada", balance: 0 }]);
  expect(await ask("POST", "/accounts", { owner: "bob" })).toEqual([201, { id: 2, owner: "bob", balance: 0 }]);
  expect(await ask("POST", "/accounts/1/deposits", { amount: 5 })).toEqual([200, { id: 1, owner: "ada", balance: 5 }]);
  expect(await ask("POST", "/transfers", { from: 1, to: 2, amount: 3 })).toEqual([
    200,
    { from: { id: 1, owner: "ada", balance: 2 }, to: { id: 2, owner: "bob", balance: 3 } },
  ]);
  expect(await ask("POST", "/transfers", { from: 1, to: 2, amount: 3 })).toEqual([
    409,
    { error: "account 1 holds only 2" },
  ]);
  expect(await ask("PUT", "/accounts/2", { owner: "bo" })).toEqual([200, { id: 2, owner: "bo", balance: 3 }]);
  expect(await ask("DELETE", "/accounts/1")).toEqual([204, null]);
  expect(await ask("POST", "/accounts", { owner: "cid" })).toEqual([201, { id: 3, owner: "cid", balance: 0 }]);
  expect(await ask("GET", "/accounts")).toEqual([
    200,
    [
      { id: 2, owner: "bo", balance: 3 },
      { id: 3, owner: "cid", balance: 0 },
    ],
  ]);
});

test("orders are placed and changed", async () => {
  const { ask } = await open();
  expect(await ask("POST", "/orders", { item: "tea", count: 2 })).toEqual([201, { id: 1, item: "tea", count: 2 }]);
  expect(await ask("POST", "/orders", { item: "mug" })).toEqual([201, { id: 2, item: "mug", count: 1 }]);
  expect(await ask("PUT", "/orders/1", { item: "tea", count: 3 })).toEqual([200, { id: 1, item: "tea", count: 3 }]);
  expect((await ask("GET", "/orders"))[1]).toEqual([
    { id: 1, item: "tea", count: 3 },
    { id: 2, item: "mug", count: 1 },
  ]);
});

test("what is wrong is refused and changes nothing", async () => {
  const { ask, file } = await open();
  await ask("POST", "/accounts", { owner: "ada" });
  const before = file();
  for (const [method, path, body, status] of [
    ["POST", "/accounts", undefined, 400],
    ["POST", "/accounts", {}, 400],
    ["POST", "/accounts/1/deposits", { amount: -5 }, 400],
    ["POST", "/accounts/1/deposits", { amount: 0.5 }, 400],
    ["POST", "/transfers", { from: 1, to: 1, amount: 1 }, 400],
    ["POST", "/accounts/01/deposits", { amount: 5 }, 404],
    ["POST", "/accounts/9/deposits", { amount: 5 }, 404],
    ["GET", "/accounts/constructor", undefined, 404],
    ["PATCH", "/accounts/1", {}, 404],
    ["GET", "/", undefined, 404],
    ["POST", "/accounts", { owner: "x".repeat(70_000) }, 413],
  ] as const) {
    expect([method, path, (await ask(method, path, body))[0]]).toEqual([method, path, status]);
  }
  expect(file()).toBe(before);
});

test("what was answered is there after kill -9, and equal states are equal files, whatever order led to them", async () => {
  const [a, b] = [await open(), await open()];
  for (const { ask } of [a, b]) {
    await ask("POST", "/accounts", { owner: "ada" });
    await ask("POST", "/accounts", { owner: "bob" });
  }
  await Promise.all(
    Array.from({ length: 50 }, (_, i) => a.ask("POST", `/accounts/${(i % 2) + 1}/deposits`, { amount: i + 1 })),
  );
  process.kill(a.pid(), "SIGKILL");
  for (let i = 49; i >= 0; i--) await b.ask("POST", `/accounts/${(i % 2) + 1}/deposits`, { amount: i + 1 });
  expect(a.file()).toBe(b.file());
  await a.restart();
  expect((await a.ask("GET", "/accounts"))[1]).toEqual((await b.ask("GET", "/accounts"))[1]);
});

test("its rules are valid, without a warning", () => {
  const { rules, warnings } = parseRules(demoRules, { file: "rules.yaml" });
  expect(warnings).toEqual([]);
  expect(rules.rules.map(({ name }) => name)).toContain("deposit");
});

async function open() {
  const folder = temporaryFolder("shop");
  const shop = fileURLToPath(new URL("../../../gateway/demo/shop.ts", import.meta.url));
  const launch = createProcessLaunch({
    name: "r1",
    command: [process.execPath, "--import", import.meta.resolve("tsx"), shop],
    cwd: folder,
    env: {},
    stateFolder: join(folder, "state"),
    ready: { method: "GET", path: "/health" },
    recordsFolder: join(folder, "records"),
    onOutput: () => {},
  });
  onTestFinished(() => launch.close());
  let life = await launch.start(AbortSignal.timeout(20_000));
  return {
    file: () => readFileSync(join(folder, "state/shop.json"), "utf8"),
    pid: () => Number(life.id.split(":")[1]),
    restart: async () => {
      await launch.stop(2_000);
      life = await launch.start(AbortSignal.timeout(20_000));
    },
    ask: async (method: string, path: string, body?: unknown): Promise<[status: number, body: unknown]> => {
      const answer = await fetch(life.url + path, {
        method,
        ...(body === undefined ? null : { body: JSON.stringify(body) }),
      });
      const text = await answer.text();
      return [answer.status, text === "" ? null : JSON.parse(text)];
    },
  };
}
