//! The phases of a request, in the order in which `exchange.rs` calls them.

pub(super) mod admit;
pub(super) mod authority;
pub(super) mod echo;
pub(super) mod local_reply;
pub(super) mod login;
pub(super) mod report;
pub(super) mod request_head;
pub(super) mod response_head;
pub(super) mod retry;
pub(super) mod rewrite;
