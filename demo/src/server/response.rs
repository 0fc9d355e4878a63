//! The response of a mock server, which may break the rules of HTTP.

use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use hyper::body::Frame;
use hyper::ext::ReasonPhrase;
use serde_json::Value;

/// The response of a mock server.
pub(crate) struct MockResponse {
    /// The status.
    pub(crate) status: u16,
    /// Reason phrase other than the status's own; some clients depend on it.
    pub(crate) reason: Option<String>,
    /// Header fields.
    pub(crate) fields: Vec<(String, String)>,
    /// The body.
    pub(crate) body: Vec<u8>,
    /// Number of bytes of the body after which the connection is closed, although `Content-Length`
    /// is larger.
    pub(crate) cut: Option<usize>,
    /// Delay before the response.
    pub(crate) wait: Duration,
}

impl MockResponse {
    /// Returns a response without a body.
    pub(crate) fn empty(status: u16) -> Self {
        Self {
            status,
            reason: None,
            fields: Vec::new(),
            body: Vec::new(),
            cut: None,
            wait: Duration::ZERO,
        }
    }

    /// Returns a JSON response.
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self {
            body: body.to_string().into_bytes(),
            ..Self::empty(status)
        }
        .with("Content-Type", "application/json")
    }

    /// Adds a header field.
    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.fields.push((name.to_owned(), value.into()));
        self
    }

    /// Sets the reason phrase.
    pub(crate) fn with_reason(mut self, reason: &str) -> Self {
        self.reason = Some(reason.to_owned());
        self
    }

    /// Converts it for the HTTP library. A response that cannot be sent (a test asked for an
    /// invalid field name) becomes a 500 with the error as its body.
    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.fields {
            response = response.header(name, value);
        }
        if let Some(reason) = self
            .reason
            .and_then(|reason| ReasonPhrase::try_from(reason).ok())
        {
            response = response.extension(reason);
        }
        let body = match self.cut {
            Some(at) => {
                response = response.header("Content-Length", self.body.len());
                let mut body = Bytes::from(self.body);
                body.truncate(at);
                Body::new(TruncatedBody::Part(body))
            }
            None => Body::from(self.body),
        };
        response.body(body).unwrap_or_else(|cause| {
            let mut response = Response::new(Body::from(cause.to_string()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        })
    }
}

/// A body that is aborted after its first part.
enum TruncatedBody {
    Part(Bytes),
    /// The library flushes the part while it waits for more, but drops it on an error.
    Pause,
    End,
}

impl hyper::body::Body for TruncatedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match mem::replace(&mut *self, Self::End) {
            Self::Part(part) => {
                *self = Self::Pause;
                Poll::Ready(Some(Ok(Frame::data(part))))
            }
            Self::Pause => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Self::End => Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into()))),
        }
    }
}
