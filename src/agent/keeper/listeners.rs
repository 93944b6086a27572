//! The sockets that clients come to: one per slot on the same address, opened once and never closed while the container lives.
//! Where clients cannot be led to one of them, both slots share the first.
//!
//! A client that comes while no pooler runs waits in its socket's queue and is served by the next one.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, listen, socket_with,
    sockopt::{set_ipv6_v6only, set_socket_reuseaddr, set_socket_reuseport},
};

use super::{listening::count_listening, orders::Listening, steering::steer};
use crate::agent::decide::slot_name::SlotName;

/// Until a pooler names its own.
const BACKLOG: i32 = 4096;

/// The sockets of one address; the second one only where clients can be steered.
struct Address {
    sockets: Vec<OwnedFd>,
}

/// All sockets.
pub struct Listeners {
    addresses: Vec<Address>,
    refused: Option<String>,
}

impl Listeners {
    /// Opens the sockets and leads clients to the first slot, if that may be tried.
    ///
    /// # Errors
    /// Of the system: above all, a port that is taken, or that somebody else listens on too.
    pub fn open(addresses: &[IpAddr], port: u16, may_steer: bool) -> io::Result<Self> {
        let mut opened = Vec::with_capacity(addresses.len());
        let mut refused = (!may_steer).then(|| "it was not to be tried".to_owned());
        for address in addresses {
            let address = SocketAddr::new(*address, port);
            refuse_strangers(address, 0)?;
            if !may_steer {
                let only = socket(&address)?;
                listen(&only, BACKLOG)?;
                opened.push(Address { sockets: vec![only] });
                continue;
            }
            let [first, second] = [socket(&address)?, socket(&address)?];
            // before any of them listens: no client may come to a slot that has not been asked for
            match steer(first.as_fd(), 0) {
                Ok(()) => {
                    listen(&first, BACKLOG)?;
                    listen(&second, BACKLOG)?;
                    opened.push(Address { sockets: vec![first, second] });
                }
                Err(error) => {
                    refused = Some(error.to_string());
                    listen(&first, BACKLOG)?;
                    opened.push(Address { sockets: vec![first] });
                }
            }
        }
        // somebody may have come meanwhile
        for (address, ours) in addresses.iter().zip(&opened) {
            refuse_strangers(SocketAddr::new(*address, port), ours.sockets.len())?;
        }
        Ok(Self { addresses: opened, refused })
    }

    /// What there is.
    pub fn listening(&self) -> Listening {
        match &self.refused {
            None => Listening::Steering,
            Some(reason) => Listening::Shared { reason: reason.clone() },
        }
    }

    /// Whether both slots have the same ones.
    pub fn are_shared(&self) -> bool {
        self.refused.is_some()
    }

    /// Leads every new client to a slot, where each has its own.
    ///
    /// # Errors
    /// Of the system.
    pub fn steer(&self, slot: SlotName) -> io::Result<()> {
        if self.are_shared() {
            return Ok(());
        }
        let number = u32::try_from(slot.index()).unwrap_or_default();
        self.addresses
            .iter()
            .filter_map(|address| address.sockets.first())
            .try_for_each(|socket| steer(socket.as_fd(), number))
    }

    /// Copies of a slot's sockets, for its process, with so much room for clients that wait to be accepted.
    ///
    /// # Errors
    /// Of the system, or when the slot has no sockets.
    pub fn of(&self, slot: SlotName, backlog: u32) -> io::Result<Vec<OwnedFd>> {
        let number = if self.are_shared() { 0 } else { slot.index() };
        let copy = |address: &Address| {
            let socket = address.sockets.get(number).ok_or(io::ErrorKind::AddrNotAvailable)?;
            listen(socket, i32::try_from(backlog).unwrap_or(BACKLOG))?;
            socket.try_clone()
        };
        self.addresses.iter().map(copy).collect()
    }
}

/// Where others listen too, nobody knows which number is whose.
fn refuse_strangers(address: SocketAddr, ours: usize) -> io::Result<()> {
    // where it cannot be seen, it is as it always was
    let all = count_listening(address).unwrap_or(ours);
    if all <= ours {
        return Ok(());
    }
    Err(io::Error::other(strangers(address, all - ours)))
}

/// What is said of sockets that are not ours.
pub fn strangers(address: SocketAddr, count: usize) -> String {
    let sockets = if count == 1 { "socket of another process listens" } else { "sockets of other processes listen" };
    format!(
        "{count} {sockets} on {address} too, and clients may come to it: a process that an earlier \
         container left behind, or another pooler; find it with `ss -ltnp` in the pod's network, and end it"
    )
}

fn socket(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    set_socket_reuseaddr(&socket, true)?;
    set_socket_reuseport(&socket, true)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{Ipv4Addr, TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;

    #[test]
    fn every_new_client_comes_to_the_slot_that_is_steered_to() {
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
        let listeners = Listeners::open(&[address], port, true).unwrap();
        assert_eq!(listeners.listening(), Listening::Steering);
        let slots = SlotName::ALL.map(|slot| TcpListener::from(listeners.of(slot, 512).unwrap().remove(0)));
        for slot in [SlotName::A, SlotName::B, SlotName::B, SlotName::A] {
            listeners.steer(slot).unwrap();
            let clients: Vec<_> = (0..50).map(|_| TcpStream::connect((address, port)).unwrap()).collect();
            for _ in &clients {
                slots[slot.index()].accept().unwrap();
            }
            assert!(slots.iter().all(|slot| slot.accept().is_err()), "nobody came elsewhere");
        }
    }

    #[test]
    fn where_nobody_is_led_both_slots_have_the_same_socket() {
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
        let listeners = Listeners::open(&[address], port, false).unwrap();
        assert!(matches!(listeners.listening(), Listening::Shared { .. }));
        let [a, b] = SlotName::ALL.map(|slot| TcpListener::from(listeners.of(slot, 512).unwrap().remove(0)));
        let _clients = [0, 1].map(|_| TcpStream::connect((address, port)).unwrap());
        drop(a.accept().unwrap());
        // the other one goes on with those that wait
        drop(a);
        b.accept().unwrap();
    }

    #[test]
    fn nothing_is_opened_beside_a_socket_that_somebody_else_has_of_the_port_and_it_is_told() {
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
        let left_over = socket(&(address, port).into()).unwrap();
        listen(&left_over, BACKLOG).unwrap();
        for may_steer in [true, false] {
            let Err(error) = Listeners::open(&[address], port, may_steer) else { panic!("index 0 is the other's") };
            assert!(error.to_string().starts_with("1 socket of another process listens on 127.0.0.1"), "{error}");
        }
        drop(left_over);
        let listeners = Listeners::open(&[address], port, true).unwrap();
        let slot = TcpListener::from(listeners.of(SlotName::A, 512).unwrap().remove(0));
        let _client = TcpStream::connect((address, port)).unwrap();
        slot.accept().unwrap();
    }

    #[test]
    fn a_client_waits_while_nobody_accepts() {
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
        let listeners = Listeners::open(&[address], port, true).unwrap();
        drop(listeners.of(SlotName::A, 512).unwrap());
        let mut client = TcpStream::connect((address, port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let next = TcpListener::from(listeners.of(SlotName::A, 512).unwrap().remove(0));
        drop(next.accept().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "it was accepted by the next one");
    }
}
