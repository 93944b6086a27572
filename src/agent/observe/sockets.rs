//! What the kernel knows of our server connections: when the last byte went which way (`sock_diag(7)`).
//!
//! This needs no privilege and no connection to the database. A server connection that a client holds, and whose last
//! byte came from the database, is idle in transaction; one whose last byte went to it has a query running.
//!
//! The kernel counts in jiffies, and a quick answer comes in the jiffy of its question: then the two ages tie. What decides
//! is the last acknowledgement. An answer carries the one of its question; a question that is not answered at once is
//! acknowledged alone, by a timer of at least 40 ms (`TCP_DELACK_MIN`). Keepalives bring acknowledgements too, after 10 s,
//! so a tie is judged while it is younger, and the judgement kept as long as no byte moves. An older tie is ambiguous.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt::set_socket_timeout,
};

use crate::{agent::decide::pins::LastByte, pooler::pgbouncer::tables::Server};

/// How long the kernel may take.
const DEADLINE: std::time::Duration = std::time::Duration::from_millis(200);
/// Resolution of the ages: one jiffy at the lowest common rate, and one for rounding.
const JIFFY_MILLISECONDS: u32 = 10;

const NETLINK_HEADER: usize = 16;
const DIAG_REQUEST: usize = 56;
const DIAG_MESSAGE: usize = 72;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const REQUEST_DUMP: u16 = 0x301;
const TCP: u8 = 6;
const INET_DIAG_INFO: u16 = 2;
const ESTABLISHED: u32 = 1 << 1;
/// Offsets in `struct tcp_info`.
const LAST_DATA_SENT: usize = 44;
const LAST_DATA_RECEIVED: usize = 52;
const LAST_ACK_RECEIVED: usize = 56;
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
/// Ties younger than this are not yet disturbed by keepalives (`tcp_keepidle` is 10 s).
const UNDISTURBED_MILLISECONDS: u32 = 9000;
/// A tie younger than this may still see the acknowledgement of its question.
const SETTLED_MILLISECONDS: u32 = 500;

/// Own address and port of a connection.
pub type Local = (IpAddr, u16);

/// Own address and port of a server connection; None over a Unix socket.
pub fn local(server: &Server) -> Option<Local> {
    let address: IpAddr = server.local_address.parse().ok()?;
    Some((address.to_canonical(), server.local_port))
}

/// What the kernel knows of one connection. Ages in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Since the last byte to the database.
    pub sent: u32,
    /// Since the last byte from the database.
    pub received: u32,
    /// Since the last acknowledgement from the database.
    pub acknowledged: u32,
    /// Bytes to the database that it has acknowledged, and bytes from it: they stand still while nothing is said.
    pub bytes: (u64, u64),
}

impl Traffic {
    /// Milliseconds since anything was said.
    pub fn silent(self) -> u32 {
        self.received.min(self.sent)
    }

    /// Which way the last byte went, as far as this one look can tell.
    pub fn last_byte(self) -> LastByte {
        if self.received.abs_diff(self.sent) > JIFFY_MILLISECONDS {
            return if self.received < self.sent { LastByte::Received } else { LastByte::Sent };
        }
        if !(SETTLED_MILLISECONDS..UNDISTURBED_MILLISECONDS).contains(&self.silent()) {
            return LastByte::Ambiguous;
        }
        if self.acknowledged + JIFFY_MILLISECONDS < self.received { LastByte::Sent } else { LastByte::Received }
    }
}

/// Remembers, connection by connection, who spoke last.
#[derive(Clone, Debug, Default)]
pub struct LeakWatch {
    judged: HashMap<Local, ((u64, u64), LastByte)>,
}

