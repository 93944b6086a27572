//! Leads new clients to one of several sockets that listen on the same address.
//!
//! `SO_ATTACH_REUSEPORT_CBPF` gives such a group a program that chooses the socket of each new connection. Ours is one
//! instruction, "return this number". Replacing it is one system call; no connection is refused or reset by it
//! (socket(7)). It needs no privilege.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Leads every new connection to the socket with this number, counted in the order in which the sockets began to listen.
/// `socket` is any one of the group.
///
/// # Errors
/// Of the system: sandboxes may not know the option.
#[expect(unsafe_code, reason = "no crate wraps this option")]
pub fn steer(socket: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    /// `BPF_RET | BPF_K`
    const RETURN_CONSTANT: u16 = 0x06;
    let mut instruction = libc::sock_filter { code: RETURN_CONSTANT, jt: 0, jf: 0, k: number };
    let program = libc::sock_fprog { len: 1, filter: &raw mut instruction };
    let size = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).map_err(io::Error::other)?;
    // SAFETY: `program` is a sock_fprog of `size` bytes that points to `len` = 1 initialised instruction; both live on this
    // stack until the call returns. The kernel copies the program and keeps no pointer. The descriptor is open: it is borrowed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
