//! Reads lines that a user types or pastes.
//!
//! A terminal in canonical mode delivers at most 4,095 bytes of a line and drops the rest
//! (termios(3)), and redirects with large codes or tokens are longer. So the terminal is switched
//! to noncanonical mode, and echo and the few editing keys are implemented here. Its settings are
//! restored on every exit: return, panic, a signal that ends the process; and while the process is
//! stopped.

use std::io::{self, IsTerminal, Read, Stdin, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Signal as Kind, getpgrp, getpid, kill_process};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcsetattr,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Lines typed or pasted on stdin. Restores the terminal when dropped.
pub(super) struct Input {
    /// The lines, without line terminators; closed at the end of stdin.
    pub(super) lines: mpsc::Receiver<String>,
    terminal: Option<Arc<Terminal>>,
}

impl Input {
    /// Starts to read stdin. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Fails if signal handlers cannot be installed. The terminal is unchanged in this case.
    pub(super) fn start() -> io::Result<Self> {
        let stdin = io::stdin();
        let terminal = stdin
            .is_terminal()
            .then(|| Terminal::open(&stdin))
            .transpose()?
            .flatten();
        let (sender, lines) = mpsc::channel(1);
        let keys = terminal.is_some();
        // A thread of its own: reading a terminal cannot be cancelled, and a runtime would wait for
        // the read at shutdown.
        std::thread::spawn(move || read(&stdin, keys, &sender));
        Ok(Self { lines, terminal })
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
    }
}

/// The terminal at stdin, and its original settings.
struct Terminal {
    original: Termios,
    /// `true` while our settings are in force.
    switched: Mutex<bool>,
}

impl Terminal {
    /// Switches the terminal at stdin. `None`: it cannot be switched and is read in canonical mode.
    fn open(stdin: &Stdin) -> io::Result<Option<Arc<Self>>> {
        let Ok(original) = tcgetattr(stdin) else {
            return Ok(None);
        };
        let mut signals = Signals::new()?;
        let terminal = Arc::new(Self {
            original,
            switched: Mutex::new(false),
        });
        let watched = terminal.clone();
        // Continues after the settings are restored: until the process exits, a signal must still
        // end it.
        tokio::spawn(async move { signals.watch(&watched).await });
        let switched = terminal.switch() || !in_foreground();
        Ok(switched.then_some(terminal))
    }

    /// Switches to noncanonical mode without echo; keys still send signals. Returns `true` if our
    /// settings are in force.
    fn switch(&self) -> bool {
        let mut switched = self.switched.lock();
        if *switched || !in_foreground() {
            return *switched;
        }
        let mut settings = self.original.clone();
        let line_by_line = LocalModes::ICANON | LocalModes::ECHO | LocalModes::IEXTEN;
        settings.local_modes.remove(line_by_line);
        settings.special_codes[SpecialCodeIndex::VMIN] = 1;
        settings.special_codes[SpecialCodeIndex::VTIME] = 0;
        *switched = tcsetattr(io::stdin(), OptionalActions::Now, &settings).is_ok();
        *switched
    }

    fn restore(&self) {
        let mut switched = self.switched.lock();
        if *switched && in_foreground() {
            // An error means that the terminal is closed.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.original);
        }
        *switched = false;
    }
}

/// Tells whether this process is in the foreground. Changing the terminal from the background would
/// stop the process (termios(3), `SIGTTOU`). `true` for a terminal without job control.
fn in_foreground() -> bool {
    tcgetpgrp(io::stdin()).map_or(true, |group| group == getpgrp())
}

