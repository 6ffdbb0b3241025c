// gateway audit: all copies compare their states at one position; equal, or who is not.

import { finish, noWait } from "./operation.ts";
import type { Command } from "commander";
import type { Operation } from "../status.ts";
import type { Builder } from "./builder.ts";
import type { WaitOptions } from "./operation.ts";

export function addAudit(program: Command, builder: Builder): void {
  const command = noWait(
    builder.addClient(program, "audit", "Compare the states of all copies; exit code 3 when they differ", [
      "audit",
      "audit --json",
    ]),
  );
  builder.action<WaitOptions>(command, async (terminal, options) => {
    const { Client } = await import("./client.ts");
    const client = await Client.of(terminal, options);
    return finish(terminal, client, await client.post<Operation>("/v1/audit", {}), options);
  });
}
