// Certificates for tests, made where they are needed: nothing secret lies in the tree, and no program has to be there. X.509 version 3 (RFC 5280),
// P-256, written in DER by hand: node:crypto signs, and cannot put a certificate together.
import { createPublicKey, generateKeyPairSync, randomBytes, sign } from "node:crypto";
import { writeFileSync } from "node:fs";
import { isIPv4 } from "node:net";
import { join } from "node:path";
import type { KeyObject } from "node:crypto";

export interface Pair {
  /** PEM. */
  readonly cert: string;
  readonly key: string;
}

export interface Wanted {
  readonly name?: string;
  /** Host names and IPv4 addresses; default: localhost and 127.0.0.1. */
  readonly hosts?: readonly string[];
  /** Default: since an hour, for a day. */
  readonly from?: Date;
  readonly to?: Date;
}

export class Authority {
  readonly cert: string;
  readonly #name: string;
  readonly #key: KeyObject;

  constructor(name: string) {
    const { privateKey } = newKey();
    this.#name = name;
    this.#key = privateKey;
    this.cert = this.#certify(privateKey, { name }, true);
  }

  issue(wanted: Wanted = {}): Pair {
    const { privateKey } = newKey();
    return { cert: this.#certify(privateKey, wanted, false), key: pemOf(privateKey) };
  }

  #certify(
    key: KeyObject,
    { name = "localhost", hosts = ["localhost", "127.0.0.1"], from, to }: Wanted,
    isAuthority: boolean,
  ): string {
    const validity = sequence(
      time(from ?? new Date(Date.now() - 3_600_000)),
      time(to ?? new Date(Date.now() + 86_400_000)),
    );
    const alternatives = hosts.map((host) =>
      isIPv4(host) ? der(0x87, Buffer.from(host.split(".").map(Number))) : der(0x82, Buffer.from(host)),
    );
    const extensions = isAuthority
      ? [extension("2.5.29.19", sequence(der(0x01, Buffer.from([0xff]))), true)]
      : [extension("2.5.29.17", sequence(...alternatives))];
    const body = sequence(
      der(0xa0, der(0x02, Buffer.from([2]))),
      der(0x02, Buffer.concat([Buffer.from([0x01]), randomBytes(8)])),
      ecdsaWithSha256,
      distinguished(this.#name),
      validity,
      distinguished(name),
      createPublicKey(key).export({ type: "spki", format: "der" }),
      der(0xa3, sequence(...extensions)),
    );
    const signature = Buffer.concat([Buffer.from([0]), sign("sha256", body, this.#key)]);
    const whole = sequence(body, ecdsaWithSha256, der(0x03, signature));
    const lines = whole.toString("base64").match(/.{1,64}/g) ?? [];
    return `-----BEGIN CERTIFICATE-----\n${lines.join("\n")}\n-----END CERTIFICATE-----\n`;
  }
}

/** `ca.pem`, `NAME.pem` and `NAME.key` in a folder; the paths, as the configuration names them. */
export function writePair(
  folder: string,
  name: string,
  pair: Pair,
  ca?: string,
): Record<"caFile" | "certFile" | "keyFile", string> {
  const files = {
    caFile: join(folder, "ca.pem"),
    certFile: join(folder, `${name}.pem`),
    keyFile: join(folder, `${name}.key`),
  };
  writeFileSync(files.certFile, pair.cert);
  writeFileSync(files.keyFile, pair.key, { mode: 0o600 });
  if (ca !== undefined) writeFileSync(files.caFile, ca);
  return files;
}

export const expired = { from: new Date("2020-01-01"), to: new Date("2020-02-01") } as const;

const newKey = () => generateKeyPairSync("ec", { namedCurve: "P-256" });
const pemOf = (key: KeyObject): string => key.export({ type: "pkcs8", format: "pem" }) as string;

function der(tag: number, content: Buffer): Buffer {
  const { length } = content;
  const size = length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...size]), content]);
}

const sequence = (...parts: readonly Buffer[]): Buffer => der(0x30, Buffer.concat(parts));

function objectId(text: string): Buffer {
  const [first = 0, second = 0, ...rest] = text.split(".").map(Number);
  const bytes = rest.flatMap((arc) => {
    const digits = [arc & 0x7f];
    for (let left = arc >> 7; left > 0; left >>= 7) digits.unshift((left & 0x7f) | 0x80);
    return digits;
  });
  return der(0x06, Buffer.from([first * 40 + second, ...bytes]));
}

const ecdsaWithSha256 = sequence(objectId("1.2.840.10045.4.3.2"));
const distinguished = (name: string): Buffer =>
  sequence(der(0x31, sequence(objectId("2.5.4.3"), der(0x0c, Buffer.from(name)))));
/** UTCTime: enough until 2049. */
const time = (at: Date): Buffer =>
  der(
    0x17,
    Buffer.from(
      at
        .toISOString()
        .replaceAll(/[-:T]|\.\d+/g, "")
        .slice(2),
    ),
  );
const extension = (id: string, value: Buffer, isCritical = false): Buffer =>
  sequence(objectId(id), ...(isCritical ? [der(0x01, Buffer.from([0xff]))] : []), der(0x04, value));
