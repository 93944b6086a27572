//! What holds against a real etcd and kube-apiserver. Run by `tests/run api`.
// fixtures are built in place, and a table of cases is one function
#![allow(missing_docs, clippy::panic, clippy::needless_pass_by_value, clippy::too_many_lines)]

mod certificates;
mod cluster;
mod kinds;
mod operator;
mod plugin;
mod policy;
mod release;
mod webhook;
