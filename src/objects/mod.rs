//! Objects of the API server, read within bounds.
//!
//! Who may write an object decides how large it is, and what becomes of its text in memory: a field with a value of three bytes may take
//! a kilobyte. So whatever is listed or watched is read as far as it is needed, and no further:
//! - [`Lean`]: an object without `metadata.managedFields`, which are larger than all the rest.
//! - [`Kept`]: an object that is watched, within the bounds of its kind ([`Watched`]). One that is larger stands in nobody's way.
//! - [`WatchedPod`]: the same of a pod, each of which counts however large it is.
//! - [`WatchedRevision`]: the same of a revision, decoded once.
//! - [`GroupedStore`]: the store of a watch, in which those of one pool are found without a look at all others.
//! - [`ListPages`]: a list in pages, each read up to a size ([`page`]).

mod grouped;
mod kept;
mod lean;
mod metadata;
mod only;
mod pages;
mod pod;
mod revision;

pub use grouped::GroupedStore;
pub use kept::{Kept, Watched};
pub use lean::Lean;
pub use pages::{ListPages, Page, page};
pub use pod::WatchedPod;
pub use revision::{WatchedRevision, revision_data};
