// gateway healthcheck: for containers without curl: exit code 0 when the gateway is ready, 1 when it is not.

import type { Command } from "commander";
import type { Builder } from "./builder.ts";
import type { ClientOptions } from "./client.ts";

interface HealthOptions extends ClientOptions {
  readonly live?: boolean;
  readonly for?: string;
}

const limitMs = 5000;

export function addHealthcheck(program: Command, builder: Builder): void {
  const command = builder
    .addClient(program, "healthcheck", "Ask whether the gateway is ready", ["healthcheck", "healthcheck --for writes"])
    .option("--live", "ask only whether it runs")
    .option("--for <class>", "reads or writes: be stricter");
  builder.action<HealthOptions>(command, async (terminal, options) => {
    const { Client } = await import("./client.ts");
    const client = await Client.of(terminal, options);
    const query = options.for === undefined ? "" : `?for=${encodeURIComponent(options.for)}`;
    const { status, body } = await client.probe(options.live === true ? "/livez" : `/readyz${query}`, limitMs);
    terminal.print(terminal.isJson ? body : `${status === 200 ? "ready" : "not ready"}: ${body}`);
    return status === 200 ? 0 : 1;
  });
}
