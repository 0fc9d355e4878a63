//! Whether two programs did the same: what must differ is taken out, and what may differ is in a
//! table.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::LazyLock;

use regex::bytes::Regex;

use super::cases::{Case, Step, escaped};
use super::vendor::Seen;
use super::wire::{self, Extent, Framing, Message};

/// What one program did, free of what must differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Normal {
    /// What the caller got on each of its connections.
    pub talks: Vec<Talk>,
    /// What the vendor got.
    pub seen: Vec<Seen>,
}

/// What the caller got on one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Talk {
    /// The responses.
    pub messages: Vec<Message>,
    /// Bytes behind them that are no response.
    pub rest: Vec<u8>,
    /// How it ended.
    pub end: End,
}

/// How a connection of the caller's ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was open until the caller went.
    Open,
    /// The proxy closed it in good order.
    Closed,
    /// The proxy reset it.
    Reset,
}

/// What one program did.
#[derive(Clone, Debug)]
pub struct Raw {
    /// The bytes that the caller got on each connection, and how that ended.
    pub talks: Vec<(Vec<u8>, End)>,
    /// What the vendor got.
    pub seen: Vec<Seen>,
    /// Texts that are other ones for each program: addresses, and what to call them.
    pub addresses: Vec<(String, &'static str)>,
}

/// A difference that may be.
pub struct Permitted {
    /// Its name.
    pub name: &'static str,
    /// Why it may be.
    pub reason: &'static str,
    /// Takes the difference out of what the other program did, and this one. `false`: it is not
    /// there. Whatever is left is a difference all the same, so this must take out nothing else.
    pub take_out: fn(&Case, &mut Normal, &mut Normal) -> bool,
}

/// The differences that may be, of the program with a request loop of its own (ours) from the one
/// that uses pingora's (the other).
pub const PERMITTED: [Permitted; 8] = [
    Permitted {
        name: "interim",
        reason: "Callers of HTTP/1.0 do not know interim responses (RFC 9110 §15.2), and get none.",
        take_out: interim,
    },
    Permitted {
        name: "words",
        reason: "Which rule a refused head breaks is said where the parser alone refused it, in the same words for all.",
        take_out: words,
    },
    Permitted {
        name: "invalid chunks",
        reason: "A vendor's chunks that are none break the response off. Some were taken for the last chunk.",
        take_out: invalid_chunks,
    },
    Permitted {
        name: "dates",
        reason: "Date is the vendor's or the proxy's, where there is one. Keep-alive goes without saying in HTTP/1.1, and close where the connection is closed.",
        take_out: dates,
    },
    Permitted {
        name: "refused head",
        reason: "A head that the parser refuses gets a problem. The parser's own response had a status alone.",
        take_out: refused_head,
    },
    Permitted {
        name: "half-closed",
        reason: "A caller that has ended its side waits for the response, and gets it. It was taken for gone.",
        take_out: half_closed,
    },
    Permitted {
        name: "kept",
        reason: "The connection is kept after a local reply, after Expect and after an early response, when the request has been read to its end. It was closed.",
        take_out: kept,
    },
    Permitted {
        name: "incomplete body",
        reason: "How much of a body is forwarded that never ends depends on who notices first.",
        take_out: incomplete_body,
    },
];

/// The first difference in words, and the permitted ones that were taken out before.
pub fn compare(case: &Case, other: &Raw, ours: &Raw) -> (Option<String>, Vec<&'static str>) {
    let (mut other, mut ours) = (normal(case, other), normal(case, ours));
    let mut taken = Vec::new();
    if other == ours {
        return (None, taken);
    }
    for permitted in PERMITTED {
        if (permitted.take_out)(case, &mut other, &mut ours) {
            taken.push(permitted.name);
        }
    }
    (difference(&other, &ours), taken)
}

/// What one program did, without what must differ.
pub fn normal(case: &Case, raw: &Raw) -> Normal {
    let sent = case.sent();
    let clean = |bytes: &[u8]| without_names(bytes, &raw.addresses);
    let talk = |(number, (bytes, end)): (usize, &(Vec<u8>, End))| {
        let (requests, _) = wire::requests(sent.get(number).map_or(&[], |sent| &sent[..]));
        let (mut messages, rest) = wire::responses(bytes, &requests);
        for message in &mut messages {
            for line in &mut message.fields {
                *line = clean(line);
            }
            message.body = clean(&message.body);
        }
        Talk {
            messages,
            rest: clean(&rest),
            end: *end,
        }
    };
    let seen = raw.seen.iter().map(|seen| Seen {
        head: clean(&seen.head),
        ..seen.clone()
    });
    Normal {
        talks: raw.talks.iter().enumerate().map(talk).collect(),
        seen: seen.collect(),
    }
}

/// `bytes` without addresses, dates, request ids of the proxy's making, and tokens.
fn without_names(bytes: &[u8], addresses: &[(String, &'static str)]) -> Vec<u8> {
    static NAMES: LazyLock<[(Regex, &[u8]); 3]> = LazyLock::new(|| {
        [
            (r"(?i-u)^Date: .*", &b"Date: then"[..]),
            (
                r"(?-u)\b[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}\b",
                b"ID",
            ),
            (r"(?-u)\btoken-[0-9]{6}\b", b"TOKEN"),
        ]
        .map(|(pattern, instead)| (Regex::new(pattern).unwrap(), instead))
    });
    let mut text = bytes.to_vec();
    for (address, instead) in addresses {
        while let Some(at) = wire::find(&text, address.as_bytes()) {
            text.splice(at..at + address.len(), instead.bytes());
        }
    }
    for (pattern, instead) in NAMES.iter() {
        if pattern.is_match(&text) {
            text = pattern.replace_all(&text, *instead).into_owned();
        }
    }
    text
}

/// The first difference in words: short, because differences of one kind are counted by it.
fn difference(other: &Normal, ours: &Normal) -> Option<String> {
    if other == ours {
        return None;
    }
    for (other, ours) in other.talks.iter().zip(&ours.talks) {
        if let Some(found) = difference_of_talks(other, ours) {
            return Some(found);
        }
    }
    let (many, more) = (other.seen.len(), ours.seen.len());
    if many != more {
        return Some(format!("the vendor saw {many} and {more} requests"));
    }
    for (other, ours) in other.seen.iter().zip(&ours.seen) {
        let found = [
            ("head", other.head != ours.head),
            ("body", other.body != ours.body),
            ("extras", other.extras != ours.extras),
            ("extent", other.extent != ours.extent),
            ("tunnel", other.tunnel != ours.tunnel),
        ];
        if let Some((what, _)) = found.iter().find(|(_, differs)| *differs) {
            return Some(format!("the vendor saw another {what}"));
        }
    }
    Some("the number of the caller's connections".to_owned())
}

fn difference_of_talks(other: &Talk, ours: &Talk) -> Option<String> {
    let statuses =
        |talk: &Talk| -> Vec<u16> { talk.messages.iter().map(Message::status).collect() };
    let (theirs, own) = (statuses(other), statuses(ours));
    if theirs != own {
        return Some(format!("statuses {theirs:?} and {own:?}"));
    }
    for (other, ours) in other.messages.iter().zip(&ours.messages) {
        let status = other.status();
        if other.fields != ours.fields {
            let lines = |one: &Message, two: &Message| {
                let only = one.fields.iter().find(|line| !two.fields.contains(line));
                only.map_or_else(String::new, |line| escaped(line))
            };
            let (theirs, own) = (lines(other, ours), lines(ours, other));
            return Some(format!("fields of {status}: \"{theirs}\" and \"{own}\""));
        }
        let found = [
            ("status line", other.start != ours.start),
            ("framing", other.framing != ours.framing),
            ("body", other.body != ours.body),
            ("extras", other.extras != ours.extras),
            ("extent", other.extent != ours.extent),
        ];
        if let Some((what, _)) = found.iter().find(|(_, differs)| *differs) {
            return Some(format!("{what} of {status}"));
        }
    }
    if other.rest != ours.rest {
        return Some("what follows the responses".to_owned());
    }
    let ends = (other.end, ours.end);
    (ends.0 != ends.1).then(|| format!("the end: {:?} and {:?}", ends.0, ends.1))
}

impl fmt::Display for Normal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for talk in &self.talks {
            for message in &talk.messages {
                writeln!(f, "    got {}", escaped(&message.start))?;
                for line in &message.fields {
                    writeln!(f, "      {}", escaped(line))?;
                }
                let body = escaped(&message.body);
                writeln!(
                    f,
                    "      {:?}, {:?}: \"{body}\"",
                    message.framing, message.extent
                )?;
                for line in &message.extras {
                    writeln!(f, "      + {}", escaped(line))?;
                }
            }
            if !talk.rest.is_empty() {
                writeln!(
                    f,
                    "    got, which is no response, \"{}\"",
                    escaped(&talk.rest)
                )?;
            }
            writeln!(f, "    end: {:?}", talk.end)?;
        }
        for seen in &self.seen {
            let (head, body) = (escaped(&seen.head), escaped(&seen.body));
            writeln!(f, "    vendor saw \"{head}\"")?;
            writeln!(f, "      {:?}: \"{body}\"", seen.extent)?;
            for line in &seen.extras {
                writeln!(f, "      + {}", escaped(line))?;
            }
            if !seen.tunnel.is_empty() {
                writeln!(f, "      then \"{}\"", escaped(&seen.tunnel))?;
            }
        }
        Ok(())
    }
}

/// The pairs of talks.
fn talks<'a>(
    other: &'a mut Normal,
    ours: &'a mut Normal,
) -> impl Iterator<Item = (&'a mut Talk, &'a mut Talk)> {
    other.talks.iter_mut().zip(&mut ours.talks)
}

