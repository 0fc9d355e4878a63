//! Running it: starting, stopping, looking at it, letting callers in; the real binary each time.

mod admin;
mod broken_keys;
mod callers;
mod certificate_ends;
mod commands;
#[cfg(feature = "demo")]
mod demo;
mod handover;
mod rejected;
mod secrecy;
mod stopping;
mod tls;
mod words;

use std::time::Duration;

use crate::support::Proxy;
use crate::support::front::{Answer, answer};

/// A proxy.yaml with vendor `v` in front of `upstream`; `head` at the top level, `more` within the
/// vendor.
fn yaml(head: &str, upstream: &str, more: &str) -> String {
    format!(
        "\
admin: {{ bind: 127.0.0.1:0 }}
{head}vendors:
  v:
    upstream: {upstream}
    allow_plaintext: true
{more}"
    )
}

/// The usual head: a listener, and no waiting at the end.
const HEAD: &str = "listeners: [ { bind: 127.0.0.1:0 } ]\ndrain: { delay: 0s }\n";

/// A client that follows nothing and keeps connections.
fn client() -> reqwest::Client {
    countersign::tls::install_provider();
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(25))
        .build()
        .unwrap()
}

/// A GET with these fields.
async fn get(proxy: &Proxy, target: &str, fields: &[(&str, &str)]) -> Answer {
    let mut request = client().get(format!("http://{}{target}", proxy.data));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    answer(request).await
}
