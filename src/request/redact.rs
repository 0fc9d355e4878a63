//! Masks our own credential where a vendor's response repeats it. Callers hold no vendor secrets,
//! and an endpoint that shows the request it received must not hand them one. Pure functions over
//! bytes.
//!
//! ```text
//! Held ──secrets──▶ spellings ──▶ Needles ──▶ Redactor ◀─ the response's body, chunk by chunk
//! ```
//!
//! Text is masked in place, byte for byte, so that lengths stay true. At the end of a chunk, only
//! bytes that may begin a spelling are held back. A compressed body is decoded alongside and never
//! changed: a match cuts it off, and so does too much of it.

mod budget;
mod markup;

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use brotli_decompressor::DecompressorWriter;
use bytes::{Bytes, BytesMut};
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderValue};
use zeroize::Zeroizing;

use self::budget::Budget;
use crate::credential::Held;
use crate::http_fields::is_grpc_stream;
use crate::request::placement::Placement;

/// The needles of a vendor's newest credential, made once for each.
#[derive(Debug, Default)]
pub struct Prepared(ArcSwapOption<(u64, Option<Arc<Needles>>)>);

impl Prepared {
    /// Returns what to search the response to a request for that carried `held`. `None`: nothing of
    /// it is secret, or nothing is long enough to be told from ordinary text.
    #[must_use]
    pub fn needles(&self, placement: &Placement, held: &Held) -> Option<Arc<Needles>> {
        let known = self.0.load();
        if let Some(known) = known.as_deref()
            && known.0 == held.generation()
        {
            return known.1.clone();
        }
        let needles = Needles::new(&placement.secrets(held)).map(Arc::new);
        // Responses to requests with an older credential do not replace the newer one.
        if known
            .as_deref()
            .is_none_or(|known| known.0 < held.generation())
        {
            let made = (held.generation(), needles.clone());
            self.0.store(Some(Arc::new(made)));
        }
        needles
    }
}

/// Shortest secret that is masked. Shorter ones occur in ordinary text by accident; masking them
/// would spoil responses.
const SHORTEST: usize = 4;
/// Shortest base64 of a part of a secret that is masked: a shorter one may be an accident as well.
const SHORTEST_BASE64: usize = 12;
/// Length of the part of an anchor that is searched for; the rest is compared where that is found.
const ANCHOR: usize = 16;
/// Replaces each masked byte, unless a secret holds it: then the next is used.
const MASKS: &[u8] = b"*#-_.~!@$xX0";

/// One vendor's credential, ready to be searched for in every spelling.
///
/// A spelling writes each character in any of the ways of `spelled`. No encoder in use escapes
/// letters and digits, so the longest run of these in a secret is searched for, and the text around
/// it is compared.
pub struct Needles {
    secrets: Vec<Zeroizing<Vec<u8>>>,
    anchors: AhoCorasick,
    /// The secrets that each anchor may be part of, and its position in them.
    anchored: Vec<Vec<(usize, usize)>>,
    /// The bytes that may begin a spelling.
    begins: [bool; 256],
    /// Length of the shortest spelling, bytes.
    shortest: usize,
    /// Length of the longest spelling, bytes.
    longest: usize,
    mask: u8,
}

