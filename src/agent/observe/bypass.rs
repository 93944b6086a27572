//! Connections of the pod to the database that no pooler of ours owns: what passes by the pool, whatever led it there.
//!
//! The kernel's own table of the pod's network namespace (`/proc/net/tcp`, `/proc/net/tcp6`) has every connection of every
//! container; whose they are the open files of our own processes tell. It needs no privilege and asks nobody. Containers of the
//! node's network are not in it, nor is what a proxy of a mesh opens in the name of others.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{net::lookup_host, task::JoinHandle, time::timeout};

use crate::{agent::decide::machine::Millis, contract::Bypass};

/// Between two looks.
const LOOK: Millis = 5000;
/// And where the last one failed.
const LOOK_AGAIN: Millis = 60_000;
/// What was seen is told for so long: the operator asks once a minute, and an application may connect for a moment only.
const TOLD: Millis = 180_000;
/// An address that our own connections went to is the database's for so long.
const ADDRESS_HOLDS: Millis = 3_600_000;
/// Between two questions for the addresses of a name.
const RESOLVE: Millis = 30_000;
/// How long such an answer may take.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);
/// Addresses that are remembered.
const MOST_ADDRESSES: usize = 64;
/// Users of the proxies of Istio and Linkerd, which open the connections of others anew.
const MESH_USERS: [u32; 2] = [1337, 2102];
/// `TCP_ESTABLISHED`, as the kernel's tables write it.
const ESTABLISHED: &str = "01";

/// An established connection as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    local: SocketAddr,
    remote: SocketAddr,
    user: u32,
    inode: u64,
}

/// Where the database and the pooler are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Host of the database.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Port at which the application finds the pooler, on loopback.
    pub client_port: u16,
}

impl Endpoints {
    /// Whether a connection goes to the database's port, and not to the pooler.
    fn is_concerned(&self, connection: &Connection) -> bool {
        let to_pooler = connection.remote.ip().is_loopback() && connection.remote.port() == self.client_port;
        connection.remote.port() == self.port && !to_pooler
    }
}

/// What one look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct BypassLook {
    /// Where our own connections go.
    own: BTreeSet<IpAddr>,
    /// Where others go, at the port of the database.
    others: Vec<IpAddr>,
}

/// Looks every few seconds, beside everything else.
pub struct BypassWatch {
    place: Endpoints,
    looking: Option<JoinHandle<io::Result<BypassLook>>>,
    resolving: Option<JoinHandle<Vec<IpAddr>>>,
    next: Millis,
    next_resolve: Millis,
    addresses: BTreeMap<IpAddr, Millis>,
    /// What the looks of the last minutes found.
    recent: VecDeque<(Millis, u32)>,
    /// What is told; None: it cannot be seen, or not yet.
    told: Option<Bypass>,
    is_visible: bool,
}

impl BypassWatch {
    /// Nothing is known yet.
    pub fn new(place: Endpoints) -> Self {
        let literal: Option<IpAddr> = place.host.parse().ok();
        Self {
            addresses: literal.map(|address| (address.to_canonical(), Millis::MAX)).into_iter().collect(),
            place,
            looking: None,
            resolving: None,
            next: 0,
            next_resolve: 0,
            recent: VecDeque::new(),
            told: None,
            is_visible: true,
        }
    }

    /// What passes by the pooler, or has lately; None: it cannot be seen.
    pub fn told(&self) -> Option<&Bypass> {
        self.told.as_ref()
    }

    /// Takes what the last look found and begins the next one. `processes` are ours, all of them.
    pub async fn step(&mut self, now: Millis, processes: impl FnOnce() -> Vec<i32>) {
        if let Some(resolving) = self.resolving.take_if(|resolving| resolving.is_finished()) {
            self.remember(now, resolving.await.unwrap_or_default());
        }
        if let Some(looking) = self.looking.take_if(|looking| looking.is_finished()) {
            match looking.await {
                Ok(Ok(look)) => self.take(now, look),
                Ok(Err(error)) => self.is_blind(&error.to_string()),
                Err(error) => self.is_blind(&error.to_string()),
            }
        }
        if self.looking.is_none() && now >= self.next {
            self.next = now + if self.is_visible { LOOK } else { LOOK_AGAIN };
            let (place, processes) = (self.place.clone(), processes());
            self.looking = Some(tokio::task::spawn_blocking(move || look(&place, &processes)));
        }
    }

    fn is_blind(&mut self, error: &str) {
        if self.is_visible {
            tracing::warn!("connections that pass by the pooler cannot be seen here: {error}");
        }
        (self.is_visible, self.told) = (false, None);
    }

