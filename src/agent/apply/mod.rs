//! How what was decided becomes so: files, processes, limits, each read back.

pub mod files;
pub mod last_good;
pub mod process;
pub mod reference_key;
pub mod resolver;
pub mod slot;
pub mod trial;
