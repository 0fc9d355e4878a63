//! What the phases in `request.rs` are made of where it takes pingora's session.

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

/// What becomes of a request that was taken in.
pub(in crate::request) enum Admitted {
    Forward,
    /// It was a login, and this is the answer.
    LoggedIn(StatusCode, Option<serde_json::Value>),
}
