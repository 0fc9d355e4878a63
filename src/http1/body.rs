//! The framing of bodies (RFC 9112 §6): where a body that is read ends, and how one is written.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};

use super::chunks::{Chunks, Odd};
use super::output::Output;
use crate::http_fields::content_length;

/// What is left of a body that is read.
#[derive(Debug)]
pub enum BodyReader {
    /// This many bytes are left.
    Length(u64),
    /// It comes in chunks.
    Chunked(Chunks),
    /// It ends with the connection.
    UntilClose,
}

/// Most bytes that one read asks for.
const LARGEST_READ: usize = 64 * 1024;

impl BodyReader {
    /// Returns the reader of a message without a body.
    #[must_use]
    pub fn none() -> Self {
        Self::Length(0)
    }

    /// Returns the reader of a request's body. A request with neither length nor coding has none
    /// (RFC 9112 §6.3). [`crate::request::headers::check_fields`] refuses every other framing.
    #[must_use]
    pub fn of_request(fields: &HeaderMap) -> Self {
        if fields.contains_key(TRANSFER_ENCODING) {
            return Self::Chunked(Chunks::default());
        }
        Self::Length(content_length(fields).unwrap_or(0))
    }

    /// Returns the reader of a final response's body. `head`: the request was a HEAD.
    #[must_use]
    pub fn of_response(status: StatusCode, fields: &HeaderMap, head: bool) -> Self {
        if head || has_no_body(status) {
            return Self::none();
        }
        if fields.contains_key(TRANSFER_ENCODING) {
            return Self::Chunked(Chunks::default());
        }
        content_length(fields).map_or(Self::UntilClose, Self::Length)
    }

    /// Tells whether the body has been read to its end.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_done(),
            Self::UntilClose => false,
        }
    }

    /// Takes the next data off `input`. `None`: more must be read, or the body is complete.
    ///
    /// # Errors
    /// [`Odd`] for chunks that are none.
    pub fn take(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, Odd> {
        if input.is_empty() {
            return Ok(None);
        }
        let data = match self {
            Self::Length(left) => {
                let taken =
                    usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= taken as u64;
                taken
            }
            Self::Chunked(chunks) => {
                let (framing, data) = chunks.split(input)?;
                input.advance(framing);
                data
            }
            Self::UntilClose => input.len(),
        };
        if data == 0 {
            return Ok(None);
        }
        let piece = if data == input.len() {
            std::mem::take(input).freeze()
        } else {
            input.split_to(data).freeze()
        };
        if let Self::Chunked(chunks) = self
            && !input.is_empty()
        {
            // The end of the chunk often came with its data, and tells whether the body is complete.
            let framing = chunks.end_of_chunk(input)?;
            input.advance(framing);
        }
        Ok(Some(piece))
    }

    /// Returns how many bytes the next read should have room for. `last`: how many the last one
    /// brought.
    #[must_use]
    pub fn room(&self, last: usize) -> usize {
        let most = match self {
            Self::Length(left) => usize::try_from(*left).unwrap_or(LARGEST_READ),
            Self::Chunked(_) | Self::UntilClose => LARGEST_READ,
        };
        // A sender of large pieces is read in large pieces, and only such a one.
        (last * 4).clamp(4096, LARGEST_READ).min(most.max(512))
    }
}

/// Tells whether a final response with this status has no body, whatever its headers say.
#[must_use]
pub fn has_no_body(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// The framing of a body that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyWriter {
    /// Nothing may be written: no body, or a HEAD's.
    None,
    /// This many bytes are left.
    Length(u64),
    /// In chunks.
    Chunked,
    /// Until the connection ends, or another protocol.
    UntilClose,
}

impl BodyWriter {
    /// Returns the writer that these headers announce; `otherwise` where they announce nothing.
    #[must_use]
    pub fn announced(fields: &HeaderMap, otherwise: Self) -> Self {
        if fields.contains_key(TRANSFER_ENCODING) {
            Self::Chunked
        } else if fields.contains_key(CONTENT_LENGTH) {
            content_length(fields).map_or(otherwise, Self::Length)
        } else {
            otherwise
        }
    }

    /// Writes a piece. Pieces of no bytes are never written: as a chunk they would be the end.
    /// Bytes beyond the announced length are dropped, and `false` is returned.
    pub fn write(&mut self, mut piece: Bytes, output: &mut Output) -> bool {
        if piece.is_empty() {
            return true;
        }
        match self {
            Self::None => {}
            Self::Length(left) => {
                let fits = piece.len() as u64 <= *left;
                if !fits {
                    piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                }
                *left -= piece.len() as u64;
                output.push(piece);
                return fits;
            }
            Self::Chunked => output.push_chunk(piece),
            Self::UntilClose => output.push(piece),
        }
        true
    }

