// Which gateway should feed which replica: a pure decision that every gateway makes alike from what it hears. Where two hear different things for a
// moment, both may want one replica; its cursor lets one of them have it.

export interface Feedable {
  readonly name: string;
  /** Gateways that may feed it, by name; empty: all. */
  readonly owners: readonly string[];
  /** The one gateway that starts it; null: it runs without us. */
  readonly home: string | null;
}

export interface Feeder {
  readonly boot: string;
  readonly name: string;
}

/**
 * The boot id of who should feed each replica; absent: nobody can. Whoever feeds one now keeps it, the rest goes to those that feed least, and where one
 * feeds two more than another could, one replica moves: one at a time, so that a gateway that joins takes over without a gap in service.
 */
export function assign(
  replicas: readonly Feedable[],
  gateways: readonly Feeder[],
  current: ReadonlyMap<string, string>,
): ReadonlyMap<string, string> {
  const feeders = gateways.toSorted((a, b) =>
    a.name === b.name ? (a.boot < b.boot ? -1 : 1) : a.name < b.name ? -1 : 1,
  );
  const able = (it: Feedable): readonly Feeder[] =>
    feeders.filter(({ name }) =>
      it.home === null ? it.owners.length === 0 || it.owners.includes(name) : it.home === name,
    );
  const target = new Map<string, string>();
  const load = new Map(feeders.map(({ boot }) => [boot, 0]));
  const loadOf = (boot: string): number => load.get(boot) ?? 0;
  const give = (replica: string, boot: string): void => {
    target.set(replica, boot);
    load.set(boot, loadOf(boot) + 1);
  };
  for (const it of replicas) {
    const now = current.get(it.name);
    if (now !== undefined && able(it).some(({ boot }) => boot === now)) give(it.name, now);
  }
  for (const it of replicas) {
    if (target.has(it.name)) continue;
    const [first, ...others] = able(it);
    if (first === undefined) continue;
    let least = first;
    for (const other of others) if (loadOf(other.boot) < loadOf(least.boot)) least = other;
    give(it.name, least.boot);
  }
  // From the end of the roster: the primary, which is its first, stays where it is for longest.
  for (const it of replicas.toReversed()) {
    const now = target.get(it.name);
    if (now === undefined || current.get(it.name) !== now) continue;
    const better = able(it).find(({ boot }) => loadOf(now) - loadOf(boot) >= 2);
    if (better === undefined) continue;
    target.set(it.name, better.boot);
    break;
  }
  return target;
}
