//! References to secrets, and reading them.

use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::tls::sha256;

/// The source of a secret; resolved for every use, so that rotation is noticed.
#[derive(Clone, Debug)]
pub enum SecretRef {
    /// An environment variable.
    Env(String),
    /// A file, absolute or already joined to the configuration's directory.
    File(PathBuf),
    /// Written into the configuration itself.
    Value(Secret),
    /// Plain text, in a place where a secret may be.
    Plain(String),
}

/// The reason why a secret cannot be read. Contains its source, never its value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No such environment variable.
    #[error("the environment variable {0} is not set")]
    NoVariable(String),
    /// The variable or file is not text.
    #[error("{0} does not hold UTF-8 text")]
    NotText(String),
    /// Text in an encoding that Windows writes.
    #[error("{0} is UTF-16 text; save it as UTF-8: `iconv -f UTF-16 -t UTF-8 FILE`")]
    Utf16(String),
    /// Present, but empty.
    #[error("{0} is empty")]
    Empty(String),
    /// The file cannot be read.
    #[error("the file {path} cannot be read: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: std::io::Error,
    },
}

/// Equal sources, or equal values. Values are compared by digest, since secrets have no `==`.
impl PartialEq for SecretRef {
    fn eq(&self, other: &Self) -> bool {
        let digest = |secret: &Secret| sha256(&[secret.expose().as_bytes()]);
        match (self, other) {
            (Self::Env(one), Self::Env(other)) | (Self::Plain(one), Self::Plain(other)) => {
                one == other
            }
            (Self::File(one), Self::File(other)) => one == other,
            (Self::Value(one), Self::Value(other)) => digest(one) == digest(other),
            (Self::Env(_) | Self::File(_) | Self::Value(_) | Self::Plain(_), _) => false,
        }
    }
}

impl SecretRef {
    /// Reads the secret; files are read again at each call. A byte order mark and surrounding white
    /// space are removed from a file's content; other sources are used as they are.
    ///
    /// # Errors
    /// [`SecretError`] when it is missing, unreadable, not UTF-8 or empty.
    pub fn resolve(&self) -> Result<Secret, SecretError> {
        let bytes = self.resolve_bytes()?;
        let text = std::str::from_utf8(&bytes).map_err(|_| match &bytes[..] {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => SecretError::Utf16(self.describe()),
            _ => SecretError::NotText(self.describe()),
        })?;
        let secret = match self {
            Self::File(_) => Secret::new(text.strip_prefix(BOM).unwrap_or(text)),
            Self::Env(_) | Self::Value(_) | Self::Plain(_) => Secret::exact(text),
        };
        if secret.expose().trim().is_empty() {
            return Err(SecretError::Empty(self.describe()));
        }
        Ok(secret)
    }

    /// Reads the bytes as they are, for keys that may be raw.
    ///
    /// # Errors
    /// [`SecretError`] when it is missing or unreadable.
    pub fn resolve_bytes(&self) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        match self {
            Self::Env(name) => std::env::var(name)
                .map(|text| Zeroizing::new(text.into_bytes()))
                .map_err(|cause| match cause {
                    std::env::VarError::NotPresent => SecretError::NoVariable(name.clone()),
                    std::env::VarError::NotUnicode(_) => SecretError::NotText(self.describe()),
                }),
            Self::File(path) => {
                std::fs::read(path)
                    .map(Zeroizing::new)
                    .map_err(|cause| SecretError::Unreadable {
                        path: path.clone(),
                        cause,
                    })
            }
            Self::Value(secret) => Ok(Zeroizing::new(secret.expose().as_bytes().to_vec())),
            Self::Plain(text) => Ok(Zeroizing::new(text.as_bytes().to_vec())),
        }
    }

    /// Describes the source for people, never the value.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Env(name) => format!("the environment variable {name}"),
            Self::File(path) => format!("the file {}", path.display()),
            Self::Value(_) | Self::Plain(_) => "the value in the configuration".to_owned(),
        }
    }
}

/// The mark that editors on Windows put before UTF-8.
pub(crate) const BOM: &str = "\u{feff}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_trimmed_and_read_again_at_each_call() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let secret = SecretRef::File(path.clone());

        std::fs::write(&path, " one\n").unwrap();
        assert_eq!(secret.resolve().unwrap().expose(), "one");
        std::fs::write(&path, "two\r\n").unwrap();
        assert_eq!(secret.resolve().unwrap().expose(), "two");
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(secret.resolve(), Err(SecretError::Empty(_))));
    }

    #[test]
    fn what_is_no_file_is_taken_as_it_is() {
        for text in [" one\n", "two "] {
            let secret = SecretRef::Value(Secret::exact(text));
            assert_eq!(secret.resolve().unwrap().expose(), text);
        }
        let blank = SecretRef::Value(Secret::exact(" \n"));
        assert!(matches!(blank.resolve(), Err(SecretError::Empty(_))));
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = SecretRef::Env("COUNTERSIGN_NO_SUCH_VARIABLE".into());
        assert_eq!(
            missing.resolve().unwrap_err().to_string(),
            "the environment variable COUNTERSIGN_NO_SUCH_VARIABLE is not set"
        );
    }
}
