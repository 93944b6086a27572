// node-postgres with its pool, as it comes.
import { readFileSync } from "node:fs";
import { Readable, Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { setTimeout as pause } from "node:timers/promises";
import pg from "pg";
import copyStreams from "pg-copy-streams";
import Cursor from "pg-cursor";
import { LARGE, ROWS, SLEEP, STATEMENTS, expect, refused, run } from "./rounds.mjs";

const { version } = JSON.parse(readFileSync(new URL("./node_modules/pg/package.json", import.meta.url)));

// Each new connection logs in with the credentials of the moment.
function open(worker) {
  class Client extends pg.Client {
    constructor(options) {
      super({ ...options, ...worker.login() });
    }
  }
  const pool = new pg.Pool({ max: 2, Client });
  pool.on("error", () => {}); // an idle connection that ends is replaced
  return pool;
}

async function borrow(pool, ask) {
  const client = await pool.connect();
  let broken;
  const remember = (error) => (broken = error);
  client.on("error", remember);
  try {
    return await ask(client);
  } finally {
    client.off("error", remember);
    client.release(broken);
  }
}

async function alone(worker, database, ask) {
  const client = new pg.Client(worker.login(database));
  client.on("error", () => {});
  await client.connect();
  try {
    return await ask(client);
  } finally {
    await client.end();
  }
}

async function value(client, query, parameters) {
  const { rows } = await client.query({ text: query, values: parameters, rowMode: "array" });
  return rows[0][0];
}

async function within(pool, ask) {
  return borrow(pool, async (client) => {
    await client.query("begin");
    try {
      const answer = await ask(client);
      await client.query("commit");
      return answer;
    } catch (error) {
      await client.query("rollback");
      throw error;
    }
  });
}

const operations = {
  login: (_, worker) => alone(worker, undefined, async (client) => expect(await value(client, "select 42"), 42)),

  async types(pool) {
    const query =
      "select $1::int8, $2::float8, $3::text, $4::bool, $5::bytea, $6::timestamptz, $7::numeric, $8::int4[], $9::text";
    const at = new Date("2026-11-28T12:30:00Z");
    const values = ["1099511627776", 1.5, "naïve ☃ 'quoted'", true, Buffer.from([0, 255]), at, "1.5", [1, 2, 3], null];
    expect((await pool.query({ text: query, values, rowMode: "array" })).rows[0], values);
  },

  async prepared(pool, worker) {
    for (const number of [worker.round % STATEMENTS, (worker.round * 7) % STATEMENTS]) {
      for (let time = 0; time < 2; time++) {
        const text = `select $1::int4 + ${number} as sum`;
        expect((await pool.query({ name: `plus-${number}`, text, values: [1000] })).rows[0].sum, 1000 + number);
      }
    }
  },

  async many_prepared(pool, worker) {
    for (let number = worker.round * 20; number < worker.round * 20 + 20; number++) {
      const text = `select $1::int4 + ${number} as sum`;
      expect((await pool.query({ name: `many-${number}`, text, values: [1000] })).rows[0].sum, 1000 + number);
    }
  },

  transaction: (pool, { owner }) =>
    within(pool, async (client) => {
      await client.query("update ledger set amount = amount - 1 where owner = $1 and id = 1", [owner]);
      await client.query("update ledger set amount = amount + 1 where owner = $1 and id = 2", [owner]);
      await client.query("savepoint inner_one");
      await client.query("update ledger set amount = 0 where owner = $1", [owner]);
      await client.query("rollback to savepoint inner_one");
      expect(await value(client, "select sum(amount)::text from ledger where owner = $1", [owner]), "2000");
    }),

  async failure(pool, { owner }) {
    await refused(within(pool, (client) => client.query("insert into ledger values ($1, 1, 0)", [owner])), "23505");
    expect(await value(pool, "select 1"), 1);
  },

  // sent at once, one after the other: node-postgres has no other pipeline
  pipeline: (pool) =>
    borrow(pool, async (client) => {
      const asked = Array.from({ length: 10 }, (_, number) => value(client, "select $1::int4", [number]));
      expect(await Promise.all(asked), [...asked.keys()]);
    }),

  copy: (pool, { owner }) =>
    borrow(pool, async (client) => {
      await client.query("delete from copied where owner = $1", [owner]);
      const rows = Array.from({ length: ROWS }, (_, number) => `${owner}\t${number}\tbody ${number}\n`);
      await pipeline(Readable.from(rows), client.query(copyStreams.from("copy copied (owner, id, body) from stdin")));
      let lines = 0;
      const count = new Writable({
        write(chunk, _, next) {
          lines += chunk.toString().split("\n").length - 1;
          next();
        },
      });
      const out = copyStreams.to(`copy (select id from copied where owner = '${owner}') to stdout`);
      await pipeline(client.query(out), count);
      expect(lines, ROWS);
    }),

  copy_refused: (pool) =>
    borrow(pool, async (client) => {
      const into = client.query(copyStreams.from("copy copied (owner, id, body) from stdin"));
      await refused(pipeline(Readable.from(["nobody\tno number\tx\n"]), into), "22P02");
      expect(await value(client, "select 1"), 1);
    }),

  listen: (pool, worker) =>
    alone(worker, worker.listening, async (listener) => {
      const told = new Promise((resolve) => listener.once("notification", ({ payload }) => resolve(payload)));
      await listener.query(`listen ${worker.channel}`);
      await pool.query("select pg_notify($1, 'told')", [worker.channel]);
      expect(await told, "told");
    }),

  // node-postgres has no request that cancels: it is asked for over another connection, as its documentation says
  cancel: (pool) =>
    within(pool, async (client) => {
      const pid = await value(client, "select pg_backend_pid()");
      await client.query("savepoint sleep");
      const asked = refused(client.query(SLEEP), "57014");
      asked.catch(() => {}); // it is awaited below
      await pause(300);
      await pool.query("select pg_cancel_backend($1)", [pid]);
      await asked;
      await client.query("rollback to savepoint sleep");
    }),

  cursor: (pool) =>
    within(pool, async (client) => {
      const cursor = client.query(new Cursor("select generate_series(1, 1000)::int4 as number"));
      let total = 0;
      for (let rows; (rows = await cursor.read(100)).length > 0; ) for (const { number } of rows) total += number;
      await cursor.close();
      expect(total, 500_500);
    }),

  // without a transaction: it reads by portions with Flush, so nothing ends in between
  cursor_alone: (pool) =>
    borrow(pool, async (client) => {
      for (let time = 0; time < 5; time++) {
        const cursor = client.query(new Cursor("select generate_series(1, 1000)::int4 as number"));
        let total = 0;
        for (let rows; (rows = await cursor.read(100)).length > 0; ) for (const { number } of rows) total += number;
        await cursor.close();
        expect(total, 500_500);
      }
    }),

  empty: (pool) => pool.query(""),

  async large(pool) {
    const text = "x".repeat(LARGE);
    expect(await value(pool, "select $1::text || 'y'", [text]), text + "y");
  },

  async nul(pool) {
    await refused(value(pool, "select $1::text", ["a\0b"]), "22021");
    expect(await value(pool, "select 1"), 1);
  },
};

await run("node-postgres", version, operations, open);
