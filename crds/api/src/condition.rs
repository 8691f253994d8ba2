//! Conditions with the standard shape, and the one way to change them.

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The condition that says whether an object is usable.
pub const READY: &str = "Ready";

/// Whether the condition `kind` is `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    conditions.iter().any(|c| c.type_ == kind && c.status == "True")
}

/// Longest text for people that the API takes: the note of an Event (events.k8s.io/v1) and messages of our own schemas.
const LONGEST: usize = 1024;

/// The text, cut between two characters where it is too long for an Event or a message; then it ends in dots.
#[must_use]
pub fn shortened(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let end = (0..=LONGEST - 3).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    format!("{}...", &text[..end])
}

/// What a condition is to say from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Says {
    /// Type of the condition, such as [`READY`].
    pub kind: &'static str,
    /// `True` or `False`.
    pub status: bool,
    /// One word in CamelCase for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// Sets one condition and returns whether anything changed.
///
/// `lastTransitionTime` moves only when the status changes, as the API conventions demand.
pub fn set(conditions: &mut Vec<Condition>, says: Says, generation: Option<i64>, now: &Time) -> bool {
    let status = if says.status { "True" } else { "False" };
    let old = conditions.iter().position(|c| c.type_ == says.kind);
    let since =
        old.map(|i| &conditions[i]).filter(|c| c.status == status).map(|c| c.last_transition_time.clone());
    let new = Condition {
        type_: says.kind.to_owned(),
        status: status.to_owned(),
        reason: says.reason,
        message: says.message,
        observed_generation: generation,
        last_transition_time: since.unwrap_or_else(|| now.clone()),
    };
    match old {
        Some(i) if conditions[i] == new => false,
        Some(i) => {
            conditions[i] = new;
            true
        }
        None => {
            conditions.push(new);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).expect("in range"))
    }

    fn ready(status: bool, reason: &str) -> Says {
        Says { kind: READY, status, reason: reason.to_owned(), message: String::new() }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("full"), "full");
        let cut = shortened(&"ü".repeat(900));
        assert!(cut.len() <= LONGEST && cut.ends_with("ü..."), "{} bytes", cut.len());
    }

    #[test]
    fn the_transition_time_moves_with_the_status_only() {
        let mut list = Vec::new();
        assert!(set(&mut list, ready(false, "NotSupported"), Some(1), &at(10)));
        assert!(!set(&mut list, ready(false, "NotSupported"), Some(1), &at(20)));
        assert!(set(&mut list, ready(false, "Overlaps"), Some(2), &at(30)));
        assert_eq!(list[0].last_transition_time, at(10));
        assert!(set(&mut list, ready(true, "Ready"), Some(2), &at(40)));
        assert_eq!((list[0].last_transition_time.clone(), list.len()), (at(40), 1));
        assert!(is_true(&list, READY));
    }
}
