//! Consoles that do not behave: a server that speaks the protocol of PgBouncer's console and lies.

use std::{
    io::{BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use sluice::contract::SlotStatus;
use tempfile::TempDir;

use super::rig::{Account, Agent, settings};

/// How the console misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// Says yes to SET, and changes nothing.
    ChangesNothing,
    /// Other columns than PgBouncer's.
    OtherColumns,
    /// Words where numbers should be.
    Garbage,
    /// Bytes that are no protocol at all.
    Noise,
    /// No answer.
    Silence,
    /// Every second `SHOW SERVERS` gets no answer; everything else is in order.
    Lapses,
}

/// A program that claims to be PgBouncer and only lives; the console is served by the test.
fn impostor(directory: &TempDir) -> PathBuf {
    let program = directory.path().join("pgbouncer");
    let script =
        "#!/bin/sh\n[ \"$1\" = -V ] || [ \"$1\" = --version ] && { echo 'PgBouncer 1.24.1'; exit; }\nexec sleep 60\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

fn table(columns: &[&str], rows: &[&[&str]]) -> Vec<u8> {
    let count = u16::try_from(columns.len()).unwrap().to_be_bytes();
    let mut description = count.to_vec();
    for column in columns {
        description.extend(column.as_bytes());
        description.push(0);
        description.extend([0; 6]);
        description.extend(25_u32.to_be_bytes());
        description.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    }
    let mut answer = message(b'T', &description);
    for row in rows {
        let mut cells = count.to_vec();
        for cell in *row {
            cells.extend(u32::try_from(cell.len()).unwrap().to_be_bytes());
            cells.extend(cell.as_bytes());
        }
        answer.extend(message(b'D', &cells));
    }
    answer
}

fn answer(lie: Lie, query: &str) -> Vec<u8> {
    let number = if lie == Lie::Garbage { "many" } else { "0" };
    let warm = if lie == Lie::Garbage { number } else { "1" };
    let mut answer = match query {
        _ if lie == Lie::OtherColumns && query.starts_with("SHOW") => table(&["something", "else"], &[&["1", "2"]]),
        "SHOW VERSION" => table(&["version"], &[&["PgBouncer 1.24.1"]]),
        "SHOW CONFIG" => table(
            &["key", "value", "default", "changeable"],
            &[
                &["default_pool_size", "3", "20", "yes"],
                &["min_pool_size", warm, "0", "yes"],
                &["max_db_connections", "3", "0", "yes"],
            ],
        ),
        "SHOW DATABASES" => table(&["name", "paused", "current_connections"], &[&["shop", "0", number]]),
        "SHOW POOLS" => {
            let columns = [
                "database",
                "user",
                "cl_active",
                "cl_waiting",
                "sv_active",
                "sv_being_canceled",
                "sv_idle",
                "sv_used",
                "sv_tested",
                "sv_login",
                "maxwait",
                "maxwait_us",
                "pool_mode",
            ];
            let mut row = ["shop", "shop", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "transaction"];
            row[2] = number;
            table(&columns, &[&row])
        }
        "SHOW STATS" => {
            let columns =
                ["database", "total_xact_count", "total_xact_time", "total_wait_time", "total_server_assignment_count"];
            table(&columns, &[&["shop", number, "0", "0", "0"]])
        }
        "SHOW SERVERS" => {
            let columns = [
                "database",
                "state",
                "id",
                "link",
                "local_addr",
                "local_port",
                "request_time",
                "remote_pid",
                "close_needed",
            ];
            table(&columns, &[])
        }
        "SHOW CLIENTS" => table(&["id"], &[]),
        _ => Vec::new(),
    };
    answer.extend(message(b'C', b"SHOW\0"));
    answer.extend(message(b'Z', b"I"));
    answer
}

fn count(asked: &Mutex<Vec<String>>, query: &str) -> usize {
    asked.lock().unwrap().iter().filter(|before| *before == query).count()
}

/// Serves one connection; the commands are kept.
fn serve(lie: Lie, stream: &mut (impl Read + Write), asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
    stream.read_exact(&mut startup)?;
    stream.write_all(&[message(b'R', &[0; 4]), message(b'Z', b"I")].concat())?;
    loop {
        let mut header = [0; 5];
        stream.read_exact(&mut header)?;
        let mut body = vec![0; u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4];
        stream.read_exact(&mut body)?;
        if header[0] != b'Q' {
            return Ok(());
        }
        let query = String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned();
        let reply = match lie {
            Lie::Silence => Vec::new(),
            Lie::Noise => vec![b'!'; 64],
            Lie::Lapses if query == "SHOW SERVERS" && count(asked, &query) % 2 == 1 => Vec::new(),
            _ => answer(lie, &query),
        };
        asked.lock().unwrap().push(query);
        stream.write_all(&reply)?;
    }
}

/// A console that lies, until it is dropped.
struct Liar {
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Liar {
    fn start(lie: Lie, agent: &Agent) -> Self {
        // a program without socket activation opens this socket itself
        let slot = agent.run_dir().join("a");
        std::fs::create_dir(&slot).unwrap();
        let socket = slot.join(format!(".s.PGSQL.{}", agent.client_port()));
        let listener = UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (keeps, stops) = (asked.clone(), stop.clone());
        thread::spawn(move || {
            while !stops.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                let keeps = keeps.clone();
                thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    let _ = serve(lie, &mut Duplex(&mut stream), &keeps);
                });
            }
        });
        Self { asked, stop }
    }

    fn was_asked(&self, beginning: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|query| query.starts_with(beginning))
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Reads through a buffer, writes past it.
struct Duplex<'a>(&'a mut BufReader<std::os::unix::net::UnixStream>);

