// What a gateway printed over all its lives, line by line: told apart while it comes, because a run prints more than is worth keeping.

export class Output {
  readonly #kept: string[] = [];
  readonly #faults: string[] = [];
  readonly #canary: string;
  #rest = "";

  constructor(canary: string) {
    this.#canary = canary;
  }

  /** In whatever pieces it comes. */
  take(text: string): void {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#judge(line);
  }

  /** Lines that must not be there. */
  faults(): readonly string[] {
    return this.#faults;
  }

  /** Everything but one line a request. */
  text(): string {
    return [...this.#kept, this.#rest].join("\n");
  }

  #judge(line: string): void {
    if (line.includes(this.#canary)) this.#note(`a secret was printed: ${line.replaceAll(this.#canary, "(secret)")}`);
    if (/unhandled|uncaught|GW_INTERNAL|MaxListenersExceeded/i.test(line)) this.#note(`it said: ${line}`);
    if (!line.includes('"msg":"request"')) this.#kept.push(line);
    if (this.#kept.length > linesMax) this.#kept.splice(0, linesMax / 2);
  }

  #note(fault: string): void {
    if (this.#faults.length < faultsMax) this.#faults.push(fault.slice(0, 1_000));
  }
}

const linesMax = 100_000;
const faultsMax = 20;
