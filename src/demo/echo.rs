//! An upstream without any login that answers as the request's query tells it to: for tests of
//! what passes through the proxy unchanged.
//!
//! | parameter | meaning |
//! | --- | --- |
//! | `status` | the status, default 200 |
//! | `reason` | the reason phrase |
//! | `header` | `Name:value`, may repeat |
//! | `size` | a body of this many `x` |
//! | `body` | the body itself |
//! | `echo` | the body is the value of this request field |
//! | `cut` | closes the connection after this many bytes of the body |
//! | `wait` | milliseconds before the answer |
//!
//! Without `size`, `body` and `echo` the body is `METHOD target`.

use std::time::Duration;

use super::stand::{Answer, Part, Seen};

/// The upstream; see the module.
pub(crate) struct Echo;

impl Part for Echo {
    fn answer(&self, seen: &Seen) -> Answer {
        let mut answer = Answer::empty(200);
        answer.body = format!("{} {}", seen.method, seen.target).into_bytes();
        let (_, query) = seen.target.split_once('?').unwrap_or_default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            // A number that is none is a mistake in the test: it gets 0 and finds out.
            let number = || value.parse::<usize>().unwrap_or(0);
            match name.as_ref() {
                "status" => answer.status = value.parse().unwrap_or(500),
                "reason" => answer.reason = Some(value.into_owned()),
                "header" => {
                    let (name, value) = value.split_once(':').unwrap_or((&value, ""));
                    answer.fields.push((name.to_owned(), value.to_owned()));
                }
                "size" => answer.body = vec![b'x'; number()],
                "body" => answer.body = value.into_owned().into_bytes(),
                "echo" => answer.body = seen.field(&value).unwrap_or_default().into(),
                "cut" => answer.cut = Some(number()),
                "wait" => answer.wait = Duration::from_millis(value.parse().unwrap_or(0)),
                _ => {}
            }
        }
        answer
    }
}
