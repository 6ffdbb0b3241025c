// What a request to the admin address asks for: names in its path, its query, its body; or why it cannot be taken.

import { GatewayError } from "../errors.ts";
import type { FastifyRequest } from "fastify";

export const bad = (message: string): GatewayError => new GatewayError("GW_BAD_REQUEST", `${message}.`);

export function paramOf({ params }: FastifyRequest, name: string): string {
  return (params as Record<string, string>)[name] ?? "";
}

export function positionParam(request: FastifyRequest): number {
  const text = paramOf(request, "position");
  if (!/^\d{1,16}$/.test(text)) {
    throw new GatewayError("GW_NOT_FOUND", `"${text}" is not a position of the log.`);
  }
  return Number(text);
}

/** The last value where a name is repeated. */
export function queryOf({ query }: FastifyRequest): Readonly<Record<string, string | undefined>> {
  const flat: Record<string, string | undefined> = Object.create(null) as Record<string, string | undefined>;
  for (const [name, value] of Object.entries(query as Record<string, string | string[]>)) {
    flat[name] = Array.isArray(value) ? value.at(-1) : value;
  }
  return flat;
}

export function numberOf(query: Readonly<Record<string, string | undefined>>, name: string, fallback: number): number {
  const text = query[name];
  if (text === undefined) return fallback;
  if (!/^\d{1,15}$/.test(text)) throw bad(`${name} has to be a whole number, not "${text}"`);
  return Number(text);
}

export function bodyOf({ body }: FastifyRequest): Readonly<Record<string, unknown>> {
  if (body === undefined || body === null) return {};
  if (typeof body !== "object" || Array.isArray(body)) throw bad("The body has to be a JSON object");
  return body as Record<string, unknown>;
}

/** Reasons are shown to people and written to the journal: short, one line. */
export function textOf(body: Readonly<Record<string, unknown>>, name: string, fallback: string): string {
  const value = Object.hasOwn(body, name) ? body[name] : undefined;
  if (value === undefined || value === "") return fallback;
  // oxlint-disable-next-line no-control-regex
  if (typeof value !== "string" || value.length > 500 || /[\u0000-\u001f\u007f-\u009f]/.test(value)) {
    throw bad(`${name} has to be a text of one line, at most 500 characters`);
  }
  return value;
}
