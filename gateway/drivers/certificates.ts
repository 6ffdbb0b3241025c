// Certificates from files: read, judged, and looked at again every few seconds, so that renewed ones are used without a restart.
//
// - What is used is always a whole: certificate, key and trust that were found to fit together. A new set that does not is refused, told of
//   (once it was seen twice: whoever renews writes one file after the other), and the old one stays in use.
// - Contents are compared, not times: what a rename or a mounted secret does to times and inodes does not matter.

import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createSecureContext } from "node:tls";
import type { SecureContext } from "node:tls";
import type { Clock } from "../clock.ts";
import { GatewayError } from "../errors.ts";
import type { Events } from "../events.ts";

export interface TlsPaths {
  readonly caFile?: string;
  readonly certFile?: string;
  readonly keyFile?: string;
}

/** In PEM, as Node's TLS takes them. */
export interface TlsParts {
  readonly ca?: string;
  readonly cert?: string;
  readonly key?: string;
}

export interface TlsFinding {
  readonly of: keyof TlsParts;
  /** Follows the file's name; never holds a secret. */
  readonly message: string;
}

export interface TlsJudgement {
  readonly faults: readonly TlsFinding[];
  readonly warnings: readonly TlsFinding[];
  /** Of what is shown: the first end in its chain. Null: nothing is shown, or it cannot be read. */
  readonly notAfterMs: number | null;
}

export const tlsKeys = { ca: "caFile", cert: "certFile", key: "keyFile" } as const;
const parts = ["ca", "cert", "key"] as const;
/** Nothing older is spoken, whatever Node's defaults and flags say. */
export const tlsVersionMin = "TLSv1.2";

/** What the files hold now, unjudged. Rejects where one cannot be read. */
export async function partsOf(files: TlsPaths): Promise<TlsParts> {
  const read: { -readonly [part in keyof TlsParts]: TlsParts[part] } = {};
  for (const part of parts) {
    const file = files[tlsKeys[part]];
    if (file !== undefined) read[part] = await readFile(file, "utf8");
  }
  return read;
}

/** Whether the parts can be used, and together. */
export function judgeTls(given: TlsParts, nowMs: number): TlsJudgement {
  const faults: TlsFinding[] = [];
  const warnings: TlsFinding[] = [];
  const certificates = (of: "ca" | "cert"): X509Certificate[] => {
    const read = certificatesIn(given[of] ?? "");
    if (typeof read !== "string") return read;
    if (given[of] !== undefined) faults.push({ of, message: read });
    return [];
  };
  const trusted = certificates("ca");
  const chain = certificates("cert");
  const [own] = chain;
  const key = given.key === undefined ? null : keyIn(given.key);
  if (typeof key === "string") faults.push({ of: "key", message: key });
  else if (key !== null && own !== undefined && !own.checkPrivateKey(key)) {
    const isOfOther = chain.some((it) => it.checkPrivateKey(key));
    faults.push(
      isOfOther
        ? { of: "cert", message: "has its certificates in the wrong order: the own one first, then who vouches for it" }
        : { of: "key", message: "is not the key of the certificate: give the pair that was made together" },
    );
  }
  if (faults.length === 0) {
    const refused = openContext(given);
    if (typeof refused === "string") faults.push({ of: given.cert === undefined ? "ca" : "cert", message: refused });
  }
  if (own !== undefined) {
    const [from, to] = [Date.parse(own.validFrom), Date.parse(own.validTo)];
    if (nowMs > to) warnings.push({ of: "cert", message: `expired on ${own.validTo}: whoever is shown it refuses it` });
    if (nowMs < from) warnings.push({ of: "cert", message: `is valid from ${own.validFrom} on only` });
  }
  if (trusted.length > 0 && trusted.every((it) => nowMs > Date.parse(it.validTo)))
    warnings.push({ of: "ca", message: "holds expired certificates only: nobody will be believed" });
  const ends = chain.map((it) => Date.parse(it.validTo));
  return { faults, warnings, notAfterMs: ends.length === 0 ? null : Math.min(...ends) };
}

/** Every one of the text, or what is wrong with it. */
function certificatesIn(text: string): X509Certificate[] | string {
  const blocks = text.match(/-----BEGIN (?:TRUSTED )?CERTIFICATE-----[\s\S]*?-----END (?:TRUSTED )?CERTIFICATE-----/g);
  if (blocks === null) return "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)";
  try {
    return blocks.map((block) => new X509Certificate(block));
  } catch {
    return "holds a certificate that cannot be read";
  }
}

function keyIn(text: string): ReturnType<typeof createPrivateKey> | string {
  if (/-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED/m.test(text))
    return "is encrypted, and nobody is there to type its pass phrase: openssl pkey -in FILE -out PLAIN, chmod 600 PLAIN";
  if (!/-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(text)) return "holds no private key in PEM form";
  try {
    return createPrivateKey(text);
  } catch {
    return "holds a private key that cannot be read";
  }
}

