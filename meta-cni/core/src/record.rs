//! What is written down about an attachment, so that it can be undone with nothing else at hand.
//!
//! A file is one header line and a body of JSON:
//!
//! ```text
//! braid attachment 1 <length of the body in bytes> <FNV-1a of the body, 64 bits, 16 hex digits>
//! {...}
//! ```
//!
//! The header makes a torn, emptied or overwritten file recognisable; its reader then still has the file's
//! name, which holds the container and the interface.

use std::net::IpAddr;

use braid_types::Mac;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::call::{Del, NamespaceId};
use crate::{Attachment, AttachmentId, CniResult, PodRef};

/// Version of the file format; files of another version are not read.
const FORMAT: u32 = 1;

/// Container ids above this length are shortened in file names, which may have 255 bytes on Linux.
const LONGEST_ID_IN_NAME: usize = 150;

/// Something that is kept in a file of its own, one for each attachment.
pub trait Entry: Serialize + DeserializeOwned {
    /// Word in the header, so that a file in the wrong directory is not taken for another kind.
    const KIND: &'static str;

    /// The attachment that the entry is about.
    fn attachment(&self) -> &AttachmentId;
}

/// How far an ADD came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RecordState {
    /// Written before the first step: anything of the plan may exist.
    Started,
    /// Written after the last step: everything of the plan exists.
    Done,
}

/// What the cluster had given to the attachment's pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// Name of the Network object; [`Record::network`] is the one of the runtime's configuration.
    pub network: String,
    /// Uid of the pod in the API, which for static pods is not the runtime's.
    pub pod_uid: String,
    /// Hardware address of the interface.
    pub mac: Mac,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// The journal's entry for one attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Container and interface.
    pub attachment: AttachmentId,
    /// How far ADD came.
    pub state: RecordState,
    /// When ADD began, in seconds since the Unix epoch.
    pub started_at: u64,
    /// Name of the network in the configuration.
    pub network: String,
    /// The pod.
    pub pod: PodRef,
    /// Path of the network namespace as the runtime gave it.
    pub netns: String,
    /// The namespace that the path led to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_id: Option<NamespaceId>,
    /// The configuration of ADD, exactly as given.
    pub config: String,
    /// Every interface in the order in which it is made.
    pub plan: Vec<Attachment>,
    /// What ADD answered; with [`RecordState::Started`] what it was about to make, as far as known.
    #[serde(default)]
    pub result: Option<CniResult>,
    /// What the first interface of the plan was made from.
    #[serde(default)]
    pub grant: Option<Grant>,
}

impl Entry for Record {
    const KIND: &'static str = "attachment";

    fn attachment(&self) -> &AttachmentId {
        &self.attachment
    }
}

/// A DEL that the plugin accepted while there was no agent.
impl Entry for Del {
    const KIND: &'static str = "pending-del";

    fn attachment(&self) -> &AttachmentId {
        &self.attachment
    }
}

