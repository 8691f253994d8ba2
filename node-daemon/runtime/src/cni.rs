//! The CNI server: what the runtime asks for, done by the same code as the loop's.

pub(crate) mod server;
pub(crate) mod service;
mod turns;
pub(crate) mod wait;

pub(crate) use service::Cni;
