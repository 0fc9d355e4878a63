//! What was sent of a request's body, for another attempt.

use bytes::Bytes;

/// Largest body that is kept, bytes.
pub(crate) const MOST: u64 = 64 * 1024;

/// The pieces of a body that have been read, while all of them together are short enough.
#[derive(Debug, Default)]
pub(crate) struct KeptBody {
    pieces: Vec<Bytes>,
    length: u64,
    /// The body has been read to its end.
    is_complete: bool,
    /// Too much has been read: nothing is kept any more.
    is_too_long: bool,
}

impl KeptBody {
    /// Returns what is kept of a body that has not been read. `is_complete`: there is none.
    pub(crate) fn new(is_complete: bool) -> Self {
        Self {
            is_complete,
            ..Self::default()
        }
    }

    /// Adds a piece.
    pub(crate) fn push(&mut self, piece: &Bytes) {
        self.length += piece.len() as u64;
        if self.length > MOST {
            self.is_too_long = true;
            self.pieces = Vec::new();
        } else {
            self.pieces.push(piece.clone());
        }
    }

    /// Notes the body's end.
    pub(crate) fn end(&mut self) {
        self.is_complete = true;
    }

    /// Tells whether the body has been read to its end.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Tells whether nothing has been read of the body.
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Tells whether everything that has been read can be sent again.
    pub(crate) fn is_whole(&self) -> bool {
        !self.is_too_long
    }

    /// Returns the pieces.
    pub(crate) fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_kept_to_the_last_byte_or_not_at_all() {
        let mut kept = KeptBody::new(false);
        let half = Bytes::from(vec![7; 32 * 1024]);
        kept.push(&half);
        kept.push(&half);
        assert!(kept.is_whole() && !kept.is_complete() && !kept.is_empty());
        assert_eq!(kept.pieces().concat(), vec![7; 64 * 1024]);
        kept.push(&Bytes::from_static(b"x"));
        assert!(!kept.is_whole());
        assert!(kept.pieces().is_empty());
        kept.push(&Bytes::from_static(b"x"));
        assert!(!kept.is_whole() && kept.pieces().is_empty());
        assert!(KeptBody::new(true).is_complete());
    }
}
