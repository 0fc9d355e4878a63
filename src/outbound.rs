//! The way out of the company: which CONNECT proxy, if any, leads to a host. Decided here for
//! requests and token calls alike, so that both take the same way.

use http::HeaderValue;
use hyper_util::client::proxy::matcher::Matcher;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

/// The proxies in force for one vendor.
#[derive(Debug)]
pub struct Outbound {
    /// `proxy:` of the vendor: for every host.
    fixed: Option<Url>,
    /// `HTTPS_PROXY`, for https hosts; `NO_PROXY` is in the matcher, which reads it as other tools
    /// do.
    environment: Option<(Url, Matcher)>,
}

/// One proxy to go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// Host name or address of the proxy, IPv6 without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `Proxy-Authorization`, where the proxy's URL has user information. Sensitive.
    pub authorization: Option<HeaderValue>,
}

impl Outbound {
    /// The proxies for a vendor whose `proxy:` is `fixed`.
    #[must_use]
    pub fn new(fixed: Option<&Url>) -> Self {
        let variable = |name: &str| {
            std::env::var(name)
                .or_else(|_| std::env::var(name.to_lowercase()))
                .unwrap_or_default()
        };
        Self::with(fixed, &variable("HTTPS_PROXY"), &variable("NO_PROXY"))
    }

    fn with(fixed: Option<&Url>, https_proxy: &str, no_proxy: &str) -> Self {
        let written = if https_proxy.contains("://") {
            https_proxy.to_owned()
        } else {
            format!("http://{https_proxy}")
        };
        let proxy = Url::parse(&written).ok().filter(Url::has_host);
        Self {
            fixed: fixed.cloned(),
            environment: proxy.map(|proxy| {
                let matcher = Matcher::builder().https(proxy.as_str()).no(no_proxy);
                (proxy, matcher.build())
            }),
        }
    }

    /// The proxy that leads to `destination`; `None`: there is a direct way.
    #[must_use]
    pub fn via(&self, destination: &Url) -> Option<Via> {
        let proxy = self.url(destination)?;
        let host = match proxy.host()? {
            url::Host::Domain(name) => name.to_owned(),
            url::Host::Ipv4(address) => address.to_string(),
            url::Host::Ipv6(address) => address.to_string(),
        };
        Some(Via {
            host,
            // What squid and most others listen on.
            port: proxy.port_or_known_default().unwrap_or(3128),
            authorization: basic(&proxy),
        })
    }

    /// The same as a URL, user information included, for clients that speak to proxies themselves.
    #[must_use]
    pub fn url(&self, destination: &Url) -> Option<Url> {
        if let Some(fixed) = &self.fixed {
            return Some(fixed.clone());
        }
        let (proxy, matcher) = self.environment.as_ref()?;
        matcher.intercept(&destination.as_str().parse().ok()?)?;
        Some(proxy.clone())
    }
}

/// Why a proxy led nowhere.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The connection to it broke.
    #[error("the outbound proxy closed the connection: {0}")]
    Broken(#[from] std::io::Error),
    /// It answered something that is no answer.
    #[error("the outbound proxy {0}")]
    Garbled(&'static str),
    /// It answered, and the answer is no. Holds the status.
    #[error("the outbound proxy refused the CONNECT with {0}")]
    Refused(String),
}

/// Longest head of a proxy's answer, bytes.
const MAX_ANSWER: usize = 8 * 1024;

impl Via {
    /// Asks the proxy at the other end of `stream` for `target`, `host:port` (RFC 9110 §9.3.6).
    /// After that the target is at the other end.
    ///
    /// # Errors
    /// When the proxy does not lead there.
    pub async fn tunnel(&self, stream: &mut TcpStream, target: &str) -> Result<(), TunnelError> {
        let mut head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            head.extend_from_slice(b"Proxy-Authorization: ");
            head.extend_from_slice(authorization.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        stream.write_all(&head).await?;

        let mut answer = Vec::with_capacity(512);
        loop {
            let read = stream.read_buf(&mut answer).await?;
            if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
                // A vendor says nothing before our handshake: whatever follows is not its.
                if end + 4 < answer.len() {
                    return Err(TunnelError::Garbled("sent more than its answer"));
                }
                break;
            }
            if read == 0 || answer.len() > MAX_ANSWER {
                return Err(TunnelError::Garbled("did not answer the CONNECT"));
            }
        }
        let status = answer.get(9..12).unwrap_or_default();
        if status.first() != Some(&b'2') {
            let status = String::from_utf8_lossy(status).into_owned();
            return Err(TunnelError::Refused(status));
        }
        Ok(())
    }
}

/// The Basic credential in a URL's user information.
fn basic(proxy: &Url) -> Option<HeaderValue> {
    use base64::Engine;

    if proxy.username().is_empty() && proxy.password().is_none() {
        return None;
    }
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    let mut pair = zeroize::Zeroizing::new(decoded(proxy.username()));
    pair.push(b':');
    pair.extend(decoded(proxy.password().unwrap_or_default()));
    let encoded = base64::engine::general_purpose::STANDARD.encode(&*pair);
    crate::secret::Secret::new(encoded).to_header("Basic ").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(fixed: Option<&str>, environment: (&str, &str), to: &str) -> Option<(String, u16)> {
        let fixed = fixed.map(|url| Url::parse(url).unwrap());
        Outbound::with(fixed.as_ref(), environment.0, environment.1)
            .via(&Url::parse(to).unwrap())
            .map(|via| (via.host, via.port))
    }

    #[test]
    fn a_vendors_own_proxy_wins_and_the_environment_knows_exceptions() {
        let corp = Some(("egress.corp".to_owned(), 3128));
        let environment = ("http://egress.corp:3128", "internal.corp,10.0.0.0/8");
        let none = ("", "");
        for (fixed, environment, to, want) in [
            (None, none, "https://a.test", None),
            (None, environment, "https://a.test", corp.clone()),
            (None, environment, "https://x.internal.corp", None),
            (None, environment, "https://10.1.2.3", None),
            (None, environment, "http://a.test", None),
            (
                Some("http://egress.corp:3128"),
                none,
                "http://a.test",
                corp.clone(),
            ),
            (
                Some("http://egress.corp:3128"),
                ("http://other:1", "*"),
                "https://a.test",
                corp,
            ),
            (
                None,
                ("[::1]:8888", ""),
                "https://a.test",
                Some(("::1".into(), 8888)),
            ),
        ] {
            assert_eq!(via(fixed, environment, to), want, "{to}");
        }
    }

    #[test]
    fn user_information_becomes_a_credential_that_is_not_printed() {
        for outbound in [
            Outbound::with(
                Some(&Url::parse("http://us%20er:p%40ss@a:1").unwrap()),
                "",
                "",
            ),
            Outbound::with(None, "http://us%20er:p%40ss@a:1", ""),
        ] {
            let via = outbound.via(&Url::parse("https://b").unwrap()).unwrap();
            assert_eq!(via.authorization.clone().unwrap(), "Basic dXMgZXI6cEBzcw==");
            assert!(!format!("{via:?}").contains("dXMg"));
        }
    }
}
