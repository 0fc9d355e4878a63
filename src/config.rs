//! proxy.yaml → [`Config`]: parsed, merged with its presets, and valid by construction.
//!
//! Whoever holds a [`Config`] need not check anything again. [`Config::load`] reports every
//! mistake of a file at once, each with its position and a hint.
//!
//! ```text
//! text ──document──▶ values, and where they stand
//!      ──shape─────▶ only what the schema of `file` allows
//!      ──presets───▶ filled with what is known of the vendor
//!      ──listeners, callers, vendors, auth──▶ Config
//! ```
//!
//! Every step reports what is wrong and goes on with the rest.

mod auth;
mod callers;
mod document;
mod file;
mod listeners;
mod manual;
mod oddities;
mod path_rules;
mod presets;
mod reference;
mod report;
mod rules;
mod shape;
mod store;
mod units;
mod upstream;
mod vendors;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use zeroize::Zeroizing;

pub use self::auth::{
    Account, Auth, AuthorizationCode, Carrier, ClientAuth, ClientCredentials, Kind, LoginEndpoint,
    RedirectUri, Storage, TokenFacts, TokenTimes, Vedauth, VedauthGrant,
};
pub use self::callers::{ApiKey, Caller, Callers, Jwt, Rate};
use self::file::{Entries, File};
pub use self::listeners::{Admin, Listener, ReadyWhen};
pub use self::presets::LoginPath;
pub use self::presets::LoginShape;
use self::reference::Context;
pub use self::reference::{PresentedCertificate, Secrets};
pub use self::report::ConfigError;
use self::report::{Place, Report, Spot};
pub use self::rules::Permission;
pub use self::store::Store;
pub(crate) use self::store::kept_from_others;
pub use self::upstream::Upstream;
pub(crate) use self::upstream::is_link_local;
pub use self::vendors::{Breaker, Limits, Timeouts, Vendor};
use crate::tls;

