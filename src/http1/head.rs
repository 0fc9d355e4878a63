//! Heads of HTTP/1.1 messages (RFC 9112 §3 to §5) from and to bytes. httparse reads them; what it
//! would repair in a request is refused before, see [`crate::downstream::raw_head`].

use std::mem::MaybeUninit;

use bytes::{BufMut, Bytes};
use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, Version};
use httparse::{ParserConfig, Status};
use memchr::memchr_iter;
use pingora::http::{RequestHeader, ResponseHeader};

/// Most header lines of a head.
pub const MAX_FIELDS: usize = 256;

/// A head that is none.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable;

/// Returns the length of the head at the start of `bytes`, its empty line included. `looked_at`:
/// how many bytes were there at the last call. A line may end in a bare LF here; who reads the head
/// decides about that.
#[must_use]
pub fn end_of_head(bytes: &[u8], looked_at: usize) -> Option<usize> {
    let from = looked_at.saturating_sub(3);
    memchr_iter(b'\n', &bytes[from..]).find_map(|at| {
        let next = from + at + 1;
        match bytes[next..] {
            [b'\n', ..] => Some(next + 1),
            [b'\r', b'\n', ..] => Some(next + 2),
            _ => None,
        }
    })
}

/// Reads a whole request head.
///
/// # Errors
/// [`Unreadable`].
pub fn read_request(head: &Bytes) -> Result<RequestHeader, Unreadable> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut fields) {
        Ok(Status::Complete(length)) if length == head.len() => {}
        Ok(_) | Err(_) => return Err(Unreadable),
    }
    let method = parsed.method.unwrap_or_default();
    let target = parsed.path.unwrap_or_default();
    let mut request =
        RequestHeader::build(method, target.as_bytes(), Some(parsed.headers.len() + 4))
            .map_err(|_| Unreadable)?;
    request.set_version(version(parsed.version));
    for field in parsed.headers.iter() {
        let name = head.slice_ref(field.name.as_bytes());
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value));
        let value = value.map_err(|_| Unreadable)?;
        request.append_header(name, value).map_err(|_| Unreadable)?;
    }
    Ok(request)
}

/// Reads a whole response head. Lines that servers are known to send are accepted: blanks between a
/// name and its colon, and values that go on in the next line.
///
/// # Errors
/// [`Unreadable`].
pub fn read_response(head: &Bytes) -> Result<ResponseHeader, Unreadable> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let mut config = ParserConfig::default();
    config.allow_spaces_after_header_name_in_responses(true);
    config.allow_obsolete_multiline_headers_in_responses(true);
    match config.parse_response_with_uninit_headers(&mut parsed, head, &mut fields) {
        Ok(Status::Complete(length)) if length == head.len() => {}
        Ok(_) | Err(_) => return Err(Unreadable),
    }
    let status = parsed.code.unwrap_or_default();
    let mut response =
        ResponseHeader::build(status, Some(parsed.headers.len() + 4)).map_err(|_| Unreadable)?;
    response.set_version(version(parsed.version));
    response
        .set_reason_phrase(parsed.reason)
        .map_err(|_| Unreadable)?;
    for field in parsed.headers.iter() {
        let name = head.slice_ref(field.name.as_bytes());
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .or_else(|_| unfolded(field.value))
            .map_err(|_| Unreadable)?;
        response
            .append_header(name, value)
            .map_err(|_| Unreadable)?;
    }
    Ok(response)
}

/// Returns a value that goes over several lines as one line: each break, with the blanks around it,
/// is one blank (RFC 9112 §5.2).
fn unfolded(value: &[u8]) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let lines = value.split(|byte| matches!(byte, b'\r' | b'\n'));
    let lines = lines
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty());
    HeaderValue::from_bytes(&lines.collect::<Vec<_>>().join(&b' '))
}

fn version(minor: Option<u8>) -> Version {
    match minor {
        Some(0) => Version::HTTP_10,
        Some(_) | None => Version::HTTP_11,
    }
}

/// Writes a request head for HTTP/1.1. `false`: its target has bytes that would end it early.
pub fn write_request(request: &RequestHeader, buffer: &mut Vec<u8>) -> bool {
    let target = request.raw_path();
    if target.is_empty() || target.iter().any(|byte| matches!(byte, 0..=b' ' | 0x7f)) {
        return false;
    }
    buffer.put_slice(request.method.as_str().as_bytes());
    buffer.put_u8(b' ');
    buffer.put_slice(target);
    buffer.put_slice(if request.version == Version::HTTP_10 {
        b" HTTP/1.0\r\n"
    } else {
        b" HTTP/1.1\r\n"
    });
    request.header_to_h1_wire(buffer);
    buffer.put_slice(b"\r\n");
    true
}

