//! A digest of what files and secrets hold, by which a change of them is noticed.
//!
//! Contents are what counts, not times: this sees every way of changing a file, the symlinks that
//! Kubernetes swaps included.

use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// SHA-256 over several contents in their order. Stores hold it for shared tokens: its form stays.
#[derive(Default)]
pub(crate) struct ContentDigest(Sha256);

impl ContentDigest {
    /// Adds the content of a file or a secret; `None` for one that cannot be read, which counts as
    /// a content of its own.
    pub(crate) fn add(&mut self, content: Option<&[u8]>) {
        // The length keeps ("ab", "c") and ("a", "bc") apart; one past the longest possible slice
        // stands for what cannot be read.
        let length = content.map_or(u64::MAX, |bytes| bytes.len() as u64);
        self.0.update(length.to_be_bytes());
        self.0.update(content.unwrap_or_default());
    }

    /// Adds what the file of this path holds now.
    ///
    /// # Errors
    /// Fails if it cannot be read. It is added all the same, as one that cannot be read.
    pub(crate) fn add_file(&mut self, path: &Path) -> io::Result<()> {
        let content = std::fs::read(path).map(Zeroizing::new);
        self.add(content.as_deref().ok().map(Vec::as_slice));
        content.map(drop)
    }

    /// Returns the digest of everything added.
    pub(crate) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// Returns the digest of what these files hold now, those that cannot be read included.
pub(crate) fn of_files<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> [u8; 32] {
    let mut digest = ContentDigest::default();
    for path in paths {
        // A file that cannot be read is a content, too.
        let _ = digest.add_file(path.as_ref());
    }
    digest.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_their_borders_and_missing_files_all_count() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let now = || of_files([&one, &two]);
        let mut seen = vec![now()];
        for (first, second) in [("", ""), ("ab", "c"), ("a", "bc"), ("a", "b")] {
            std::fs::write(&one, first).unwrap();
            std::fs::write(&two, second).unwrap();
            seen.push(now());
            assert_eq!(now(), now());
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 5);
    }

    /// Replicas of other versions compare it with theirs.
    #[test]
    fn the_form_is_the_one_in_stores() {
        let mut digest = ContentDigest::default();
        digest.add(Some(b"one"));
        digest.add(None);
        let form = [&3_u64.to_be_bytes()[..], b"one", &[0xff; 8]];
        assert_eq!(digest.finish(), crate::tls::sha256(&form));
    }
}
