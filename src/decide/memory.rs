//! What a sidecar needs of memory, by what it has to do: one model for admission, for the agent and for the documents.
//!
//! ```text
//! needed = agent + keeper
//!        + poolers x (base + TLS library, where either side speaks TLS)
//!        + servers x (connection + TLS + certificates x copy of one + their bytes in PEM x 1.35 + statements x copy of one)
//!        + clients x (connection + TLS)
//!        + packet buffers
//!        + statements that clients have prepared
//! ```
//!
//! The figures are memory that the kernel cannot take back (anonymous pages), measured with the PgBouncer 1.24.1 and 1.26.1 of Debian on
//! x86-64 with OpenSSL 3 and PostgreSQL 18: idle, with 1 to 100 server connections and with 500 clients, without TLS and with it, and with
//! bundles of 1 and of 145 certificates; with 100 to 1,590 clients that wait, and with 20,000 to 200,000 prepared statements. Of two versions
//! the larger counts, but for the base and clients. `tests/parts/agent/memory.rs` holds it to the real programs within 15 %.
//!
//! PgBouncer makes a context of OpenSSL's for each server connection and reads its CA file into it, so every connection has a copy of every
//! certificate. The contexts of clients share what they are shown. What it has taken it keeps for the next connection: memory follows the
//! most connections that there were, and so does the model when it is asked for the most that there may be.
//!
//! A client that waits keeps its packet, and so does everybody whose packet is on its way, in a buffer of `pkt_buf` bytes; whoever rests has
//! none. PgBouncer takes 50 buffers at once, and as many again as it has whenever these do not do, and writes to all of them: 51 clients that
//! wait take the memory of 100, 801 that of 1,600, whatever the length of what they ask.
//!
//! What a client has prepared by name, in transaction mode, PgBouncer remembers until the client goes, without an end:
//! `max_prepared_statements` bounds what each server connection has of it, and not this.
//!
//! Not in it, and in the [`reserve`]: what the kernel has for sockets (some 4 KiB a connection), the texts of prepared statements (one copy
//! of each, and 0.2 KiB), files in memory, and the pages of the programs themselves.

use crate::contract::{ClientTlsMode, Injection, PoolMode, ServerTlsMode, Settings};

/// Bytes.
pub type Bytes = u64;

const KIB: Bytes = 1024;
const MIB: Bytes = 1024 * KIB;

/// The two processes of the agent.
const AGENT: Bytes = 3 * MIB;
/// PgBouncer up to 1.24 without connections and packet buffers.
const POOLER_BEFORE_1_25: Bytes = 1400 * KIB;
/// The same from 1.25 on: its tables are larger.
const POOLER: Bytes = 7900 * KIB;
/// What OpenSSL takes once.
const TLS_LIBRARY: Bytes = 700 * KIB;
/// A server connection in plain text.
const SERVER: Bytes = 4 * KIB;
/// What TLS adds to it.
const SERVER_TLS: Bytes = 55 * KIB;
/// The copy of one certificate, whatever its size.
const CERTIFICATE: Bytes = 3700;
/// What a hundred bytes of it in PEM add.
const HUNDRED_PEM_BYTES: Bytes = 135;
/// A root CA in PEM, with a key of RSA.
const ROOT_PEM_BYTES: u32 = 2000;
/// A client in plain text, up to 1.24.
const CLIENT_BEFORE_1_25: Bytes = 1280;
/// The same from 1.25 on.
const CLIENT: Bytes = 3 * KIB;
/// What TLS adds to it.
const CLIENT_TLS: Bytes = 22 * KIB;
/// A statement that a client has prepared: 92 bytes by a short name, 105 by one of 12 characters.
const CLIENT_STATEMENT: Bytes = 100;
/// The same statement on one server connection.
const SERVER_STATEMENT: Bytes = 100;
/// Packet buffers that PgBouncer takes at first.
const FIRST_BUFFERS: u64 = 50;
/// What a packet buffer has beside the packet.
const BUFFER_HEAD: Bytes = 16;

/// PgBouncer's `pkt_buf` where nobody sets it.
const PACKET: u32 = 4096;
/// PgBouncer's `max_prepared_statements` where nobody sets it.
const STATEMENTS: u32 = 200;
/// Least that is left for what the model leaves out.
const LEAST_RESERVE: Bytes = 4 * MIB;
/// Part of the limit that is left for it.
const RESERVE_PART: Bytes = 8;
/// A limit that is computed is a multiple of this.
const STEP: Bytes = 16 * MIB;

/// Which base a PgBouncer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// 1.24.
    Before1_25,
    /// 1.25 or later, or not known.
    Newer,
}

