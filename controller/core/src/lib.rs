//! The controller's decisions: who gets which address, when it is free again, what an object's status says.
//!
//! **Invariant:** nothing here knows Kubernetes clients, an async runtime, a clock or I/O. Time comes in as an
//! argument, plans go out as data; the shell (`braid-controller`) carries them out and feeds back what it sees.
//!
//! Where to start: [`Ipam`] is fed with everything the watches deliver, [`Ipam::grant`] answers a pod that was
//! bound to a node, [`Ipam::decide`] says what becomes of one address that was given out, [`admission`] judges pods
//! and workloads before they exist.

pub mod admission;
pub mod block;
pub mod gc;
pub mod ipam;
pub mod leader;
pub mod pool;
pub mod release;
pub mod status;
pub mod verdict;

pub use ipam::{
    Choice, Claim, Config, Effects, FamilyWish, Grant, Ipam, Keep, Migration, NodeFact, NotRestored, PodFact,
    PodRequest, Refusal, Restored, Topic, VtepRequest,
};
