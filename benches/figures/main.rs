//! Figures of the whole product, measured on real parts: `benches/run acquisition | agent | alike | bad_green | changes |
//! decision | division | endings | footprint | kills | look | memory | neighbours | overhead | reaction | rollouts | sharing | switch | tick |
//! verdicts`.
//!
//! Each figure has a directory of its own: `mod.rs` measures, `report.rs` (PURE) turns the raw samples into the printed
//! figures. The samples are written to `benches/results/NAME` together with the machine and the commit, and a test computes the
//! printed figures from them again.

#[path = "../acquisition/mod.rs"]
mod acquisition;
#[path = "../agent/mod.rs"]
mod agent;
mod agents;
#[path = "../alike/mod.rs"]
mod alike;
#[path = "../bad_green/mod.rs"]
mod bad_green;
mod bare;
mod certificates;
#[path = "../changes/mod.rs"]
mod changes;
mod clients;
mod cluster;
#[path = "../decision/mod.rs"]
mod decision;
#[path = "../division/mod.rs"]
mod division;
#[path = "../endings/mod.rs"]
mod endings;
mod fleet;
#[path = "../footprint/mod.rs"]
mod footprint;
mod in_pod;
#[path = "../kills/mod.rs"]
mod kills;
mod load;
#[path = "../look/mod.rs"]
mod look;
mod losses;
mod machine;
#[path = "../memory/mod.rs"]
mod memory;
#[path = "../neighbours/mod.rs"]
mod neighbours;
mod node;
#[path = "../overhead/mod.rs"]
mod overhead;
mod pages;
mod pod;
mod pod_processes;
mod process;
mod proxy;
#[path = "../reaction/mod.rs"]
mod reaction;
mod results;
#[path = "../rollouts/mod.rs"]
mod rollouts;
#[path = "../sharing/mod.rs"]
mod sharing;
mod statistics;
mod subject;
#[path = "../switch/mod.rs"]
mod switch;
#[path = "../tick/mod.rs"]
mod tick;
#[path = "../verdicts/mod.rs"]
mod verdicts;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use results::Results;

/// Why a figure could not be measured; told as it is.
type Failure = Box<dyn std::error::Error>;

#[derive(Debug, Parser)]
#[command(name = "benches/run", about = "Measures figures of the product on real parts")]
struct Options {
    #[command(subcommand)]
    figure: Figure,
}

#[derive(Debug, Subcommand)]
enum Figure {
    /// How long a client takes until its first answer.
    Acquisition(acquisition::Options),
    /// What the agent takes, and how soon clients get answers after a start and after a fault.
    Agent(agent::Options),
    /// How often pods that are all alike are told apart by the analysis.
    Alike(alike::Options),
    /// Clients that meet a new process which cannot work.
    #[command(name = "bad_green")]
    BadGreen(bad_green::Options),
    /// Connections lost while limits, credentials and CA change.
    Changes(changes::Options),
    /// Time of a decision, and of a round of 1,000 pools.
    Decision(decision::Options),
    /// Time to divide a server over 5,000 pods, beside Multigres.
    Division(division::Options),
    /// Connections lost while pods are replaced.
    Endings(endings::Options),
    /// Memory of a sidecar in the middle of a switch.
    Footprint(footprint::Options),
    /// PgBouncer and the agent killed under load.
    Kills(kills::Options),
    /// CPU seconds of the sidecar per million queries: PgBouncer alone against agent and PgBouncer.
    Overhead(overhead::Options),
    /// Time of a whole look of the operator at one large pool.
    Look(look::Options),
    /// Connections lost while a pod's pooler is replaced by another process.
    Switch(switch::Options),
    /// A whole tick of the operator, with 1,000 pools read from Prometheus.
    Tick(tick::Options),
    /// Memory of the operator.
    Memory(memory::Options),
    /// What one tenant, one pod or one sender of packets can do to the others.
    Neighbours(neighbours::Options),
    /// How soon a decision of the operator is in force in PgBouncer.
    Reaction(reaction::Options),
    /// Bad and good revisions on the node under load.
    Rollouts(rollouts::Options),
    /// How soon the busy one of two pods has its share.
    Sharing(sharing::Options),
    /// How often a canary is judged wrongly, and how soon.
    Verdicts(verdicts::Options),
    /// No figure: the clients that a figure has in a pod.
    #[command(hide = true)]
    InPod(in_pod::Crowd),
}

fn main() -> ExitCode {
    // `cargo bench` and `cargo test` add a word of their own
    let words = std::env::args().filter(|word| word != "--bench");
    let measured = match Options::parse_from(words).figure {
        Figure::InPod(crowd) => return ended(in_pod::be(&crowd)),
        Figure::Acquisition(options) => acquisition::run(&options),
        Figure::Agent(options) => agent::run(&options),
        Figure::Alike(options) => alike::run(&options),
        Figure::BadGreen(options) => bad_green::run(&options),
        Figure::Changes(options) => changes::run(&options),
        Figure::Decision(options) => decision::run(&options),
        Figure::Division(options) => division::run(&options),
        Figure::Endings(options) => endings::run(&options),
        Figure::Footprint(options) => footprint::run(&options),
        Figure::Kills(options) => kills::run(&options),
        Figure::Look(options) => look::run(&options),
        Figure::Overhead(options) => overhead::run(&options),
        Figure::Switch(options) => switch::run(&options),
        Figure::Tick(options) => tick::run(&options),
        Figure::Memory(options) => memory::run(&options),
        Figure::Neighbours(options) => neighbours::run(&options),
        Figure::Reaction(options) => reaction::run(&options),
        Figure::Rollouts(options) => rollouts::run(&options),
        Figure::Sharing(options) => sharing::run(&options),
        Figure::Verdicts(options) => verdicts::run(&options),
    };
    ended(measured.and_then(|results: Results| results.tell()))
}

fn ended(with: Result<(), Failure>) -> ExitCode {
    match with {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches/run: {error}");
            ExitCode::FAILURE
        }
    }
}