    /// Writes the end. `false`: bytes of the announced length are missing, so that only the end of
    /// the connection can tell.
    pub fn finish(&mut self, output: &mut Output) -> bool {
        let complete = match self {
            Self::Length(left) => *left == 0,
            Self::Chunked => {
                output.push_last_chunk();
                true
            }
            Self::None | Self::UntilClose => true,
        };
        *self = Self::None;
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut reader: BodyReader, bytes: &str, step: usize) -> (String, bool, String) {
        let (mut input, mut body) = (BytesMut::new(), Vec::new());
        for piece in bytes.as_bytes().chunks(step) {
            input.extend_from_slice(piece);
            while !reader.is_done()
                && let Some(data) = reader.take(&mut input).unwrap()
            {
                assert!(!data.is_empty());
                body.extend_from_slice(&data);
            }
        }
        let rest = String::from_utf8(input.to_vec()).unwrap();
        (String::from_utf8(body).unwrap(), reader.is_done(), rest)
    }

    #[test]
    fn a_body_ends_where_its_framing_says_and_what_follows_stays() {
        for step in 1..40 {
            let length = read(BodyReader::Length(5), "helloGET /", step);
            assert_eq!(length, ("hello".into(), true, "GET /".into()), "{step}");
            let chunks = || BodyReader::Chunked(Chunks::default());
            let whole = "3\r\nhel\r\n2;x\r\nlo\r\n0\r\nT: 1\r\n\r\nGET /";
            assert_eq!(
                read(chunks(), whole, step),
                ("hello".into(), true, "GET /".into()),
                "{step}"
            );
            let cut = read(chunks(), "3\r\nhel\r\n2\r\nl", step);
            assert_eq!(cut, ("hell".into(), false, String::new()), "{step}");
            let open = read(BodyReader::UntilClose, "hello", step);
            assert_eq!(open, ("hello".into(), false, String::new()), "{step}");
        }
    }

    /// A request's end is known with its last data, so that the head can say so.
    #[test]
    fn the_end_of_a_chunked_body_is_known_with_its_last_data() {
        let mut reader = BodyReader::Chunked(Chunks::default());
        let mut input = BytesMut::from("3\r\nhel\r\n0\r\n\r\nrest");
        assert_eq!(reader.take(&mut input).unwrap().unwrap(), "hel");
        assert!(reader.is_done());
        assert_eq!(input, "rest");
    }

    #[test]
    fn responses_have_bodies_by_method_status_and_headers() {
        let fields = |name: &'static str, value: &'static str| {
            let value = http::HeaderValue::from_static(value);
            HeaderMap::from_iter([(http::HeaderName::from_static(name), value)])
        };
        let length = fields("content-length", "7");
        let of = |status: u16, fields: &HeaderMap, head| {
            BodyReader::of_response(StatusCode::from_u16(status).unwrap(), fields, head)
        };
        assert!(matches!(of(200, &length, false), BodyReader::Length(7)));
        for (status, head) in [(204, false), (304, false), (200, true)] {
            assert!(of(status, &length, head).is_done(), "{status}");
        }
        let chunked = fields("transfer-encoding", "Chunked");
        assert!(matches!(of(200, &chunked, false), BodyReader::Chunked(_)));
        assert!(matches!(
            of(200, &HeaderMap::new(), false),
            BodyReader::UntilClose
        ));
        assert!(BodyReader::of_request(&HeaderMap::new()).is_done());
    }

    #[test]
    fn a_length_is_kept_to_the_byte() {
        let mut output = Output::default();
        let mut writer = BodyWriter::Length(3);
        assert!(writer.write(Bytes::from_static(b"ab"), &mut output));
        assert!(!writer.write(Bytes::from_static(b"cd"), &mut output));
        assert!(writer.finish(&mut output));
        assert_eq!(output.waiting(), b"abc");
        assert!(!BodyWriter::Length(1).finish(&mut Output::default()));
    }

    #[test]
    fn pieces_of_no_bytes_are_never_written() {
        let mut output = Output::default();
        let mut writer = BodyWriter::Chunked;
        writer.write(Bytes::from_static(b"ab"), &mut output);
        writer.write(Bytes::new(), &mut output);
        writer.write(Bytes::from_static(b"c"), &mut output);
        assert!(writer.finish(&mut output) && writer.finish(&mut output));
        assert_eq!(output.waiting(), b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n");
    }
}
