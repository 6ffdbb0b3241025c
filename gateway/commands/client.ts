// The CLI as a client of a running gateway: finds its admin address and token, asks, and says plainly what went wrong.

import { readFileSync } from "node:fs";
import { request } from "node:http";
import { resolve } from "node:path";
import { CommandError } from "./terminal.ts";
import type { ClientRequest, IncomingMessage } from "node:http";
import type { Terminal } from "./terminal.ts";

/** Of every command that talks to a gateway. */
export interface ClientOptions {
  readonly config?: string;
  readonly admin?: string;
  readonly tokenFile?: string;
  readonly json?: boolean;
}

const defaultUrl = "http://127.0.0.1:9070";
const answerBytesMax = 64 * 1024 * 1024;
const timeoutMs = 30_000;

export class Client {
  readonly #url: URL;
  readonly #token: string | null;

  private constructor(url: URL, token: string | null) {
    this.#url = url;
    this.#token = token;
  }

  /** Flags before variables before -c FILE or ./gateway.yaml before the default. */
  static async of(terminal: Terminal, options: ClientOptions): Promise<Client> {
    const { env, cwd } = terminal;
    const given = options.admin ?? env["GATEWAY_ADMIN_URL"];
    const tokenFile = options.tokenFile ?? env["GATEWAY_ADMIN_TOKEN_FILE"];
    const token = tokenFile === undefined ? null : readToken(resolve(cwd, tokenFile));
    if (given !== undefined) return new Client(parseUrl(given), token);
    const { readAdmin } = await import("./adminfile.ts");
    const found = readAdmin(options.config, terminal);
    if (found === null) return new Client(parseUrl(defaultUrl), token);
    return new Client(
      parseUrl(found.url),
      token ?? (found.tokenFile === null ? found.token : readToken(found.tokenFile)),
    );
  }

  get url(): string {
    return this.#url.origin;
  }

