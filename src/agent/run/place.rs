//! Where the pooler listens and keeps its files in this pod.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
    path::{Path, PathBuf},
};

use crate::{
    agent::{keeper::SlotName, options::RunOptions, slot::Slot},
    contract::{Injection, Reach, names},
    pooler::pgbouncer::render::{Peer, Place},
};

/// Trust stores of common images.
const TRUST_STORES: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

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
/// address nor directory: it would warn that it ignores them.
pub(super) fn place(
    options: &RunOptions,
    injection: &Injection,
    addresses: &[IpAddr],
    slot: SlotName,
    inherits_sockets: bool,
) -> Place {
    let ca_file = if injection.upstream.tls.own_ca {
        Some(options.config_dir.join(names::SERVER_CA_FILE))
    } else {
        TRUST_STORES.iter().map(PathBuf::from).find(|store| store.is_file())
    };
    let text = |path: &Path| path.display().to_string();
    Place {
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
        ca_file: ca_file.as_deref().map(text),
        login_retry_milliseconds: login_retry(&options.pod_uid),
    }
}

fn peer(slot: SlotName) -> u16 {
    if slot == SlotName::A { 1 } else { 2 }
}

/// 1 to 2 s, another one in each pod, so that the pods of a pool do not log in to a returning database together.
fn login_retry(pod_uid: &str) -> u32 {
    1000 + pod_uid.bytes().fold(7_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into())) % 1000
}
