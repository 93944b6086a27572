//! Processes that others left behind. In a container the agent is the first process, so every orphan becomes its child;
//! as a child subreaper it is their parent where it is not the first one, too. Whoever is a parent must reap.

use std::{fs, str::FromStr};

use rustix::process::{Pid, WaitId, WaitIdOptions, getpid, set_child_subreaper, waitid};

/// Becomes the parent of whatever the pooler and its helpers leave behind.
pub fn adopt() {
    // Refused by no kernel that we run on; without it the orphans are somebody else's.
    let _ = set_child_subreaper(Some(getpid()));
}

/// Reaps children that have ended, except our own one, whose end its owner waits for.
pub fn reap(own: Option<Pid>) {
    for pid in children().into_iter().filter(|pid| Some(*pid) != own && has_ended(*pid)) {
        // It has ended and is nobody else's: this returns at once.
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        tracing::debug!(pid = pid.as_raw_nonzero().get(), "reaped a process that was left behind");
    }
}

/// Children of all threads; none where the kernel does not tell.
fn children() -> Vec<Pid> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(pid).collect::<Vec<_>>()).collect()
}

fn pid(text: &str) -> Option<Pid> {
    Pid::from_raw(i32::from_str(text).ok()?)
}

fn has_ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}
