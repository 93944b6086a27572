//! Where the pooler listens and keeps its files in this pod.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use crate::{
    agent::{
        apply::slot::Slot,
        decide::{identity::Identity, slot_name::SlotName},
        keeper::count_listening,
        options::RunOptions,
    },
    contract::{Injection, Reach},
    pooler::pgbouncer::render::{Peer, PoolerCertificate, ProcessPlace, Shown},
};

/// Trust stores of common images.
const TRUST_STORES: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Name of the certificate that clients are shown, in a slot's directory.
const CERTIFICATE_FILE: &str = "client-tls.crt";
/// Name of its key.
const KEY_FILE: &str = "client-tls.key";

/// What clients of a slot are shown, and where it stands.
pub(super) fn shown<'a>(certificate: &'a PoolerCertificate, options: &RunOptions, slot: SlotName) -> Shown<'a> {
    let file = |name: &str| Slot::directory(slot, &options.run_dir).join(name).display().to_string();
    Shown { certificate, certificate_file: file(CERTIFICATE_FILE), key_file: file(KEY_FILE) }
}

/// What a process in this pod showed its clients: it stays in force when what the Secret holds now does not fit together.
pub(super) fn identity_before(slot: &Slot, run_dir: &Path) -> Identity {
    let mut identity = Identity::default();
    for name in [slot.name().other(), slot.name()] {
        let read = |file: &str| fs::read(Slot::directory(name, run_dir).join(file)).ok();
        // none there is no fault: the Secret has it
        let _ = identity.take(read(CERTIFICATE_FILE).as_deref(), read(KEY_FILE).as_deref());
    }
    identity
}

/// Sockets of others that listen where clients come to: at which address, and how many; None where there are none, or nobody can see.
pub(super) fn strangers(addresses: &[IpAddr], port: u16, ours: usize) -> Option<(SocketAddr, usize)> {
    addresses.iter().map(|address| SocketAddr::new(*address, port)).find_map(|address| {
        let all = count_listening(address).ok()?;
        (all > ours).then(|| (address, all - ours))
    })
}

/// What clients of this reach come to: an address of IPv4, and one of IPv6 where the pod has it.
pub(super) fn addresses(reach: Reach) -> Vec<IpAddr> {
    let (v4, v6) = match reach {
        Reach::Pod => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        Reach::Network => (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
    };
    let mut addresses = vec![IpAddr::from(v4)];
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        addresses.push(v6.into());
    }
    addresses
}

/// The addresses, and the slot's places in the volumes of the pod. A pooler that inherits its sockets is given neither
/// address nor directory: it would warn that it ignores them. `ca` is what verifies the database's certificate, `resolver` the
/// configuration that leads to our own name server. The database is shown nothing.
pub(super) fn place(
    options: &RunOptions,
    addresses: &[IpAddr],
    slot: SlotName,
    inherits_sockets: bool,
    ca: Option<&Path>,
    resolver: Option<&Path>,
) -> ProcessPlace {
    let text = |path: &Path| path.display().to_string();
    ProcessPlace {
        listen_addresses: addresses.iter().filter(|_| !inherits_sockets).map(ToString::to_string).collect(),
        socket_dir: if inherits_sockets { String::new() } else { text(&Slot::directory(slot, &options.run_dir)) },
        // two processes serve one address: a cancel request comes to the one that new clients come to
        peers: SlotName::ALL
            .into_iter()
            .filter(|_| inherits_sockets)
            .map(|slot| Peer { number: peer(slot), socket_dir: text(&Slot::directory(slot, &options.run_dir)) })
            .collect(),
        peer: if inherits_sockets { peer(slot) } else { 0 },
        auth_file: text(&Slot::auth_file(slot, &options.run_dir)),
        ca_file: ca.map(text),
        presented: None,
        resolver: resolver.map(text),
        login_retry_milliseconds: login_retry(&options.pod_uid),
    }
}

/// All that may verify the database's certificate: the pool's own bundle, or the image's trust store.
pub(super) fn bundle(injection: &Injection, own_ca: Option<PathBuf>) -> Option<PathBuf> {
    if injection.upstream.tls.own_ca {
        return own_ca;
    }
    TRUST_STORES.iter().map(PathBuf::from).find(|store| store.is_file())
}

fn peer(slot: SlotName) -> u16 {
    if slot == SlotName::A { 1 } else { 2 }
}

/// 1 to 2 s, another one in each pod, so that the pods of a pool do not log in to a returning database together.
fn login_retry(pod_uid: &str) -> u32 {
    1000 + hash(pod_uid) % 1000
}

/// 0 to 49 percent of every pause between two things that all pods would do together, another one in each pod.
pub(super) fn spread(pod_uid: &str) -> u8 {
    u8::try_from(hash(pod_uid) % 50).unwrap_or_default()
}

fn hash(pod_uid: &str) -> u32 {
    pod_uid.bytes().fold(7, |hash: u32, byte| hash.wrapping_mul(31).wrapping_add(byte.into()))
}
