// What `gateway check --print-defaults` and `gateway schema config` show: the schema as a person and as an editor read it.

import { stringify } from "yaml";
import { z } from "zod";
import { configSchema } from "./schema.ts";
import { shapeOf } from "./shape.ts";
import type { Shape } from "./shape.ts";

const widthMax = 80;

/** A gateway.yaml that says what an empty one means: every key, its default, its help. Keys without default are commented. */
export function printDefaults(): string {
  const root = shapeOf(configSchema);
  const later = [...root.keys].filter(([, shape]) => shape.kind === "none").map(([key]) => key);
  return [
    "# Every key of gateway.yaml, with the value it has where nothing is written.",
    "# Commented keys have none. ${VAR} and ${VAR:-x} come from the environment, where",
    "# GATEWAY_LOG__MAX overrides log.max; flags override both.",
    "",
    ...linesOf(root, "", ""),
    "",
    `# Not built yet: ${later.join(", ")}`,
    "",
  ].join("\n");
}

/** The defaults as data. */
export function defaultValues(): unknown {
  return valueOf(shapeOf(configSchema));
}

/** JSON Schema draft-07 of what may be written, for editors. */
export function configJsonSchema(): unknown {
  return z.toJSONSchema(configSchema, { target: "draft-7", io: "input", unrepresentable: "any" });
}

/** `mark` is "# " inside of what is commented as a whole. */
function linesOf(map: Shape, indent: string, mark: string): string[] {
  return [...map.keys].flatMap(([key, shape]) => {
    if (shape.kind === "none") return [];
    if (shape.kind === "choice" && shape.choices.some((choice) => choice.kind === "map")) {
      return choiceLines(key, shape, indent);
    }
    if (shape.kind === "map") {
      const inner = mark === "" && shape.isOptional ? "# " : mark;
      return [line(indent, inner, `${key}:`, shape.help, mark), ...linesOf(shape, `${indent}  `, inner)];
    }
    const isAbsent = shape.fallback === undefined;
    const value = isAbsent ? "" : ` ${flow(shape.fallback)}`;
    return [line(indent, isAbsent ? "# " : mark, `${key}:${value}`, shape.help, mark)];
  });
}

/** Forms of one key, each commented: there is no default for the copies of a service. */
function choiceLines(key: string, shape: Shape, indent: string): string[] {
  return shape.choices.flatMap((choice, i) => {
    const map = choice.kind === "list" ? choice.item : choice;
    const head = line(indent, "# ", `${key}:`, i === 0 ? shape.help : "or");
    const lines = map === null ? [] : linesOf(map, `${indent}  `, "# ");
    if (choice.kind === "list" && lines[0] !== undefined) lines[0] = lines[0].replace("#   ", "# - ");
    return [head, ...lines];
  });
}

function line(indent: string, mark: string, text: string, help: string, above = mark): string {
  // The mark stands first, so that taking it away leaves the right depth.
  const left = `${mark}${indent}${text}`;
  if (help === "") return left;
  const beside = `${left.padEnd(32)} # ${help}`;
  return beside.length <= widthMax ? beside : `${above}${indent}# ${help}\n${left}`;
}

function flow(value: unknown): string {
  return stringify(value, { collectionStyle: "flow", lineWidth: 0 }).trim();
}

function valueOf(shape: Shape): unknown {
  if (shape.kind !== "map") return shape.fallback;
  if (shape.isOptional) return undefined;
  return Object.fromEntries([...shape.keys].map(([key, inner]) => [key, valueOf(inner)]));
}
