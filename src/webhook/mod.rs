//! Admission: what happens to a pod before it exists.
//!
//! [`admission`] and [`inject`](crate::inject) are pure: a pod, the pools of its namespace and the operator's settings in, a verdict
//! out; so is [`review`], which reads the request within bounds. [`server`] is the endpoint around them, [`lookup`] where it finds
//! pools and classes, [`sources`] what one source of requests may take,
//! [`certificates`] keeps its certificate alive.

pub mod admission;
pub mod certificates;
pub mod lookup;
pub mod review;
pub mod server;
pub mod sources;
