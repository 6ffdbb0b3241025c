// Messages between gateways as bytes: JSON, and behind it the answers that it names by their lengths.

import type { Answer } from "../entry.ts";
import { decodeAnswer, encodeAnswer } from "../answer.ts";
import type { AnswerNews, Message } from "./peers.ts";

// version u8 | json length u32 | json | answers
const version = 1;
const headBytes = 5;

/** An answer in JSON: how many bytes of the tail are its own; 0: there is none. */
type Told = Omit<AnswerNews, "answer"> & { readonly bytes: number };

export function encodeMessage(message: Message): Buffer {
  const blobs: Buffer[] = [];
  let told: unknown = message;
  if (message.kind === "answers") {
    const answers: Told[] = message.answers.map(({ answer, ...rest }) => {
      const blob = answer === null ? null : encodeAnswer(answer);
      if (blob !== null) blobs.push(blob);
      return { ...rest, bytes: blob?.length ?? 0 };
    });
    told = { kind: message.kind, answers };
  }
  const json = Buffer.from(JSON.stringify(told));
  const head = Buffer.allocUnsafe(headBytes);
  head[0] = version;
  head.writeUInt32LE(json.length, 1);
  return Buffer.concat([head, json, ...blobs]);
}

/** Null when the bytes are not what `encodeMessage` made: another version of the gateway says things that this one does not know. */
export function decodeMessage(bytes: Buffer): Message | null {
  if (bytes.length < headBytes || bytes[0] !== version) return null;
  let at = headBytes + bytes.readUInt32LE(1);
  if (at > bytes.length) return null;
  let told: Message | { kind: "answers"; answers: readonly Told[] };
  try {
    told = JSON.parse(bytes.toString("utf8", headBytes, at)) as typeof told;
  } catch {
    return null;
  }
  if (typeof told !== "object" || told === null || !kinds.has(told.kind)) return null;
  if (told.kind !== "answers") return told;
  const answers: AnswerNews[] = [];
  for (const { bytes: length, ...rest } of told.answers as readonly Told[]) {
    let answer: Answer | null = null;
    if (length > 0) {
      answer = decodeAnswer(bytes.subarray(at, at + length));
      if (answer === null) return null;
      at += length;
    }
    answers.push({ ...rest, answer });
  }
  return { kind: "answers", answers };
}

const kinds: ReadonlySet<string> = new Set([
  "hello",
  "moved",
  "answers",
  "again",
  "survived",
  "died",
  "disagrees",
] satisfies Message["kind"][]);
