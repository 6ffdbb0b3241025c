// Where a socket listens: `127.0.0.1:8080`, `:8080` (every interface), `[::]:80`, `localhost:0`.

import { isIP } from "node:net";
import { networkInterfaces } from "node:os";

export interface Address {
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
}

/** An address, or what is wrong with the text. */
export function parseAddress(text: string): Address | string {
  if (text.includes("/")) return `"${text}" is not host:port (Unix sockets and URLs cannot be listened on)`;
  const [, bracketed, plain = "", digits = ""] = /^(?:\[([^\]]*)\]|([^:[\]]*)):(\d{1,5})$/.exec(text) ?? [];
  if (digits === "") return `"${text}" is not host:port, such as 127.0.0.1:8080, :8080 or [::]:8080`;
  const port = Number(digits);
  if (port > 65_535) return `${digits} is not a port: at most 65535`;
  if (bracketed !== undefined) {
    return isIP(bracketed) === 6 ? { host: bracketed, port } : `"${bracketed}" is not an IPv6 address`;
  }
  if (plain === "") return { host: everyInterface(), port };
  if (/^[\d.]+$/.test(plain) && isIP(plain) !== 4) return `"${plain}" is not an IPv4 address`;
  if (!/^[A-Za-z0-9]([A-Za-z0-9.-]{0,252})$/.test(plain)) return `"${plain}" is not a host name`;
  return { host: plain.toLowerCase(), port };
}

/** `host:port` as URLs write it. */
export function formatAddress({ host, port }: Address): string {
  return `${isIP(host) === 6 ? `[${host}]` : host}:${port}`;
}

export function isLoopback(host: string): boolean {
  const bare = host.toLowerCase().replace(/^\[|\]$/g, "");
  const mapped = bare.replace(/^::ffff:/, "");
  if (bare === "localhost" || bare.endsWith(".localhost") || bare === "::1") return true;
  return mapped.startsWith("127.") && isIP(mapped) === 4;
}

export function isWildcard(host: string): boolean {
  return host === "0.0.0.0" || isAllZero(host);
}

/** Whether a connection to `target` would reach a socket that listens on `own` of this machine. */
export function reaches(target: Address, own: Address): boolean {
  if (target.port !== own.port || own.port === 0) return false;
  if (target.host === own.host) return true;
  if (isWildcard(own.host)) return isLoopback(target.host) || isWildcard(target.host) || isOwnInterface(target.host);
  // Connecting to the wildcard address reaches loopback on Linux.
  return (isLoopback(target.host) || isWildcard(target.host)) && isLoopback(own.host);
}

const isAllZero = (host: string): boolean => isIP(host) === 6 && /^[0:]+$/.test(host);

function isOwnInterface(host: string): boolean {
  return interfaceAddresses().some(({ address }) => address === host);
}

/** `::` takes IPv4 as well, but cannot be bound where IPv6 is switched off. */
function everyInterface(): string {
  return interfaceAddresses().some(({ family }) => family === "IPv6") ? "::" : "0.0.0.0";
}

function interfaceAddresses(): readonly { readonly address: string; readonly family: string }[] {
  return Object.values(networkInterfaces()).flatMap((list) => list ?? []);
}
