import * as fc from "fast-check";
import { expect, it } from "vitest";
import { encodeCursor, parseCursor } from "../../../gateway/cursors/stored.ts";
import { crc32 } from "node:zlib";
import { cursor } from "./samples.ts";

const whole = encodeCursor(cursor("a"));

it("any changed, missing or added byte is a lost cursor that names its revision, never another cursor", () => {
  fc.assert(
    fc.property(fc.nat(whole.length - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
      const changed = Buffer.from(whole);
      changed[at] = (changed[at] ?? 0) ^ flip;
      const lost = expect.objectContaining({ code: "GW_CURSOR_LOST", revision: 5 }) as unknown;
      expect(() => parseCursor(changed, "a", 5)).toThrow(lost);
      expect(() => parseCursor(whole.subarray(0, at), "a", 5)).toThrow(lost);
      expect(() => parseCursor(Buffer.concat([whole, Buffer.from([flip])]), "a", 5)).toThrow(lost);
    }),
  );
});

it("a cursor of another replica or of a later version is lost", () => {
  expect(() => parseCursor(whole, "b", 1)).toThrow(/it is the cursor of a/);
  const json = Buffer.from(JSON.stringify({ ...cursor("a"), version: 2 }));
  const later = Buffer.concat([Buffer.from(`${crc32(json).toString(16).padStart(8, "0")}\n`), json]);
  expect(() => parseCursor(later, "a", 1)).toThrow(/its field "version"/);
});

it("a cursor of a version that knew neither suspects nor replaced states is read as that of a copy that is neither", () => {
  const { isSuspect: _, restored: __, ...earlier } = cursor("a");
  const json = Buffer.from(JSON.stringify(earlier));
  const bytes = Buffer.concat([Buffer.from(`${crc32(json).toString(16).padStart(8, "0")}\n`), json]);
  expect(parseCursor(bytes, "a", 1)).toEqual({ ...cursor("a"), isSuspect: false, restored: 0 });
});

it("that a copy is to be made anew is kept", () => {
  const standing = { state: "quarantined", reason: "it disagreed", rebuild: true } as const;
  expect(parseCursor(encodeCursor({ ...cursor("a"), standing }), "a", 1).standing).toEqual(standing);
});
