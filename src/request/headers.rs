//! Checks of parsed headers, and the headers that never pass. Pure functions.

use foldhash::HashSet;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use smallvec::SmallVec;

use crate::config;
use crate::error::Error;
use crate::http_fields::is_tchar;
use crate::request::caller::KEY_FIELDS;

/// Connection-level fields beside `Connection` itself (RFC 9110 §7.6.1).
pub static HOP_BY_HOP: [HeaderName; 9] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Headers by which a caller could make a vendor see another request than the one we authorised, or
/// another sender behind it: proxies set them, so servers behind proxies trust them.
static OVERRIDES: [HeaderName; 21] = [
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-path-override"),
    HeaderName::from_static("x-http-host-override"),
    HeaderName::from_static("x-method-override"),
    HeaderName::from_static("x-original-method"),
    HeaderName::from_static("x-original-host"),
    HeaderName::from_static("x-host"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("client-ip"),
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("cf-connecting-ip"),
    HeaderName::from_static("remote-user"),
    HeaderName::from_static("x-remote-user"),
    HeaderName::from_static("x-client-cert"),
    HeaderName::from_static("x-arr-clientcert"),
    HeaderName::from_static("x-ssl-client"),
    FORWARDED,
];

/// Beginnings of further such names.
pub static OVERRIDE_PREFIXES: [&str; 2] = ["x-forwarded-", "x-ssl-client-"];

/// Checks the parsed headers.
///
/// # Errors
/// [`Error::BadFraming`] for framing that is conflicting or odd, [`Error::BadRequest`] for
/// connection options that would remove a header of the request.
pub fn check_fields(headers: &HeaderMap) -> Result<(), Error> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = length.as_bytes();
        if lengths.next().is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(Error::BadFraming(
                "Content-Length is repeated or no number.",
            ));
        }
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(Error::BadFraming("Transfer-Encoding is not just chunked."));
    }
    check_connection(headers)
}

/// Checks the options of `Connection`, which are removed on the way (RFC 9110 §7.6.1): nobody may
/// remove a header that says where the request goes, or for whom, or make us look for many.
fn check_connection(headers: &HeaderMap) -> Result<(), Error> {
    const MOST_OPTIONS: usize = 9;
    let values = headers.get_all(CONNECTION).iter();
    let options = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut count = 0;
    for option in options.map(<[u8]>::trim_ascii) {
        if option.is_empty() {
            continue;
        }
        count += 1;
        let ours = option.eq_ignore_ascii_case(b"host")
            || [
                &b"x-forwarded-for"[..],
                b"x-forwarded-host",
                b"x-forwarded-proto",
            ]
            .iter()
            .any(|name| option.eq_ignore_ascii_case(name));
        if ours || count > MOST_OPTIONS || !option.iter().copied().all(is_tchar) {
            return Err(Error::BadRequest(
                "Connection names Host or X-Forwarded-*, more than nine options, or something that is none.",
            ));
        }
    }
    Ok(())
}

/// Checks the names of headers: letters, digits and `-`, unless `permitted` lists the name. Servers
/// that make variables of headers take other characters for `-` or `_`, or drop them.
///
/// # Errors
/// [`Error::BadRequest`].
pub fn check_names(headers: &HeaderMap, permitted: &[HeaderName]) -> Result<(), Error> {
    let odd = |name: &&HeaderName| !name.as_str().bytes().all(is_plain);
    if headers
        .keys()
        .filter(odd)
        .all(|name| permitted.contains(name))
    {
        return Ok(());
    }
    Err(Error::BadRequest(
        "A header name holds something else than letters, digits and hyphens, which servers confuse; the vendor's header_names would permit it.",
    ))
}

/// Tells whether `byte` may be in an ordinary header name, as the parsers return it.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')
}

/// Returns the name that servers may take this one for.
fn dashed(name: &HeaderName) -> Option<HeaderName> {
    let name = name.as_str().bytes();
    let dashed: SmallVec<[u8; 64]> = name
        .map(|byte| if is_plain(byte) { byte } else { b'-' })
        .collect();
    HeaderName::from_bytes(&dashed).ok()
}

