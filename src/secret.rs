//! Secret material, and the only ways to look at it.
//!
//! A [`Secret`] has no `Display`, no `Serialize` and a `Debug` that prints a placeholder, so the
//! accidental ways of leaking one do not compile or do not leak. It has no `==` either: secrets
//! that callers present are compared by digest (`request/caller.rs`). Reading one is spelled
//! [`Secret::expose`]; searching for that word lists every place that can.

pub mod reference;

use std::fmt;

use http::HeaderValue;
use http::header::InvalidHeaderValue;
use zeroize::Zeroizing;

pub use self::reference::SecretRef;

/// Text that must not be logged. Our copy is overwritten with zeros when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Copies `text` without its surrounding white space, because secrets mounted from files
    /// usually end in a newline. What was passed in is overwritten with zeros.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        let text = Zeroizing::new(text.into());
        Self(Zeroizing::new(text.trim().to_owned()))
    }

    /// Copies `text` as it is, white space included. What was passed in is overwritten with zeros.
    #[must_use]
    pub fn exact(text: impl Into<String>) -> Self {
        let text = Zeroizing::new(text.into());
        // A copy of its own length: a buffer that grew may have left others behind.
        Self(Zeroizing::new(text.as_str().to_owned()))
    }

    /// Returns the secret itself. Callers must not log or store it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns `prefix` followed by the secret, marked sensitive so that HTTP libraries neither
    /// print it nor put it in an HPACK dynamic table (RFC 7541 §7.1.3).
    ///
    /// # Errors
    /// Fails if the secret holds a byte that may not occur in a header value (RFC 9110 §5.5).
    pub fn to_header(&self, prefix: &str) -> Result<HeaderValue, InvalidHeaderValue> {
        let joined = Zeroizing::new(format!("{prefix}{}", self.expose()));
        let mut value = HeaderValue::from_str(&joined)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_debug_output_contains_the_secret() {
        let secret = Secret::new("hunter2\n");
        let header = secret.to_header("Bearer ").unwrap();

        assert_eq!(header, "Bearer hunter2");
        assert!(!format!("{secret:?} {header:?}").contains("hunter2"));
    }
}