/// What PgBouncer's CA file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    /// How many.
    pub certificates: u32,
    /// Bytes in PEM, of all.
    pub pem_bytes: u32,
}

/// How many connections hold a packet at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packets {
    /// Every client waits or is answered, and every server connection answers.
    OfAll,
    /// Those of so many clients and server connections.
    Of(u32),
}

/// What a sidecar has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SidecarLoad {
    /// Processes of PgBouncer: two while a change needs a new one.
    pub poolers: u32,
    /// Which PgBouncer.
    pub generation: Generation,
    /// Server connections of all processes.
    pub servers: u32,
    /// What each of them has a copy of; None in plain text.
    pub bundle: Option<Bundle>,
    /// PgBouncer's `pkt_buf`.
    pub packet_bytes: u32,
    /// How many hold one.
    pub packets: Packets,
    /// Statements that all clients together have prepared.
    pub prepared: u32,
    /// The most of them that one server connection has, bounded by `max_prepared_statements`.
    pub prepared_per_server: u32,
    /// Clients of all processes.
    pub clients: u32,
    /// Whether they speak TLS.
    pub client_tls: bool,
}

impl SidecarLoad {
    fn base(&self) -> Bytes {
        let (pooler, client) = match self.generation {
            Generation::Before1_25 => (POOLER_BEFORE_1_25, CLIENT_BEFORE_1_25),
            Generation::Newer => (POOLER, CLIENT),
        };
        let tls = if self.bundle.is_some() || self.client_tls { TLS_LIBRARY } else { 0 };
        let client = if self.client_tls { client + CLIENT_TLS } else { client };
        let statements = Bytes::from(self.prepared) * CLIENT_STATEMENT;
        AGENT + Bytes::from(self.poolers) * (pooler + tls) + Bytes::from(self.clients) * client + statements
    }

    /// The packet buffers of all processes, where the connections are divided among them in the way that takes the most.
    fn buffers(&self) -> Bytes {
        let mut left = match self.packets {
            Packets::OfAll => u64::from(self.clients) + u64::from(self.servers),
            Packets::Of(count) => count.into(),
        };
        let mut buffers = 0;
        for _ in 0..self.poolers {
            let taken = FIRST_BUFFERS * left.div_ceil(FIRST_BUFFERS).max(1).next_power_of_two();
            buffers += taken;
            // so many make one process take them
            left = left.saturating_sub(taken / 2 + 1);
        }
        buffers * (Bytes::from(self.packet_bytes) + BUFFER_HEAD)
    }

    /// What one more server connection needs, without its packet buffer.
    fn per_server(&self) -> Bytes {
        let tls = self.bundle.map_or(0, |bundle| {
            let bytes = Bytes::from(bundle.pem_bytes) * HUNDRED_PEM_BYTES / 100;
            SERVER_TLS + Bytes::from(bundle.certificates) * CERTIFICATE + bytes
        });
        SERVER + Bytes::from(self.prepared_per_server) * SERVER_STATEMENT + tls
    }

    /// What it needs of memory.
    pub fn needed(&self) -> Bytes {
        self.base() + self.buffers() + Bytes::from(self.servers) * self.per_server()
    }

    /// The limit of a container that has room for it: a multiple of 16 MiB.
    pub fn limit(&self) -> Bytes {
        let needed = self.needed();
        let with_reserve = (needed * RESERVE_PART).div_ceil(RESERVE_PART - 1).max(needed + LEAST_RESERVE);
        with_reserve.next_multiple_of(STEP)
    }

    /// How many server connections a container of this limit has room for, beside everything else of this load.
    pub fn servers_within(&self, limit: Bytes) -> u32 {
        let room = limit.saturating_sub(reserve(limit));
        let is_within = |servers: u32| SidecarLoad { servers, ..*self }.needed() <= room;
        // buffers come in steps, so it is searched: no more than fit without any, and the need only grows
        let (mut fit, mut most) = (0, u32::try_from(room / self.per_server()).unwrap_or(u32::MAX));
        while fit < most {
            let middle = fit + (most - fit).div_ceil(2);
            if is_within(middle) {
                fit = middle;
            } else {
                most = middle - 1;
            }
        }
        fit
    }
}

/// What of a limit is left for everything that the model leaves out.
pub fn reserve(limit: Bytes) -> Bytes {
    (limit / RESERVE_PART).max(LEAST_RESERVE)
}

