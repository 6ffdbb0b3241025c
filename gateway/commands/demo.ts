// gateway demo: the gateway in front of three copies of a small bundled service, on this machine alone.

import { basename, join, relative, resolve } from "node:path";
import type { Command } from "commander";
import type { Status } from "../status.ts";
import type { Builder } from "./builder.ts";
import type { RunningGateway } from "../gateway.ts";
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
    .add(program, "demo", "Try it: three copies of a small shop behind the gateway", [
      "demo",
      "demo --listen 127.0.0.1:8081",
    ])
    .option("--listen <address>", `the front (default: ${listenDefault}, or a free port)`)
    .option("--admin <address>", `health, metrics and API (default: ${adminDefault}, or a free port)`)
    .option("--data <dir>", "where log and copies lie (default: ./data/demo)");
  builder.action<DemoOptions>(command, (terminal, options) => demo(terminal, options, builder));
}

async function demo(terminal: Terminal, options: DemoOptions, { parts }: Builder): Promise<number> {
  const { mkdirSync, writeFileSync } = await import("node:fs");
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
    snapshots: { every: { entries: 1000, time: "10m", atLeast: "1m" }, store: "./snapshots" },
  };
  writeFileSync(join(data, "rules.yaml"), demoRules);
  writeFileSync(file, `# Written by \`gateway demo\` at each start.\n${stringify(config)}`);
  return serve(terminal, {
    config: loadConfig({ file, env: {}, cwd: terminal.cwd }),
    isNewLog: false,
    start: parts.start,
    more: (running, status) => hints(terminal, running, status, data),
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

function hints(terminal: Terminal, { front, admin }: RunningGateway, status: Status, data: string): string[] {
  const dim = (text: string): string => terminal.style("dim", text);
  const victim = status.replicas.find(({ pid }) => pid !== null);
  const where = admin === `http://${adminDefault}` ? "" : ` --admin ${admin}`;
  return [
    "",
    "Try:",
    `  curl -i ${front}/accounts -d '{"owner":"ada"}'`,
    `  curl -i ${front}/accounts/1/deposits -H 'Idempotency-Key: k1' -d '{"amount":5}'`,
    `  curl -i ${front}/accounts/1`,
    "",
    "The second one again: same answer, executed once. Then kill a copy and go on:",
    ...(victim === undefined
      ? []
      : [`  kill -9 ${victim.pid}`.padEnd(32) + dim(`# ${victim.name}; it is started again and catches up`)]),
    `  ${self()} status${where}`,
    "",
    dim(`All of it is in ${data}; remove that to begin anew.`),
    dim("Ctrl-C ends the gateway and the copies."),
  ];
}

/** How this program was called, as far as that can be typed again. */
function self(): string {
  const script = process.argv[1] ?? "gateway";
  return basename(script) === "gateway" ? "gateway" : `node ${relative(process.cwd(), script)}`;
}
