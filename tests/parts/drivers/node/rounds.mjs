// What the two Node drivers share: where to connect, what a round asks for, and the lines that tell of it.
import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";

export const ROWS = 2000;
export const LARGE = 1_000_000;
export const SLEEP = "select pg_sleep(10)";
export const STATEMENTS = 300;

// The driver said yes and the answer is wrong.
class Wrong extends Error {
  code = "WRONG";
}

export function expect(found, wanted) {
  const [one, other] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (one !== other) throw new Wrong(`${one?.slice(0, 200)} instead of ${other?.slice(0, 200)}`);
}

// Wants an error of this SQLSTATE.
export async function refused(asked, wanted) {
  try {
    await asked;
  } catch (error) {
    if (error.code === wanted) return;
    throw error;
  }
  expect("no error", wanted);
}

// One client that stays: its way to the database, and its name in the tables.
export class Worker {
  round = 0;

  constructor(driver, way, number) {
    this.way = way;
    this.owner = `${driver}-${way}-${number}`;
    this.channel = this.owner.replace(/[-.]/g, "_");
    this.port = Number(process.env[`DRIVERS_${way.toUpperCase()}_PORT`]);
    this.database = process.env.DRIVERS_DATABASE;
    this.listening = way === "pool" ? process.env.DRIVERS_ALIAS : this.database;
  }

  // Where to connect and as whom, as of now.
  login(database = this.database) {
    const [user, password] = readFileSync(process.env.DRIVERS_CREDENTIALS, "utf8").trim().split("\n");
    return { host: "127.0.0.1", port: this.port, user, password, database };
  }
}

const tell = (line) => process.stdout.write(JSON.stringify(line) + "\n");

// Runs the operations of a driver, one after the other, until the standard input ends.
export async function run(driver, version, every, open) {
  const leftOut = process.argv.slice(3);
  const operations = Object.fromEntries(Object.entries(every).filter(([name]) => !leftOut.includes(name)));
  let ended = false;
  process.stdin.on("end", () => (ended = true)).resume();
  tell({ driver, version, operations: Object.keys(operations) });
  const work = async (worker) => {
    const client = await open(worker);
    for (; !ended; worker.round++) {
      for (const [operation, ask] of Object.entries(operations)) {
        if (ended) break;
        const began = performance.now();
        let failed;
        try {
          await ask(client, worker);
        } catch (error) {
          failed = error;
        }
        tell({
          way: worker.way,
          worker: worker.owner,
          operation,
          milliseconds: Math.round(performance.now() - began),
          code: failed ? (failed.code ?? failed.name) : null,
          message: failed ? String(failed.message).slice(0, 500) : null,
        });
        await pause(20);
      }
    }
  };
  const workers = [["pool", 0], ["pool", 1], ["direct", 0]].map(([way, number]) => new Worker(driver, way, number));
  await Promise.all(workers.map(work));
  process.exit(0);
}