    fn take(&mut self, now: Millis, look: BypassLook) {
        self.is_visible = true;
        self.remember(now, look.own);
        self.addresses.retain(|_, until| *until > now);
        let unknown = look.others.iter().any(|address| !self.addresses.contains_key(address));
        if unknown && self.resolving.is_none() && now >= self.next_resolve {
            self.next_resolve = now + RESOLVE;
            let (host, port) = (self.place.host.clone(), self.place.port);
            self.resolving = Some(tokio::spawn(async move {
                let found = timeout(RESOLVE_DEADLINE, lookup_host((host, port))).await;
                found.ok().and_then(Result::ok).into_iter().flatten().map(|address| address.ip()).collect()
            }));
        }
        let mut past = look.others.iter().filter(|address| self.addresses.contains_key(address));
        let address = past.next().map(|address| SocketAddr::new(*address, self.place.port).to_string());
        let connections = u32::try_from(usize::from(address.is_some()) + past.count()).unwrap_or(u32::MAX);
        let before = self.told.take().unwrap_or_default();
        if before.connections == 0 && connections > 0 {
            tracing::warn!(
                connections,
                address,
                "connections of this pod go to the database past the pooler: they count in no share"
            );
        }
        self.recent.push_back((now, connections));
        while self.recent.front().is_some_and(|(at, _)| at + TOLD < now) {
            self.recent.pop_front();
        }
        let most = self.recent.iter().map(|(_, connections)| *connections).max().unwrap_or_default();
        let address = address.or(before.address).filter(|_| most > 0);
        self.told = Some(Bypass { connections: most, address });
    }

    fn remember(&mut self, now: Millis, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            let address = address.to_canonical();
            let is_known = self.addresses.contains_key(&address);
            if is_known || self.addresses.len() < MOST_ADDRESSES {
                let until = self.addresses.entry(address).or_default();
                *until = (*until).max(now + ADDRESS_HOLDS);
            }
        }
    }
}

/// Reads the kernel's table, and the open files of our processes; and both again where something is left, because a connection may
/// have come or gone between the two.
fn look(place: &Endpoints, processes: &[i32]) -> io::Result<BypassLook> {
    let first = connections(place)?;
    let mut ours = open_sockets(processes)?;
    let mut others: Vec<Connection> = first.iter().filter(|it| !ours.contains(&it.inode)).copied().collect();
    if !others.is_empty() {
        let still = connections(place)?;
        ours.extend(open_sockets(processes)?);
        others.retain(|it| still.contains(it) && !ours.contains(&it.inode) && !MESH_USERS.contains(&it.user));
    }
    let own = first.iter().filter(|it| ours.contains(&it.inode)).map(|it| it.remote.ip()).collect();
    Ok(BypassLook { own, others: others.into_iter().map(|it| it.remote.ip()).collect() })
}

/// The established connections to the port of the database.
fn connections(place: &Endpoints) -> io::Result<Vec<Connection>> {
    let mut found = parse(&fs::read_to_string("/proc/net/tcp")?);
    match fs::read_to_string("/proc/net/tcp6") {
        Ok(table) => found.extend(parse(&table)),
        // a kernel without IPv6
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    found.retain(|connection| place.is_concerned(connection));
    Ok(found)
}

/// The sockets that these processes hold. One that has ended meanwhile holds none.
fn open_sockets(processes: &[i32]) -> io::Result<BTreeSet<u64>> {
    let mut sockets = BTreeSet::new();
    for process in processes {
        let files = match fs::read_dir(format!("/proc/{process}/fd")) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for file in files {
            let Ok(target) = file.and_then(|file| fs::read_link(file.path())) else { continue };
            let inode = target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
            sockets.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
        }
    }
    Ok(sockets)
}

/// The established connections of a table.
fn parse(table: &str) -> Vec<Connection> {
    table.lines().skip(1).filter_map(connection).collect()
}

/// One line: number, local, remote, state, queues, timer, retransmits, user, timeout, inode.
fn connection(line: &str) -> Option<Connection> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, state, _, _, _, user, _, inode, ..] = fields[..] else { return None };
    (state == ESTABLISHED).then_some(())?;
    Some(Connection {
        local: address(local)?,
        remote: address(remote)?,
        user: user.parse().ok()?,
        inode: inode.parse().ok()?,
    })
}

/// An address as the kernel prints it: words of four bytes, each as a number of this machine, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[4 * at..4 * at + 4].copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   999        0 100 1 0000000000000000 100 0 0 10 0
   1: 0500000A:D431 0700000A:1538 01 00000000:00000000 02:000009C4 00000000 65532        0 101 2 0000000000000000 20 4 30 10 -1
   2: 0500000A:D432 0700000A:1538 06 00000000:00000000 03:00001773 00000000     0        0 0 3 0000000000000000
   3: 0500000A:D433 0700000A:1538 01 00000000:00000000 02:000009C4 00000000  1000        0 103 2 0000000000000000 20 4 30 10 -1
