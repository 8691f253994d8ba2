//! A real Kubernetes cluster on one Linux machine, without Docker or a registry: etcd, the Kubernetes binaries and,
//! for every node, a containerd and a kubelet in namespaces of their own.
//!
//! The `sandbox` program is the command line; [`Sandbox`] is the same thing for tests. Nothing in here knows Braid
//! beyond its image file and its manifests: a cluster that runs Braid is set up as a user would set it up.

pub mod cert_manager;
mod cgroup;
mod client;
mod cluster;
mod components;
pub mod daemons;
mod exec;
mod image;
mod inspect;
pub mod kernel_state;
pub mod known;
pub mod lanes;
mod layout;
pub mod ledger;
mod logs;
mod network;
mod node_root;
mod options;
mod own_images;
mod parts;
mod pki;
pub mod probe;
mod reference_cni;
mod registry;
mod sandbox;
pub mod shares;
pub mod stage;
mod supervisor;
pub mod webhook;
pub mod workload;

pub use exec::{Progress, eventually};
pub use image::{Image, write_archive};
pub use layout::Family;
pub use options::{KubeProxy, Options, Runtime};
pub use sandbox::{BundleOnFailure, Component, ComponentState, Sandbox};
pub use supervisor::supervise;
