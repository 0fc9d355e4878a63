//! What is wrong with a document, collected so that every mistake is reported at once.
//!
//! One rule keeps secrets out of messages: a value of the document is never repeated, only its
//! place is named. Keys are named when they look like keys.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// One thing wrong with a file, as `file:line:column: message; hint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// File as the user named it.
    pub file: PathBuf,
    /// 1-based; 0 when the mistake has no place.
    pub line: usize,
    /// 1-based.
    pub column: usize,
    /// What is wrong, and where in the document (`vendors.acme.auth: …`).
    pub message: String,
    /// What to do about it.
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
pub(super) struct Spot(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    Key(String),
    Index(usize),
}

impl Spot {
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

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    if nth > 0 {
                        f.write_str(".")?;
                    }
                    // Whatever else is in a key must not break the line of the report.
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
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// Where every key and value of the document stands.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) keys: HashMap<Spot, Place>,
    pub(super) values: HashMap<Spot, Place>,
}

impl Places {
    /// What comes from a preset or through an alias has no place of its own: the nearest thing
    /// around it that the file does hold is where the user must look.
    fn nearest(&self, map: &HashMap<Spot, Place>, at: &Spot) -> Place {
        if let Some(place) = map.get(at) {
            return *place;
        }
        let mut around = at.clone();
        while let Some(parent) = around.parent() {
            let place = self.keys.get(&parent).or_else(|| self.values.get(&parent));
            if let Some(place) = place {
                return *place;
            }
            around = parent;
        }
        Place { line: 1, column: 1 }
    }
}

/// Collects mistakes and warnings.
pub(super) struct Report<'a> {
    file: &'a Path,
    pub(super) places: Places,
    mistakes: Vec<(Spot, ConfigError)>,
    /// What lies under these may be there or not: a preset that is not known would have told.
    unknowable: Vec<Spot>,
    warnings: Vec<ConfigError>,
    /// Of the warnings, what has expired.
    expired: Vec<ConfigError>,
}

impl<'a> Report<'a> {
    pub(super) fn new(file: &'a Path) -> Self {
        Self {
            file,
            places: Places::default(),
            mistakes: Vec::new(),
            unknowable: Vec::new(),
            warnings: Vec::new(),
            expired: Vec::new(),
        }
    }

    /// The value at `at` is wrong. An empty hint is none.
    pub(super) fn wrong(&mut self, at: &Spot, message: impl fmt::Display, hint: impl Into<String>) {
        let place = self.places.nearest(&self.places.values, at);
        self.wrong_in(place, at, message, hint);
    }

    /// The key at `at` is wrong, whatever its value.
    pub(super) fn wrong_key(
        &mut self,
        at: &Spot,
        message: impl fmt::Display,
        hint: impl Into<String>,
    ) {
        let place = self.places.nearest(&self.places.keys, at);
        self.wrong_in(place, at, message, hint);
    }

    /// Nothing stands at `at`, and something must. Said once, and not where what stood there was
    /// already found wrong.
    pub(super) fn missing(&mut self, at: &Spot, hint: impl Into<String>) {
        let known = self
            .mistakes
            .iter()
            .any(|(spot, _)| at.contains(spot) || (spot.contains(at) && *spot != Spot::default()));
        if !known && !self.unknowable.iter().any(|spot| spot.contains(at)) {
            self.wrong_key(at, "is missing", hint);
        }
    }

    /// From now on nothing under `at` is missing.
    pub(super) fn unknowable(&mut self, at: Spot) {
        self.unknowable.push(at);
    }

    /// As [`Report::wrong`], at a position of its own.
    pub(super) fn wrong_in(
        &mut self,
        place: Place,
        at: &Spot,
        message: impl fmt::Display,
        hint: impl Into<String>,
    ) {
        let mistake = self.mistake(place, at, message, hint.into());
        self.mistakes.push((at.clone(), mistake));
    }

    /// The value at `at` is accepted and deserves a word.
    pub(super) fn warn(&mut self, at: &Spot, message: impl fmt::Display, hint: impl Into<String>) {
        let place = self.places.nearest(&self.places.values, at);
        let warning = self.mistake(place, at, message, hint.into());
        self.warnings.push(warning);
    }

    /// The value at `at` names something that has expired: a warning, and a mistake to `check`.
    pub(super) fn expired(&mut self, at: &Spot, message: impl fmt::Display, hint: &str) {
        let place = self.places.nearest(&self.places.values, at);
        let mistake = self.mistake(place, at, message, hint.to_owned());
        self.warnings.push(mistake.clone());
        self.expired.push(mistake);
    }

    /// The warnings and what has expired, each in the file's order; or the mistakes when there are
    /// any, to which belongs what has expired.
    pub(super) fn finish(self) -> Result<(Vec<ConfigError>, Vec<ConfigError>), Vec<ConfigError>> {
        let sorted = |mut list: Vec<ConfigError>| {
            list.sort_by_key(|mistake| (mistake.line, mistake.column));
            list.dedup();
            list
        };
        if self.mistakes.is_empty() {
            Ok((sorted(self.warnings), sorted(self.expired)))
        } else {
            let mistakes = self.mistakes.into_iter().map(|(_, mistake)| mistake);
            Err(sorted(mistakes.chain(self.expired).collect()))
        }
    }

    fn mistake(
        &self,
        place: Place,
        at: &Spot,
        message: impl fmt::Display,
        hint: String,
    ) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line: place.line,
            column: place.column,
            message: if *at == Spot::default() {
                message.to_string()
            } else {
                format!("{at}: {message}")
            },
            hint: (!hint.is_empty()).then_some(hint),
        }
    }
}

/// `did you mean …?` when one of `known` is close to `written`, else the list of them all.
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
        // One slip, and one more for every four characters.
        Some((distance, name)) if distance <= 1 + name.chars().count() / 4 => {
            format!("did you mean `{name}`?")
        }
        Some(_) if known.len() <= 40 => format!("known here: {}", list(&known)),
        Some(_) | None => String::new(),
    }
}

/// `` `a`, `b`, `c` ``.
pub(super) fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spot_reads_like_a_path_and_stays_on_one_line() {
        let spot = Spot::default().key("listeners").index(0).key("bind");
        assert_eq!(spot.to_string(), "listeners[0].bind");
        let spot = Spot::default().key("vendors").key("a\nb");
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
        let auth = Spot::default().key("auth");
        report.wrong(&auth.key("token"), "is odd", "");
        report.missing(&auth.key("token"), "");
        report.missing(&auth.key("other"), "");
        let messages: Vec<_> = report
            .finish()
            .unwrap_err()
            .into_iter()
            .map(|mistake| mistake.message)
            .collect();
        assert_eq!(messages, ["auth.token: is odd", "auth.other: is missing"]);
    }
}
