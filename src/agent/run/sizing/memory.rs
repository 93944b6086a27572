//! How many server connections the container's memory has room for: the shell around [`crate::decide::memory`].

use std::{fs, path::Path};

use crate::{
    agent::run::{Sidecar, slots::Slots},
    contract::{ClientTlsMode, MemoryReport, ServerTlsMode},
    decide::memory::{self, Bundle, Bytes, Generation, Packets, SidecarLoad},
};

/// Where a container finds its own limit: of version 2 of control groups, and of version 1.
const LIMIT_FILES: [&str; 2] = ["memory.max", "memory/memory.limit_in_bytes"];
/// What version 1 says where there is no limit is beyond every machine.
const NO_LIMIT: Bytes = 1 << 60;
/// Clients are counted in steps: the limit does not move with each of them.
const CLIENT_STEP: u32 = 50;
/// The same for the statements that they have prepared.
const STATEMENT_STEP: u32 = 1000;
/// From here on another table of PgBouncer's is larger.
const LARGER_SINCE: (u32, u32) = (1, 25);

/// What is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    limit: Option<Bytes>,
    load: Option<SidecarLoad>,
    /// Whether the limit would be larger without it.
    holds_back: bool,
}

impl Room {
    /// Reads the container's limit, which may be resized while it runs.
    pub(super) fn read_limit(&mut self, control_group: &Path) {
        let read = LIMIT_FILES.iter().find_map(|file| fs::read_to_string(control_group.join(file)).ok());
        self.limit = read.and_then(|text| text.trim().parse().ok()).filter(|limit| *limit < NO_LIMIT);
    }

    /// So many clients are connected. `copied` is what each server connection has a copy of.
    pub(super) fn count(&mut self, sidecar: &Sidecar, slots: &mut Slots, copied: Option<Bundle>, clients: u32) {
        self.load = Some(load(sidecar, slots, copied, clients));
    }

    /// Before anything is known of clients.
    pub(super) fn expect(&mut self, sidecar: &Sidecar, slots: &mut Slots, copied: Option<Bundle>) {
        if self.load.is_none() {
            self.read_limit(&sidecar.options.control_group);
        }
        // those that were there come back, if this is another process
        let clients = self.load.map_or(0, |load| load.clients);
        self.count(sidecar, slots, copied, clients);
    }

    /// Server connections that there is room for; None without a limit. Never 0: a pod that may open none serves nobody.
    pub(super) fn allows(&self) -> Option<u32> {
        Some(self.load?.servers_within(self.limit?).max(1))
    }

    /// The limit, no larger than there is room for beside the `reserved` connections of the session alias.
    pub(super) fn bound(&mut self, limit: u32, reserved: u32) -> u32 {
        let bounded = self.allows().map_or(limit, |allows| limit.min(allows.saturating_sub(reserved).max(1)));
        let holds_back = bounded < limit;
        if holds_back && !self.holds_back {
            tracing::warn!(
                limit = bounded,
                "the limit is lower than the load asks for: the container's memory has room for no more server connections"
            );
        }
        self.holds_back = holds_back;
        bounded
    }

    /// What is told of it; None without a limit.
    pub(super) fn report(&self, share: u32) -> Option<MemoryReport> {
        let (limit, load) = (self.limit?, self.load?);
        let needed = SidecarLoad { servers: share, ..load };
        Some(MemoryReport {
            limit_bytes: limit,
            needed_bytes: needed.needed(),
            limit_needed_bytes: needed.limit(),
            allows: self.allows()?,
            holds_back: self.holds_back,
        })
    }
}

fn load(sidecar: &Sidecar, slots: &mut Slots, copied: Option<Bundle>, clients: u32) -> SidecarLoad {
    let poolers = 1 + u32::from(slots.other.is_running());
    let copied = match sidecar.injection.upstream.tls.mode {
        ServerTlsMode::Disabled => None,
        ServerTlsMode::Require => Some(Bundle::default()),
        ServerTlsMode::VerifyCa | ServerTlsMode::VerifyFull => copied,
    };
    let is_older = sidecar.build.is_some_and(|build| (build.version.major, build.version.minor) < LARGER_SINCE);
    let prepared = slots.prepared_statements().next_multiple_of(STATEMENT_STEP);
    let per_server = memory::statements_per_server(slots.active.parameter("max_prepared_statements"));
    SidecarLoad {
        poolers,
        generation: if is_older { Generation::Before1_25 } else { Generation::Newer },
        servers: 0,
        bundle: copied,
        packet_bytes: memory::packet_bytes(slots.active.parameter("pkt_buf")),
        packets: Packets::OfAll,
        prepared,
        prepared_per_server: per_server.min(prepared),
        clients: clients.next_multiple_of(CLIENT_STEP),
        client_tls: sidecar.injection.client.tls != ClientTlsMode::Disabled,
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn the_limit_of_the_container_is_that_of_its_control_group_of_either_version() {
        let directory = TempDir::new().unwrap();
        let mut room = Room::default();
        let mut read = || {
            room.read_limit(directory.path());
            room.limit
        };
        assert_eq!(read(), None, "there is none");
        fs::create_dir(directory.path().join("memory")).unwrap();
        fs::write(directory.path().join(LIMIT_FILES[1]), "9223372036854771712\n").unwrap();
        assert_eq!(read(), None, "what version 1 says of no limit");
        fs::write(directory.path().join(LIMIT_FILES[1]), "67108864\n").unwrap();
        assert_eq!(read(), Some(64 << 20));
        fs::write(directory.path().join(LIMIT_FILES[0]), "max\n").unwrap();
        assert_eq!(read(), None);
        fs::write(directory.path().join(LIMIT_FILES[0]), "33554432\n").unwrap();
        assert_eq!(read(), Some(32 << 20));
    }
}
