//! What the CNI plugin and the agent say to each other over the agent's unix socket.
//!
//! One connection carries one request and one response. Each is a frame: a length of four bytes, big endian,
//! then so many bytes of JSON. The plugin is blocking and uses [`write_frame`] and [`read_frame`]; the agent
//! is asynchronous and uses [`encode`], [`frame_length`] and [`decode`].
//!
//! **Invariant:** types and framing only. What a verb means is decided by the agent.

mod frame;
mod message;

pub use braid_meta_core::call::{Add, Check, Del, Gc, Status, Verb};
pub use frame::{FrameError, HEADER_LEN, MAX_FRAME, decode, encode, frame_length, read_frame, write_frame};
pub use message::{PROTOCOL_VERSION, Reply, Request, Response, VersionSkew};

/// Where the agent listens unless the network configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/braid/cni.sock";
