// Facts as log lines on stderr: JSON, or pretty on a terminal. What is written is listed here, field by field; nothing else gets out.
// Bounded: when the reader of the lines stalls, lines are dropped and counted, requests never wait.

import { isatty } from "node:tty";
import { destination as openDestination, pino, stdTimeFunctions } from "pino";
import type { DestinationStream, Level, Logger } from "pino";
import type { Events, Fact } from "../events.ts";

export interface JournalOptions {
  readonly events: Events;
  readonly level: Level | "silent";
  readonly format: "auto" | "json" | "pretty";
  readonly service: string;
  readonly name: string;
  /** Default: stderr. */
  readonly to?: DestinationStream;
}

export interface Journal {
  /** For what is no fact: the start itself. */
  readonly logger: Logger;
  setLevel(level: Level | "silent"): void;
  /** Writes out what is buffered. May be called twice; facts told later are lost. */
  close(): void;
}

const bufferBytesMax = 4 * 1024 * 1024;
const lineCharsMax = 4096;

export async function openJournal(options: JournalOptions): Promise<Journal> {
  const { events, level, format, service, name } = options;
  const isPretty = format === "pretty" || (format === "auto" && options.to === undefined && isatty(2));
  const buffer = options.to === undefined && !isPretty ? bufferedStderr() : null;
  const to = options.to ?? buffer?.stream ?? (await prettyStderr());
  let isOpen = true;
  const logger = pino(
    {
      level,
      base: isPretty ? null : { service, gateway: name },
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    options.to !== undefined && isPretty ? await prettyOn(options.to) : to,
  );
  buffer?.onDropped((count) => logger.warn({ count }, "log lines were dropped: whoever reads them is too slow"));
  let isStopping = false;
  events.listen((fact) => {
    if (!isOpen) return;
    if (fact.type === "gateway" && fact.state === "stopping") isStopping = true;
    // Closing the log and the key store ourselves is no trouble to tell of.
    if (isStopping && (fact.type === "log" || fact.type === "keys") && fact.state === "away") return;
    write(logger, fact);
  });
  return {
    logger,
    setLevel(next) {
      logger.level = next;
    },
    close() {
      if (!isOpen) return;
      isOpen = false;
      buffer?.flush();
    },
  };
}

/** One line a fact. The level says who should look: info nobody, warn soon, error now. */
function write(logger: Logger, fact: Fact): void {
  switch (fact.type) {
    case "request": {
      if (!logger.isLevelEnabled("info")) return;
      const { rule, mode, method, path, status, code, outcome, position, replica, peer } = fact;
      const durationMs = Math.round(fact.durationMs * 1000) / 1000;
      return logger.info(
        { rule, mode, method, path, status, code, outcome, position, replica, durationMs, peer },
        "request",
      );
    }
    case "appended":
      return logger.trace({ items: fact.items, bytes: fact.bytes, durationMs: fact.durationMs }, "record appended");
    case "append-repeated":
      return logger.warn({ attempt: fact.attempt, cause: fact.cause }, "record published again");
    case "applied":
      // Told by each copy of each entry: what nobody reads is not put together.
      if (!logger.isLevelEnabled("trace")) return;
      return logger.trace(
        { replica: fact.replica, position: fact.position, durationMs: fact.durationMs },
        "entry applied",
      );
    case "key":
      return logger.debug({ result: fact.result }, "key looked up");
    case "unknown-outcome":
      return logger.warn({ replica: fact.replica, position: fact.position, cause: fact.cause }, "outcome unknown");
    case "settled": {
      const { replica, position, by, result } = fact;
      return logger.info({ replica, position, by, result }, "outcome settled");
    }
    case "replica": {
      const { replica, from, to, reason } = fact;
      const isGrave = to === "held" || to === "quarantined";
      return logger[isGrave ? "warn" : "info"]({ replica, from, to, reason }, `replica ${replica} is ${to}`);
    }
    case "peer":
      return logger.info(
        { peer: fact.gateway, boot: fact.boot },
        `the gateway ${fact.gateway} ${fact.state === "heard" ? "is there" : "has gone"}`,
      );
    case "incarnation":
      return logger.info({ replica: fact.replica, incarnation: fact.id, url: fact.url }, "new life of a backend");
    case "disagreement": {
      const { position, rule, minority, decisive } = fact;
      return logger[decisive ? "error" : "warn"]({ position, rule, minority, decisive }, "copies answered differently");
    }
    case "parked":
      return logger.error({ position: fact.position, reason: fact.reason }, "entry parked");
    case "once-unknown":
      return logger.warn({ position: fact.position, rule: fact.rule }, "outcome of an only-once request unknown");
    case "once-unfinished": {
      const { replica, position, rule, method, what } = fact;
      return logger.warn({ replica, position, rule, method, what }, "the primary did not finish an entry");
    }
    case "snapshot": {
      const { state, version, replica, position, detail } = fact;
      const level = state === "unsound" ? "error" : state === "failed" ? "warn" : "info";
      return logger[level]({ state, version, replica, position, detail }, `snapshot ${version}: ${state}`);
    }
    case "publication": {
      const { state, version, position, detail } = fact;
      const isGood = state === "sent" || state === "waiting" || state === "final";
      return logger[isGood ? "info" : "warn"]({ state, version, position, detail }, `publication ${version}: ${state}`);
    }
    case "recovery": {
      const { replica, state, detail } = fact;
      return logger[state === "failed" ? "error" : "info"](
        { replica, state, detail },
        `rebuild of ${replica}: ${state}`,
      );
    }
    case "audit": {
      const { result, position, culprits, detail } = fact;
      const level = result === "unequal" ? "error" : result === "impossible" ? "warn" : "info";
      return logger[level]({ result, position, culprits, detail }, `audit: ${result}`);
    }
    case "certificate": {
      const { use, state, detail } = fact;
      return logger[state === "refused" ? "error" : "info"]({ use, state, detail }, `certificate of ${use}: ${state}`);
    }
    case "handshake-failed":
      // Anybody can cause as many as they like: counted, and told to whoever looks closer.
      return logger.debug({ cause: fact.cause, peer: fact.peer }, "no TLS with a client");
    case "truncated":
      return logger.info({ firstPosition: fact.firstPosition, detail: fact.detail }, "log truncated");
    case "log": {
      const isGood = fact.state === "reachable" || fact.state === "room";
      return logger[isGood ? "info" : "error"]({ state: fact.state, detail: fact.detail }, `log: ${fact.state}`);
    }
    case "keys": {
      const isGood = fact.state === "reachable";
      return logger[isGood ? "info" : "error"]({ state: fact.state, detail: fact.detail }, `key store: ${fact.state}`);
    }
    case "guarantee":
      return logger.info({ guarantee: fact.level, why: fact.why }, "guarantee found out");
    case "output":
      return logger.info({ replica: fact.replica, stream: fact.stream }, printable(fact.line));
    case "gateway":
      return logger.info({ state: fact.state, detail: fact.detail }, `gateway ${fact.state}`);
    case "warning":
      return logger.warn({ about: fact.about, detail: fact.detail }, "warning");
    default:
      return fact satisfies never;
  }
}

/** A backend's line must not steer the terminal, nor fill the disk. */
function printable(line: string): string {
  const cut = line.length > lineCharsMax ? `${line.slice(0, lineCharsMax)}…` : line;
  // oxlint-disable-next-line no-control-regex
  return cut.replaceAll(/\u001b\[[0-9;]*m/g, "").replaceAll(/[\u0000-\u0008\u000a-\u001f\u007f-\u009f]/g, "\ufffd");
}

function bufferedStderr(): {
  readonly stream: DestinationStream;
  readonly flush: () => void;
  readonly onDropped: (listener: (count: number) => void) => void;
} {
  const stream = openDestination({ dest: 2, sync: false, maxLength: bufferBytesMax });
  let dropped = 0;
  let isBroken = false;
  stream.on("drop", () => {
    dropped++;
  });
  // Nobody reads stderr any more: that is no reason to stop serving.
  stream.on("error", () => {
    isBroken = true;
  });
  return {
    stream,
    flush() {
      if (isBroken) return;
      try {
        stream.flushSync();
      } catch {
        isBroken = true;
      }
    },
    onDropped(listener) {
      stream.on("drain", () => {
        if (dropped === 0) return;
        const count = dropped;
        dropped = 0;
        listener(count);
      });
    },
  };
}

const prettyOptions = { translateTime: "SYS:HH:MM:ss.l", ignore: "pid,hostname", singleLine: true } as const;

async function prettyStderr(): Promise<DestinationStream> {
  const { default: pretty } = await import("pino-pretty");
  const isColoured = process.env["NO_COLOR"] === undefined && isatty(2);
  return pretty({ ...prettyOptions, colorize: isColoured, destination: 2, sync: true });
}

async function prettyOn(to: DestinationStream): Promise<DestinationStream> {
  const { default: pretty } = await import("pino-pretty");
  const format = pretty.prettyFactory({ ...prettyOptions, colorize: false });
  return { write: (line) => to.write(format(line)) };
}
