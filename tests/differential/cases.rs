//! What a case is made of.

use std::fmt::{self, Write as _};

/// What one caller does, and how the vendor behind the proxy answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What is odd about it.
    pub name: String,
    /// What the caller does.
    pub steps: Vec<Step>,
    /// How the vendor answers its requests, in the order in which their heads arrive. Later requests
    /// get [`Answer::default`].
    pub answers: Vec<Answer>,
    /// `true` if the credential is renewed for it, which takes a vendor of its own.
    pub renews: bool,
}

/// What a caller does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Does nothing for so many milliseconds.
    Pause(u64),
    /// Waits until one more response has come, interim responses included.
    Await,
    /// Ends its side of the connection.
    HalfClose,
    /// Ends the connection when all has come, and opens another one.
    Reconnect,
}

/// How the vendor answers one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer(pub Vec<Act>);

/// What the vendor does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Does nothing for so many milliseconds.
    Pause(u64),
    /// Reads the body of the request to its end. Unless it is the first act, the answer begins
    /// before that.
    Body,
    /// Closes the connection in good order.
    Close,
    /// Resets the connection.
    Reset,
    /// Reads what is no longer HTTP.
    Tunnel,
}

impl Default for Answer {
    fn default() -> Self {
        bytes("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ndefault")
    }
}

/// The answer of these bytes, once the request has been read.
pub fn bytes(bytes: impl AsRef<[u8]>) -> Answer {
    Answer(vec![Act::Body, send(bytes)])
}

/// The same, and the connection ends.
pub fn last(bytes: impl AsRef<[u8]>) -> Answer {
    Answer(vec![Act::Body, send(bytes), Act::Close])
}

/// Sends these bytes.
pub fn send(bytes: impl AsRef<[u8]>) -> Act {
    Act::Send(bytes.as_ref().to_vec())
}

/// The caller sends these bytes.
pub fn says(bytes: impl AsRef<[u8]>) -> Step {
    Step::Send(bytes.as_ref().to_vec())
}

/// A request without a body; `fields` end in CR LF each.
pub fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
}

/// A request with a body that has a length.
pub fn post(path: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
    )
}

/// A request with a body in chunks, whatever `body` is.
pub fn chunked(path: &str, fields: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Transfer-Encoding: chunked\r\n\r\n{body}"
    )
}

impl Case {
    /// A case of these steps, whose vendor answers ordinarily.
    pub fn new(name: impl Into<String>, steps: Vec<Step>) -> Self {
        Self {
            name: name.into(),
            steps,
            answers: Vec::new(),
            renews: false,
        }
    }

    /// A case of a caller that sends these bytes at once.
    pub fn sending(name: impl Into<String>, sent: impl AsRef<[u8]>) -> Self {
        Self::new(name, vec![says(sent)])
    }

    /// The same, whose vendor answers so.
    pub fn answered(self, answers: Vec<Answer>) -> Self {
        Self { answers, ..self }
    }

    /// All that the caller sends on its connections, one after the other.
    pub fn sent(&self) -> Vec<Vec<u8>> {
        let mut connections = vec![Vec::new()];
        for step in &self.steps {
            match step {
                Step::Send(bytes) => connections.last_mut().unwrap().extend_from_slice(bytes),
                Step::Reconnect => connections.push(Vec::new()),
                Step::Pause(_) | Step::Await | Step::HalfClose => {}
            }
        }
        connections
    }
}

/// One line a step, bytes escaped.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.name)?;
        for step in &self.steps {
            match step {
                Step::Send(bytes) => writeln!(f, "  caller sends  \"{}\"", escaped(bytes))?,
                Step::Pause(pause) => writeln!(f, "  caller pauses {pause} ms")?,
                Step::Await => writeln!(f, "  caller waits for a response")?,
                Step::HalfClose => writeln!(f, "  caller ends its side")?,
                Step::Reconnect => writeln!(f, "  caller connects anew")?,
            }
        }
        for (number, answer) in self.answers.iter().enumerate() {
            for act in &answer.0 {
                write!(f, "  vendor, {number}: ")?;
                match act {
                    Act::Send(bytes) => writeln!(f, "sends \"{}\"", escaped(bytes))?,
                    Act::Pause(pause) => writeln!(f, "pauses {pause} ms")?,
                    Act::Body => writeln!(f, "reads the body")?,
                    Act::Close => writeln!(f, "closes")?,
                    Act::Reset => writeln!(f, "resets")?,
                    Act::Tunnel => writeln!(f, "reads anything")?,
                }
            }
        }
        Ok(())
    }
}

/// `bytes` as a Rust literal has them; the middle of long runs of one byte is left out.
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut at = 0;
    while at < bytes.len() {
        let run = bytes[at..].iter().take_while(|byte| **byte == bytes[at]);
        let run = run.count();
        let one = bytes[at].escape_ascii().to_string();
        if run > 40 {
            let _ = write!(text, "{one}{{{run} times}}");
            at += run;
        } else {
            text += &one;
            at += 1;
        }
    }
    text
}
