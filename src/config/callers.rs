//! Who may call: `callers:`.

use std::collections::{HashMap, HashSet};

use super::file;
use super::reference::Context;
use super::report::{Spot, suggest};
use super::rules;
use crate::config::{ApiKey, Caller, Callers, Grant, SecretRef, Secrets};
use crate::tls;

/// Reads `callers:`. `vendors` are the names a grant may have.
pub(super) fn callers(
    written: Option<&file::Callers>,
    vendors: &HashSet<String>,
    context: &mut Context<'_>,
) -> Callers {
    let at = Spot::default().key("callers");
    let entries = match written {
        None => return Callers::Loopback,
        Some(file::Callers::Anyone(file::Anyone::Anyone)) => return Callers::Anyone,
        Some(file::Callers::Known(file::Entries(entries))) => entries,
    };
    if entries.is_empty() {
        context.report.warn(
            &at,
            "nobody is listed, so nobody may call",
            "`countersign caller new NAME` makes a key",
        );
    }
    let mut known = Vec::with_capacity(entries.len());
    // A key that two callers share proves neither.
    let mut seen: HashMap<Identity, &str> = HashMap::new();
    for (name, entry) in entries {
        let at = at.key(name);
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            let message = "a caller's name must be readable text";
            context.report.wrong_key(&at, message, "");
        }
        let Some(entry) = entry else { continue };
        let api_key = entry
            .api_key
            .as_ref()
            .and_then(|key| self::api_key(key, &at.key("api_key"), context));
        if let Some(key) = &api_key
            && let Some(identity) = identity(key, context.secrets)
            && let Some(other) = seen.insert(identity, name)
        {
            let message = format!("is also the key of `{}`", other.escape_debug());
            context.report.wrong(
                &at.key("api_key"),
                message,
                "every caller needs a key of its own",
            );
        }
        // A way that is not built yet has been reported, and is a way.
        let other_way = ["certificate", "jwt"]
            .iter()
            .any(|way| context.report.places.keys.contains_key(&at.key(way)));
        if entry.api_key.is_none() && !other_way {
            let hint = "a caller proves who it is by one: `countersign caller new NAME` makes it";
            context.report.missing(&at.key("api_key"), hint);
        }
        let allow = grants(
            entry.allow.as_deref().unwrap_or_default(),
            vendors,
            &at,
            context,
        );
        if let Some(api_key) = api_key {
            known.push(Caller {
                name: name.clone(),
                api_key,
                allow,
            });
        }
    }
    Callers::Known(known)
}

/// What makes two callers' keys the same one.
#[derive(PartialEq, Eq, Hash)]
enum Identity {
    Digest([u8; 32]),
    Variable(String),
    File(std::path::PathBuf),
}

fn identity(key: &ApiKey, secrets: Secrets) -> Option<Identity> {
    match key {
        ApiKey::Sha256(digest) => Some(Identity::Digest(*digest)),
        ApiKey::Key(SecretRef::Env(name)) if secrets == Secrets::FormOnly => {
            Some(Identity::Variable(name.clone()))
        }
        ApiKey::Key(SecretRef::File(path)) if secrets == Secrets::FormOnly => {
            Some(Identity::File(path.clone()))
        }
        ApiKey::Key(secret) => {
            let key = secret.resolve().ok()?;
            Some(Identity::Digest(tls::sha256(&[key.expose().as_bytes()])))
        }
    }
}

fn api_key(written: &file::ApiKey, at: &Spot, context: &mut Context<'_>) -> Option<ApiKey> {
    if let Some(digits) = &written.sha256 {
        return context
            .digest(digits, &at.key("sha256"))
            .map(ApiKey::Sha256);
    }
    let secret = file::Secret {
        env: written.env.clone(),
        file: written.file.clone(),
        value: written.value.clone(),
    };
    context.secret(&secret, at).map(ApiKey::Key)
}

fn grants(
    written: &[Option<String>],
    vendors: &HashSet<String>,
    at: &Spot,
    context: &mut Context<'_>,
) -> Vec<Grant> {
    let mut grants = Vec::with_capacity(written.len());
    for (nth, text) in written.iter().enumerate() {
        let Some(text) = text else { continue };
        let at = at.key("allow").index(nth);
        match rules::grant(text) {
            Ok(grant) => {
                if let Some(name) = &grant.vendor
                    && !vendors.contains(name)
                {
                    let mut known: Vec<&str> = vendors.iter().map(String::as_str).collect();
                    known.sort_unstable();
                    context
                        .report
                        .wrong(&at, "names no vendor of this file", suggest(name, known));
                }
                grants.push(grant);
            }
            Err((message, hint)) => context.report.wrong(&at, message, hint),
        }
    }
    grants
}
