// Requests that are right, and what becomes of them: seeded, so that a number gives the same bytes again.

import { createRandom } from "../helpers/random.ts";
import type { Random } from "../helpers/random.ts";

export interface FuzzedConnection {
  readonly messages: number;
  /** As they are sent. */
  readonly pieces: readonly string[];
}

const methods = [
  "GET",
  "GET",
  "GET",
  "POST",
  "POST",
  "POST",
  "PUT",
  "DELETE",
  "HEAD",
  "PATCH",
  "OPTIONS",
  "PROPFIND",
  "QUERY",
];
const folders = [
  "write",
  "write",
  "write",
  "once",
  "once",
  "private",
  "other",
  "a/b",
  "%77rite",
  "priv%61te",
  "once/%41",
];
const extras = [
  "X-Role: user",
  "X-Role: admin",
  "x-role:\tadmin ",
  "X-Role: admin, user",
  "Accept: */*",
  "Cookie: a=b; c=d",
  "Authorization: Bearer t",
  "X-Forwarded-For: 10.9.8.7",
  "X-Forwarded-Host: evil.example",
  "Forwarded: for=1.2.3.4",
  "Replication-Position: 7",
  "Replication-Role: primary",
  "Replication-Seed: 00",
  "Via: 1.0 other",
  "TE: trailers",
  "Connection: keep-alive",
  "Connection: close",
  "Connection: X-Hop\r\nX-Hop: 1",
  "Proxy-Connection: keep-alive",
  "X-Text: \u00e4\u00f6 \u00ff",
  "Content_Length: 5",
  "X-Empty:",
];
const nastyFields = [
  "Host: evil.example",
  "Host: a, b",
  "Content-Length: 0",
  "Content-Length: 5",
  "Content-Length: 3, 3",
  "Content-Length: +3",
  "Content-Length: 0x3",
  "Content-Length: 99999999999999999999",
  "Transfer-Encoding: chunked",
  "Transfer-Encoding: xchunked",
  "Transfer-Encoding: gzip, chunked",
  "Transfer-Encoding : chunked",
  "Transfer-Encoding:\u000bchunked",
  "Transfer-Encoding: chunked\r\n folded",
  "Connection: authorization",
  "Connection: host, close",
  "Connection: content-length",
  "Connection: Upgrade\r\nUpgrade: h2c",
  "Upgrade: websocket",
  "Expect: 100-continue",
  "Expect: 200-ok",
  "Trailer: X-T",
  " X-Folded: 1",
  "X-No-Colon",
  ": empty",
  "X Y: space",
  "X-Ctl: a\u0000b",
  "X-Cr: a\rb",
  "X-Lf: a\nContent-Length: 3",
  "X-Del: \u007f",
];
const nastyTargets = [
  "/../private/x",
  "/write/../private/x",
  "/%2e%2e/private/x",
  "/write/%2e%2e%2fprivate",
  "/write/..;/private",
  "/write\\..\\private",
  "/write%5cx",
  "/write%00",
  "/write/%c0%ae%c0%ae",
  "/%ff",
  "/%zz",
  "/write?a=%",
  "/write#x",
  "//evil.example/write",
  "/private%2fx",
  "/./private/x",
  "*",
  "write",
  "http://evil.example/private/x",
  "https://a/write/1",
  "evil.example:443",
  "/write/\u00e9",
  "/a b",
  "/a\tb",
];
const nastyBytes = "\r\n\u0000 \t:;,%/.\\#?\"'\u0080\u00ff\u007f\u001b0aG";
const versions = [
  "HTTP/1.0",
  "HTTP/1.0",
  "HTTP/0.9",
  "HTTP/2.0",
  "HTTP/1.2",
  "http/1.1",
  "HTTP/1.1 ",
  "HTTP/11",
  "HTTP/1.10",
  "",
];

const smallMax = 10_000;

interface Draft {
  method: string;
  target: string;
  version: string;
  fields: string[];
  body: string;
}

export class Mutator {
  readonly #random: Random;
  #serial = 0;

  constructor(seed: number) {
    this.#random = createRandom(seed);
  }

  connection(): FuzzedConnection {
    const random = this.#random;
    const messages = 1 + random.below(4);
    let bytes = "";
    for (let i = 0; i < messages; i++) bytes += this.#message();
    // What is near the limit of a head may be refused or not.
    if (random.chance(0.05) && bytes.length < smallMax) bytes = bytes.slice(0, random.below(bytes.length));
    return { messages, pieces: this.#split(bytes) };
  }

  #message(): string {
    const draft = this.#draft();
    const random = this.#random;
    for (let left = random.chance(0.5) ? 0 : 1 + random.below(2); left > 0; left--) this.#mutate(draft);
    const { method, target, version, fields, body } = draft;
    const text = `${method} ${target} ${version}\r\n${fields.map((line) => `${line}\r\n`).join("")}\r\n${body}`;
    return random.chance(0.12) && text.length < smallMax ? this.#mutateBytes(text) : text;
  }

