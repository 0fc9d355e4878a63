//! Lines that a person types or pastes.
//!
//! A terminal in its canonical mode hands over at most 4,095 bytes of a line and drops the rest
//! (termios(3)), and redirects with large codes or tokens in them are longer. So the terminal is
//! switched to deliver every byte, and echo and the few editing keys are done here. Its settings are
//! restored on every way out: return, panic, a signal that ends the process, and while it is stopped.

use std::io::{self, IsTerminal, Read, Stdin, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Signal as Kind, getpgrp, getpid, kill_process};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcsetattr,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// What is typed or pasted on stdin. Restores the terminal when dropped.
pub(super) struct Input {
    /// The lines, without their ends; closed at the end of stdin.
    pub(super) lines: mpsc::Receiver<String>,
    terminal: Option<Arc<Terminal>>,
}

impl Input {
    /// Begins to read stdin. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When signals cannot be listened for. The terminal is as it was then.
    pub(super) fn start() -> io::Result<Self> {
        let stdin = io::stdin();
        let terminal = stdin
            .is_terminal()
            .then(|| Terminal::take(&stdin))
            .transpose()?
            .flatten();
        let (sender, lines) = mpsc::channel(1);
        let keys = terminal.is_some();
        // A thread of its own: reading a terminal cannot be cancelled, and a runtime would wait for it
        // at its end.
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

/// The terminal at stdin, and the settings it had.
struct Terminal {
    before: Termios,
    /// Whether ours are in force.
    ours: Mutex<bool>,
}

impl Terminal {
    /// `None`: it cannot be switched, and is read as it is.
    fn take(stdin: &Stdin) -> io::Result<Option<Arc<Self>>> {
        let Ok(before) = tcgetattr(stdin) else {
            return Ok(None);
        };
        let mut signals = Signals::new()?;
        let terminal = Arc::new(Self {
            before,
            ours: Mutex::new(false),
        });
        let watched = terminal.clone();
        // Lives on after the settings are restored: the process is about to end, and a signal must
        // end it still.
        tokio::spawn(async move { signals.watch(&watched).await });
        let switched = terminal.switch() || !in_foreground();
        Ok(switched.then_some(terminal))
    }

    /// Asks for every byte at once, none of them echoed; signals of keys stay. Whether ours are in
    /// force.
    fn switch(&self) -> bool {
        let mut ours = self.ours.lock();
        if *ours || !in_foreground() {
            return *ours;
        }
        let mut settings = self.before.clone();
        let line_by_line = LocalModes::ICANON | LocalModes::ECHO | LocalModes::IEXTEN;
        settings.local_modes.remove(line_by_line);
        settings.special_codes[SpecialCodeIndex::VMIN] = 1;
        settings.special_codes[SpecialCodeIndex::VTIME] = 0;
        *ours = tcsetattr(io::stdin(), OptionalActions::Now, &settings).is_ok();
        *ours
    }

    fn restore(&self) {
        let mut ours = self.ours.lock();
        if *ours && in_foreground() {
            // Nothing is left to try when it is gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
        }
        *ours = false;
    }
}

/// Changing a terminal that belongs to another job stops the process (termios(3), `SIGTTOU`). One that
/// has no jobs belongs to whoever has it.
fn in_foreground() -> bool {
    tcgetpgrp(io::stdin()).map_or(true, |group| group == getpgrp())
}

/// What ends, stops or continues the process.
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
                    // As the signal would have done; this one cannot be handled.
                    let _ = kill_process(getpid(), Kind::STOP);
                    continue;
                }
                _ = self.resume.recv() => {
                    terminal.switch();
                    continue;
                }
            };
            terminal.restore();
            // Below what was being typed.
            echo(b"\n");
            // What shells report for a process that a signal has ended.
            std::process::exit(128 + kind.as_raw());
        }
    }
}