/// Why a file is no entry.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The first line is no header of this kind.
    #[error("the first line is not that of a `{0}` file")]
    Header(&'static str),
    /// The file is of another version of the format.
    #[error("the file has format {0}, this program reads format {FORMAT}")]
    Format(u32),
    /// The body is shorter or longer than announced.
    #[error("the file is torn: {found} of {announced} bytes")]
    Torn {
        /// Bytes according to the header.
        announced: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// The body is not what was written.
    #[error("the checksum does not fit")]
    Checksum,
    /// The body is no entry.
    #[error("the content cannot be read")]
    Json(#[from] serde_json::Error),
}

/// FNV-1a, 64 bits: finds torn and overwritten files, defends against nobody.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// The content of an entry's file.
///
/// # Errors
/// When the entry cannot be expressed as JSON.
pub fn encode<E: Entry>(entry: &E) -> Result<Vec<u8>, serde_json::Error> {
    let body = serde_json::to_vec(entry)?;
    let mut file = format!("braid {} {FORMAT} {} {:016x}\n", E::KIND, body.len(), fnv1a(&body)).into_bytes();
    file.extend(body);
    Ok(file)
}

/// The entry of a file's content.
///
/// # Errors
/// [`DecodeError`] for whatever is no complete entry of this kind.
pub fn decode<E: Entry>(file: &[u8]) -> Result<E, DecodeError> {
    let no_header = || DecodeError::Header(E::KIND);
    let end = file.iter().position(|b| *b == b'\n').ok_or_else(no_header)?;
    let header = std::str::from_utf8(&file[..end]).map_err(|_| no_header())?;
    let mut words = header.split(' ');
    if words.next() != Some("braid") || words.next() != Some(E::KIND) {
        return Err(no_header());
    }
    let format: u32 = words.next().and_then(|w| w.parse().ok()).ok_or_else(no_header)?;
    if format != FORMAT {
        return Err(DecodeError::Format(format));
    }
    let announced: usize = words.next().and_then(|w| w.parse().ok()).ok_or_else(no_header)?;
    let checksum = words.next().and_then(|w| u64::from_str_radix(w, 16).ok()).ok_or_else(no_header)?;
    let body = &file[end + 1..];
    if body.len() != announced {
        return Err(DecodeError::Torn { announced, found: body.len() });
    }
    if fnv1a(body) != checksum {
        return Err(DecodeError::Checksum);
    }
    Ok(serde_json::from_slice(body)?)
}

/// Name of the file of an attachment: `<container>:<interface>`.
///
/// The colon can stand in neither part, so two attachments never share a name; with `-`, container `a-b` and
/// interface `c` would meet container `a` and interface `b-c`. A container id that would not fit a file name is
/// cut and gets a hash.
#[must_use]
pub fn file_name(attachment: &AttachmentId) -> String {
    let id = attachment.container_id.as_str();
    if id.len() <= LONGEST_ID_IN_NAME {
        return format!("{id}:{}", attachment.ifname);
    }
    format!("{}~{:016x}:{}", &id[..LONGEST_ID_IN_NAME], fnv1a(id.as_bytes()), attachment.ifname)
}

/// The attachment of a file name; `None` when the name is none of [`file_name`] or the id in it is cut.
#[must_use]
pub fn attachment_of(file_name: &str) -> Option<AttachmentId> {
    let (id, ifname) = file_name.split_once(':')?;
    Some(AttachmentId { container_id: id.parse().ok()?, ifname: ifname.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(container: &str, ifname: &str) -> AttachmentId {
        AttachmentId { container_id: container.parse().unwrap(), ifname: ifname.parse().unwrap() }
    }

    fn record() -> Record {
        let attachment = id("c1", "eth0");
        Record {
            plan: vec![Attachment::native(attachment.ifname.clone())],
            attachment,
            state: RecordState::Started,
            started_at: 1,
            network: "braid".into(),
            pod: PodRef { namespace: "n".into(), name: "p".into(), uid: "u".into() },
            netns: "/run/netns/x".into(),
            netns_id: Some(NamespaceId { dev: 4, ino: 4_026_531_840 }),
            config: "{\n}".into(),
            result: None,
            grant: None,
        }
    }

    #[test]
    fn an_entry_comes_back_as_it_was() {
        assert_eq!(decode::<Record>(&encode(&record()).unwrap()).unwrap(), record());
    }

    #[test]
    fn torn_files_are_recognised_at_every_length() {
        let whole = encode(&record()).unwrap();
        for end in 0..whole.len() {
            let e = decode::<Record>(&whole[..end]).unwrap_err();
            assert!(matches!(e, DecodeError::Header(_) | DecodeError::Torn { .. }), "{end}: {e}");
        }
        // What a file system may leave after power loss: the right length, but zeros.
        let mut zeros = whole.clone();
        zeros[40..].fill(0);
        assert!(decode::<Record>(&zeros).is_err());
    }

    #[test]
    fn other_kinds_and_formats_are_refused() {
        let whole = encode(&record()).unwrap();
        assert!(matches!(decode::<Del>(&whole), Err(DecodeError::Header("pending-del"))));
        let text = String::from_utf8(whole).unwrap().replacen("attachment 1", "attachment 2", 1);
        assert!(matches!(decode::<Record>(text.as_bytes()), Err(DecodeError::Format(2))));
    }

    #[test]
    fn file_names_are_distinct_reversible_and_short() {
        let pairs = [id("a-b", "c"), id("a", "b-c"), id("a", "b"), id("a.b", "c")];
        for (i, a) in pairs.iter().enumerate() {
            assert_eq!(attachment_of(&file_name(a)).as_ref(), Some(a));
            for b in &pairs[i + 1..] {
                assert_ne!(file_name(a), file_name(b));
            }
        }
        let (one, two) = ("x".repeat(999), "x".repeat(998) + "y");
        let (one, two) = (file_name(&id(&one, "eth0")), file_name(&id(&two, "eth0")));
        assert_ne!(one, two);
        assert!(one.len() < 200 && attachment_of(&one).is_none());
        assert_eq!(attachment_of(".c1:eth0.12.0"), None, "temporary files are no entries");
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_gives_another_record(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut file = encode(&record()).unwrap();
            let at = at.index(file.len());
            prop_assume!(file[at] != to);
            file[at] = to;
            if let Ok(read) = decode::<Record>(&file) {
                // A hex digit of the checksum may change its case.
                prop_assert_eq!(read, record());
            }
        }

        #[test]
        fn any_bytes_are_answered_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode::<Record>(&bytes).is_err());
        }
    }
}
