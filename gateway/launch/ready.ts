// Whether a backend is ready, or healthy: it answers a request with a status below 400, or, without a request, its port accepts.

import { request as requestHttp } from "node:http";
import { request as requestHttps } from "node:https";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

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
  readonly tls?: { readonly ca?: string; readonly cert?: string; readonly key?: string };
}

/** Asks once, over a connection of its own. Resolves, never rejects. */
export function checkReady(target: ReadyTarget, timeoutMs: number): Promise<Readiness> {
  return target.request === null ? checkAccept(target.url, timeoutMs) : checkRequest(target, target.request, timeoutMs);
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

function checkAccept(url: string, timeoutMs: number): Promise<Readiness> {
  const { hostname, port, protocol } = new URL(url);
  return new Promise((resolve) => {
    const socket = connect(Number(port) || (protocol === "https:" ? 443 : 80), hostname.replace(/^\[|\]$/g, ""));
    const settle = (isReady: boolean, reason: string): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve({ isReady, reason });
    };
    const timer = setTimeout(() => settle(false, `the port did not accept within ${timeoutMs} ms`), timeoutMs);
    socket.once("connect", () => settle(true, "the port accepts"));
    socket.on("error", (error) => settle(false, error.message));
  });
}

function checkRequest(target: ReadyTarget, health: HealthRequest, timeoutMs: number): Promise<Readiness> {
  const what = `${health.method} ${health.path}`;
  return new Promise((resolve) => {
    const start = target.url.startsWith("https:") ? requestHttps : requestHttp;
    const request = start(new URL(target.url).origin, {
      method: health.method,
      path: health.path,
      agent: false,
      ...target.tls,
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
