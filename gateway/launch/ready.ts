// Whether a backend is ready, or healthy: it answers a request with a status below 400, or, without a request, its port accepts (with TLS: it
// speaks it with us).

import { request as requestHttp } from "node:http";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { dial, whenUsable } from "../drivers/dial.ts";
import type { Socket } from "node:net";
import type { TlsContext } from "../drivers/dial.ts";

export interface HealthRequest {
  readonly method: string;
  readonly path: string;
}

export interface Readiness {
  readonly isReady: boolean;
  /** What was seen, for a person. */
  readonly reason: string;
}

export interface ReadyTarget {
  readonly url: string;
  /** Null: the port accepts. */
  readonly request: HealthRequest | null;
  readonly tls?: TlsContext;
}

/** Asks once, over a connection of its own. Resolves, never rejects. */
export function checkReady(target: ReadyTarget, timeoutMs: number): Promise<Readiness> {
  return target.request === null ? checkUsable(target, timeoutMs) : checkRequest(target, target.request, timeoutMs);
}

/** Whether somebody listens, whoever it is. Resolves, never rejects. */
export function checkAccepts(url: string, timeoutMs: number): Promise<Readiness> {
  const { hostname, port, protocol } = new URL(url);
  return checkSocket(
    connect(Number(port) || (protocol === "https:" ? 443 : 80), hostname.replace(/^\[|\]$/g, "")),
    timeoutMs,
  );
}

/** Asks until it is ready. Rejects with the signal's reason, and tells what was seen last. */
export async function waitReady(target: ReadyTarget, signal: AbortSignal, everyMs = 50): Promise<void> {
  let last = "it was not asked yet";
  // Ends when it is ready, or by the signal.
  for (;;) {
    if (signal.aborted) throw new Error(`${target.url} is not ready: ${last}`, { cause: signal.reason });
    const { isReady, reason } = await checkReady(target, 2_000);
    if (isReady) return;
    last = reason;
    await sleep(everyMs, undefined, { signal }).catch(() => {});
  }
}

function checkUsable({ tls, url }: ReadyTarget, timeoutMs: number): Promise<Readiness> {
  return checkSocket(dial(new URL(url), tls), timeoutMs);
}

function checkSocket(socket: Socket, timeoutMs: number): Promise<Readiness> {
  return new Promise((resolve) => {
    const settle = (isReady: boolean, reason: string): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve({ isReady, reason });
    };
    const timer = setTimeout(() => settle(false, `the port did not accept within ${timeoutMs} ms`), timeoutMs);
    whenUsable(socket, () => settle(true, "the port accepts"));
    socket.on("error", (error) => settle(false, error.message));
    socket.once("close", () => settle(false, "the connection was closed at once"));
  });
}

function checkRequest(target: ReadyTarget, health: HealthRequest, timeoutMs: number): Promise<Readiness> {
  const what = `${health.method} ${health.path}`;
  return new Promise((resolve) => {
    const url = new URL(target.url);
    const request = requestHttp({
      host: url.hostname.replace(/^\[|\]$/g, ""),
      port: url.port,
      method: health.method,
      path: health.path,
      headers: { host: url.host },
      createConnection: () => dial(url, target.tls),
    });
    const settle = (isReady: boolean, reason: string): void => {
      clearTimeout(timer);
      request.destroy();
      resolve({ isReady, reason });
    };
    const timer = setTimeout(() => settle(false, `${what}: no answer within ${timeoutMs} ms`), timeoutMs);
    request.once("response", ({ statusCode = 0 }) => settle(statusCode < 400, `${what}: status ${statusCode}`));
    request.on("error", (error) => settle(false, `${what}: ${error.message}`));
    request.end();
  });
}
