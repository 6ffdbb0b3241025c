// What every registry must do; run by each adapter.

import { afterEach, describe, expect, it } from "vitest";
import { versionMax } from "../../../recorder/registry/registry.ts";
import { publication, sha256, zeros } from "./samples.ts";
import type { Publication, Registry } from "../../../recorder/registry/registry.ts";

export interface RegistryPlace {
  readonly service: string;
  open(): Promise<Registry>;
  /** What was published before can no longer be undone. */
  settle(): Promise<void>;
}

/** `makePlace` makes an empty registry; opening it again, when it was closed, is what another process would do. */
export function registryContract(makePlace: () => Promise<RegistryPlace>): void {
  const opened: Registry[] = [];
  const signal = new AbortController().signal;
  const open = async (place: RegistryPlace): Promise<Registry> => {
    const registry = await place.open();
    opened.push(registry);
    return registry;
  };
  afterEach(async () => {
    await Promise.all(opened.splice(0).map((registry) => registry.close()));
  });

  describe("the law", () => {
    it("tells nothing before the first publication", async () => {
      const registry = await open(await makePlace());
      expect(await registry.latest()).toBeNull();
      expect(await registry.history(0, 10)).toEqual([]);
      expect(await registry.find(0)).toBeNull();
    });

    it("tells what was published, the newest and the history, oldest first and in pages", async () => {
      const place = await makePlace();
      const registry = await open(place);
      const line = [0, 1, 2].map((version) => publication(place.service, version));
      for (const one of line) expect(await registry.publish(one, signal)).toMatchObject(one);
      await place.settle();
      expect(await registry.latest()).toMatchObject({ ...line[2], isFinal: true, quorum: 1 });
      expect((await registry.latest())?.publishers).toHaveLength(1);
      expect(await registry.history(0, 10)).toMatchObject(line);
      expect(await registry.history(0, 2)).toMatchObject(line.slice(0, 2));
      expect(await registry.history(2, 10)).toMatchObject(line.slice(2));
      expect(await registry.history(3, 10)).toEqual([]);
      expect(await registry.find(1)).toMatchObject({ ...line[1], isFinal: true });
      expect(await registry.find(3)).toBeNull();
      for (const one of [...line, publication(place.service, 3)]) expect(await registry.othersFor(one)).toEqual([]);
    });

    it("publishes the same again without a second publication", async () => {
      const place = await makePlace();
      const registry = await open(place);
      const first = await registry.publish(publication(place.service, 0), signal);
      const again = await registry.publish(publication(place.service, 0), signal);
      expect([again.transaction, again.block]).toEqual([first.transaction, first.block]);
      await place.settle();
      expect(await registry.history(0, 10)).toHaveLength(1);
    });

    it("refuses gaps, positions that fall, links that do not fit and another hash, and nothing is published", async () => {
      const place = await makePlace();
      const registry = await open(place);
      const { service } = place;
      const refused = async (one: Publication): Promise<void> => {
        await expect(registry.publish(one, signal)).rejects.toMatchObject({ code: "GW_REGISTRY_REFUSED" });
      };
      // The line knows nothing before its first version.
      await refused(publication(service, 1));
      await refused(publication(service, 0, { previousHash: sha256("another") }));
      for (const version of [-1, 0.5, versionMax + 1])
        await refused(publication(service, version, { previousHash: zeros, position: 4096 }));
      expect(await registry.latest()).toBeNull();
      await registry.publish(publication(service, 0), signal);
      await refused(publication(service, 0, { manifestHash: sha256("another") }));
      await refused(publication(service, 2));
      await refused(publication(service, 1, { previousHash: sha256("another") }));
      await refused(publication(service, 1, { position: 4095 }));
      await refused(publication("another-service", 1));
      await refused(publication(service, 1, { manifestHash: "no hash" }));
      await refused(publication(service, 1, { manifestHash: zeros }));
      await refused(publication(service, 1, { uri: "x".repeat(257) }));
      await refused(publication(service, 1, { position: -1 }));
      await place.settle();
      expect(await registry.latest()).toMatchObject({ version: 0 });
      // Positions may stay where they are: nothing was written in between.
      await registry.publish(publication(service, 1, { position: 4096, uri: "x".repeat(256) }), signal);
    });

    it("may begin a line at any version, and the line grows without gaps from there", async () => {
      const place = await makePlace();
      const registry = await open(place);
      const { service } = place;
      const first = publication(service, 7, { previousHash: zeros });
      const line = [first, publication(service, 8), publication(service, 9)];
      const refused = async (one: Publication): Promise<void> => {
        await expect(registry.publish(one, signal)).rejects.toMatchObject({ code: "GW_REGISTRY_REFUSED" });
      };
      expect(await registry.find(7)).toBeNull();
      expect(await registry.publish(first, signal)).toMatchObject(first);
      // Neither what came before it, nor over a gap, nor a second beginning.
      await refused(publication(service, 6, { position: first.position }));
      await refused(publication(service, 0, { position: first.position }));
      await refused(publication(service, 9));
      await refused(publication(service, 9, { previousHash: zeros }));
      await refused(publication(service, 8, { previousHash: zeros }));
      await refused(publication(service, 7, { previousHash: zeros, manifestHash: sha256("another") }));
      const again = await registry.publish(first, signal);
      for (const one of line.slice(1)) expect(await registry.publish(one, signal)).toMatchObject(one);
      expect(again).toEqual(await registry.find(7));
      await place.settle();
      for (const reader of [registry, await open(place)]) {
        expect(await reader.latest()).toMatchObject({ ...line[2], isFinal: true });
        expect(await reader.history(0, 10)).toMatchObject(line);
        expect(await reader.history(0, 2)).toMatchObject(line.slice(0, 2));
        expect(await reader.history(8, 1)).toMatchObject(line.slice(1, 2));
        expect(await reader.history(10, 10)).toEqual([]);
        for (const version of [0, 3, 6, 10]) expect(await reader.find(version)).toBeNull();
        expect(await reader.find(7)).toMatchObject({ ...first, isFinal: true });
        expect(await reader.find(8)).toMatchObject({ ...line[1], isFinal: true });
      }
    });

    it("publishes what is asked for at once in the order of the calls", async () => {
      const place = await makePlace();
      const registry = await open(place);
      const line = [0, 1, 2, 3].map((version) => publication(place.service, version));
      await Promise.all([...line, line[1] as Publication].map((one) => registry.publish(one, signal)));
      await place.settle();
      expect(await registry.history(0, 10)).toMatchObject(line);
    });

    it("tells the same after it was opened again, and goes on", async () => {
      const place = await makePlace();
      const first = await open(place);
      const published = await first.publish(publication(place.service, 0), signal);
      await first.close();
      const second = await open(place);
      await place.settle();
      expect(await second.latest()).toEqual({ ...published, isFinal: true });
      await second.publish(publication(place.service, 1), signal);
      await place.settle();
      expect(await second.history(0, 10)).toHaveLength(2);
    });

    it("publishes nothing for a signal that is aborted, and takes it at the next try", async () => {
      const place = await makePlace();
      const registry = await open(place);
      const aborted = registry.publish(publication(place.service, 0), AbortSignal.abort());
      await expect(aborted).rejects.toMatchObject({ code: "GW_REGISTRY_UNAVAILABLE" });
      expect(await registry.find(0)).toBeNull();
      await registry.publish(publication(place.service, 0), signal);
    });

    it("tells how it is", async () => {
      const place = await makePlace();
      const registry = await open(place);
      await registry.publish(publication(place.service, 0), signal);
      const status = await registry.status();
      expect(status).toMatchObject({
        kind: registry.kind,
        chainId: registry.chainId,
        isReachable: true,
        trouble: null,
      });
      expect(status.where).not.toBe("");
    });

    it("rejects calls after close, and close may be called again", async () => {
      const place = await makePlace();
      const registry = await open(place);
      await registry.close();
      await registry.close();
      const gone = { code: "GW_REGISTRY_UNAVAILABLE" };
      await expect(registry.publish(publication(place.service, 0), signal)).rejects.toMatchObject(gone);
      await expect(registry.find(0)).rejects.toMatchObject(gone);
      await expect(registry.latest()).rejects.toMatchObject(gone);
      await expect(registry.history(0, 1)).rejects.toMatchObject(gone);
    });
  });
}