";
    const TABLE_6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0000000000000000FFFF00000500000A:D434 0000000000000000FFFF00000700000A:1538 01 00000000:00000000 00:00000000 00000000  1000        0 104 1 0000000000000000 20 4 31 10 -1
   1: 000000FD000000000000000005000000:D435 000000FD000000000000000007000000:1538 01 00000000:00000000 00:00000000 00000000  1000        0 105 1 0000000000000000 20 4 31 10 -1
";

    fn place(host: &str) -> Endpoints {
        Endpoints { host: host.to_owned(), port: 5432, client_port: 5432 }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_kernels_tables_are_read_as_it_writes_them_and_only_what_is_established_counts() {
        let all = parse(TABLE);
        let remote: SocketAddr = "10.0.0.7:5432".parse().expect("an address");
        assert_eq!(
            all.iter().map(|it| (it.remote, it.user, it.inode)).collect::<Vec<_>>(),
            [(remote, 65532, 101), (remote, 1000, 103)]
        );
        let all = parse(TABLE_6);
        assert_eq!(all[0].remote, remote, "IPv4 in IPv6 is IPv4");
        assert_eq!(all[1].remote, "[fd00::7]:5432".parse().expect("an address"));
        for damaged in ["", "sl\n0: x", "sl\n 0: 0500000A 0700000A:1538 01 a b c d e f"] {
            assert_eq!(parse(damaged), []);
        }
    }

    #[test]
    fn what_goes_to_the_pooler_on_loopback_is_no_connection_of_the_database() {
        let to = |remote: &str| Connection {
            local: "10.0.0.5:40000".parse().expect("an address"),
            remote: remote.parse().expect("an address"),
            user: 0,
            inode: 1,
        };
        assert!(!place("pg").is_concerned(&to("127.0.0.1:5432")));
        assert!(!place("pg").is_concerned(&to("10.0.0.7:443")));
        assert!(place("pg").is_concerned(&to("10.0.0.7:5432")));
        let beside = Endpoints { host: "127.0.0.1".to_owned(), port: 5433, client_port: 5432 };
        assert!(beside.is_concerned(&to("127.0.0.1:5433")), "a proxy beside the application");
    }

    #[tokio::test]
    async fn connections_to_where_ours_go_are_told_with_the_most_of_the_last_minutes_and_then_no_more() {
        let database: IpAddr = "10.0.0.7".parse().expect("an address");
        let elsewhere: IpAddr = "10.0.0.8".parse().expect("an address");
        let look = |own: &[IpAddr], others: &[IpAddr]| BypassLook {
            own: own.iter().copied().collect(),
            others: others.to_vec(),
        };
        let mut watch = BypassWatch::new(place("pg.invalid"));
        assert_eq!(watch.told(), None, "nobody has looked yet");
        watch.take(0, look(&[], &[database]));
        assert_eq!(watch.told().map(|told| told.connections), Some(0), "whose address that is, is not known yet");
        watch.take(5000, look(&[database], &[database, database, elsewhere]));
        let told = Bypass { connections: 2, address: Some("10.0.0.7:5432".to_owned()) };
        assert_eq!(watch.told(), Some(&told));
        watch.take(10_000, look(&[database], &[]));
        assert_eq!(watch.told(), Some(&told), "it was there lately");
        watch.take(5000 + TOLD + 1, look(&[database], &[]));
        assert_eq!(watch.told(), Some(&Bypass::default()));
        watch.take(5000 + TOLD + ADDRESS_HOLDS + 2, look(&[], &[database]));
        assert_eq!(watch.told(), Some(&Bypass::default()), "the database may have moved since");

        let mut literal = BypassWatch::new(place("10.0.0.7"));
        literal.take(0, look(&[], &[database]));
        assert_eq!(literal.told().map(|told| told.connections), Some(1), "an address needs no resolving");
    }

    #[tokio::test]
    async fn a_connection_of_this_very_process_is_ours_and_one_of_another_is_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connected");
        let place = Endpoints { host: "127.0.0.1".to_owned(), port, client_port: 1 };
        let this = rustix::process::getpid().as_raw_nonzero().get();
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let own = look(&place, &[this]).expect("a look");
        assert_eq!(own, BypassLook { own: BTreeSet::from([loopback]), others: Vec::new() });
        let other = look(&place, &[]).expect("a look");
        assert_eq!(other, BypassLook { own: BTreeSet::new(), others: vec![loopback] });
        drop(client);
    }
}
