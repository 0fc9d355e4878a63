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
mod passage;
mod presets;
mod reference;
mod report;
mod rules;
pub mod secret_ref;
mod shape;
mod store;
mod units;
mod upstream;
mod vendors;

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use zeroize::Zeroizing;

use self::file::{Entries, File};
use self::reference::Context;
use self::report::{Place, Report, Spot};
pub(crate) use self::store::kept_from_others;
pub(crate) use self::upstream::is_link_local;
use crate::secret::Secret;
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
    pub presented: Vec<Presented>,
    /// What is accepted and deserves a word on stderr.
    pub warnings: Vec<Mistake>,
    /// Those of the warnings that `check` takes for mistakes: certificates that have expired. A
    /// process starts with them all the same; one vendor's certificate must not stop the others.
    pub expired: Vec<Mistake>,
}

/// A certificate that somebody is shown, and where proxy.yaml names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// Its place: `listeners[0].tls`, `vendors.acme.auth.vedauth.certificate`.
    pub place: String,
    /// Its files.
    pub files: CertFiles,
}

/// What of secrets, certificates and keys is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// They are read, and must be usable.
    Resolve,
    /// Only how the file refers to them.
    FormOnly,
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Every mistake of the file, in its order; the one there is when it cannot be read at all.
    pub fn load(path: &Path, secrets: Secrets) -> Result<Self, Vec<Mistake>> {
        let unreadable = |place: Option<Place>, message: String, hint: &str| {
            vec![Mistake {
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
    pub fn parse(text: &str, path: &Path, secrets: Secrets) -> Result<Self, Vec<Mistake>> {
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

/// One place callers connect to.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Address and port; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// The certificates of a TLS listener, chosen by SNI, the first when none fits; `None`:
    /// plaintext.
    pub tls: Option<Vec<CertFiles>>,
    /// Issuers of callers' certificates, which are then asked for.
    pub client_ca: Option<PathBuf>,
    /// Plaintext callers may speak HTTP/2 with prior knowledge (RFC 9113 §3.3).
    pub h2c: bool,
    /// Load balancers whose connections begin with a PROXY protocol header.
    pub proxied_by: Vec<ipnet::IpNet>,
    /// Connections at a time; `None`: as many as open files and memory leave room for.
    pub max_connections: Option<usize>,
}

/// A certificate chain and its private key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertFiles {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Address and port; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// When `/readyz` turns 200.
    pub ready_when: ReadyWhen,
    /// SHA-256 of the key that POSTs from elsewhere than loopback must show.
    pub key: Option<[u8; 32]>,
}

/// When a started proxy counts as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyWhen {
    /// Every vendor's first attempt has ended, one way or the other, or 30 s have passed.
    Settled,
    /// Every vendor has had a usable credential.
    All,
    /// One vendor has had a usable credential.
    Any,
}

/// The end of a process.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// How long new connections are still taken after SIGTERM.
    pub delay: Duration,
    /// How long requests in flight may take after that.
    pub timeout: Duration,
}

/// Who may call.
#[derive(Clone, Debug)]
pub enum Callers {
    /// No `callers:`. Loopback listeners only, and browsers' cross-site requests are refused.
    Loopback,
    /// `callers: anyone`.
    Anyone,
    /// These and nobody else.
    Known(Vec<Caller>),
}

/// One known caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its name in logs and metrics.
    pub name: String,
    /// A key it may show.
    pub api_key: Option<ApiKey>,
    /// A name in a certificate it may show.
    pub certificate: Option<San>,
    /// A token it may show.
    pub jwt: Option<Jwt>,
    /// What it may do; empty: nothing.
    pub allow: Vec<Grant>,
    /// How much it may do; `None`: no limit.
    pub rate: Option<Rate>,
}

/// A subject alternative name with its type (RFC 5280 §4.2.1.6). Names of different types are never
/// the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum San {
    /// `uniformResourceIdentifier`, byte for byte.
    Uri(String),
    /// `dNSName`, lower-case.
    Dns(String),
    /// `rfc822Name`, its host lower-case.
    Email(String),
}

