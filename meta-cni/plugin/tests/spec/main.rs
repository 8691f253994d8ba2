//! The CNI specification's tables against the real plugin, with an agent that answers as each test wants.

mod any_input;
mod del;
mod environment;
mod exclusion;
mod log;
mod support;
mod verbs;
mod without_agent;
