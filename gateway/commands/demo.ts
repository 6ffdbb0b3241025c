// gateway demo: the gateway in front of three copies of a small bundled service, on this machine alone.

import type { Command } from "commander";
import type { Builder } from "./builder.ts";
import type { RunningGateway } from "./serve.ts";
import type { Terminal } from "./terminal.ts";

interface DemoOptions {
  readonly listen?: string;
  readonly admin?: string;
  readonly data?: string;
}

const listenDefault = "127.0.0.1:8080";
const adminDefault = "127.0.0.1:9070";

export function addDemo(program: Command, builder: Builder): void {
  const command = builder
    .add(program, "demo", "Try it: three copies of a small shop behind the gateway", ["demo", "demo --listen 127.0.0.1:8081"])
    .option("--listen <address>", `the front (default: ${listenDefault}, or a free port)`)
    .option("--admin <address>", `health, metrics and API (default: ${adminDefault}, or a free port)`)
    .option("--data <dir>", "where log and copies lie (default: ./data/demo)");
  builder.action<DemoOptions>(command, (terminal, options) => demo(terminal, options, builder));
}

async function demo(terminal: Terminal, options: DemoOptions, { parts }: Builder): Promise<number> {
  const { mkdirSync, writeFileSync } = await import("node:fs");
  const { join, resolve } = await import("node:path");
  const { stringify } = await import("yaml");
  const { loadConfig } = await import("../config.ts");
  const { demoRules } = await import("../demo/rules.ts");
  const { serve } = await import("./serve.ts");
  const data = resolve(terminal.cwd, options.data ?? "data/demo");
  const listen = options.listen ?? (await freeOr(terminal, listenDefault));
  const admin = options.admin ?? (await freeOr(terminal, adminDefault));
  mkdirSync(data, { recursive: true });
  // Written out, so that `gateway check`, `explain` and `status` can be tried on them with -c.
  const file = join(data, "gateway.yaml");
  const config = {
    version: 1,
    service: "shop",
    listen,
    admin: { listen: admin },
    data: "./gateway",
    rules: "./rules.yaml",
    replicas: { count: 3, command: shopCommand(), state: "./state" },
  };
  writeFileSync(join(data, "rules.yaml"), demoRules);
  writeFileSync(file, `# Written by \`gateway demo\` at each start.\n${stringify(config)}`);
  return serve(terminal, {
    config: loadConfig({ file, env: {}, cwd: terminal.cwd }),
    isNewLog: false,
    start: parts.start,
    more: (running) => hints(terminal, running, data),
  });
}

/** The compiled shop beside this file; with sources, through tsx. */
function shopCommand(): string[] {
  const isCompiled = import.meta.url.endsWith(".js");
  const path = decodeURIComponent(new URL(`../demo/shop.${isCompiled ? "js" : "ts"}`, import.meta.url).pathname);
  return isCompiled ? [process.execPath, path] : [process.execPath, "--import", "tsx", path];
}

/** The usual address, or a free port where another program has it. */
async function freeOr(terminal: Terminal, address: string): Promise<string> {
  const { createServer } = await import("node:net");
  const [host = "", port = ""] = address.split(":");
  const isFree = await new Promise<boolean>((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen({ host, port: Number(port) }, () => server.close(() => resolve(true)));
  });
  if (isFree) return address;
  terminal.note(`${address} is in use: taking a free port instead`);
  return `${host}:0`;
}

function hints(terminal: Terminal, { front, admin }: RunningGateway, data: string): string[] {
  const dim = (text: string): string => terminal.style("dim", text);
  return [
    "",
    "Try:",
    `  curl -i ${front}/orders -d '{"item":"tea","count":2}'`,
    `  curl -i ${front}/orders`,
    `  curl -i ${front}/orders -H 'Idempotency-Key: k1' -d '{"item":"mug"}'   ${dim("# twice")}`,
    "",
    `Kill a copy (its pid is in the status), order more, and watch it catch up:`,
    `  npx gateway status --admin ${admin}`,
    `  kill -9 $(curl -s ${admin}/v1/replicas/r2 | sed 's/.*"pid":\\([0-9]*\\).*/\\1/')`,
    "",
    dim(`Everything is in ${data}; remove it to begin anew. Ctrl-C ends the gateway and the copies.`),
  ];
}
