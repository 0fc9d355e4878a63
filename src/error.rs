//! The refusals, and what the caller is told about each.
//!
//! One enum, one table. Adding a variant makes the compiler ask for its status, its reason and its
//! sentence; there is no other place to update. A cause never reaches a caller: it could contain
//! hosts, files or, from a careless library, a secret.

pub mod problem;

use std::fmt;
use std::time::Duration;

use http::StatusCode;

/// The reason why a request was not forwarded, or why its response is not the vendor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The head can be read in more than one way. Contains the rule that it breaks.
    BadRequest(&'static str),
    /// As [`Error::BadRequest`], and what follows on the connection cannot be trusted either.
    BadFraming(&'static str),
    /// The request target is over 16 KiB.
    TargetTooLong,
    /// The head is over 64 KiB.
    HeadTooLarge,
    /// The caller sent no credential, or one we do not know.
    UnknownCaller,
    /// The caller is known, and may not do this.
    Forbidden,
    /// A browser sent this for a page of another site.
    CrossSite,
    /// A path of the vendor's that logs in, issues tokens or shows secrets.
    RefusedPath,
    /// COPY or MOVE with a `Destination`: a second path that no rule was asked about.
    SecondPath,
    /// No vendor's prefix or host matches.
    NoVendor,
    /// TRACE or CONNECT.
    MethodNotAllowed,
    /// Over the vendor's `limits.body`.
    BodyTooLarge,
    /// The caller stopped sending its body.
    BodyTimeout,
    /// SNI and Host name different vendors.
    Misdirected,
    /// No connection to the vendor, or a broken one.
    UpstreamUnreachable,
    /// We hold no usable credential for the vendor. Says nothing about the caller's own.
    CredentialUnavailable {
        /// Time until another request may succeed; 1 s to 60 s.
        retry_after: Duration,
    },
    /// The caller's or the vendor's rate is used up.
    RateLimited {
        /// Time until the next request is permitted.
        retry_after: Duration,
    },
    /// The vendor's `limits.in_flight` is reached.
    Overloaded,
    /// Our own resources are used up. Contains which.
    Busy(&'static str),
    /// The vendor has failed several times in a row, and its breaker is open.
    CircuitOpen {
        /// Time until one request will be let through as a probe.
        retry_after: Duration,
        /// The last failure.
        fault: Fault,
    },
    /// The vendor requested a pause with `Retry-After`, and `limits.honour_retry_after` grants it.
    HeldBack {
        /// The rest of the pause.
        retry_after: Duration,
        /// Requested with a 503; otherwise with a 429.
        busy: bool,
    },
    /// The vendor's compressed response repeats our credential, or cannot be searched for it.
    CredentialEchoed,
    /// The vendor took too long.
    UpstreamTimeout,
    /// A defect of ours.
    Internal,
}

/// One row of the table: the caller's view of an [`Error`].
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// HTTP status.
    pub status: StatusCode,
    /// The `reason` in the body, the access log and `countersign_refused_total`. A bounded set.
    pub reason: &'static str,
    /// Event and remedy, for the person who reads the body.
    pub detail: &'static str,
    /// The proxy error type (RFC 9209 §2.3).
    pub proxy_error: &'static str,
}

/// The reason of everything that is wrong with a request itself.
pub const BAD_REQUEST: &str = "bad_request";

/// A failure of a request that counts against the vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No connection, no TLS, or a connection that broke.
    Unreachable,
    /// A timeout of ours.
    TimedOut,
    /// The vendor's own 502, 503 or 504.
    Status(u16),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("it could not be reached"),
            Self::TimedOut => f.write_str("it took too long"),
            Self::Status(status) => write!(f, "it answered {status}"),
        }
    }
}

impl Error {
    /// The chunks of a request's body are none.
    pub(crate) const INVALID_CHUNKS: Self = Self::BadFraming("The body's chunks cannot be read.");

