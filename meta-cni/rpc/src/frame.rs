//! Frames: a length and so many bytes of JSON.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 4;

/// Longest body in bytes. A configuration is at most 1 MiB, and escaping JSON text inside JSON makes each byte
/// at most six.
pub const MAX_FRAME: usize = 8 << 20;

/// Why a frame could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed, or ended inside a frame (`UnexpectedEof`).
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The header announces more than [`MAX_FRAME`].
    #[error("a message of {0} bytes is longer than the allowed {MAX_FRAME}")]
    TooLong(usize),
    /// The body is no message of the expected type.
    #[error("the message cannot be read")]
    Json(#[from] serde_json::Error),
}

/// Header and body of a message.
///
/// # Errors
/// [`FrameError::TooLong`] when the message does not fit a frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER_LEN];
    serde_json::to_writer(&mut bytes, message)?;
    let len = bytes.len() - HEADER_LEN;
    let header = u32::try_from(len).ok().filter(|_| len <= MAX_FRAME).ok_or(FrameError::TooLong(len))?;
    bytes[..HEADER_LEN].copy_from_slice(&header.to_be_bytes());
    Ok(bytes)
}

/// Length of the body that follows a header.
///
/// # Errors
/// [`FrameError::TooLong`], so that a stray sender cannot make the reader allocate at will.
pub fn frame_length(header: [u8; HEADER_LEN]) -> Result<usize, FrameError> {
    let len = u32::from_be_bytes(header) as usize;
    if len <= MAX_FRAME { Ok(len) } else { Err(FrameError::TooLong(len)) }
}

/// The message of a body.
///
/// # Errors
/// [`FrameError::Json`] when it is not of the expected type.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(body)?)
}

/// Writes a message to a blocking connection.
///
/// # Errors
/// As [`encode`], and [`FrameError::Io`].
pub fn write_frame<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FrameError> {
    to.write_all(&encode(message)?)?;
    Ok(to.flush()?)
}

/// Reads a message from a blocking connection.
///
/// # Errors
/// As [`frame_length`] and [`decode`], and [`FrameError::Io`].
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, FrameError> {
    let mut header = [0; HEADER_LEN];
    from.read_exact(&mut header)?;
    let mut body = vec![0; frame_length(header)?];
    from.read_exact(&mut body)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PROTOCOL_VERSION, Reply, Request, Response, Status, Verb};

    fn request() -> Request {
        let status = Status { network: "braid".into(), config: r#"{"a":"\""}"#.into() };
        Request { version: PROTOCOL_VERSION, id: u64::MAX, deadline_ms: 5, verb: Verb::Status(status) }
    }

    #[test]
    fn messages_survive_the_wire() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &request()).unwrap();
        write_frame(&mut wire, &Response::new(7, Reply::Done)).unwrap();
        let mut from = wire.as_slice();
        assert_eq!(read_frame::<Request>(&mut from).unwrap(), request());
        assert_eq!(read_frame::<Response>(&mut from).unwrap(), Response::new(7, Reply::Done));
        assert!(from.is_empty());
    }

    #[test]
    fn every_cut_is_an_error_and_no_panic() {
        let wire = encode(&request()).unwrap();
        for end in 0..wire.len() {
            let e = read_frame::<Request>(&mut &wire[..end]).unwrap_err();
            assert!(
                matches!(&e, FrameError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof),
                "{end}: {e}"
            );
        }
    }

    #[test]
    fn long_frames_are_refused_before_they_are_read() {
        let header = u32::try_from(MAX_FRAME + 1).unwrap().to_be_bytes();
        assert!(matches!(read_frame::<Request>(&mut header.as_slice()), Err(FrameError::TooLong(_))));
        assert!(matches!(encode(&"x".repeat(MAX_FRAME)), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn fields_of_a_newer_sender_are_ignored() {
        let mut value = serde_json::to_value(request()).unwrap();
        value["somethingNew"] = 1.into();
        value["verb"]["alsoNew"] = true.into();
        assert_eq!(decode::<Request>(value.to_string().as_bytes()).unwrap(), request());
    }
}
