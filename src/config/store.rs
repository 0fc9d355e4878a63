//! Where rotating refresh tokens live: `store:`.

use std::path::PathBuf;

use super::file;
use super::reference::Context;
use super::report::Spot;
use crate::config::{Auth, SecretRef, Secrets, Store, Vendor};
use crate::endpoint;

/// Reads `store:`. Where it has a mistake, what is returned is of no use, as the whole
/// configuration.
pub(super) fn store(written: Option<&file::Store>, context: &mut Context<'_>) -> Store {
    let at = Spot::default().key("store");
    let Some(written) = written else {
        return default_dir(context, None);
    };
    let encryption_key = written
        .encryption_key
        .as_ref()
        .and_then(|key| context.encryption_key(key, &at.key("encryption_key")));
    let kinds = [
        ("file", written.file.is_some()),
        ("redis", written.redis.is_some()),
        ("kubernetes", written.kubernetes.is_some()),
    ];
    let mut given = kinds.iter().filter(|(_, given)| *given);
    if let (Some((first, _)), Some((second, _))) = (given.next(), given.next()) {
        context.report.wrong_key(
            &at.key(second),
            format!("there is `store.{first}` already"),
            "give exactly one of `file`, `redis` and `kubernetes`",
        );
    }
    if written.encryption_key.is_none()
        && let Some((kind, _)) = kinds[1..].iter().find(|(_, given)| *given)
    {
        context.report.missing(
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
            let ca = redis.ca.as_ref().map(|ca| context.roots(ca, &at.key("ca")));
            let url = redis.url.as_ref();
            match url.and_then(|url| redis_url(url, ca.as_ref(), &at, context)) {
                Some(url) => Store::Redis {
                    url,
                    ca,
                    encryption_key,
                },
                None => default_dir(context, None),
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
                context.report.wrong(&at, "is empty", "");
            }
            Store::File {
                dir: context.path(dir),
                encryption_key,
            }
        }
        (_, encryption_key) => default_dir(context, encryption_key),
    }
}

/// Says so where one replica that stops would end the grant of all.
pub(super) fn warn_of_shared_ends(store: &Store, vendors: &[Vendor], context: &mut Context<'_>) {
    if matches!(store, Store::File { .. }) {
        return;
    }
    for vendor in vendors {
        if let Some(Auth::Vedauth(vedauth)) = &vendor.auth
            && vedauth.revoke_on_exit
        {
            let at = Spot::default().key("vendors").key(&vendor.name).key("auth");
            context.report.warn(
                &at.key("vedauth").key("revoke_on_exit"),
                "the grant is shared: each replica that stops, in a rolling update too, revokes it for all",
                "leave it out, or give every replica a store of its own",
            );
        }
    }
}

fn default_dir(context: &Context<'_>, encryption_key: Option<SecretRef>) -> Store {
    Store::File {
        dir: context.path("./state"),
        encryption_key,
    }
}

fn redis_url(
    written: &file::Secret,
    ca: Option<&PathBuf>,
    at: &Spot,
    context: &mut Context<'_>,
) -> Option<SecretRef> {
    let here = at.key("url");
    let secret = context.secret(written, &here)?;
    if let (SecretRef::Env(_) | SecretRef::File(_), Secrets::FormOnly) = (&secret, context.secrets)
    {
        return Some(secret);
    }
    // What cannot be read has been reported.
    let text = secret.resolve().ok()?;
    let url = match endpoint::redis(text.expose()) {
        Ok(url) => url,
        Err(wrong) => {
            context.report.wrong(&here, wrong, wrong.hint());
            return Some(secret);
        }
    };
    if url.scheme() == "redis" && ca.is_some() {
        context.report.wrong_key(
            &at.key("ca"),
            "is for TLS, and the URL is not",
            "write `rediss://` there",
        );
    }
    Some(secret)
}
