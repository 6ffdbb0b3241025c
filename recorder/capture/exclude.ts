// Which paths of a tree are left out of a capture: patterns such as `cache/**`, `**/*.tmp`, `logs`, against the whole path from the root.
// Matched by hand: names of files are the service's to choose, and a regular expression of several stars takes for ever over some of them.

/** `*` and `?` stay within a name, `**` stands for any number of names; what is below an excluded folder is excluded with it. */
export function createExclude(patterns: readonly string[]): (path: string) => boolean {
  const all = patterns.map(namesOf);
  return (path) => {
    const names = path.split("/");
    return all.some((pattern) => leadsInto(pattern, names));
  };
}

function namesOf(pattern: string): readonly string[] {
  // Paths are bytes (latin1); patterns come from a file of UTF-8.
  const bytes = Buffer.from(pattern.replace(/^\.?\/+/, "").replace(/\/+$/, ""), "utf8").toString("latin1");
  return bytes.split("/").map((name) => (name === "**" ? name : name.replaceAll(/\*+/g, "*")));
}

/** Whether the pattern names the path or a folder above it. */
function leadsInto(pattern: readonly string[], names: readonly string[]): boolean {
  // At the end `**` stands for one name at least, and what is below is left out anyhow.
  const parts = pattern.at(-1) === "**" ? [...pattern.slice(0, -1), "*"] : pattern;
  return walk(parts.length, names.length, {
    isStar: (part) => parts[part] === "**",
    isEqual: (part, name) => isNameLike(parts[part] ?? "", names[name] ?? ""),
    mayEndEarly: true,
  });
}

function isNameLike(pattern: string, name: string): boolean {
  return walk(pattern.length, name.length, {
    isStar: (part) => pattern[part] === "*",
    isEqual: (part, char) => pattern[part] === "?" || pattern[part] === name[char],
    mayEndEarly: false,
  });
}

interface Likeness {
  readonly isStar: (part: number) => boolean;
  readonly isEqual: (part: number, item: number) => boolean;
  /** Items may be left when all parts were found. */
  readonly mayEndEarly: boolean;
}

/** In at most parts × items steps: of several stars only the last one seen is ever taken further, as an earlier one could not lead to more. */
function walk(parts: number, items: number, { isStar, isEqual, mayEndEarly }: Likeness): boolean {
  let part = 0;
  let item = 0;
  let star = -1;
  let starItem = 0;
  for (;;) {
    if (part < parts && isStar(part)) {
      star = part;
      starItem = item;
      part += 1;
    } else if (part === parts && (mayEndEarly || item === items)) return true;
    else if (item < items && part < parts && isEqual(part, item)) {
      part += 1;
      item += 1;
    } else if (star !== -1 && starItem < items) {
      starItem += 1;
      item = starItem;
      part = star + 1;
    } else return false;
  }
}