/// Returns the authority a request is for: `Host`, or `:authority` on HTTP/2.
///
/// # Errors
/// [`Error::BadRequest`] when it is missing, repeated, not that of an absolute-form target, or
/// anything but a host and a port.
pub fn authority<'a>(headers: &'a HeaderMap, of_target: Option<&'a str>) -> Result<&'a str, Error> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host.to_str().map_err(|_| Error::BadRequest(BAD_HOST))?),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(Error::BadRequest("Host is repeated.")),
    };
    let authority = match (host, of_target) {
        (Some(host), Some(target)) if !host.eq_ignore_ascii_case(target) => {
            return Err(Error::BadRequest(
                "Host is not the one of the request target.",
            ));
        }
        (Some(authority), _) | (None, Some(authority)) => authority,
        (None, None) => return Err(Error::BadRequest("Host is missing.")),
    };
    if is_authority(authority) {
        Ok(authority)
    } else {
        Err(Error::BadRequest(BAD_HOST))
    }
}

const BAD_HOST: &str = "Host is not a host name or address with an optional port.";

fn is_authority(authority: &str) -> bool {
    let (host, port) = if let Some(literal) = authority.strip_prefix('[') {
        let Some((address, rest)) = literal.split_once(']') else {
            return false;
        };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        ("v6", rest)
    } else {
        let colon = authority.find(':').unwrap_or(authority.len());
        authority.split_at(colon)
    };
    let host_ok = !host.is_empty()
        && host.len() <= 255
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        && !host.starts_with('.')
        && !host.contains("..");
    let port_ok = port.is_empty()
        || port.strip_prefix(':').is_some_and(|digits| {
            digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok()
        });
    host_ok && port_ok
}

/// Names of headers to remove.
pub type Names = SmallVec<[HeaderName; 8]>;

/// The headers that never pass from a caller to a vendor: callers' credentials, overrides, and
/// every header that any vendor's credential uses, configured or known from the presets.
#[derive(Debug)]
pub struct StrippedHeaders {
    names: HashSet<HeaderName>,
}

impl StrippedHeaders {
    /// Returns the set. `credential_fields`: the header names of all vendors' credentials.
    pub fn new(credential_fields: impl IntoIterator<Item = HeaderName>) -> Self {
        let mut names: HashSet<_> = credential_fields.into_iter().collect();
        // Servers that make variables of headers take `a-b` for `a_b`.
        let dashed: Vec<_> = names.iter().filter_map(dashed).collect();
        names.extend(dashed);
        names.extend(KEY_FIELDS.iter().cloned());
        // A caller must not offer a vendor another of its ways to log in.
        names.extend(
            config::login_headers().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()),
        );
        names.extend(OVERRIDES.iter().cloned());
        names.extend([http::header::AUTHORIZATION, PROXY_AUTHORIZATION]);
        Self { names }
    }

    /// Returns the names for people. `Cookie` and [`OVERRIDE_PREFIXES`] are not among them.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.names.iter().map(ToString::to_string).collect()
    }

    /// Returns the headers to remove from a request: those of the connection, too, and what its
    /// `Connection` names (RFC 9110 §7.6.1). `h2`: it came over HTTP/2, which carries `TE` for
    /// trailers alone.
    #[must_use]
    pub fn in_request(&self, headers: &HeaderMap, cookies_pass: bool, h2: bool) -> Names {
        let nominated: SmallVec<[&[u8]; 8]> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .collect();
        let is_nominated = |name: &HeaderName| {
            let name = name.as_str().as_bytes();
            nominated
                .iter()
                .any(|nominee| nominee.eq_ignore_ascii_case(name))
        };
        headers
            .keys()
            .filter(|name| {
                self.strips(name, cookies_pass) || is_hop(name, headers, h2) || is_nominated(name)
            })
            .cloned()
            .collect()
    }

    /// Returns the headers to remove among those that [`check_names`] permits by name: servers may
    /// take them for a stripped one.
    #[must_use]
    pub fn lookalikes_in_request(&self, headers: &HeaderMap, cookies_pass: bool) -> Names {
        headers
            .keys()
            .filter(|name| {
                let odd = !name.as_str().bytes().all(is_plain);
                odd && dashed(name).is_none_or(|name| self.strips(&name, cookies_pass))
            })
            .cloned()
            .collect()
    }

    fn strips(&self, name: &HeaderName, cookies_pass: bool) -> bool {
        self.names.contains(name)
            || (*name == COOKIE && !cookies_pass)
            || OVERRIDE_PREFIXES
                .iter()
                .any(|prefix| name.as_str().starts_with(prefix))
    }
}