fn dates(_: &Case, other: &mut Normal, ours: &mut Normal) -> bool {
    let mut found = false;
    for (other, ours) in talks(other, ours) {
        let both_end = other.end == ours.end && other.end != End::Open;
        let last = other.messages.len().min(ours.messages.len());
        let pairs = other.messages.iter_mut().zip(&mut ours.messages);
        for (number, (one, two)) in pairs.enumerate() {
            if one.fields == two.fields {
                continue;
            }
            let says = |message: &Message, option| {
                let mut lines = message.fields.iter();
                lines.any(|line| is_connection(line, option))
            };
            // One that promises what the other denies is no matter of course.
            let opposite =
                says(one, KEEP) && says(two, CLOSE) || says(one, CLOSE) && says(two, KEEP);
            let ends = both_end && number + 1 == last;
            let goes = |line: &Vec<u8>| {
                wire::value_of(line, "date").is_some()
                    || !opposite && is_connection(line, KEEP)
                    || !opposite && ends && is_connection(line, CLOSE)
            };
            for message in [one, two] {
                let before = message.fields.len();
                message.fields.retain(|line| !goes(line));
                found |= message.fields.len() < before;
            }
        }
    }
    found
}

fn interim(case: &Case, other: &mut Normal, ours: &mut Normal) -> bool {
    let mut found = false;
    for (sent, (other, ours)) in case.sent().iter().zip(talks(other, ours)) {
        let line = sent.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let first_is_old = line.trim_ascii_end().ends_with(b" HTTP/1.0");
        let requests = wire::requests(sent).0;
        // Of the request whose turn it is.
        let is_old = |answered: usize| {
            let request = requests.get(answered);
            request.map_or(answered == 0 && first_is_old, |request| request.old)
        };
        let of_old = |messages: &[Message]| -> Vec<bool> {
            let mut answered = 0;
            let each = messages.iter().map(|message| {
                let goes = message.is_interim() && is_old(answered);
                answered += usize::from(!message.is_interim());
                goes
            });
            each.collect()
        };
        let goes = of_old(&other.messages);
        if goes.contains(&true) && !of_old(&ours.messages).contains(&true) {
            let mut goes = goes.into_iter();
            other.messages.retain(|_| !goes.next().unwrap_or_default());
            found = true;
        }
    }
    found
}

