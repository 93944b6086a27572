//! PURE: what PgBouncer's console answers, column by column, by name.
//!
//! Columns come and go between versions: unknown ones are ignored, a missing one is an error that names it. A figure
//! that is not a number is an error too; nothing is guessed.

use std::{collections::BTreeMap, ops::Add};

use thiserror::Error;

/// The database that the console is.
const CONSOLE: &str = "pgbouncer";

/// One answer of the console: names of the columns, and rows of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Rows; a cell is None where the console sent NULL.
    pub rows: Vec<Vec<Option<String>>>,
}

/// Why an answer could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// A column that is needed is not there.
    #[error("the answer to {command} has no column {column}; this PgBouncer is not one that Sluice knows")]
    MissingColumn {
        /// The command.
        command: &'static str,
        /// The column.
        column: &'static str,
    },
    /// A cell is not what its column should hold.
    #[error("the answer to {command} holds {value:?} in column {column}, which is not a number")]
    NotANumber {
        /// The command.
        command: &'static str,
        /// The column.
        column: &'static str,
        /// What stands there.
        value: String,
    },
    /// The database is not in the answer.
    #[error("the answer to {command} does not mention database {database}")]
    MissingDatabase {
        /// The command.
        command: &'static str,
        /// The database.
        database: String,
    },
}

/// `SHOW POOLS` of one database, its pools added up. Numbers of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pools {
    /// Clients that are linked to a server connection or idle.
    pub clients_active: u32,
    /// Clients that wait for a server connection.
    pub clients_waiting: u32,
    /// Server connections linked to a client.
    pub active: u32,
    /// Server connections ready for a client.
    pub idle: u32,
    /// Server connections idle for long, to be checked before use.
    pub used: u32,
    /// Server connections being checked or reset.
    pub tested: u32,
    /// Server connections that log in.
    pub login: u32,
    /// Server connections kept until their cancel request is through.
    pub being_canceled: u32,
    /// How long the first waiting client has waited, in microseconds.
    pub longest_wait_microseconds: u64,
}

impl Pools {
    /// Server connections open now: all states together.
    pub fn held(&self) -> u32 {
        [self.active, self.idle, self.used, self.tested, self.login, self.being_canceled]
            .into_iter()
            .fold(0, u32::saturating_add)
    }
}

impl Add for Pools {
    type Output = Self;

    /// The pools of two processes.
    fn add(self, other: Self) -> Self {
        Self {
            clients_active: self.clients_active.saturating_add(other.clients_active),
            clients_waiting: self.clients_waiting.saturating_add(other.clients_waiting),
            active: self.active.saturating_add(other.active),
            idle: self.idle.saturating_add(other.idle),
            used: self.used.saturating_add(other.used),
            tested: self.tested.saturating_add(other.tested),
            login: self.login.saturating_add(other.login),
            being_canceled: self.being_canceled.saturating_add(other.being_canceled),
            longest_wait_microseconds: self.longest_wait_microseconds.max(other.longest_wait_microseconds),
        }
    }
}

/// `SHOW STATS` of one database: counters since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Transactions begun, those that wait for a server connection included.
    pub transactions: u64,
    /// Time in transactions that have ended, microseconds.
    pub transaction_microseconds: u64,
    /// Time that clients waited for a server connection, microseconds.
    pub wait_microseconds: u64,
    /// Server connections given to clients.
    pub assignments: u64,
}

/// `SHOW DATABASES` of one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Database {
    /// Paused on the console.
    pub paused: bool,
    /// Server connections that count towards `max_db_connections`.
    pub connections: u32,
}

/// The session alias of a database, as `SHOW DATABASES` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The name that clients ask for.
    pub name: String,
    /// Its own `max_db_connections`.
    pub connections: u32,
    /// Paused on the console.
    pub paused: bool,
}

/// One row of `SHOW SERVERS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Number of the socket, counted over all sockets of the process.
    pub id: u64,
    /// Whether it has logged in.
    pub logged_in: bool,
    /// The client that is linked to it, as the console names it.
    pub client: Option<String>,
    /// Whether it was told to end with its transaction.
    pub closing: bool,
    /// When the database was heard last, in whole seconds, as the console prints it.
    pub heard: String,
    /// Process of the database behind it, as that told; 0 where it is none.
    pub process: u32,
    /// Own address of the connection.
    pub local_address: String,
    /// Own port of the connection.
    pub local_port: u16,
}

