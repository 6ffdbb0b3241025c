// gateway pause · resume: an operator stops replicated and only-once writes for a while; reads go on.

import type { Command } from "commander";
import type { Builder } from "./builder.ts";
import type { ClientOptions } from "./client.ts";

interface PauseOptions extends ClientOptions {
  readonly reason?: string;
}

export function addPause(program: Command, builder: Builder): void {
  const pause = builder
    .addClient(program, "pause", "Refuse writes with 503 until resumed", ['pause --reason "moving the database"'])
    .option("--reason <text>", "shown to whoever asks why");
  builder.action<PauseOptions>(pause, async (terminal, options) => {
    const { Client } = await import("./client.ts");
    const client = await Client.of(terminal, options);
    const answer = await client.post<{ paused: string | null }>(
      "/v1/pause",
      options.reason === undefined ? {} : { reason: options.reason },
    );
    if (terminal.isJson) terminal.printJson(answer);
    else terminal.print(`paused: ${answer.paused ?? ""}`);
  });
  const resume = builder.addClient(program, "resume", "Take writes again after a pause", ["resume"]);
  builder.action<ClientOptions>(resume, async (terminal, options) => {
    const { Client } = await import("./client.ts");
    const client = await Client.of(terminal, options);
    const answer = await client.post<{ paused: string | null }>("/v1/resume", {});
    if (terminal.isJson) terminal.printJson(answer);
    else terminal.print("resumed");
  });
}
