//! proxy.yaml as it is written: the shape of the file, which is also its JSON Schema.
//!
//! The schema made from these types is the one that checks a file ([`super::schema_check`]) and the one
//! `countersign schema` prints, so the two cannot disagree. Every field may be absent here, because
//! a preset may fill it and because a wrong value is taken out once it has been reported; what
//! must be there is checked where it is used.
//!
//! Beyond JSON Schema, `x-hint` is what to tell whoever got it wrong, and `title` names the thing in
//! a sentence.

mod auth;
mod values;

use std::sync::LazyLock;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

pub(super) use self::auth::{
    Algorithm, Auth, AuthorizationCode, Basic, ClientAuth, ClientCredentials, Vedauth,
};
pub(super) use self::values::{Entries, Size, Span};

/// The JSON Schema of proxy.yaml.
pub(super) static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<File>()
        .to_value();
    forbid_null(&mut schema);
    schema
});

/// Every field is optional in Rust, which schemars takes for "may be null". A key without a value
/// is a mistake in proxy.yaml.
fn forbid_null(schema: &mut Value) {
    let null = json!({ "type": "null" });
    match schema {
        Value::Array(items) => items.iter_mut().for_each(forbid_null),
        Value::Object(fields) => {
            if let Some(Value::Array(types)) = fields.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    fields["type"] = only.clone();
                }
            }
            if let Some(Value::Array(choices)) = fields.get_mut("anyOf") {
                choices.retain(|choice| *choice != null);
                if let [Value::Object(only)] = choices.as_slice() {
                    let only = only.clone();
                    fields.remove("anyOf");
                    for (name, value) in only {
                        fields.entry(name).or_insert(value);
                    }
                }
            }
            fields.values_mut().for_each(forbid_null);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A list; an element that was wrong is `None`, so that the others keep their numbers.
pub(super) type List<T> = Vec<Option<T>>;

/// Configuration of Countersign, an authenticating reverse proxy. Relative paths are relative to
/// this file.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "proxy.yaml")]
pub(super) struct File {
    /// Where callers connect. Default: plain HTTP on 127.0.0.1:8080.
    #[schemars(length(min = 1))]
    pub(super) listeners: Option<List<Listener>>,
    /// Where operators, probes and scrapers connect.
    pub(super) admin: Option<Admin>,
    /// Worker threads. Default: the cores this process may use.
    #[schemars(range(min = 1, max = 1024))]
    pub(super) threads: Option<usize>,
    /// One JSON line per request on stdout.
    #[schemars(extend("default" = true))]
    pub(super) access_log: Option<bool>,
    /// What happens between SIGTERM and the exit.
    pub(super) drain: Option<Drain>,
    /// Who may call: `anyone`, or callers by name. Absent: only loopback listeners may start.
    pub(super) callers: Option<Callers>,
    /// Where rotating refresh tokens live.
    pub(super) store: Option<Store>,
    /// The vendors by name. Names are letters, digits, `.`, `_` and `-`.
    #[schemars(required, extend("minProperties" = 1))]
    pub(super) vendors: Option<Entries<Vendor>>,
}

/// One place callers connect to.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    /// IP address and port; port 0 lets the system choose.
    #[schemars(required, extend("format" = "socket-address"))]
    pub(super) bind: Option<String>,
    /// Makes it a TLS listener (HTTP/1.1 and HTTP/2 by ALPN). Absent: plain HTTP/1.1.
    pub(super) tls: Option<ListenerTls>,
    /// HTTP/2 with prior knowledge on a plain listener.
    #[schemars(extend("default" = false))]
    pub(super) h2c: Option<bool>,
    /// PROXY protocol, version 1 or 2, in front of connections from these load balancers.
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    /// Connections at a time; further ones wait in the system's queue. Default: all listeners
    /// together take what open files and the memory limit of the control group leave room for,
    /// 16384 at most.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_connections: Option<usize>,
}

/// Whose PROXY protocol headers are believed.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProxyProtocol {
    /// Networks of load balancers. Connections from elsewhere are taken as they are.
    pub(super) trusted: Option<List<String>>,
}

/// Certificates of a TLS listener: `cert` and `key`, or `certificates` for several names.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListenerTls {
    /// PEM file with the certificate chain, leaf first.
    pub(super) cert: Option<String>,
    /// PEM file with the private key.
    pub(super) key: Option<String>,
    /// Several certificates, chosen by SNI; the first when none fits.
    #[schemars(length(min = 1))]
    pub(super) certificates: Option<List<CertFiles>>,
    /// PEM bundle of issuers of callers' certificates: makes the listener ask for one, not demand
    /// it. Read again when it changes.
    pub(super) client_ca: Option<String>,
}