/// The most that a sidecar of such a pod may ever have to do: the whole of what the pool may open, all clients that it takes, and a change
/// that needs a new process. One CA verifies the database: the agent sees to that where it can. What clients prepare is bounded by nothing,
/// and known to nobody before they have: of that only what the server connections keep counts.
pub fn largest(injection: &Injection, share: u32, settings: &Settings) -> SidecarLoad {
    let parameter = |name: &str| settings.parameters.get(name).map(String::as_str);
    SidecarLoad {
        poolers: 2,
        generation: Generation::Newer,
        servers: share,
        bundle: match injection.upstream.tls.mode {
            ServerTlsMode::Disabled => None,
            ServerTlsMode::Require => Some(Bundle::default()),
            ServerTlsMode::VerifyCa | ServerTlsMode::VerifyFull => {
                Some(Bundle { certificates: 1, pem_bytes: ROOT_PEM_BYTES })
            }
        },
        packet_bytes: packet_bytes(parameter("pkt_buf")),
        packets: Packets::OfAll,
        prepared: 0,
        prepared_per_server: match settings.pool_mode {
            PoolMode::Session => 0,
            PoolMode::Transaction => statements_per_server(parameter("max_prepared_statements")),
        },
        clients: injection.client.max_connections,
        client_tls: injection.client.tls != ClientTlsMode::Disabled,
    }
}

/// The size of a packet buffer, by the parameter `pkt_buf` of a revision or a configuration.
pub fn packet_bytes(parameter: Option<&str>) -> u32 {
    parameter.and_then(|bytes| bytes.parse().ok()).unwrap_or(PACKET)
}

/// How many prepared statements a server connection may have, by the parameter `max_prepared_statements` of a revision or a configuration.
pub fn statements_per_server(parameter: Option<&str>) -> u32 {
    parameter.and_then(|count| count.parse().ok()).unwrap_or(STATEMENTS)
}

