//! Round trips over TCP: one byte there, one byte back, one at a time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Sends back what comes, to one client after another, until it is ended.
pub(crate) fn serve(port: u16) -> Result<()> {
    // Accepts both families.
    let listener = TcpListener::bind(("::", port)).context("cannot listen")?;
    for connection in listener.incoming() {
        let mut connection = connection?;
        connection.set_nodelay(true)?;
        let mut byte = [0];
        // A client that leaves in the middle is as good as one that says goodbye.
        while connection.read_exact(&mut byte).and_then(|()| connection.write_all(&byte)).is_ok() {}
    }
    Ok(())
}

/// Prints the time of each round trip in microseconds, as a JSON list.
pub(crate) fn ask(address: SocketAddr, rounds: usize) -> Result<()> {
    let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(10))
        .with_context(|| format!("cannot connect to {address}"))?;
    connection.set_nodelay(true)?;
    let mut byte = [1];
    let mut times = Vec::with_capacity(rounds);
    // The first ones find caches cold.
    for round in 0..rounds + rounds / 10 {
        let begun = Instant::now();
        connection.write_all(&byte)?;
        connection.read_exact(&mut byte)?;
        if round >= rounds / 10 {
            times.push((begun.elapsed().as_secs_f64() * 1e7).round() / 10.0);
        }
    }
    println!("{}", serde_json::to_string(&times)?);
    Ok(())
}
