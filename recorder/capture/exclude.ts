// Which paths of a tree are left out of a capture: patterns such as `cache/**`, `**/*.tmp`, `logs`, against the whole path from the root.

/** `*` and `?` stay within a name, `**` stands for any number of names; what is below an excluded folder is excluded with it. */
export function createExclude(patterns: readonly string[]): (path: string) => boolean {
  const tests = patterns.map((pattern) => new RegExp(`^${sourceOf(pattern)}(?:/|$)`, "s"));
  return (path) => tests.some((test) => test.test(path));
}

function sourceOf(pattern: string): string {
  // Paths are bytes (latin1); patterns come from a file of UTF-8.
  const bytes = Buffer.from(pattern.replace(/^\.?\/+/, "").replace(/\/+$/, ""), "utf8").toString("latin1");
  const names = bytes.split("/");
  return names
    .map((name, i) => {
      const isLast = i === names.length - 1;
      if (name === "**") return isLast ? "[^/]+" : "(?:[^/]+/)*";
      const source = name
        .replaceAll(/[$()+.[\\\]^{|}]/g, String.raw`\$&`)
        .replaceAll(/\*+/g, "[^/]*")
        .replaceAll("?", "[^/]");
      return isLast ? source : `${source}/`;
    })
    .join("");
}