function openContext(given: TlsParts): SecureContext | string {
  try {
    return createSecureContext({ ...given, minVersion: tlsVersionMin });
  } catch (error) {
    return `cannot be used: ${error instanceof Error ? error.message : String(error)}`;
  }
}

export interface CertificateStatus {
  /** Where the configuration names it, such as `upstream`. */
  readonly use: string;
  /** Null: nothing is shown. */
  readonly notAfterMs: number | null;
  /** Why what the files hold now is not used; null: it is. */
  readonly trouble: string | null;
}

/** What one side shows and whom it believes, as it is now. */
export class Credential {
  readonly use: string;
  readonly files: TlsPaths;
  readonly #listeners: (() => void)[] = [];
  #parts: TlsParts = {};
  #context: SecureContext | null = null;
  #notAfterMs: number | null = null;
  /** Of the last look. */
  #fault: string | null = null;
  #trouble: string | null = null;

  constructor(use: string, files: TlsPaths) {
    this.use = use;
    this.files = files;
  }

  get parts(): TlsParts {
    return this.#parts;
  }
  /** For clients: made once, not for each connection. */
  get context(): SecureContext {
    this.#context ??= createSecureContext({ ...this.#parts, minVersion: tlsVersionMin });
    return this.#context;
  }
  get status(): CertificateStatus {
    return { use: this.use, notAfterMs: this.#notAfterMs, trouble: this.#trouble };
  }

  onChange(listener: () => void): void {
    this.#listeners.push(listener);
  }

  /** Uses what the files hold now, where that can be used. Tells what is new: renewed, or refused and why; null: nothing. */
  async look(nowMs: number): Promise<{ readonly state: "renewed" | "refused"; readonly detail: string } | null> {
    const found = await this.#read(nowMs);
    if (typeof found === "string") {
      const isNews = this.#trouble !== found && this.#fault === found;
      this.#fault = found;
      if (!isNews) return null;
      this.#trouble = found;
      return { state: "refused", detail: `${found}; the former one stays in use` };
    }
    this.#fault = null;
    this.#trouble = null;
    if (parts.every((it) => found.parts[it] === this.#parts[it])) return null;
    this.#parts = found.parts;
    this.#context = null;
    this.#notAfterMs = found.notAfterMs;
    for (const listener of this.#listeners) listener();
    const until = found.notAfterMs === null ? "" : `, valid until ${new Date(found.notAfterMs).toISOString()}`;
    return { state: "renewed", detail: `${Object.values(this.files).join(", ")}${until}` };
  }

  /** Or what is wrong with it. */
  async #read(nowMs: number): Promise<{ parts: TlsParts; notAfterMs: number | null } | string> {
    let read: TlsParts;
    try {
      read = await partsOf(this.files);
    } catch (error) {
      const { code, path = "a file" } = error as NodeJS.ErrnoException;
      return `${path} cannot be read (${code ?? String(error)})`;
    }
    const { faults, notAfterMs } = judgeTls(read, nowMs);
    const [first] = faults;
    if (first !== undefined) return `${this.files[tlsKeys[first.of]]} ${first.message}`;
    return { parts: read, notAfterMs };
  }
}

export interface CertificatesParts {
  readonly events: Events;
  readonly clock: Clock;
}

const everyMs = 2_000;

/** All that a process uses. */
export class Certificates {
  readonly #parts: CertificatesParts;
  readonly #all: Credential[] = [];
  readonly #stop = new AbortController();
  #looking: Promise<void> = Promise.resolve();

  constructor(given: CertificatesParts) {
    this.#parts = given;
    void this.#watch();
  }

  /** Rejects with GW_CONFIG_INVALID where the files cannot be used. */
  async open(use: string, files: TlsPaths): Promise<Credential> {
    const credential = new Credential(use, files);
    const nowMs = this.#parts.clock.wallMs();
    // The second look tells what the first saw.
    if ((await credential.look(nowMs)) === null) {
      const second = await credential.look(nowMs);
      if (second?.state === "refused")
        throw new GatewayError("GW_CONFIG_INVALID", `${use}: ${credential.status.trouble}`);
    }
    this.#all.push(credential);
    return credential;
  }

  get status(): readonly CertificateStatus[] {
    return this.#all.map((it) => it.status);
  }

  /** Resolves when every file was looked at. */
  look(): Promise<void> {
    this.#looking = this.#looking.then(() => this.#look());
    return this.#looking;
  }

  close(): void {
    this.#stop.abort();
  }

  /** Ends with `close`. */
  async #watch(): Promise<void> {
    const { signal } = this.#stop;
    for (;;) {
      await this.#parts.clock.sleep(everyMs, signal);
      if (signal.aborted) return;
      await this.look();
    }
  }

  async #look(): Promise<void> {
    for (const credential of this.#all) {
      const news = await credential.look(this.#parts.clock.wallMs());
      if (news !== null) this.#parts.events.tell({ type: "certificate", use: credential.use, ...news });
    }
  }
}
