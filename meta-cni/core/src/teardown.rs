//! What DEL and GC remove, and in which order.

use std::collections::BTreeSet;

use crate::call::{Del, Gc};
use crate::{Attachment, AttachmentId, CniError, Record};

/// What DEL takes down: everything that ADD attempted, last first.
///
/// Without a record (never written, or damaged) it is the interface that the runtime names, made natively: the
/// names of Braid's devices follow from container and interface, so removing them needs nothing else, and is
/// done when they are not there.
#[must_use]
pub fn del_order(record: Option<&Record>, del: &Del) -> Vec<Attachment> {
    match record {
        Some(record) if !record.plan.is_empty() => record.plan.iter().rev().cloned().collect(),
        _ => vec![Attachment::native(del.attachment.ifname.clone())],
    }
}

/// Runs every step, whatever becomes of the others, and reports all errors.
///
/// # Errors
/// [`CniError::combine`] of the errors.
pub fn run_all<S>(
    steps: impl IntoIterator<Item = S>,
    run: impl FnMut(S) -> Result<(), CniError>,
) -> Result<(), CniError> {
    let errors = steps.into_iter().map(run).filter_map(Result::err).collect();
    CniError::combine(errors).map_or(Ok(()), Err)
}

/// What GC removes: attachments to its network that are not in its list.
///
/// A container whose other interface is listed is not spared: the list names attachments, not containers.
pub fn stale<'a>(
    records: impl IntoIterator<Item = (&'a AttachmentId, &'a str)>,
    gc: &Gc,
) -> Vec<AttachmentId> {
    let valid: BTreeSet<&AttachmentId> = gc.valid_attachments.iter().collect();
    let stale = |(id, network): &(&AttachmentId, &str)| *network == gc.network && !valid.contains(id);
    records.into_iter().filter(stale).map(|(id, _)| id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorCode, PodRef, RecordState};

    fn id(container: &str, ifname: &str) -> AttachmentId {
        AttachmentId { container_id: container.parse().unwrap(), ifname: ifname.parse().unwrap() }
    }

    fn del() -> Del {
        Del {
            attachment: id("c", "eth0"),
            netns: None,
            pod: None,
            network: "braid".into(),
            config: "{}".into(),
        }
    }

    #[test]
    fn del_takes_down_what_was_attempted_last_first() {
        let native = |ifname: &str| Attachment::native(ifname.parse().unwrap());
        let mut record = Record {
            attachment: id("c", "eth0"),
            state: RecordState::Started,
            started_at: 0,
            network: "braid".into(),
            pod: PodRef { namespace: "n".into(), name: "p".into(), uid: "u".into() },
            netns: "/x".into(),
            netns_id: None,
            config: "{}".into(),
            plan: vec![native("eth0"), native("net1"), native("net2")],
            result: None,
            grant: None,
        };
        assert_eq!(del_order(Some(&record), &del()), [native("net2"), native("net1"), native("eth0")]);
        record.plan.clear();
        assert_eq!(del_order(Some(&record), &del()), [native("eth0")]);
        assert_eq!(del_order(None, &del()), [native("eth0")]);
    }

    #[test]
    fn every_step_runs_and_every_error_is_told() {
        let mut ran = Vec::new();
        let result = run_all([1, 2, 3], |n| {
            ran.push(n);
            if n == 2 { Ok(()) } else { Err(CniError::new(ErrorCode::IO, format!("step {n}"))) }
        });
        assert_eq!(ran, [1, 2, 3]);
        let e = result.unwrap_err();
        assert!(e.details.contains("step 1") && e.details.contains("step 3"), "{e}");
        assert_eq!(run_all([1], |_| Ok(())), Ok(()));
    }

    #[test]
    fn gc_spares_the_listed_and_other_networks() {
        let gc = Gc {
            network: "braid".into(),
            valid_attachments: vec![id("a", "eth0"), id("b", "net1")],
            config: "{}".into(),
        };
        let (a, b, c, other) = (id("a", "eth0"), id("b", "eth0"), id("c", "eth0"), id("d", "eth0"));
        let records = [(&a, "braid"), (&b, "braid"), (&c, "braid"), (&other, "else")];
        assert_eq!(stale(records, &gc), [b.clone(), c.clone()]);
    }
}
