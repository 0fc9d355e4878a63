//! The CONNECT proxy, if any, that leads to a host. Decided here for requests and token calls
//! alike, so that both take the same route.
//!
//! The environment is read as curl reads it: `https_proxy`, then `HTTPS_PROXY`, for `https://`
//! hosts; `all_proxy`, then `ALL_PROXY`, for all others and where those are not set. An empty
//! variable counts as unset. `no_proxy`, then `NO_PROXY`, lists the hosts that are reached
//! directly. An unusable proxy is an error for every connection through it, never a reason to
//! connect directly.

use std::net::IpAddr;
use std::time::Duration;

use http::HeaderValue;
use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::{Host, Url};

use crate::endpoint::{self, InvalidUrl};

/// The environment variables that specify a proxy, in their order of precedence.
pub const VARIABLES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// The proxies for one vendor.
#[derive(Debug)]
pub struct Outbound {
    /// The vendor's `proxy:`, for every host.
    fixed: Option<Proxy>,
    environment: Environment,
}

/// The environment's settings.
#[derive(Debug, Default)]
struct Environment {
    /// The proxy for `https://` hosts.
    https: Option<Named>,
    /// The proxy for `http://` hosts.
    http: Option<Named>,
    direct: Direct,
}

/// A variable's proxy, or its error.
type Named = Result<Proxy, Unusable>;

/// A variable whose proxy is unusable. Its value is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the environment variable {variable} {wrong}; {hint}", hint = wrong.hint())]
pub struct Unusable {
    /// The variable's name.
    pub variable: &'static str,
    /// The error of its value.
    pub wrong: InvalidUrl,
}

#[derive(Clone)]
struct Proxy {
    /// User information included.
    url: Url,
    via: Via,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.via.fmt(f)
    }
}

/// One proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// Host name or address of the proxy, IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// `Proxy-Authorization`, where the proxy's URL has user information. Sensitive.
    pub authorization: Option<HeaderValue>,
}

impl Outbound {
    /// Returns the proxies for a vendor whose `proxy:` is `fixed`.
    #[must_use]
    pub fn new(fixed: Option<&Url>) -> Self {
        Self::with(fixed, |name| {
            let value = std::env::var_os(name)?;
            // A value that is not text is no URL, and is found to be none.
            Some(value.into_string().unwrap_or_else(|_| "\u{0}".to_owned()))
        })
    }

    fn with(fixed: Option<&Url>, variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| {
                let value = variable(name)?;
                (!value.trim().is_empty()).then_some((*name, value))
            })
        };
        let proxy = |names: &[&'static str]| {
            first(names).map(|(variable, value)| {
                endpoint::proxy(&value)
                    .map(Proxy::new)
                    .map_err(|wrong| Unusable { variable, wrong })
            })
        };
        let direct = first(&["no_proxy", "NO_PROXY"]);
        Self {
            fixed: fixed.cloned().map(Proxy::new),
            environment: Environment {
                https: proxy(&VARIABLES),
                http: proxy(&VARIABLES[2..]),
                direct: direct.map_or_else(Direct::default, |(_, list)| Direct::read(&list)),
            },
        }
    }

    /// Returns the proxy that leads to `destination`; `None`: a direct connection.
    ///
    /// # Errors
    /// Fails if the environment specifies an unusable proxy for it.
    pub fn via(&self, destination: &Url) -> Result<Option<Via>, Unusable> {
        Ok(self.proxy(destination)?.map(|proxy| proxy.via.clone()))
    }

    /// Returns that proxy as a URL, user information included, for clients that speak to proxies
    /// themselves. [`Outbound::via`] has reported the error before.
    #[must_use]
    pub fn url(&self, destination: &Url) -> Option<Url> {
        Some(self.proxy(destination).ok()??.url.clone())
    }

    fn proxy(&self, destination: &Url) -> Result<Option<&Proxy>, Unusable> {
        if let Some(fixed) = &self.fixed {
            return Ok(Some(fixed));
        }
        let named = match destination.scheme() {
            "https" => &self.environment.https,
            _ => &self.environment.http,
        };
        match named {
            Some(_) if self.environment.direct.has(destination) => Ok(None),
            Some(named) => named.as_ref().map(Some).map_err(|unusable| *unusable),
            None => Ok(None),
        }
    }
}

