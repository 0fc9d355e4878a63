//! The parts of the phases in `request.rs` that need pingora's session.

pub(super) mod admit;
pub(super) mod authority;
pub(super) mod bodyless;
pub(super) mod echo;
pub(super) mod local_reply;
pub(super) mod login;
pub(super) mod report;
pub(super) mod retry;
pub(super) mod rewrite;

use http::StatusCode;

/// The outcome of an admission that refused nothing.
pub(in crate::request) enum Admitted {
    Forward,
    /// The request was a login; this is the response.
    LoggedIn(StatusCode, Option<serde_json::Value>),
}
