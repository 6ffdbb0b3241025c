// Imported before a program: its wall clock is as many ms beside the true one as CLOCK_FILE says. The monotonic clock is left alone,
// as the system leaves it when somebody sets the time.

import { readFileSync } from "node:fs";

const TrueDate = globalThis.Date;
let offsetMs = 0;

const look = () => {
  offsetMs = Number(readFileSync(process.env["CLOCK_FILE"], "utf8"));
};
look();
setInterval(look, 10).unref();

globalThis.Date = class Date extends TrueDate {
  constructor(...args) {
    if (args.length === 0) super(TrueDate.now() + offsetMs);
    else super(...args);
  }
  static now() {
    return TrueDate.now() + offsetMs;
  }
};