impl San {
    /// A DNS name; case does not count (RFC 4343).
    #[must_use]
    pub fn dns(name: &str) -> Self {
        Self::Dns(name.to_ascii_lowercase())
    }

    /// An e-mail address; case counts only before the `@` (RFC 5280 §7.5).
    #[must_use]
    pub fn email(address: &str) -> Self {
        Self::Email(match address.rsplit_once('@') {
            Some((local, host)) => format!("{local}@{}", host.to_ascii_lowercase()),
            None => address.to_owned(),
        })
    }
}

/// Which tokens prove a caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Jwt {
    /// `iss`, exactly.
    pub issuer: String,
    /// `aud`, or one of several.
    pub audience: String,
    /// `sub`, `*` standing for any characters; `None`: any.
    pub subject: Option<String>,
    /// The issuer's public keys.
    pub keys: KeySource,
}

/// Where an issuer's public keys come from.
#[derive(Clone, Debug, PartialEq)]
pub enum KeySource {
    /// A JWK set in a file.
    File(PathBuf),
    /// A JWK set behind a URL.
    Url {
        /// https, or http on loopback.
        url: url::Url,
        /// Trusted instead of the system's roots.
        ca: Option<PathBuf>,
        /// Sent as a bearer token.
        token: Option<SecretRef>,
    },
}

/// Requests over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The time in which one more is let through.
    pub every: Duration,
    /// How many may come at once.
    pub burst: NonZeroU32,
}

/// Where a caller's key, or the key's digest, comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum ApiKey {
    /// The key's SHA-256.
    Sha256([u8; 32]),
    /// The key itself.
    Key(SecretRef),
}

/// One entry of a caller's `allow:`.
#[derive(Clone, Debug)]
pub struct Grant {
    /// A vendor's name; `None` is `*`: every vendor.
    pub vendor: Option<String>,
    /// Upper-case methods; empty: every method.
    pub methods: Vec<String>,
    /// Glob over the path after the prefix, case-sensitive; `None`: every path.
    pub path: Option<String>,
}

/// In one line: `certn GET,HEAD /api/**`; `*` for every vendor.
impl std::fmt::Display for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.vendor.as_deref().unwrap_or("*"))?;
        if !self.methods.is_empty() {
            write!(f, " {}", self.methods.join(","))?;
        }
        self.path
            .as_ref()
            .map_or(Ok(()), |path| write!(f, " {path}"))
    }
}

