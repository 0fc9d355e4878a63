//! YAML text parsed into values and their positions.
//!
//! `serde_yaml` reads the values; it has positions only for errors. saphyr-parser reads the same
//! text once more for the positions of everything, and for what is forbidden: duplicate keys, tags,
//! a second document.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScanError};
use serde_json::Value;

use super::report::{KeyPath, Position, Report};

/// Returns the document, and its positions in `report`. `None` when it cannot be read, which is
/// reported.
pub(super) fn read(text: &str, report: &mut Report<'_>) -> Option<Value> {
    // Editors on Windows write a byte order mark there.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let top = KeyPath::default();
    if !locate(text, report) {
        return None;
    }
    match serde_yaml::from_str(text) {
        Ok(Value::Null) => {
            report.error(
                &top,
                "the file is empty",
                "it needs at least `vendors:`; the sample proxy.yaml shows every setting",
            );
            None
        }
        Ok(value) => Some(value),
        // serde_yaml's message may repeat a value; the position is enough.
        Err(error) => {
            let position = error.location().map_or(START, |location| Position {
                line: location.line().max(1),
                column: location.column().max(1),
            });
            report.error_in(
                position,
                &top,
                "cannot be read as YAML",
                "put long numbers and texts with special characters in quotes",
            );
            None
        }
    }
}

/// A collection that is not closed yet.
enum Open {
    Mapping {
        at: KeyPath,
        /// The key whose value comes next.
        key: Option<String>,
        seen: HashMap<String, Position>,
        /// The first position of a duplicate key, and the current one.
        twice: Option<(Position, Position)>,
    },
    Sequence {
        at: KeyPath,
        next: usize,
    },
}

/// Records the position of every key and value. `false`: reading on is useless.
fn locate(text: &str, report: &mut Report<'_>) -> bool {
    let top = KeyPath::default();
    let mut open: Vec<Open> = Vec::new();
    let mut documents = 0;
    let mut readable = true;
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                not_yaml(&error, report);
                return false;
            }
        };
        let here = position(span.start);
        let tagged = match &event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Nothing => continue,
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    report.error_in(
                        here,
                        &top,
                        "a second document begins here",
                        "one file holds one configuration: remove the `---`",
                    );
                    return false;
                }
                continue;
            }
            Event::MappingEnd | Event::SequenceEnd => {
                open.pop();
                continue;
            }
            Event::Alias(_) => false,
            Event::Scalar(_, _, _, tag)
            | Event::SequenceStart(_, tag)
            | Event::MappingStart(_, tag) => tag.is_some(),
        };
        if tagged {
            report.error_in(here, &top, "tags (`!…`) have no meaning here", "");
            readable = false;
        }
        let at = match open.last_mut() {
            None => top.clone(),
            Some(Open::Sequence { at, next }) => {
                *next += 1;
                at.index(*next - 1)
            }
            Some(Open::Mapping {
                at,
                key,
                seen,
                twice,
            }) => {
                if let Some(key) = key.take() {
                    let here = at.key(&key);
                    if let Some(twice) = twice.take() {
                        let is_bare = matches!(&event, Event::Scalar(text, ..) if text.is_empty());
                        repeated(twice, if is_bare { at } else { &here }, report);
                    }
                    here
                } else {
                    let Event::Scalar(written, ..) = event else {
                        report.error_in(here, at, "a key must be text", "");
                        return false;
                    };
                    let at = at.key(&written);
                    let first = seen.insert(written.to_string(), here);
                    *twice = first.map(|first| (first, here));
                    report.positions.keys.insert(at, here);
                    *key = Some(written.into_owned());
                    continue;
                }
            }
        };
        report.positions.values.insert(at.clone(), here);
        match event {
            Event::MappingStart(..) => open.push(Open::Mapping {
                at,
                key: None,
                seen: HashMap::new(),
                twice: None,
            }),
            Event::SequenceStart(..) => open.push(Open::Sequence { at, next: 0 }),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::Alias(_)
            | Event::Scalar(..)
            | Event::SequenceEnd
            | Event::MappingEnd => {}
        }
        if open.len() > DEEPEST {
            report.error_in(here, &top, "nested too deeply", "");
            return false;
        }
    }
    readable
}

fn not_yaml(error: &ScanError, report: &mut Report<'_>) {
    let (message, hint) = described(error.info());
    let message = format!("not YAML: {message}");
    report.error_in(
        position(*error.marker()),
        &KeyPath::default(),
        message,
        hint,
    );
}

/// Reports a duplicate key. A key without a value may be a misplaced secret, as in `{ abc, abc }`:
/// `named` is then the collection around it.
fn repeated((first, again): (Position, Position), named: &KeyPath, report: &mut Report<'_>) {
    let message = format!("occurs twice, first in line {}", first.line);
    report.error_in(again, named, message, "");
}

/// Describes the parser's error. Its own text may hold a piece of the document.
fn described(info: &str) -> (&'static str, &'static str) {
    let says = |words: &[&str]| words.iter().any(|word| info.contains(word));
    if says(&["tab"]) {
        ("a tab where blanks belong", "YAML is indented with blanks")
    } else if says(&["anchor"]) {
        (
            "an alias (`*…`) without its anchor (`&…`)",
            "a text that begins with `*` or `&` needs quotes",
        )
    } else if says(&["escape", "hexadecimal"]) {
        (
            "an unknown escape (`\\…`) in a text in double quotes",
            "in single quotes a `\\` is only itself",
        )
    } else if says(&["unexpected character", "cannot start with"]) {
        (
            "a character that cannot begin a value",
            "put the value in quotes",
        )
    } else if says(&["mapping values", "simple key"]) {
        (
            "a `:` too many, or one that is missing",
            "a text that holds `: ` needs quotes; each key stands on a line of its own",
        )
    } else if says(&["quoted scalar"]) {
        ("a quote that is not closed, or text behind it", "")
    } else if says(&["flow"]) {
        ("a bracket that is not closed, or a missing comma", "")
    } else {
        (
            "the structure breaks here",
            "look at this line and the one before: indentation, colons, quotes, brackets",
        )
    }
}

fn position(marker: Marker) -> Position {
    Position {
        line: marker.line(),
        column: marker.col() + 1,
    }
}

const START: Position = Position { line: 1, column: 1 };

/// Deepest nesting. No setting is nested half as deeply; `serde_yaml` gives up at 128.
const DEEPEST: usize = 32;