impl Needles {
    /// Prepares the needles. `None` when there is nothing to search for.
    #[must_use]
    pub fn new(plain: &[Zeroizing<Vec<u8>>]) -> Option<Self> {
        let mut secrets = Vec::new();
        for secret in plain.iter().filter(|secret| secret.len() >= SHORTEST) {
            secrets.push(secret.clone());
            let parts = base64_of(secret).into_iter();
            secrets.extend(parts.filter(|part| part.len() >= SHORTEST_BASE64));
        }
        secrets.sort_by(|one, other| one.cmp(other));
        secrets.dedup_by(|one, other| **one == **other);
        let shortest = secrets.iter().map(|secret| secret.len()).min()?;
        let longest = secrets
            .iter()
            .map(|secret| longest_spelling(secret))
            .max()?;

        let mut begins = [false; 256];
        let mut wanted: Vec<(Vec<u8>, (usize, usize))> = Vec::new();
        for (nth, secret) in secrets.iter().enumerate() {
            let first = secret[0];
            begins[usize::from(first)] = true;
            if !first.is_ascii_alphanumeric() {
                for escape in ESCAPES {
                    begins[usize::from(*escape)] = true;
                }
                begins[usize::from(b'+')] |= first == b' ';
            }
            let run = longest_plain_run(secret);
            if run.is_empty() {
                // Every character may be escaped: the beginning is searched for.
                let first = [first];
                let mut ways = vec![first.to_vec()];
                ways.extend(ESCAPES.iter().map(|escape| vec![*escape]));
                ways.extend((first == [b' ']).then(|| b"+".to_vec()));
                wanted.extend(ways.into_iter().map(|way| (way, (nth, 0))));
            } else {
                let run = run.start..run.end.min(run.start + ANCHOR);
                wanted.push((secret[run.clone()].to_vec(), (nth, run.start)));
            }
        }
        // At most one anchor begins at a place: the shorter one stands for both.
        wanted.sort();
        wanted.dedup();
        let mut anchors: Vec<Vec<u8>> = Vec::new();
        let mut anchored: Vec<Vec<(usize, usize)>> = Vec::new();
        for (anchor, place) in wanted {
            match (anchors.last(), anchored.last_mut()) {
                (Some(last), Some(places)) if anchor.starts_with(last) => places.push(place),
                _ => {
                    anchors.push(anchor);
                    anchored.push(vec![place]);
                }
            }
        }
        let is_free = |mask: &&u8| !secrets.iter().any(|secret| secret.contains(mask));
        let mask = *MASKS.iter().find(is_free).unwrap_or(&b'*');
        Some(Self {
            anchors: AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostFirst)
                .build(&anchors)
                .ok()?,
            anchored,
            secrets,
            begins,
            shortest,
            longest,
            mask,
        })
    }

    /// Tells whether a complete text holds a spelling.
    #[must_use]
    pub fn occur_in(&self, text: &[u8]) -> bool {
        text.len() >= self.shortest && self.find(text).next().is_some()
    }

    /// Masks a complete text. Returns the number of masked places, and the text when there are any.
    #[must_use]
    pub fn masked(&self, text: &[u8]) -> (u64, Option<Vec<u8>>) {
        let found = merged(self.find(text).collect());
        if found.is_empty() {
            return (0, None);
        }
        let count = found.len() as u64;
        let mut copy = text.to_vec();
        for one in found {
            copy[one].fill(self.mask);
        }
        (count, Some(copy))
    }

    /// Masks header values. Returns the number of masked places.
    pub fn mask_fields(&self, fields: &mut HeaderMap) -> u64 {
        let mut count = 0;
        for value in fields.values_mut() {
            if let (found @ 1.., Some(masked)) = self.masked(value.as_bytes())
                && let Ok(masked) = HeaderValue::from_bytes(&masked)
            {
                *value = masked;
                count += found;
            }
        }
        count
    }

    /// Returns every spelling in `text`, in any order; they may overlap.
    fn find(&self, text: &[u8]) -> impl Iterator<Item = Range<usize>> {
        let mut from = 0;
        let hits = std::iter::from_fn(move || {
            let input = Input::new(text).span(from..text.len());
            let hit = self.anchors.find(input)?;
            from = hit.start() + 1;
            Some(hit)
        });
        hits.flat_map(move |hit| {
            let places = &self.anchored[hit.pattern().as_usize()];
            places.iter().filter_map(move |(nth, offset)| {
                let secret = &self.secrets[*nth];
                let end = forwards(&secret[*offset..], &text[hit.start()..]).longest?;
                let start = backwards(&secret[..*offset], &text[..hit.start()])?;
                Some(start..hit.start() + end)
            })
        })
    }

    /// Returns where the end of the text may begin a spelling: the earliest such place, or the
    /// text's length.
    fn unfinished(&self, text: &[u8]) -> usize {
        let from = text.len().saturating_sub(self.longest);
        (from..text.len())
            .filter(|at| self.begins[usize::from(text[*at])])
            .find(|at| {
                let here = &text[*at..];
                self.secrets
                    .iter()
                    .filter(|secret| secret[0] == here[0] || !secret[0].is_ascii_alphanumeric())
                    .any(|secret| forwards(secret, here).more)
            })
            .unwrap_or(text.len())
    }
}

impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Needles")
            .field("secrets", &self.secrets.len())
            .finish_non_exhaustive()
    }
}

/// Returns the characters of `secret`'s base64 that are the same wherever it stands in a longer
/// text.
fn base64_of(secret: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let mut parts = Vec::new();
    for before in 0..3 {
        let shifted = Zeroizing::new([&b"\0\0"[..before], secret].concat());
        // A character holds 6 bits; those that share bits with a neighbour vary.
        let (first, end) = ((before * 8).div_ceil(6), shifted.len() * 8 / 6);
        for alphabet in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let text = Zeroizing::new(alphabet.encode(&shifted));
            parts.push(Zeroizing::new(text.as_bytes()[first..end].to_vec()));
        }
    }
    parts
}

/// Returns the longest run of letters and digits, which every encoder writes in one way only.
fn longest_plain_run(secret: &[u8]) -> Range<usize> {
    let mut longest = 0..0;
    let mut start = 0;
    for (at, byte) in secret.iter().enumerate() {
        if !byte.is_ascii_alphanumeric() {
            start = at + 1;
        } else if at + 1 - start > longest.len() {
            longest = start..at + 1;
        }
    }
    longest
}

/// Returns the length of the longest spelling of `secret`.
fn longest_spelling(secret: &[u8]) -> usize {
    let mut length = 0;
    let mut rest = secret;
    while !rest.is_empty() {
        let (unit, next) = rest.split_at(first_unit(rest));
        let mut longest = 0;
        spelled(unit, None, |spelling, _| {
            longest = longest.max(spelling.len());
        });
        length += longest;
        rest = next;
    }
    length
}

/// Returns the ranges in order, overlapping ones merged.
fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// The comparison of a secret with the beginning of a text.
#[derive(Clone, Copy)]
struct Compared {
    /// The length of its longest spelling there.
    longest: Option<usize>,
    /// The text may begin a spelling, and is too short to tell.
    more: bool,
}

fn forwards(secret: &[u8], text: &[u8]) -> Compared {
    let mut more = false;
    // A character may have been written in two ways that both fit, as `\` and as `\\`.
    let mut ends = Places::one(0);
    let mut rest = secret;
    while !rest.is_empty() && !ends.is_empty() {
        let (unit, next) = rest.split_at(first_unit(rest));
        let mut reached = Places::default();
        for end in ends.iter() {
            let there = &text[end..];
            spelled(unit, there.first().copied(), |spelling, any_case| {
                let both = spelling.len().min(there.len());
                if same(&spelling[..both], &there[..both], any_case) {
                    if both == spelling.len() {
                        reached.add(end + both);
                    } else {
                        more = true;
                    }
                }
            });
        }
        (ends, rest) = (reached, next);
    }
    Compared {
        longest: ends.iter().max(),
        more,
    }
}

