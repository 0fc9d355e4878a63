//! How a request fails, what that means to its caller, and what a log says about it.

use super::deadlines::Limit;
use crate::downstream::request::Lost;
use crate::error::Error;
use crate::upstream::session::{Broken, BrokenKind};

/// The reason why a request ended without a complete response of the vendor's.
#[derive(Debug)]
pub(super) enum Failure {
    /// We refuse to go on.
    Refused(Error),
    /// A limit in time was reached.
    TimedOut(Limit),
    /// The caller's side ended.
    Caller(Lost),
    /// The vendor's side ended.
    Vendor(Broken),
}

impl Failure {
    /// Returns what the failure means to the caller; `None`: the caller has left.
    pub(super) fn refusal(&self) -> Option<Error> {
        Some(match self {
            Self::Refused(refusal) => *refusal,
            Self::TimedOut(limit) => match limit {
                Limit::Total | Limit::FirstByte | Limit::Idle => Error::UpstreamTimeout,
                Limit::SlowBody => Error::BodyTimeout,
                Limit::Removed => Error::UnknownCaller,
                Limit::Stall | Limit::Drain | Limit::LookAtCaller => return None,
            },
            Self::Caller(Lost::InvalidChunks) => Error::INVALID_CHUNKS,
            Self::Caller(Lost::Gone) => return None,
            Self::Vendor(broken) => match broken.kind {
                BrokenKind::PingTimedOut => Error::UpstreamTimeout,
                BrokenKind::Request => Error::Internal,
                BrokenKind::Closed
                | BrokenKind::Read
                | BrokenKind::Write
                | BrokenKind::Http2
                | BrokenKind::Protocol => Error::UpstreamUnreachable,
            },
        })
    }

    /// Returns the kind of failure, and what more is known, for a log.
    pub(super) fn described(&self) -> (String, Option<&str>) {
        match self {
            Self::Refused(refusal) => (refusal.verdict().reason.to_owned(), None),
            Self::TimedOut(limit) => (limit.to_string(), None),
            Self::Caller(Lost::Gone) => ("the caller left".to_owned(), None),
            Self::Caller(Lost::InvalidChunks) => {
                ("the body's chunks cannot be read".to_owned(), None)
            }
            Self::Vendor(broken) => (broken.kind.to_string(), Some(&broken.cause)),
        }
    }
}
