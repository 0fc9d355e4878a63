//! Local replies: problem details (RFC 9457) and `Proxy-Status` (RFC 9209). Pure functions.

use bytes::Bytes;
use http::StatusCode;
use http::header::HeaderValue;
use percent_encoding::{AsciiSet, CONTROLS};

use super::Error;

/// The `Via` of every local reply (RFC 9110 §7.6.3).
pub const VIA: HeaderValue = HeaderValue::from_static("1.1 countersign");

/// One local reply, ready to be written.
#[derive(Debug)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// The headers, spelled for HTTP/1.1.
    pub fields: Vec<(&'static str, HeaderValue)>,
    /// The body, JSON.
    pub body: Bytes,
}

impl Problem {
    /// Returns the reply for `refusal`. `vendor`: the one that matched.
    #[must_use]
    pub fn new(refusal: Error, vendor: Option<&str>, request_id: &HeaderValue) -> Self {
        let verdict = refusal.verdict();
        let body = serde_json::json!({
            "type": format!("urn:countersign:{}", verdict.reason),
            "title": verdict.status.canonical_reason().unwrap_or("Error"),
            "status": verdict.status.as_u16(),
            "detail": verdict.detail,
            "reason": verdict.reason,
            "vendor": vendor,
            "request_id": request_id.to_str().unwrap_or_default(),
        })
        .to_string();
        let json = HeaderValue::from_static("application/problem+json");
        let mut fields = fields(refusal, json, body.len(), request_id);
        if refusal == Error::UnknownCaller {
            let challenge = HeaderValue::from_static("Bearer realm=\"countersign\"");
            fields.push(("WWW-Authenticate", challenge));
        }
        if refusal == Error::MethodNotAllowed {
            let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
            fields.push(("Allow", methods));
        }
        Self {
            status: verdict.status,
            fields,
            body: Bytes::from(body),
        }
    }

    /// Returns the reply to a gRPC call, whose clients read the status from the trailers, or from
    /// the headers of a response that has nothing else
    /// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, Trailers-Only).
    #[must_use]
    pub fn for_grpc(refusal: Error, request_id: &HeaderValue) -> Self {
        let verdict = refusal.verdict();
        let grpc = HeaderValue::from_static("application/grpc");
        let mut fields = fields(refusal, grpc, 0, request_id);
        let status = grpc_status(verdict.status.as_u16());
        fields.push(("grpc-status", HeaderValue::from(status)));
        let message = format!("{}: {}", verdict.reason, verdict.detail);
        let message = percent_encoding::utf8_percent_encode(&message, IN_MESSAGES).to_string();
        fields.extend(HeaderValue::from_str(&message).map(|message| ("grpc-message", message)));
        Self {
            status: StatusCode::OK,
            fields,
            body: Bytes::new(),
        }
    }

    /// Returns the whole reply for HTTP/1.1, after which the connection is closed.
    #[must_use]
    pub fn to_http1(&self) -> Vec<u8> {
        let mut reply = format!("HTTP/1.1 {}\r\n", self.status).into_bytes();
        for (name, value) in &self.fields {
            reply.extend_from_slice(name.as_bytes());
            reply.extend_from_slice(b": ");
            reply.extend_from_slice(value.as_bytes());
            reply.extend_from_slice(b"\r\n");
        }
        reply.extend_from_slice(b"Connection: close\r\n\r\n");
        reply.extend_from_slice(&self.body);
        reply
    }
}

