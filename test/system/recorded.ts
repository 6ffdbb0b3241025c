// What tests of snapshots and recoveries share: the bundled shop as a backend whose state is one file, a reference copy of it, and the command line.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Client, request } from "undici";
import { onTestFinished } from "vitest";
import { createFolder, endWithUs, removeFolder } from "../helpers/folder.ts";
import { freePort } from "../helpers/servers.ts";
import { waitFor } from "../helpers/wait.ts";

export type { Ran } from "../helpers/cli.ts";
export { runCli } from "../helpers/cli.ts";

const program = fileURLToPath(new URL("../../dist/gateway/demo/shop.js", import.meta.url));
/** Equal states are equal files, whatever way led to them. */
export const demoShop: readonly string[] = [process.execPath, program];

export interface Reference {
  send(method: "GET" | "POST" | "PUT" | "DELETE", path: string, body: unknown): Promise<number>;
  /** Ends it; its state. */
  stop(): Promise<string>;
}

/** One copy without any gateway, that is told what to execute. */
export async function startReference(): Promise<Reference> {
  const folder = createFolder("reference");
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const child = spawn(process.execPath, [program], {
    env: { ...process.env, PORT: String(port), STATE_DIR: folder },
    stdio: "ignore",
  });
  if (child.pid !== undefined) child.once("exit", endWithUs(child.pid));
  onTestFinished(() => {
    child.kill("SIGKILL");
    removeFolder(folder);
  });
  await waitFor(async () => (await request(`${url}/health`)).body.dump().then(() => true), { what: "the reference" });
  const client = new Client(url);
  return {
    async send(method, path, body) {
      const answer = await client.request({
        method,
        path,
        headers: { "content-type": "application/json" },
        body: body === null ? null : JSON.stringify(body),
      });
      await answer.body.dump();
      return answer.statusCode;
    },
    async stop() {
      await client.close();
      const ended = once(child, "exit");
      child.kill("SIGTERM");
      await ended;
      return readFileSync(join(folder, "shop.json"), "utf8");
    },
  };
}
