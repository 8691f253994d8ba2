//! How long the plugin takes from start to exit, beside the cheapest program there is.
//!
//! `cargo bench -p braid-cni`. Linked statically (`RUSTFLAGS="-C target-feature=+crt-static"` and an explicit
//! `--target`), as it is shipped, the plugin starts faster than linked dynamically.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use braid_rpc::{Reply, Request, Response, read_frame, write_frame};

const ROUNDS: usize = 500;

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("cni.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.expect("a connection");
            let request: Request = read_frame(&mut connection).expect("a request");
            write_frame(&mut connection, &Response::new(request.id, Reply::Done)).expect("an answer");
        }
    });
    let config =
        format!(r#"{{"cniVersion":"1.1.0","name":"braid","type":"braid","socket":"{}"}}"#, socket.display());
    let plugin = env!("CARGO_BIN_EXE_braid-cni");
    println!("{:<28} {:>9} {:>9}", "start to exit", "p50", "p99");
    report("/bin/true", || Command::new("/bin/true"), "");
    report("VERSION", || verb(plugin, "VERSION"), "{}");
    report("STATUS, answered at once", || verb(plugin, "STATUS"), &config);
}

fn verb(plugin: &str, name: &str) -> Command {
    let mut command = Command::new(plugin);
    command.env_clear().env("CNI_COMMAND", name);
    command
}

fn report(name: &str, command: impl Fn() -> Command, stdin: &str) {
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| once(command(), stdin)).collect();
    times.sort_unstable();
    let at = |part: usize| times[ROUNDS * part / 100].as_secs_f64() * 1e3;
    println!("{name:<28} {:>6.2} ms {:>6.2} ms", at(50), at(99));
}

fn once(mut command: Command, stdin: &str) -> Duration {
    let begin = Instant::now();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the program starts");
    if let Some(mut input) = child.stdin.take() {
        // `/bin/true` may have ended already.
        let _ = input.write_all(stdin.as_bytes());
    }
    assert!(child.wait().expect("the program ends").success());
    begin.elapsed()
}