  #draft(): Draft {
    const random = this.#random;
    const serial = (this.#serial += 1);
    const method = random.pick(methods);
    const query = random.chance(0.2) ? `?q=${serial}&x=%2F%2e` : "";
    const fields = [`Host: ${random.pick(["a", "a.example:8080", "[::1]:80", "127.0.0.1"])}`];
    for (let left = random.below(4); left > 0; left--) fields.push(random.pick(extras));
    let body = "";
    if (method === "POST" || method === "PUT" || random.chance(0.1)) {
      const content = `body-${serial}-${"x".repeat(random.below(60))}`;
      if (random.chance(0.5)) {
        fields.push(`Content-Length: ${content.length}`);
        body = content;
      } else {
        fields.push(`Transfer-Encoding: ${random.pick(["chunked", "Chunked"])}`);
        body = this.#chunked(content);
      }
    }
    return {
      method,
      target: `/${random.pick(folders)}/${serial}${query}`,
      version: "HTTP/1.1",
      fields: random.shuffled(fields),
      body,
    };
  }

  #chunked(content: string): string {
    const random = this.#random;
    let [text, rest] = ["", content];
    while (rest !== "") {
      const size = 1 + random.below(rest.length);
      const extension = random.chance(0.1) ? random.pick([";a", ";a=b", ";a=b;c"]) : "";
      text += `${random.chance(0.1) ? "00" : ""}${size.toString(16)}${extension}\r\n${rest.slice(0, size)}\r\n`;
      rest = rest.slice(size);
    }
    return `${text}0\r\n\r\n`;
  }

  #mutate(draft: Draft): void {
    const random = this.#random;
    const { fields } = draft;
    const at = random.below(fields.length);
    const line = fields[at] ?? "";
    const actions: (() => void)[] = [
      () => (draft.target = random.pick(nastyTargets)),
      () => (draft.target += random.pick(nastyTargets)),
      () => (draft.target = `http://a${draft.target}`),
      () =>
        (draft.target = `${draft.target.slice(0, 2)}%${random.pick(["2", "", "2e", "zz", "u002e", "00", "e9", "c3%a9"])}${draft.target.slice(2)}`),
      () => (draft.version = random.pick(versions)),
      () => (draft.method = random.pick(["get", "CONNECT", "FOO", "TRACE", "GE\u0000T", "PRI", "POST ", "GE(T"])),
      () => fields.splice(at, 0, random.pick(nastyFields)),
      () => fields.splice(at, 0, random.pick(nastyFields)),
      () => fields.splice(at, 0, line),
      () =>
        fields.splice(
          at,
          0,
          line.replaceAll(/[a-z]/g, (char) => char.toUpperCase()),
        ),
      () => fields.splice(at, 1),
      () => (fields[at] = line.replace(":", " :")),
      () =>
        (fields[at] = line.replace(/: ?/, random.pick([":", ":  ", ":\t", ": \t "])) + random.pick(["", " ", "\t"])),
      () => (fields[at] = `${line}\r\n ${random.pick(["folded", ""])}`),
      () => fields.push(`X-Big: ${"b".repeat(70_000)}`),
      () => fields.push(...Array.from({ length: 300 }, (_, i) => `X-${i}: 1`)),
      () => (draft.body = draft.body.slice(0, random.below(draft.body.length + 1))),
      () => (draft.body += random.pick(["0\r\n\r\n", "\r\n", "X", "GET /private/x HTTP/1.1\r\nHost: a\r\n\r\n"])),
      () =>
        (draft.body = draft.body.replace(
          /^[0-9a-f]+/,
          random.pick(["-1", "0x3", "ffffffffffffffff", "g", "", "3 ", "0"]),
        )),
      () =>
        (draft.body = draft.body.replace(
          "0\r\n\r\n",
          random.pick(["0\r\nX-T: 1\r\n\r\n", "0\n\n", "0\r\n", "0;a\u0001\r\n\r\n", "00\r\n\r\n"]),
        )),
    ];
    random.pick(actions)();
  }

  /** Where nobody looks for sense: bytes changed, put in, taken out, line ends of another kind. */
  #mutateBytes(text: string): string {
    const random = this.#random;
    const at = random.below(text.length);
    const nasty = random.chance(0.7)
      ? nastyBytes[random.below(nastyBytes.length)]!
      : String.fromCharCode(random.below(256));
    switch (random.below(6)) {
      case 0:
        return text.slice(0, at) + nasty + text.slice(at);
      case 1:
        return text.slice(0, at) + nasty + text.slice(at + 1);
      case 2:
        return text.slice(0, at) + text.slice(at + 1 + random.below(4));
      case 3:
        return text.replace("\r\n", random.pick(["\n", "\r", "\n\r", "\r\r\n"]));
      case 4:
        return random.pick(["\r\n", "\n", "\r\n\r\n", " ", "\u0000", "\u0016\u0003\u0001"]) + text;
      default:
        return text.slice(0, at) + text.slice(random.below(text.length));
    }
  }

  #split(bytes: string): string[] {
    const random = this.#random;
    if (random.chance(0.6)) return [bytes];
    const cuts = Array.from({ length: 1 + random.below(6) }, () => random.below(bytes.length)).toSorted(
      (a, b) => a - b,
    );
    return [0, ...cuts].map((from, i) => bytes.slice(from, cuts[i] ?? bytes.length)).filter((piece) => piece !== "");
  }
}
