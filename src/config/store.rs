//! The store of rotating refresh tokens: `store:`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::auth::Auth;
use super::file;
use super::reader::{Reader, Secrets};
use super::report::KeyPath;
use super::vendors::Vendor;
use crate::endpoint;
use crate::secret::SecretRef;

/// The store of rotating refresh tokens. An encryption key is 32 bytes as base64, hex or raw.
#[derive(Clone, Debug, PartialEq)]
pub enum Store {
    /// A directory, for the processes of one host.
    File {
        /// The directory.
        dir: PathBuf,
        /// The key; `None`: one is created inside `dir`.
        encryption_key: Option<SecretRef>,
    },
    /// A Redis server, shared by replicas.
    Redis {
        /// The URL, `redis:` or `rediss:`, with user and password.
        url: SecretRef,
        /// Trusted instead of the system's roots.
        ca: Option<PathBuf>,
        /// Encrypts what is stored.
        encryption_key: SecretRef,
    },
    /// A Kubernetes Secret, shared by replicas.
    Kubernetes {
        /// The Secret's name.
        secret: String,
        /// `None`: the service account's, or the context's.
        namespace: Option<String>,
        /// Encrypts what is stored.
        encryption_key: SecretRef,
    },
}

/// Reads `store:`. With an error, the result is as useless as the whole configuration.
pub(super) fn store(written: Option<&file::Store>, reader: &mut Reader<'_>) -> Store {
    let at = KeyPath::default().key("store");
    let Some(written) = written else {
        return default_dir(reader, None);
    };
    let encryption_key = written
        .encryption_key
        .as_ref()
        .and_then(|key| reader.encryption_key(key, &at.key("encryption_key")));
    let kinds = [
        ("file", written.file.is_some()),
        ("redis", written.redis.is_some()),
        ("kubernetes", written.kubernetes.is_some()),
    ];
    let mut given = kinds.iter().filter(|(_, given)| *given);
    if let (Some((first, _)), Some((second, _))) = (given.next(), given.next()) {
        reader.report.error_at_key(
            &at.key(second),
            format!("there is `store.{first}` already"),
            "give exactly one of `file`, `redis` and `kubernetes`",
        );
    }
    if written.encryption_key.is_none()
        && let Some((kind, _)) = kinds[1..].iter().find(|(_, given)| *given)
    {
        reader.report.missing_key(
            &at.key("encryption_key"),
            format!(
                "`{kind}` needs it, the same in every replica; `openssl rand -base64 32` makes one"
            ),
        );
    }
    match (written, encryption_key) {
        (
            file::Store {
                redis: Some(redis), ..
            },
            Some(encryption_key),
        ) => {
            let at = at.key("redis");
            let ca = redis.ca.as_ref().map(|ca| reader.roots(ca, &at.key("ca")));
            let url = redis.url.as_ref();
            match url.and_then(|url| redis_url(url, ca.as_ref(), &at, reader)) {
                Some(url) => Store::Redis {
                    url,
                    ca,
                    encryption_key,
                },
                None => default_dir(reader, None),
            }
        }
        (
            file::Store {
                kubernetes: Some(kubernetes),
                ..
            },
            Some(encryption_key),
        ) => Store::Kubernetes {
            secret: kubernetes.secret.clone().unwrap_or_default(),
            namespace: kubernetes.namespace.clone(),
            encryption_key,
        },
        (
            file::Store {
                file: Some(file::FileStore { dir: Some(dir) }),
                ..
            },
            encryption_key,
        ) => {
            if dir.is_empty() {
                let at = at.key("file").key("dir");
                reader.report.error(&at, "is empty", "");
            }
            Store::File {
                dir: reader.path(dir),
                encryption_key,
            }
        }
        (_, encryption_key) => default_dir(reader, encryption_key),
    }
}

/// Warns where one replica that stops would revoke the grant of all.
pub(super) fn warn_of_shared_ends(store: &Store, vendors: &[Vendor], reader: &mut Reader<'_>) {
    if matches!(store, Store::File { .. }) {
        return;
    }
    for vendor in vendors {
        if let Some(kind) = vendor.auth.as_ref().map(Auth::kind)
            && kind.tokens.is_some_and(|tokens| tokens.revoke_on_exit)
        {
            let at = KeyPath::default()
                .key("vendors")
                .key(&vendor.name)
                .key("auth");
            reader.report.warn(
                &at.key(kind.name).key("revoke_on_exit"),
                "the grant is shared: each replica that stops, also in a rolling update, revokes it for all",
                "leave it out, or give every replica a store of its own",
            );
        }
    }
}

