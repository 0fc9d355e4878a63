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