/// The signals that end, stop or continue the process.
struct Signals {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    stop: Signal,
    resume: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let raw = |kind: Kind| signal(SignalKind::from_raw(kind.as_raw()));
        Ok(Self {
            hangup: raw(Kind::HUP)?,
            interrupt: raw(Kind::INT)?,
            quit: raw(Kind::QUIT)?,
            terminate: raw(Kind::TERM)?,
            stop: raw(Kind::TSTP)?,
            resume: raw(Kind::CONT)?,
        })
    }

    async fn watch(&mut self, terminal: &Terminal) {
        loop {
            let kind = tokio::select! {
                _ = self.hangup.recv() => Kind::HUP,
                _ = self.interrupt.recv() => Kind::INT,
                _ = self.quit.recv() => Kind::QUIT,
                _ = self.terminate.recv() => Kind::TERM,
                _ = self.stop.recv() => {
                    terminal.restore();
                    // Stops the process as SIGTSTP would have; SIGSTOP cannot be handled.
                    let _ = kill_process(getpid(), Kind::STOP);
                    continue;
                }
                _ = self.resume.recv() => {
                    terminal.switch();
                    continue;
                }
            };
            terminal.restore();
            // Moves below the line that was being typed.
            echo(b"\n");
            // The exit code that shells report for a process ended by a signal.
            std::process::exit(128 + kind.as_raw());
        }
    }
}

/// Sends the lines of `stdin` until the receiver is closed. `keys` means that stdin is a terminal
/// in noncanonical mode.
fn read(stdin: &Stdin, keys: bool, lines: &mpsc::Sender<String>) {
    let mut line = Line::new(keys);
    let mut bytes = [0; 4096];
    loop {
        let read = match stdin.lock().read(&mut bytes) {
            Ok(read @ 1..) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => {
                // The last line need not be terminated.
                let rest = line.take();
                if !rest.is_empty() {
                    let _ = lines.blocking_send(rest);
                }
                return;
            }
        };
        let mut echoed = Vec::new();
        for byte in &bytes[..read] {
            let typed = line.push(*byte, &mut echoed);
            if typed.is_some() && keys {
                echo(&std::mem::take(&mut echoed));
            }
            let wanted = match typed {
                None => true,
                Some(Typed::Line(text)) => lines.blocking_send(text).is_ok(),
                Some(Typed::End) => false,
            };
            if !wanted {
                return;
            }
        }
        if keys {
            echo(&echoed);
        }
    }
}

/// Writes to the terminal at stdin, as its own echo does.
fn echo(mut bytes: &[u8]) {
    while let Ok(written @ 1..) = rustix::io::write(io::stdin(), bytes) {
        bytes = &bytes[written..];
        if bytes.is_empty() {
            break;
        }
    }
    // Keeps the order of the echo and of messages on stderr.
    let _ = io::stderr().flush();
}

enum Typed {
    Line(String),
    /// Ctrl-D on an empty line.
    End,
}

/// The line that is being typed.
struct Line {
    bytes: Vec<u8>,
    keys: bool,
    escape: Escape,
    /// `true` if bytes beyond [`MAX_LINE`] were dropped.
    too_long: bool,
}

/// The state of parsing a key's escape sequence (ECMA-48 §5.4).
#[derive(PartialEq)]
enum Escape {
    None,
    Begun,
    Control,
}

/// Maximum length of a line in bytes: more than any redirect, and little memory.
const MAX_LINE: usize = 1 << 20;

impl Line {
    fn new(keys: bool) -> Self {
        Self {
            bytes: Vec::new(),
            keys,
            escape: Escape::None,
            too_long: false,
        }
    }

