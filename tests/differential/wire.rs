//! Just enough of HTTP/1.1 to know where a message ends.

/// How far a body came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// To its end.
    Whole,
    /// Not to its end.
    Cut,
    /// To bytes that are no part of any body.
    Garbled,
}

/// How a message says where its body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Nothing,
    /// By its length.
    Length(usize),
    /// By chunks.
    Chunked,
    /// By the end of the connection.
    Close,
}

/// A response, free of what depends on time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The status line.
    pub start: Vec<u8>,
    /// The lines of its fields.
    pub fields: Vec<Vec<u8>>,
    /// How the body is delimited.
    pub framing: Framing,
    /// The body without its chunks.
    pub body: Vec<u8>,
    /// Trailers, and extensions of chunks.
    pub extras: Vec<Vec<u8>>,
    /// How far the body came.
    pub extent: Extent,
}

impl Message {
    /// The status; 0 when there is none.
    pub fn status(&self) -> u16 {
        let digits = self.start.split(|byte| *byte == b' ').nth(1);
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    /// `true` if another response to the same request follows.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status()) && self.status() != 101
    }

    /// The value of the first field of this name.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find_map(|line| value_of(line, name))
    }
}

/// A request that can be read in one way only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Vec<u8>,
    /// `true` if there is an `Expect`.
    pub expects: bool,
    /// `true` if it is one of HTTP/1.0.
    pub old: bool,
    /// The bytes it takes.
    pub length: usize,
}

/// The value in `line`, if the field has this name.
pub fn value_of<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let found = &line[..colon];
    found
        .eq_ignore_ascii_case(name.as_bytes())
        .then(|| line[colon + 1..].trim_ascii())
}

/// Where `what` begins in `bytes`.
pub fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The lines of a head, and the bytes it takes; `None`: it is not complete.
pub fn head(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let end = find(bytes, b"\r\n\r\n")?;
    let mut lines = Vec::new();
    let mut rest = &bytes[..end];
    while let Some(at) = find(rest, b"\r\n") {
        lines.push(rest[..at].to_vec());
        rest = &rest[at + 2..];
    }
    lines.push(rest.to_vec());
    Some((lines, end + 4))
}

/// A body in chunks.
#[derive(Debug)]
pub struct Chunks {
    /// What the chunks hold.
    pub data: Vec<u8>,
    /// Trailers, and extensions of chunks.
    pub extras: Vec<Vec<u8>>,
    /// The bytes it takes.
    pub length: usize,
    /// How far it came.
    pub extent: Extent,
}

/// Reads the chunks at the beginning of `bytes`.
pub fn chunks(bytes: &[u8]) -> Chunks {
    let mut read = Chunks {
        data: Vec::new(),
        extras: Vec::new(),
        length: 0,
        extent: Extent::Cut,
    };
    loop {
        let rest = &bytes[read.length..];
        let Some(at) = find(rest, b"\r\n") else {
            // The bytes of an incomplete line are no data, and no chunk's size is this long.
            if rest.len() > 64 {
                read.extent = Extent::Garbled;
            } else {
                read.length = bytes.len();
            }
            return read;
        };
        let line = &rest[..at];
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
        let digits = &line[..digits.count()];
        let size = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| usize::from_str_radix(digits, 16).ok())
            .filter(|size| *size < 1 << 30);
        let Some(size) = size else {
            read.extent = Extent::Garbled;
            return read;
        };
        if line.len() > digits.len() {
            read.extras.push(line[digits.len()..].to_vec());
        }
        if size == 0 {
            return with_trailers(bytes, read, at + 2);
        }
        let data = &rest[at + 2..];
        if data.len() < size + 2 {
            read.data.extend_from_slice(&data[..size.min(data.len())]);
            read.length = bytes.len();
            return read;
        }
        read.data.extend_from_slice(&data[..size]);
        if &data[size..size + 2] != b"\r\n" {
            read.length += at + 2 + size;
            read.extent = Extent::Garbled;
            return read;
        }
        read.length += at + 2 + size + 2;
    }
}

/// Reads the trailers behind the last chunk, whose line takes `last` bytes.
fn with_trailers(bytes: &[u8], mut read: Chunks, last: usize) -> Chunks {
    let mut at = read.length + last;
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else {
            read.length = bytes.len();
            return read;
        };
        let line = &bytes[at..at + end];
        at += end + 2;
        if line.is_empty() {
            read.length = at;
            read.extent = Extent::Whole;
            return read;
        }
        read.extras.push(line.to_vec());
    }
}

