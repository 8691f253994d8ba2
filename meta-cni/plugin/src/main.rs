//! The CNI plugin `braid`: reads a call, asks the agent, prints the answer.
//!
//! It is started for every pod, so it has no threads, no async runtime and no API client, and is linked
//! statically. Whatever it is given, it prints one JSON object on standard output (nothing at all where the
//! spec wants nothing: DEL, CHECK, GC and STATUS that succeed) and ends.
//!
//! **Invariant:** it touches neither the kernel's network configuration nor the Kubernetes API.

mod agent;
mod gate;
mod log;
mod netns;
mod verbs;

use std::env;
use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use braid_meta_core::env::{Environment, Variable};
use braid_meta_core::invocation::{Asked, Output, interpret};
use braid_meta_core::netconf::MAX_CONFIG;
use braid_meta_core::{CniError, CniVersion, ErrorCode};

fn main() -> ExitCode {
    let environment = Environment::read(variable);
    if environment.command == Variable::Missing {
        eprintln!(
            "Braid {}: a CNI plugin, to be called by a container runtime; speaks CNI {}",
            env!("CARGO_PKG_VERSION"),
            CniVersion::ALL.map(CniVersion::as_str).join(", ")
        );
    }
    let output = respond(&environment);
    let code = print(&output);
    // After the answer: nobody waits for it.
    if !output.success {
        log::failure(&environment, &output);
    }
    code
}

fn variable(name: &str) -> Variable {
    match env::var_os(name) {
        None => Variable::Missing,
        Some(value) => value.to_str().map_or(Variable::NotText, Variable::from),
    }
}

fn respond(environment: &Environment) -> Output {
    let stdin = match read_stdin() {
        Ok(stdin) => stdin,
        Err(e) => {
            let error =
                CniError::new(ErrorCode::IO, "cannot read the network configuration from standard input")
                    .with_details(e.to_string());
            return Output::error(CniVersion::LATEST, &error);
        }
    };
    match interpret(environment, &stdin) {
        Ok(Asked::Version(output)) | Err(output) => output,
        Ok(Asked::Call(call)) => verbs::run(&call),
    }
}

/// Standard input up to the first byte too many; nothing from a terminal, where a person tries the plugin.
fn read_stdin() -> io::Result<Vec<u8>> {
    let stdin = io::stdin();
    let mut content = Vec::new();
    if !stdin.is_terminal() {
        stdin.lock().take(MAX_CONFIG as u64 + 1).read_to_end(&mut content)?;
    }
    Ok(content)
}

fn print(output: &Output) -> ExitCode {
    if let Some(value) = &output.stdout {
        let mut stdout = io::stdout().lock();
        // A runtime that went away cannot be told anything but the exit code.
        if writeln!(stdout, "{value}").and_then(|()| stdout.flush()).is_err() {
            return ExitCode::FAILURE;
        }
    }
    if output.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
