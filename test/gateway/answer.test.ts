import * as fc from "fast-check";
import { expect, it } from "vitest";
import { decodeAnswer, encodeAnswer } from "../../gateway/answer.ts";

const latin1 = fc.string({ unit: fc.integer({ min: 0, max: 255 }).map((code) => String.fromCodePoint(code)) });
const fields = fc.array(fc.tuple(latin1, latin1), { maxLength: 8 }).map((pairs) => pairs.flat());
const answers = fc.record({
  status: fc.integer({ min: 200, max: 999 }),
  headers: fields,
  body: fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
  trailers: fields,
});

it("any answer comes back as it was", () => {
  fc.assert(
    fc.property(answers, (answer) => {
      expect(decodeAnswer(encodeAnswer(answer))).toEqual(answer);
    }),
  );
});

it("bytes with any change, cut or addition are a miss", () => {
  fc.assert(
    fc.property(answers, fc.nat(), fc.integer({ min: 1, max: 255 }), (answer, where, flip) => {
      const whole = encodeAnswer(answer);
      const at = where % whole.length;
      const changed = Buffer.from(whole);
      changed[at] = (changed[at] ?? 0) ^ flip;
      expect(decodeAnswer(changed)).toBeNull();
      expect(decodeAnswer(whole.subarray(0, at))).toBeNull();
      expect(decodeAnswer(Buffer.concat([whole, Buffer.from([flip])]))).toBeNull();
    }),
  );
});

it("foreign bytes are a miss", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => decodeAnswer(Buffer.from(bytes)) === null));
});
