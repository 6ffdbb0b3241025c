import { Contract, ContractFactory, id as keccakOfText, Interface, JsonRpcProvider, Wallet, ZeroHash } from "ethers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { abi, bytecode } from "../../../recorder/contract/artifact.ts";
import { developmentKeys, startAnvil } from "../../helpers/anvil.ts";
import type { BaseContract, ContractTransactionReceipt, ContractTransactionResponse } from "ethers";
import type { Anvil } from "../../helpers/anvil.ts";

/** Longer addresses of stores are rare; each byte costs 24 gas. */
const usualUri = "s3://company-snapshots-eu-central-1/production/shop/replicas";
const contractInterface = new Interface(abi);

/** What it reverts with, such as `NotPublisher(0x…)`. */
const refusal = async (work: Promise<unknown>): Promise<string> => {
  const error = await work.then(
    () => null,
    (reason: unknown) =>
      reason as { readonly data?: string; readonly info?: { readonly error?: { readonly data?: string } } },
  );
  const parsed = contractInterface.parseError(error?.data ?? error?.info?.error?.data ?? "0x");
  if (parsed === null) throw new Error("it did not revert with an error of the contract", { cause: error });
  return `${parsed.name}(${parsed.args.join(",")})`;
};

const values = (
  version: number,
  change: { position?: number; manifest?: string; previous?: string; uri?: string } = {},
) => [
  version,
  change.position ?? (version + 1) * 4096,
  change.manifest ?? keccakOfText(`manifest ${version}`),
  change.previous ?? (version === 0 ? ZeroHash : keccakOfText(`manifest ${version - 1}`)),
  keccakOfText(`state ${version}`),
  change.uri ?? usualUri,
];

