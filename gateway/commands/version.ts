// gateway version: which program this is, and what runs it.

import type { Command } from "commander";
import type { Builder } from "./builder.ts";

export function addVersion(program: Command, builder: Builder): void {
  const command = builder.add(program, "version", "Print the version", []);
  builder.action(command, async (terminal) => {
    const { programVersion } = await import("../config/version.ts");
    const facts = { version: programVersion(), node: process.version, platform: `${process.platform}-${process.arch}` };
    if (terminal.isJson) terminal.printJson(facts);
    else terminal.print(`br2k-gateway ${facts.version} (node ${facts.node}, ${facts.platform})`);
  });
}