/// As people read it.
pub fn in_mib(bytes: Bytes) -> Bytes {
    bytes.div_ceil(MIB)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: Bundle = Bundle { certificates: 1, pem_bytes: 1200 };
    const STORE: Bundle = Bundle { certificates: 145, pem_bytes: 220_704 };
    const LOAD: SidecarLoad = SidecarLoad {
        poolers: 1,
        generation: Generation::Before1_25,
        servers: 0,
        bundle: Some(ONE),
        packet_bytes: PACKET,
        packets: Packets::OfAll,
        prepared: 0,
        prepared_per_server: 0,
        clients: 1,
        client_tls: false,
    };
    const LIMIT: Bytes = 64 * MIB;

    #[test]
    fn a_default_sidecar_has_room_for_its_whole_share_with_one_ca_and_not_with_a_trust_store() {
        let one = SidecarLoad { clients: 500, client_tls: true, generation: Generation::Newer, servers: 100, ..LOAD };
        assert!(one.needed() <= 48 * MIB, "{} MiB", in_mib(one.needed()));
        assert!(one.servers_within(LIMIT) >= 100, "{}", one.servers_within(LIMIT));
        let whole = SidecarLoad { bundle: Some(STORE), clients: 1, client_tls: false, ..one };
        assert!(
            (40..60).contains(&whole.servers_within(LIMIT)),
            "it was killed at about 50: {}",
            whole.servers_within(LIMIT)
        );
        let two = SidecarLoad { poolers: 2, ..one };
        assert!(two.servers_within(LIMIT) < one.servers_within(LIMIT), "the second process needs room too");
    }

    #[test]
    fn what_was_measured_is_what_the_model_says_within_15_percent() {
        // KiB of one process, without the agent's: 1.24.1 and 1.26.1
        let (old, new) = (Generation::Before1_25, Generation::Newer);
        for (generation, bundle, servers, clients, client_tls, measured) in [
            (old, None, 1, 1, false, 1552),
            (old, None, 100, 1, false, 1912),
            (old, Some(ONE), 100, 1, false, 8216),
            (old, Some(STORE), 10, 1, false, 10_868),
            (old, Some(STORE), 50, 1, false, 45_508),
            (old, None, 1, 501, true, 13_848),
            (old, Some(ONE), 100, 501, true, 19_492),
            (new, None, 1, 1, false, 8012),
            (new, Some(ONE), 100, 1, false, 15_204),
            (new, Some(STORE), 10, 1, false, 17_424),
            (new, Some(STORE), 50, 1, false, 52_492),
            (new, None, 1, 501, true, 21_020),
            (new, Some(ONE), 100, 501, true, 27_116),
        ] {
            let packets = Packets::Of(0);
            is_as_measured(
                &SidecarLoad { generation, servers, bundle, packets, clients, client_tls, ..LOAD },
                measured,
            );
        }
    }

    fn is_as_measured(load: &SidecarLoad, kib: u32) {
        let model = ((load.needed() - AGENT) / KIB) as f64;
        let ratio = model / f64::from(kib);
        // two figures of a bare process are of fractions of a MiB
        let slack = if kib < 2000 { 0.35 } else { 0.15 };
        assert!((ratio - 1.0).abs() <= slack, "{load:?}: {model} KiB by the model, {kib} measured");
    }

    #[test]
    fn clients_that_wait_and_prepare_take_what_was_measured_within_15_percent() {
        let (old, new) = (Generation::Before1_25, Generation::Newer);
        let plain = SidecarLoad { bundle: None, ..LOAD };
        for (generation, packet_bytes, waiting, client_tls, measured) in [
            (old, 4096, 500, false, 5140),
            (old, 4096, 1000, false, 8956),
            (old, 4096, 500, true, 17_896),
            (old, 65_536, 500, false, 53_144),
            (new, 4096, 100, false, 8428),
            (new, 4096, 500, false, 12_356),
            (new, 4096, 790, false, 12_364),
            (new, 4096, 1000, false, 17_032),
            (new, 4096, 1590, false, 17_064),
            (new, 4096, 500, true, 25_008),
            (new, 65_536, 500, false, 60_352),
            (new, 65_536, 1000, false, 113_032),
        ] {
            let load = SidecarLoad { generation, packet_bytes, client_tls, clients: waiting + 4, servers: 4, ..plain };
            is_as_measured(&SidecarLoad { packets: Packets::Of(waiting), ..load }, measured);
        }
        for (generation, clients, each, servers, measured) in [
            (old, 200, 100, 4, 3692),
            (old, 100, 200, 100, 5460),
            (new, 200, 100, 4, 10_252),
            (new, 100, 400, 4, 12_104),
            (new, 1000, 200, 4, 30_684),
            (new, 100, 200, 100, 11_972),
        ] {
            let (prepared, prepared_per_server) = (clients * each, each.min(STATEMENTS));
            let load = SidecarLoad { generation, servers, prepared, prepared_per_server, clients, ..plain };
            is_as_measured(&SidecarLoad { packets: Packets::Of(0), ..load }, measured);
        }
    }

    #[test]
    fn of_two_processes_the_division_of_clients_that_takes_the_most_buffers_counts() {
        let of = |poolers, packets| {
            SidecarLoad { poolers, packets: Packets::Of(packets), ..LOAD }.buffers() / (u64::from(PACKET) + BUFFER_HEAD)
        };
        assert_eq!([0, 50, 51, 100, 101, 800, 801].map(|packets| of(1, packets)), [50, 50, 100, 100, 200, 800, 1600]);
        for packets in 0..1000 {
            let divided = (0..=packets).map(|first| of(1, first) + of(1, packets - first)).max();
            assert_eq!(Some(of(2, packets)), divided, "{packets}");
        }
    }

    #[test]
    fn admission_counts_what_server_connections_keep_of_prepared_statements_where_pgbouncer_follows_them() {
        assert_eq!(packet_bytes(None), 4096);
        assert_eq!(packet_bytes(Some("65536")), 65_536);
        assert_eq!((statements_per_server(None), statements_per_server(Some("0"))), (200, 0));
        let of = |prepared_per_server| SidecarLoad { servers: 100, prepared_per_server, ..LOAD }.needed();
        assert_eq!(of(200) - of(0), 100 * 200 * SERVER_STATEMENT);
    }

    proptest! {
        #[test]
        fn what_is_said_to_fit_fits_and_one_more_does_not(
            mib in 16u64..1024,
            poolers in 1u32..3,
            bundle in prop::option::of((0u32..300, 0u32..500_000)),
            clients in 0u32..5000,
            client_tls in any::<bool>(),
            packet_bytes in 1024u32..70_000,
            prepared_per_server in 0u32..1000,
        ) {
            let bundle = bundle.map(|(certificates, pem_bytes)| Bundle { certificates, pem_bytes });
            let load =
                SidecarLoad { poolers, bundle, packet_bytes, prepared_per_server, clients, client_tls, ..LOAD };
            let usable = mib * MIB - reserve(mib * MIB);
            let servers = load.servers_within(mib * MIB);
            let filled = SidecarLoad { servers, ..load };
            prop_assert!(servers == 0 || filled.needed() <= usable);
            let more = SidecarLoad { servers: servers + 1, ..load };
            prop_assert!(more.needed() > usable);
            let limit = more.limit();
            prop_assert!(more.servers_within(limit) >= more.servers && limit.is_multiple_of(STEP));
        }
    }
}