    /// Returns the row for this error.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "one table")]
    pub fn verdict(self) -> Verdict {
        let (status, reason, detail, proxy_error) = match self {
            Self::BadRequest(detail) | Self::BadFraming(detail) => (
                StatusCode::BAD_REQUEST,
                BAD_REQUEST,
                detail,
                "http_request_error",
            ),
            Self::TargetTooLong => (
                StatusCode::URI_TOO_LONG,
                BAD_REQUEST,
                "The request target is over 16 KiB.",
                "http_request_error",
            ),
            Self::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                BAD_REQUEST,
                "The request head is over 64 KiB.",
                "http_request_error",
            ),
            Self::UnknownCaller => (
                StatusCode::UNAUTHORIZED,
                "unknown_caller",
                "Send your Countersign key, for example as X-Countersign-Key. The proxy adds the vendor's credential itself.",
                "http_request_denied",
            ),
            Self::Forbidden => (
                StatusCode::FORBIDDEN,
                "forbidden",
                "Your key is known but does not allow this request; ask for an entry in its allow list.",
                "http_request_denied",
            ),
            Self::CrossSite => (
                StatusCode::FORBIDDEN,
                "forbidden",
                "Without configured callers, only programs on this machine may call, by a loopback name; web pages may not.",
                "http_request_denied",
            ),
            Self::RefusedPath => (
                StatusCode::FORBIDDEN,
                "refused_path",
                "This path logs in, issues or revokes credentials, which the proxy does itself, or it is not on the vendor's allow list.",
                "http_request_denied",
            ),
            Self::SecondPath => (
                StatusCode::FORBIDDEN,
                "refused_path",
                "COPY and MOVE with a Destination are not forwarded: no rule checks that second path.",
                "http_request_denied",
            ),
            Self::NoVendor => (
                StatusCode::NOT_FOUND,
                "no_vendor",
                "No vendor's prefix or host matches this request.",
                "destination_not_found",
            ),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "TRACE and CONNECT are not forwarded.",
                "http_request_denied",
            ),
            Self::BodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "The request body is over the vendor's limits.body; for a login, over 8 KiB.",
                "http_request_denied",
            ),
            Self::BodyTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                BAD_REQUEST,
                "The request body stopped arriving.",
                "http_request_error",
            ),
            Self::Misdirected => (
                StatusCode::MISDIRECTED_REQUEST,
                "misdirected",
                "The name in the TLS handshake and the Host lead to different vendors; open a new connection for this host.",
                "http_request_denied",
            ),
            Self::UpstreamUnreachable => (
                StatusCode::BAD_GATEWAY,
                "upstream_unreachable",
                "The vendor could not be reached, failed the TLS handshake or violated the protocol; the proxy's log has the cause.",
                "destination_unavailable",
            ),
            Self::CredentialUnavailable { .. } => (
                // Not 401: that would tell the caller to fix a key that is fine.
                StatusCode::SERVICE_UNAVAILABLE,
                "credential_unavailable",
                "The proxy has no valid credential for this vendor at the moment; its /status has the cause.",
                "proxy_internal_response",
            ),
            Self::RateLimited { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                "The caller's rate or the vendor's limits.rate is exceeded.",
                "http_request_denied",
            ),
            Self::Overloaded => (
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "The number of requests in flight to this vendor has reached limits.in_flight.",
                "connection_limit_reached",
            ),
            Self::Busy(detail) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                detail,
                "proxy_internal_response",
            ),
            Self::CircuitOpen { fault, .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "circuit_open",
                match fault {
                    Fault::Unreachable => {
                        "The vendor could not be reached several times in a row. The proxy refuses requests until a probe gets a response."
                    }
                    Fault::TimedOut => {
                        "The vendor took too long several times in a row. The proxy refuses requests until a probe gets a response."
                    }
                    Fault::Status(_) => {
                        "The vendor responded with 502, 503 or 504 several times in a row. The proxy refuses requests until a probe gets another response."
                    }
                },
                "destination_unavailable",
            ),
            Self::HeldBack { busy: false, .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                "The vendor responded with 429 and Retry-After; limits.honour_retry_after holds requests back until then.",
                "http_request_denied",
            ),
            Self::HeldBack { busy: true, .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "circuit_open",
                "The vendor responded with 503 and Retry-After; limits.honour_retry_after holds requests back until then.",
                "destination_unavailable",
            ),
            Self::CredentialEchoed => (
                StatusCode::BAD_GATEWAY,
                "credential_echoed",
                "The vendor's compressed response repeats the credential that the proxy added, or cannot be searched for it (compressed twice, or too strongly). Without Accept-Encoding it is masked instead.",
                "http_response_incomplete",
            ),
            Self::UpstreamTimeout => (
                StatusCode::GATEWAY_TIMEOUT,
                "upstream_timeout",
                "The vendor took too long.",
                "http_response_timeout",
            ),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "The proxy failed; its log has the cause.",
                "proxy_internal_error",
            ),
        };
        Verdict {
            status,
            reason,
            detail,
            proxy_error,
        }
    }

    /// Returns `Retry-After` in seconds, where waiting helps.
    #[must_use]
    pub fn retry_after(self) -> Option<u64> {
        match self {
            Self::CredentialUnavailable { retry_after } => Some(retry_after.as_secs().clamp(1, 60)),
            Self::RateLimited { retry_after }
            | Self::CircuitOpen { retry_after, .. }
            | Self::HeldBack { retry_after, .. } => Some(whole_seconds(retry_after)),
            Self::Overloaded | Self::Busy(_) => Some(1),
            Self::BadRequest(_)
            | Self::BadFraming(_)
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::UnknownCaller
            | Self::Forbidden
            | Self::CrossSite
            | Self::RefusedPath
            | Self::SecondPath
            | Self::NoVendor
            | Self::MethodNotAllowed
            | Self::BodyTooLarge
            | Self::BodyTimeout
            | Self::Misdirected
            | Self::UpstreamUnreachable
            | Self::CredentialEchoed
            | Self::UpstreamTimeout
            | Self::Internal => None,
        }
    }
}

/// `Retry-After` has no shorter time than a second (RFC 9110 §10.2.3).
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_wait_are_rounded_up() {
        for (milliseconds, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (2500, 3)] {
            let wait = whole_seconds(Duration::from_millis(milliseconds));
            assert_eq!(wait, seconds, "{milliseconds}");
        }
    }
}