/// Returns where the longest spelling of `secret` begins that ends where `text` does.
fn backwards(secret: &[u8], text: &[u8]) -> Option<usize> {
    let mut starts = Places::one(text.len());
    let mut rest = secret;
    while !rest.is_empty() && !starts.is_empty() {
        let (next, unit) = rest.split_at(rest.len() - last_unit(rest));
        let mut reached = Places::default();
        for start in starts.iter() {
            spelled(unit, None, |spelling, any_case| {
                if let Some(at) = start.checked_sub(spelling.len())
                    && same(spelling, &text[at..start], any_case)
                {
                    reached.add(at);
                }
            });
        }
        (starts, rest) = (reached, next);
    }
    starts.iter().min()
}

/// Returns the length of the first character; bytes that are not UTF-8 count as one each.
fn first_unit(text: &[u8]) -> usize {
    let is_character = |length: &usize| {
        text.get(..*length)
            .is_some_and(|unit| std::str::from_utf8(unit).is_ok())
    };
    (1..=4).find(is_character).unwrap_or(1)
}

/// Returns the length of the last character.
fn last_unit(text: &[u8]) -> usize {
    let is_character = |length: &usize| {
        text.len()
            .checked_sub(*length)
            .is_some_and(|start| std::str::from_utf8(&text[start..]).is_ok())
    };
    (1..=4).find(is_character).unwrap_or(1)
}

/// Beginnings of escaped characters: percent-encoding, JSON, HTML.
const ESCAPES: &[u8] = b"%\\&";

/// Passes the spellings of one character to `way`: as it is and, unless it is a letter or digit,
/// percent-encoded (RFC 3986 §2.1), `+` for a blank (HTML forms), escaped as JSON demands or
/// permits (RFC 8259 §7), as a character reference of HTML or XML. With each, whether its letters
/// may have either case. `begin` is its first byte, where that is known.
fn spelled(unit: &[u8], begin: Option<u8>, mut way: impl FnMut(&[u8], bool)) {
    way(unit, false);
    if unit[0].is_ascii_alphanumeric() {
        return;
    }
    if begin.is_some_and(|begin| begin != b'+' && !ESCAPES.contains(&begin)) {
        return;
    }
    let mut escaped = [0; 12];
    for (place, byte) in escaped.chunks_mut(3).zip(unit) {
        place[0] = b'%';
        place[1..].copy_from_slice(&hex_digits(*byte));
    }
    way(&escaped[..unit.len() * 3], true);
    match unit {
        b" " => way(b"+", false),
        [byte @ (b'"' | b'\\' | b'/')] => way(&[b'\\', *byte], false),
        _ => {}
    }
    let character = std::str::from_utf8(unit)
        .ok()
        .and_then(|unit| unit.chars().next());
    if let Some(character) = character {
        let mut units = [0; 2];
        let units = character.encode_utf16(&mut units);
        for (place, unit) in escaped.chunks_mut(6).zip(units.iter()) {
            let [high, low] = unit.to_be_bytes();
            place[..2].copy_from_slice(b"\\u");
            place[2..4].copy_from_slice(&hex_digits(high));
            place[4..].copy_from_slice(&hex_digits(low));
        }
        way(&escaped[..units.len() * 6], true);
        if begin.is_none_or(|begin| begin == b'&') {
            markup::references(character, way);
        }
    }
}

fn hex_digits(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    ]
}

fn same(one: &[u8], other: &[u8], any_case: bool) -> bool {
    one == other || (any_case && one.eq_ignore_ascii_case(other))
}

/// A few places in a text.
#[derive(Default)]
struct Places {
    at: [usize; 8],
    count: usize,
}

impl Places {
    fn one(at: usize) -> Self {
        let mut places = Self::default();
        places.add(at);
        places
    }

    fn add(&mut self, at: usize) {
        // More than 8 at once takes a secret of nothing but backslashes; some of them are enough.
        if self.count < self.at.len() && !self.iter().any(|known| known == at) {
            self.at[self.count] = at;
            self.count += 1;
        }
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        self.at[..self.count].iter().copied()
    }
}

/// The reason why nothing more of a compressed response may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EchoBlocked {
    /// It repeats our credential.
    #[error("it repeats our credential")]
    Echoed,
    /// It is compressed more than once.
    #[error("it is compressed more than once and could not be searched for our credential")]
    Stacked,
    /// It decompresses to more than the budget.
    #[error("it decompresses to so much that it could not be searched for our credential")]
    TooMuch,
}

/// The body of one response on its way to the caller.
#[derive(Debug)]
pub struct Redactor {
    needles: Arc<Needles>,
    body: Body,
    /// Shortest beginning of a spelling that is held back.
    waits_from: usize,
}

enum Body {
    /// Plain, or in an unknown coding. The first `masked` bytes of what is held back belong to a
    /// spelling that began before it.
    Text { held: Bytes, masked: usize },
    /// Compressed. `held` are whole chunks that end within the credential.
    Coded { decoder: Decoder, held: BytesMut },
    /// Compressed, by its own account; nothing of it has come yet.
    Unread(Coding),
    /// Compressed more than once, or labelled so: neither searched nor passed.
    Stacked,
}