/// Writes a response head for HTTP/1.1.
pub fn write_response(response: &ResponseHeader, buffer: &mut Vec<u8>) {
    buffer.put_slice(b"HTTP/1.1 ");
    buffer.put_slice(response.status.as_str().as_bytes());
    buffer.put_u8(b' ');
    buffer.put_slice(response.get_reason_phrase().unwrap_or_default().as_bytes());
    buffer.put_slice(b"\r\n");
    response.header_to_h1_wire(buffer);
    buffer.put_slice(b"\r\n");
}

/// Tells whether the sender of a message with these headers keeps its connection (RFC 9112 §9.3).
#[must_use]
pub fn keeps_connection(version: Version, fields: &HeaderMap) -> bool {
    let mut keeps = version >= Version::HTTP_11;
    for value in fields.get_all(CONNECTION) {
        for option in value.as_bytes().split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            if option.eq_ignore_ascii_case(b"close") {
                return false;
            }
            keeps |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    keeps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_at_its_first_empty_line_however_it_comes() {
        for (head, rest) in [
            ("GET / HTTP/1.1\r\nA: b\r\n\r\n", "GET /"),
            ("GET / HTTP/1.1\nA: b\n\n", "\n"),
            ("GET / HTTP/1.1\r\nA: b\n\r\n", "\r\n"),
        ] {
            let bytes = [head, rest].concat();
            for step in 1..bytes.len() {
                let mut looked_at = 0;
                let end = (step..=bytes.len())
                    .step_by(step)
                    .chain([bytes.len()])
                    .find_map(|length| {
                        let end = end_of_head(&bytes.as_bytes()[..length], looked_at);
                        looked_at = length;
                        end
                    });
                assert_eq!(end, Some(head.len()), "{head:?} {step}");
            }
        }
        assert_eq!(end_of_head(b"GET / HTTP/1.1\r\nA: b\r\n\r", 0), None);
    }

    #[test]
    fn heads_come_out_as_they_came() {
        let text = "POST /a?b HTTP/1.1\r\nhOST: x\r\nX-Odd: \u{e9}\r\nA: 1\r\nA: 2\r\n\r\n";
        let head = read_request(&Bytes::from(text)).unwrap();
        let mut written = Vec::new();
        assert!(write_request(&head, &mut written));
        assert_eq!(String::from_utf8(written).unwrap(), text);
        let text = "HTTP/1.1 299 Fine by me\r\nset-COOKIE: a=b\r\nEmpty: \r\n\r\n";
        let head = read_response(&Bytes::from(text)).unwrap();
        let mut written = Vec::new();
        write_response(&head, &mut written);
        assert_eq!(String::from_utf8(written).unwrap(), text);
    }

    #[test]
    fn what_is_no_head_is_unreadable() {
        for bad in [
            "GET /\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\0\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert!(read_request(&Bytes::from(bad)).is_err(), "{bad:?}");
        }
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "A: b\r\n".repeat(MAX_FIELDS + 1)
        );
        assert!(read_request(&Bytes::from(many)).is_err());
        for bad in [
            "HTTP/1.1 20\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "ok\r\n\r\n",
        ] {
            assert!(read_response(&Bytes::from(bad)).is_err(), "{bad:?}");
        }
        let folded = "HTTP/1.0 200 OK\r\nA : b\r\n  c\r\n\r\n";
        let head = read_response(&Bytes::from(folded)).unwrap();
        assert_eq!(head.version, Version::HTTP_10);
        assert_eq!(head.headers["a"], "b c");
    }

    #[test]
    fn connections_are_kept_by_version_and_option() {
        let keeps = |version, options: &[&'static str]| {
            let fields = options
                .iter()
                .map(|option| (CONNECTION, HeaderValue::from_static(option)))
                .collect();
            keeps_connection(version, &fields)
        };
        assert!(keeps(Version::HTTP_11, &[]));
        assert!(!keeps(Version::HTTP_10, &[]));
        assert!(keeps(Version::HTTP_10, &["Keep-Alive"]));
        assert!(!keeps(Version::HTTP_11, &["upgrade", "x, Close"]));
        assert!(!keeps(Version::HTTP_11, &["keep-alive, close"]));
    }
}