    /// Returns the line and starts a new one. Empty if it was too long.
    fn take(&mut self) -> String {
        let bytes = std::mem::take(&mut self.bytes);
        if std::mem::take(&mut self.too_long) {
            return String::new();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Adds one byte of input. Appends to `echoed` the bytes that the terminal must show for it.
    fn push(&mut self, byte: u8, echoed: &mut Vec<u8>) -> Option<Typed> {
        if byte == b'\n' || (self.keys && byte == b'\r') {
            if self.too_long {
                echoed.extend_from_slice(b"\r\n(longer than 1 MiB, so not used)");
            }
            echoed.extend_from_slice(b"\r\n");
            self.escape = Escape::None;
            return Some(Typed::Line(self.take()));
        }
        if self.keys && !self.is_text(byte) {
            return self.key(byte, echoed);
        }
        if self.bytes.len() == MAX_LINE {
            self.too_long = true;
        } else {
            self.bytes.push(byte);
            echoed.push(byte);
        }
        None
    }

    /// Tells whether `byte` is text, not a control character or part of a key's escape sequence.
    fn is_text(&mut self, byte: u8) -> bool {
        let text = self.escape == Escape::None && byte >= b' ' && byte != 0x7f;
        self.escape = match (&self.escape, byte) {
            (Escape::None, 0x1b) => Escape::Begun,
            (Escape::Begun, b'[' | b'O') | (Escape::Control, b' '..=b'?') => Escape::Control,
            // The final byte of a sequence, or no sequence.
            (Escape::None | Escape::Begun | Escape::Control, _) => Escape::None,
        };
        text
    }

    fn key(&mut self, byte: u8, echoed: &mut Vec<u8>) -> Option<Typed> {
        match byte {
            0x04 if self.bytes.is_empty() => return Some(Typed::End),
            // Backspace or delete: terminals send either.
            0x08 | 0x7f => self.erase(echoed),
            // Ctrl-U.
            0x15 => {
                while !self.bytes.is_empty() {
                    self.erase(echoed);
                }
            }
            _ => {}
        }
        None
    }

    /// Removes the last character.
    fn erase(&mut self, echoed: &mut Vec<u8>) {
        // Continuation bytes (RFC 3629 §3) are removed together with the first byte of the
        // character.
        while let Some(byte) = self.bytes.pop() {
            if byte & 0xc0 != 0x80 {
                echoed.extend_from_slice(b"\x08 \x08");
                break;
            }
        }
        self.too_long &= !self.bytes.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lines of these bytes, the echo, and whether they ended the input.
    fn typed(keys: bool, bytes: &[u8]) -> (Vec<String>, String, bool) {
        let mut line = Line::new(keys);
        let (mut lines, mut echoed, mut ended) = (Vec::new(), Vec::new(), false);
        for byte in bytes {
            match line.push(*byte, &mut echoed) {
                Some(Typed::Line(text)) => lines.push(text),
                Some(Typed::End) => ended = true,
                None => {}
            }
        }
        (lines, String::from_utf8_lossy(&echoed).into_owned(), ended)
    }

    #[test]
    fn a_line_is_edited_as_by_a_terminal_and_escape_sequences_are_dropped() {
        for (bytes, line) in [
            (&b"plain\n"[..], "plain"),
            (b"return\r", "return"),
            (b"abc\x7f\x08d\n", "ad"),
            (b"\x7f\x7fa\n", "a"),
            ("gr\u{fc}\u{20ac}\u{7f}n\n".as_bytes(), "gr\u{fc}n"),
            (b"wrong\x15right\n", "right"),
            (b"a\x1b[Db\x1b[1;5Cc\x1bOHd\x1b[200~e\x1b[201~\n", "abcde"),
            (b"a\x1bxb\n", "ab"),
            (b"a\x00\x01\x16b\n", "ab"),
            (b"a\x04\n", "a"),
            (b"a\x1b\nb", "a"),
        ] {
            let (lines, _, ended) = typed(true, bytes);
            assert_eq!((lines, ended), (vec![line.to_owned()], false), "{bytes:?}");
        }
        let (lines, echoed, ended) = typed(true, b"ab\x7fc\n\x04");
        assert_eq!(lines, ["ac"]);
        assert_eq!(echoed, "ab\x08 \x08c\r\n");
        assert!(ended);
    }

    #[test]
    fn input_that_is_not_a_terminal_is_not_edited() {
        let (lines, _, ended) = typed(false, b"a\x7f\x04\r\n\x15b\n");
        assert_eq!(lines, ["a\x7f\x04\r", "\x15b"]);
        assert!(!ended);
    }

    #[test]
    fn a_line_of_more_than_1_mib_is_dropped() {
        let mut bytes = vec![b'x'; 100_000];
        bytes.push(b'\n');
        for keys in [true, false] {
            let (lines, _, _) = typed(keys, &bytes);
            assert_eq!(lines[0].len(), 100_000);
        }
        let mut bytes = vec![b'x'; MAX_LINE + 1];
        bytes.push(b'\n');
        let (lines, echoed, _) = typed(true, &bytes);
        assert_eq!(lines, [""]);
        assert!(echoed.contains("longer than 1 MiB"));
    }
}