impl Proxy {
    fn new(url: Url) -> Self {
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            // Refused when it was read.
            None => String::new(),
        };
        let via = Via {
            host,
            port: url.port_or_known_default().unwrap_or(80),
            authorization: endpoint::authorization(&url),
        };
        Self { url, via }
    }
}

/// `NO_PROXY`: a list of hosts, separated by commas or blanks. A name matches itself and all names
/// below it, with or without a dot in front; an address may be a network (`10.0.0.0/8`); either may
/// have a port, and then matches that port alone; `*` matches every host.
#[derive(Debug, Default)]
struct Direct {
    all: bool,
    entries: Vec<(NoProxyHost, Option<u16>)>,
}

/// A host, or a network of hosts, that is reached without the proxy.
#[derive(Debug)]
enum NoProxyHost {
    Network(IpNet),
    /// Lower-case, without dots at its ends.
    Name(String),
}

impl Direct {
    fn read(list: &str) -> Self {
        let words = list.split(|c: char| c == ',' || c.is_ascii_whitespace());
        let mut direct = Self::default();
        for word in words.filter(|word| !word.is_empty()) {
            if word == "*" {
                direct.all = true;
            } else if let Some(network) = network(word) {
                direct.entries.push((NoProxyHost::Network(network), None));
            } else {
                let (host, port) = match word.rsplit_once(':') {
                    Some((host, port)) => match port.parse() {
                        Ok(port) => (host, Some(port)),
                        Err(_) => continue,
                    },
                    None => (word, None),
                };
                let entry =
                    network(host).map_or_else(|| name(host), |it| Some(NoProxyHost::Network(it)));
                direct.entries.extend(entry.map(|entry| (entry, port)));
            }
        }
        direct
    }

    fn has(&self, destination: &Url) -> bool {
        let on =
            |port: &Option<u16>| port.is_none() || *port == destination.port_or_known_default();
        let address = match destination.host() {
            _ if self.all => return true,
            Some(Host::Domain(name)) => {
                let host = name.trim_end_matches('.');
                return self.entries.iter().any(|(entry, port)| match entry {
                    NoProxyHost::Network(_) => false,
                    NoProxyHost::Name(name) => {
                        let above = host.strip_suffix(name.as_str());
                        on(port) && above.is_some_and(|it| it.is_empty() || it.ends_with('.'))
                    }
                });
            }
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical(),
            None => return false,
        };
        self.entries.iter().any(|(entry, port)| match entry {
            NoProxyHost::Network(network) => on(port) && network.contains(&address),
            NoProxyHost::Name(_) => false,
        })
    }
}

/// Reads an address, IPv6 with or without brackets, or a network.
fn network(word: &str) -> Option<IpNet> {
    let bare = word
        .strip_prefix('[')
        .and_then(|word| word.strip_suffix(']'));
    let word = bare.unwrap_or(word);
    let address = word.parse::<IpAddr>().map(|it| it.to_canonical().into());
    word.parse().or(address).ok()
}

/// Reads a host name in ASCII, as URLs have it.
fn name(word: &str) -> Option<NoProxyHost> {
    let word = word.strip_prefix('*').unwrap_or(word).trim_matches('.');
    match Host::parse(word) {
        Ok(Host::Domain(name)) => Some(NoProxyHost::Name(name)),
        Ok(Host::Ipv4(_) | Host::Ipv6(_)) | Err(_) => None,
    }
}

