// gateway adopt: makes copies of one existing service, before the first request goes through the gateway.

import { CommandError, printable, wrap } from "./terminal.ts";
import { carryOut, checkAttended, configOf, printField, recoveryOf } from "./recovering.ts";
import type { Command } from "commander";
import type { AdoptionPlan } from "../recoverplan.ts";
import type { Builder } from "./builder.ts";
import type { RecoveringOptions } from "./recovering.ts";
import type { Terminal } from "./terminal.ts";

interface AdoptOptions extends RecoveringOptions {
  readonly from: string;
}

export function addAdopt(program: Command, builder: Builder): void {
  const command = builder
    .add(program, "adopt", "Give every copy the state of one that exists", [
      "adopt --from a --dry-run",
      "adopt --from a",
    ])
    .requiredOption("--from <name>", "the replica whose state is the right one")
    .option("-c, --config <file>", "configuration (default: ./gateway.yaml)")
    .option("--data <dir>", "another data folder than the configuration's")
    .option("--dry-run", "print the plan and touch nothing")
    .option("--yes", "do not ask");
  command.addHelpText(
    "after",
    "\nBefore the first entry, while the gateway does not run. The states that are\nreplaced are kept aside.",
  );
  builder.action<AdoptOptions>(command, async (terminal, options) => {
    checkAttended(terminal, options);
    const config = await configOf(terminal, options);
    const recovery = await recoveryOf(builder);
    const plan = await recovery.planAdoption(config, { from: options.from });
    const known = plan.replicas.map(({ name }) => name);
    if (!known.includes(options.from)) {
      throw new CommandError(`There is no replica "${options.from}", only ${known.join(", ")}.`, "Check --from.", {
        exitCode: 2,
      });
    }
    const replaced = plan.replicas.filter(({ action }) => action === "replace").map(({ name }) => name);
    return carryOut(terminal, options, {
      plan,
      print: () => printPlan(terminal, plan),
      question: `The state of ${replaced.join(", ") || "nothing"} is replaced by that of ${plan.from}.`,
      instead: "Nothing was touched. See GW_RECOVERY_REFUSED in deploy/runbook.md",
      run: (run) => recovery.runAdoption(config, plan, run),
    });
  });
}

function printPlan(terminal: Terminal, plan: AdoptionPlan): void {
  terminal.print(terminal.style("bold", `copies of ${plan.from} for ${plan.service}`));
  printField(terminal, "state", plan.source);
  terminal.print("");
  terminal.table(
    [{ title: "NAME" }, { title: "ACTION" }],
    plan.replicas.map(({ name, action }) => [name, action]),
  );
  for (const { name, why } of plan.replicas) {
    if (why === "") continue;
    for (const line of wrap(printable(`${name}: ${why}`), terminal.columns - 2)) terminal.print(`  ${line}`);
  }
  if (plan.refused === null && plan.warnings.length > 0) terminal.print("");
}