describe("the contract", () => {
  let anvil: Anvil;
  let provider: JsonRpcProvider;
  let address: string;
  let wallets: readonly Wallet[];
  let services = 0;

  beforeAll(async () => {
    anvil = await startAnvil();
    provider = new JsonRpcProvider(anvil.url, anvil.chainId, {
      staticNetwork: true,
      cacheTimeout: -1,
      pollingInterval: 10,
    });
    wallets = developmentKeys.map((key) => new Wallet(key, provider));
    const deployed: BaseContract = await new ContractFactory([...abi], bytecode, wallets[0]).deploy();
    await deployed.waitForDeployment();
    address = await deployed.getAddress();
  });
  afterAll(async () => {
    provider?.destroy();
    await anvil?.close();
  });

  const [owner, second, third, stranger] = [0, 1, 2, 3];
  const as = (who: number): Contract => new Contract(address, [...abi], wallets[who]);
  const addressOf = (who: number): string => (wallets[who] as Wallet).address;
  const read = <T>(name: string, ...args: unknown[]): Promise<T> => as(owner).getFunction(name)(...args) as Promise<T>;
  const done = async (who: number, name: string, ...args: unknown[]): Promise<ContractTransactionReceipt> => {
    const sent = (await as(who).getFunction(name)(...args)) as ContractTransactionResponse;
    return (await sent.wait()) as ContractTransactionReceipt;
  };
  const registered = async (publishers: readonly number[] = [owner], quorum = 1): Promise<string> => {
    const name = `service-${(services += 1)}`;
    await done(owner, "register", name, publishers.map(addressOf), quorum);
    return read("serviceId", addressOf(owner), name);
  };
  const nextOf = async (id: string): Promise<number> =>
    Number((await read<{ nextVersion: bigint }>("lineOf", id)).nextVersion);
  const firstOf = async (id: string): Promise<number> =>
    Number((await read<{ firstVersion: bigint }>("lineOf", id)).firstVersion);

  it("takes at most 60,000 gas for a publication with quorum 1 after the first", async () => {
    const id = await registered();
    const used: bigint[] = [];
    // Positions as they are after a year of a busy service: more bytes of them are not zero.
    for (let version = 0; version < 4; version += 1)
      used.push((await done(owner, "publish", id, ...values(version, { position: 2 ** 52 + version }))).gasUsed);
    const longest = await done(owner, "publish", id, ...values(4, { position: 2 ** 52 + 4, uri: "x".repeat(256) }));
    process.stdout.write(
      `gas of publications with an address of ${usualUri.length} bytes: ${used.join(", ")}; with 256 bytes: ${longest.gasUsed}\n`,
    );
    for (const gas of used.slice(1)) expect(gas).toBeLessThanOrEqual(60_000n);
    const late = await registered();
    const first = await done(owner, "publish", late, ...values(7, { position: 2 ** 52, previous: ZeroHash }));
    const second = await done(owner, "publish", late, ...values(8, { position: 2 ** 52 + 1 }));
    process.stdout.write(`gas where the line begins at version 7: ${first.gasUsed}, ${second.gasUsed}\n`);
    expect(second.gasUsed).toBeLessThanOrEqual(60_000n);
    // One write to a slot that is there already, and no new slot.
    expect(first.gasUsed - (used[0] ?? 0n)).toBeLessThan(6_000n);
  });

  it("tells the newest version, the history in pages, and the blocks of the events, without a search", async () => {
    const id = await registered();
    expect(await read("latest", id)).toEqual([0n, 0n, ZeroHash, 0n]);
    const blocks: number[] = [];
    for (let version = 0; version < 3; version += 1)
      blocks.push((await done(owner, "publish", id, ...values(version))).blockNumber);
    expect(await read("latest", id)).toEqual([2n, 3n * 4096n, keccakOfText("manifest 2"), BigInt(blocks[2] ?? 0)]);
    expect(await read("history", id, 0, 2)).toEqual([keccakOfText("manifest 0"), keccakOfText("manifest 1")]);
    expect(await read("history", id, 2, 100)).toEqual([keccakOfText("manifest 2")]);
    expect(await read("history", id, 3, 100)).toEqual([]);
    for (let version = 2; version >= 0; version -= 1) {
      const [event] = await as(owner).queryFilter(as(owner).getEvent("Final")(id), blocks[version], blocks[version]);
      const parsed = contractInterface.parseLog(event ?? { topics: [], data: "0x" });
      expect(parsed?.args.slice(0, 8)).toEqual([
        id,
        BigInt(version),
        addressOf(owner),
        BigInt(version + 1) * 4096n,
        keccakOfText(`manifest ${version}`),
        version === 0 ? ZeroHash : keccakOfText(`manifest ${version - 1}`),
        keccakOfText(`state ${version}`),
        BigInt(blocks[version - 1] ?? 0),
      ]);
    }
  });

  it("lets nobody else write to a line, change it, or register over it", async () => {
    const id = await registered();
    await done(owner, "publish", id, ...values(0));
    const foreign = `(${addressOf(stranger)})`;
    expect(await refusal(done(stranger, "publish", id, ...values(1)))).toBe(`NotPublisher${foreign}`);
    const notOwner = `NotOwner(${addressOf(owner)})`;
    expect(await refusal(done(stranger, "changePublishers", id, [addressOf(stranger)], [], 1))).toBe(notOwner);
    expect(await refusal(done(stranger, "setPaused", id, true))).toBe(notOwner);
    expect(await refusal(done(stranger, "proposeOwner", id, addressOf(stranger)))).toBe(notOwner);
    expect(await refusal(done(stranger, "acceptOwner", id))).toMatch(/^NotOwner/);
    // The same name by somebody else is another service, whoever comes first.
    const name = `service-${services}`;
    await done(stranger, "register", name, [addressOf(stranger)], 1);
    expect(await read("serviceId", addressOf(stranger), name)).not.toBe(id);
    expect(await refusal(done(owner, "register", name, [addressOf(owner)], 1))).toBe("AlreadyRegistered()");
    await done(owner, "publish", id, ...values(1));
    expect(await nextOf(id)).toBe(2);
  });

  it("takes versions without gaps, positions that do not fall, and links that fit", async () => {
    const id = await registered();
    expect(await refusal(done(owner, "publish", id, ...values(1)))).toBe(`WrongPrevious(${ZeroHash})`);
    expect(await refusal(done(owner, "publish", id, ...values(0, { previous: keccakOfText("?") })))).toBe(
      `WrongPrevious(${ZeroHash})`,
    );
    expect(await refusal(done(owner, "publish", id, ...values(0, { manifest: ZeroHash })))).toBe("NoHash()");
    expect(await refusal(done(owner, "publish", id, ...values(0, { uri: "x".repeat(257) })))).toBe("UriTooLong()");
    await done(owner, "publish", id, ...values(0));
    expect(await refusal(done(owner, "publish", id, ...values(0)))).toBe("WrongVersion(1)");
    expect(await refusal(done(owner, "publish", id, ...values(1, { previous: keccakOfText("?") })))).toBe(
      `WrongPrevious(${keccakOfText("manifest 0")})`,
    );
    expect(await refusal(done(owner, "publish", id, ...values(1, { position: 4095 })))).toBe("PositionFell(4096)");
    await done(owner, "publish", id, ...values(1, { position: 4096 }));
    expect(await read("history", id, 0, 9)).toEqual([keccakOfText("manifest 0"), keccakOfText("manifest 1")]);
  });

  it("lets a line begin at any version, and grow without gaps from there", async () => {
    const id = await registered();
    const first = values(7, { previous: ZeroHash });
    expect(await refusal(done(owner, "publish", id, ...values(7)))).toBe(`WrongPrevious(${ZeroHash})`);
    const begun = await done(owner, "publish", id, ...first);
    expect([await firstOf(id), await nextOf(id)]).toEqual([7, 8]);
    const late = { position: 8 * 4096 };
    for (const version of [0, 6, 7, 9])
      for (const previous of [ZeroHash, keccakOfText("manifest 7")])
        expect(await refusal(done(owner, "publish", id, ...values(version, { ...late, previous })))).toBe(
          "WrongVersion(8)",
        );
    const builtOnNothing = values(8, { previous: ZeroHash });
    expect(await refusal(done(owner, "publish", id, ...builtOnNothing))).toBe(
      `WrongPrevious(${keccakOfText("manifest 7")})`,
    );
    await done(owner, "publish", id, ...values(8));
    await done(owner, "changePublishers", id, [], [], 1);
    await done(owner, "publish", id, ...values(9));
    expect([await firstOf(id), await nextOf(id)]).toEqual([7, 10]);
    expect((await read<unknown[]>("latest", id))[0]).toBe(9n);
    const hashes = [7, 8, 9].map((version) => keccakOfText(`manifest ${version}`));
    expect(await read("history", id, 7, 9)).toEqual(hashes);
    expect(await read("history", id, 5, 3)).toEqual([ZeroHash, ZeroHash, hashes[0]]);
    const [event] = await as(owner).queryFilter(as(owner).getEvent("Final")(id), begun.blockNumber, begun.blockNumber);
    expect(contractInterface.parseLog(event ?? { topics: [], data: "0x" })?.args["previousBlock"]).toBe(0n);
    // Its owner's right stands in the same slot as the first version.
    await done(owner, "proposeOwner", id, addressOf(second));
    await done(second, "acceptOwner", id);
    expect([await firstOf(id), await nextOf(id)]).toEqual([7, 10]);
  });

  it("takes no version that none could follow", async () => {
    const id = await registered();
    const last = 2 ** 40 - 2;
    const begin = { previous: ZeroHash, position: 0 };
    // 0x11: a sum that does not fit.
    expect(await refusal(done(owner, "publish", id, ...values(last + 1, begin)))).toBe("Panic(17)");
    await done(owner, "publish", id, ...values(last, begin));
    expect(await nextOf(id)).toBe(last + 1);
    const follow = { previous: keccakOfText(`manifest ${last}`), position: 0 };
    expect(await refusal(done(owner, "publish", id, ...values(last + 1, follow)))).toBe("Panic(17)");
    expect(await refusal(done(owner, "publish", id, ...values(0, follow)))).toBe(`WrongVersion(${last + 1})`);
  });

  it("begins with the first version that enough publishers attested, whichever others were attested before", async () => {
    const id = await registered([owner, second, third], 2);
    const first = values(7, { previous: ZeroHash });
    const later = values(9, { previous: ZeroHash });
    await done(third, "publish", id, ...later);
    await done(third, "publish", id, ...values(0));
    await done(owner, "publish", id, ...first);
    // Nothing of an attestation alone is in the line.
    expect([await firstOf(id), await nextOf(id)]).toEqual([0, 0]);
    expect(await read("history", id, 0, 20)).toEqual([]);
    await done(second, "publish", id, ...first);
    expect([await firstOf(id), await nextOf(id)]).toEqual([7, 8]);
    for (const other of [later, values(0)])
      expect(await refusal(done(second, "publish", id, ...other))).toBe("WrongVersion(8)");
    await done(owner, "publish", id, ...values(8));
    await done(second, "publish", id, ...values(8));
    // The line has come to where another one would have begun: what was attested for that does not fit into this one.
    expect(await refusal(done(second, "publish", id, ...values(9, { previous: ZeroHash })))).toBe(
      `WrongPrevious(${keccakOfText("manifest 8")})`,
    );
    await done(owner, "publish", id, ...values(9));
    expect(await nextOf(id)).toBe(9);
    await done(second, "publish", id, ...values(9));
    expect([await firstOf(id), await nextOf(id)]).toEqual([7, 10]);
  });

  it("makes a version final when as many publishers attested the same, whatever another one attests", async () => {
    const id = await registered([owner, second, third], 2);
    await done(third, "publish", id, ...values(0, { manifest: keccakOfText("another") }));
    await done(owner, "publish", id, ...values(0));
    expect(await nextOf(id)).toBe(0);
    expect(await refusal(done(owner, "publish", id, ...values(0)))).toBe("AlreadyAttested()");
    // The same manifest at another position is another candidate.
    await done(third, "publish", id, ...values(0, { position: 1 }));
    expect(await nextOf(id)).toBe(0);
    expect(await read<string[]>("candidates", id, 0, 0, 10)).toHaveLength(3);
    await done(second, "publish", id, ...values(0));
    expect(await read("history", id, 0, 9)).toEqual([keccakOfText("manifest 0")]);
    const candidate = await read("candidateOf", id, ...values(0).slice(0, 5));
    const attested = await read<{ publisher: string }[]>("attestations", id, candidate);
    expect(attested.map(({ publisher }) => publisher)).toEqual([addressOf(owner), addressOf(second)]);
    expect(await refusal(done(third, "publish", id, ...values(0)))).toBe("WrongVersion(1)");
  });

  it("does not count what a removed publisher attested, nor ask more of the others after the quorum fell", async () => {
    const id = await registered([owner, second, third], 2);
    await done(third, "publish", id, ...values(0));
    await done(owner, "changePublishers", id, [], [addressOf(third)], 2);
    await done(owner, "publish", id, ...values(0));
    expect(await nextOf(id)).toBe(0);
    await done(owner, "changePublishers", id, [], [], 1);
    await done(owner, "publish", id, ...values(0));
    expect(await nextOf(id)).toBe(1);

    const other = await registered([owner, second, third], 3);
    await done(owner, "publish", other, ...values(0));
    await done(second, "publish", other, ...values(0));
    await done(owner, "changePublishers", other, [], [], 2);
    // Attesting once more is enough now.
    await done(owner, "publish", other, ...values(0));
    expect(await nextOf(other)).toBe(1);
  });

  it("rotates publishers at once, and refuses a quorum that they could not reach", async () => {
    const id = await registered([owner], 1);
    const add = [addressOf(second), addressOf(third)];
    await done(owner, "changePublishers", id, add, [addressOf(owner)], 2);
    expect(await read("publishersOf", id)).toEqual(add);
    expect(await refusal(done(owner, "publish", id, ...values(0)))).toMatch(/^NotPublisher/);
    const change = (...args: unknown[]): Promise<string> => refusal(done(owner, "changePublishers", id, ...args));
    expect(await change([], [addressOf(third)], 2)).toBe("BadQuorum()");
    expect(await change([], [], 0)).toBe("BadQuorum()");
    expect(await change([addressOf(second)], [], 2)).toBe(`BadPublisher(${addressOf(second)})`);
    expect(await change([], [addressOf(stranger)], 2)).toBe(`BadPublisher(${addressOf(stranger)})`);
    const many = Array.from({ length: 63 }, () => Wallet.createRandom().address);
    expect(await change(many, [], 2)).toBe("BadQuorum()");
  });

  it("gives a line to another owner in two steps, and its id stays", async () => {
    const id = await registered();
    await done(owner, "proposeOwner", id, addressOf(second));
    expect(await refusal(done(third, "acceptOwner", id))).toBe(`NotOwner(${addressOf(second)})`);
    await done(owner, "changePublishers", id, [], [], 1); // Still the old one's, until it is accepted.
    await done(second, "acceptOwner", id);
    expect(await refusal(done(owner, "setPaused", id, true))).toBe(`NotOwner(${addressOf(second)})`);
    expect(await refusal(done(second, "acceptOwner", id))).toMatch(/^NotOwner/);
    await done(second, "changePublishers", id, [addressOf(second)], [addressOf(owner)], 1);
    await done(second, "publish", id, ...values(0));
    expect(await nextOf(id)).toBe(1);
    // Who gave it away cannot take it by registering again.
    expect(await refusal(done(owner, "register", `service-${services}`, [addressOf(owner)], 1))).toBe(
      "AlreadyRegistered()",
    );
  });

  it("publishes nothing while the owner has paused the line, and goes on where it stood", async () => {
    const id = await registered();
    await done(owner, "publish", id, ...values(0));
    await done(owner, "setPaused", id, true);
    expect(await refusal(done(owner, "publish", id, ...values(1)))).toBe("Paused()");
    await done(owner, "changePublishers", id, [addressOf(second)], [], 1); // A lost key is replaced meanwhile.
    expect((await read<{ isPaused: boolean }>("lineOf", id)).isPaused).toBe(true);
    await done(owner, "setPaused", id, false);
    await done(second, "publish", id, ...values(1));
    const line = await read<{ nextVersion: bigint; quorum: bigint; position: bigint }>("lineOf", id);
    expect([line.nextVersion, line.quorum, line.position]).toEqual([2n, 1n, 8192n]);
  });
});
