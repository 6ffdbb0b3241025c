// The forms that values of gateway.yaml have: names, addresses, URLs, requests. Each takes a text and gives what it means, or says why not.

import { createRequire } from "node:module";
import ipaddr from "ipaddr.js";
import { z } from "zod";
import { nearest } from "../../rules/fault.ts";
import { canonicalTarget } from "../../rules/target.ts";
import { parseTemplate } from "../../rules/template.ts";
import { parseAddress } from "./address.ts";
import { parseStore } from "./storeaddress.ts";
import type * as EthersAddress from "ethers/address";
import type { Parsed } from "../../rules/pointer.ts";
import type { Template } from "../../rules/template.ts";
import type { Address } from "./address.ts";
import type { StoreAddress } from "./storeaddress.ts";

/** `GET /health`: a request without a body that the gateway makes itself. */
export interface RequestLine {
  readonly method: string;
  /** Canonical. */
  readonly target: string;
}

export const serviceName = text(/^[a-z0-9-]{1,63}$/, 'has to be 1 to 63 of "a-z", "0-9" and "-"');
/** Names become labels, file names, NATS keys and parts of URLs. */
export const replicaName = text(
  /^[A-Za-z0-9]([A-Za-z0-9._-]{0,62})$/,
  'has to be 1 to 63 of letters, digits, ".", "_" and "-", beginning with a letter or digit',
);
export const gatewayName = replicaName;
/** A number comes after it. */
export const namePrefix = text(
  /^[A-Za-z0-9]([A-Za-z0-9._-]{0,59})$/,
  'has to be 1 to 60 of letters, digits, ".", "_" and "-", beginning with a letter or digit',
);
export const file = z.string().min(1);
export const command = z.array(z.string()).min(1);
export const imageName = text(/^[A-Za-z0-9][\w./:@-]{0,254}$/, "is not the name of an image such as localhost/shop:1");

export const address = parsed<Address>(parseAddress);
export const requestLine = parsed<RequestLine>(parseRequestLine);
export const storeAddress = parsed<StoreAddress>(parseStore);

export const template = z.string().transform((value, context): Template => {
  const parsed: Parsed<Template> = parseTemplate(value);
  if (parsed.ok) return parsed.value;
  const meant = parsed.suggestion === undefined ? "" : ` (did you mean "${parsed.suggestion}"?)`;
  context.addIssue({ code: "custom", message: parsed.message + meant });
  return z.NEVER;
});

export const cidr = z.string().refine((value) => isCidr(value), {
  error: (issue) => `${JSON.stringify(issue.input)} is not an address or a network such as 10.0.0.0/8`,
});

export const origin = (protocols: readonly string[], example: string): z.ZodType<string, string> =>
  z.string().transform((value, context): string => {
    const wrong = originFault(value, protocols, example);
    if (wrong === null) return new URL(value).origin;
    context.addIssue({ code: "custom", message: wrong });
    return z.NEVER;
  });

export const natsServer = z.string().refine((value) => /^((nats|tls):\/\/)?[^\s/@?#]+(:\d+)?$/.test(value), {
  error: (issue) =>
    String(issue.input).includes("@")
      ? "has credentials in it: they belong into credentialsFile, passwordFile (with user) or tokenFile"
      : `${JSON.stringify(issue.input)} is not a NATS server such as nats://127.0.0.1:4222`,
});

export const redisUrl = z
  .string()
  .refine((value) => redisFault(value) === null, { error: (issue) => redisFault(issue.input) ?? "" });

export type Quiesce =
  | { readonly kind: "stop" }
  | { readonly kind: "none" }
  | ({ readonly kind: "request" } & RequestLine);

export const quiesce = z.string().transform((value, context): Quiesce => {
  if (value === "stop" || value === "none") return { kind: value };
  const parsed = parseRequestLine(value);
  if (typeof parsed !== "string") return { kind: "request", ...parsed };
  context.addIssue({
    code: "custom",
    message: `"${value}" is neither stop nor none nor a request such as "POST /quiesce"`,
    params: { suggestion: nearest(value, ["stop", "none"]) },
  });
  return z.NEVER;
});

/** Paths inside a state folder: what `exclude` leaves out. */
export const pattern = z.string().refine((value) => isPattern(value), {
  error: (issue) => `${JSON.stringify(issue.input)} is not a pattern of paths inside the state, such as cache/**`,
});

/** "off", or what the other form gives. */
export const orOff = <T extends z.ZodType>(
  form: T,
  words: string,
): z.ZodUnion<readonly [z.ZodPipe<z.ZodLiteral<"off">, z.ZodTransform<null, "off">>, T]> =>
  z.union([z.literal("off").transform(() => null), form], {
    error: (issue) => `${JSON.stringify(issue.input)} is neither ${words} nor off`,
  });

