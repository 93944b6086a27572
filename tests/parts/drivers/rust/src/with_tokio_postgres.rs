//! tokio-postgres, as it comes: it has no pool, so a connection that stays.

use std::{pin::pin, time::Duration};

use futures::{SinkExt, StreamExt, TryStreamExt, future};
use tokio_postgres::{AsyncMessage, Config, NoTls};

use crate::rounds::{Driver, Failure, LARGE, Outcome, ROWS, SLEEP, STATEMENTS, Worker, expect, refused};

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let code = error.code().map_or_else(|| "ERROR".to_owned(), |code| code.code().to_owned());
        let message = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
        Self { code, message }
    }
}

pub struct Client {
    stays: tokio_postgres::Client,
}

fn config(worker: &Worker, database: &str) -> Config {
    let (user, password) = Worker::credentials();
    let mut config = Config::new();
    config.host("127.0.0.1").port(worker.port).user(user).password(password).dbname(database);
    config
}

async fn connect(worker: &Worker, database: &str) -> Result<tokio_postgres::Client, Failure> {
    let (client, connection) = config(worker, database).connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

impl Driver for Client {
    const VERSION: &str = env!("TOKIO_POSTGRES_VERSION");
    const OPERATIONS: &[&str] = &[
        "login", "types", "prepared", "many_prepared", "transaction", "failure", "pipeline", "copy", "copy_refused",
        "listen", "cancel", "cursor", "empty", "large", "nul",
    ];

    async fn open(worker: &Worker) -> Result<Self, Failure> {
        Ok(Self { stays: connect(worker, &worker.database).await? })
    }

    async fn run(&mut self, worker: &Worker, operation: &str) -> Outcome {
        if self.stays.is_closed() {
            self.stays = connect(worker, &worker.database).await?;
        }
        match operation {
            "login" => expect(connect(worker, &worker.database).await?.query_one("select 42", &[]).await?.get(0), 42),
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
                let insert = "insert into ledger values ($1, 1, 0)";
                refused(self.stays.execute(insert, &[&worker.owner]).await, "23505")?;
                expect(self.stays.query_one("select 1", &[]).await?.get(0), 1)
            }
            "pipeline" => {
                let statement = self.stays.prepare("select $1::int4").await?;
                let numbers: Vec<i32> = (0..10).collect();
                let asked = numbers.iter().map(async |number| self.stays.query_one(&statement, &[number]).await);
                let rows = future::try_join_all(asked).await?;
                expect(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), numbers.clone())
            }
            "copy" => self.copy(&worker.owner).await,
            "copy_refused" => {
                let sink = self.stays.copy_in("copy copied (owner, id, body) from stdin").await?;
                let mut sink = pin!(sink);
                let sent = sink.send("nobody\tno number\tx\n".as_bytes()).await;
                let answer = match sent {
                    Ok(()) => sink.finish().await.map(|_| ()),
                    Err(error) => Err(error),
                };
                refused(answer, "22P02")?;
                expect(self.stays.query_one("select 1", &[]).await?.get(0), 1)
            }
            "listen" => self.listen(worker).await,
            "cancel" => {
                let token = self.stays.cancel_token();
                let cancel = async {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    token.cancel_query(NoTls).await
                };
                let (answer, sent) = tokio::join!(self.stays.query(SLEEP, &[]), cancel);
                sent?;
                refused(answer, "57014")?;
                expect(self.stays.query_one("select 1", &[]).await?.get(0), 1)
            }
            "cursor" => {
                let inside = self.stays.transaction().await?;
                let portal = inside.bind("select generate_series(1, 1000)", &[]).await?;
                let mut total = 0;
                loop {
                    let rows = inside.query_portal(&portal, 100).await?;
                    if rows.is_empty() {
                        break;
                    }
                    total += rows.iter().map(|row| row.get::<_, i32>(0)).sum::<i32>();
                }
                inside.commit().await?;
                expect(total, 500_500)
            }
            "empty" => {
                self.stays.batch_execute("").await?;
                self.stays.execute("", &[]).await?;
                Ok(())
            }
            "large" => {
                let text = "x".repeat(LARGE);
                let row = self.stays.query_one("select $1::text || 'y'", &[&text]).await?;
                expect(row.get::<_, String>(0).len(), LARGE + 1)
            }
            "nul" => {
                refused(self.stays.query_one("select $1::text", &[&"a\0b"]).await, "22021")?;
                expect(self.stays.query_one("select 1", &[]).await?.get(0), 1)
            }
            other => Err(Failure::wrong(other, "an operation")),
        }
    }
}

