//! URLs of servers: parsed in one place, and shown without secrets.
//!
//! A URL may carry a user name and a password. A raw `@`, `/`, `?` or `#` in one of them moves the
//! borders between the URL's parts (RFC 3986 §3.2), so that a piece of a password is taken for a
//! host, a path or a query, and is shown as such. Such a text is refused here before it is parsed.
//! No parser's own error leaves this module, because it may repeat its input.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use url::Url;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// The reason why a text is not a usable URL. [`fmt::Display`] completes a sentence that begins
/// with the place of the text; nothing of the text is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidUrl {
    /// Quotes around it, which a shell would have removed and an environment file keeps.
    Quoted,
    /// White space or a control character inside it, which parsers drop silently.
    Blank,
    /// A user name or password that is not percent-encoded.
    Unencoded,
    /// A user name or password where none is permitted.
    Login,
    /// A user name or password where none is permitted, not percent-encoded.
    RawLogin,
    /// Not a URL with a host, or not with a permitted scheme.
    NotUrl,
    /// Not the URL of a Redis server.
    NotRedis,
    /// A fragment in a Redis URL, by which other clients turn verification off.
    RedisFragment,
    /// Not the URL of an HTTP proxy.
    NotProxy,
    /// A proxy that speaks TLS itself.
    TlsProxy,
    /// A SOCKS proxy.
    SocksProxy,
}

impl InvalidUrl {
    /// Returns the advice, to follow a semicolon.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Self::Quoted => "the quotes are part of the value: remove them",
            Self::Blank => "white space and control characters are not allowed inside it",
            Self::Unencoded => {
                "percent-encode it: `@` is `%40`, `/` is `%2F`, `?` is `%3F`, `#` is `%23`, `\\` \
                 is `%5C`; the same goes for an `@` in a path"
            }
            Self::Login => "remove them: credentials have settings of their own",
            Self::RawLogin => {
                "remove them: credentials have settings of their own; an `@` in a path is \
                 percent-encoded: `%40`"
            }
            Self::NotUrl => "written `https://HOST[:PORT][/PATH]`",
            Self::NotRedis => {
                "it reads `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, `rediss://` for TLS"
            }
            Self::RedisFragment => "the certificate is always verified; `ca` names whom to trust",
            Self::NotProxy => "written `http://[USER:PASSWORD@]HOST:PORT`",
            Self::TlsProxy | Self::SocksProxy => {
                "an HTTP proxy that takes CONNECT is supported: `http://[USER:PASSWORD@]HOST:PORT`"
            }
        }
    }

    /// Returns `other` in place of [`InvalidUrl::NotUrl`], which names no kind of URL.
    fn or(self, other: Self) -> Self {
        if self == Self::NotUrl { other } else { self }
    }
}

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quoted => "is in quotes",
            Self::Blank => "has a character that no URL may have",
            Self::Unencoded => {
                "has a raw `@`, `/`, `?` or `#` in its user name or password, so its parts are not \
                 what they seem"
            }
            Self::Login => "must not have a user or password in it",
            Self::RawLogin => {
                "must not have a user or password in it, least of all with a raw `@`, `/`, `?` or \
                 `#`"
            }
            Self::NotUrl => "is not a URL with a host",
            Self::NotRedis => "is not the URL of a Redis",
            Self::RedisFragment => "has a `#` part",
            Self::NotProxy => "is not the address of an outbound proxy",
            Self::TlsProxy => {
                "names an outbound proxy that speaks TLS (https://), which is not \
                               supported"
            }
            Self::SocksProxy => "specifies a SOCKS proxy, which is not supported",
        })
    }
}