/// Where rotating refresh tokens live. An encryption key is 32 bytes as base64, hex or raw.
#[derive(Clone, Debug, PartialEq)]
pub enum Store {
    /// A directory, for the processes of one host.
    File {
        /// The directory.
        dir: PathBuf,
        /// `None`: a key is made inside `dir`.
        encryption_key: Option<SecretRef>,
    },
    /// A Redis server, shared by replicas.
    Redis {
        /// `redis:` or `rediss:`, user and password included.
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

/// Where a secret comes from; resolved anew for every use, so that rotation is noticed.
#[derive(Clone, Debug)]
pub enum SecretRef {
    /// An environment variable.
    Env(String),
    /// A file, absolute or already joined to the configuration's directory.
    File(PathBuf),
    /// Written into the configuration itself.
    Value(Secret),
    /// No secret, and written where a secret may stand.
    Plain(String),
}

/// One vendor: a way in, an upstream, what may pass, one credential.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own in proxy.yaml"
)]
pub struct Vendor {
    /// Its key under `vendors:`.
    pub name: String,
    /// The preset it started from.
    pub preset: Option<String>,
    /// Whole segments, starting with `/`, without a trailing `/` unless it is `/` alone.
    pub prefix: String,
    /// Lower-case host names (no port) that lead here with their full path.
    pub hosts: Vec<String>,
    /// Where requests go.
    pub upstream: Upstream,
    /// What is shown to the vendor; `None`: nothing is injected.
    pub auth: Option<Auth>,
    /// Presented to the upstream in the TLS handshake.
    pub client_cert: Option<CertFiles>,
    /// Trusted instead of the system's roots, for the upstream and for token URLs.
    pub ca: Option<PathBuf>,
    /// The server asks for the certificate after reading the path; `https://` only.
    pub late_client_auth: bool,
    /// `http://` is accepted for upstream and token URLs.
    pub allow_plaintext: bool,
    /// Outbound CONNECT proxy for the upstream and for token URLs; `None`: as the environment says.
    pub proxy: Option<url::Url>,
    /// Link-local addresses (169.254.0.0/16, `fe80::/10`) are accepted as upstream.
    pub allow_link_local: bool,
    /// How long anything may take.
    pub timeouts: Timeouts,
    /// How much anything may take.
    pub limits: Limits,
    /// When a failing vendor is given a rest.
    pub breaker: Breaker,
    /// `true`: Cookie and Set-Cookie pass.
    pub cookies_pass: bool,
    /// A vendor's 401 renews the credential and replays the request once.
    pub retry_on_401: bool,
    /// Paths (as sent upstream) that never pass; the preset's, then the file's.
    pub refuse: Vec<PathRule>,
    /// When not empty, nothing else passes.
    pub allow: Vec<PathRule>,
    /// `%2F` and `%5C` may occur in a path.
    pub encoded_slash_pass: bool,
    /// Names of fields with more than letters, digits and `-` that callers may send.
    pub header_names: Vec<http::HeaderName>,
    /// Calls that are answered here instead of refused; empty for `login: refuse`.
    pub logins: Vec<LoginPath>,
    /// Our own credential is masked where an answer repeats it.
    pub redact_echo: bool,
    /// Trailing dots and blanks of a segment are ignored when rules are compared, as the vendor's
    /// server ignores them (Windows).
    pub trailing_dots_ignored: bool,
}

/// A login call of a vendor's own clients that we answer ourselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginPath {
    /// Which calls, by the path as it would be sent upstream.
    pub rule: PathRule,
    /// What the answer looks like.
    pub shape: LoginShape,
}

/// What the answer to a login call looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginShape {
    /// RFC 6749 §5.1.
    Oauth,
    /// The same with absolute times and a refresh token.
    Vedauth,
    /// `user_id` and `token`.
    UserToken,
    /// `APIKey` and `ValidUntil`.
    ApiKey,
    /// The token ends; 204.
    Logout,
    /// The token ends; 200.
    Revoke,
}

/// The origin and base path requests are sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// TLS, or plaintext where `allow_plaintext` permits it.
    pub tls: bool,
    /// Host name or IP literal (IPv6 without brackets), lower-case.
    pub host: String,
    /// Port, the scheme's default when not written.
    pub port: u16,
    /// What replaces the prefix: empty, or `/…` without a trailing slash.
    pub base: String,
}

impl Upstream {
    /// The Host field and `:authority`: IPv6 in brackets, the scheme's default port left out.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == if self.tls { 443 } else { 80 } {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }

    /// Host and port, the port always written: what a CONNECT asks for.
    #[must_use]
    pub fn host_and_port(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// `https://host[:port]`, without the base path.
    #[must_use]
    pub fn origin(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }
}

/// One pattern of `refuse:` or `allow:`, compared case-insensitively: `*` within a segment, `**`
/// across segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRule {
    /// `!`: an exception to the rules of the same list.
    pub exception: bool,
    /// Upper-case method; `None`: every method.
    pub method: Option<String>,
    /// The pattern, starting with `/`.
    pub pattern: String,
}

/// How long anything may take; zero: no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timeouts {
    /// TCP connect, and again the TLS handshake.
    pub connect: Duration,
    /// From the request's end to the answer's first byte.
    pub first_byte: Duration,
    /// No byte either way.
    pub idle: Duration,
    /// The same on connections that are made to be silent: WebSocket and gRPC.
    pub idle_stream: Duration,
    /// The whole exchange.
    pub total: Duration,
    /// An unused pooled connection.
    pub keepalive: Duration,
    /// How long a request waits for a credential.
    pub token_wait: Duration,
}