/// What the console shows of one database at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Gauges.
    pub pools: Pools,
    /// Those of its session alias.
    pub alias: Pools,
    /// Whether a client keeps its server connection between its transactions.
    pub holds_sessions: bool,
    /// Counters.
    pub stats: Stats,
    /// Server connections.
    pub servers: Vec<Server>,
}

impl Snapshot {
    /// Reads `SHOW POOLS`, `SHOW STATS` and `SHOW SERVERS`, asked together.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn read([pools, stats, servers]: &[Table; 3], database: &str) -> Result<Self, TableError> {
        Ok(Self {
            pools: self::pools(pools, database)?,
            alias: pools_beside(pools, database)?,
            holds_sessions: holds_sessions(pools, database)?,
            stats: self::stats(stats, database)?,
            servers: self::servers(servers, database)?,
        })
    }
}

/// What all clients are together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCount {
    /// The largest number of a socket, counted over all sockets of the process.
    pub newest: u64,
    /// Statements that they have prepared and PgBouncer follows.
    pub prepared_statements: u32,
}

/// One row of `SHOW CLIENTS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Number of the socket, counted over all sockets of the process.
    pub id: u64,
    /// Whether it holds a server connection.
    pub linked: bool,
    /// Whether it waits for one.
    pub waits: bool,
    /// For how long; 0 where it does not wait.
    pub waited_microseconds: u64,
    /// The database that it asked for.
    pub database: String,
    /// What it calls itself.
    pub application: String,
    /// When it came, as PgBouncer prints it: later ones sort later.
    pub connected: String,
    /// When it last sent something, as PgBouncer prints it, in whole seconds.
    pub requested: String,
    /// As PgBouncer names sockets.
    pub socket: String,
    /// Its address and port.
    pub address: String,
}

struct Rows<'a> {
    command: &'static str,
    table: &'a Table,
}

impl<'a> Rows<'a> {
    fn new(command: &'static str, table: &'a Table) -> Self {
        Self { command, table }
    }

    fn column(&self, column: &'static str) -> Result<usize, TableError> {
        let missing = TableError::MissingColumn { command: self.command, column };
        self.table.columns.iter().position(|name| name == column).ok_or(missing)
    }

    fn text(row: &'a [Option<String>], index: usize) -> &'a str {
        row.get(index).and_then(Option::as_deref).unwrap_or_default()
    }

    fn number<T: std::str::FromStr>(&self, row: &'a [Option<String>], column: &'static str) -> Result<T, TableError> {
        let text = Self::text(row, self.column(column)?);
        text.parse().map_err(|_| TableError::NotANumber {
            command: self.command,
            column,
            value: text.chars().take(40).collect(),
        })
    }

    /// A time that stands in two columns: whole seconds, and what is beyond them.
    fn microseconds(
        &self,
        row: &'a [Option<String>],
        seconds: &'static str,
        beyond: &'static str,
    ) -> Result<u64, TableError> {
        Ok(self.number::<u64>(row, seconds)?.saturating_mul(1_000_000).saturating_add(self.number(row, beyond)?))
    }

    fn of_database(
        &self,
        column: &'static str,
        database: &str,
    ) -> Result<impl Iterator<Item = &'a [Option<String>]>, TableError> {
        self.of_databases(column, move |name| name == database)
    }

