//! What the phases in `request.rs` are made of where it takes pingora's session.

pub(super) mod admit;
pub(super) mod again;
pub(super) mod bodyless;
pub(super) mod echo;
pub(super) mod lead_back;
pub(super) mod log_in;
pub(super) mod own_answer;
pub(super) mod shown;
pub(super) mod told;

use http::StatusCode;

/// What becomes of a request that was taken in.
pub(in crate::request) enum Admitted {
    Forward,
    /// It was a login, and this is the answer.
    LoggedIn(StatusCode, Option<serde_json::Value>),
}
