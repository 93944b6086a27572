//! Runs one of the Rust drivers, as it comes, until the standard input ends: drivers sqlx [OPERATION TO LEAVE OUT...].

mod rounds;
mod with_sqlx;
mod with_tokio_postgres;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("sqlx") => rounds::run::<with_sqlx::Client>("sqlx").await,
        Some("tokio-postgres") => rounds::run::<with_tokio_postgres::Client>("tokio-postgres").await,
        other => panic!("no such driver: {other:?}"),
    }
}
