//! References in the file: secrets, certificates, keys. Their form is always checked; whether they
//! are present and usable, on request.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use http::HeaderValue;
use rustls::SignatureAlgorithm;

use super::file;
use super::report::{KeyPath, Report};
use super::suspicions::{is_placeholder, suspicions};
use crate::jwks;
use crate::secret::{Secret, SecretRef};
use crate::tls::{self, CertFiles};

/// A certificate that is presented or served, and its place in proxy.yaml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentedCertificate {
    /// The key path: `listeners[0].tls`, `vendors.acme.auth.vedauth.certificate`.
    pub place: String,
    /// The files.
    pub files: CertFiles,
}

/// Selects whether secrets and key files are read, or only checked for form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// They are read, and must be usable.
    Resolve,
    /// Only the form of references is checked.
    FormOnly,
}

/// The state shared by all readers of the file.
pub(super) struct Reader<'a> {
    pub(super) report: Report<'a>,
    /// The directory of the file, which relative paths are relative to.
    pub(super) dir: PathBuf,
    pub(super) secrets: Secrets,
    /// The certificates read so far that are presented or served.
    pub(super) presented: Vec<PresentedCertificate>,
}

impl Reader<'_> {
    /// Resolves a path relative to the file.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// Returns the file that `written` specifies. `None` when it is the content of one, a key
    /// perhaps, which no message may repeat; that has been reported.
    fn file(&mut self, written: &str, at: &KeyPath) -> Option<PathBuf> {
        if is_content(written) {
            let message = "is the content of a file; the file's name belongs here";
            let hint = "write it to a file that only this program can read, and give its name here";
            self.report.error(at, message, hint);
            return None;
        }
        Some(self.path(written))
    }

    /// Reads a secret. `None`: its form is invalid, which has been reported.
    pub(super) fn secret(&mut self, written: &file::Secret, at: &KeyPath) -> Option<SecretRef> {
        let (secret, at) = self.reference(written, at)?;
        self.suspicions(&secret, &at);
        if self.secrets == Secrets::Resolve {
            match (secret.resolve(), &secret) {
                (Err(error), _) => self.report.error(&at, error, ""),
                (Ok(_), SecretRef::File(path)) => self.warn_if_readable_by_others(path, &at),
                (Ok(_), SecretRef::Env(_) | SecretRef::Value(_) | SecretRef::Plain(_)) => {}
            }
        }
        Some(secret)
    }

    /// Returns a secret's reference, and where it is written.
    fn reference(&mut self, written: &file::Secret, at: &KeyPath) -> Option<(SecretRef, KeyPath)> {
        match written {
            file::Secret {
                env: Some(name), ..
            } => Some((SecretRef::Env(name.clone()), at.key("env"))),
            file::Secret {
                file: Some(path), ..
            } => {
                let at = at.key("file");
                if path.is_empty() {
                    self.report.error(&at, "is empty", "");
                    return None;
                }
                Some((SecretRef::File(self.file(path, &at)?), at))
            }
            file::Secret {
                value: Some(text), ..
            } => {
                let at = at.key("value");
                let secret = Secret::exact(text);
                if secret.expose().trim().is_empty() {
                    self.report.error(&at, "is empty", "");
                    return None;
                }
                self.report.warn(
                    &at,
                    "a secret is written into the configuration",
                    "`{ env: NAME }` or `{ file: PATH }` keep it out",
                );
                Some((SecretRef::Value(secret), at))
            }
            file::Secret {
                env: None,
                file: None,
                value: None,
            } => None,
        }
    }

    /// Warns of a secret that looks like something else.
    fn suspicions(&mut self, secret: &SecretRef, at: &KeyPath) {
        if self.secrets == Secrets::FormOnly && !matches!(secret, SecretRef::Value(_)) {
            return;
        }
        // An unreadable secret is reported as that.
        let Ok(bytes) = secret.resolve_bytes() else {
            return;
        };
        for (what, hint) in suspicions(secret, &bytes) {
            self.report
                .warn(at, format!("{} {what}", secret.describe()), hint);
        }
    }

    /// Warns of a secret's file that every user of this machine can read.
    fn warn_if_readable_by_others(&mut self, path: &Path, at: &KeyPath) {
        let mode = std::fs::metadata(path).map_or(0, |file| file.permissions().mode());
        if mode & 0o004 != 0 {
            let message = format!("{} can be read by every user", path.display());
            let hint = "`chmod o-r` closes it; in Kubernetes, `defaultMode: 0440` of the volume";
            self.report.warn(at, message, hint);
        }
    }

    /// Reads a plain text or a secret.
    pub(super) fn plain_or_secret(
        &mut self,
        written: &file::PlainOrSecret,
        at: &KeyPath,
    ) -> Option<SecretRef> {
        match written {
            file::PlainOrSecret::Plain(text) => {
                let text = text.trim();
                if text.is_empty() {
                    self.report.error(at, "is empty", "");
                    return None;
                }
                if is_placeholder(text) {
                    self.report
                        .warn(at, "looks like a placeholder", "put the value there");
                }
                Some(SecretRef::Plain(text.to_owned()))
            }
            file::PlainOrSecret::Secret(secret) => self.secret(secret, at),
        }
    }

    /// Checks that a value fits into a header, if it is present.
    pub(super) fn header_value(&mut self, secret: &SecretRef, at: &KeyPath) {
        let Some(known) = self.known(secret) else {
            return;
        };
        if HeaderValue::from_str(known.expose()).is_ok() {
            return;
        }
        let hint = if HeaderValue::from_str(known.expose().trim()).is_ok() {
            "only files are trimmed: remove the line break at its end where it is set"
        } else {
            "line breaks and control characters are not allowed inside it"
        };
        let message = "holds a character that no header field may hold";
        self.report.error(at, message, hint);
    }

    /// Checks that a value fits behind `Bearer`.
    pub(super) fn bearer_token(&mut self, secret: &SecretRef, at: &KeyPath) {
        self.header_value(secret, at);
        let begins_so = |token: Secret| {
            let first = token.expose().split(' ').next().unwrap_or_default();
            first.eq_ignore_ascii_case("bearer") && first.len() < token.expose().len()
        };
        if self.known(secret).is_some_and(begins_so) {
            let message = "begins with `Bearer `, which is put in front of it once more";
            self.report
                .warn(at, message, "the token alone belongs there");
        }
    }

    /// Returns a secret's text, where secrets are read. A failure was reported where it was first
    /// read.
    fn known(&self, secret: &SecretRef) -> Option<Secret> {
        match secret {
            SecretRef::Env(_) | SecretRef::File(_) if self.secrets == Secrets::FormOnly => None,
            SecretRef::Env(_) | SecretRef::File(_) | SecretRef::Value(_) | SecretRef::Plain(_) => {
                secret.resolve().ok()
            }
        }
    }

    /// Reads the digest of a key, whose form the schema has checked.
    pub(super) fn digest(&mut self, digits: &str, at: &KeyPath) -> Option<[u8; 32]> {
        let mut digest = [0; 32];
        hex::decode_to_slice(digits, &mut digest).ok()?;
        if digest == tls::sha256(&[]) {
            self.report.error(
                at,
                "is the digest of an empty key",
                "was there something to digest? `countersign caller new NAME` makes a key",
            );
        }
        Some(digest)
    }

    /// Reads a certificate and its key.
    pub(super) fn cert_files(
        &mut self,
        written: &file::CertFiles,
        at: &KeyPath,
    ) -> Option<CertFiles> {
        let (Some(cert), Some(key)) = (&written.cert, &written.key) else {
            return None;
        };
        let cert = self.file(cert, &at.key("cert"));
        let key = self.file(key, &at.key("key"));
        let files = CertFiles {
            cert: cert?,
            key: key?,
        };
        if self.secrets == Secrets::Resolve {
            match tls::Identity::load(&files) {
                Ok(identity) => {
                    self.warn_if_readable_by_others(&files.key, &at.key("key"));
                    self.time_left(&files, &identity, &at.key("cert"));
                }
                Err(error) => self.unusable_key_pair(&files, error, at),
            }
        }
        self.presented.push(PresentedCertificate {
            place: at.to_string(),
            files: files.clone(),
        });
        Some(files)
    }

    /// Warns of a certificate that has expired or will soon.
    fn time_left(&mut self, files: &CertFiles, identity: &tls::Identity, at: &KeyPath) {
        let now = SystemTime::now();
        let file = files.cert.display();
        let date = |time| {
            let text = humantime::format_rfc3339_seconds(time).to_string();
            text.split('T').next().unwrap_or_default().to_owned()
        };
        let (from, to) = (identity.not_before, identity.not_after);
        let hint = "put a renewed one in its place; it is in use within 10 s";
        if to <= now {
            let message = format!("{file} expired on {}", date(to));
            self.report.expired(at, message, hint);
        } else if to <= now + SOON {
            let days = to.duration_since(now).unwrap_or_default().as_secs() / 86_400;
            let message = format!("{file} expires on {}, {days} days from now", date(to));
            self.report.warn(at, message, hint);
        } else if from > now {
            let message = format!("{file} is not valid before {}", date(from));
            self.report
                .warn(at, message, "is the clock of this machine right?");
        }
    }

    /// Reports what is wrong with each of the two files: one error must not hide the other.
    fn unusable_key_pair(&mut self, files: &CertFiles, error: tls::Error, at: &KeyPath) {
        let mut said = false;
        for (name, fault) in [
            ("cert", tls::certificate_fault(&files.cert)),
            ("key", tls::key_fault(&files.key)),
        ] {
            if let Some(error) = fault {
                self.tls_error(error, &at.key(name));
                said = true;
            }
        }
        if !said {
            self.tls_error(error, &at.key("cert"));
        }
    }

    fn tls_error(&mut self, error: tls::Error, at: &KeyPath) {
        match error {
            tls::Error::Unusable { path, fault } => {
                let message = format!("{} {}", path.display(), fault.what);
                self.report.error(at, message, fault.cure);
            }
            tls::Error::Unreadable { .. }
            | tls::Error::Mismatch { .. }
            | tls::Error::Settings(_)
            | tls::Error::OpenSsl(_) => self.report.error(at, error, ""),
        }
    }

    /// Reads a bundle of trusted certificates.
    pub(super) fn roots(&mut self, written: &str, at: &KeyPath) -> PathBuf {
        let Some(path) = self.file(written, at) else {
            return PathBuf::new();
        };
        if self.secrets == Secrets::Resolve
            && let Err(error) = tls::Roots::load(&path)
        {
            self.tls_error(error, at);
        }
        path
    }

    /// Reads an issuer's public keys.
    pub(super) fn jwks(&mut self, written: &str, at: &KeyPath) -> PathBuf {
        let Some(path) = self.file(written, at) else {
            return PathBuf::new();
        };
        if self.secrets == Secrets::Resolve {
            let cause = match std::fs::read(&path) {
                Err(cause) => Some(format!("{} cannot be read: {cause}", path.display())),
                Ok(text) => jwks::KeySet::parse(&text)
                    .err()
                    .map(|cause| format!("{}: {cause}", path.display())),
            };
            if let Some(cause) = cause {
                self.report.error(at, cause, "");
            }
        }
        path
    }

    /// Reads 32 bytes, raw or as text.
    pub(super) fn encryption_key(
        &mut self,
        written: &file::Secret,
        at: &KeyPath,
    ) -> Option<SecretRef> {
        // Its form is not checked: raw bytes may look like anything.
        let (secret, place) = self.reference(written, at)?;
        if self.secrets == Secrets::Resolve {
            match (secret.resolve_bytes(), &secret) {
                (Err(error), _) => self.report.error(&place, error, ""),
                (Ok(_), SecretRef::File(path)) => self.warn_if_readable_by_others(path, &place),
                (Ok(_), SecretRef::Env(_) | SecretRef::Value(_) | SecretRef::Plain(_)) => {}
            }
        }
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
            self.report.error(
                at,
                "does not hold 32 bytes",
                "as base64, hex or raw; `openssl rand -base64 32` makes one",
            );
        }
        Some(secret)
    }

    /// Reads the key that signs assertions, and checks that it can sign by `algorithm`.
    pub(super) fn signing_key(
        &mut self,
        written: &file::Secret,
        algorithm: file::Algorithm,
        at: &KeyPath,
    ) -> Option<SecretRef> {
        let (secret, place) = self.reference(written, at)?;
        if let SecretRef::Env(_) | SecretRef::File(_) = secret
            && self.secrets == Secrets::FormOnly
        {
            return Some(secret);
        }
        // As bytes, so that a file that is not text is described, too.
        let bytes = match secret.resolve_bytes() {
            Ok(bytes) => bytes,
            Err(error) => {
                self.report.error(&place, error, "");
                return None;
            }
        };
        if let SecretRef::File(path) = &secret {
            self.warn_if_readable_by_others(path, &place);
        }
        let signer = tls::pem::private_key(&bytes).and_then(|key| {
            rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
                .map_err(|_| tls::pem::UNUSABLE_KEY)
        });
        let signer = match signer {
            Ok(signer) => signer,
            Err(fault) => {
                let message = format!("{} {}", secret.describe(), fault.what);
                self.report.error(at, message, fault.cure);
                return Some(secret);
            }
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
            self.report.error(
                at,
                format!("is not a key for `algorithm: {algorithm:?}`"),
                "RS… and PS… take an RSA key, ES… an elliptic curve key, EdDSA an Ed25519 key",
            );
        }
        Some(secret)
    }
}

/// A certificate that expires within this time should have been renewed.
const SOON: Duration = Duration::from_hours(14 * 24);

/// Tells whether `text`, written in place of a file's name, looks like the content of a file.
fn is_content(text: &str) -> bool {
    let base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/=-_".contains(&b);
    text.contains(['\n', '\r'])
        || text.contains("-----")
        || text.trim_start().starts_with('{')
        || (text.len() > 80 && !text.starts_with(['/', '.']) && text.bytes().all(base64))
}