#[derive(Clone, Copy)]
enum Coding {
    Gzip,
    Deflate,
    Brotli,
}

/// Most bytes of chunks that are held back although nothing comes out of them.
const HELD: usize = 1 << 20;
/// Shortest beginning of the credential that a compressed stream is stopped for: a shorter one
/// reveals nothing.
const BEGINNING: usize = 8;

/// Returns the known codings of a body, in the order they were applied (RFC 9110 §8.4). Unknown
/// ones are left to decoders to fail on; receivers differ in how they read parameters and quotes.
fn codings(fields: &HeaderMap) -> impl Iterator<Item = Coding> {
    let members = fields
        .get_all(CONTENT_ENCODING)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    members.filter_map(|member| {
        let name = member.split(|byte| *byte == b';').next()?.trim_ascii();
        let unquoted = name
            .strip_prefix(b"\"")
            .and_then(|name| name.strip_suffix(b"\""));
        let is = |known: &[u8]| unquoted.unwrap_or(name).eq_ignore_ascii_case(known);
        if is(b"gzip") || is(b"x-gzip") {
            Some(Coding::Gzip)
        } else if is(b"deflate") {
            Some(Coding::Deflate)
        } else if is(b"br") {
            Some(Coding::Brotli)
        } else {
            None
        }
    })
}

impl Redactor {
    /// Returns a redactor for the body of a response with these headers.
    #[must_use]
    pub fn new(needles: Arc<Needles>, fields: &HeaderMap) -> Self {
        let mut codings = codings(fields);
        let body = match (codings.next(), codings.next()) {
            (None, _) => Body::text(),
            (Some(coding), None) => Body::Unread(coding),
            (Some(_), Some(_)) => Body::Stacked,
        };
        // A gRPC message may be the last for a while; its receiver must not wait for the next one.
        Self {
            needles,
            body,
            waits_from: if is_grpc_stream(fields) { BEGINNING } else { 1 },
        }
    }

    /// Returns the needles.
    #[must_use]
    pub fn needles(&self) -> &Needles {
        &self.needles
    }

    /// Tells whether the body may have to be cut off: it is compressed, and is not changed.
    #[must_use]
    pub fn may_block(&self) -> bool {
        match self.body {
            Body::Unread(_) | Body::Coded { .. } | Body::Stacked => true,
            Body::Text { .. } => false,
        }
    }

    /// Takes the next chunk and leaves in its place what may be sent, which may be nothing. `end`:
    /// it is the last. Returns the number of masked places.
    ///
    /// # Errors
    /// [`EchoBlocked`]: the response must be cut off.
    pub fn pass(&mut self, chunk: &mut Option<Bytes>, end: bool) -> Result<u64, EchoBlocked> {
        let taken = chunk.take().unwrap_or_default();
        if let (Body::Unread(coding), Some(first)) = (&self.body, taken.first()) {
            self.body = Body::begun(*coding, *first, &self.needles);
        }
        let (sent, masked) = match &mut self.body {
            Body::Text { held, masked } => {
                let (text, masked) = (join(held, taken), *masked);
                self.text(text, masked, end)
            }
            Body::Coded { decoder, held } => match decoder.read(&taken) {
                Decoded::Clean { unfinished } => {
                    held.extend_from_slice(&taken);
                    if unfinished >= BEGINNING && !end {
                        if held.len() > HELD {
                            return Err(EchoBlocked::Echoed);
                        }
                        (Bytes::new(), 0)
                    } else {
                        (held.split().freeze(), 0)
                    }
                }
                Decoded::EchoBlocked(why) => return Err(why),
                // The receiver cannot decode it either, and is left with the bytes.
                Decoded::Broken => {
                    let text = join(&held.split().freeze(), taken);
                    self.text(text, 0, end)
                }
            },
            Body::Stacked if !taken.is_empty() => return Err(EchoBlocked::Stacked),
            Body::Unread(_) | Body::Stacked => (taken, 0),
        };
        *chunk = Some(sent);
        Ok(masked)
    }

    /// Returns how long to leave the thread to other requests, after a chunk that caused much work.
    #[must_use]
    pub fn pause(&self) -> Option<Duration> {
        match &self.body {
            Body::Coded { decoder, .. } => decoder.watch().budget.pause(),
            Body::Text { .. } | Body::Unread(_) | Body::Stacked => None,
        }
    }

    /// Returns what is held back when the body has ended without saying so: before trailers.
    #[must_use]
    pub fn finish(&mut self) -> Option<Bytes> {
        let mut rest = None;
        self.pass(&mut rest, true).ok()?;
        rest.filter(|rest| !rest.is_empty())
    }

    /// Returns the part of `text` that may be sent, and the number of masked places. Its first
    /// `known` bytes belong to a spelling that began before. The rest is held back.
    fn text(&mut self, mut text: Bytes, known: usize, end: bool) -> (Bytes, u64) {
        let mut cut = text.len();
        if !end {
            let unfinished = self.needles.unfinished(&text);
            if cut - unfinished >= self.waits_from {
                cut = unfinished;
            }
        }
        let mut found: Vec<_> = self.needles.find(&text).collect();
        if known > 0 {
            found.push(0..known);
        }
        let found = merged(found);
        let over = found
            .iter()
            .filter(|one| one.start < cut || known > 0 && one.start == 0)
            .map(|one| one.end.saturating_sub(cut));
        self.body = Body::Text {
            masked: over.max().unwrap_or(0),
            held: Bytes::copy_from_slice(&text[cut..]),
        };
        if found.is_empty() {
            text.truncate(cut);
            return (text, 0);
        }
        let mut sent = BytesMut::from(&text[..cut]);
        // Spellings that began before were counted before.
        let mut count = 0;
        for one in found.into_iter().filter(|one| one.start < cut) {
            count += u64::from(known == 0 || one.start > 0);
            sent[one.start..one.end.min(cut)].fill(self.needles.mask);
        }
        (sent.freeze(), count)
    }
}

