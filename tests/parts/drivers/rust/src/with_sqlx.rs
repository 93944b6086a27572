//! sqlx with its pool, as it comes.

use std::{ops::DerefMut, time::Duration};

use futures::TryStreamExt;
use sqlx::{
    Acquire, AssertSqlSafe, Connection, PgConnection, PgPool, Row,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};

use crate::rounds::{Driver, Failure, LARGE, Outcome, ROWS, SLEEP, STATEMENTS, Worker, expect, refused};

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
        Self { code: code.unwrap_or_else(|| "ERROR".to_owned()), message: error.to_string() }
    }
}

pub struct Client {
    pool: PgPool,
}

fn options(worker: &Worker, database: &str) -> PgConnectOptions {
    let (user, password) = Worker::credentials();
    PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(worker.port)
        .username(&user)
        .password(&password)
        .database(database)
}

impl Driver for Client {
    const VERSION: &str = env!("SQLX_VERSION");
    const OPERATIONS: &[&str] = &[
        "login", "types", "prepared", "many_prepared", "transaction", "failure", "many_rows", "copy", "copy_refused",
        "listen", "cancel", "cursor", "empty", "large", "nul",
    ];

    async fn open(worker: &Worker) -> Result<Self, Failure> {
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(options(worker, &worker.database));
        Ok(Self { pool })
    }

    async fn run(&mut self, worker: &Worker, operation: &str) -> Outcome {
        // what new connections of the pool log in with
        self.pool.set_connect_options(options(worker, &worker.database));
        let pool = &self.pool;
        match operation {
            "login" => {
                let mut alone = PgConnection::connect_with(&options(worker, &worker.database)).await?;
                let found: i32 = sqlx::query_scalar("select 42").fetch_one(&mut alone).await?;
                alone.close().await?;
                expect(found, 42)
            }
            "types" => self.types().await,
            "prepared" => {
                self.prepared(worker.round % STATEMENTS).await?;
                self.prepared(worker.round * 7 % STATEMENTS).await
            }
            "many_prepared" => {
                for number in worker.round * 20..worker.round * 20 + 20 {
                    self.prepared(number).await?;
                }
                Ok(())
            }
            "transaction" => self.transaction(worker).await,
            "failure" => {
                let insert = sqlx::query("insert into ledger values ($1, 1, 0)").bind(&worker.owner);
                refused(insert.execute(pool).await, "23505")?;
                expect(sqlx::query_scalar("select 1").fetch_one(pool).await?, 1)
            }
            "many_rows" => {
                let numbers: Vec<i32> = (0..500).collect();
                let insert = "insert into copied (owner, id, body) select $1, id, 'x' from unnest($2::int4[]) id";
                sqlx::query("delete from copied where owner = $1").bind(&worker.owner).execute(pool).await?;
                let answer = sqlx::query(insert).bind(&worker.owner).bind(numbers).execute(pool).await?;
                expect(answer.rows_affected(), 500)
            }
            "copy" => self.copy(&worker.owner).await,
            "copy_refused" => {
                let mut connection = pool.acquire().await?;
                let answer = refused_copy(&mut connection).await;
                refused(answer, "22P02")?;
                expect(sqlx::query_scalar("select 1").fetch_one(connection.deref_mut()).await?, 1)
            }
            "listen" => {
                let listening = PgPoolOptions::new().max_connections(1);
                let listening = listening.connect_with(options(worker, &worker.listening)).await?;
                let mut listener = PgListener::connect_with(&listening).await?;
                listener.listen(&worker.channel()).await?;
                sqlx::query("select pg_notify($1, 'told')").bind(worker.channel()).execute(pool).await?;
                let told = listener.recv().await?;
                drop(listener);
                listening.close().await;
                expect(told.payload(), "told")
            }
            "cancel" => self.cancel().await,
            "cursor" => {
                let mut inside = pool.begin().await?;
                sqlx::query("declare rows cursor for select generate_series(1, 1000)").execute(&mut *inside).await?;
                let mut total = 0;
                for _ in 0..10 {
                    let rows: Vec<i32> = sqlx::query_scalar("fetch 100 from rows").fetch_all(&mut *inside).await?;
                    total += rows.iter().sum::<i32>();
                }
                inside.commit().await?;
                expect(total, 500_500)
            }
            "empty" => {
                sqlx::query("").execute(pool).await?;
                Ok(())
            }
            "large" => {
                let query = sqlx::query_scalar("select $1::text || 'y'").bind("x".repeat(LARGE));
                expect(query.fetch_one(pool).await.map(|text: String| text.len())?, LARGE + 1)
            }
            "nul" => {
                let asked = sqlx::query_scalar::<_, String>("select $1::text").bind("a\0b").fetch_one(pool).await;
                refused(asked, "22021")?;
                expect(sqlx::query_scalar("select 1").fetch_one(pool).await?, 1)
            }
            other => Err(Failure::wrong(other, "an operation")),
        }
    }
}

