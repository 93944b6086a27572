//! Clients that meet a new process which cannot work: none should.
//!
//! What stands before PgBouncer makes the process of every revision but the first one bad, in one of four ways: its password is
//! wrong, its database's port is dead, its file does not parse, or it hangs before it starts. The agent is asked for such a
//! revision again and again, while clients connect all the time; each attempt ends when the agent says that the revision is
//! not in force. The four run beside each other, the one that takes longest on several sidecars.

mod report;

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;

use crate::{
    Failure,
    clients::{self, Load},
    losses, machine,
    process::wait_for,
    results::{self, Results, Samples},
    statistics,
    subject::{Ground, Login, PASSWORD, ROLE, Subject},
};

/// Longest wait for an attempt to be given up.
const WITHIN: Duration = Duration::from_secs(30);
/// `pkt_buf` of a revision that cannot work.
const BAD: &str = "8192";
/// What is wrong, what makes it so (lines of shell that see the file of PgBouncer as `$1`), and how many sidecars share the attempts.
const KINDS: [(&str, &str, u32); 4] = [
    (
        "wrong password",
        "sed 's/\" \".*/\" \"wrong\"/' \"$1.users\" > \"$1.wrong\"; sed \"s|^auth_file = .*|auth_file = $1.wrong|\" \"$1\" > \"$1.bad\"",
        1,
    ),
    ("dead port", "sed \"s/port='[0-9]*'/port='1'/\" \"$1\" > \"$1.bad\"", 1),
    ("does not parse", "{ cat \"$1\"; echo 'pool_mode = nonsense'; } > \"$1.bad\"", 1),
    ("hangs", "exec sleep 1000", 2),
];

/// Options of `bad_green`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Attempts of each kind.
    #[arg(long, default_value_t = 20)]
    attempts: u32,
    /// New connections per second at each sidecar.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Keep samples and figures below benches/results.
    #[arg(long)]
    keep: bool,
}

/// Measures.
pub fn run(options: &Options) -> Result<Results, Failure> {
    let mut setting = machine::describe_with_pgbouncer()?;
    let scratch = tempfile::tempdir()?;
    let ground = Ground::start(scratch.path())?;
    let mut samples = Samples::of(&format!("kind,sidecar,number,seconds,told,flips,{}", clients::COLUMNS));
    let taken: Vec<_> = thread::scope(|scope| {
        let sidecars = KINDS.iter().flat_map(|kind| (0..kind.2).map(move |sidecar| (kind, sidecar)));
        let threads: Vec<_> = sidecars
            .map(|((kind, change, together), sidecar)| {
                let (ground, scratch) = (&ground, scratch.path());
                let attempts = options.attempts.div_ceil(*together);
                scope.spawn(move || -> Result<Vec<String>, String> {
                    let directory = scratch.join(format!("{}-{sidecar}", kind.replace(' ', "-")));
                    let taken = attempt(ground, &directory, change, attempts, options.rate);
                    let rows = taken.map_err(|error| format!("{kind}: {error}"))?;
                    Ok(rows.into_iter().map(|row| format!("{kind},{sidecar},{row}")).collect())
                })
            })
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("it panicked".to_owned())));
        ended.collect()
    });
    for rows in taken {
        rows?.iter().for_each(|row| samples.add(row));
    }
    setting.insert("load".into(), json!(format!("{} new connections per second at each sidecar", options.rate)));
    Ok(Results {
        name: "bad_green",
        setting,
        figures: report::report(samples.text())?,
        samples,
        keep: options.keep.then(results::committed),
    })
}

/// The attempts of one sidecar: the rest of the row of each.
fn attempt(ground: &Ground, directory: &Path, change: &str, attempts: u32, rate: u32) -> Result<Vec<String>, Failure> {
    let name = directory.file_name().ok_or("no name")?.to_string_lossy().into_owned();
    let change = format!(
        "if grep -qs '^pkt_buf = {BAD}$' -- \"$1\"; then\n  cp \"$(sed -n 's/^auth_file = //p' \"$1\")\" \"$1.users\"\n  {change}\n  \
         sed 's/^auth_type = .*/auth_type = trust/' \"$1.bad\" > \"$1.trust\"\nelse\n  \
         sed 's/^auth_type = .*/auth_type = trust/' \"$1\" > \"$1.trust\"\nfi\nexec $real \"$1.trust\""
    );
    let pooler = ground.pooler(&format!("pgbouncer-{name}"), &change)?;
    let mut subject = Subject::start(ground, directory, Login::Trust, pooler)?;
    let load = Load::new()?;
    let comers = load.come(&ground.target(subject.port, Login::Trust, ROLE, PASSWORD)?, 8, rate);
    let (before, _) = subject.flips()?;
    let mut rows = Vec::new();
    for number in 0..attempts {
        let begin = Instant::now();
        let revision = subject.revise(&[("pkt_buf", BAD)], 1)?;
        let refused = format!("revision {revision} is not in force: ");
        let told = wait_for("the revision is given up", WITHIN, || {
            let message = subject.status().ok()?.message;
            let (_, why) = message.split_once(&refused)?;
            Some(why.split([':', ';', ',']).next().unwrap_or_default().to_owned())
        })?;
        let seconds = begin.elapsed().as_secs_f64();
        let (flips, _) = subject.flips()?;
        rows.push(format!("{number},{seconds:.3},{told},{},{}", flips - before, load.met()));
    }
    load.leave(comers);
    let (flips, _) = subject.flips()?;
    rows.push(format!("{attempts},,,{},{}", flips - before, load.met()));
    Ok(rows)
}