impl Body {
    fn text() -> Self {
        Self::Text {
            held: Bytes::new(),
            masked: 0,
        }
    }

    /// Chooses the decoder of a compressed body by its first byte. A body that is not what it says
    /// is text.
    fn begun(coding: Coding, first: u8, needles: &Arc<Needles>) -> Self {
        let watch = Watch {
            needles: needles.clone(),
            tail: Vec::new(),
            budget: Budget::default(),
            stopped: None,
        };
        let decoder = match coding {
            // RFC 1952 §2.3.1.
            Coding::Gzip if first != 0x1f => return Self::text(),
            Coding::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(watch))),
            // RFC 9110 §8.4.1.2 means zlib's format (RFC 1950 §2.2); some servers send bare
            // deflate.
            Coding::Deflate if first & 15 == 8 => Decoder::Zlib(Box::new(ZlibDecoder::new(watch))),
            Coding::Deflate => Decoder::Deflate(Box::new(DeflateDecoder::new(watch))),
            Coding::Brotli => Decoder::Brotli(Box::new(DecompressorWriter::new(watch, OUTPUT))),
        };
        Self::Coded {
            decoder,
            held: BytesMut::new(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text { .. } => "Text",
            Self::Coded { .. } => "Coded",
            Self::Stacked => "Stacked",
            Self::Unread(_) => "Unread",
        })
    }
}

fn join(held: &Bytes, next: Bytes) -> Bytes {
    if held.is_empty() {
        return next;
    }
    let mut text = BytesMut::with_capacity(held.len() + next.len());
    text.extend_from_slice(held);
    text.extend_from_slice(&next);
    text.freeze()
}

/// Decodes a body only to look at it. Its output is searched in pieces of at most [`OUTPUT`] bytes
/// and dropped.
enum Decoder {
    Gzip(Box<MultiGzDecoder<Watch>>),
    Zlib(Box<ZlibDecoder<Watch>>),
    Deflate(Box<DeflateDecoder<Watch>>),
    Brotli(Box<DecompressorWriter<Watch>>),
}

const OUTPUT: usize = 32 * 1024;

/// The result of decoding a chunk.
enum Decoded {
    /// The text so far ends in this many bytes of a spelling.
    Clean {
        unfinished: usize,
    },
    EchoBlocked(EchoBlocked),
    Broken,
}

impl Decoder {
    fn read(&mut self, chunk: &[u8]) -> Decoded {
        self.watch_mut().budget.add(chunk.len());
        let outcome = match self {
            Self::Gzip(decoder) => feed(decoder, chunk),
            Self::Zlib(decoder) => feed(decoder, chunk),
            Self::Deflate(decoder) => feed(decoder, chunk),
            Self::Brotli(decoder) => feed(decoder, chunk),
        };
        let watch = self.watch();
        if let Some(why) = watch.stopped {
            Decoded::EchoBlocked(why)
        } else if outcome.is_err() {
            Decoded::Broken
        } else {
            Decoded::Clean {
                unfinished: watch.tail.len(),
            }
        }
    }

    fn watch(&self) -> &Watch {
        match self {
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zlib(decoder) => decoder.get_ref(),
            Self::Deflate(decoder) => decoder.get_ref(),
            Self::Brotli(decoder) => decoder.get_ref(),
        }
    }

    fn watch_mut(&mut self) -> &mut Watch {
        match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zlib(decoder) => decoder.get_mut(),
            Self::Deflate(decoder) => decoder.get_mut(),
            Self::Brotli(decoder) => decoder.get_mut(),
        }
    }
}

fn feed(decoder: &mut impl Write, chunk: &[u8]) -> io::Result<()> {
    decoder.write_all(chunk)?;
    decoder.flush()
}

/// The receiver of decoded text.
struct Watch {
    needles: Arc<Needles>,
    /// The end of the text, as far as it may begin a spelling.
    tail: Vec<u8>,
    budget: Budget,
    /// The reason why nothing more is decoded.
    stopped: Option<EchoBlocked>,
}

impl Write for Watch {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.stopped.is_none() {
            self.tail.extend_from_slice(text);
            if !self.budget.make(text.len()) {
                self.stopped = Some(EchoBlocked::TooMuch);
            } else if self.needles.occur_in(&self.tail) {
                self.stopped = Some(EchoBlocked::Echoed);
            }
        }
        if let Some(why) = self.stopped {
            return Err(io::Error::other(why));
        }
        let unfinished = self.needles.unfinished(&self.tail);
        self.tail.drain(..unfinished);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use base64::engine::general_purpose::STANDARD;
    use flate2::Compression;
    use proptest::prelude::*;

    use super::*;

    fn needles(secrets: &[&str]) -> Arc<Needles> {
        let secrets: Vec<_> = secrets
            .iter()
            .map(|secret| Zeroizing::new(secret.as_bytes().to_vec()))
            .collect();
        Arc::new(Needles::new(&secrets).unwrap())
    }