/// Tells whether this header belongs to the connection. Over HTTP/2, `te: trailers` does not (RFC
/// 9113 §8.2.2).
fn is_hop(name: &HeaderName, headers: &HeaderMap, h2: bool) -> bool {
    if h2 && name == TE {
        return headers.get_all(TE).iter().any(|value| value != "trailers");
    }
    name == CONNECTION || HOP_BY_HOP.contains(name)
}

/// Joins the pieces of a cookie into one header (RFC 9113 §8.2.3). `None`: it came whole.
#[must_use]
pub fn joined_cookies(headers: &HeaderMap) -> Option<HeaderValue> {
    let pieces: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if pieces.len() < 2 {
        return None;
    }
    HeaderValue::from_bytes(&pieces.join(&b"; "[..])).ok()
}

/// Returns the headers to remove from a response: hop-by-hop ones, those that `Connection` names,
/// cookies unless they pass, and anything that claims to come from us.
#[must_use]
pub fn stripped_from_response(headers: &HeaderMap, cookies_pass: bool, upgrade: bool) -> Names {
    let nominated: SmallVec<[&[u8]; 8]> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .collect();
    headers
        .keys()
        .filter(|name| {
            if upgrade && (*name == UPGRADE || *name == CONNECTION) {
                return false;
            }
            // Framing belongs to the sender of the body.
            if *name == TRANSFER_ENCODING || *name == CONTENT_LENGTH {
                return false;
            }
            *name == CONNECTION
                || HOP_BY_HOP.contains(name)
                || (*name == http::header::SET_COOKIE && !cookies_pass)
                || (name.as_str() == "proxy-status" && claims_to_be_us(headers))
                || nominated
                    .iter()
                    .any(|nominee| nominee.eq_ignore_ascii_case(name.as_str().as_bytes()))
        })
        .cloned()
        .collect()
}

/// Tells whether the framing of a vendor's response over HTTP/1 is unambiguous: one length in
/// digits, no coding but `chunked` (RFC 9112 §6.1, RFC 9110 §8.6). We request no other coding, and
/// a caller could not tell where the body ends.
#[must_use]
pub fn is_framed_plainly(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let is_number = |value: &HeaderValue| value.as_bytes().iter().all(u8::is_ascii_digit);
    let chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(chunked)
        && codings.next().is_none()
        && lengths.next().is_none_or(is_number)
        && lengths.next().is_none()
}

