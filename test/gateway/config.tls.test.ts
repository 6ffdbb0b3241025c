import { generateKeyPairSync } from "node:crypto";
import { chmodSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { formatConfigFault, loadConfig } from "../../gateway/config.ts";
import { needsOf } from "../../gateway/config/needs.ts";
import { FaultsError } from "../../rules/document.ts";
import { Authority, expired, writePair } from "../helpers/certificates.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import type { Config } from "../../gateway/config.ts";

let folder = "";
const authority = new Authority("test");
const pair = authority.issue();
beforeEach(() => {
  folder = temporaryFolder("config-tls");
  writePair(folder, "own", pair, authority.cert);
});

const write = (name: string, text: string): void => writeFileSync(join(folder, name), text, { mode: 0o600 });
const secure = "replicas: [{ name: a, url: 'https://127.0.0.1:4001' }]\n";
const own = "certFile: ./own.pem, keyFile: ./own.key";

const at = (name: string): string => join(folder, name);
const load = (text: string): Config =>
  loadConfig({ file: join(folder, "gateway.yaml"), text: secure + text, env: {}, cwd: folder });

function faults(text: string): readonly string[] {
  try {
    load(text);
  } catch (error) {
    if (!(error instanceof FaultsError)) throw error;
    return error.faults.map((it) => formatConfigFault(it).split("\n")[0]!.replaceAll(`${folder}/`, ""));
  }
  return [];
}
const warnings = (text: string): readonly string[] =>
  load(text).warnings.map((it) => formatConfigFault(it).split("\n")[0]!.replaceAll(`${folder}/`, ""));

describe("TLS in the configuration", () => {
  test("is of the front, of backends, of Redis and of NATS, each with files of its own", () => {
    const config = load(`tls: { ${own}, clientCaFile: ./ca.pem }
upstream: { caFile: ./ca.pem, ${own} }
keys: { redis: { url: "rediss://user:canary@127.0.0.1:6379", tls: { caFile: ./ca.pem } } }
log: { nats: { servers: ["tls://127.0.0.1:4222"], user: gw, password: canary, tls: { caFile: ./ca.pem, ${own} } } }
`);
    const all = { caFile: at("ca.pem"), certFile: at("own.pem"), keyFile: at("own.key") };
    expect(config.tls).toEqual(all);
    expect(config.upstream).toEqual(all);
    expect(config.keys.redis?.tls).toEqual({ caFile: at("ca.pem") });
    expect(config.log.nats?.tls).toEqual(all);
    expect(config.log.nats?.auth).toMatchObject({ user: "gw" });
    expect(JSON.stringify(config)).not.toContain("canary");
    expect(config.warnings).toEqual([]);
  });

  test("absent is none", () => {
    expect(load("")).toMatchObject({ tls: null, upstream: null });
  });

  test("what its files lack is a fault at the key that names them, with the mend", () => {
    const other = authority.issue();
    write("other.key", other.key);
    write("empty.pem", "");
    write("broken.pem", pair.cert.replace(/\n.{40}/, `\n${"A".repeat(40)}`));
    write("cut.key", pair.key.slice(0, 80));
    const { privateKey } = generateKeyPairSync("ec", {
      namedCurve: "P-256",
      publicKeyEncoding: { type: "spki", format: "pem" },
      privateKeyEncoding: { type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: "canary" },
    });
    write("typed.key", privateKey);
    write("upside.pem", authority.cert + pair.cert);
    for (const [text, expected] of [
      ["tls: { certFile: ./own.pem }", "gateway.yaml:2:6: tls.keyFile: is missing"],
      ["tls: { certFile: ./gone.pem, keyFile: ./own.key }", "gateway.yaml:2:18: tls.certFile: gone.pem does not exist"],
      ["tls: { certFile: ./own.key, keyFile: ./own.pem }", "tls.certFile: own.key holds no certificate in PEM form"],
      [
        "tls: { certFile: ./empty.pem, keyFile: ./own.key }",
        "tls.certFile: empty.pem holds no certificate in PEM form",
      ],
      [
        "tls: { certFile: ./broken.pem, keyFile: ./own.key }",
        "tls.certFile: broken.pem holds a certificate that cannot be read",
      ],
      [
        "tls: { certFile: ./own.pem, keyFile: ./other.key }",
        "gateway.yaml:2:38: tls.keyFile: other.key is not the key of the certificate",
      ],
      [
        "tls: { certFile: ./own.pem, keyFile: ./cut.key }",
        "tls.keyFile: cut.key holds a private key that cannot be read",
      ],
      [
        "tls: { certFile: ./own.pem, keyFile: ./typed.key }",
        "tls.keyFile: typed.key is encrypted, and nobody is there",
      ],
      [
        "tls: { certFile: ./upside.pem, keyFile: ./own.key }",
        "tls.certFile: upside.pem has its certificates in the wrong order",
      ],
      [`tls: { ${own}, clientCaFile: ./own.key }`, "tls.clientCaFile: own.key holds no certificate"],
      ["upstream: { certFile: ./own.pem }", "upstream.certFile: means nothing without keyFile"],
      ["upstream: { keyFile: ./own.key }", "upstream.keyFile: means nothing without certFile"],
      ["upstream: { caFile: . }", "upstream.caFile: "],
      [
        "keys: { redis: { url: 'redis://h', tls: { caFile: ./ca.pem } } }",
        "keys.redis.tls: means nothing with redis://",
      ],
      ["log: { nats: { servers: [h], tls: { caFile: ./gone.pem } } }", "log.nats.tls.caFile: gone.pem does not exist"],
      ["log: { nats: { servers: [h], user: a } }", "log.nats.user: means nothing without passwordFile"],
      ["log: { nats: { servers: [h], password: a } }", "log.nats.password: means nothing without user"],
      ["log: { nats: { servers: [h], user: a, password: b, token: c } }", "log.nats.token: stands beside user"],
      [
        "log: { nats: { servers: [h], credentialsFile: x, token: c } }",
        "log.nats.credentialsFile: stands beside token",
      ],
    ] as const) {
      const told = faults(`${text}\n`);
      expect(told[0], text).toContain(expected);
      expect(told.join("\n")).not.toMatch(/canary|PRIVATE KEY-----\n/);
    }
  });

  test("what works and is probably not meant is a warning", () => {
    writePair(folder, "old", authority.issue(expired));
    chmodSync(join(folder, "own.key"), 0o644);
    expect(warnings(`tls: { ${own} }\n`).join("\n")).toContain(
      "tls.keyFile: own.key can be read by others (mode 0644)",
    );
    expect(warnings("tls: { certFile: ./old.pem, keyFile: ./old.key }\n").join("\n")).toContain(
      "tls.certFile: old.pem expired on Feb",
    );
    write("old-ca.pem", authority.issue(expired).cert);
    expect(warnings("upstream: { caFile: ./old-ca.pem }\n").join("\n")).toContain(
      "upstream.caFile: old-ca.pem holds expired",
    );
    const plain = loadConfig({
      file: join(folder, "gateway.yaml"),
      text: "replicas: [{ name: a, url: 'http://127.0.0.1:4001' }]\nupstream: { caFile: ./ca.pem }\n",
      env: {},
      cwd: folder,
    });
    expect(plain.warnings.map(formatConfigFault).join("\n")).toContain(
      "upstream: means nothing: no replica is at https://",
    );
  });

  test("its files are among those that a recovery needs", () => {
    const text = `${secure}tls: { ${own} }\nlog: { nats: { servers: [h], user: a, passwordFile: ./p } }\n`;
    const { files } = needsOf({ file: join(folder, "gateway.yaml"), text, env: {}, cwd: folder, flags: {} }, [text]);
    expect(files.map(({ key }) => key)).toEqual(["tls.certFile", "tls.keyFile", "log.nats.passwordFile"]);
  });
});
