//! Running other programs, waiting with a deadline, and telling the person how far things are.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// Search path of everything that the sandbox starts; the folders of built parts come before it.
pub(crate) const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program call without the caller's environment: proxies, locales and kubeconfigs of the person who calls must not
/// change what happens.
pub(crate) fn command<I, S>(argv: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut argv = argv.into_iter();
    let program = argv.next().map(|first| first.as_ref().to_owned()).unwrap_or_default();
    let mut command = Command::new(program);
    command.args(argv).env_clear().env("PATH", SYSTEM_PATH).env("HOME", "/root").env("LC_ALL", "C");
    command.stdin(Stdio::null());
    command
}

/// One line that names a call, for error messages.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs a call to its end and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("cannot start '{}'", describe(command)))
}

/// Runs a call that must succeed and returns its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    checked(&describe(command), &output)
}

/// Runs a call that must succeed and reads `input`.
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let what = describe(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start '{what}'"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early closes the pipe; its own message is the better one.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for '{what}'"))?;
    checked(&what, &output)
}

/// The standard output of a call that succeeded, or an error with its standard error.
pub(crate) fn checked(what: &str, output: &Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.is_empty() {
        said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    }
    Err(anyhow!("'{what}' failed ({}): {said}", output.status))
}

thread_local! {
    /// What this thread has waited for, and how long in all.
    static WAITS: RefCell<BTreeMap<String, Duration>> = RefCell::default();
}

/// A wait of this thread; it is counted when this is dropped.
pub(crate) struct Wait {
    what: String,
    began: Instant,
}

impl Wait {
    pub(crate) fn start(what: &str) -> Self {
        Self { what: what.to_owned(), began: Instant::now() }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        WAITS.with_borrow_mut(|waits| {
            *waits.entry(std::mem::take(&mut self.what)).or_default() += self.began.elapsed();
        });
    }
}

/// What this thread has waited for longest. Waits within waits count as both.
pub(crate) fn longest_wait() -> Option<(String, Duration)> {
    WAITS.with_borrow(|waits| {
        waits.iter().max_by_key(|(_, time)| **time).map(|(what, time)| (what.clone(), *time))
    })
}

/// Begins anew, for the next test on this thread.
pub(crate) fn forget_waits() {
    WAITS.with_borrow_mut(BTreeMap::clear);
}

/// The first pause between two looks at something that is waited for.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// Pauses double until they are this long.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Calls `probe` until it returns something or `limit` has passed. What may be there at once is looked for soon again,
/// what takes long does not cost much.
///
/// # Errors
/// The last error of `probe`, or a sentence that names `what` when there was none.
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let _wait = Wait::start(what);
    let deadline = Instant::now() + limit;
    let mut pause = SHORTEST_PAUSE;
    loop {
        let last = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= deadline {
            return match last {
                Some(error) => Err(error.context(format!("{what}: not within {} s", limit.as_secs()))),
                None => Err(anyhow!("{what}: not within {} s", limit.as_secs())),
            };
        }
        std::thread::sleep(pause);
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// Runs one closure per item, all at once, and reports the first failure.
pub(crate) fn for_all<T: Sync>(items: &[T], action: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(|| action(item))).collect();
        let mut result = Ok(());
        for thread in threads {
            let outcome = thread.join().unwrap_or_else(|_| Err(anyhow!("a helper thread ended by a panic")));
            result = result.and(outcome);
        }
        result
    })
}

/// Prints each step of a longer work with the time since its start.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
}

impl Progress {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Prints one step on standard error.
    pub fn step(&self, text: &str) {
        eprintln!("[{:6.1} s] {text}", self.started.elapsed().as_secs_f64());
    }
}

/// Refuses to go on without root, with a sentence that says what to do.
pub(crate) fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("The sandbox makes network namespaces and mounts and therefore needs root: run it with sudo.");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_names_itself_and_what_it_said() {
        let error =
            run(&mut command(["sh", "-c", "echo no such thing >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("no such thing") && error.contains('3'), "{error}");
    }

    #[test]
    fn input_reaches_the_program() {
        assert_eq!(run_with_input(&mut command(["cat"]), b"abc").unwrap(), "abc");
    }

    #[test]
    fn eventually_returns_the_value_or_the_last_error() {
        let mut calls = 0;
        let value = eventually("third call", Duration::from_secs(10), || {
            calls += 1;
            Ok((calls == 3).then_some(calls))
        });
        assert_eq!(value.unwrap(), 3);
        let error = eventually::<()>("a wish", Duration::ZERO, || bail!("not today")).unwrap_err();
        assert!(format!("{error:#}").contains("a wish") && format!("{error:#}").contains("not today"));
    }

    #[test]
    fn one_failure_among_many_is_reported() {
        let error =
            for_all(&[1, 2, 3], |item| if *item == 2 { bail!("item {item}") } else { Ok(()) }).unwrap_err();
        assert_eq!(error.to_string(), "item 2");
    }
}
