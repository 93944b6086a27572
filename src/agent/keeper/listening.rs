//! How many sockets listen on an address, whosever they are (`/proc/net/tcp`, proc_pid_net(5)).
//!
//! A process that an earlier keeper left behind may hold a socket of our port still. It stands in the same `SO_REUSEPORT` group, where
//! sockets are numbered in the order in which they began to listen: ours are other ones than we think, clients come to it, and nothing
//! says so. So they are counted before a number is trusted.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// `TCP_LISTEN` in these tables.
const LISTEN: &str = "0A";

/// How many sockets listen on exactly this address and port in our network.
///
/// # Errors
/// Of the system, where the tables cannot be read.
pub fn count_listening(on: SocketAddr) -> io::Result<usize> {
    let table = if on.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    let mut count = 0;
    for line in BufReader::new(File::open(table)?).lines().skip(1) {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        let (local, state) = (words.nth(1), words.nth(1));
        // those that listen come first
        if state != Some(LISTEN) {
            break;
        }
        count += usize::from(local.and_then(address) == Some(on));
    }
    Ok(count)
}

/// `0100007F:1538`: words of 32 bits as they lie in memory, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = [0; 16];
    let words = address.as_bytes().chunks(8);
    for (place, word) in bytes.chunks_mut(4).zip(words) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        place.copy_from_slice(&word.to_ne_bytes());
    }
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        32 => IpAddr::V6(Ipv6Addr::from(bytes)),
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_sockets_that_listen_on_an_address_are_counted_and_no_others() {
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            let Ok(listener) = TcpListener::bind((address, 0)) else { continue };
            let on = listener.local_addr().unwrap();
            let _client = TcpStream::connect(on).unwrap();
            assert_eq!(count_listening(on).unwrap(), 1, "a connection of its port is none");
            drop(listener);
            assert_eq!(count_listening(on).unwrap(), 0);
        }
    }

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let v4 = format!("{}:1538", word([127, 0, 0, 1]));
        assert_eq!(address(&v4), Some(([127, 0, 0, 1], 5432).into()));
        let v6 = format!("{}{}{}{}:23AA", word([0; 4]), word([0; 4]), word([0; 4]), word([0, 0, 0, 1]));
        assert_eq!(address(&v6), Some((Ipv6Addr::LOCALHOST, 9130).into()));
    }

    proptest! {
        #[test]
        fn no_table_makes_the_reader_panic(text in "[0-9A-Fx:é]{0,60}") {
            let _ = address(&text);
        }
    }
}