/// Reads an `http://` or `https://` URL that must not hold a user name or password.
///
/// # Errors
/// [`InvalidUrl`].
pub fn web(text: &str) -> Result<Url, InvalidUrl> {
    let url = read(text, false).map_err(|wrong| {
        if wrong == InvalidUrl::Unencoded {
            InvalidUrl::RawLogin
        } else {
            wrong
        }
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(InvalidUrl::NotUrl);
    }
    if authority(text).is_some_and(|(authority, _)| authority.contains('@')) {
        return Err(InvalidUrl::Login);
    }
    Ok(url)
}

/// Reads an `http://` or `https://` URL that may hold a user name and password.
///
/// # Errors
/// [`InvalidUrl`].
pub fn web_with_login(text: &str) -> Result<Url, InvalidUrl> {
    read(text, true).and_then(|url| {
        matches!(url.scheme(), "http" | "https")
            .then_some(url)
            .ok_or(InvalidUrl::NotUrl)
    })
}

/// Reads the URL of a Redis server: `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, or `rediss://`.
///
/// # Errors
/// [`InvalidUrl`].
pub fn redis(text: &str) -> Result<Url, InvalidUrl> {
    let url = read(text, true).map_err(|wrong| wrong.or(InvalidUrl::NotRedis))?;
    let database = url.path().trim_start_matches('/');
    if !matches!(url.scheme(), "redis" | "rediss") || !database.bytes().all(|b| b.is_ascii_digit())
    {
        return Err(InvalidUrl::NotRedis);
    }
    if url.fragment().is_some() {
        return Err(InvalidUrl::RedisFragment);
    }
    Ok(url)
}

/// Reads the address of an HTTP proxy: `http://[USER:PASSWORD@]HOST[:PORT]`, the scheme being
/// `http://` where none is written. A path is ignored, as curl does.
///
/// # Errors
/// [`InvalidUrl`].
pub fn proxy(text: &str) -> Result<Url, InvalidUrl> {
    let text = text.trim();
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    if let Some((scheme, _)) = text.split_once("://") {
        let scheme = scheme.to_ascii_lowercase();
        if scheme == "https" {
            return Err(InvalidUrl::TlsProxy);
        }
        if scheme.starts_with("socks") {
            return Err(InvalidUrl::SocksProxy);
        }
    }
    // Also for a text without a scheme.
    if quoted(text) {
        return Err(InvalidUrl::Quoted);
    }
    let url = read(&whole, true).map_err(|wrong| wrong.or(InvalidUrl::NotProxy))?;
    if url.scheme() != "http" {
        return Err(InvalidUrl::NotProxy);
    }
    Ok(url)
}

/// Returns the URL for display: without user name, password, query and fragment.
#[must_use]
pub fn without_login(url: &Url) -> String {
    let mut bare = url.clone();
    // Both fail only for URLs that cannot hold any.
    let _ = bare.set_username("");
    let _ = bare.set_password(None);
    bare.set_query(None);
    bare.set_fragment(None);
    bare.into()
}

/// Returns the Basic credential (RFC 7617) in a URL's user information, marked sensitive.
#[must_use]
pub fn authorization(url: &Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    let mut pair = Zeroizing::new(decoded(url.username()));
    pair.push(b':');
    pair.extend(decoded(url.password().unwrap_or_default()));
    Secret::new(BASE64_STANDARD.encode(&*pair))
        .to_header("Basic ")
        .ok()
}

/// Reads any URL. `login`: a user name and a password are permitted.
fn read(text: &str, login: bool) -> Result<Url, InvalidUrl> {
    if quoted(text) {
        return Err(InvalidUrl::Quoted);
    }
    let (authority, rest) = authority(text).ok_or(InvalidUrl::NotUrl)?;
    if authority.matches('@').count() > 1
        || (rest.contains('@') && (login || !is_plain_host(authority)))
    {
        return Err(InvalidUrl::Unencoded);
    }
    if text
        .bytes()
        .any(|b| b.is_ascii_whitespace() || b.is_ascii_control())
    {
        return Err(InvalidUrl::Blank);
    }
    let url = Url::parse(text).map_err(|_| InvalidUrl::NotUrl)?;
    if authority.is_empty() || !url.has_host() {
        return Err(InvalidUrl::NotUrl);
    }
    // Parsers of web URLs take it for a slash.
    if url.is_special() && text.contains('\\') {
        return Err(InvalidUrl::Blank);
    }
    Ok(url)
}

fn quoted(text: &str) -> bool {
    text.starts_with(['"', '\'', '`']) || text.ends_with(['"', '\'', '`'])
}

/// Returns the authority, user information included, and the rest.
fn authority(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let ends: &[char] = if scheme.to_ascii_lowercase().starts_with("http") {
        &['/', '?', '#', '\\']
    } else {
        &['/', '?', '#']
    };
    Some(rest.split_at(rest.find(ends).unwrap_or(rest.len())))
}

/// Tells whether an authority cannot be the first half of `user:password`: a dotted name or an IPv6
/// address, without a port. Only then may an `@` in the path be meant as one.
fn is_plain_host(authority: &str) -> bool {
    authority.contains('.') && !authority.contains([':', '@'])
        || authority.starts_with('[') && authority.ends_with(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_is_not_percent_encoded_is_refused_wherever_the_cut_falls() {
        for raw in [
            "p@ss",
            "p/ss",
            "p#ss",
            "p?ss",
            "6379/p",
            "1?2",
            "a/b@c",
            "/",
            "12/3#4@5?6",
        ] {
            for user in ["", "us", "us.er"] {
                let login = format!("{user}:{raw}@");
                for host in ["h", "h.example", "127.0.0.1:6379", "[::1]:1"] {
                    let redis_url = format!("redis://{login}{host}/0");
                    assert_eq!(redis(&redis_url), Err(InvalidUrl::Unencoded), "{redis_url}");
                    for scheme in ["http://", ""] {
                        let proxy_url = format!("{scheme}{login}{host}");
                        assert_eq!(proxy(&proxy_url), Err(InvalidUrl::Unencoded), "{proxy_url}");
                    }
                    let url = format!("https://{login}{host}/v1");
                    assert_eq!(web_with_login(&url), Err(InvalidUrl::Unencoded), "{url}");
                    assert_eq!(web(&url), Err(InvalidUrl::RawLogin), "{url}");
                }
            }
        }
        assert_eq!(proxy("http://us:p\\w@h:1"), Err(InvalidUrl::Unencoded));
    }

    #[test]
    fn an_encoded_login_is_read_and_never_shown() {
        let url = redis("redis://us:p%40%2F%3F%23%25@h:1/3?protocol=resp3").unwrap();
        assert_eq!(url.password(), Some("p%40%2F%3F%23%25"));
        assert_eq!(without_login(&url), "redis://h:1/3");
        let url = proxy("us:p%40ss@[::1]:3128").unwrap();
        assert_eq!(without_login(&url), "http://[::1]:3128/");
        let url = web_with_login("https://us:pw@h/v1?key=secret#x").unwrap();
        assert_eq!(without_login(&url), "https://h/v1");
    }

    #[test]
    fn an_at_sign_in_a_path_is_one_behind_a_host_that_can_be_nothing_else() {
        for url in [
            "https://api.example/calendars/me@corp.example",
            "https://api.example/@scope",
            "https://10.0.0.1/a@b",
            "https://[::1]/a@b",
        ] {
            assert!(web(url).is_ok(), "{url}");
        }
        for url in [
            "https://api.example:1234/a@b",
            "https://us/er@h",
            "https://us?er@h",
        ] {
            assert_eq!(web(url), Err(InvalidUrl::RawLogin), "{url}");
        }
    }

    #[test]
    fn what_is_no_such_url_is_named_as_what_it_is() {
        for (url, wrong) in [
            ("https://u:p@h.example", InvalidUrl::Login),
            ("https://@h.example", InvalidUrl::Login),
            ("https://h.example/a b", InvalidUrl::Blank),
            ("https://h.ex\tample/", InvalidUrl::Blank),
            ("https://h.example\\x", InvalidUrl::Blank),
            ("'https://h.example'", InvalidUrl::Quoted),
            ("https:///h.example", InvalidUrl::NotUrl),
            ("https:h.example", InvalidUrl::NotUrl),
            ("ftp://h.example", InvalidUrl::NotUrl),
            ("https://h:port", InvalidUrl::NotUrl),
            ("h.example", InvalidUrl::NotUrl),
            ("", InvalidUrl::NotUrl),
        ] {
            assert_eq!(web(url), Err(wrong), "{url}");
        }
        for (url, wrong) in [
            ("http://h", InvalidUrl::NotRedis),
            ("redis://h/db", InvalidUrl::NotRedis),
            ("redis://", InvalidUrl::NotRedis),
            ("unix:///run/redis", InvalidUrl::NotRedis),
            ("rediss://h/#insecure", InvalidUrl::RedisFragment),
            ("redis://:p\nw@h", InvalidUrl::Blank),
            ("\"redis://h\"", InvalidUrl::Quoted),
        ] {
            assert_eq!(redis(url), Err(wrong), "{url}");
        }
        for (url, wrong) in [
            ("https://egress.corp:3128", InvalidUrl::TlsProxy),
            ("HTTPS://egress.corp", InvalidUrl::TlsProxy),
            ("socks5h://egress.corp:1080", InvalidUrl::SocksProxy),
            ("\"http://egress.corp:3128\"", InvalidUrl::Quoted),
            ("'egress.corp:3128'", InvalidUrl::Quoted),
            ("ftp://egress.corp", InvalidUrl::NotProxy),
            ("http://", InvalidUrl::NotProxy),
            ("http://egress corp", InvalidUrl::Blank),
        ] {
            assert_eq!(proxy(url), Err(wrong), "{url}");
        }
        assert_eq!(proxy(" egress.corp:3128 ").unwrap().port(), Some(3128));
        assert!(proxy("http://egress.corp:3128/ignored").is_ok());
    }
}
