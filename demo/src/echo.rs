//! An upstream without a login whose response is specified by the request's query: for tests of
//! what passes through the proxy unchanged.
//!
//! | parameter | meaning |
//! | --- | --- |
//! | `status` | the status, default 200 |
//! | `reason` | the reason phrase |
//! | `header` | `Name:value`, may repeat |
//! | `size` | a body of this many `x` |
//! | `body` | the body itself |
//! | `echo` | the value of this request field, appended to the body of `size` or `body` |
//! | `into` | `Name:field`: a response field `Name` with the value of this request field |
//! | `code` | `gzip`: the body so far in that coding, stored rather than compressed |
//! | `cut` | closes the connection after this many bytes of the body |
//! | `wait` | milliseconds before the response |
//!
//! Without `size`, `body` and `echo` the body is `METHOD target`.

use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::server::{Handler, MockResponse, RecordedRequest};

/// The upstream; see the module's documentation.
pub(crate) struct Echo;

impl Handler for Echo {
    fn respond(&self, request: &RecordedRequest) -> MockResponse {
        let mut response = MockResponse::empty(200);
        let (_, query) = request.target.split_once('?').unwrap_or_default();
        let mut given = false;
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            // An invalid number is a bug in the test, which sees it by the 0.
            let number = || value.parse::<usize>().unwrap_or(0);
            match name.as_ref() {
                "status" => response.status = value.parse().unwrap_or(500),
                "reason" => response.reason = Some(value.into_owned()),
                "header" => {
                    let (name, value) = value.split_once(':').unwrap_or((&value, ""));
                    response.fields.push((name.to_owned(), value.to_owned()));
                }
                "size" => response.body = vec![b'x'; number()],
                "body" => response.body = value.as_bytes().to_vec(),
                "echo" => {
                    let echoed = request.field(&value).unwrap_or_default();
                    response.body.extend_from_slice(echoed.as_bytes());
                }
                "into" => {
                    let (name, field) = value.split_once(':').unwrap_or((&value, ""));
                    let echoed = request.field(field).unwrap_or_default().to_owned();
                    response.fields.push((name.to_owned(), echoed));
                }
                "code" => {
                    response.body = gzip(&response.body);
                    response
                        .fields
                        .push(("Content-Encoding".to_owned(), "gzip".to_owned()));
                }
                "cut" => response.cut = Some(number()),
                "wait" => response.wait = Duration::from_millis(value.parse().unwrap_or(0)),
                _ => {}
            }
            given |= matches!(name.as_ref(), "size" | "body" | "echo");
        }
        if !given {
            response.body = format!("{} {}", request.method, request.target).into_bytes();
        }
        response
    }
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    // Writing to memory cannot fail; if it did, a test would see it by the body.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default()
}
