//! What the file points at: secrets, certificates, keys. Their form is always checked; whether
//! they are there and usable, when asked.

use std::fs::File as FsFile;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use http::HeaderValue;
use rustls::SignatureAlgorithm;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use super::file;
use super::report::{Report, Spot};
use crate::config::{CertFiles, SecretRef, Secrets};
use crate::secret::Secret;
use crate::{jwks, tls};

/// What every part of the file is read with.
pub(super) struct Context<'a> {
    pub(super) report: Report<'a>,
    /// The directory of the file, which relative paths are relative to.
    pub(super) dir: PathBuf,
    pub(super) secrets: Secrets,
}

impl Context<'_> {
    /// `path` as the user meant it.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// A secret. `None` when its form is wrong, which has been reported.
    pub(super) fn secret(&mut self, written: &file::Secret, at: &Spot) -> Option<SecretRef> {
        let (secret, at) = match written {
            file::Secret {
                env: Some(name), ..
            } => (SecretRef::Env(name.clone()), at.key("env")),
            file::Secret {
                file: Some(path), ..
            } => {
                let at = at.key("file");
                if path.is_empty() {
                    self.report.wrong(&at, "is empty", "");
                    return None;
                }
                (SecretRef::File(self.path(path)), at)
            }
            file::Secret {
                value: Some(text), ..
            } => {
                let at = at.key("value");
                let secret = Secret::new(text);
                if secret.expose().is_empty() {
                    self.report.wrong(&at, "is empty", "");
                    return None;
                }
                self.report.warn(
                    &at,
                    "a secret is written into the configuration",
                    "`{ env: NAME }` or `{ file: PATH }` keep it out",
                );
                (SecretRef::Value(secret), at)
            }
            file::Secret {
                env: None,
                file: None,
                value: None,
            } => return None,
        };
        if self.secrets == Secrets::Resolve {
            match (secret.resolve(), &secret) {
                (Err(error), _) => self.report.wrong(&at, error, ""),
                (Ok(_), SecretRef::File(path)) => self.open_to_others(path, &at),
                (Ok(_), SecretRef::Env(_) | SecretRef::Value(_) | SecretRef::Plain(_)) => {}
            }
        }
        Some(secret)
    }

    /// Warns of a secret's file that every user of this machine can read.
    fn open_to_others(&mut self, path: &Path, at: &Spot) {
        let mode = std::fs::metadata(path).map_or(0, |file| file.permissions().mode());
        if mode & 0o004 != 0 {
            let message = format!("{} can be read by every user", path.display());
            let hint = "`chmod o-r` closes it; in Kubernetes, `defaultMode: 0440` of the volume";
            self.report.warn(at, message, hint);
        }
    }

    /// Text that is no secret by itself, or a secret.
    pub(super) fn plain_or_secret(
        &mut self,
        written: &file::PlainOrSecret,
        at: &Spot,
    ) -> Option<SecretRef> {
        match written {
            file::PlainOrSecret::Plain(text) => {
                let text = text.trim();
                if text.is_empty() {
                    self.report.wrong(at, "is empty", "");
                    return None;
                }
                Some(SecretRef::Plain(text.to_owned()))
            }
            file::PlainOrSecret::Secret(secret) => self.secret(secret, at),
        }
    }

    /// What must fit into a header field's value, does it? Said only of secrets that are there.
    pub(super) fn header_value(&mut self, secret: &SecretRef, at: &Spot) {
        let known = match secret {
            SecretRef::Value(secret) => secret.clone(),
            SecretRef::Plain(text) => Secret::new(text.as_str()),
            SecretRef::Env(_) | SecretRef::File(_) if self.secrets == Secrets::FormOnly => return,
            SecretRef::Env(_) | SecretRef::File(_) => match secret.resolve() {
                Ok(secret) => secret,
                // Reported where it was first resolved.
                Err(_) => return,
            },
        };
        if HeaderValue::from_str(known.expose()).is_err() {
            self.report.wrong(
                at,
                "holds a character that no header field may hold",
                "line breaks and control characters are not allowed inside it",
            );
        }
    }

    /// The digest of a key, whose form the schema has checked.
    pub(super) fn digest(&mut self, digits: &str, at: &Spot) -> Option<[u8; 32]> {
        let mut digest = [0; 32];
        hex::decode_to_slice(digits, &mut digest).ok()?;
        if digest == tls::sha256(&[]) {
            self.report.wrong(
                at,
                "is the digest of an empty key",
                "was there something to digest? `countersign caller new NAME` makes a key",
            );
        }
        Some(digest)
    }

    /// A certificate and its key.
    pub(super) fn cert_files(&mut self, written: &file::CertFiles, at: &Spot) -> Option<CertFiles> {
        let (Some(cert), Some(key)) = (&written.cert, &written.key) else {
            return None;
        };
        let files = CertFiles {
            cert: self.path(cert),
            key: self.path(key),
        };
        if self.secrets == Secrets::Resolve {
            // What the PEM parser says repeats the line it stumbled on, which may be the key.
            let mut usable = true;
            for (name, path, content) in [
                ("cert", &files.cert, "a certificate (PEM)"),
                ("key", &files.key, "a private key (PEM)"),
            ] {
                if let Some(cause) = unreadable(path) {
                    self.report.wrong(&at.key(name), cause, "");
                    usable = false;
                } else if name == "key" && PrivateKeyDer::from_pem_file(path).is_err() {
                    let message = format!("{} does not hold {content}", path.display());
                    self.report.wrong(&at.key(name), message, "");
                    usable = false;
                }
            }
            if usable {
                match tls::Identity::load(&files) {
                    Err(error) => self.report.wrong(&at.key("cert"), error, ""),
                    Ok(_) => self.open_to_others(&files.key, &at.key("key")),
                }
            }
        }
        Some(files)
    }

    /// A bundle of trusted certificates.
    pub(super) fn roots(&mut self, written: &str, at: &Spot) -> PathBuf {
        let path = self.path(written);
        if self.secrets == Secrets::Resolve {
            if let Some(cause) = unreadable(&path) {
                self.report.wrong(at, cause, "");
            } else if let Err(error) = tls::Roots::load(&path) {
                self.report.wrong(at, error, "");
            }
        }
        path
    }

    /// An issuer's public keys.
    pub(super) fn jwks(&mut self, written: &str, at: &Spot) -> PathBuf {
        let path = self.path(written);
        if self.secrets == Secrets::Resolve {
            let cause = match std::fs::read(&path) {
                Err(cause) => Some(format!("{} cannot be read: {cause}", path.display())),
                Ok(text) => jwks::KeySet::parse(&text)
                    .err()
                    .map(|cause| format!("{}: {cause}", path.display())),
            };
            if let Some(cause) = cause {
                self.report.wrong(at, cause, "");
            }
        }
        path
    }

    /// 32 bytes, raw or as text.
    pub(super) fn encryption_key(
        &mut self,
        written: &file::Secret,
        at: &Spot,
    ) -> Option<SecretRef> {
        let secret = self.secret(written, at)?;
        let bytes = match (&secret, self.secrets) {
            (SecretRef::Value(_) | SecretRef::Plain(_), _) | (_, Secrets::Resolve) => {
                secret.resolve_bytes().ok()?
            }
            (SecretRef::Env(_) | SecretRef::File(_), Secrets::FormOnly) => return Some(secret),
        };
        let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
        let fits = bytes.len() == 32
            || hex::decode(text).is_ok_and(|key| key.len() == 32)
            || [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD]
                .iter()
                .any(|base64| base64.decode(text).is_ok_and(|key| key.len() == 32));
        if !fits {
            self.report.wrong(
                at,
                "does not hold 32 bytes",
                "as base64, hex or raw; `openssl rand -base64 32` makes one",
            );
        }
        Some(secret)
    }

    /// The key that signs assertions, and whether it can sign by `algorithm`.
    pub(super) fn signing_key(
        &mut self,
        written: &file::Secret,
        algorithm: file::Algorithm,
        at: &Spot,
    ) -> Option<SecretRef> {
        let secret = self.secret(written, at)?;
        if let SecretRef::Env(_) | SecretRef::File(_) = secret
            && self.secrets == Secrets::FormOnly
        {
            return Some(secret);
        }
        let text = secret.resolve().ok()?;
        let signer = PrivateKeyDer::from_pem_slice(text.expose().as_bytes())
            .ok()
            .and_then(|key| rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).ok());
        let Some(signer) = signer else {
            self.report
                .wrong(at, "does not hold a private key (PEM)", "");
            return Some(secret);
        };
        let wanted = match algorithm {
            file::Algorithm::RS256
            | file::Algorithm::RS384
            | file::Algorithm::RS512
            | file::Algorithm::PS256
            | file::Algorithm::PS384
            | file::Algorithm::PS512 => SignatureAlgorithm::RSA,
            file::Algorithm::ES256 | file::Algorithm::ES384 => SignatureAlgorithm::ECDSA,
            file::Algorithm::EdDSA => SignatureAlgorithm::ED25519,
        };
        if signer.algorithm() != wanted {
            self.report.wrong(
                at,
                format!("is no key for `algorithm: {algorithm:?}`"),
                "RS… and PS… take an RSA key, ES… an elliptic curve key, EdDSA an Ed25519 key",
            );
        }
        Some(secret)
    }
}

fn unreadable(path: &Path) -> Option<String> {
    let error = FsFile::open(path)
        .and_then(|file| file.metadata())
        .and_then(|found| {
            if found.is_dir() {
                Err(std::io::ErrorKind::IsADirectory.into())
            } else {
                Ok(())
            }
        })
        .err()?;
    Some(format!("{} cannot be read: {error}", path.display()))
}