/// A certificate and its private key, two PEM files.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CertFiles {
    /// PEM file with the certificate chain, leaf first.
    #[schemars(required)]
    pub(super) cert: Option<String>,
    /// PEM file with the private key: PKCS#8, PKCS#1 or SEC1.
    #[schemars(required)]
    pub(super) key: Option<String>,
}

/// The admin listener: probes, metrics, status.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    /// IP address and port; port 0 lets the system choose.
    #[schemars(extend("format" = "socket-address", "default" = "127.0.0.1:9090"))]
    pub(super) bind: Option<String>,
    /// When `/readyz` first turns 200: every vendor's first attempt has ended (`settled`), every
    /// vendor has had a usable credential (`all`), or one has (`any`).
    #[schemars(extend("default" = "settled"))]
    pub(super) ready_when: Option<ReadyWhen>,
    /// The key that POSTs from elsewhere than loopback must show.
    pub(super) key: Option<AdminKey>,
}

/// When a started proxy counts as ready.
#[derive(Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ReadyWhen {
    Settled,
    All,
    Any,
}

/// The admin key, by its digest.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AdminKey {
    /// SHA-256 of the key, 64 hex digits.
    #[schemars(required, extend("format" = "sha256"))]
    pub(super) sha256: Option<String>,
}

/// The end of a process.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    /// How long new connections are still taken after SIGTERM.
    #[schemars(extend("default" = "5s"))]
    pub(super) delay: Option<Span>,
    /// How long requests in flight may take after that.
    #[schemars(extend("default" = "30s"))]
    pub(super) timeout: Option<Span>,
}

/// `anyone`, or callers by name.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(extend("x-hint" = "write `anyone`, or `NAME: { api_key: …, allow: [ … ] }`"))]
pub(super) enum Callers {
    Anyone(Anyone),
    Known(Entries<Caller>),
}

/// No caller needs to prove anything.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(title = "`anyone`")]
pub(super) enum Anyone {
    Anyone,
}

/// One known caller.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Caller {
    /// The caller's key, or the digest of it.
    pub(super) api_key: Option<ApiKey>,
    /// A client certificate under a listener's `client_ca`.
    pub(super) certificate: Option<Certificate>,
    /// A token signed by an issuer, sent as `Authorization: Bearer …`.
    pub(super) jwt: Option<Jwt>,
    /// What it may do: `VENDOR`, `VENDOR METHOD[,METHOD] /path/glob` (the path after the prefix;
    /// case counts; `/v1/**` also matches `/v1`), or `*` for every vendor. Default: nothing.
    pub(super) allow: Option<List<String>>,
    /// How much it may do.
    pub(super) rate: Option<Rate>,
}

/// A caller's certificate.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Certificate {
    /// One of its subject alternative names, exactly: `uri:…`, `dns:…` or `email:…`; without such a
    /// prefix `://` means a URI, `@` an e-mail address, anything else a DNS name.
    #[schemars(required)]
    pub(super) san: Option<String>,
}

/// A token and who signed it (RFC 7519): RS, PS and ES 256 and 384, RS and PS 512, `EdDSA`. `exp` is
/// required.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Jwt {
    /// `iss`, exactly.
    #[schemars(required)]
    pub(super) issuer: Option<String>,
    /// `aud`, or one of several.
    #[schemars(required)]
    pub(super) audience: Option<String>,
    /// `sub`; `*` stands for any characters. Absent: any.
    pub(super) subject: Option<String>,
    /// Where the issuer publishes its keys (RFC 7517 §5).
    pub(super) jwks_url: Option<String>,
    /// The same as a file, read again when it changes.
    pub(super) jwks_file: Option<String>,
    /// PEM bundle that is trusted instead of the system's roots, for `jwks_url`.
    pub(super) ca: Option<String>,
    /// Bearer token for `jwks_url`.
    pub(super) jwks_token: Option<Secret>,
}

/// A caller's key. `countersign caller new NAME` makes one.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    title = "a key reference",
    extend(
        "minProperties" = 1,
        "maxProperties" = 1,
        "x-secret" = true,
        "x-hint" = "write `{ sha256: … }`, or `{ env: NAME }` or `{ file: PATH }` that hold the key itself"
    )
)]
pub(super) struct ApiKey {
    /// SHA-256 of the key, 64 hex digits.
    #[schemars(extend("format" = "sha256"))]
    pub(super) sha256: Option<String>,
    /// Name of the environment variable that holds the key.
    #[schemars(extend("format" = "environment-variable"))]
    pub(super) env: Option<String>,
    /// File that holds the key; surrounding white space is trimmed.
    pub(super) file: Option<String>,
    /// The key itself; accepted with a warning.
    pub(super) value: Option<String>,
}

