//! Our credential in a vendor's response: masked in text at any chunk boundary, never passed
//! through in a compressed body.

use std::io::{Read, Write};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use countersign::request::redact::{Needles, Redactor};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use zeroize::Zeroizing;

/// Secrets with every class of characters, and one that contains its own beginning.
const SECRETS: [&str; 3] = ["aab/+ \"aab\\=z", "tokentokentoken1", "+++/%+++"];

static NEEDLES: LazyLock<Vec<Arc<Needles>>> = LazyLock::new(|| {
    let of = |secret: &str| Needles::new(&[Zeroizing::new(secret.as_bytes().to_vec())]);
    SECRETS
        .iter()
        .map(|secret| Arc::new(of(secret).unwrap()))
        .collect()
});

/// Runs one input. The first byte selects the secret, the second the length of chunks. In the rest,
/// bytes from 0xf8 on are replaced by the secret in one of its encodings, or by a part of it.
///
/// # Panics
/// When the secret is passed through, or anything else is not.
pub fn run(data: &[u8]) {
    let [which, step, rest @ ..] = data else {
        return;
    };
    let which = usize::from(*which) % SECRETS.len();
    let (secret, needles) = (SECRETS[which], &NEEDLES[which]);
    let step = usize::from(step % 40) + 1;
    let mut text = Vec::new();
    for byte in rest.iter().take(512) {
        match byte {
            0xf8 => text.extend(&secret.as_bytes()[..secret.len() / 2]),
            0xf9 => text.extend(&secret.as_bytes()[secret.len() / 2..]),
            0xfa | 0xfb => text.extend(secret.as_bytes()),
            0xfc => secret.bytes().for_each(|byte| {
                text.extend(format!("%{byte:02X}").bytes());
            }),
            0xfd => secret.bytes().for_each(|byte| match byte {
                b'"' | b'\\' | b'/' => text.extend([b'\\', byte]),
                byte => text.push(byte),
            }),
            0xfe => secret.bytes().for_each(|byte| match byte {
                byte if byte.is_ascii_alphanumeric() => text.push(byte),
                byte => text.extend(format!("\\u{byte:04x}").bytes()),
            }),
            byte => text.push(*byte),
        }
    }
    as_text(secret, needles, &text, step);
    as_gzip(needles, &text, step);
    // The text is no valid body of these codings: a broken or hostile vendor may send one.
    for coding in ["gzip", "deflate", "br"] {
        let (sent, _) = passed(needles, coding, &text, step);
        assert!(sent.len() <= text.len());
    }
}

fn as_text(secret: &str, needles: &Arc<Needles>, text: &[u8], step: usize) {
    let (count, masked) = needles.masked(text);
    let (sent, echoed) = passed(needles, "identity", text, step);
    assert!(!echoed);
    assert_eq!(
        String::from_utf8_lossy(&sent),
        String::from_utf8_lossy(masked.as_deref().unwrap_or(text)),
        "chunks of {step} differ from the whole, {count} places"
    );
    let found = sent
        .windows(secret.len())
        .any(|some| some == secret.as_bytes());
    assert!(
        !found,
        "the secret is in {}",
        String::from_utf8_lossy(&sent)
    );
}

fn as_gzip(needles: &Arc<Needles>, text: &[u8], step: usize) {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    let coded = encoder.finish().unwrap();
    let (sent, echoed) = passed(needles, "gzip", &coded, step);
    assert_eq!(
        echoed,
        needles.occur_in(text),
        "{}",
        String::from_utf8_lossy(text)
    );
    if !echoed {
        assert_eq!(sent, coded);
    }
    let mut read = Vec::new();
    // An aborted body is incomplete.
    let _ = MultiGzDecoder::new(&*sent).read_to_end(&mut read);
    assert!(!needles.occur_in(&read));
}

/// Passes `text` in chunks of `step`. Returns the output, and `true` if the body was aborted.
fn passed(
    needles: &Arc<Needles>,
    coding: &'static str,
    text: &[u8],
    step: usize,
) -> (Vec<u8>, bool) {
    let fields = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
    let mut redactor = Redactor::new(needles.clone(), &fields);
    let mut sent = Vec::new();
    let mut chunks = text.chunks(step).peekable();
    while let Some(chunk) = chunks.next() {
        let mut body = Some(Bytes::copy_from_slice(chunk));
        if redactor.pass(&mut body, chunks.peek().is_none()).is_err() {
            return (sent, true);
        }
        sent.extend(body.unwrap_or_default());
    }
    (sent, false)
}