/// Returns the headers of every local reply.
fn fields(
    refusal: Error,
    content_type: HeaderValue,
    length: usize,
    request_id: &HeaderValue,
) -> Vec<(&'static str, HeaderValue)> {
    let verdict = refusal.verdict();
    let proxy_status = format!(
        "countersign; error={}; details=\"{}\"",
        verdict.proxy_error, verdict.reason
    );
    let mut fields = vec![
        ("Content-Type", content_type),
        ("Content-Length", HeaderValue::from(length)),
        ("Cache-Control", HeaderValue::from_static("no-store")),
        ("Via", VIA),
        ("X-Request-Id", request_id.clone()),
    ];
    // Made of constants of the table, so it is always a valid header value.
    fields.extend(HeaderValue::from_str(&proxy_status).map(|value| ("Proxy-Status", value)));
    if let Some(seconds) = refusal.retry_after() {
        fields.push(("Retry-After", HeaderValue::from(seconds)));
    }
    fields
}

/// The bytes that `grpc-message` escapes: all but printable ASCII, and the escape itself.
const IN_MESSAGES: &AsciiSet = &CONTROLS.add(b'%');

/// Returns the gRPC status for an HTTP status, as clients map it themselves
/// (<https://grpc.github.io/grpc/core/md_doc_http-grpc-status-mapping.html>), but more exact where
/// a refusal says more: limits are `RESOURCE_EXHAUSTED`, timeouts `DEADLINE_EXCEEDED`, and a method
/// that never passes is `UNIMPLEMENTED`.
fn grpc_status(status: u16) -> u16 {
    match status {
        401 => 16,
        403 => 7,
        404 | 405 => 12,
        408 | 504 => 4,
        413 | 414 | 429 | 431 => 8,
        421 | 502 | 503 => 14,
        // 400 and our own failure are INTERNAL.
        _ => 13,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_caller_reads_the_reason_and_when_to_come_back() {
        let refusal = Error::CredentialUnavailable {
            retry_after: Duration::from_millis(200),
        };
        let id = HeaderValue::from_static("id-1");
        let problem = Problem::new(refusal, Some("v"), &id);
        let field = |name: &str| {
            let (_, value) = problem.fields.iter().find(|(field, _)| *field == name)?;
            value.to_str().ok()
        };
        let body: serde_json::Value = serde_json::from_slice(&problem.body).unwrap();

        assert_eq!(problem.status, 503);
        assert_eq!(body["reason"], "credential_unavailable");
        assert_eq!(body["vendor"], "v");
        assert_eq!(body["request_id"], "id-1");
        assert_eq!(field("Retry-After"), Some("1"));
        assert_eq!(
            field("Proxy-Status"),
            Some("countersign; error=proxy_internal_response; details=\"credential_unavailable\"")
        );
    }
    #[test]
    fn a_grpc_call_gets_its_status_in_fields_and_no_body() {
        let id = HeaderValue::from_static("id-1");
        for (refusal, status) in [
            (Error::UnknownCaller, "16"),
            (Error::Forbidden, "7"),
            (Error::RefusedPath, "7"),
            (Error::NoVendor, "12"),
            (Error::MethodNotAllowed, "12"),
            (Error::BadRequest("100 % wrong, é"), "13"),
            (Error::BodyTooLarge, "8"),
            (Error::HeadTooLarge, "8"),
            (Error::Overloaded, "14"),
            (Error::UpstreamUnreachable, "14"),
            (Error::UpstreamTimeout, "4"),
            (Error::BodyTimeout, "4"),
            (Error::Internal, "13"),
        ] {
            let problem = Problem::for_grpc(refusal, &id);
            let field = |name: &str| {
                let (_, value) = problem.fields.iter().find(|(field, _)| *field == name)?;
                value.to_str().ok()
            };
            assert_eq!(field("grpc-status"), Some(status), "{refusal:?}");
            assert_eq!((problem.status, problem.body.len()), (StatusCode::OK, 0));
            assert_eq!(field("Content-Type"), Some("application/grpc"));
            let reason = format!("details=\"{}\"", refusal.verdict().reason);
            assert!(field("Proxy-Status").is_some_and(|told| told.ends_with(&reason)));
            if let Error::BadRequest(_) = refusal {
                let message = "bad_request: 100 %25 wrong, %C3%A9";
                assert_eq!(field("grpc-message"), Some(message));
            }
        }
    }
}
