//! What the agent sees of its pod: the configuration volume, the kernel's view of server connections and of what passes by the pooler, the database's certificate, and whether it answers.

pub mod bypass;
pub mod handshake;
pub mod inputs;
pub mod probe;
pub mod sockets;
