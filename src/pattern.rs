//! Path patterns.

/// One pattern of `refuse:` or `allow:`, compared case-insensitively: `*` within a segment, `**`
/// across segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRule {
    /// `!`: an exception to the rules of the same list.
    pub exception: bool,
    /// Upper-case method; `None`: every method.
    pub method: Option<String>,
    /// The pattern, starting with `/`.
    pub pattern: String,
}