async fn refused_copy(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let mut sink = connection.copy_in_raw("copy copied (owner, id, body) from stdin").await?;
    sink.send("nobody\tno number\tx\n".as_bytes()).await?;
    sink.finish().await
}

impl Client {
    async fn types(&self) -> Outcome {
        let query = "select $1::int8, $2::float8, $3::text, $4::bool, $5::bytea, $6::int4[], $7::text";
        let query = sqlx::query(query).bind(1_i64 << 40).bind(1.5).bind("naïve ☃ 'quoted'").bind(true);
        let row = query.bind(vec![0_u8, 255]).bind(vec![1, 2, 3]).bind(None::<String>).fetch_one(&self.pool).await?;
        let text: String = row.get(2);
        expect((row.get(0), row.get(1), text.as_str(), row.get(3)), (1_i64 << 40, 1.5, "naïve ☃ 'quoted'", true))?;
        expect((row.get(4), row.get(5), row.get(6)), (vec![0_u8, 255], vec![1, 2, 3], None::<String>))
    }

    async fn prepared(&self, number: i32) -> Outcome {
        for _ in 0..2 {
            let query = format!("select $1::int4 + {number}");
            let found = sqlx::query_scalar(AssertSqlSafe(query)).bind(1000).fetch_one(&self.pool).await?;
            expect(found, 1000 + number)?;
        }
        Ok(())
    }

    async fn transaction(&self, worker: &Worker) -> Outcome {
        let owner = &worker.owner;
        let mut outer = self.pool.begin().await?;
        for change in [
            "update ledger set amount = amount - 1 where owner = $1 and id = 1",
            "update ledger set amount = amount + 1 where owner = $1 and id = 2",
        ] {
            sqlx::query(change).bind(owner).execute(&mut *outer).await?;
        }
        let mut inner = outer.begin().await?;
        sqlx::query("update ledger set amount = 0 where owner = $1").bind(owner).execute(&mut *inner).await?;
        inner.rollback().await?;
        let total = sqlx::query_scalar("select sum(amount)::int8 from ledger where owner = $1").bind(owner);
        let total: i64 = total.fetch_one(&mut *outer).await?;
        outer.commit().await?;
        expect(total, 2000)
    }

    async fn copy(&self, owner: &str) -> Outcome {
        sqlx::query("delete from copied where owner = $1").bind(owner).execute(&self.pool).await?;
        let mut connection = self.pool.acquire().await?;
        let mut sink = connection.copy_in_raw("copy copied (owner, id, body) from stdin").await?;
        let rows: String = (0..ROWS).map(|number| format!("{owner}\t{number}\tbody {number}\n")).collect();
        sink.send(rows.as_bytes()).await?;
        expect(sink.finish().await?, ROWS as u64)?;
        let query = format!("copy (select id from copied where owner = '{owner}') to stdout");
        let chunks: Vec<_> = connection.copy_out_raw(&query).await?.try_collect().await?;
        expect(chunks.iter().map(|chunk| chunk.iter().filter(|byte| **byte == b'\n').count()).sum(), ROWS)
    }

    /// sqlx has no request that cancels: a query that is given up is waited for when its connection is used again, and
    /// another connection has to cancel it.
    async fn cancel(&self) -> Outcome {
        let mut inside = self.pool.begin().await?;
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *inside).await?;
        let cancel = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            sqlx::query("select pg_cancel_backend($1)").bind(pid).execute(&self.pool).await
        };
        let (answer, sent) = tokio::join!(sqlx::query(SLEEP).execute(&mut *inside), cancel);
        sent?;
        refused(answer, "57014")?;
        inside.rollback().await?;
        Ok(())
    }
}