impl LeakWatch {
    /// Judges every connection of `linked`, in its order. None for a socket that the kernel does not show.
    pub fn judge(&mut self, linked: &[Local], traffic: &BTreeMap<Local, Traffic>) -> Option<Vec<Judged>> {
        let mut judged = HashMap::with_capacity(linked.len());
        let mut all = Vec::with_capacity(linked.len());
        for local in linked {
            let seen = traffic.get(local)?;
            let before = self.judged.get(local).filter(|(bytes, _)| *bytes == seen.bytes).map(|(_, verdict)| *verdict);
            let last = match before {
                Some(LastByte::Ambiguous) | None => seen.last_byte(),
                Some(certain) => certain,
            };
            judged.insert(*local, (seen.bytes, last));
            all.push(Judged { silent: seen.silent(), last, bytes: seen.bytes });
        }
        self.judged = judged;
        Some(all)
    }
}

/// What is known of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Milliseconds since anything was said.
    pub silent: u32,
    /// Who spoke last.
    pub last: LastByte,
    /// Bytes said in both directions so far.
    pub bytes: (u64, u64),
}

/// Asks the kernel for the established TCP connections to a port.
///
/// # Errors
/// What the kernel says, where a sandbox does not allow it; an answer that is cut off or of another shape.
pub fn traffic_to_port(port: u16) -> io::Result<BTreeMap<Local, Traffic>> {
    let mut traffic = BTreeMap::new();
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
        set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(DEADLINE))?;
        send(&socket, &request(family, port), SendFlags::empty())?;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let (length, _) = recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
            if take_messages(&buffer[..length], &mut traffic)? == Answer::Complete {
                break;
            }
        }
    }
    Ok(traffic)
}

