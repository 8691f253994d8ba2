//! The state of all addresses and the grants made from it.
//!
//! [`Ipam`] is fed with what the watches deliver, in any order, with repetitions and gaps; its answers depend on the
//! present objects only. A grant reserves in memory first, so many can be on their way to the API at once; what
//! finally decides is the creation of the object named by the address.

mod choose;
mod feed;
mod grant;
mod handover;
mod instances;
mod kept;
mod misplaced;
mod names;
mod plan;
mod refusal;
mod request;
mod state;
mod surplus;
mod topic;
mod vtep;

pub(crate) use choose::Prospect;
pub use handover::Migration;
pub(crate) use handover::arrived;
pub use plan::{Claim, Grant};
pub(crate) use refusal::owner_in_words;
pub use refusal::{Full, Holder, Refusal};
pub use request::{Choice, FamilyWish, Keep, PodRequest, VtepRequest};
pub(crate) use state::is_vtep;
pub use state::{Config, Ipam, Lists, NodeFact, NotRestored, PodFact, Restored};
pub use surplus::{Given, surplus};
pub use topic::{Effects, Topic};
