//! Messages of HTTP/1.1: whatever comes, in whatever pieces, is read in one way only.

use bytes::{Bytes, BytesMut};
use countersign::http1::body::{BodyReader, BodyWriter};
use countersign::http1::chunks::Chunks;
use countersign::http1::head::{
    end_of_head, read_request, read_response, write_request, write_response,
};
use countersign::http1::output::Output;

/// Runs one input. Its first byte says how the rest is cut.
///
/// # Panics
/// When the pieces make a difference, or what is written is read as something else.
pub fn run(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else {
        return;
    };
    let step = usize::from(how % 16) + 1;
    head(bytes, step);
    for reader in [
        || BodyReader::Chunked(Chunks::default()),
        || BodyReader::Length(5),
        || BodyReader::UntilClose,
    ] {
        let (whole, cut) = (
            read(reader(), bytes, usize::MAX),
            read(reader(), bytes, step),
        );
        assert_eq!(whole, cut, "in pieces of {step}");
    }
    let chunked = read(BodyReader::Chunked(Chunks::default()), bytes, usize::MAX);
    if let Some((body, true, rest)) = chunked {
        assert_eq!(plain_chunks(bytes), Some((body, rest)));
    }
    written(bytes, step);
}

/// A head ends at the same byte however it comes, and comes out as it came.
fn head(bytes: &[u8], step: usize) {
    let whole = end_of_head(bytes, 0);
    let mut looked_at = 0;
    let cut = bytes.chunks(step).find_map(|piece| {
        let there = looked_at + piece.len();
        let end = end_of_head(&bytes[..there], looked_at);
        looked_at = there;
        end
    });
    assert_eq!(whole, cut, "in pieces of {step}");
    let Some(end) = whole else { return };
    let bytes = Bytes::copy_from_slice(&bytes[..end]);
    if let Ok(request) = read_request(&bytes) {
        let mut wire = Vec::new();
        if write_request(&request, &mut wire) {
            assert_eq!(end_of_head(&wire, 0), Some(wire.len()), "{wire:?}");
            let again = read_request(&Bytes::from(wire)).expect("it was written");
            assert_eq!(again.headers, request.headers);
            assert_eq!(again.raw_path(), request.raw_path());
            assert_eq!(again.method, request.method);
        }
    }
    if let Ok(response) = read_response(&bytes) {
        let mut wire = Vec::new();
        write_response(&response, &mut wire);
        assert_eq!(end_of_head(&wire, 0), Some(wire.len()), "{wire:?}");
        let again = read_response(&Bytes::from(wire)).expect("it was written");
        assert_eq!(again.headers, response.headers);
        assert_eq!(again.status, response.status);
    }
}

/// The body, whether it is complete, and the bytes behind it; `None`: it is invalid.
fn read(mut reader: BodyReader, bytes: &[u8], step: usize) -> Option<(Vec<u8>, bool, Vec<u8>)> {
    let (mut input, mut body) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(step.min(bytes.len().max(1))) {
        input.extend_from_slice(piece);
        while !reader.is_done() {
            match reader.take(&mut input) {
                Ok(Some(data)) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Ok(None) => break,
                Err(_) => return None,
            }
        }
    }
    Some((body, reader.is_done(), input.to_vec()))
}

/// What RFC 9112 §7.1 says, read in the plainest way: a body and the bytes behind it.
fn plain_chunks(mut bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut body = Vec::new();
    loop {
        let line = line(&mut bytes)?;
        let digits = line
            .split(|byte| matches!(byte, b';' | b' ' | b'\t'))
            .next()?;
        let size = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        let size = usize::try_from(size).ok()?;
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size..)?.strip_prefix(b"\r\n")?;
    }
    while !line(&mut bytes)?.is_empty() {}
    Some((body, bytes.to_vec()))
}

fn line<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let line = &bytes[..end];
    *bytes = &bytes[end + 2..];
    Some(line)
}

/// What is written in chunks is read back, and its end is where it was put.
fn written(bytes: &[u8], step: usize) {
    let mut output = Output::default();
    let mut writer = BodyWriter::Chunked;
    for piece in bytes.chunks(step * 200) {
        assert!(writer.write(Bytes::copy_from_slice(piece), &mut output));
        assert!(writer.write(Bytes::new(), &mut output));
    }
    assert!(writer.finish(&mut output));
    let wire = [output.waiting(), b"GET /".to_vec()].concat();
    let back = read(BodyReader::Chunked(Chunks::default()), &wire, step);
    assert_eq!(back, Some((bytes.to_vec(), true, b"GET /".to_vec())));
}
