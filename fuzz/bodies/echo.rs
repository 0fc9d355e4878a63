//! Our credential in a vendor's answer: masked in text wherever chunks end, never let through in
//! what is compressed.

use std::io::{Read, Write};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use countersign::request::redact::{Needles, Redactor};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use zeroize::Zeroizing;

/// Something of every class of characters, and one that begins again within itself.
const SECRETS: [&str; 3] = ["aab/+ \"aab\\=z", "tokentokentoken1", "+++/%+++"];

static NEEDLES: LazyLock<Vec<Arc<Needles>>> = LazyLock::new(|| {
    let of = |secret: &str| Needles::new(&[Zeroizing::new(secret.as_bytes().to_vec())]);
    SECRETS
        .iter()
        .map(|secret| Arc::new(of(secret).unwrap()))
        .collect()
});

/// The first byte chooses the secret, the second how long chunks are; in the rest, the bytes from
/// 0xf8 on stand for the secret in one spelling or another, or for a part of it.
///
/// # Panics
/// When the secret gets through, or anything else does not.
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
    // As a vendor would send it that is broken or hostile.
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
    // What was broken off has no end.
    let _ = MultiGzDecoder::new(&*sent).read_to_end(&mut read);
    assert!(!needles.occur_in(&read));
}

/// What comes out of `text` in chunks of `step`, and whether it was broken off.
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
