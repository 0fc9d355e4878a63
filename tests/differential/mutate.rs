//! Changes of cases, drawn from a seed.

use fastrand::Rng;

use super::cases::{Act, Case, Step};

/// What is put between other bytes.
const PIECES: [&[u8]; 40] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\n\n",
    b" ",
    b"\t",
    b"\0",
    b"\x0b",
    b"\x7f",
    b"\x80",
    b"\xff",
    b":",
    b";",
    b",",
    b"0",
    b"1",
    b"a",
    b"0\r\n\r\n",
    b"\r\n ",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v/inner HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: content-length\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"X-Y: z\r\n",
    b"5\r\nhello\r\n",
    b"0;x=y\r\n",
    b"chunked",
    b"/v/x",
];

/// A change of one of `seeds`, the same for the same `seed`.
pub fn mutated(seeds: &[Case], seed: u64) -> Case {
    let mut rng = Rng::with_seed(seed);
    let pick = |rng: &mut Rng| {
        loop {
            // Renewals are too far apart to be part of many cases.
            let case = &seeds[rng.usize(..seeds.len())];
            if !case.renews {
                return case.clone();
            }
        }
    };
    let mut case = pick(&mut rng);
    if rng.u8(..4) == 0 {
        let other = pick(&mut rng);
        splice(&mut rng, &mut case, other);
    }
    for _ in 0..rng.usize(1..=3) {
        change(&mut rng, &mut case);
    }
    if rng.u8(..3) == 0 {
        split(&mut rng, &mut case);
    }
    case.name = format!("mutation {seed} of {}", case.name);
    case
}

/// Puts the two behind each other, or the end of the second one's bytes behind the beginning of the
/// first one's.
fn splice(rng: &mut Rng, case: &mut Case, other: Case) {
    case.name = format!("{} + {}", case.name, other.name);
    case.answers.extend(other.answers);
    if rng.bool() {
        case.steps.retain(|step| *step != Step::HalfClose);
        case.steps.extend(other.steps);
        return;
    }
    let last = |step: &Step| matches!(step, Step::Send(_));
    let (mine, theirs) = (
        case.steps.iter().rposition(last),
        other.steps.iter().rposition(last),
    );
    if let (Some(mine), Some(theirs)) = (mine, theirs)
        && let (Step::Send(mine), Step::Send(theirs)) =
            (&mut case.steps[mine], &other.steps[theirs])
    {
        mine.truncate(rng.usize(..=mine.len()));
        mine.extend_from_slice(&theirs[rng.usize(..=theirs.len())..]);
    }
}

/// Changes something the caller or the vendor sends, or does.
fn change(rng: &mut Rng, case: &mut Case) {
    let of_caller = case.steps.iter_mut().filter_map(|step| match step {
        Step::Send(bytes) => Some(bytes),
        Step::Pause(_) | Step::Await | Step::HalfClose | Step::Reconnect => None,
    });
    let acts = case.answers.iter_mut().flat_map(|answer| &mut answer.0);
    let of_vendor = acts.filter_map(|act| match act {
        Act::Send(bytes) => Some(bytes),
        Act::Pause(_) | Act::Body | Act::Close | Act::Reset | Act::Tunnel => None,
    });
    // Three of four changes are the caller's.
    let (mut of_caller, mut of_vendor): (Vec<_>, Vec<_>) =
        (of_caller.collect(), of_vendor.collect());
    let from = if of_vendor.is_empty() || rng.u8(..4) > 0 {
        &mut of_caller
    } else {
        &mut of_vendor
    };
    if !from.is_empty() {
        let at = rng.usize(..from.len());
        change_bytes(rng, from[at]);
    }
}

fn change_bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let length = bytes.len();
    if length == 0 {
        bytes.extend_from_slice(PIECES[rng.usize(..PIECES.len())]);
        return;
    }
    // Long bodies and fields are of little interest.
    let at = rng.usize(..length.min(2048));
    match rng.u8(..9) {
        0 => bytes[at] ^= 1 << rng.u8(..8),
        1 => bytes[at] = rng.u8(..),
        2 => {
            bytes.remove(at);
        }
        3 => {
            let end = length.min(at + rng.usize(1..=20));
            bytes.drain(at..end);
        }
        4 => {
            let end = length.min(at + rng.usize(1..=20));
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        5 => {
            let piece = PIECES[rng.usize(..PIECES.len())];
            bytes.splice(at..at, piece.iter().copied());
        }
        6 => {
            // At the beginning of a line, where a field may stand.
            let at = line_start(bytes, at);
            let piece = PIECES[rng.usize(..PIECES.len())];
            bytes.splice(at..at, piece.iter().copied());
        }
        7 => {
            // A line twice.
            let at = line_start(bytes, at);
            let end = line_start(bytes, at + 1).max(at);
            let line = bytes[at..end].to_vec();
            bytes.splice(at..at, line);
        }
        _ => {
            // Another digit.
            if let Some(digit) = bytes[at..].iter_mut().find(|byte| byte.is_ascii_digit()) {
                *digit = b'0' + rng.u8(..10);
            }
        }
    }
}

/// The beginning of the line behind `at`; the end, when there is none.
fn line_start(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == b'\n');
    end.map_or(bytes.len(), |end| at + end + 1)
}

/// Sends one of the caller's or the vendor's pieces in two.
fn split(rng: &mut Rng, case: &mut Case) {
    let pause = rng.u64(1..=5);
    if rng.bool() {
        let at = rng.usize(..case.steps.len());
        if let Step::Send(bytes) = &mut case.steps[at] {
            let rest = bytes.split_off(rng.usize(..=bytes.len()));
            let more = [Step::Pause(pause), Step::Send(rest)];
            let rest = case.steps.split_off(at + 1);
            case.steps.extend(more.into_iter().chain(rest));
        }
    } else if !case.answers.is_empty() {
        let answer = rng.usize(..case.answers.len());
        let acts = &mut case.answers[answer].0;
        if acts.is_empty() {
            return;
        }
        let at = rng.usize(..acts.len());
        if let Act::Send(bytes) = &mut acts[at] {
            let rest = bytes.split_off(rng.usize(..=bytes.len()));
            let behind = acts.split_off(at + 1);
            let more = [Act::Pause(pause), Act::Send(rest)];
            acts.extend(more.into_iter().chain(behind));
        }
    }
}