/// Where rotating refresh tokens live: `file`, `redis` or `kubernetes`. Default: `file`.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Store {
    /// A directory, for the processes of this host.
    pub(super) file: Option<FileStore>,
    /// A Redis server, shared by replicas.
    pub(super) redis: Option<RedisStore>,
    /// A Kubernetes Secret, shared by replicas.
    pub(super) kubernetes: Option<KubernetesStore>,
    /// 32 bytes as base64, hex or raw. Required for `redis` and `kubernetes`; absent, `file` makes
    /// a key inside its directory.
    pub(super) encryption_key: Option<Secret>,
}

/// The file store.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FileStore {
    /// The directory; made when absent.
    #[schemars(extend("default" = "./state"))]
    pub(super) dir: Option<String>,
}

/// The Redis store.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RedisStore {
    /// `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, or `rediss://…` for TLS. User and password are
    /// percent-encoded: `@` is `%40`, `/` is `%2F`.
    #[schemars(required)]
    pub(super) url: Option<Secret>,
    /// PEM bundle to trust instead of the system roots, for `rediss://`.
    pub(super) ca: Option<String>,
}

/// The Kubernetes store. Inside a cluster its service account is used, elsewhere `KUBECONFIG`.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KubernetesStore {
    /// Name of the Secret; made when absent. Beside it, each vendor has a Lease.
    #[schemars(required, extend("format" = "object-name"))]
    pub(super) secret: Option<String>,
    /// Its namespace. Default: the service account's, or the context's.
    #[schemars(extend("format" = "namespace"))]
    pub(super) namespace: Option<String>,
}

/// A secret, never bare text: where it is to be found.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    title = "a secret reference",
    extend(
        "minProperties" = 1,
        "maxProperties" = 1,
        "x-secret" = true,
        "x-hint" = "write `{ env: NAME }` or `{ file: PATH }`"
    )
)]
pub(super) struct Secret {
    /// Name of the environment variable that holds it; taken as it is, with a warning of white space
    /// around it.
    #[schemars(extend("format" = "environment-variable"))]
    pub(super) env: Option<String>,
    /// File that holds it, read again when it changes; surrounding white space is trimmed.
    pub(super) file: Option<String>,
    /// The secret itself; accepted with a warning.
    pub(super) value: Option<String>,
}

/// Text, or a reference to where it is found.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum PlainOrSecret {
    Plain(String),
    Secret(Secret),
}

/// One vendor: a way in, an upstream, what may pass, one credential.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Vendor {
    /// Fills whatever is not given here.
    pub(super) preset: Option<String>,
    /// Path prefix that leads here; the longest whole-segment match wins. Default: `/` and the
    /// vendor's name.
    pub(super) prefix: Option<String>,
    /// Host names (without port) that lead here with their full path; a host match wins.
    pub(super) hosts: Option<List<String>>,
    /// `https://host[:port][/base]`; the prefix is replaced by the base.
    pub(super) upstream: Option<String>,
    /// Accepts `http://` for the upstream and for token URLs, with a warning.
    #[schemars(extend("default" = false))]
    pub(super) allow_plaintext: Option<bool>,
    /// What is shown to the vendor. Absent, and no preset: nothing.
    pub(super) auth: Option<Auth>,
    /// Presented to the upstream in the TLS handshake; reloaded when the files change.
    pub(super) client_cert: Option<CertFiles>,
    /// PEM bundle that is trusted instead of the system's roots, for the upstream and for token
    /// URLs: issuers, or the vendor's own certificate. A self-signed one with `CA:TRUE` is accepted
    /// when the vendor shows exactly it, over HTTP/1.1.
    pub(super) ca: Option<String>,
    /// How TLS to the upstream is spoken.
    pub(super) tls: Option<VendorTls>,
    /// How long anything may take; `0s`: no limit.
    pub(super) timeouts: Option<Timeouts>,
    /// How much anything may take; 0: no limit.
    pub(super) limits: Option<Limits>,
    /// `http://host:port` of an outbound CONNECT proxy, for the upstream and for token URLs.
    /// Default: `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` of the environment, in either case, as curl
    /// reads them.
    pub(super) proxy: Option<String>,
    /// Accepts link-local addresses (169.254.0.0/16 and the like), and others where clouds keep their
    /// metadata services, as upstream and in token URLs.
    #[schemars(extend("default" = false))]
    pub(super) allow_link_local: Option<bool>,
    /// Whether Cookie and Set-Cookie pass; the vendor's session would be the caller's.
    #[schemars(extend("default" = "strip"))]
    pub(super) cookies: Option<Cookies>,
    /// When a failing vendor is given a rest.
    pub(super) breaker: Option<Breaker>,
    /// A vendor's 401 renews the credential and replays the request once.
    #[schemars(extend("default" = true))]
    pub(super) retry_on_401: Option<bool>,
    /// Paths that never pass, added to the preset's: `[!][METHOD[,METHOD]] /pattern`. The path as
    /// sent upstream (base included), case-insensitive; `*` within a segment, `**` across; `!` an
    /// exception.
    pub(super) refuse: Option<List<String>>,
    /// When given, nothing else passes; same form. May only narrow a preset's.
    #[schemars(length(min = 1))]
    pub(super) allow: Option<List<String>>,
    /// What a caller's own login call gets: refused, or answered here with a token of the proxy's
    /// own when it shows a caller's key.
    #[schemars(extend("default" = "refuse"))]
    pub(super) login: Option<Login>,
    /// Whether %2F and %5C may occur in a path.
    #[schemars(extend("default" = "refuse"))]
    pub(super) encoded_slash: Option<EncodedSlash>,
    /// Names of header fields that callers may send though they hold more than letters, digits and
    /// `-`, for example `X_Account`. Any other such name is refused: servers take `_` and the like
    /// for `-`. Whatever a credential could be taken for is removed still.
    pub(super) header_names: Option<List<String>>,
    /// Masks our own credential where the vendor's answer repeats it: raw, base64, URL-encoded,
    /// JSON-escaped or escaped for HTML or XML, at the same length. A compressed answer is broken off
    /// instead, and so is one that decompresses to too much to be searched.
    #[schemars(extend("default" = true))]
    pub(super) redact_echo: Option<bool>,
}

