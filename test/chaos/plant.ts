// Changes one place of a program's text; refuses when the place is not there, or there twice: then the mutation has to be looked at.

import type { Mutation } from "./mutations.ts";

export function plant(
  text: string,
  { name, file, find, replace }: Pick<Mutation, "name" | "file" | "find" | "replace">,
): string {
  const parts = text.split(find);
  if (parts.length !== 2)
    throw new Error(`${name}: ${file} has ${parts.length - 1} places like \`${find}\`, and there has to be one`);
  if (find.includes("\n") || replace.includes("\n")) throw new Error(`${name}: a mutation is one line`);
  return parts.join(replace);
}
