//! Rules that only several objects together can decide.
//!
//! The webhook asks [`verdict`] before a change; the controller asks [`Standing`] for what happened anyway. In both
//! the older object wins (by creation time, then by name) and is never harmed by the loser.

mod address;
mod change;
mod standing;

pub(crate) use address::{Misfit, misfit};
pub use change::{Change, Sentence, verdict, warning};
pub use standing::{Loss, OffLimits, Standing};
