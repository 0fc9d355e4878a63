//! Heads that are never finished, and heads without a sender: what strangers make the proxy keep
//! before a caller is known has a bound, and it is the one that SECURITY.md names.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::http2::{CONTINUATION, END_HEADERS, END_STREAM, Frames, HEADERS};
use super::{CLOSED, rest_of, world};
use crate::support::world::World;
use crate::support::{PATIENCE, eventually, status_of};

/// What SECURITY.md says that a connection costs at worst, bytes.
fn documented() -> usize {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/SECURITY.md"));
    let text = text.unwrap();
    let (_, rest) = text
        .split_once("a connection at worst, before its caller is known | ")
        .unwrap();
    let (kilobytes, _) = rest.split_once(" KiB").unwrap();
    kilobytes.parse::<usize>().unwrap() * 1024
}

/// How much more memory the proxy takes than `before`, bytes.
fn grown(world: &World, before: usize) -> usize {
    world.proxy.resident().saturating_sub(before)
}

async fn with_connections(most: usize) -> World {
    // Nobody here has the key: callers must be named.
    world("")
        .listener(&format!(
            "{{ bind: 127.0.0.1:0, h2c: true, max_connections: {most} }}"
        ))
        .top("callers: { known: { api_key: { sha256: \"0000000000000000000000000000000000000000000000000000000000000000\" }, allow: [ v ] } }")
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_heads_of_strangers_stay_within_the_documented_memory() {
    const MOST: usize = 600;
    let world = with_connections(MOST).await;
    assert_eq!(status_of(&world.proxy.raw(CLOSED)), 401);
    let before = world.proxy.resident();
    let head = format!(
        "GET /v/x HTTP/1.1\r\nHost: localhost\r\nX-Long: {}",
        "x".repeat(60_000)
    );
    // All but one.
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 1..MOST {
        let mut stream = world.connect();
        // Those that find no room are closed while they write.
        let _ = stream.write_all(head.as_bytes());
        held.push(stream);
    }
    // The last one found no room. All before it have been read by then.
    let refusal = rest_of(held.last_mut().unwrap());
    assert_eq!(status_of(&refusal), 503, "{refusal}");
    assert!(
        refusal.contains("\"overloaded\"") && refusal.contains("Retry-After: 1"),
        "{refusal}"
    );
    let grown = grown(&world, before);
    let bound = MOST * documented();
    println!("{MOST} heads: {grown} bytes more, of {bound}");
    assert!(grown < bound, "{grown} bytes more, not {bound}");
    // A short head is read whatever they do.
    assert_eq!(status_of(&world.proxy.raw(CLOSED)), 401);

    // There is room again once they are gone.
    drop(held);
    eventually("a long head is read", || {
        let whole = format!("{head}\r\nConnection: close\r\n\r\n");
        (status_of(&world.proxy.raw(whole)) == 401).then_some(())
    });
    let metrics = world.proxy.admin("/metrics").1;
    let counted = "countersign_refused_total{reason=\"overloaded\",vendor=\"none\"}";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_max_connections_callers_wait_and_are_served_in_their_turn() {
    let world = with_connections(3).await;
    let held: Vec<_> = (0..3).map(|_| world.connect()).collect();
    let mut waiting = world.connect();
    waiting.write_all(CLOSED.as_bytes()).unwrap();
    waiting
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert!(waiting.read(&mut [0; 16]).is_err(), "answered");
    drop(held);
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(status_of(&rest_of(&mut waiting)), 401);
}

/// `:method: GET`, `:scheme: http`, `:path: /v/x`, `:authority: localhost`, then `more`.
fn block(more: &[u8]) -> Vec<u8> {
    let mut block = b"\x82\x86\x04\x04/v/x\x01\x09localhost".to_vec();
    block.extend_from_slice(more);
    block
}

/// A head in frames of at most 16 KiB.
fn send(frames: &mut Frames, stream: u32, block: &[u8], whole: bool) -> std::io::Result<()> {
    let mut parts = block.chunks(16 * 1024).peekable();
    let mut kind = HEADERS;
    while let Some(part) = parts.next() {
        let mut flags = if kind == HEADERS { END_STREAM } else { 0 };
        if whole && parts.peek().is_none() {
            flags |= END_HEADERS;
        }
        frames.send(kind, flags, stream, part)?;
        kind = CONTINUATION;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_over_http2_that_nobody_takes_the_answers_of_stay_within_it_too() {
    const MOST: usize = 300;
    let world = with_connections(MOST).await;
    assert_eq!(status_of(&world.proxy.raw(CLOSED)), 401);
    let before = world.proxy.resident();
    // Long ones, and short ones that are long once they are decoded: `cookie: ` by its index in
    // the static table costs a byte, and more than a hundred in memory.
    let mut long = Vec::new();
    for _ in 0..27 {
        long.extend(b"\0\x01a\x7f\x81\x0f");
        long.extend([b'x'; 127 + 1 + 15 * 128]);
    }
    let (long, many) = (block(&long), block(&[0xa0; 1600]));
    let mut most = 0;
    let held: Vec<_> = (0..MOST - 1)
        .map(|nth| {
            // SETTINGS_INITIAL_WINDOW_SIZE 0: no body of an answer is taken.
            let mut frames = Frames::new(world.proxy.data, &[(4, 0)]);
            let head = if nth % 2 == 0 { &long } else { &many };
            for stream in 0..100 {
                if send(&mut frames, 2 * stream + 1, head, true).is_err() {
                    break;
                }
            }
            most = most.max(grown(&world, before));
            frames
        })
        .collect();
    for _ in 0..20 {
        most = most.max(grown(&world, before));
        std::thread::sleep(Duration::from_millis(20));
    }
    // The account for heads holds 16 MiB at least.
    let bound = MOST * documented() + (16 << 20);
    println!("{MOST} connections: {most} bytes more, of {bound}");
    assert!(most < bound, "{most} bytes more, not {bound}");
    assert_eq!(status_of(&world.proxy.raw(CLOSED)), 401);
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_over_http2_has_ten_seconds_and_so_has_a_preface() {
    let world = with_connections(100).await;
    let mut half = Frames::new(world.proxy.data, &[]);
    send(&mut half, 1, &block(b""), false).unwrap();
    let mut dribbled = Frames::new(world.proxy.data, &[]);
    let begun = std::time::Instant::now();
    let (half, dribbled) = std::thread::scope(|scope| {
        let half = scope.spawn(move || (half.until_ended(1), begun.elapsed()));
        let dribbled = scope.spawn(move || {
            // A frame whose payload never comes.
            let head = [0, 0x3f, 0xff, HEADERS, END_HEADERS, 0, 0, 0, 1];
            dribbled.0.write_all(&head).unwrap();
            (dribbled.until_ended(1), begun.elapsed())
        });
        (half.join().unwrap(), dribbled.join().unwrap())
    });
    for (how, after) in [half, dribbled] {
        assert!(how.contains("kind: 7"), "GOAWAY, not {how}");
        assert!((8..20).contains(&after.as_secs()), "closed after {after:?}");
    }
    assert_eq!(status_of(&world.proxy.raw(CLOSED)), 401);
}
