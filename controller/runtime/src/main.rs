//! `braid-controller`: gives out addresses and keeps Networks and Subnets in order.
//!
//! Both replicas watch and know everything; one of them leads and writes. Where to start: [`wire`] puts the parts
//! together, [`index`] takes in events, [`work`] does what follows from them, [`write`] talks to the API server.

mod args;
mod clock;
mod events;
mod gate;
mod health;
mod index;
mod leader;
mod log;
mod metrics;
mod purge;
mod queue;
mod webhook;
mod wire;
mod work;
mod world;
mod write;

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use tracing::error;

/// Keeps each size of object apart. With glibc's allocator the many small ones that live for long are carved out of what calls
/// of the API leave behind, ten kilobytes each, and the next call finds none of these large enough: when a hundred thousand
/// addresses had been given out one by one, three bytes of holes came on four in use.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let args = args::Args::parse();
    log::start(args.log_format);
    clock::set_off_by(args.clock_offset);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        error!("another TLS provider is installed");
        return ExitCode::FAILURE;
    }
    let ended = match args.command {
        Some(args::Command::Purge) => runtime.block_on(purge::run(&args)),
        None => runtime.block_on(wire::run(args)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
