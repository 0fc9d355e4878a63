//! The errors of a document, collected so that all are reported at once.
//!
//! One rule keeps secrets out of messages: a value of the document is never repeated; only its
//! place is named. Keys are named when they look like keys.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// One error of a file, as `file:line:column: message; hint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file as the user named it.
    pub file: PathBuf,
    /// 1-based; 0 when the error has no position.
    pub line: usize,
    /// 1-based.
    pub column: usize,
    /// The error, and its place in the document (`vendors.acme.auth: …`).
    pub message: String,
    /// The advice.
    pub hint: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        write!(f, " {}", self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

/// A place in the document's structure: `vendors.acme.auth`, `listeners[0].bind`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct KeyPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    Key(String),
    Index(usize),
}

impl KeyPath {
    pub(super) fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    pub(super) fn parent(&self) -> Option<Self> {
        let (_, rest) = self.0.split_last()?;
        Some(Self(rest.to_vec()))
    }

    fn then(&self, step: Step) -> Self {
        let mut steps = Vec::with_capacity(self.0.len() + 1);
        steps.extend_from_slice(&self.0);
        steps.push(step);
        Self(steps)
    }

    fn contains(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    if nth > 0 {
                        f.write_str(".")?;
                    }
                    // Other characters in a key must not break the line of the report.
                    if !key.is_empty() && key.chars().all(is_plain) {
                        f.write_str(key)?;
                    } else {
                        write!(f, "{key:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// A position in the file, both 1-based; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// The positions of all keys and values.
#[derive(Debug, Default)]
pub(super) struct Positions {
    pub(super) keys: HashMap<KeyPath, Position>,
    pub(super) values: HashMap<KeyPath, Position>,
}

impl Positions {
    /// A value of a preset or an alias has no position of its own: the nearest one around it is
    /// where the user must look.
    fn nearest(&self, map: &HashMap<KeyPath, Position>, at: &KeyPath) -> Position {
        if let Some(position) = map.get(at) {
            return *position;
        }
        let mut ancestor = at.clone();
        while let Some(parent) = ancestor.parent() {
            let position = self.keys.get(&parent).or_else(|| self.values.get(&parent));
            if let Some(position) = position {
                return *position;
            }
            ancestor = parent;
        }
        Position { line: 1, column: 1 }
    }
}

/// Collects errors and warnings.
pub(super) struct Report<'a> {
    file: &'a Path,
    pub(super) positions: Positions,
    errors: Vec<(KeyPath, ConfigError)>,
    /// Places below which nothing is missing: an unknown preset might have it.
    ignore_missing: Vec<KeyPath>,
    warnings: Vec<ConfigError>,
    /// The warnings about expired certificates.
    expired: Vec<ConfigError>,
}

impl<'a> Report<'a> {
    pub(super) fn new(file: &'a Path) -> Self {
        Self {
            file,
            positions: Positions::default(),
            errors: Vec::new(),
            ignore_missing: Vec::new(),
            warnings: Vec::new(),
            expired: Vec::new(),
        }
    }

    /// Reports an error of the value at `at`. An empty hint is none.
    pub(super) fn error(
        &mut self,
        at: &KeyPath,
        message: impl fmt::Display,
        hint: impl Into<String>,
    ) {
        let position = self.positions.nearest(&self.positions.values, at);
        self.error_in(position, at, message, hint);
    }

    /// Reports an error of the key at `at`, whatever its value.
    pub(super) fn error_at_key(
        &mut self,
        at: &KeyPath,
        message: impl fmt::Display,
        hint: impl Into<String>,
    ) {
        let position = self.positions.nearest(&self.positions.keys, at);
        self.error_in(position, at, message, hint);
    }

    /// Reports a missing key at `at`. Once, and not where its value was already found wrong.
    pub(super) fn missing_key(&mut self, at: &KeyPath, hint: impl Into<String>) {
        let known = self.errors.iter().any(|(spot, _)| {
            at.contains(spot) || (spot.contains(at) && *spot != KeyPath::default())
        });
        if !known && !self.ignore_missing.iter().any(|spot| spot.contains(at)) {
            self.error_at_key(at, "is missing", hint);
        }
    }

    /// Ignores missing keys below `at` from now on.
    pub(super) fn ignore_missing(&mut self, at: KeyPath) {
        self.ignore_missing.push(at);
    }

    /// Reports an error as [`Report::error`] does, at a position of its own.
    pub(super) fn error_in(
        &mut self,
        position: Position,
        at: &KeyPath,
        message: impl fmt::Display,
        hint: impl Into<String>,
    ) {
        let error = self.record(position, at, message, hint.into());
        self.errors.push((at.clone(), error));
    }

    /// Warns of the value at `at`, which is accepted.
    pub(super) fn warn(
        &mut self,
        at: &KeyPath,
        message: impl fmt::Display,
        hint: impl Into<String>,
    ) {
        let position = self.positions.nearest(&self.positions.values, at);
        let warning = self.record(position, at, message, hint.into());
        self.warnings.push(warning);
    }

    /// Reports an expired certificate at `at`: a warning, and an error for `check`.
    pub(super) fn expired(&mut self, at: &KeyPath, message: impl fmt::Display, hint: &str) {
        let position = self.positions.nearest(&self.positions.values, at);
        let error = self.record(position, at, message, hint.to_owned());
        self.warnings.push(error.clone());
        self.expired.push(error);
    }

    /// Returns the warnings and the expired certificates, each in the file's order; or the errors
    /// when there are any, with the expired certificates.
    pub(super) fn finish(self) -> Result<(Vec<ConfigError>, Vec<ConfigError>), Vec<ConfigError>> {
        let sorted = |mut list: Vec<ConfigError>| {
            list.sort_by_key(|error| (error.line, error.column));
            list.dedup();
            list
        };
        if self.errors.is_empty() {
            Ok((sorted(self.warnings), sorted(self.expired)))
        } else {
            let errors = self.errors.into_iter().map(|(_, error)| error);
            Err(sorted(errors.chain(self.expired).collect()))
        }
    }

    fn record(
        &self,
        position: Position,
        at: &KeyPath,
        message: impl fmt::Display,
        hint: String,
    ) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line: position.line,
            column: position.column,
            message: if *at == KeyPath::default() {
                message.to_string()
            } else {
                format!("{at}: {message}")
            },
            hint: (!hint.is_empty()).then_some(hint),
        }
    }
}

/// Returns `did you mean …?` when one of `known` is close to `written`, otherwise the list of all.
pub(super) fn suggest<'k>(written: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let folded = written.to_ascii_lowercase().replace('-', "_");
    let nearest = known
        .iter()
        .map(|name| {
            (
                strsim::damerau_levenshtein(&folded, &name.to_ascii_lowercase()),
                name,
            )
        })
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        // One typing error, and one more for every four characters.
        Some((distance, name)) if distance <= 1 + name.chars().count() / 4 => {
            format!("did you mean `{name}`?")
        }
        Some(_) if known.len() <= 40 => format!("known here: {}", list(&known)),
        Some(_) | None => String::new(),
    }
}

