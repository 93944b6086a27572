//! `kubectl sluice freeze`: freezes the automation of pools until a time, and says why.

use std::time::Duration;

use clap::Args;
use k8s_openapi::jiff::Timestamp;

use super::{
    cluster::ClusterAccess,
    error::{Conclusion, PluginError},
    options::{ClusterOptions, OutputOptions, WriteOptions, duration},
    pause::switch,
    view::switch::{PauseChange, freeze},
};

/// Arguments of `freeze`.
#[derive(Args, Debug)]
pub struct FreezeArgs {
    /// Pools.
    #[arg(value_name = "POOL", required = true)]
    pools: Vec<String>,
    /// When it ends by itself: in 30m, 8h or 48h, or at 2026-12-01T06:00:00Z.
    #[arg(long, value_name = "WHEN", value_parser = freeze_end)]
    until: FreezeEnd,
    /// Why: everybody who looks at the pool reads it.
    #[arg(long, value_name = "WORDS")]
    reason: String,
    #[command(flatten)]
    write: WriteOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// When a freeze ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FreezeEnd {
    After(Duration),
    At(Timestamp),
}

/// Runs the verb.
///
/// # Errors
/// [`PluginError`].
pub async fn run(args: FreezeArgs, options: &ClusterOptions) -> Result<Conclusion, PluginError> {
    let FreezeArgs { pools, until, reason, write, output } = args;
    let cluster = ClusterAccess::connect(options).await?;
    let now = Timestamp::now();
    let until = match until {
        FreezeEnd::At(at) => at,
        FreezeEnd::After(after) => now
            .checked_add(after)
            .map_err(|error| PluginError::Usage(format!("--until: nobody counts so far: {error}")))?,
    };
    let who = cluster.who_asks().await;
    let change = freeze(until, &reason, who.as_deref(), now).map_err(PluginError::Usage)?;
    switch(&PauseChange::Freeze(change), &pools, (write, output), &cluster).await
}

/// A length of time from now, or a time.
fn freeze_end(text: &str) -> Result<FreezeEnd, String> {
    if let Ok(at) = text.parse() {
        return Ok(FreezeEnd::At(at));
    }
    match duration(text) {
        Ok(after) if !after.is_zero() => Ok(FreezeEnd::After(after)),
        _ => Err(format!("`{text}` is no end; write for instance 30m, 8h, or 2026-12-01T06:00:00Z")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_time_or_so_long_from_now() {
        assert_eq!(freeze_end("8h"), Ok(FreezeEnd::After(Duration::from_hours(8))));
        let at = "2026-12-01T06:00:00Z";
        assert_eq!(freeze_end(at), Ok(FreezeEnd::At(at.parse().expect("a time"))));
        for wrong in ["", "0", "tomorrow", "2026-12-01", "8"] {
            assert!(freeze_end(wrong).expect_err(wrong).contains("write for instance"), "{wrong}");
        }
    }
}
