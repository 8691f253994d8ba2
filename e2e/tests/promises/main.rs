//! What Braid promises to people, driven as they would: one file per promise, one program for all of them.
//!
//! e2e/README.md says how to write one, and when a test has to be alone.

mod addresses;
mod admission;
mod agent_restart;
mod api_objects;
mod cert_manager;
mod churn;
mod drift;
mod flat;
mod full_subnet;
mod in_force;
mod lane_end;
mod lifecycle;
mod networks;
mod outage;
mod pod_admission;
mod reachability;
mod retention;
mod sandbox_smoke;
mod spoofing;
mod two_leaders;
mod uninstall;
mod virtual_machines;