impl Read for Duplex<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Duplex<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.get_mut().flush()
    }
}

/// An agent whose pooler's console lies; asked for a share of 5, while the console stays at 3.
fn lied_to(lie: Lie, directory: &TempDir) -> (Agent, Liar) {
    with_share(5, lie, directory)
}

fn with_share(share: u32, lie: Lie, directory: &TempDir) -> (Agent, Liar) {
    let mut agent = Agent::new(1, &Account::shop()).with_pooler(&impostor(directory));
    agent.revise(1, &settings());
    agent.grant(1, share, share);
    let liar = Liar::start(lie, &agent);
    agent.run();
    (agent, liar)
}

#[tokio::test]
#[ignore = "needs the lab's environment: tests/run parts"]
async fn a_console_that_answers_set_and_changes_nothing_is_never_reported_as_applied() {
    let directory = TempDir::new().unwrap();
    let (agent, liar) = lied_to(Lie::ChangesNothing, &directory);
    let status = agent.until("it is told", |status| status.message.contains("not in force")).await;
    assert!(liar.was_asked("SET "), "it was asked");
    assert_eq!((status.seq, status.share), (0, 0), "the grant is not in force");
    assert_eq!(status.limits.unwrap().pool_size, 3, "what is reported is what was read back");
}

#[tokio::test]
#[ignore = "needs the lab's environment: tests/run parts"]
async fn a_console_with_other_columns_or_garbage_is_an_error_that_names_the_column() {
    for (lie, said) in [(Lie::OtherColumns, "has no column"), (Lie::Garbage, "not a number")] {
        let directory = TempDir::new().unwrap();
        let (agent, _liar) = lied_to(lie, &directory);
        let status = agent.until(said, |status| status.message.contains(said)).await;
        assert_eq!((status.seq, status.held), (0, None), "{lie:?}: nothing is guessed");
    }
}

#[tokio::test]
#[ignore = "needs the lab's environment: tests/run parts"]
async fn a_console_that_hangs_or_makes_noise_never_counts_as_serving() {
    for lie in [Lie::Silence, Lie::Noise] {
        let directory = TempDir::new().unwrap();
        let (agent, liar) = lied_to(lie, &directory);
        agent.until("it was asked", |_| liar.was_asked("SHOW VERSION")).await;
        let status = agent.status().unwrap();
        assert_ne!(status.slot, SlotStatus::Serving, "{lie:?}");
        assert_eq!((status.seq, status.limits, status.held), (0, None, None));
    }
}

#[tokio::test]
#[ignore = "needs the lab's environment: tests/run parts"]
async fn a_single_reading_without_an_answer_is_not_told_and_turns_no_pod_unready() {
    let directory = TempDir::new().unwrap();
    let (agent, liar) = with_share(3, Lie::Lapses, &directory);
    agent.until("the grant is in force", |status| status.seq == 1).await;
    agent.until("a first reading", |status| status.held.is_some()).await;
    while count(&liar.asked, "SHOW SERVERS") < 8 {
        let status = agent.status().unwrap();
        assert_eq!((status.slot, status.message.as_str()), (SlotStatus::Serving, ""));
        assert!(status.held.is_some(), "what was read a second ago still holds");
        assert!(agent.is_ready());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

#[tokio::test]
#[ignore = "needs the lab's environment: tests/run parts"]
async fn a_console_that_answers_reload_and_changes_nothing_is_never_reported_as_applied() {
    let directory = TempDir::new().unwrap();
    let (agent, liar) = with_share(3, Lie::ChangesNothing, &directory);
    agent.until("what it started with is in force", |status| status.revision == Some(1) && status.seq == 1).await;
    let mut changed = settings();
    changed.parameters.insert("server_idle_timeout".to_owned(), "33".to_owned());
    agent.revise(2, &changed);
    let status = agent.until("it is told", |status| status.message.contains("server_idle_timeout")).await;
    assert!(liar.was_asked("RELOAD"), "it was asked");
    assert_eq!((status.revision, status.wanted_revision), (Some(1), Some(2)));
    // and a grant that is followed does not make it so
    agent.grant(2, 3, 3);
    let status = agent.until("the grant is in force", |status| status.seq == 2).await;
    assert_eq!(status.revision, Some(1));
    assert!(status.message.contains("not in force"), "{}", status.message);
}