/// Reports a directory for refresh tokens that others can write to, where one is needed, and warns
/// of one that they can read.
pub(super) fn check_directory(store: &Store, vendors: &[Vendor], reader: &mut Reader<'_>) {
    let needed = vendors
        .iter()
        .any(|vendor| vendor.auth.as_ref().is_some_and(Auth::is_in_store));
    if let Store::File { dir, .. } = store
        && needed
        && reader.secrets == Secrets::Resolve
        && let Err(exposed) = kept_from_others(dir)
    {
        let at = KeyPath::default().key("store").key("file").key("dir");
        let message = format!("{} {}", dir.display(), exposed.what);
        let hint = format!("run `{}`", exposed.cure);
        reader.report.error(&at, message, hint);
    } else if let Store::File { dir, .. } = store
        && needed
        && reader.secrets == Secrets::Resolve
        && let Ok(found) = std::fs::metadata(dir)
        && found.mode() & 0o055 != 0
    {
        let at = KeyPath::default().key("store").key("file").key("dir");
        let message = format!("{} can be read by other users", dir.display());
        let hint = format!("run `chmod 700 {}`", quoted(dir));
        reader.report.warn(&at, message, hint);
    }
}

/// The reason why a directory is unsafe for refresh tokens.
#[derive(Debug)]
pub(crate) struct Exposed {
    /// The end of a sentence that begins with its path.
    pub(crate) what: String,
    /// The command that fixes it.
    pub(crate) cure: String,
}

/// Checks that only we, and root, can put files into `dir`. Others may read it: its content is
/// encrypted, and its files are ours alone. A directory that is missing, or that we cannot inspect,
/// is left to its user.
///
/// # Errors
/// Fails if others can write: they could replace our files.
pub(crate) fn kept_from_others(dir: &Path) -> Result<(), Exposed> {
    let Ok(found) = std::fs::metadata(dir) else {
        return Ok(());
    };
    let us = rustix::process::geteuid().as_raw();
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    let dir = quoted(dir);
    if owner != us && owner != 0 {
        Err(Exposed {
            what: format!(
                "belongs to another user (number {owner}, this process runs as {us}), who can read and \
                 replace the refresh tokens in it"
            ),
            cure: format!("chown -R {us} {dir} && chmod 700 {dir}"),
        })
    } else if mode & 0o022 != 0 {
        Err(Exposed {
            what: format!(
                "can be written to by other users (mode {mode:04o}), and holds refresh tokens"
            ),
            cure: format!("chmod 700 {dir}"),
        })
    } else {
        Ok(())
    }
}

/// Quotes a path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte))
    {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn default_dir(reader: &Reader<'_>, encryption_key: Option<SecretRef>) -> Store {
    Store::File {
        dir: reader.path("./state"),
        encryption_key,
    }
}

fn redis_url(
    written: &file::Secret,
    ca: Option<&PathBuf>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<SecretRef> {
    let here = at.key("url");
    let secret = reader.secret(written, &here)?;
    if let (SecretRef::Env(_) | SecretRef::File(_), Secrets::FormOnly) = (&secret, reader.secrets) {
        return Some(secret);
    }
    // An unreadable secret has been reported.
    let text = secret.resolve().ok()?;
    let url = match endpoint::redis(text.expose()) {
        Ok(url) => url,
        Err(wrong) => {
            reader.report.error(&here, wrong, wrong.hint());
            return Some(secret);
        }
    };
    if url.scheme() == "redis" && ca.is_some() {
        reader.report.error_at_key(
            &at.key("ca"),
            "is for TLS, and the URL is not",
            "write `rediss://` there",
        );
    }
    Some(secret)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_that_others_can_write_to_is_known_and_the_cure_fits_a_shell() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it's");
        assert!(kept_from_others(&path).is_ok(), "not there yet");
        fs::create_dir(&path).unwrap();
        for (mode, open) in [
            (0o700, false),
            (0o2700, false),
            (0o500, false),
            (0o755, false),
            (0o720, true),
            (0o702, true),
            (0o2770, true),
            (0o1777, true),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(kept_from_others(&path).is_err(), open, "{mode:o}");
        }
        let exposed = kept_from_others(&path).unwrap_err();
        assert!(exposed.what.contains("(mode 1777)"), "{exposed:?}");
        let mended = std::process::Command::new("sh")
            .args(["-c", &exposed.cure])
            .status();
        assert!(mended.unwrap().success(), "{exposed:?}");
        assert!(kept_from_others(&path).is_ok());
    }
}
