//! proxy.yaml → [`Config`]: parsed, merged with its presets, and valid by construction.
//!
//! A [`Config`] need not be checked again. [`Config::load`] reports every error of a file at once,
//! each with its position and a hint.
//!
//! ```text
//! text ──document──▶ values and their positions
//!      ──schema_check──▶ values that the schema of `file` permits
//!      ──presets──▶ filled with the vendor's preset
//!      ──listeners, callers, vendors, auth──▶ Config
//! ```
//!
//! Every step reports its errors and goes on with the rest.

mod auth;
mod callers;
mod document;
mod file;
mod listeners;
mod path_rules;
mod presets;
mod reader;
mod reference_doc;
mod report;
mod rules;
mod schema_check;
mod store;
mod suspicions;
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
use self::reader::Reader;
pub use self::reader::{PresentedCertificate, Secrets};
pub use self::report::ConfigError;
use self::report::{KeyPath, Position, Report};
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
    /// The file; relative paths in it are relative to its directory.
    pub path: PathBuf,
    /// SHA-256 of the file's bytes, lower-case hex.
    pub sha256: String,
    /// The listeners for callers. Never empty.
    pub listeners: Vec<Listener>,
    /// The listener for operators, probes and scrapers.
    pub admin: Admin,
    /// Number of worker threads.
    pub threads: usize,
    /// `true` if each request gets one JSON line on stdout.
    pub access_log: bool,
    /// The times between SIGTERM and the exit.
    pub drain: Drain,
    /// The permitted callers.
    pub callers: Callers,
    /// The store of refresh tokens.
    pub store: Store,
    /// The vendors, in the file's order.
    pub vendors: Vec<Vendor>,
    /// Every certificate that is presented to a vendor or served to callers.
    pub presented: Vec<PresentedCertificate>,
    /// Warnings for stderr about accepted values.
    pub warnings: Vec<ConfigError>,
    /// The warnings that `check` reports as errors: expired certificates. A process starts all the
    /// same; one vendor's certificate must not stop the others.
    pub expired: Vec<ConfigError>,
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Every error of the file, in its order; a single one when it cannot be read at all.
    pub fn load(path: &Path, secrets: Secrets) -> Result<Self, Vec<ConfigError>> {
        let unreadable = |position: Option<Position>, message: String, hint: &str| {
            vec![ConfigError {
                file: path.to_owned(),
                line: position.map_or(0, |position| position.line),
                column: position.map_or(0, |position| position.column),
                message,
                hint: (!hint.is_empty()).then(|| hint.to_owned()),
            }]
        };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) => {
                let hint = if error.kind() == std::io::ErrorKind::NotFound {
                    "specify another file with `--config` or COUNTERSIGN_CONFIG"
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
                let position = Position {
                    line: before.matches('\n').count() + 1,
                    column: line.chars().count() + 1,
                };
                let message = "not UTF-8 text".to_owned();
                Err(unreadable(
                    Some(position),
                    message,
                    "save the file as UTF-8",
                ))
            }
        }
    }

    /// Reads `text` as the content of the file at `path`, which relative paths are relative to.
    ///
    /// # Errors
    /// Every error of the text, in its order.
    pub fn parse(text: &str, path: &Path, secrets: Secrets) -> Result<Self, Vec<ConfigError>> {
        let mut report = Report::new(path);
        let mut document = document::read(text, &mut report);
        if let Some(document) = &mut document {
            schema_check::check(document, &mut report);
            presets::apply(document, &mut report);
        }
        let file: Option<File> = document.and_then(|document| {
            // Cannot fail: what the schema forbids has been removed. If the schema and the types
            // ever disagree, this is the message; serde's own may repeat values.
            serde_json::from_value(document)
                .map_err(|_| report.error(&KeyPath::default(), "is not a valid configuration", ""))
                .ok()
        });
        let Some(file) = file else {
            return Err(report.finish().err().unwrap_or_default());
        };

        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut reader = Reader {
            report,
            dir,
            secrets,
            presented: Vec::new(),
        };
        let no_vendors = Entries(Vec::new());
        let written = file.vendors.as_ref().unwrap_or(&no_vendors);
        let names: HashSet<String> = written.0.iter().map(|(name, _)| name.clone()).collect();
        let callers = callers::callers(file.callers.as_ref(), &names, &mut reader);
        let listeners = listeners::listeners(file.listeners.as_ref(), &callers, &mut reader);
        let admin = listeners::admin(file.admin.as_ref(), &listeners, &mut reader);
        let vendors = vendors::vendors(written, &mut reader);
        let store = store::store(file.store.as_ref(), &mut reader);
        store::warn_of_shared_ends(&store, &vendors, &mut reader);
        store::check_directory(&store, &vendors, &mut reader);
        vendors::check_environment_proxies(&vendors, &callers, &mut reader);
        let or = |span: Option<file::Span>, seconds| {
            span.map_or(Duration::from_secs(seconds), |span| span.0)
        };
        let drain = Drain {
            delay: or(file.drain.as_ref().and_then(|drain| drain.delay), 5),
            timeout: or(file.drain.as_ref().and_then(|drain| drain.timeout), 30),
        };
        let (warnings, expired) = reader.report.finish()?;
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
            presented: reader.presented,
            warnings,
            expired,
        })
    }
}

/// Returns the headers in which vendors' own clients send their secret, from the presets. A
/// caller's key may be in them.
pub fn caller_key_headers() -> impl Iterator<Item = &'static str> {
    presets::caller_key_headers()
}

/// Returns the headers in which some vendor takes a login of its own making, from the presets.
pub fn login_headers() -> impl Iterator<Item = &'static str> {
    presets::login_headers()
}

/// Parses YAML of other programs, such as a KUBECONFIG; `None`: invalid.
pub(crate) fn yaml(text: &str) -> Option<Value> {
    serde_yaml::from_str(text).ok()
}

/// Returns the JSON Schema of proxy.yaml, against which [`Config::parse`] checks files.
#[must_use]
pub fn schema() -> &'static Value {
    &file::SCHEMA
}

/// Returns the configuration reference, Markdown, made from that schema.
#[must_use]
pub fn reference_doc() -> String {
    reference_doc::reference_doc()
}

/// The times of a stop.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// Time after SIGTERM during which new connections are accepted.
    pub delay: Duration,
    /// Time that requests in flight may take after that.
    pub timeout: Duration,
}
