//! Answers of our own: problem details (RFC 9457) and `Proxy-Status` (RFC 9209). Pure.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

use crate::error::Error;

/// Added to every answer (RFC 9110 §7.6.3).
pub const VIA: HeaderValue = HeaderValue::from_static("1.1 countersign");

/// One answer of our own, ready to be written.
#[derive(Debug)]
pub struct Problem {
    /// Its status.
    pub status: StatusCode,
    /// Its fields, spelled for HTTP/1.1.
    pub fields: Vec<(&'static str, HeaderValue)>,
    /// Its body, JSON.
    pub body: Bytes,
}

impl Problem {
    /// What a caller is told of `stop`. `vendor` is the one that matched; `grpc` adds what gRPC
    /// clients look for instead of a status.
    #[must_use]
    pub fn new(stop: Error, vendor: Option<&str>, request_id: &HeaderValue, grpc: bool) -> Self {
        let verdict = stop.verdict();
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
        let proxy_status = format!(
            "countersign; error={}; details=\"{}\"",
            verdict.proxy_error, verdict.reason
        );
        let mut fields = vec![
            (
                "Content-Type",
                HeaderValue::from_static("application/problem+json"),
            ),
            ("Content-Length", HeaderValue::from(body.len())),
            ("Cache-Control", HeaderValue::from_static("no-store")),
            ("Via", VIA),
            ("X-Request-Id", request_id.clone()),
        ];
        // Made of constants of the table: always a field value.
        fields.extend(HeaderValue::from_str(&proxy_status).map(|value| ("Proxy-Status", value)));
        if let Some(seconds) = stop.retry_after() {
            fields.push(("Retry-After", HeaderValue::from(seconds)));
        }
        if stop == Error::UnknownCaller {
            let challenge = HeaderValue::from_static("Bearer realm=\"countersign\"");
            fields.push(("WWW-Authenticate", challenge));
        }
        if stop == Error::MethodNotAllowed {
            let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
            fields.push(("Allow", methods));
        }
        if grpc {
            let status = grpc_status(verdict.status.as_u16());
            fields.push(("grpc-status", HeaderValue::from(status)));
            fields.push(("grpc-message", HeaderValue::from_static(verdict.reason)));
        }
        Self {
            status: verdict.status,
            fields,
            body: Bytes::from(body),
        }
    }

    /// The whole answer for HTTP/1.1, after which the connection is closed.
    #[must_use]
    pub fn to_http1(&self) -> Vec<u8> {
        let mut answer = format!("HTTP/1.1 {}\r\n", self.status).into_bytes();
        for (name, value) in &self.fields {
            answer.extend_from_slice(name.as_bytes());
            answer.extend_from_slice(b": ");
            answer.extend_from_slice(value.as_bytes());
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"Connection: close\r\n\r\n");
        answer.extend_from_slice(&self.body);
        answer
    }
}

/// Whether a request is a gRPC call.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// <https://grpc.github.io/grpc/core/md_doc_http-grpc-status-mapping.html>
fn grpc_status(status: u16) -> u16 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_caller_reads_the_reason_and_when_to_come_back() {
        let stop = Error::CredentialUnavailable {
            retry_after: Duration::from_millis(200),
        };
        let id = HeaderValue::from_static("id-1");
        let problem = Problem::new(stop, Some("v"), &id, true);
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
        assert_eq!(field("grpc-status"), Some("14"));
        assert_eq!(
            field("Proxy-Status"),
            Some("countersign; error=proxy_internal_response; details=\"credential_unavailable\"")
        );
    }
}
