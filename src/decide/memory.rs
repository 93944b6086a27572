//! What a sidecar needs of memory, by what it has to do: one model for admission, for the agent and for the documents.
//!
//! ```text
//! needed = agent + keeper
//!        + poolers x (base + TLS library, where either side speaks TLS)
//!        + servers x (connection + packet buffer + TLS + certificates x copy of one + their bytes in PEM x 1.35)
//!        + clients x (connection + TLS)
//! ```
//!
//! The figures are memory that the kernel cannot take back (anonymous pages), measured with the PgBouncer 1.24.1 and 1.26.1 of Debian on
//! x86-64 with OpenSSL 3 and PostgreSQL 18: idle, with 1 to 100 server connections and with 500 clients, without TLS and with it, and with
//! bundles of 1 and of 145 certificates. Of two versions the larger counts, but for the base. `tests/parts/agent/memory.rs` holds it to the
//! real programs within 15 %.
//!
//! PgBouncer makes a context of OpenSSL's for each server connection and reads its CA file into it, so every connection has a copy of every
//! certificate. The contexts of clients share what they are shown. What it has taken it keeps for the next connection: memory follows the
//! most connections that there were, and so does the model when it is asked for the most that there may be.
//!
//! Not in it, and in the [`reserve`]: what the kernel has for sockets (some 4 KiB a connection), statements that clients have prepared
//! (0.1 KiB each, and 0.2 KiB with the text for a text that is new), files in memory, and the pages of the programs themselves.

use crate::contract::{ClientTlsMode, Injection, ServerTlsMode};

/// Bytes.
pub type Bytes = u64;

const KIB: Bytes = 1024;
const MIB: Bytes = 1024 * KIB;

/// The two processes of the agent.
const AGENT: Bytes = 3 * MIB;
/// PgBouncer up to 1.24 without connections.
const POOLER_BEFORE_1_25: Bytes = 1600 * KIB;
/// PgBouncer without connections: from 1.25 on its tables are larger.
const POOLER: Bytes = 8100 * KIB;
/// What OpenSSL takes once.
const TLS_LIBRARY: Bytes = 700 * KIB;
/// A server connection in plain text.
const SERVER: Bytes = 6 * KIB;
/// What TLS adds to it.
const SERVER_TLS: Bytes = 55 * KIB;
/// The copy of one certificate, whatever its size.
const CERTIFICATE: Bytes = 3700;
/// What a hundred bytes of it in PEM add.
const HUNDRED_PEM_BYTES: Bytes = 135;
/// A root CA in PEM, with a key of RSA.
const ROOT_PEM_BYTES: u32 = 2000;
/// A client in plain text.
const CLIENT: Bytes = 3 * KIB;
/// What TLS adds to it.
const CLIENT_TLS: Bytes = 22 * KIB;

/// PgBouncer's `pkt_buf` where nobody sets it.
pub const PACKET: u32 = 4096;
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
    /// Clients of all processes.
    pub clients: u32,
    /// Whether they speak TLS.
    pub client_tls: bool,
}

impl SidecarLoad {
    fn base(&self) -> Bytes {
        let pooler = match self.generation {
            Generation::Before1_25 => POOLER_BEFORE_1_25,
            Generation::Newer => POOLER,
        };
        let tls = if self.bundle.is_some() || self.client_tls { TLS_LIBRARY } else { 0 };
        let client = if self.client_tls { CLIENT + CLIENT_TLS } else { CLIENT };
        AGENT + Bytes::from(self.poolers) * (pooler + tls) + Bytes::from(self.clients) * client
    }

    /// What one more server connection needs.
    pub fn per_server(&self) -> Bytes {
        let tls = self.bundle.map_or(0, |bundle| {
            let bytes = Bytes::from(bundle.pem_bytes) * HUNDRED_PEM_BYTES / 100;
            SERVER_TLS + Bytes::from(bundle.certificates) * CERTIFICATE + bytes
        });
        SERVER + Bytes::from(self.packet_bytes) + tls
    }

    /// What it needs of memory.
    pub fn needed(&self) -> Bytes {
        self.base() + Bytes::from(self.servers) * self.per_server()
    }

    /// The limit of a container that has room for it: a multiple of 16 MiB.
    pub fn limit(&self) -> Bytes {
        let needed = self.needed();
        let with_reserve = (needed * RESERVE_PART).div_ceil(RESERVE_PART - 1).max(needed + LEAST_RESERVE);
        with_reserve.next_multiple_of(STEP)
    }

    /// How many server connections a container of this limit has room for, beside everything else of this load.
    pub fn servers_within(&self, limit: Bytes) -> u32 {
        let room = limit.saturating_sub(reserve(limit)).saturating_sub(self.base());
        u32::try_from(room / self.per_server()).unwrap_or(u32::MAX)
    }
}

/// What of a limit is left for everything that the model leaves out.
pub fn reserve(limit: Bytes) -> Bytes {
    (limit / RESERVE_PART).max(LEAST_RESERVE)
}

/// The most that a sidecar of such a pod may ever have to do: the whole of what the pool may open, all clients that it takes, and a change
/// that needs a new process. One CA verifies the database: the agent sees to that where it can.
pub fn largest(injection: &Injection, share: u32, packet_bytes: u32) -> SidecarLoad {
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
        packet_bytes,
        clients: injection.client.max_connections,
        client_tls: injection.client.tls != ClientTlsMode::Disabled,
    }
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
            // the buffers of connections that were not at work
            let load = SidecarLoad { generation, bundle, servers, clients, client_tls, packet_bytes: 0, ..LOAD };
            let model = ((load.needed() - AGENT) / KIB) as f64;
            let ratio = model / f64::from(measured);
            // two figures of a bare process are of fractions of a MiB
            let slack = if measured < 2000 { 0.35 } else { 0.15 };
            assert!((ratio - 1.0).abs() <= slack, "{load:?}: {model} KiB by the model, {measured} measured");
        }
    }

    proptest! {
        #[test]
        fn what_is_said_to_fit_fits_and_one_more_does_not(
            mib in 16u64..1024,
            poolers in 1u32..3,
            bundle in prop::option::of((0u32..300, 0u32..500_000)),
            clients in 0u32..5000,
            client_tls in any::<bool>(),
        ) {
            let bundle = bundle.map(|(certificates, pem_bytes)| Bundle { certificates, pem_bytes });
            let load = SidecarLoad { poolers, bundle, clients, client_tls, ..LOAD };
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