  async get<T>(path: string): Promise<T> {
    return (await this.#call("GET", path, null)) as T;
  }

  async post<T>(path: string, body: object): Promise<T> {
    return (await this.#call("POST", path, JSON.stringify(body))) as T;
  }

  async delete<T>(path: string): Promise<T> {
    return (await this.#call("DELETE", path, null)) as T;
  }

  /** The status alone, whatever it is. */
  async probe(path: string, limitMs: number): Promise<{ readonly status: number; readonly body: string }> {
    const answer = await this.#send("GET", path, null, limitMs);
    return { status: answer.statusCode ?? 0, body: await read(answer) };
  }

  /** Events of a stream until it ends. */
  async *events(path: string): AsyncIterable<{ readonly event: string; readonly data: unknown }> {
    const answer = await this.#send("GET", path, null, 0);
    if (answer.statusCode !== 200) throw failure(answer.statusCode ?? 0, await read(answer), this.url);
    let rest = "";
    answer.setEncoding("utf8");
    for await (const chunk of answer as AsyncIterable<string>) {
      const parts = (rest + chunk).split("\n\n");
      rest = parts.pop() ?? "";
      for (const part of parts) {
        const field = (name: string): string | undefined =>
          part
            .split("\n")
            .find((line) => line.startsWith(`${name}: `))
            ?.slice(name.length + 2);
        const data = field("data");
        if (data !== undefined) yield { event: field("event") ?? "message", data: JSON.parse(data) as unknown };
      }
    }
  }

  async #call(method: string, path: string, body: string | null): Promise<unknown> {
    // Verifying reads the whole log.
    const answer = await this.#send(method, path, body, path === "/v1/log/verify" ? 0 : timeoutMs);
    const text = await read(answer);
    const status = answer.statusCode ?? 0;
    if (status < 200 || status > 299) throw failure(status, text, this.url);
    try {
      return JSON.parse(text) as unknown;
    } catch {
      throw new CommandError(
        `${this.url} answered something that is not from a gateway's admin address.`,
        "Is it the front? Give the admin address: --admin URL",
      );
    }
  }

  #send(method: string, path: string, body: string | null, limitMs: number): Promise<IncomingMessage> {
    const headers: Record<string, string> = { accept: "application/json" };
    if (this.#token !== null) headers["authorization"] = `Bearer ${this.#token}`;
    if (body !== null) {
      headers["content-type"] = "application/json";
      headers["content-length"] = String(Buffer.byteLength(body));
    }
    return new Promise((done, fail) => {
      const sent: ClientRequest = request(new URL(path, this.#url), { method, headers, agent: false }, done);
      if (limitMs > 0) sent.setTimeout(limitMs, () => sent.destroy(new Error("timeout")));
      sent.on("error", (error) => fail(unreachable(error, this.url, limitMs)));
      sent.end(body ?? undefined);
    });
  }
}

function readToken(file: string): string {
  try {
    const token = readFileSync(file, "utf8").trim();
    if (token !== "") return token;
    throw new CommandError(`The token file ${file} is empty.`, "Give the file with the gateway's admin token.", {
      exitCode: 2,
    });
  } catch (error) {
    if (error instanceof CommandError) throw error;
    const code = (error as NodeJS.ErrnoException).code ?? "unknown error";
    throw new CommandError(`The token file ${file} cannot be read (${code}).`, "Check --token-file.", { exitCode: 2 });
  }
}

function parseUrl(text: string): URL {
  const full = /^[a-z]+:\/\//i.test(text) ? text : `http://${text.startsWith(":") ? "127.0.0.1" : ""}${text}`;
  if (URL.canParse(full) && new URL(full).protocol === "http:") return new URL(full);
  throw new CommandError(`"${text}" is not the address of a gateway's admin side.`, `Write it as ${defaultUrl}`, {
    exitCode: 2,
  });
}

async function read(answer: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of answer as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > answerBytesMax) throw new CommandError("The answer is larger than 64 MiB.", "Ask for less.");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function unreachable(error: NodeJS.ErrnoException, url: string, limitMs: number): CommandError {
  const start = "Start one with: gateway run. Or say where it is: --admin URL, or -c FILE";
  switch (error.code) {
    case "ECONNREFUSED":
      return new CommandError(`No gateway answers at ${url}: connection refused.`, start);
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return new CommandError(`The host of ${url} is not known.`, "Check --admin URL.");
    case "ECONNRESET":
      return new CommandError(`The gateway at ${url} closed the connection.`, "Is it stopping? Try again.");
    default:
      if (error.message === "timeout") {
        return new CommandError(
          `The gateway at ${url} did not answer within ${limitMs / 1000} s.`,
          "Is it overloaded? Look at its log.",
        );
      }
      return new CommandError(`The gateway at ${url} cannot be reached (${error.code ?? error.message}).`, start);
  }
}

function failure(status: number, text: string, url: string): CommandError {
  const problem = parseProblem(text);
  const code = problem?.code ?? `HTTP ${status}`;
  const facts = { code };
  if (status === 401) {
    return new CommandError(
      `The gateway at ${url} wants its admin token.`,
      "Give it: --token-file FILE, or GATEWAY_ADMIN_TOKEN_FILE",
      facts,
    );
  }
  if (problem === null) {
    return new CommandError(
      `${url} answered ${status}, not as a gateway's admin address does.`,
      "Give the admin address: --admin URL",
      facts,
    );
  }
  return new CommandError(problem.detail, `${code}: see deploy/runbook.md`, facts);
}

function parseProblem(text: string): { readonly code: string; readonly detail: string } | null {
  try {
    const value = JSON.parse(text) as { readonly code?: unknown; readonly detail?: unknown };
    return typeof value.code === "string" && typeof value.detail === "string"
      ? { code: value.code, detail: value.detail }
      : null;
  } catch {
    return null;
  }
}