fn refused_head(_: &Case, other: &mut Normal, ours: &mut Normal) -> bool {
    let mut found = false;
    for (other, ours) in talks(other, ours) {
        let same = other.messages.len() == ours.messages.len();
        let (Some(theirs), Some(own)) = (other.messages.last_mut(), ours.messages.last()) else {
            continue;
        };
        let bare = theirs.framing == Framing::Length(0) || theirs.framing == Framing::Close;
        let problem = own.field("content-type") == Some(b"application/problem+json");
        if same
            && theirs.status() == 400
            && own.status() == 400
            && bare
            && theirs.body.is_empty()
            && problem
            && own.extent == Extent::Whole
        {
            *theirs = own.clone();
            found = true;
        }
    }
    found
}

fn words(_: &Case, other: &mut Normal, ours: &mut Normal) -> bool {
    let mut found = false;
    for (other, ours) in talks(other, ours) {
        for (theirs, own) in other.messages.iter_mut().zip(&ours.messages) {
            let alone = b"The request's head cannot be parsed.";
            let refuses = |message: &Message| {
                let reason = b"\"reason\":\"bad_request\"";
                message.status() == 400
                    && message.field("proxy-status").is_some()
                    && wire::find(&message.body, reason).is_some()
            };
            if refuses(theirs) && refuses(own) && wire::find(&theirs.body, alone).is_some() {
                let length = |line: &Vec<u8>| wire::value_of(line, "content-length").is_some();
                let lines = theirs.fields.iter_mut().filter(|line| length(line));
                for (one, two) in lines.zip(own.fields.iter().filter(|line| length(line))) {
                    one.clone_from(two);
                }
                found |= theirs.body != own.body;
                theirs.body.clone_from(&own.body);
                theirs.framing = own.framing;
            }
        }
    }
    found
}

