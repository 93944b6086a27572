//! What the agent sees of its pod: the configuration volume, the kernel's view of server connections, the database's certificate.

pub mod handshake;
pub mod inputs;
pub mod sockets;
