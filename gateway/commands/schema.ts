// gateway schema: JSON Schema (draft-07) of what may be written, for editors.

import { Argument } from "commander";
import type { Command } from "commander";
import type { Builder } from "./builder.ts";

export function addSchema(program: Command, builder: Builder): void {
  const command = builder
    .add(program, "schema", "Print the JSON Schema of gateway.yaml or of a rules file", [
      "schema > gateway.schema.json",
      "schema rules > rules.schema.json",
    ])
    .addArgument(new Argument("[of]", "of which file").choices(["config", "rules"]).default("config"))
    .addHelpText(
      "after",
      "\nEditors with a YAML language server read it from the file's first line:\n  # yaml-language-server: $schema=./gateway.schema.json",
    );
  builder.action(command, async (terminal, _options, of) => {
    if (of === "rules") {
      const { z } = await import("zod");
      const { rulesFileSchema } = await import("../../rules/rule.ts");
      terminal.print(
        JSON.stringify(
          z.toJSONSchema(rulesFileSchema, { target: "draft-7", io: "input", unrepresentable: "any" }),
          null,
          2,
        ),
      );
      return;
    }
    const { configJsonSchema } = await import("../config/defaults.ts");
    terminal.print(JSON.stringify(configJsonSchema(), null, 2));
  });
}