/// Returns `` `a`, `b`, `c` ``.
pub(super) fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spot_reads_like_a_path_and_stays_on_one_line() {
        let spot = KeyPath::default().key("listeners").index(0).key("bind");
        assert_eq!(spot.to_string(), "listeners[0].bind");
        let spot = KeyPath::default().key("vendors").key("a\nb");
        assert_eq!(spot.to_string(), r#"vendors."a\nb""#);
    }

    #[test]
    fn only_what_is_close_is_suggested() {
        let known = ["prefix", "upstream", "token_url"];
        assert_eq!(suggest("prefx", known), "did you mean `prefix`?");
        assert_eq!(suggest("Token-URL", known), "did you mean `token_url`?");
        assert_eq!(
            suggest("colour", known),
            "known here: `prefix`, `upstream`, `token_url`"
        );
        assert_eq!(suggest("x", []), "");
    }

    #[test]
    fn what_is_already_wrong_is_not_also_missing() {
        let mut report = Report::new(Path::new("f"));
        let auth = KeyPath::default().key("auth");
        report.error(&auth.key("token"), "is odd", "");
        report.missing_key(&auth.key("token"), "");
        report.missing_key(&auth.key("other"), "");
        let messages: Vec<_> = report
            .finish()
            .unwrap_err()
            .into_iter()
            .map(|error| error.message)
            .collect();
        assert_eq!(messages, ["auth.token: is odd", "auth.other: is missing"]);
    }
}