/// How TLS to the upstream is spoken.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VendorTls {
    /// For servers that ask for the client certificate only after reading the path, by TLS 1.2
    /// renegotiation or TLS 1.3 post-handshake authentication: IIS, per-location rules of Apache.
    /// OpenSSL speaks TLS 1.2 or 1.3 to the upstream and the token URLs then, trusting and showing
    /// what is configured here as ever, over HTTP/1.1. Such a server holds back a request's body
    /// while it asks, and answers 413 when it is longer than its buffer (Apache
    /// `SSLRenegBufferSize`, 128 KiB; IIS `uploadReadAheadSize`, 48 KiB).
    #[schemars(extend("default" = false))]
    pub(super) late_client_auth: Option<bool>,
}

/// How long anything may take; `0s`: no limit.
#[derive(serde::Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    /// TCP connect, and again the TLS handshake.
    #[schemars(extend("default" = "5s"))]
    pub(super) connect: Option<Span>,
    /// From the request's end to the answer's first byte.
    #[schemars(extend("default" = "60s"))]
    pub(super) first_byte: Option<Span>,
    /// No byte either way. WebSocket and gRPC have 5m unless it is given.
    #[schemars(extend("default" = "60s"))]
    pub(super) idle: Option<Span>,
    /// The whole exchange.
    #[schemars(extend("default" = "0s"))]
    pub(super) total: Option<Span>,
    /// An unused pooled connection.
    #[schemars(extend("default" = "30s"))]
    pub(super) keepalive: Option<Span>,
    /// How long a request waits for a credential.
    #[schemars(extend("default" = "5s"))]
    pub(super) token_wait: Option<Span>,
}

/// How much anything may take; 0: no limit.
#[derive(serde::Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Requests of this vendor at a time.
    #[schemars(extend("default" = 1024))]
    pub(super) in_flight: Option<usize>,
    /// Request body.
    #[schemars(extend("default" = "100MiB"))]
    pub(super) body: Option<Size>,
    /// Requests over time.
    pub(super) rate: Option<Rate>,
    /// Whether a 429 or 503 of the vendor with Retry-After holds back further requests: until
    /// then, and for at most 10 minutes, they are answered here with the same status.
    #[schemars(extend("default" = false))]
    pub(super) honour_retry_after: Option<bool>,
}

/// When a failing vendor is given a rest: requests are answered here with 503, then one at a time
/// is let through until the vendor gives it an answer.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Breaker {
    /// Requests in a row that end in 502, 503 or 504, by the vendor's answer or for want of one
    /// (no connection, a timeout); 0: never.
    #[schemars(extend("default" = 10))]
    pub(super) failures: Option<u32>,
    /// The first rest. Each further one is twice as long, up to 5 minutes.
    #[schemars(extend("default" = "10s"))]
    pub(super) open_for: Option<Span>,
}

/// Requests over time.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rate {
    /// Requests per second, fractions included: `0.2` is one in five seconds. 0: no limit.
    #[schemars(extend("default" = 0, "format" = "rate", "minimum" = 0))]
    pub(super) per_second: Option<f64>,
    /// How many may come at once. Default: as many as in a second, and at least 1.
    #[schemars(range(min = 1))]
    pub(super) burst: Option<u32>,
}

#[derive(Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cookies {
    Strip,
    Pass,
}

#[derive(Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum EncodedSlash {
    Refuse,
    Pass,
}

#[derive(Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Login {
    Refuse,
    Stub,
}
