//! A body in chunks (RFC 9112 §7.1): its data, its end, and whether its framing is unambiguous.
//!
//! The grammar is the RFC's and no more. A size without digits, a bare LF or a blank within the
//! digits is refused: another reader could end the body elsewhere.

/// The position in a chunked body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chunks {
    state: State,
    /// The chunk's size while that is read, then the rest of its data, bytes.
    size: u64,
    /// Bytes of the line, or of the trailers, so far.
    line: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    #[default]
    Before,
    Size,
    /// After the digits: blanks, and extensions after a semicolon.
    Blank,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    /// A trailer, or the last line.
    Line,
    Name,
    Value,
    ValueEnd,
    LastLf,
    Done,
    /// Invalid, and stays so.
    Broken,
}

/// The framing can be read in two ways, or in none.
#[derive(Debug, PartialEq, Eq)]
pub struct Odd;

/// Longest size line, and longest trailers, bytes.
const LONGEST: usize = 8 * 1024;

impl Chunks {
    /// Tells whether the body is complete.
    #[must_use]
    pub fn is_done(self) -> bool {
        self.state == State::Done
    }

    /// Tells whether the framing is invalid.
    #[must_use]
    pub fn is_broken(self) -> bool {
        self.state == State::Broken
    }

    /// Splits the next data off `bytes`: returns the length of the framing before it, and its own.
    /// Both are zero once the body is complete.
    ///
    /// # Errors
    /// [`Odd`], from then on for good.
    pub fn split(&mut self, bytes: &[u8]) -> Result<(usize, usize), Odd> {
        let framing = self.end_of_chunk(bytes)?;
        if self.state != State::Data {
            return Ok((framing, 0));
        }
        let left = usize::try_from(self.size).unwrap_or(usize::MAX);
        let data = left.min(bytes.len() - framing);
        self.size -= data as u64;
        if self.size == 0 {
            self.state = State::DataCr;
        }
        Ok((framing, data))
    }

    /// Returns the length of the framing at the start of `bytes`, up to the next data at most.
    ///
    /// # Errors
    /// As [`Self::split`].
    pub fn end_of_chunk(&mut self, bytes: &[u8]) -> Result<usize, Odd> {
        let mut framing = 0;
        while framing < bytes.len() && self.state != State::Data && !self.is_done() {
            framing += 1;
            self.line += 1;
            let next = self.next(bytes[framing - 1]);
            self.state = next
                .filter(|_| self.line <= LONGEST)
                .unwrap_or(State::Broken);
            if self.is_broken() {
                return Err(Odd);
            }
        }
        Ok(framing)
    }

    fn next(&mut self, byte: u8) -> Option<State> {
        use State::{
            Before, Blank, Data, DataCr, DataLf, Done, Extension, LastLf, Line, Name, Size,
            SizeEnd, Value, ValueEnd,
        };

        Some(match (self.state, byte) {
            (Before | Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if self.state == Before {
                    self.size = 0;
                }
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                let more = self
                    .size
                    .checked_mul(16)
                    .and_then(|size| size.checked_add(digit));
                // What does not fit into 63 bits fits into no receiver, and some read its sign.
                self.size = more.filter(|size| i64::try_from(*size).is_ok())?;
                Size
            }
            (Size | Blank, b' ' | b'\t') => Blank,
            (Size | Blank | Extension, b'\r') => SizeEnd,
            (Size | Blank, b';') | (Extension, b'\t' | b' '..=b'~' | 0x80..) => Extension,
            (SizeEnd, b'\n') => {
                self.line = 0;
                if self.size == 0 { Line } else { Data }
            }
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => {
                self.line = 0;
                Before
            }
            (Line, b'\r') => LastLf,
            (Line | Name, byte) if is_token(byte) => Name,
            (Name, b':') | (Value, b'\t' | b' '..=b'~' | 0x80..) => Value,
            (Value, b'\r') => ValueEnd,
            (ValueEnd, b'\n') => Line,
            (LastLf, b'\n') => Done,
            _ => return None,
        })
    }
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how many of `bytes` belong to the body: all, unless its end is among them.
    fn advance(chunks: &mut Chunks, bytes: &[u8]) -> Result<usize, Odd> {
        let mut at = 0;
        while at < bytes.len() && !chunks.is_done() {
            let (framing, data) = chunks.split(&bytes[at..])?;
            at += framing + data;
        }
        Ok(at)
    }

    /// Returns the body's part of `bytes`, fed in pieces of every length.
    fn taken(bytes: &str) -> Result<usize, Odd> {
        let mut outcomes = (1..=bytes.len()).map(|length| {
            let mut chunks = Chunks::default();
            let mut taken = 0;
            for piece in bytes.as_bytes().chunks(length) {
                taken += advance(&mut chunks, piece)?;
            }
            if chunks.is_done() {
                Ok(taken)
            } else {
                Ok(usize::MAX)
            }
        });
        let first = outcomes.next().unwrap();
        for outcome in outcomes {
            assert_eq!(outcome, first, "{bytes:?}");
        }
        first
    }

    #[test]
    fn a_body_ends_behind_its_trailers() {
        for whole in [
            "0\r\n\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            "000A\r\n0123456789\r\n0;last\r\n\r\n",
            "a ;name=\"v;\u{e9}\"\r\n\r\n\r\n\r\n\r\n\r\n\r\n00\r\nX-End: 1\r\nY:\r\n\r\n",
        ] {
            assert_eq!(taken(whole), Ok(whole.len()), "{whole:?}");
            let more = whole.to_owned() + "GET / HTTP/1.1\r\n";
            assert_eq!(taken(&more), Ok(whole.len()), "{more:?}");
            assert_eq!(
                taken(&whole[..whole.len() - 1]),
                Ok(usize::MAX),
                "{whole:?}"
            );
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_odd() {
        for odd in [
            "\r\n\r\n",
            " \r\n",
            ";x\r\n",
            "3\nabc\r\n0\r\n\r\n",
            "3;a\nb\r\nabc\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3 3\r\nabc\r\n",
            "+3\r\nabc\r\n",
            "0x3\r\nabc\r\n",
            "10000000000000000\r\n",
            "8000000000000000\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\nA: b\r\n c: d\r\n\r\n",
            "0\r\n: b\r\n\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\n\n",
            "3\r\nabc\r\n\r\nlost: data\r\n0\r\n\r\n",
        ] {
            assert_eq!(taken(odd), Err(Odd), "{odd:?}");
        }
        let mut chunks = Chunks::default();
        assert_eq!(advance(&mut chunks, b"\r\n"), Err(Odd));
        assert_eq!(advance(&mut chunks, b"0\r\n\r\n"), Err(Odd), "for good");
        assert_eq!(taken(&format!("3;{}", "x".repeat(LONGEST))), Err(Odd));
    }
}