fn request(family: AddressFamily, port: u16) -> Vec<u8> {
    let length = NETLINK_HEADER + DIAG_REQUEST;
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST_DUMP.to_ne_bytes());
    message.extend([0; 8]); // sequence, port id
    message.extend([u8::try_from(family.as_raw()).unwrap_or_default(), TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    message.extend(ESTABLISHED.to_ne_bytes());
    message.extend([0; 2]); // any source port
    message.extend(port.to_be_bytes());
    message.resize(length, 0);
    message
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Partial,
    Complete,
}

/// Reads one datagram of the kernel's answer.
fn take_messages(mut datagram: &[u8], traffic: &mut BTreeMap<Local, Traffic>) -> io::Result<Answer> {
    let cut_off = || io::Error::new(io::ErrorKind::InvalidData, "sock_diag: the answer is cut off");
    while !datagram.is_empty() {
        let length = usize::try_from(u32_at(datagram, 0).ok_or_else(cut_off)?).map_err(|_| cut_off())?;
        let message = datagram.get(..length).filter(|m| m.len() >= NETLINK_HEADER).ok_or_else(cut_off)?;
        let body = &message[NETLINK_HEADER..];
        match u16_at(message, 4).ok_or_else(cut_off)? {
            NLMSG_DONE => return Ok(Answer::Complete),
            NLMSG_ERROR => {
                let code = u32_at(body, 0).ok_or_else(cut_off)?.cast_signed();
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            SOCK_DIAG_BY_FAMILY => {
                if let Some((local, read)) = connection(body) {
                    traffic.insert(local, read);
                }
            }
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Answer::Partial)
}

/// Reads a `struct inet_diag_msg` with its attributes; None without TCP information.
fn connection(body: &[u8]) -> Option<(Local, Traffic)> {
    let family = *body.first()?;
    let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
    let address = if u16::from(family) == AddressFamily::INET.as_raw() {
        IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(body.get(8..12)?).ok()?))
    } else {
        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(body.get(8..24)?).ok()?)).to_canonical()
    };
    let mut attributes = body.get(DIAG_MESSAGE..)?;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let attribute = attributes.get(4..length)?;
        if u16_at(attributes, 2)? == INET_DIAG_INFO {
            let traffic = Traffic {
                sent: u32_at(attribute, LAST_DATA_SENT)?,
                received: u32_at(attribute, LAST_DATA_RECEIVED)?,
                acknowledged: u32_at(attribute, LAST_ACK_RECEIVED)?,
                bytes: (u64_at(attribute, BYTES_ACKED)?, u64_at(attribute, BYTES_RECEIVED)?),
            };
            return Some(((address, port), traffic));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        thread::sleep,
        time::{Duration, Instant},
    };

    use proptest::prelude::*;

    use super::*;

    fn local(port: u16) -> Local {
        (IpAddr::V4(Ipv4Addr::LOCALHOST), port)
    }

    /// Asks the kernel until a tie has settled.
    fn settled(port: u16, us: Local) -> Traffic {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let traffic = traffic_to_port(port).expect("the kernel answers")[&us];
            if traffic.silent() >= SETTLED_MILLISECONDS {
                return traffic;
            }
            assert!(Instant::now() < deadline, "{traffic:?}");
            sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn the_kernel_tells_who_spoke_last_even_when_question_and_answer_share_a_jiffy() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let mut ours = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        let (mut database, _) = listener.accept().expect("accepts");
        let us = (ours.local_addr().expect("bound").ip(), ours.local_addr().expect("bound").port());
        let mut byte = [0];
        // as a session has them: questions and answers
        for _ in 0..20 {
            ours.write_all(b"q").expect("sent");
            database.read_exact(&mut byte).expect("received");
            database.write_all(b"r").expect("sent");
            ours.read_exact(&mut byte).expect("received");
        }
        assert_eq!(settled(port, us).last_byte(), LastByte::Received, "idle in transaction");
        for _ in 0..2 {
            ours.write_all(b"q").expect("sent");
            database.read_exact(&mut byte).expect("received");
            database.write_all(b"r").expect("sent");
            ours.read_exact(&mut byte).expect("received");
        }
        ours.write_all(b"q").expect("sent");
        database.read_exact(&mut byte).expect("received");
        assert_eq!(settled(port, us).last_byte(), LastByte::Sent, "a query runs");
    }

    fn traffic(sent: u32, received: u32, acknowledged: u32) -> Traffic {
        Traffic { sent, received, acknowledged, bytes: (7, 7) }
    }

    #[test]
    fn who_spoke_last_is_told_of_every_connection_or_of_none() {
        let seen = BTreeMap::from([
            (local(1), traffic(19_000, 15_000, 100)),
            (local(2), traffic(15_000, 19_000, 100)),
            (local(3), traffic(15_001, 15_000, 100)),
        ]);
        let judged = LeakWatch::default().judge(&[local(1), local(2), local(3)], &seen).expect("all are shown");
        let last: Vec<(u32, LastByte)> = judged.iter().map(|judged| (judged.silent, judged.last)).collect();
        let wanted = [LastByte::Received, LastByte::Sent, LastByte::Ambiguous].map(|last| (15_000, last));
        assert_eq!(last, wanted);
        assert_eq!(LeakWatch::default().judge(&[local(1), local(9)], &seen), None, "a socket that is not shown");
        assert_eq!(LeakWatch::default().judge(&[], &seen), Some(Vec::new()));
    }

    #[test]
    fn a_judgement_stands_until_a_byte_moves() {
        let mut watch = LeakWatch::default();
        let look = |traffic| BTreeMap::from([(local(1), traffic)]);
        let mut judge = |traffic| watch.judge(&[local(1)], &look(traffic)).expect("shown")[0].last;
        assert_eq!(judge(traffic(2001, 2000, 2001)), LastByte::Received);
        // a keepalive was acknowledged: by itself this look could not tell
        assert_eq!(judge(traffic(61_001, 61_000, 100)), LastByte::Received);
        let moved = Traffic { bytes: (8, 7), ..traffic(61_001, 61_000, 100) };
        assert_eq!(judge(moved), LastByte::Ambiguous);
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(datagram in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = take_messages(&datagram, &mut BTreeMap::new());
        }
    }
}
