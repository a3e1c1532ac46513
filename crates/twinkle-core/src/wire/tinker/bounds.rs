//! How many parts a protobuf request has, counted before it is decoded.
//!
//! An empty datum or chunk takes two bytes on the wire and about a hundred in memory, so that a body
//! within its limit could still fill a machine. Honest requests have some thousand parts.

use crate::error::{Error, Result};

/// Most datums in one training request; clients send at most 1024.
pub const MAX_DATUMS: usize = 1 << 14;

/// Most chunks, loss inputs and provenance spans in one training request.
pub const MAX_PARTS: usize = 1 << 18;

/// The field of `ForwardBackwardRequest` that holds the datums.
const DATA: u64 = 3;

/// Refuses a serialized `ForwardBackwardRequest` with over [`MAX_DATUMS`] datums or [`MAX_PARTS`] parts.
///
/// Bytes that are not such a message pass: decoding them tells better what is wrong.
pub fn check_forward_backward(bytes: &[u8]) -> Result<()> {
    let mut datums = 0;
    let mut parts = 0;
    let mut request = Fields(bytes);
    while let Some(field) = request.next() {
        let Field { number: DATA, content: Some(datum) } = field else { continue };
        datums += 1;
        let mut datum = Fields(datum);
        while datum.next().is_some() {
            parts += 1;
        }
        if datums > MAX_DATUMS {
            return Err(Error::invalid(format!("the request has over {MAX_DATUMS} datums")).hint("send it in several"));
        }
        if parts > MAX_PARTS {
            return Err(Error::invalid(format!("the request has over {MAX_PARTS} chunks and loss inputs")));
        }
    }
    Ok(())
}

/// A field of a message; `content` if it is a string, bytes or a message.
struct Field<'a> {
    number: u64,
    content: Option<&'a [u8]>,
}

/// The fields of a serialized message, up to the first that is broken.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Option<Field<'a>> {
        let key = self.varint()?;
        let content = match key & 7 {
            0 => {
                self.varint()?;
                None
            }
            1 => {
                self.take(8)?;
                None
            }
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Some(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                None
            }
            _ => return None,
        };
        Some(Field { number: key >> 3, content })
    }

    /// Seven bits a byte, the lowest first; the top bit says that more follow.
    fn varint(&mut self) -> Option<u64> {
        let mut value: u64 = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::proto::{Chunk, Datum, ForwardBackwardRequest};
    use super::*;

    fn check(data: Vec<Datum>) -> Result<()> {
        let request = ForwardBackwardRequest {
            model_id: "s:train:0".into(),
            seq_id: -1,
            loss_fn: "ppo".into(),
            loss_fn_config: [("beta".to_owned(), 0.5)].into(),
            forward_only: true,
            data,
            ..ForwardBackwardRequest::default()
        };
        check_forward_backward(&request.encode_to_vec())
    }

    #[test]
    fn too_many_empty_parts_are_refused_before_decoding() {
        let chunks = |count| Datum { model_input: vec![Chunk::default(); count], ..Datum::default() };
        assert_eq!(check(vec![Datum::default(); MAX_DATUMS]), Ok(()));
        assert!(check(vec![Datum::default(); MAX_DATUMS + 1]).is_err());
        assert_eq!(check(vec![chunks(MAX_PARTS)]), Ok(()));
        assert!(check(vec![chunks(MAX_PARTS - 1), chunks(2)]).is_err());
    }

    #[test]
    fn broken_bytes_are_left_to_the_decoder() {
        for bytes in [&b""[..], b"\xff", b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x1a\x05ab", &[0xff; 40]] {
            assert_eq!(check_forward_backward(bytes), Ok(()));
        }
    }
}
