// All coded errors in one list. A code is public: never renamed, never reused; `deploy/runbook.md` explains each.

export type Outcome = "executed" | "not-executed" | "unknown";

interface Code {
  /** HTTP status of the problem document; 0: never reaches a client (start-up and operator errors). */
  readonly status: number;
  readonly title: string;
  /** Whether the same request may be sent again without a key and without risk of a second execution. */
  readonly retrySafe: boolean;
}

export const codes = {
  GW_BAD_REQUEST: { status: 400, title: "The request is malformed or ambiguous", retrySafe: true },
  GW_BAD_TARGET: { status: 400, title: "The request target has no single canonical form", retrySafe: true },
  GW_BAD_HEADER: { status: 400, title: "A header field is malformed, ambiguous or not allowed", retrySafe: true },
  GW_HEADERS_TOO_LARGE: { status: 431, title: "The header section is too large", retrySafe: true },
  GW_BODY_TOO_LARGE: { status: 413, title: "The body is larger than limits.body", retrySafe: true },
  GW_EXPECTATION_FAILED: { status: 417, title: "Only 100-continue can be expected", retrySafe: true },
  GW_REQUEST_TIMEOUT: { status: 408, title: "The request did not arrive in time", retrySafe: true },
  GW_METHOD_NOT_SUPPORTED: { status: 501, title: "The method cannot be forwarded", retrySafe: true },
  GW_UPGRADE_REFUSED: { status: 400, title: "No rule allows this upgrade", retrySafe: true },
  GW_REFUSED: { status: 403, title: "A rule refuses this request", retrySafe: true },
  GW_KEY_MISSING: { status: 400, title: "The rule requires an Idempotency-Key", retrySafe: true },
  GW_KEY_MALFORMED: { status: 400, title: "The Idempotency-Key is malformed", retrySafe: true },
  GW_KEY_RUNNING: { status: 409, title: "A request with this Idempotency-Key is still running", retrySafe: true },
  GW_KEY_REUSED: {
    status: 422,
    title: "The Idempotency-Key was used with another payload or by another caller",
    retrySafe: true,
  },
  GW_KEYS_UNAVAILABLE: { status: 503, title: "The key store cannot be reached", retrySafe: false },
  GW_KEYS_WINDOW_FULL: {
    status: 503,
    title: "The key window is full of keys younger than the retention",
    retrySafe: true,
  },
  GW_ANSWER_LOST: { status: 503, title: "The request was executed, its answer is no longer known", retrySafe: false },
  GW_ANSWER_TOO_LARGE: { status: 502, title: "The backend's answer is larger than limits.answer", retrySafe: false },
  GW_OVERLOADED: { status: 503, title: "The gateway is at its limit", retrySafe: true },
  GW_LOG_FULL: { status: 503, title: "The log is full", retrySafe: true },
  GW_LOG_UNAVAILABLE: { status: 503, title: "The log did not answer in time", retrySafe: false },
  GW_LOG_REGRESSED: { status: 503, title: "The log lost its end or was replaced", retrySafe: true },
  GW_DISK_FULL: { status: 503, title: "The disk of the log is full", retrySafe: true },
  GW_NO_REPLICA: { status: 503, title: "No replica can serve the request", retrySafe: true },
  GW_READ_TOO_NEW: { status: 503, title: "No replica has reached the position the read asked for", retrySafe: true },
  GW_BACKEND_FAILED: { status: 502, title: "The backend did not answer the request", retrySafe: false },
  GW_BACKEND_TIMEOUT: { status: 504, title: "The backend did not answer in time", retrySafe: false },
  GW_ONCE_UNKNOWN: {
    status: 502,
    title: "It is not known whether the only copy that was asked executed the request",
    retrySafe: false,
  },
  GW_NO_AGREEMENT: { status: 502, title: "The replicas' answers have no majority", retrySafe: false },
  GW_PARKED: { status: 503, title: "The entry is parked and will not be executed", retrySafe: true },
  GW_PAUSED: { status: 503, title: "An operator has paused the gateway", retrySafe: true },
  GW_STOPPING: { status: 503, title: "The gateway is stopping", retrySafe: true },
  GW_INTERNAL: { status: 500, title: "The gateway failed; this is a defect", retrySafe: false },
  GW_UNAUTHORIZED: { status: 401, title: "The admin address needs its token", retrySafe: true },
  GW_FORBIDDEN: { status: 403, title: "The admin address refuses this origin or host", retrySafe: true },
  GW_NOT_FOUND: { status: 404, title: "There is no such thing on the admin address", retrySafe: true },
  GW_CONFLICT: { status: 409, title: "The state of the replica does not allow this", retrySafe: true },
  GW_CONFIG_INVALID: { status: 0, title: "The configuration or the rules are invalid", retrySafe: true },
  GW_DATA_LOCKED: { status: 0, title: "Another gateway uses this data folder", retrySafe: true },
  GW_LOG_MISSING: { status: 0, title: "The log is missing although it is known to have existed", retrySafe: true },
  GW_LOG_SERVER_TOO_OLD: {
    status: 0,
    title: "The NATS server is too old to keep the promises of a log",
    retrySafe: true,
  },
  GW_LOG_CONFIGURATION: {
    status: 0,
    title: "The stream of the log is not configured as the gateway needs it",
    retrySafe: true,
  },
  GW_LOG_CORRUPT: { status: 0, title: "A record of the log cannot be read", retrySafe: true },
  GW_GUARANTEE_TOO_LOW: { status: 0, title: "The log cannot give log.minGuarantee", retrySafe: true },
  GW_KEYS_CONFIGURATION: {
    status: 0,
    title: "The key store is not configured as the gateway needs it",
    retrySafe: true,
  },
  GW_CURSOR_LOST: { status: 0, title: "The cursor of a replica is missing or unreadable", retrySafe: true },
  GW_BOARD_LOST: {
    status: 503,
    title: "What the gateways agreed on is missing or unreadable",
    retrySafe: true,
  },
  GW_REPLICAS_DIFFER_AT_START: {
    status: 0,
    title: "The replicas' states differ before the first entry",
    retrySafe: true,
  },
  GW_REPLICAS_SHARE_STATE: { status: 0, title: "Two replicas share one state", retrySafe: true },
  GW_STORE_UNAVAILABLE: { status: 503, title: "The store of snapshots cannot be reached", retrySafe: true },
  GW_STORE_FULL: { status: 503, title: "The store of snapshots has no room", retrySafe: true },
  GW_SNAPSHOT_CORRUPT: { status: 0, title: "A snapshot is not what was recorded", retrySafe: true },
  GW_SNAPSHOT_MISSING: { status: 404, title: "There is no such snapshot", retrySafe: true },
  GW_SNAPSHOT_FAILED: { status: 500, title: "The state could not be captured", retrySafe: true },
  GW_RESTORE_FAILED: { status: 500, title: "The state could not be brought back", retrySafe: true },
  GW_REPLAY_DIFFERS: { status: 0, title: "A replayed entry was answered otherwise than at first", retrySafe: true },
  GW_RECOVERY_REFUSED: { status: 409, title: "Recovery would not give what was recorded", retrySafe: true },
  GW_REGISTRY_UNAVAILABLE: { status: 503, title: "The registry cannot be reached", retrySafe: true },
  GW_REGISTRY_REFUSED: { status: 409, title: "The registry refuses the publication", retrySafe: true },
  GW_ENGINE_UNAVAILABLE: { status: 503, title: "The container engine cannot be reached", retrySafe: true },
  GW_ENGINE_REFUSED: { status: 502, title: "The container engine refuses what was asked of it", retrySafe: true },
  GW_RULES_MISMATCH: { status: 503, title: "Another gateway runs other rules", retrySafe: true },
} as const satisfies Record<string, Code>;

export type ErrorCode = keyof typeof codes;

export interface ErrorFacts {
  /** What was known of the request's execution when the error was made. Absent for requests that change nothing. */
  readonly outcome?: Outcome;
  /** Position of the entry, where one exists. */
  readonly position?: number;
  readonly retryAfterS?: number;
  /** Overrides the code's status: a `refuse` rule has its own. */
  readonly status?: number;
  readonly cause?: unknown;
}

/** What happened, to which thing, and what is known to be true now. `message` is shown to clients: it never holds a secret. */
export class GatewayError extends Error {
  readonly code: ErrorCode;
  readonly status: number;
  readonly outcome: Outcome | undefined;
  readonly position: number | undefined;
  readonly retryAfterS: number | undefined;

  constructor(code: ErrorCode, message: string, facts: ErrorFacts = {}) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.name = "GatewayError";
    this.code = code;
    this.status = facts.status ?? codes[code].status;
    this.outcome = facts.outcome;
    this.position = facts.position;
    this.retryAfterS = facts.retryAfterS;
  }
}