fn invalid_chunks(case: &Case, other: &mut Normal, ours: &mut Normal) -> bool {
    if !case.answers.iter().any(has_invalid_chunks) {
        return false;
    }
    let (Some(theirs), Some(own)) = (other.talks.last_mut(), ours.talks.last_mut()) else {
        return false;
    };
    let last = own.messages.len().wrapping_sub(1);
    let Some((broken, message)) = own.messages.last_mut().zip(theirs.messages.get(last)) else {
        return false;
    };
    let is_cut = broken.extent == Extent::Cut && own.end != End::Open;
    let begins = message.body.starts_with(&broken.body);
    if !is_cut || !begins || broken.start != message.start {
        return false;
    }
    // The connection cannot go on behind it, for the vendor neither.
    *broken = message.clone();
    theirs.messages.truncate(last + 1);
    theirs.end = own.end;
    if other.seen.starts_with(&ours.seen) {
        other.seen.truncate(ours.seen.len());
    }
    true
}

/// `true` if the answer is in chunks that cannot be read.
fn has_invalid_chunks(answer: &super::cases::Answer) -> bool {
    use bytes::BytesMut;
    use countersign::http1::body::BodyReader;
    use countersign::http1::chunks::Chunks;

    use super::cases::Act;

    let sent = answer.0.iter().filter_map(|act| match act {
        Act::Send(bytes) => Some(&bytes[..]),
        Act::Pause(_) | Act::Body | Act::Close | Act::Reset | Act::Tunnel => None,
    });
    let sent = sent.collect::<Vec<_>>().concat();
    let Some(at) = wire::find(&sent, b"\r\n\r\n") else {
        return false;
    };
    let mut input = BytesMut::from(&sent[at + 4..]);
    let mut reader = BodyReader::Chunked(Chunks::default());
    let chunked = wire::find(&sent[..at].to_ascii_lowercase(), b"chunked").is_some();
    let mut taken =
        || std::iter::from_fn(|| reader.take(&mut input).transpose()).find(Result::is_err);
    chunked && taken().is_some()
}