impl Client {
    async fn types(&self) -> Outcome {
        let query = "select $1::int8, $2::float8, $3::text, $4::bool, $5::bytea, $6::int4[], $7::text";
        let (text, bytes, array): (&str, &[u8], &[i32]) = ("naïve ☃ 'quoted'", &[0, 255], &[1, 2, 3]);
        let row =
            self.stays.query_one(query, &[&(1_i64 << 40), &1.5, &text, &true, &bytes, &array, &None::<&str>]).await?;
        expect((row.get(0), row.get(1), row.get(2), row.get(3)), (1_i64 << 40, 1.5, text, true))?;
        expect((row.get(4), row.get(5), row.get(6)), (bytes, array.to_vec(), None::<&str>))
    }

    async fn prepared(&self, number: i32) -> Outcome {
        let statement = self.stays.prepare(&format!("select $1::int4 + {number}")).await?;
        for _ in 0..2 {
            expect(self.stays.query_one(&statement, &[&1000]).await?.get(0), 1000 + number)?;
        }
        Ok(())
    }

    async fn transaction(&mut self, worker: &Worker) -> Outcome {
        let owner = &worker.owner;
        let mut outer = self.stays.transaction().await?;
        outer.execute("update ledger set amount = amount - 1 where owner = $1 and id = 1", &[owner]).await?;
        outer.execute("update ledger set amount = amount + 1 where owner = $1 and id = 2", &[owner]).await?;
        let inner = outer.savepoint("inner_one").await?;
        inner.execute("update ledger set amount = 0 where owner = $1", &[owner]).await?;
        inner.rollback().await?;
        let total = outer.query_one("select sum(amount)::int8 from ledger where owner = $1", &[owner]).await?.get(0);
        outer.commit().await?;
        expect(total, 2000_i64)
    }

    async fn copy(&self, owner: &str) -> Outcome {
        self.stays.execute("delete from copied where owner = $1", &[&owner]).await?;
        let sink = self.stays.copy_in("copy copied (owner, id, body) from stdin").await?;
        let mut sink = pin!(sink);
        for number in 0..ROWS {
            sink.feed(std::io::Cursor::new(format!("{owner}\t{number}\tbody {number}\n").into_bytes())).await?;
        }
        sink.finish().await?;
        let out = self.stays.copy_out(&format!("copy (select id from copied where owner = '{owner}') to stdout")).await?;
        let chunks: Vec<_> = out.try_collect().await?;
        expect(chunks.iter().map(|chunk| chunk.iter().filter(|byte| **byte == b'\n').count()).sum(), ROWS)
    }

    async fn listen(&self, worker: &Worker) -> Outcome {
        let (listener, mut connection) = config(worker, &worker.listening).connect(NoTls).await?;
        let (told, mut notifications) = futures::channel::mpsc::unbounded();
        tokio::spawn(async move {
            while let Some(Ok(message)) = future::poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(notification) = message {
                    let _ = told.unbounded_send(notification.payload().to_owned());
                }
            }
        });
        listener.batch_execute(&format!("listen {}", worker.channel())).await?;
        self.stays.execute("select pg_notify($1, 'told')", &[&worker.channel()]).await?;
        expect(notifications.next().await.as_deref(), Some("told"))
    }
}