/// How much anything may take; zero: no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Requests of one vendor at a time.
    pub in_flight: usize,
    /// Request body, bytes.
    pub body: u64,
    /// Requests over time.
    pub rate: Option<Rate>,
    /// A vendor's Retry-After holds back further requests.
    pub honour_retry_after: bool,
}

/// When a failing vendor is given a rest, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Failures in a row; 0: never.
    pub failures: u32,
    /// The first rest; each further one is twice as long.
    pub open_for: Duration,
}

/// One credential, by kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Auth {
    /// A fixed bearer token (RFC 6750 §2.1).
    Bearer {
        /// The token.
        token: SecretRef,
    },
    /// HTTP Basic (RFC 7617).
    Basic {
        /// User name.
        username: SecretRef,
        /// Password.
        password: SecretRef,
    },
    /// Header fields by exact name.
    Headers(Vec<(String, SecretRef)>),
    /// Query parameters by name.
    Query(Vec<(String, SecretRef)>),
    /// RFC 6749 §4.4.
    ClientCredentials(ClientCredentials),
    /// RFC 6749 §4.1, then §6.
    AuthorizationCode(AuthorizationCode),
    /// A vedauth token server.
    Vedauth(Vedauth),
}

impl Auth {
    /// The kind's name in proxy.yaml, `/status` and `explain`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bearer { .. } => "bearer",
            Self::Basic { .. } => "basic",
            Self::Headers(_) => "headers",
            Self::Query(_) => "query",
            Self::ClientCredentials(_) => "client_credentials",
            Self::AuthorizationCode(_) => "authorization_code",
            Self::Vedauth(_) => "vedauth",
        }
    }

    /// Whether all replicas have one token by `share: true`, rather than by its refresh token.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        match self {
            Self::ClientCredentials(client) => client.share,
            Self::Vedauth(server) => server.share && !server.refresh,
            Self::AuthorizationCode(_)
            | Self::Bearer { .. }
            | Self::Basic { .. }
            | Self::Headers(_)
            | Self::Query(_) => false,
        }
    }

    /// Whether what replicas hold comes from the store, be it by `share: true` or with a refresh
    /// token.
    #[must_use]
    pub fn is_in_store(&self) -> bool {
        match self {
            Self::AuthorizationCode(_) => true,
            Self::Vedauth(server) => server.refresh || server.share,
            Self::ClientCredentials(client) => client.share,
            Self::Bearer { .. } | Self::Basic { .. } | Self::Headers(_) | Self::Query(_) => false,
        }
    }

    /// The server that this kind asks for tokens.
    #[must_use]
    pub fn token_url(&self) -> Option<&url::Url> {
        match self {
            Self::Bearer { .. } | Self::Basic { .. } | Self::Headers(_) | Self::Query(_) => None,
            Self::ClientCredentials(client) => Some(&client.token_url),
            Self::AuthorizationCode(client) => Some(&client.token_url),
            Self::Vedauth(server) => Some(&server.url),
        }
    }
}

/// How long token requests may take and what an answer without a lifetime means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenTimes {
    /// Assumed when the answer names no lifetime or an unreadable one.
    pub default_lifetime: Duration,
    /// Total, body included.
    pub request_timeout: Duration,
}

/// How a client shows its secret at the token endpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientAuth {
    /// HTTP Basic, both halves form-encoded (RFC 6749 §2.3.1).
    Basic(SecretRef),
    /// `client_id` and `client_secret` in the form body (RFC 6749 §2.3.1).
    Post(SecretRef),
    /// The whole request as one JSON object.
    Json(SecretRef),
    /// A signed assertion (RFC 7523 §2.2).
    PrivateKeyJwt {
        /// PEM: PKCS#8, PKCS#1 or SEC1.
        private_key: SecretRef,
        /// `kid` of the assertion's header.
        key_id: Option<String>,
        /// RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or `EdDSA`.
        algorithm: String,
        /// `aud`; `None`: the token URL.
        audience: Option<String>,
    },
    /// The TLS client certificate alone (RFC 8705 §2).
    Tls(CertFiles),
}