fn half_closed(case: &Case, other: &mut Normal, ours: &mut Normal) -> bool {
    if !case.steps.contains(&Step::HalfClose) {
        return false;
    }
    let Some((theirs, own)) = other.talks.last_mut().zip(ours.talks.last_mut()) else {
        return false;
    };
    // The response that broke off when the caller was taken for gone.
    let mut whole = false;
    if let Some((cut, message)) = theirs.messages.last_mut().zip(own.messages.last())
        && cut.extent == Extent::Cut
        && message.extent == Extent::Whole
        && cut.fields == message.fields
        && message.body.starts_with(&cut.body)
    {
        *cut = message.clone();
        whole = true;
    }
    let have = theirs.messages.len();
    let more = own.messages.len() > have;
    if !(more || whole) || theirs.messages[..] != own.messages[..have.min(own.messages.len())] {
        return false;
    }
    own.messages.truncate(have);
    theirs.end = own.end;
    // What was sent of the request whose caller was taken for gone, and of those behind it.
    let sent = case.sent();
    let requests = wire::requests(sent.last().map_or(&[], |sent| &sent[..])).0;
    let begun = ours.seen.get(other.seen.len().wrapping_sub(1));
    let begun = other.seen.last_mut().zip(begun);
    if let Some((theirs, own)) = begun
        && theirs.head == own.head
        && theirs.extent == Extent::Cut
        && own.body.starts_with(&theirs.body)
    {
        *theirs = own.clone();
    }
    if ours.seen.starts_with(&other.seen) && ours.seen.len() <= requests.len() {
        ours.seen.truncate(other.seen.len());
    }
    true
}

fn kept(case: &Case, other: &mut Normal, ours: &mut Normal) -> bool {
    let sent = case.sent();
    // Only the last connection can have requests that one of the two did not get to.
    let (Some(sent), Some((theirs, own))) = (
        sent.last(),
        other.talks.last_mut().zip(ours.talks.last_mut()),
    ) else {
        return false;
    };
    let finals = |talk: &Talk| {
        let finals = talk.messages.iter().filter(|message| !message.is_interim());
        finals.count()
    };
    let (answered, (requests, only)) = (finals(theirs), wire::requests(sent));
    let request = answered.checked_sub(1).and_then(|at| requests.get(at));
    let Some((last, request)) = theirs.messages.last().zip(request) else {
        return false;
    };
    let reason = last.field("proxy-status").is_some() || request.expects || is_early(case);
    let have = theirs.messages.len();
    let goes_on = own.messages.len() > have || own.end == End::Open;
    if theirs.end == End::Open || !reason || !goes_on || own.messages.len() < have {
        return false;
    }
    // What goes on must be requests that can be read in one way only; what cannot is refused, and
    // ends the connection.
    let refused = own
        .messages
        .last()
        .is_some_and(|message| message.status() == 400 && message.field("proxy-status").is_some());
    let odd = usize::from(!only && refused && own.end != End::Open);
    if finals(own) > requests.len() + odd {
        return false;
    }
    own.messages.truncate(have);
    own.end = theirs.end;
    for talk in [theirs, own] {
        if let Some(message) = talk.messages.last_mut() {
            let says = |line: &Vec<u8>| is_connection(line, CLOSE) || is_connection(line, KEEP);
            message.fields.retain(|line| !says(line));
        }
    }
    let more = ours.seen.len().saturating_sub(other.seen.len());
    if more <= requests.len() - answered && ours.seen.starts_with(&other.seen) {
        ours.seen.truncate(other.seen.len());
    }
    true
}

const CLOSE: &str = "close";
const KEEP: &str = "keep-alive";

/// `true` for `Connection` with this option alone.
fn is_connection(line: &[u8], option: &str) -> bool {
    let value = wire::value_of(line, "connection");
    value.is_some_and(|value| value.eq_ignore_ascii_case(option.as_bytes()))
}

/// `true` if the vendor answers before it has read the body.
fn is_early(case: &Case) -> bool {
    use super::cases::Act;

    let early = |act: Option<&Act>| act.is_some_and(|act| *act != Act::Body);
    case.answers.iter().any(|answer| early(answer.0.first()))
}

fn incomplete_body(_: &Case, other: &mut Normal, ours: &mut Normal) -> bool {
    if other.seen.len() != ours.seen.len() {
        return false;
    }
    let (Some(theirs), Some(own)) = (other.seen.last_mut(), ours.seen.last_mut()) else {
        return false;
    };
    let cut = theirs.extent == Extent::Cut && own.extent == Extent::Cut;
    let begins = theirs.body.starts_with(&own.body) || own.body.starts_with(&theirs.body);
    if !cut || !begins || theirs.body == own.body {
        return false;
    }
    theirs.body.clone_from(&own.body);
    true
}
