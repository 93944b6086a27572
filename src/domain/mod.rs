//! PURE: the nouns that more than one part of Sluice speaks of. They stand below all others and know none of them.

mod automation;
mod bounds;
mod pool_key;
mod reading;
mod reason;
mod sample;
mod unix_seconds;

pub use automation::Automation;
pub use bounds::Bounds;
pub use pool_key::PoolKey;
pub use reading::Reading;
pub use reason::Reason;
pub use sample::{Sample, SampleError};
pub use unix_seconds::UnixSeconds;
