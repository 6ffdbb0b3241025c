// The schema read as a tree of keys: what environment variables can name, and what the printed defaults list.

import type { z } from "zod";

export interface Shape {
  readonly kind: "map" | "record" | "list" | "choice" | "leaf" | "none";
  /** Of a map. */
  readonly keys: ReadonlyMap<string, Shape>;
  /** Of a list or record. */
  readonly item: Shape | null;
  /** Of a choice. */
  readonly choices: readonly Shape[];
  /** A leaf that is written as a text, whatever it looks like (`0123`, `true`). */
  readonly isText: boolean;
  readonly isOptional: boolean;
  /** As a person would write it; undefined: none. */
  readonly fallback: unknown;
  readonly help: string;
}

interface Definition {
  readonly type: string;
  readonly innerType?: z.ZodType;
  readonly in?: z.ZodType;
  readonly shape?: Readonly<Record<string, z.ZodType>>;
  readonly element?: z.ZodType;
  readonly valueType?: z.ZodType;
  readonly options?: readonly z.ZodType[];
  readonly defaultValue?: unknown;
}

const texts: ReadonlySet<string> = new Set(["string", "enum", "template_literal"]);

export function shapeOf(schema: z.ZodType): Shape {
  const definition = schema._zod.def as unknown as Definition;
  const help = schema.description ?? "";
  const inner = definition.innerType ?? (definition.type === "pipe" ? definition.in : undefined);
  if (inner !== undefined) {
    const shape = shapeOf(inner);
    return {
      ...shape,
      isOptional: shape.isOptional || definition.type === "optional",
      fallback: isDefault(definition) ? definition.defaultValue : shape.fallback,
      help: help === "" ? shape.help : help,
    };
  }
  const keys = new Map(Object.entries(definition.shape ?? {}).map(([key, value]) => [key, shapeOf(value)]));
  const choices = (definition.options ?? []).map(shapeOf);
  const item = definition.element ?? definition.valueType;
  return {
    kind: kindOf(definition.type),
    keys,
    item: item === undefined ? null : shapeOf(item),
    choices,
    isText: texts.has(definition.type),
    isOptional: false,
    fallback: undefined,
    help,
  };
}

function isDefault({ type }: Definition): boolean {
  return type === "prefault" || type === "default";
}

function kindOf(type: string): Shape["kind"] {
  switch (type) {
    case "object":
      return "map";
    case "record":
      return "record";
    case "array":
      return "list";
    case "union":
      return "choice";
    case "never":
      return "none";
    default:
      return "leaf";
  }
}

/** Where a path of any case leads: its true spelling and the shapes that stand there; or how far it got. */
export function findShape(
  root: Shape,
  steps: readonly string[],
): { readonly path: readonly (string | number)[]; readonly shapes: readonly Shape[] } | { readonly known: string[] } {
  let shapes: readonly Shape[] = [root];
  const path: (string | number)[] = [];
  for (const step of steps) {
    const options = shapes.flatMap(alternatives);
    const found = options.map((shape) => child(shape, step)).filter((next) => next !== null);
    const first = found[0];
    if (first === undefined) return { known: options.flatMap((shape) => [...shape.keys.keys()]) };
    path.push(first.step);
    shapes = found.filter((next) => next.step === first.step).map((next) => next.shape);
  }
  return { path, shapes: shapes.flatMap(alternatives) };
}

function alternatives(shape: Shape): readonly Shape[] {
  return shape.kind === "choice" ? shape.choices.flatMap(alternatives) : [shape];
}

function child(shape: Shape, step: string): { readonly step: string | number; readonly shape: Shape } | null {
  if (shape.kind === "map") {
    for (const [key, value] of shape.keys)
      if (key.toLowerCase() === step.toLowerCase()) return { step: key, shape: value };
  }
  if (shape.item === null) return null;
  if (shape.kind === "list") return /^\d{1,4}$/.test(step) ? { step: Number(step), shape: shape.item } : null;
  return shape.kind === "record" ? { step, shape: shape.item } : null;
}
