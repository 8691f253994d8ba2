//! What a node's kernel must look like, what it looks like, and the steps between the two.
//!
//! [`view::NodeView`] (what the API and the journal say) → [`desired::Desired`] → [`plan::diff`] against
//! [`actual::Actual`] (what the kernel says) → [`plan::Plan`]. Attaching one pod runs the same code limited to one
//! interface: [`attach`].
//!
//! **Invariant:** nothing in here performs I/O, reads a clock or knows Kubernetes; equal inputs give equal
//! outputs. What is not ours by [`ours`] is never named by a step.

pub mod actual;
pub mod attach;
pub mod delta;
pub mod desired;
pub mod ours;
pub mod overlay;
pub mod plan;
pub mod underlay;
pub mod view;
