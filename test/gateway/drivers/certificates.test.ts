import { writeFileSync } from "node:fs";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { systemClock } from "../../../gateway/clock.ts";
import { Certificates } from "../../../gateway/drivers/certificates.ts";
import { Events } from "../../../gateway/events.ts";
import { Authority, writePair } from "../../helpers/certificates.ts";
import { temporaryFolder } from "../../helpers/folder.ts";
import { waitFor } from "../../helpers/wait.ts";
import type { Clock } from "../../../gateway/clock.ts";
import type { Fact } from "../../../gateway/events.ts";

const authority = new Authority("test");
let folder = "";
let facts: Fact[] = [];
beforeEach(() => {
  folder = temporaryFolder("certificates");
  facts = [];
});

/** Looks when it is asked to, and not by itself. */
const still: Clock = {
  ...systemClock,
  sleep: (_ms, signal) => new Promise((resolve) => signal?.addEventListener("abort", () => resolve())),
};

function start(clock = still): Certificates {
  const events = new Events();
  events.listen((fact) => facts.push(fact));
  const certificates = new Certificates({ events, clock });
  onTestFinished(() => certificates.close());
  return certificates;
}
const told = (): readonly string[] =>
  facts.flatMap((it) => (it.type === "certificate" ? [`${it.use} ${it.state}`] : []));

describe("a certificate in use", () => {
  test("is replaced by what its files hold later, without being asked", async () => {
    const certificates = start(systemClock);
    const files = writePair(folder, "own", authority.issue());
    const credential = await certificates.open("tls", { certFile: files.certFile, keyFile: files.keyFile });
    let changes = 0;
    credential.onChange(() => (changes += 1));
    const renewed = authority.issue({ to: new Date("2040-01-01T00:00:00Z") });
    writePair(folder, "own", renewed);
    await waitFor(() => told().includes("tls renewed"), { what: "the renewed pair" });
    expect(credential.parts).toEqual({ cert: renewed.cert, key: renewed.key });
    expect(changes).toBe(1);
    expect(certificates.status).toEqual([
      { use: "tls", notAfterMs: Date.parse("2040-01-01T00:00:00Z"), trouble: null },
    ]);
  });

  test("stays when what its files hold now does not fit together, and that is told once", async () => {
    const certificates = start();
    const first = authority.issue();
    const files = writePair(folder, "own", first);
    const credential = await certificates.open("tls", { certFile: files.certFile, keyFile: files.keyFile });
    writeFileSync(files.keyFile, authority.issue().key);
    for (let looks = 0; looks < 4; looks += 1) await certificates.look();
    expect(credential.parts).toEqual(first);
    expect(told()).toEqual(["tls refused"]);
    expect(facts[0]).toMatchObject({ detail: expect.stringContaining(`${files.keyFile} is not the key`) });
    expect(JSON.stringify(facts)).not.toContain("PRIVATE KEY");
    expect(certificates.status[0]?.trouble).toContain("is not the key");
    writeFileSync(files.certFile, "");
    for (let looks = 0; looks < 2; looks += 1) await certificates.look();
    expect(told()).toEqual(["tls refused", "tls refused"]);
    writePair(folder, "own", first);
    await certificates.look();
    expect(certificates.status[0]?.trouble).toBeNull();
  });

  test("may be renewed one file after the other", async () => {
    const certificates = start();
    const files = writePair(folder, "own", authority.issue());
    const credential = await certificates.open("tls", { certFile: files.certFile, keyFile: files.keyFile });
    const renewed = authority.issue();
    writeFileSync(files.certFile, renewed.cert);
    await certificates.look();
    writeFileSync(files.keyFile, renewed.key);
    await certificates.look();
    expect(credential.parts).toEqual(renewed);
    expect(told()).toEqual(["tls renewed"]);
  });

  test("is not opened where its files cannot be used", async () => {
    const certificates = start();
    const files = writePair(folder, "own", authority.issue());
    await expect(certificates.open("upstream", { caFile: `${folder}/gone.pem` })).rejects.toMatchObject({
      code: "GW_CONFIG_INVALID",
      message: expect.stringContaining("gone.pem cannot be read (ENOENT)"),
    });
    await expect(certificates.open("tls", { certFile: files.keyFile, keyFile: files.keyFile })).rejects.toThrow(
      "holds no certificate",
    );
    expect(certificates.status).toEqual([]);
  });
});
