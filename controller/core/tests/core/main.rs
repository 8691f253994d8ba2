//! The controller's decisions as its shell sees them.

mod admission;
mod block_histories;
mod blocks;
mod cluster;
mod events;
mod flat;
mod grant;
mod handover;
mod kept;
mod leader;
mod pool;
mod protocol;
mod reference;
mod release;
mod restore;
mod status;
mod surplus;
mod verdict;