    fn of_databases(
        &self,
        column: &'static str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<impl Iterator<Item = &'a [Option<String>]>, TableError> {
        let index = self.column(column)?;
        let rows: Vec<&[Option<String>]> =
            self.table.rows.iter().map(Vec::as_slice).filter(|row| wanted(Self::text(row, index))).collect();
        Ok(rows.into_iter())
    }
}

/// Whether a name is that of a database, and not of the console, or of none because its client has not said which.
fn is_database(name: &str) -> bool {
    name != CONSOLE && !matches!(name, "(nodb)" | "")
}

/// Reads `SHOW POOLS`. A database that no client has asked for yet has no pool: all zero, which is the truth.
///
/// # Errors
/// [`TableError`].
pub fn pools(table: &Table, database: &str) -> Result<Pools, TableError> {
    sum_of_pools(table, |name| name == database)
}

/// Reads the pools of all other databases out of `SHOW POOLS`: those of the session alias.
///
/// # Errors
/// [`TableError`].
pub fn pools_beside(table: &Table, database: &str) -> Result<Pools, TableError> {
    sum_of_pools(table, |name| name != database && is_database(name))
}

fn holds_sessions(table: &Table, database: &str) -> Result<bool, TableError> {
    let rows = Rows::new("SHOW POOLS", table);
    let mode = rows.column("pool_mode")?;
    Ok(rows.of_database("database", database)?.any(|row| Rows::text(row, mode) == "session"))
}

fn sum_of_pools(table: &Table, wanted: impl Fn(&str) -> bool) -> Result<Pools, TableError> {
    let rows = Rows::new("SHOW POOLS", table);
    let mut sum = Pools::default();
    // Asked for even when no row follows, so that an answer of another shape is never read as "nothing is open".
    for column in ["cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login", "maxwait"] {
        rows.column(column)?;
    }
    for row in rows.of_databases("database", wanted)? {
        let add = |total: &mut u32, column| -> Result<(), TableError> {
            *total = total.saturating_add(rows.number::<u32>(row, column)?);
            Ok(())
        };
        add(&mut sum.clients_active, "cl_active")?;
        add(&mut sum.clients_waiting, "cl_waiting")?;
        add(&mut sum.active, "sv_active")?;
        add(&mut sum.idle, "sv_idle")?;
        add(&mut sum.used, "sv_used")?;
        add(&mut sum.tested, "sv_tested")?;
        add(&mut sum.login, "sv_login")?;
        add(&mut sum.being_canceled, "sv_being_canceled")?;
        let wait = rows.microseconds(row, "maxwait", "maxwait_us")?;
        sum.longest_wait_microseconds = sum.longest_wait_microseconds.max(wait);
    }
    Ok(sum)
}

/// Reads the databases that have clients, and how many, out of `SHOW POOLS`; the console itself is none.
///
/// # Errors
/// [`TableError`].
pub fn databases_in_use(table: &Table) -> Result<BTreeMap<String, u32>, TableError> {
    let rows = Rows::new("SHOW POOLS", table);
    let name = rows.column("database")?;
    let mut in_use = BTreeMap::new();
    for row in table.rows.iter().map(Vec::as_slice).filter(|row| Rows::text(row, name) != CONSOLE) {
        let clients = rows.number::<u32>(row, "cl_active")?.saturating_add(rows.number(row, "cl_waiting")?);
        if clients > 0 {
            let sum: &mut u32 = in_use.entry(Rows::text(row, name).to_owned()).or_default();
            *sum = sum.saturating_add(clients);
        }
    }
    Ok(in_use)
}

/// Reads `SHOW STATS`. A database without traffic may be missing: all zero.
///
/// # Errors
/// [`TableError`].
pub fn stats(table: &Table, database: &str) -> Result<Stats, TableError> {
    let rows = Rows::new("SHOW STATS", table);
    for column in ["total_xact_count", "total_xact_time", "total_wait_time", "total_server_assignment_count"] {
        rows.column(column)?;
    }
    let mut sum = Stats::default();
    for row in rows.of_database("database", database)? {
        let add = |total: &mut u64, column| -> Result<(), TableError> {
            *total = total.saturating_add(rows.number::<u64>(row, column)?);
            Ok(())
        };
        add(&mut sum.transactions, "total_xact_count")?;
        add(&mut sum.transaction_microseconds, "total_xact_time")?;
        add(&mut sum.wait_microseconds, "total_wait_time")?;
        add(&mut sum.assignments, "total_server_assignment_count")?;
    }
    Ok(sum)
}

/// Reads `SHOW DATABASES`.
///
/// # Errors
/// [`TableError`]; the database must be there.
pub fn database(table: &Table, database: &str) -> Result<Database, TableError> {
    let rows = Rows::new("SHOW DATABASES", table);
    let row = rows
        .of_database("name", database)?
        .next()
        .ok_or_else(|| TableError::MissingDatabase { command: "SHOW DATABASES", database: database.to_owned() })?;
    Ok(Database {
        paused: rows.number::<u8>(row, "paused")? != 0,
        connections: rows.number(row, "current_connections")?,
    })
}

/// Reads the session alias out of `SHOW DATABASES`: the other database; None without one.
///
/// # Errors
/// [`TableError`].
pub fn alias(table: &Table, database: &str) -> Result<Option<Alias>, TableError> {
    let rows = Rows::new("SHOW DATABASES", table);
    let name = rows.column("name")?;
    let beside = rows.of_databases("name", |name| name != database && is_database(name))?.next();
    beside
        .map(|row| {
            Ok(Alias {
                name: Rows::text(row, name).to_owned(),
                connections: rows.number(row, "max_connections")?,
                paused: rows.number::<u8>(row, "paused")? != 0,
            })
        })
        .transpose()
}

/// Reads `SHOW CONFIG`: value by key.
///
/// # Errors
/// [`TableError`].
pub fn config(table: &Table) -> Result<BTreeMap<String, String>, TableError> {
    let rows = Rows::new("SHOW CONFIG", table);
    let (key, value) = (rows.column("key")?, rows.column("value")?);
    Ok(table.rows.iter().map(|row| (Rows::text(row, key).to_owned(), Rows::text(row, value).to_owned())).collect())
}

/// Reads `SHOW SERVERS`.
///
/// # Errors
/// [`TableError`].
pub fn servers(table: &Table, database: &str) -> Result<Vec<Server>, TableError> {
    let rows = Rows::new("SHOW SERVERS", table);
    let (state, link, address) = (rows.column("state")?, rows.column("link")?, rows.column("local_addr")?);
    let heard = rows.column("request_time")?;
    let process = rows.column("remote_pid")?;
    rows.column("id")?;
    rows.column("close_needed")?;
    rows.column("local_port")?;
    rows.of_database("database", database)?
        .map(|row| {
            Ok(Server {
                id: rows.number(row, "id")?,
                logged_in: Rows::text(row, state) != "new",
                process: Rows::text(row, process).parse().unwrap_or(0),
                closing: rows.number::<u8>(row, "close_needed")? != 0,
                client: Some(Rows::text(row, link)).filter(|link| !link.is_empty()).map(str::to_owned),
                heard: Rows::text(row, heard).to_owned(),
                local_address: Rows::text(row, address).to_owned(),
                local_port: rows.number(row, "local_port")?,
            })
        })
        .collect()
}

/// Reads what all clients are together out of `SHOW CLIENTS`; zeros without clients.
///
/// # Errors
/// [`TableError`].
pub fn count_clients(table: &Table) -> Result<ClientCount, TableError> {
    let rows = Rows::new("SHOW CLIENTS", table);
    let columns = ["id", "prepared_statements"];
    columns.into_iter().try_for_each(|column| rows.column(column).map(|_| ()))?;
    table.rows.iter().try_fold(ClientCount::default(), |count, row| {
        Ok(ClientCount {
            newest: count.newest.max(rows.number(row, "id")?),
            prepared_statements: count.prepared_statements.saturating_add(rows.number(row, "prepared_statements")?),
        })
    })
}

/// Reads the clients of every database out of `SHOW CLIENTS`.
///
/// # Errors
/// [`TableError`].
pub fn clients(table: &Table) -> Result<Vec<Client>, TableError> {
    let rows = Rows::new("SHOW CLIENTS", table);
    let (link, connected, requested) =
        (rows.column("link")?, rows.column("connect_time")?, rows.column("request_time")?);
    let application = rows.column("application_name")?;
    let (state, database) = (rows.column("state")?, rows.column("database")?);
    let (socket, address, port) = (rows.column("ptr")?, rows.column("addr")?, rows.column("port")?);
    rows.column("id")?;
    rows.of_databases("database", is_database)?
        .map(|row| {
            Ok(Client {
                id: rows.number(row, "id")?,
                linked: !Rows::text(row, link).is_empty(),
                waits: Rows::text(row, state).starts_with("waiting"),
                waited_microseconds: rows.microseconds(row, "wait", "wait_us")?,
                application: Rows::text(row, application).to_owned(),
                requested: Rows::text(row, requested).to_owned(),
                database: Rows::text(row, database).to_owned(),
                connected: Rows::text(row, connected).to_owned(),
                socket: Rows::text(row, socket).to_owned(),
                address: format!("{}:{}", Rows::text(row, address), Rows::text(row, port)),
            })
        })
        .collect()
}

/// Reads the addresses that a name has out of `SHOW DNS_HOSTS`, as PgBouncer prints them: as sockets, whose port is 0. None where nobody
/// has asked for it.
///
/// # Errors
/// [`TableError`].
pub fn addresses_of_name(table: &Table, name: &str) -> Result<Option<Vec<String>>, TableError> {
    let rows = Rows::new("SHOW DNS_HOSTS", table);
    let addresses = rows.column("addrs")?;
    let row = rows.of_database("hostname", name)?.next();
    let read = |row| Rows::text(row, addresses).split(',').map(str::trim).filter(|text| !text.is_empty());
    Ok(row.map(|row| read(row).map(str::to_owned).collect()))
}

/// Reads how many clients are just logging in out of `SHOW LISTS`.
///
/// # Errors
/// [`TableError`].
pub fn logging_in(table: &Table) -> Result<u32, TableError> {
    let rows = Rows::new("SHOW LISTS", table);
    let list = rows.column("list")?;
    let row = table.rows.iter().find(|row| Rows::text(row, list) == "login_clients");
    let missing = TableError::MissingColumn { command: "SHOW LISTS", column: "login_clients" };
    rows.number(row.ok_or(missing)?, "items")
}

/// Reads one figure of `SHOW CONFIG`.
///
/// # Errors
/// [`TableError`]: missing, or not a number.
pub fn config_number(config: &BTreeMap<String, String>, key: &'static str) -> Result<u32, TableError> {
    let value = config.get(key).ok_or(TableError::MissingColumn { command: "SHOW CONFIG", column: key })?;
    value.parse().map_err(|_| TableError::NotANumber {
        command: "SHOW CONFIG",
        column: key,
        value: value.chars().take(40).collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(text: &str) -> Table {
        let mut lines = text.lines().map(|line| line.split('|').map(str::trim).map(str::to_owned));
        Table {
            columns: lines.next().unwrap().collect(),
            rows: lines.map(|cells| cells.map(|cell| (cell != "NULL").then_some(cell)).collect()).collect(),
        }
    }

    const POOLS: &str = "\
database | user | cl_active | cl_waiting | sv_active | sv_being_canceled | sv_idle | sv_used | sv_tested | sv_login | maxwait | maxwait_us | new
pgbouncer | pgbouncer | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | x
shop | a | 9 | 2 | 3 | 1 | 1 | 1 | 0 | 1 | 1 | 500 | x
shop | b | 1 | 0 | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 7 | x";

    #[test]
    fn pools_of_one_database_add_up_and_the_console_does_not_count() {
        let read = pools(&table(POOLS), "shop").unwrap();
        assert_eq!((read.clients_active, read.clients_waiting, read.active), (10, 2, 4));
        assert_eq!(read.held(), 4 + 1 + 1 + 1 + 1);
        assert_eq!(read.longest_wait_microseconds, 1_000_500);
    }

    #[test]
    fn a_name_has_the_addresses_that_pgbouncer_prints_none_where_it_found_none_and_nobody_knows_where_nobody_asked() {
        let hosts = "hostname | ttl | addrs\ndb.shop | 5 | 192.0.2.7:0,[2001:db8::7]:0\ngone.shop | 0 | NULL";
        let of = |name| addresses_of_name(&table(hosts), name).unwrap();
        let found = ["192.0.2.7:0", "[2001:db8::7]:0"].map(str::to_owned).to_vec();
        assert_eq!((of("db.shop"), of("gone.shop"), of("other")), (Some(found), Some(Vec::new()), None));
    }

    #[test]
    fn clients_that_log_in_are_a_row_of_their_own() {
        let lists = "list | items\nused_clients | 3\nlogin_clients | 2\nfree_servers | 0";
        assert_eq!(logging_in(&table(lists)), Ok(2));
        let without = logging_in(&table(&lists.replace("login_clients", "clients"))).unwrap_err();
        assert_eq!(without, TableError::MissingColumn { command: "SHOW LISTS", column: "login_clients" });
    }

    #[test]
    fn what_is_not_of_the_database_itself_nor_of_the_console_is_the_aliass() {
        let pools = table(&POOLS.replace("shop | b |", "shop_session | a |"));
        assert_eq!(super::pools(&pools, "shop").unwrap().active, 3);
        assert_eq!(pools_beside(&pools, "shop").unwrap().active, 1);
        let databases = table(
            "name | max_connections | paused | current_connections\n\
             pgbouncer | 0 | 0 | 0\nshop | 6 | 0 | 3\nshop_session | 2 | 1 | 1",
        );
        let alias = Some(Alias { name: "shop_session".to_owned(), connections: 2, paused: true });
        assert_eq!(super::alias(&databases, "shop").unwrap(), alias);
        assert!(!database(&databases, "shop").unwrap().paused);
        let clients = "id | database | state | link | connect_time | request_time | wait | wait_us | ptr | addr | port | application_name\n\
                       1 | pgbouncer | active |  | x | y | 0 | 0 | C1 | unix | 0 | psql\n\
                       2 | shop | waiting |  | x | y | 3 | 70 | C2 | 127.0.0.1 | 4001 | web\n\
                       3 | shop_session | active | S | x | y | 0 | 0 | C3 | 127.0.0.1 | 4002 | NULL\n\
                       4 | (nodb) | active |  | x | y | 0 | 0 | C4 | unix | 0 | NULL";
        let clients = super::clients(&table(clients)).unwrap();
        let linked: Vec<_> = clients.iter().map(|client| client.linked).collect();
        assert_eq!(linked, [false, true]);
        assert_eq!(clients.iter().map(|client| client.waits).collect::<Vec<_>>(), [true, false]);
        assert_eq!((clients[1].socket.as_str(), clients[1].address.as_str()), ("C3", "127.0.0.1:4002"));
        let called: Vec<_> =
            clients.iter().map(|client| (client.application.as_str(), client.waited_microseconds)).collect();
        assert_eq!(called, [("web", 3_000_070), ("", 0)]);
    }

    #[test]
    fn clients_are_counted_with_what_they_have_prepared() {
        let clients = "id | database | prepared_statements\n7 | shop | 200\n4 | pgbouncer | 0\n12 | shop | 3";
        assert_eq!(count_clients(&table(clients)), Ok(ClientCount { newest: 12, prepared_statements: 203 }));
        let without = count_clients(&table("id | database\n7 | shop")).unwrap_err();
        assert_eq!(without, TableError::MissingColumn { command: "SHOW CLIENTS", column: "prepared_statements" });
    }

    #[test]
    fn a_missing_column_is_named_even_without_rows() {
        let without = table(&POOLS.replace("sv_login", "sv_logging_in"));
        let error = pools(&without, "none").unwrap_err();
        assert_eq!(error, TableError::MissingColumn { command: "SHOW POOLS", column: "sv_login" });
    }

    #[test]
    fn a_figure_that_is_not_a_number_is_never_zero() {
        let garbage = table(&POOLS.replace("| 9 |", "| nine |"));
        assert!(matches!(pools(&garbage, "shop"), Err(TableError::NotANumber { column: "cl_active", .. })));
        let negative = table(&POOLS.replace("| 9 |", "| -9 |"));
        assert!(matches!(pools(&negative, "shop"), Err(TableError::NotANumber { .. })));
        let null = table(&POOLS.replace("| 9 |", "| NULL |"));
        assert!(matches!(pools(&null, "shop"), Err(TableError::NotANumber { .. })));
    }

    fn any_table() -> impl Strategy<Value = Table> {
        let names = prop_oneof![
            Just("database"),
            Just("name"),
            Just("paused"),
            Just("max_connections"),
            Just("current_connections"),
            Just("key"),
            Just("value"),
            Just("cl_active"),
            Just("id"),
            Just("link"),
            Just("local_addr"),
            Just("local_port"),
            Just("total_xact_count"),
            Just("prepared_statements"),
        ];
        let columns = prop::collection::vec(names.prop_map(str::to_owned), 0..12);
        let cell = prop::option::of(prop_oneof![
            Just("shop".to_owned()),
            any::<u64>().prop_map(|n| n.to_string()),
            any::<String>()
        ]);
        let rows = prop::collection::vec(prop::collection::vec(cell, 0..12), 0..5);
        (columns, rows).prop_map(|(columns, rows)| Table { columns, rows })
    }

    proptest! {
        #[test]
        fn reading_any_answer_never_panics(table in any_table()) {
            let _ = (pools(&table, "shop"), stats(&table, "shop"), database(&table, "shop"));
            let _ = (config(&table), servers(&table, "shop"), count_clients(&table), clients(&table));
            let _ = (alias(&table, "shop"), pools_beside(&table, "shop"));
        }
    }
}