/// `client_credentials`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientCredentials {
    /// Absolute https URL, or http where `allow_plaintext` permits it.
    pub token_url: url::Url,
    /// RFC 6749 §2.2.
    pub client_id: SecretRef,
    /// How the client proves itself.
    pub client_auth: ClientAuth,
    /// Shown at an https token endpoint that asks for a certificate, however the client proves
    /// itself.
    pub client_cert: Option<CertFiles>,
    /// Sent when present.
    pub scope: Option<String>,
    /// Sent when present.
    pub audience: Option<String>,
    /// RFC 8707, sent when present.
    pub resource: Option<String>,
    /// Further parameters, sent as they are.
    pub params: Vec<(String, String)>,
    /// Whether all replicas have one token, through the store.
    pub share: bool,
    /// Lifetimes and limits.
    pub times: TokenTimes,
}

/// `authorization_code`.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationCode {
    /// Where a person consents.
    pub authorize_url: url::Url,
    /// Where codes and refresh tokens are exchanged.
    pub token_url: url::Url,
    /// RFC 6749 §2.2.
    pub client_id: SecretRef,
    /// How the client proves itself; `None`: a public client, `client_id` in the body.
    pub client_auth: Option<ClientAuth>,
    /// Shown at an https token endpoint that asks for a certificate, however the client proves
    /// itself.
    pub client_cert: Option<CertFiles>,
    /// Asked for at the authorize URL.
    pub scope: Option<String>,
    /// Where the browser is sent back to.
    pub redirect_uri: RedirectUri,
    /// Whether the exchange repeats `redirect_uri` (RFC 6749 §4.1.3 wants it; some vendors do not).
    pub send_redirect_uri: bool,
    /// RFC 7636, method S256.
    pub pkce: bool,
    /// The server's issuer identifier (RFC 8414 §2), which a redirect must then name as `iss`
    /// (RFC 9207); `None`: a redirect that names one must name the origin of `authorize_url`.
    pub issuer: Option<String>,
    /// Lifetimes and limits.
    pub times: TokenTimes,
}

/// A redirect URI. Servers compare it with the registered one character by character (RFC 6749
/// §3.1.2.3), so it is sent exactly as it is written, whatever a URL parser would make of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectUri {
    text: String,
    url: url::Url,
}

impl RedirectUri {
    /// As it is written, and sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As a browser follows it.
    #[must_use]
    pub fn url(&self) -> &url::Url {
        &self.url
    }
}

/// An absolute URI; what else it must be is for the reader of the configuration to say.
impl std::str::FromStr for RedirectUri {
    type Err = url::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = url::Url::parse(text)?;
        let text = text.to_owned();
        Ok(Self { text, url })
    }
}

/// How a grant is first obtained from a vedauth server.
#[derive(Clone, Debug, PartialEq)]
pub enum VedauthGrant {
    /// `POST authorize/certificate` with this client certificate.
    Certificate(CertFiles),
    /// `POST authorize/oauth`.
    Password {
        /// User name.
        username: SecretRef,
        /// Password.
        password: SecretRef,
    },
    /// `POST authorize/jwt`.
    Jwt(SecretRef),
}

/// `vedauth`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vedauth {
    /// Ends in `/vedauth`.
    pub url: url::Url,
    /// Case-sensitive.
    pub client_id: SecretRef,
    /// Sent as it is.
    pub scope: Option<String>,
    /// How the grant is obtained.
    pub grant: VedauthGrant,
    /// Whether refresh tokens are used.
    pub refresh: bool,
    /// Whether all replicas have one token, through the store, even without refresh tokens.
    pub share: bool,
    /// Whether a clean stop ends the grant.
    pub revoke_on_exit: bool,
    /// Lifetimes and limits.
    pub times: TokenTimes,
}

/// One thing wrong with a file, as `file:line:column: message; hint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
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

impl fmt::Display for Mistake {
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
