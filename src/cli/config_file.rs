//! The configuration file that a command reads: `--config FILE`, `-c FILE`, or FILE as an argument;
//! else the one in `COUNTERSIGN_CONFIG`; else `proxy.yaml`.
//!
//! Some commands have arguments of other kinds. A vendor's name has no slash, so an argument with a
//! slash is a file; one that ends in `.yaml` or `.yml` is a file as well, unless a vendor has this
//! name. Where an argument is ambiguous, the message says what to write.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};

use super::Cli;
use crate::config::{Config, Secrets};

/// The path of the configuration.
#[derive(Clone, Debug, Args)]
pub(super) struct ConfigFile {
    /// The configuration file; default: `COUNTERSIGN_CONFIG`, else proxy.yaml
    #[arg(
        short,
        long,
        value_name = "FILE",
        value_hint = clap::ValueHint::FilePath
    )]
    config: Option<PathBuf>,
}

/// The path of the configuration, for a command without other arguments.
#[derive(Clone, Debug, Args)]
pub(super) struct OnlyConfigFile {
    #[command(flatten)]
    option: ConfigFile,
    /// Same as --config FILE
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with = "config")]
    file: Option<PathBuf>,
}

impl OnlyConfigFile {
    pub(super) fn path(&self) -> PathBuf {
        self.option.path(self.file.as_deref())
    }
}

impl ConfigFile {
    /// Returns the file to read; `argument` is the one given without `--config`.
    pub(super) fn path(&self, argument: Option<&Path>) -> PathBuf {
        let given = argument.or(self.config.as_deref()).map(Path::to_owned);
        given.unwrap_or_else(default)
    }

    /// Separates the file from the vendors' names in `words`. `Err`: a message that says what to
    /// write instead.
    pub(super) fn with_vendors(&self, words: &[String]) -> Result<(PathBuf, Vec<String>), String> {
        let mut names = Vec::new();
        let mut file: Option<&str> = None;
        for word in words {
            if !self.is_file(word)? {
                names.push(word.clone());
            } else if let Some(other) = file.replace(word) {
                return Err(format!(
                    "both `{other}` and `{word}` look like the configuration file: write \
                     `--config FILE`"
                ));
            }
        }
        Ok((self.path(file.map(Path::new)), names))
    }

    /// Returns which of `first` and `second` is the vendor and which the file. `Err`: a message
    /// that says what to write instead.
    pub(super) fn with_vendor(
        &self,
        first: &str,
        second: Option<&str>,
    ) -> Result<(String, PathBuf), String> {
        let (vendor, file) = match second {
            None if self.is_file(first)? => {
                return Err(format!(
                    "the vendor's name is missing: write `countersign authorize VENDOR {first}`"
                ));
            }
            Some(second)
                if looks_like_file(first)
                    && !looks_like_file(second)
                    && !Path::new(second).is_file() =>
            {
                (second, Some(first))
            }
            second => (first, second),
        };
        Ok((vendor.to_owned(), self.path(file.map(Path::new))))
    }

    /// Returns the method, the path and the file from the arguments of `explain`, where the file
    /// may be first, last or in between. `Err`: a message that says what to write instead.
    pub(super) fn with_request<'w>(
        &self,
        method: &'w str,
        path: &'w str,
        file: Option<&'w str>,
    ) -> Result<(&'w str, &'w str, PathBuf), String> {
        let is_path = |word: &str| word.starts_with('/');
        let (method, path, file) = match file {
            Some(target) if looks_like_file(method) => (path, target, Some(method)),
            Some(target) if !is_path(path) && looks_like_file(path) && is_path(target) => {
                (method, target, Some(path))
            }
            file => (method, path, file),
        };
        let misplaced = [method, path]
            .into_iter()
            .find(|word| has_extension(word) && !is_path(word));
        if let (Some(word), None) = (misplaced, file) {
            return Err(format!(
                "a request has a method and a path: write `countersign explain METHOD PATH {word}`"
            ));
        }
        Ok((method, path, self.path(file.map(Path::new))))
    }

    /// Tells whether `word`, which may be a vendor's name, is the configuration file.
    fn is_file(&self, word: &str) -> Result<bool, String> {
        if !looks_like_file(word) {
            return Ok(false);
        }
        if let Some(config) = &self.config {
            if !word.contains('/') {
                return Ok(false);
            }
            return Err(format!(
                "`{word}` is not a vendor's name, and the configuration file is given already: \
                 --config {}",
                config.display()
            ));
        }
        if word.contains('/') {
            return Ok(true);
        }
        // Other errors in the file are reported when the command reads it.
        let default = default();
        let known = Config::load(&default, Secrets::FormOnly).is_ok_and(|config| {
            let mut vendors = config.vendors.iter();
            vendors.any(|vendor| vendor.name == word)
        });
        if known && Path::new(word).is_file() {
            return Err(format!(
                "`{word}` is a file and a vendor of {default}: write `--config {word}` for the file, \
                 `--config {default} {word}` for the vendor",
                default = default.display()
            ));
        }
        Ok(!known)
    }
}

fn default() -> PathBuf {
    std::env::var_os("COUNTERSIGN_CONFIG")
        .filter(|name| !name.is_empty())
        .map_or_else(|| "proxy.yaml".into(), PathBuf::from)
}

/// Tells whether `word` cannot be, or is unlikely to be, a vendor's name or a method.
fn looks_like_file(word: &str) -> bool {
    word.contains('/') || has_extension(word)
}

/// Tells whether `word` has the extension of a YAML file.
fn has_extension(word: &str) -> bool {
    let extension = Path::new(word).extension().and_then(|it| it.to_str());
    extension.is_some_and(|it| it.eq_ignore_ascii_case("yaml") || it.eq_ignore_ascii_case("yml"))
}

/// Exits as clap does for an invalid command line: `message` on stderr, exit code 2.
pub(super) fn refuse(message: String) -> ! {
    Cli::command()
        .error(clap::error::ErrorKind::ArgumentConflict, message)
        .exit()
}