/** Lower case; a checksum (EIP-55) is looked at where there is one. */
export const ethereumAddress = z
  .string({ error: (issue) => (typeof issue.input === "number" ? unquoted : undefined) })
  .transform((value, context): string => {
    const wrong = ethereumFault(value);
    if (wrong === null) return value.toLowerCase();
    context.addIssue({ code: "custom", message: wrong });
    return z.NEVER;
  });

/** A secret: faults say nothing of it. */
export const rpcUrl = z
  .string({ error: () => "is not a URL such as http://127.0.0.1:8545" })
  .refine((value) => isRpcUrl(value), { error: () => "is not a URL such as http://127.0.0.1:8545" });

/** Of a text that YAML takes for a number where nobody quotes it; never shows it. */
export const secretText = z
  .string({ error: (issue) => (typeof issue.input === "number" ? unquoted : "expected a text") })
  .min(1, { error: () => "is empty" });

/** A key of interface.md that a later issue builds: refused rather than ignored. */
export function notBuilt(what: string): z.ZodOptional<z.ZodNever> {
  return z
    .never({ error: `is not built yet: ${what} to come. Remove this key` })
    .optional()
    .meta({ description: "Not built yet" });
}

const unquoted = 'is read as a number: write it in quotes, "0x…"';

function parsed<T extends object>(
  parse: (text: string) => T | string,
): z.ZodPipe<z.ZodString, z.ZodTransform<T, string>> {
  return z.string().transform((value, context): T => {
    const result = parse(value);
    if (typeof result !== "string") return result;
    context.addIssue({ code: "custom", message: result });
    return z.NEVER;
  });
}

function text(pattern: RegExp, rule: string): z.ZodString {
  return z.string().regex(pattern, { error: (issue) => `${JSON.stringify(issue.input)} ${rule}` });
}

function parseRequestLine(text: string): RequestLine | string {
  const [, method, target] = /^([!#$%&'*+\-.^_`|~0-9A-Z]+) (\/\S*)$/.exec(text) ?? [];
  if (method === undefined || target === undefined) return `"${text}" is not a request such as "GET /health"`;
  const canonical = canonicalTarget(target, { encodedSlash: "keep" });
  return canonical.ok ? { method, target: canonical.target } : `"${target}" cannot be requested: ${canonical.reason}`;
}

function isCidr(text: string): boolean {
  return text.includes("/") ? ipaddr.isValidCIDR(text) : ipaddr.isValid(text) && ipaddr.parse(text).toString() !== "";
}

function isPattern(text: string): boolean {
  return text !== "" && !text.startsWith("/") && !/[\\\0]/.test(text) && !text.split("/").includes("..");
}

function originFault(text: string, protocols: readonly string[], example: string): string | null {
  if (!URL.canParse(text)) return `"${text}" is not a URL such as ${example}`;
  const url = new URL(text);
  if (url.username !== "" || url.password !== "") return "has credentials in it, which is not supported";
  if (!protocols.includes(url.protocol)) return `"${text}" is not a URL such as ${example}`;
  if (url.pathname !== "/" || url.search !== "" || url.hash !== "" || text.includes("?") || text.includes("#")) {
    return `"${text}" has a path: the paths are the clients' own, only scheme, host and port stand here`;
  }
  return null;
}

/** What is wrong with a URL of Redis; never shows it. */
export function redisFault(value: unknown): string | null {
  const example = "is not a Redis URL such as redis://127.0.0.1:6379";
  if (typeof value !== "string" || !URL.canParse(value)) return example;
  const { protocol, hostname } = new URL(value);
  return (protocol === "redis:" || protocol === "rediss:") && hostname !== "" ? null : example;
}

function isRpcUrl(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const { protocol, hostname, hash } = new URL(text);
  return (protocol === "http:" || protocol === "https:") && hostname !== "" && hash === "";
}

function ethereumFault(text: string): string | null {
  if (!/^0x[0-9a-fA-F]{40}$/.test(text)) return `"${text}" is not an address: 0x and 40 hex digits`;
  const digits = text.slice(2);
  if (digits === digits.toLowerCase() || digits === digits.toUpperCase()) return null;
  // Only now: it is a large package, and the rest of the command line needs nothing of it.
  const { getAddress } = createRequire(import.meta.url)("ethers/address") as typeof EthersAddress;
  const right = getAddress(text.toLowerCase());
  return right === text ? null : `"${text}" has a wrong checksum (EIP-55): a digit is wrong, or the case of a letter`;
}