/// One valid proxy.yaml.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from; relative paths in it are relative to this file's directory.
    pub path: PathBuf,
    /// SHA-256 of the file's bytes, lower-case hex.
    pub sha256: String,
    /// Where callers connect. Never empty.
    pub listeners: Vec<Listener>,
    /// Where operators, probes and scrapers connect.
    pub admin: Admin,
    /// Worker threads.
    pub threads: usize,
    /// One JSON line per request on stdout.
    pub access_log: bool,
    /// What happens between SIGTERM and the exit.
    pub drain: Drain,
    /// Who may call.
    pub callers: Callers,
    /// Where refresh tokens live.
    pub store: Store,
    /// The vendors, in the file's order.
    pub vendors: Vec<Vendor>,
    /// Every certificate that is presented to a vendor or served to callers.
    pub presented: Vec<PresentedCertificate>,
    /// What is accepted and deserves a word on stderr.
    pub warnings: Vec<ConfigError>,
    /// Those of the warnings that `check` takes for mistakes: certificates that have expired. A
    /// process starts with them all the same; one vendor's certificate must not stop the others.
    pub expired: Vec<ConfigError>,
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Every mistake of the file, in its order; the one there is when it cannot be read at all.
    pub fn load(path: &Path, secrets: Secrets) -> Result<Self, Vec<ConfigError>> {
        let unreadable = |place: Option<Place>, message: String, hint: &str| {
            vec![ConfigError {
                file: path.to_owned(),
                line: place.map_or(0, |place| place.line),
                column: place.map_or(0, |place| place.column),
                message,
                hint: (!hint.is_empty()).then(|| hint.to_owned()),
            }]
        };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) => {
                let hint = if error.kind() == std::io::ErrorKind::NotFound {
                    "name another file with `--config` or COUNTERSIGN_CONFIG"
                } else {
                    ""
                };
                return Err(unreadable(None, format!("cannot be read: {error}"), hint));
            }
        };
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse(text, path, secrets),
            Err(error) => {
                let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
                let line = before.rsplit('\n').next().unwrap_or_default();
                let place = Place {
                    line: before.matches('\n').count() + 1,
                    column: line.chars().count() + 1,
                };
                let message = "not UTF-8 text".to_owned();
                Err(unreadable(Some(place), message, "save the file as UTF-8"))
            }
        }
    }

    /// Reads `text` as if it stood in the file at `path`, which relative paths are relative to.
    ///
    /// # Errors
    /// Every mistake of the text, in its order.
    pub fn parse(text: &str, path: &Path, secrets: Secrets) -> Result<Self, Vec<ConfigError>> {
        let mut report = Report::new(path);
        let mut document = document::read(text, &mut report);
        if let Some(document) = &mut document {
            shape::check(document, &mut report);
            presets::apply(document, &mut report);
        }
        let file: Option<File> = document.and_then(|document| {
            // Cannot fail: what the schema forbids has been taken out. If the schema and the
            // types ever disagree, this is the message; serde's own may repeat values.
            serde_json::from_value(document)
                .map_err(|_| report.wrong(&Spot::default(), "is not a valid configuration", ""))
                .ok()
        });
        let Some(file) = file else {
            return Err(report.finish().err().unwrap_or_default());
        };

        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut context = Context {
            report,
            dir,
            secrets,
            presented: Vec::new(),
        };
        let no_vendors = Entries(Vec::new());
        let written = file.vendors.as_ref().unwrap_or(&no_vendors);
        let names: HashSet<String> = written.0.iter().map(|(name, _)| name.clone()).collect();
        let callers = callers::callers(file.callers.as_ref(), &names, &mut context);
        let listeners = listeners::listeners(file.listeners.as_ref(), &callers, &mut context);
        let admin = listeners::admin(file.admin.as_ref(), &listeners, &mut context);
        let vendors = vendors::vendors(written, &mut context);
        let store = store::store(file.store.as_ref(), &mut context);
        store::warn_of_shared_ends(&store, &vendors, &mut context);
        store::check_directory(&store, &vendors, &mut context);
        vendors::check_environment_proxies(&vendors, &callers, &mut context);
        let or = |span: Option<file::Span>, seconds| {
            span.map_or(Duration::from_secs(seconds), |span| span.0)
        };
        let drain = Drain {
            delay: or(file.drain.as_ref().and_then(|drain| drain.delay), 5),
            timeout: or(file.drain.as_ref().and_then(|drain| drain.timeout), 30),
        };
        let (warnings, expired) = context.report.finish()?;
        Ok(Self {
            path: path.to_owned(),
            sha256: hex::encode(tls::sha256(&[text.as_bytes()])),
            listeners,
            admin,
            threads: file.threads.unwrap_or_else(|| {
                std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
            }),
            access_log: file.access_log.unwrap_or(true),
            drain,
            callers,
            store,
            vendors,
            presented: context.presented,
            warnings,
            expired,
        })
    }
}

/// The header fields in which vendors' own clients send their secret, from the presets: a caller's
/// key is looked for there, too.
pub fn caller_key_headers() -> impl Iterator<Item = &'static str> {
    presets::caller_key_headers()
}

/// The header fields in which some vendor takes a login of its own making, from the presets.
pub fn login_headers() -> impl Iterator<Item = &'static str> {
    presets::login_headers()
}

/// YAML that is not ours, such as a KUBECONFIG; `None`: it is none.
pub(crate) fn yaml(text: &str) -> Option<Value> {
    serde_yaml::from_str(text).ok()
}

/// The JSON Schema of proxy.yaml: the one that [`Config::parse`] checks files against.
#[must_use]
pub fn schema() -> &'static Value {
    &file::SCHEMA
}

/// The configuration reference, Markdown, made from that schema.
#[must_use]
pub fn manual() -> String {
    manual::manual()
}

/// The end of a process.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// How long new connections are still taken after SIGTERM.
    pub delay: Duration,
    /// How long requests in flight may take after that.
    pub timeout: Duration,
}