/// Sends the lines of `stdin` until nobody wants more. With `keys` it is a terminal that does nothing
/// of its own.
fn read(stdin: &Stdin, keys: bool, lines: &mpsc::Sender<String>) {
    let mut line = Line::new(keys);
    let mut bytes = [0; 4096];
    loop {
        let read = match stdin.lock().read(&mut bytes) {
            Ok(read @ 1..) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => {
                // The last one need not be ended.
                let rest = line.take();
                if !rest.is_empty() {
                    let _ = lines.blocking_send(rest);
                }
                return;
            }
        };
        let mut shown = Vec::new();
        for byte in &bytes[..read] {
            let typed = line.push(*byte, &mut shown);
            if typed.is_some() && keys {
                echo(&std::mem::take(&mut shown));
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
            echo(&shown);
        }
    }
}

/// Writes to the terminal that is read from, as its own echo does.
fn echo(mut bytes: &[u8]) {
    while let Ok(written @ 1..) = rustix::io::write(io::stdin(), bytes) {
        bytes = &bytes[written..];
        if bytes.is_empty() {
            break;
        }
    }
    // What is shown in between must stay in this order.
    let _ = io::stderr().flush();
}

enum Typed {
    Line(String),
    /// Ctrl-D on an empty line.
    End,
}

/// A line that is being typed.
struct Line {
    bytes: Vec<u8>,
    keys: bool,
    escape: Escape,
    /// Its end was not kept.
    too_long: bool,
}

/// How far an escape sequence of a key has come (ECMA-48 §5.4).
#[derive(PartialEq)]
enum Escape {
    None,
    Begun,
    Control,
}

/// More than any redirect, and still nothing to a process.
const LONGEST: usize = 1 << 20;

impl Line {
    fn new(keys: bool) -> Self {
        Self {
            bytes: Vec::new(),
            keys,
            escape: Escape::None,
            too_long: false,
        }
    }

    fn take(&mut self) -> String {
        let bytes = std::mem::take(&mut self.bytes);
        if std::mem::take(&mut self.too_long) {
            return String::new();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// One more byte; what the terminal is to show for it is added to `shown`.
    fn push(&mut self, byte: u8, shown: &mut Vec<u8>) -> Option<Typed> {
        if byte == b'\n' || (self.keys && byte == b'\r') {
            if self.too_long {
                shown.extend_from_slice(b"\r\n(longer than 1 MiB, and not used)");
            }
            shown.extend_from_slice(b"\r\n");
            self.escape = Escape::None;
            return Some(Typed::Line(self.take()));
        }
        if self.keys && !self.is_text(byte) {
            return self.key(byte, shown);
        }
        if self.bytes.len() == LONGEST {
            self.too_long = true;
        } else {
            self.bytes.push(byte);
            shown.push(byte);
        }
        None
    }

    /// Whether `byte` is part of the line. An escape sequence of a key is followed to its end.
    fn is_text(&mut self, byte: u8) -> bool {
        let text = self.escape == Escape::None && byte >= b' ' && byte != 0x7f;
        self.escape = match (&self.escape, byte) {
            (Escape::None, 0x1b) => Escape::Begun,
            (Escape::Begun, b'[' | b'O') | (Escape::Control, b' '..=b'?') => Escape::Control,
            // Its last byte, or none of one.
            (Escape::None | Escape::Begun | Escape::Control, _) => Escape::None,
        };
        text
    }

    fn key(&mut self, byte: u8, shown: &mut Vec<u8>) -> Option<Typed> {
        match byte {
            0x04 if self.bytes.is_empty() => return Some(Typed::End),
            // Backspace, by either of its names.
            0x08 | 0x7f => self.erase(shown),
            // Ctrl-U.
            0x15 => {
                while !self.bytes.is_empty() {
                    self.erase(shown);
                }
            }
            _ => {}
        }
        None
    }

    /// Takes the last character away.
    fn erase(&mut self, shown: &mut Vec<u8>) {
        // The bytes that continue a character (RFC 3629 §3) go with the one that begins it.
        while let Some(byte) = self.bytes.pop() {
            if byte & 0xc0 != 0x80 {
                shown.extend_from_slice(b"\x08 \x08");
                break;
            }
        }
        self.too_long &= !self.bytes.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that these bytes make, what was shown of them, and whether they ended it.
    fn typed(keys: bool, bytes: &[u8]) -> (Vec<String>, String, bool) {
        let mut line = Line::new(keys);
        let (mut lines, mut shown, mut ended) = (Vec::new(), Vec::new(), false);
        for byte in bytes {
            match line.push(*byte, &mut shown) {
                Some(Typed::Line(text)) => lines.push(text),
                Some(Typed::End) => ended = true,
                None => {}
            }
        }
        (lines, String::from_utf8_lossy(&shown).into_owned(), ended)
    }

    #[test]
    fn a_line_is_edited_as_a_terminal_does_and_sequences_of_keys_are_no_text() {
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
        let (lines, shown, ended) = typed(true, b"ab\x7fc\n\x04");
        assert_eq!(lines, ["ac"]);
        assert_eq!(shown, "ab\x08 \x08c\r\n");
        assert!(ended);
    }

    #[test]
    fn what_is_no_terminal_is_read_as_it_is() {
        let (lines, _, ended) = typed(false, b"a\x7f\x04\r\n\x15b\n");
        assert_eq!(lines, ["a\x7f\x04\r", "\x15b"]);
        assert!(!ended);
    }

    #[test]
    fn a_line_has_no_limit_but_memorys() {
        let mut bytes = vec![b'x'; 100_000];
        bytes.push(b'\n');
        for keys in [true, false] {
            let (lines, _, _) = typed(keys, &bytes);
            assert_eq!(lines[0].len(), 100_000);
        }
        let mut bytes = vec![b'x'; LONGEST + 1];
        bytes.push(b'\n');
        let (lines, shown, _) = typed(true, &bytes);
        assert_eq!(lines, [""]);
        assert!(shown.contains("longer than 1 MiB"));
    }
}