/// The requests at the beginning of a caller's bytes that can be read in one way only. `true`: there
/// is nothing else.
pub fn requests(bytes: &[u8]) -> (Vec<Request>, bool) {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let Some(request) = request(rest) else {
            return (found, false);
        };
        rest = &rest[request.length..];
        found.push(request);
    }
    (found, true)
}

fn request(bytes: &[u8]) -> Option<Request> {
    let (lines, length) = head(bytes)?;
    let words: Vec<&[u8]> = lines[0].split(|byte| *byte == b' ').collect();
    let [method, _, version @ (b"HTTP/1.1" | b"HTTP/1.0")] = words[..] else {
        return None;
    };
    if method.is_empty() || !method.iter().all(u8::is_ascii_uppercase) {
        return None;
    }
    let (mut lengths, mut codings, mut expects) = (Vec::new(), Vec::new(), false);
    for line in &lines[1..] {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
        let text = |byte: &u8| *byte == b'\t' || (b' '..0x7f).contains(byte);
        if colon == 0 || !line[..colon].iter().all(token) || !line.iter().all(text) {
            return None;
        }
        lengths.extend(value_of(line, "content-length"));
        codings.extend(value_of(line, "transfer-encoding"));
        expects |= value_of(line, "expect").is_some();
    }
    let body = match (&lengths[..], &codings[..]) {
        ([], []) => 0,
        ([digits], []) if digits.iter().all(u8::is_ascii_digit) => {
            std::str::from_utf8(digits).ok()?.parse().ok()?
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => {
            let chunks = chunks(&bytes[length..]);
            if chunks.extent != Extent::Whole {
                return None;
            }
            chunks.length
        }
        _ => return None,
    };
    let length = length.checked_add(body)?;
    (length <= bytes.len()).then(|| Request {
        method: method.to_vec(),
        expects,
        old: version == b"HTTP/1.0",
        length,
    })
}

/// The responses in `bytes`, and the bytes behind them that are none. `methods`: those of the
/// requests, as far as they are known.
pub fn responses(bytes: &[u8], methods: &[Request]) -> (Vec<Message>, Vec<u8>) {
    let (mut found, mut rest, mut answered) = (Vec::new(), bytes, 0);
    while rest.starts_with(b"HTTP/1.") {
        let Some((lines, length)) = head(rest) else {
            break;
        };
        let bodyless = methods
            .get(answered)
            .is_some_and(|request| request.method == b"HEAD");
        let (message, taken) = response(lines, &rest[length..], bodyless);
        answered += usize::from(!message.is_interim());
        rest = &rest[length + taken..];
        found.push(message);
    }
    (found, rest.to_vec())
}

/// The response with this head, and the bytes that its body takes.
fn response(mut lines: Vec<Vec<u8>>, bytes: &[u8], bodyless: bool) -> (Message, usize) {
    let mut message = Message {
        start: lines.remove(0),
        fields: lines,
        framing: Framing::Nothing,
        body: Vec::new(),
        extras: Vec::new(),
        extent: Extent::Whole,
    };
    let status = message.status();
    // Where the method is not known, the next response shows that there was no body.
    let no_body = bodyless || bytes.starts_with(b"HTTP/1.");
    if status == 101 {
        // What follows is of another protocol.
        message.framing = Framing::Close;
        message.body = bytes.to_vec();
        return (message, bytes.len());
    }
    if no_body || status < 200 || status == 204 || status == 304 {
        return (message, 0);
    }
    if message.field("transfer-encoding").is_some() {
        let chunks = chunks(bytes);
        message.framing = Framing::Chunked;
        message.body = chunks.data;
        message.extras = chunks.extras;
        message.extent = chunks.extent;
        return (message, chunks.length);
    }
    let length = message.field("content-length");
    let length = length.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    let Some(length) = length else {
        message.framing = Framing::Close;
        message.body = bytes.to_vec();
        return (message, bytes.len());
    };
    let taken = bytes.len().min(length);
    message.framing = Framing::Length(length);
    message.body = bytes[..taken].to_vec();
    if taken < length {
        message.extent = Extent::Cut;
    }
    (message, taken)
}