    fn fields(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (http::HeaderName::from_static(name), value.parse().unwrap())
        };
        fields.iter().map(field).collect()
    }

    /// Returns the output for `text` in these chunks, and the number of masked places.
    fn through<'a>(
        redactor: &mut Redactor,
        chunks: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(Vec<u8>, u64), EchoBlocked> {
        let (mut out, mut count) = (Vec::new(), 0);
        for chunk in chunks {
            let mut chunk = Some(Bytes::copy_from_slice(chunk));
            count += redactor.pass(&mut chunk, false)?;
            out.extend_from_slice(&chunk.unwrap_or_default());
        }
        let mut last = None;
        count += redactor.pass(&mut last, true)?;
        out.extend_from_slice(&last.unwrap_or_default());
        Ok((out, count))
    }

    fn masked(secret: &str, text: &str) -> String {
        let mut redactor = Redactor::new(needles(&[secret]), &HeaderMap::new());
        let (out, _) = through(&mut redactor, [text.as_bytes()]).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_spelling_is_masked_at_its_length() {
        let secret = "k+3/\"a=&<\\Z9 u~*x";
        let embedded = |before: &str| STANDARD.encode(format!("{before}{secret} and more"));
        let spellings = [
            // Encoders differ in what they escape, and one may work on another's text.
            "k+3%2f\\\"a%3D&\\u003C\\\\Z9%20u~%2ax".into(),
            secret.to_owned(),
            "k%2B3%2F%22a%3D%26%3C%5CZ9%20u~%2Ax".into(),
            "k%2b3%2f%22a%3d%26%3c%5cZ9%20u~%2ax".into(),
            "k%2B3%2F%22a%3D%26%3C%5CZ9+u%7E*x".into(),
            "k%2B3%2F%22a%3D%26%3C%5CZ9%20u~*x".into(),
            r#"k+3/\"a=&<\\Z9 u~*x"#.into(),
            r#"k+3\/\"a=&<\\Z9 u~*x"#.into(),
            r#"k+3/\"a=\u0026\u003c\\Z9 u~*x"#.into(),
            r#"k+3/\"a\u003d\u0026\u003c\\Z9 u~*x"#.into(),
            r"k\u002B3/\u0022a=\u0026\u003C\\Z9 u~*x".into(),
            // Character references: Python, Go, .NET, PHP, OWASP, XML, and all of it by name.
            r"k+3/&quot;a=&amp;&lt;\Z9 u~*x".into(),
            r"k+3/&#34;a=&amp;&lt;\Z9 u~*x".into(),
            r"k&#x2B;3/&quot;a=&amp;&lt;\Z9 u~*x".into(),
            r"k+3/&#034;a=&#038;&lt;\Z9 u~*x".into(),
            "k&#x2b;3&#x2F;&#x22;a&#x3D;&#X26;&#x3c;&#x5C;Z9&#x20;u&#x7e;&#x2a;x".into(),
            "k&#43;3&#47;&#34;a&#61;&#38;&#60;&#92;Z9&#32;u&#126;&#42;x".into(),
            "k&plus;3&sol;&quot;a&equals;&amp;&lt;&bsol;Z9 u~&ast;x".into(),
            // In a script of a page, and in a link.
            r"k+3\/&quot;a=\u0026&lt;\\Z9+u~*x".into(),
        ];
        for spelling in spellings {
            let text = format!("<a>{spelling}</a>");
            let masked = masked(secret, &text);
            assert_eq!(masked.len(), text.len());
            assert!(masked.starts_with("<a>###"), "{spelling}: {masked}");
            assert!(masked.ends_with("###</a>"), "{spelling}: {masked}");
        }
        for before in ["", "1", "12", "123"] {
            let masked = masked(secret, &embedded(before));
            assert!(masked.matches('#').count() > 20, "{before}: {masked}");
        }
    }

    #[test]
    fn a_credential_that_is_escaped_throughout_is_found_wherever_a_chunk_ends() {
        let secret = "'/+='&'";
        for spelling in [
            "&#x27;&#x2F;&#x2B;&#x3D;&#x27;&#x26;&#x27;",
            "&#39;/+=&#39;&amp;&#39;",
            "&apos;&sol;&plus;&equals;&#039;&amp;'",
        ] {
            let text = format!("a&b;{spelling}&amp;");
            for cut in 1..text.len() {
                let mut redactor = Redactor::new(needles(&[secret]), &HeaderMap::new());
                let (first, second) = text.as_bytes().split_at(cut);
                let (out, count) = through(&mut redactor, [first, second]).unwrap();
                let stars = "*".repeat(spelling.len());
                let out = String::from_utf8(out).unwrap();
                assert_eq!((out, count), (format!("a&b;{stars}&amp;"), 1), "{cut}");
            }
        }
    }

    #[test]
    fn what_is_no_credential_passes_untouched_and_at_once() {
        let mut redactor = Redactor::new(needles(&["needle-7"]), &HeaderMap::new());
        let text = Bytes::from_static(b"hay, and more hay: needl, needle-6");
        let mut chunk = Some(text.clone());
        assert_eq!(redactor.pass(&mut chunk, false), Ok(0));
        assert_eq!(chunk.as_ref().unwrap().as_ptr(), text.as_ptr());
        assert_eq!(chunk, Some(text));

        let mut held = Some(Bytes::from_static(b"data: need"));
        redactor.pass(&mut held, false).unwrap();
        assert_eq!(held, Some(Bytes::from_static(b"data: ")));
        let mut next = Some(Bytes::from_static(b"y\n\n"));
        redactor.pass(&mut next, false).unwrap();
        assert_eq!(next, Some(Bytes::from_static(b"needy\n\n")));
    }

    #[test]
    fn a_body_that_ends_within_a_beginning_is_whole() {
        assert_eq!(masked("needle-7", "the needle"), "the needle");
        let mut redactor = Redactor::new(needles(&["needle-7"]), &HeaderMap::new());
        let mut chunk = Some(Bytes::from_static(b"the needle"));
        redactor.pass(&mut chunk, false).unwrap();
        assert_eq!(redactor.finish(), Some(Bytes::from_static(b"needle")));
        assert_eq!(redactor.finish(), None);
    }

    #[test]
    fn short_secrets_and_none_are_not_searched_for() {
        assert!(Needles::new(&[]).is_none());
        assert!(Needles::new(&[Zeroizing::new(b"abc".to_vec())]).is_none());
    }

    #[test]
    fn field_values_are_masked() {
        let mut head = fields(&[("x-echo", "Bearer t0ken-t0ken"), ("x-other", "t0ken")]);
        assert_eq!(needles(&["t0ken-t0ken"]).mask_fields(&mut head), 1);
        assert_eq!(head["x-echo"], "Bearer ***********");
        assert_eq!(head["x-other"], "t0ken");
    }

    /// Text that compresses into many symbols, with `secret` in the middle.
    fn around(secret: &str) -> Vec<u8> {
        let mut text: Vec<u8> = (0..20_000_u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        text.splice(40_000..40_000, secret.bytes());
        text
    }

    fn coded(coding: &str, text: &[u8]) -> Vec<u8> {
        let level = Compression::default();
        let mut out = Vec::new();
        match coding {
            "gzip" => flate2::read::GzEncoder::new(text, level).read_to_end(&mut out),
            "zlib" => flate2::read::ZlibEncoder::new(text, level).read_to_end(&mut out),
            "deflate" => flate2::read::DeflateEncoder::new(text, level).read_to_end(&mut out),
            _ => brotli::CompressorReader::new(text, 4096, 5, 20).read_to_end(&mut out),
        }
        .unwrap();
        out
    }

    #[test]
    fn what_is_compressed_twice_is_not_passed() {
        let mut twice = fields(&[("content-encoding", "deflate, gzip")]);
        let mut in_two = fields(&[("content-encoding", "gzip")]);
        in_two.append("content-encoding", "gzip".parse().unwrap());
        for head in [&mut twice, &mut in_two] {
            let mut redactor = Redactor::new(needles(&["t0ken-t0ken"]), head);
            assert!(redactor.pass(&mut Some(Bytes::new()), false).is_ok());
            let mut some = Some(Bytes::from_static(b"any"));
            assert_eq!(redactor.pass(&mut some, false), Err(EchoBlocked::Stacked));
            assert_eq!(some, None);
        }
    }

    #[test]
    fn compressed_bodies_pass_byte_for_byte_or_break_off_before_the_credential() {
        let secret = "a-secret-of-some-length-0123456789";
        for (coding, label) in [
            ("gzip", "gzip"),
            ("gzip", "X-GZip"),
            ("gzip", "identity, gzip"),
            ("gzip", ", gzip;q=1"),
            ("gzip", "\"gzip\", aws-chunked"),
            ("zlib", "deflate"),
            ("deflate", "deflate"),
            ("br", "br"),
        ] {
            let head = fields(&[("content-encoding", label)]);
            let redactor = || Redactor::new(needles(&[secret]), &head);
            for size in [1, 7, 1000, 1 << 20] {
                let clean = coded(coding, &around("nothing of the kind"));
                let (out, _) = through(&mut redactor(), clean.chunks(size)).unwrap();
                assert!(out == clean, "{coding} by {size}");

                let echo = coded(coding, &around(secret));
                let mut redactor = redactor();
                let mut sent = 0;
                let mut broken = false;
                for chunk in echo.chunks(size) {
                    let mut chunk = Some(Bytes::copy_from_slice(chunk));
                    if redactor.pass(&mut chunk, false).is_err() {
                        broken = true;
                        break;
                    }
                    sent += chunk.unwrap().len();
                }
                assert!(broken, "{coding} by {size}");
                let mut read = Vec::new();
                let part = &echo[..sent];
                // Cut off in the middle, so the outcome is an error; what was read counts.
                let _ = match coding {
                    "gzip" => flate2::read::GzDecoder::new(part).read_to_end(&mut read),
                    "zlib" => flate2::read::ZlibDecoder::new(part).read_to_end(&mut read),
                    "deflate" => flate2::read::DeflateDecoder::new(part).read_to_end(&mut read),
                    _ => brotli_decompressor::Decompressor::new(part, 4096).read_to_end(&mut read),
                };
                let begun = String::from_utf8_lossy(&read).contains(&secret[..=BEGINNING]);
                assert!(!begun, "{coding} by {size}: {sent}");
            }
        }
    }

    /// Returns the number of decoded bytes.
    fn decoded(redactor: &Redactor) -> u64 {
        let Body::Coded { decoder, .. } = &redactor.body else {
            panic!("{redactor:?}");
        };
        decoder.watch().budget.made()
    }

    /// Returns this many zeros, compressed.
    fn zeros(coding: &str, length: u64) -> Vec<u8> {
        let level = Compression::best();
        let zeros = io::repeat(0).take(length);
        let mut out = Vec::new();
        match coding {
            "gzip" => flate2::read::GzEncoder::new(zeros, level).read_to_end(&mut out),
            "zlib" => flate2::read::ZlibEncoder::new(zeros, level).read_to_end(&mut out),
            "deflate" => flate2::read::DeflateEncoder::new(zeros, level).read_to_end(&mut out),
            _ => brotli::CompressorReader::new(zeros, 1 << 16, 5, 22).read_to_end(&mut out),
        }
        .unwrap();
        out
    }

    #[test]
    fn what_decompresses_to_too_much_is_not_decompressed_to_its_end() {
        const MIB: u64 = 1 << 20;
        for (coding, label) in [
            ("gzip", "gzip"),
            ("zlib", "deflate"),
            ("deflate", "deflate"),
            ("br", "br"),
        ] {
            let head = fields(&[("content-encoding", label)]);
            let bomb = zeros(coding, 256 * MIB);
            // In one go, and piece by piece.
            for (size, most) in [(1 << 20, 33 * MIB), (1000, 96 * MIB), (1, 96 * MIB)] {
                let mut redactor = Redactor::new(needles(&["needle-7"]), &head);
                let outcome = through(&mut redactor, bomb.chunks(size));
                assert_eq!(outcome, Err(EchoBlocked::TooMuch), "{coding} by {size}");
                assert!(decoded(&redactor) <= most, "{coding} by {size}");
                // Nor is it by another call.
                let mut more = Some(Bytes::copy_from_slice(&bomb));
                assert!(redactor.pass(&mut more, false).is_err());
                assert!(decoded(&redactor) <= most, "{coding} by {size}");
            }
        }
    }

    #[test]
    fn what_may_well_be_compressed_so_much_passes_and_leaves_others_their_turn() {
        let row = "{\"id\":\"0000-0000\",\"state\":\"issued\",\"owner\":null},";
        let like = row.repeat((10 << 20) / row.len());
        let counted: String = (0..)
            .map(|n| row.replace("0000-0000", &n.to_string()))
            .take(200_000)
            .collect();
        for (coding, label) in [("gzip", "gzip"), ("zlib", "deflate"), ("br", "br")] {
            let head = fields(&[("content-encoding", label)]);
            for text in [&like, &counted] {
                let whole = coded(coding, text.as_bytes());
                for size in [1000, 1 << 16] {
                    let mut redactor = Redactor::new(needles(&["needle-7"]), &head);
                    let (out, _) = through(&mut redactor, whole.chunks(size)).unwrap();
                    assert!(out == whole, "{coding} by {size}");
                    assert_eq!(decoded(&redactor), text.len() as u64);
                }
            }
            let mut redactor = Redactor::new(needles(&["needle-7"]), &head);
            assert_eq!(redactor.pause(), None);
            redactor
                .pass(&mut Some(coded(coding, like.as_bytes()).into()), false)
                .unwrap();
            assert!(redactor.pause().is_some(), "{coding}");
            redactor.pass(&mut None, true).unwrap();
            assert_eq!(redactor.pause(), None, "{coding}");
        }
    }

    #[test]
    fn what_is_not_compressed_as_it_says_is_masked_as_text() {
        let head = fields(&[("content-encoding", "gzip")]);
        let mut redactor = Redactor::new(needles(&["needle-7"]), &head);
        let (out, count) = through(&mut redactor, [&b"a needle"[..], b"-7 in it"]).unwrap();
        assert_eq!((out.as_slice(), count), (&b"a ******** in it"[..], 1));
    }

    proptest! {
        #[test]
        fn chunks_change_nothing_and_the_secret_never_passes(
            secret in r#"[ab+\\"%&]{4,6}"#,
            parts in prop::collection::vec(r#"[ab+\\"%&]{0,6}|%2B|%5c|\\u002b|&#x2[Bb];|&#43;|&amp;|&quot;|SECRET"#, 0..12),
            cuts in prop::collection::vec(1_usize..9, 1..20),
        ) {
            let text = parts.concat().replace("SECRET", &secret);
            let needles = needles(&[&secret, "abba+abba"]);
            let mut whole = Redactor::new(needles.clone(), &HeaderMap::new());
            let (expected, _) = through(&mut whole, [text.as_bytes()]).unwrap();

            let mut chunks = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (chunk, left) = rest.split_at((*cut).min(rest.len()));
                chunks.push(chunk);
                rest = left;
            }
            let mut redactor = Redactor::new(needles, &HeaderMap::new());
            let (out, _) = through(&mut redactor, chunks).unwrap();

            prop_assert_eq!(&out, &expected);
            prop_assert_eq!(out.len(), text.len());
            prop_assert!(!String::from_utf8_lossy(&out).contains(&secret));
        }

        #[test]
        fn no_body_is_held_back_but_for_a_true_beginning(text in "[a-c]{0,40}") {
            let mut redactor = Redactor::new(needles(&["abcabcac"]), &HeaderMap::new());
            let mut chunk = Some(Bytes::copy_from_slice(text.as_bytes()));
            redactor.pass(&mut chunk, false).unwrap();
            let held = text.len() - chunk.unwrap().len();
            prop_assert!("abcabcac".starts_with(&text[text.len() - held..]));
        }
    }
}