/// The reason why a proxy led nowhere.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The connection to it failed, or broke.
    #[error("the connection to the outbound proxy failed: {0}")]
    Broken(#[from] std::io::Error),
    /// Its response is not HTTP.
    #[error("the outbound proxy {0}")]
    Garbled(&'static str),
    /// It refused. Contains the status.
    #[error("the outbound proxy refused the CONNECT with {0}")]
    Refused(String),
    /// It took longer than allowed.
    #[error("the outbound proxy gave no connection within {0:?}")]
    TimedOut(Duration),
}

/// Largest head of a proxy's response, bytes.
const MAX_ANSWER: usize = 8 * 1024;

impl Via {
    /// Connects to `target`, `host:port`, through this proxy, by the first of its addresses that
    /// leads there; each has `limit`, zero being none.
    ///
    /// # Errors
    /// Returns the last address's error if none leads there.
    pub async fn open(&self, target: &str, limit: Duration) -> Result<TcpStream, TunnelError> {
        let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        let mut last = TunnelError::Garbled("has a name without an address");
        for address in addresses {
            let open = async {
                let mut stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                self.tunnel(&mut stream, target).await?;
                Ok(stream)
            };
            let opened = if limit.is_zero() {
                open.await
            } else {
                let opened = timeout(limit, open).await;
                opened.unwrap_or(Err(TunnelError::TimedOut(limit)))
            };
            match opened {
                Ok(stream) => return Ok(stream),
                Err(cause) => last = cause,
            }
        }
        Err(last)
    }

    /// Requests a tunnel to `target`, `host:port`, from the proxy at the other end of `stream` (RFC
    /// 9110 §9.3.6). After that the target is at the other end.
    ///
    /// # Errors
    /// Fails if the proxy does not lead there.
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
                // A vendor sends nothing before our handshake: further bytes are not its own.
                if end + 4 < answer.len() {
                    return Err(TunnelError::Garbled("sent more than its answer"));
                }
                break;
            }
            if read == 0 || answer.len() > MAX_ANSWER {
                return Err(TunnelError::Garbled("did not respond to the CONNECT"));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn outbound(fixed: Option<&str>, environment: &[(&str, &str)]) -> Outbound {
        let fixed = fixed.map(|url| Url::parse(url).unwrap());
        Outbound::with(fixed.as_ref(), |name| {
            let found = environment.iter().find(|(given, _)| *given == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    /// Returns the proxy's host; `-`: a direct connection.
    fn way(environment: &[(&str, &str)], to: &str) -> String {
        let destination = Url::parse(to).unwrap();
        let outbound = outbound(None, environment);
        match outbound.via(&destination) {
            Ok(via) => {
                // Both clients get the same proxy.
                let host = outbound
                    .url(&destination)
                    .map(|url| url.host_str().unwrap().to_owned());
                assert_eq!(host, via.as_ref().map(|via| via.host.clone()));
                via.map_or("-".to_owned(), |via| via.host)
            }
            Err(unusable) => {
                assert_eq!(outbound.url(&destination), None);
                unusable.to_string()
            }
        }
    }

    #[test]
    fn variables_count_in_curls_order_and_empty_ones_not_at_all() {
        let all = [
            ("https_proxy", "http://a:1"),
            ("HTTPS_PROXY", "http://b:1"),
            ("all_proxy", "http://c:1"),
            ("ALL_PROXY", "http://d:1"),
        ];
        for from in 0..4 {
            let host = ["a", "b", "c", "d"][from];
            assert_eq!(way(&all[from..], "https://v.test"), host);
            let mut emptied = all;
            emptied[..from]
                .iter_mut()
                .for_each(|(_, value)| *value = "");
            assert_eq!(way(&emptied, "https://v.test"), host);
        }
        assert_eq!(way(&[], "https://v.test"), "-");
        // Plaintext has variables of its own, of which only those for all schemes count.
        assert_eq!(way(&all, "http://v.test"), "c");
        let never = [("http_proxy", "http://x:1"), ("HTTP_PROXY", "http://x:1")];
        assert_eq!(way(&never, "http://v.test"), "-");

        let hidden = [("NO_PROXY", "v.test"), ("no_proxy", ""), all[0]];
        assert_eq!(way(&hidden, "https://v.test"), "-");
        let lower = [("NO_PROXY", "v.test"), ("no_proxy", "w.test"), all[0]];
        assert_eq!(way(&lower, "https://v.test"), "a");
    }

    #[test]
    fn what_is_reached_directly_is_what_curl_reaches_directly_and_ports_count() {
        for (list, to, direct) in [
            ("corp.test", "https://corp.test", true),
            ("corp.test", "https://a.b.corp.test", true),
            (".corp.test", "https://corp.test", true),
            ("*.corp.test", "https://a.corp.test", true),
            ("CORP.test.", "https://a.corp.TEST", true),
            ("corp.test", "https://a.corp.test.", true),
            ("corp.test", "https://xcorp.test", false),
            ("corp.test", "https://corp.test.evil", false),
            ("b\u{fc}cher.test", "https://a.xn--bcher-kva.test", true),
            ("x, corp.test", "https://corp.test", true),
            ("x corp.test\ty", "https://corp.test", true),
            ("x,,corp.test,", "https://corp.test", true),
            ("*", "https://corp.test", true),
            ("x,*", "https://10.0.0.1", true),
            ("corp.test:8443", "https://corp.test:8443", true),
            ("corp.test:8443", "https://a.corp.test:8443", true),
            ("corp.test:8443", "https://corp.test", false),
            ("corp.test:443", "https://corp.test", true),
            ("corp.test:80", "http://corp.test", true),
            ("corp.test:https", "https://corp.test", false),
            ("10.0.0.0/8", "https://10.1.2.3:8443", true),
            ("10.0.0.0/8", "https://11.1.2.3", false),
            ("10.1.2.3", "https://10.1.2.3:8443", true),
            ("10.1.2.3:8443", "https://10.1.2.3:8443", true),
            ("10.1.2.3:8443", "https://10.1.2.3", false),
            ("10.0.0.0/8", "https://[::ffff:10.1.2.3]", true),
            ("::1", "https://[::1]:8443", true),
            ("[::1]", "https://[::1]:8443", true),
            ("[::1]:8443", "https://[::1]:8443", true),
            ("[::1]:8443", "https://[::1]", false),
            ("2001:db8::/32", "https://[2001:db8::7]", true),
            ("1", "https://10.0.0.1", false),
            ("localhost", "https://127.0.0.1", false),
            (",", "https://a", false),
        ] {
            let environment = [("all_proxy", "http://proxy:1"), ("NO_PROXY", list)];
            let want = if direct { "-" } else { "proxy" };
            assert_eq!(way(&environment, to), want, "{list}: {to}");
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_an_error_and_no_direct_way() {
        for (variable, value, said) in [
            (
                "HTTPS_PROXY",
                "\"http://us:hunter2@p:1\"",
                "HTTPS_PROXY is in quotes",
            ),
            (
                "https_proxy",
                "https://us:hunter2@p:1",
                "https_proxy names an outbound proxy",
            ),
            (
                "ALL_PROXY",
                "socks5h://us:hunter2@p:1",
                "ALL_PROXY specifies a SOCKS proxy",
            ),
            (
                "all_proxy",
                "http://us:hunter2/@p:1",
                "all_proxy has a raw `@`",
            ),
            (
                "HTTPS_PROXY",
                "hunter2://",
                "HTTPS_PROXY is not the address",
            ),
            ("HTTPS_PROXY", "\u{0}", "HTTPS_PROXY has a character"),
        ] {
            let text = way(&[(variable, value)], "https://v.test");
            assert!(text.contains(said) && !text.contains("hunter2"), "{text}");
            let excepted = [(variable, value), ("NO_PROXY", "v.test")];
            assert_eq!(way(&excepted, "https://v.test"), "-");
        }
        // A variable that is overruled is not read.
        let environment = [("https_proxy", "http://p:1"), ("ALL_PROXY", "socks5://q:1")];
        assert_eq!(way(&environment, "https://v.test"), "p");
    }

    #[test]
    fn a_vendors_own_proxy_wins_over_the_environment() {
        let environment = [("https_proxy", "socks5://q:1"), ("no_proxy", "*")];
        let outbound = outbound(Some("http://[::1]:3128"), &environment);
        for to in ["http://a.test", "https://a.test"] {
            let via = outbound.via(&Url::parse(to).unwrap()).unwrap().unwrap();
            assert_eq!((&*via.host, via.port), ("::1", 3128), "{to}");
        }
    }

    #[test]
    fn user_information_becomes_a_credential_that_is_not_printed() {
        let url = "http://us%20er:p%40ss@a:1";
        for outbound in [
            outbound(Some(url), &[]),
            outbound(None, &[("HTTPS_PROXY", url)]),
        ] {
            let via = outbound.via(&Url::parse("https://b").unwrap());
            let via = via.unwrap().unwrap();
            assert_eq!(via.authorization.clone().unwrap(), "Basic dXMgZXI6cEBzcw==");
            let printed = format!("{via:?} {outbound:?}");
            assert!(
                !printed.contains("dXMg") && !printed.contains("p%40ss"),
                "{printed}"
            );
        }
    }
}
