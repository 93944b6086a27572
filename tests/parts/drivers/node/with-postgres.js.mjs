// postgres.js with its pool, as it comes.
import { readFileSync } from "node:fs";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { setTimeout as pause } from "node:timers/promises";
import postgres from "postgres";
import { LARGE, ROWS, SLEEP, STATEMENTS, expect, refused, run } from "./rounds.mjs";

const { version } = JSON.parse(readFileSync(new URL("./node_modules/postgres/package.json", import.meta.url)));

// Each new connection logs in with the password of the moment; another user wants another pool.
const open = (worker, database, max = 2) => {
  const login = worker.login(database);
  const sql = postgres({ ...login, max, onnotice: () => {}, password: () => worker.login().password });
  return { sql, user: login.user };
};

function current(client, worker) {
  if (worker.login().user !== client.user) {
    client.sql.end();
    Object.assign(client, open(worker));
  }
  return client.sql;
}

async function alone(worker, database, ask) {
  const { sql } = open(worker, database, 1);
  try {
    return await ask(sql);
  } finally {
    await sql.end({ timeout: 5 });
  }
}

const of = (ask) => (client, worker) => ask(current(client, worker), worker);

const operations = {
  login: (_, worker) => alone(worker, undefined, async (sql) => expect((await sql`select 42 as it`)[0].it, 42)),

  types: of(async (sql) => {
    const values = ["1099511627776", 1.5, "naïve ☃ 'quoted'", true, Buffer.from([0, 255]), new Date("2026-11-28T12:30:00Z"), "1.5", [1, 2, 3], null];
    const [a, b, c, d, e, f, g, h, i] = values;
    const rows = await sql`select ${a}::int8, ${b}::float8, ${c}::text, ${d}::bool, ${e}::bytea, ${f}::timestamptz, ${g}::numeric, ${h}::int4[], ${i}::text`.values();
    expect(rows[0], values);
  }),

  prepared: of(async (sql, worker) => {
    for (const number of [worker.round % STATEMENTS, (worker.round * 7) % STATEMENTS]) {
      for (let time = 0; time < 2; time++) {
        const rows = await sql.unsafe(`select $1::int4 + ${number} as sum`, [1000], { prepare: true });
        expect(rows[0].sum, 1000 + number);
      }
    }
  }),

  many_prepared: of(async (sql, worker) => {
    for (let number = worker.round * 20; number < worker.round * 20 + 20; number++) {
      const rows = await sql.unsafe(`select $1::int4 + ${number} as sum`, [1000], { prepare: true });
      expect(rows[0].sum, 1000 + number);
    }
  }),

  transaction: of((sql, { owner }) =>
    sql.begin(async (inside) => {
      await inside`update ledger set amount = amount - 1 where owner = ${owner} and id = 1`;
      await inside`update ledger set amount = amount + 1 where owner = ${owner} and id = 2`;
      const undone = inside.savepoint(async (inner) => {
        await inner`update ledger set amount = 0 where owner = ${owner}`;
        throw new Error("undone");
      });
      await undone.catch(() => {});
      expect((await inside`select sum(amount)::text as total from ledger where owner = ${owner}`)[0].total, "2000");
    }),
  ),

  failure: of(async (sql, { owner }) => {
    await refused(sql.begin((inside) => inside`insert into ledger values (${owner}, 1, 0)`), "23505");
    expect((await sql`select 1 as it`)[0].it, 1);
  }),

  pipeline: of((sql) =>
    sql.begin(async (inside) => {
      const rows = await Promise.all(Array.from({ length: 10 }, (_, number) => inside`select ${number}::int4 as it`));
      expect(rows.map(([{ it }]) => it), [...rows.keys()]);
    }),
  ),

  copy: of(async (sql, { owner }) => {
    await sql`delete from copied where owner = ${owner}`;
    const rows = Array.from({ length: ROWS }, (_, number) => `${owner}\t${number}\tbody ${number}\n`);
    await pipeline(Readable.from(rows), await sql`copy copied (owner, id, body) from stdin`.writable());
    let lines = 0;
    const out = await sql`copy (select id from copied where owner = ${sql.unsafe(`'${owner}'`)}) to stdout`.readable();
    for await (const chunk of out) lines += chunk.toString().split("\n").length - 1;
    expect(lines, ROWS);
  }),

  listen: of((sql, worker) =>
    alone(worker, worker.listening, async (listener) => {
      let tell;
      const told = new Promise((resolve) => (tell = resolve));
      await listener.listen(worker.channel, tell);
      await sql.notify(worker.channel, "told");
      expect(await told, "told");
    }),
  ),

  cancel: of(async (sql) => {
    const query = sql.unsafe(SLEEP);
    const asked = refused(query, "57014");
    asked.catch(() => {}); // it is awaited below
    await pause(300);
    query.cancel();
    await asked;
    expect((await sql`select 1 as it`)[0].it, 1);
  }),

  cursor: of((sql) =>
    sql.begin(async (inside) => {
      let total = 0;
      for await (const rows of inside`select generate_series(1, 1000)::int4 as number`.cursor(100)) {
        for (const { number } of rows) total += number;
      }
      expect(total, 500_500);
    }),
  ),

  cursor_alone: of(async (sql) => {
    for (let time = 0; time < 5; time++) {
      let total = 0;
      for await (const rows of sql`select generate_series(1, 1000)::int4 as number`.cursor(100)) {
        for (const { number } of rows) total += number;
      }
      expect(total, 500_500);
    }
  }),

  empty: of((sql) => sql.unsafe("")),

  large: of(async (sql) => {
    const text = "x".repeat(LARGE);
    expect((await sql`select ${text}::text || 'y' as it`)[0].it, text + "y");
  }),

  nul: of(async (sql) => {
    await refused(sql`select ${"a\0b"}::text`, "22021");
    expect((await sql`select 1 as it`)[0].it, 1);
  }),
};

await run("postgres.js", version, operations, open);