fn claims_to_be_us(headers: &HeaderMap) -> bool {
    headers.get_all("proxy-status").iter().any(|value| {
        value
            .as_bytes()
            .to_ascii_lowercase()
            .windows(11)
            .any(|word| word == b"countersign")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        map
    }

    #[test]
    fn odd_framing_is_refused() {
        for fields in [
            &[("content-length", "3"), ("content-length", "3")][..],
            &[("content-length", "3, 3")],
            &[("content-length", "+3")],
            &[("transfer-encoding", "gzip, chunked")],
            &[
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
            &[("connection", "close, Host")],
            &[("connection", "x-forwarded-for")],
            &[("connection", "\"close\"")],
            &[("connection", ":authority")],
            &[("connection", "a,b,c,d,e,f"), ("connection", "g,h,i,j")],
        ] {
            assert!(check_fields(&headers(fields)).is_err(), "{fields:?}");
        }
        assert_eq!(check_fields(&headers(&[("content-length", "3")])), Ok(()));
        for fields in [
            ("transfer-encoding", "Chunked"),
            ("connection", "keep-alive, , Upgrade, x-mine,"),
        ] {
            assert_eq!(check_fields(&headers(&[fields])), Ok(()));
        }
    }

    #[test]
    fn names_are_letters_digits_and_hyphens_unless_they_are_permitted() {
        let permitted = [HeaderName::from_static("x_private.id")];
        assert_eq!(
            check_names(
                &headers(&[("x-fine-1", "1"), ("x_private.id", "1")]),
                &permitted
            ),
            Ok(())
        );
        for name in [
            "x_y", "x.y", "x!", "x#", "x$y", "x%y", "x&y", "x'y", "x*", "x+y", "x^", "x`", "x|y",
            "x~",
        ] {
            let sent = headers(&[(name, "1")]);
            assert!(check_names(&sent, &[]).is_err(), "{name}");
            assert!(check_names(&sent, &permitted).is_err(), "{name}");
        }
    }

    #[test]
    fn what_a_server_may_take_for_a_barred_name_is_barred() {
        let stripped = StrippedHeaders::new([HeaderName::from_static("customer_uri")]);
        let sent = headers(&[
            ("customer.uri", "x"),
            ("x_real_ip", "x"),
            ("x_ssl_client_cert", "x"),
            ("x.forwarded.for", "x"),
            ("x_countersign_key", "x"),
            ("cookie", "not odd"),
            ("x_fine", "kept"),
        ]);
        let gone = stripped.lookalikes_in_request(&sent, false);
        let kept: Vec<_> = sent.keys().filter(|name| !gone.contains(name)).collect();
        assert_eq!(kept, ["cookie", "x_fine"]);
    }

    #[test]
    fn exactly_one_strict_host() {
        for good in [
            "a",
            "a.b:80",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:8080",
            "A-b.example.",
        ] {
            assert_eq!(
                authority(&headers(&[("host", good)]), None),
                Ok(good),
                "{good}"
            );
        }
        for bad in [
            "", "a b", "a/b", "u@a", "a:", "a:x", "a:70000", "[::1", "[x]", "a..b", "é",
        ] {
            let bad_host = authority(&headers(&[("host", bad)]), None).is_err();
            // The grammar permits an empty port (RFC 3986 §3.2.3), which no client sends.
            assert!(bad_host, "{bad}");
        }
        assert!(authority(&headers(&[]), None).is_err());
        assert!(authority(&headers(&[("host", "a"), ("host", "a")]), None).is_err());
        assert!(authority(&headers(&[("host", "a")]), Some("b")).is_err());
        assert_eq!(authority(&headers(&[]), Some("b")), Ok("b"));
    }

    #[test]
    fn callers_credentials_and_overrides_never_pass() {
        let stripped = StrippedHeaders::new([HeaderName::from_static("customeruri")]);
        let sent = headers(&[
            ("authorization", "x"),
            ("cookie", "x"),
            ("x-api-key", "x"),
            ("password", "x"),
            ("customeruri", "x"),
            ("x-forwarded-for", "x"),
            ("forwarded", "x"),
            ("x-original-url", "x"),
            ("x-countersign-key", "x"),
            ("x-ssl-client-s-dn", "x"),
            ("x-real-ip", "x"),
            ("accept", "kept"),
            ("te", "gzip"),
            ("connection", "x"),
            ("traceparent", "kept"),
        ]);
        for h2 in [false, true] {
            let gone = stripped.in_request(&sent, false, h2);
            let kept: Vec<_> = sent.keys().filter(|name| !gone.contains(name)).collect();
            assert_eq!(kept, ["accept", "traceparent"]);
        }
    }

    #[test]
    fn what_connection_names_goes_with_it() {
        let stripped = StrippedHeaders::new([]);
        let sent = headers(&[
            ("connection", "x-one, close"),
            ("connection", "X-Two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("te", "trailers"),
        ]);
        let gone = stripped.in_request(&sent, false, false);
        let kept: Vec<_> = sent.keys().filter(|name| !gone.contains(name)).collect();
        assert_eq!(kept, ["x-three"]);
    }

    #[test]
    fn http_2_carries_te_for_trailers_alone() {
        let stripped = StrippedHeaders::new([]);
        let kept = headers(&[("te", "trailers")]);
        assert!(stripped.in_request(&kept, false, true).is_empty());
        let mixed = headers(&[("te", "trailers"), ("te", "gzip")]);
        assert_eq!(stripped.in_request(&mixed, false, true)[..], [TE]);
    }

    #[test]
    fn a_cookie_in_pieces_becomes_one() {
        let pieces = headers(&[("cookie", "a=1"), ("cookie", "b=2; c=3")]);
        assert_eq!(joined_cookies(&pieces).unwrap(), "a=1; b=2; c=3");
        assert_eq!(joined_cookies(&headers(&[("cookie", "a=1")])), None);
    }

    #[test]
    fn what_belongs_to_a_connection_stays_on_it() {
        let response = headers(&[
            ("connection", "x-private, close"),
            ("x-private", "1"),
            ("keep-alive", "1"),
            ("set-cookie", "a=b"),
            ("proxy-status", "Countersign; error=x"),
            ("etag", "kept"),
            ("content-length", "3"),
        ]);
        let gone = stripped_from_response(&response, false, false);
        let kept: Vec<_> = response
            .keys()
            .filter(|name| !gone.contains(name))
            .collect();
        assert_eq!(kept, ["etag", "content-length"]);
    }
}
