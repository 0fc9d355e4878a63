//! proxy.yaml as it is written: the shape of the file, which is also its JSON Schema.
//!
//! The schema made from these types is the one that checks a file ([`super::schema_check`]) and the
//! one `countersign schema` prints, so the two cannot disagree. Every field may be absent here,
//! because a preset may supply it and because a value with an error is removed once it has been
//! reported; required fields are checked where they are used.
//!
//! Beyond JSON Schema, `x-hint` is the advice after an error, and `title` names the value in a
//! sentence.

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

/// Removes null from the schema. Every field is optional in Rust, which schemars takes for "may be
/// null"; a key without a value is an error in proxy.yaml.
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

/// A list; an element with an error is `None`, so that the others keep their numbers.
pub(super) type List<T> = Vec<Option<T>>;

/// Configuration of Countersign, an authenticating reverse proxy. Relative paths are relative to
/// this file.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "proxy.yaml")]
pub(super) struct File {
    /// The listeners for callers. Default: plain HTTP on 127.0.0.1:8080.
    #[schemars(length(min = 1))]
    pub(super) listeners: Option<List<Listener>>,
    /// The listener for operators, probes and scrapers.
    pub(super) admin: Option<Admin>,
    /// Worker threads. Default: the cores this process may use.
    #[schemars(range(min = 1, max = 1024))]
    pub(super) threads: Option<usize>,
    /// Writes one JSON line per request to stdout.
    #[schemars(extend("default" = true))]
    pub(super) access_log: Option<bool>,
    /// The times between SIGTERM and the exit.
    pub(super) drain: Option<Drain>,
    /// The permitted callers: `anyone`, or callers by name. Absent: only loopback listeners may
    /// start.
    pub(super) callers: Option<Callers>,
    /// The store of rotating refresh tokens.
    pub(super) store: Option<Store>,
    /// The vendors by name. Names are letters, digits, `.`, `_` and `-`.
    #[schemars(required, extend("minProperties" = 1))]
    pub(super) vendors: Option<Entries<Vendor>>,
}

/// One listener for callers.
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
    /// PROXY protocol, version 1 or 2, on connections from these load balancers.
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    /// Most concurrent connections; further ones wait in the system's queue. Default: all listeners
    /// together accept as many as open files and the memory limit of the control group permit, at
    /// most 16384.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_connections: Option<usize>,
}

/// The load balancers whose PROXY protocol headers are trusted.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProxyProtocol {
    /// Networks of load balancers. No header is read on connections from other addresses.
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
    /// Several certificates, chosen by SNI; the first when none matches.
    #[schemars(length(min = 1))]
    pub(super) certificates: Option<List<CertFiles>>,
    /// PEM bundle of issuers of callers' certificates. The listener then requests a certificate,
    /// but does not require one. Read again when it changes.
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
    /// The condition for `/readyz` to return 200 for the first time: every vendor's first attempt
    /// has finished (`settled`), every vendor has had a usable credential (`all`), or one has
    /// (`any`).
    #[schemars(extend("default" = "settled"))]
    pub(super) ready_when: Option<ReadyWhen>,
    /// The key for POSTs from other addresses than loopback.
    pub(super) key: Option<AdminKey>,
}

/// The condition under which a started proxy is ready.
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

/// The times of a stop.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    /// Time after SIGTERM during which new connections are accepted.
    #[schemars(extend("default" = "5s"))]
    pub(super) delay: Option<Span>,
    /// Time that requests in flight may take after that.
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

/// No authentication of callers.
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
    /// Its permissions: `VENDOR`, `VENDOR METHOD[,METHOD] /path/glob` (the path after the prefix,
    /// case-sensitive; `/v1/**` also matches `/v1`), or `*` for every vendor. Default: none.
    pub(super) allow: Option<List<String>>,
    /// Its rate limit.
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

/// A token and its issuer (RFC 7519): RS, PS and ES 256 and 384, RS and PS 512, `EdDSA`. `exp` is
/// required.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Jwt {
    /// The `iss`, exactly.
    #[schemars(required)]
    pub(super) issuer: Option<String>,
    /// The `aud`, or one of several.
    #[schemars(required)]
    pub(super) audience: Option<String>,
    /// The `sub`; `*` matches any characters. Absent: any.
    pub(super) subject: Option<String>,
    /// The URL of the issuer's keys (RFC 7517 §5).
    pub(super) jwks_url: Option<String>,
    /// A file with the issuer's keys, read again when it changes.
    pub(super) jwks_file: Option<String>,
    /// PEM bundle used instead of the system's roots, for `jwks_url`.
    pub(super) ca: Option<String>,
    /// Bearer token for `jwks_url`.
    pub(super) jwks_token: Option<Secret>,
}

/// A caller's key. `countersign caller new NAME` creates one.
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

/// The store of rotating refresh tokens: `file`, `redis` or `kubernetes`. Default: `file`.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Store {
    /// A directory, for the processes of this host.
    pub(super) file: Option<FileStore>,
    /// A Redis server, shared by replicas.
    pub(super) redis: Option<RedisStore>,
    /// A Kubernetes Secret, shared by replicas.
    pub(super) kubernetes: Option<KubernetesStore>,
    /// The encryption key: 32 bytes as base64, hex or raw. Required for `redis` and `kubernetes`.
    /// Without it, `file` creates a key inside its directory.
    pub(super) encryption_key: Option<Secret>,
}

/// The file store.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FileStore {
    /// The directory; created when absent.
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
    /// PEM bundle used instead of the system's roots, for `rediss://`.
    pub(super) ca: Option<String>,
}

/// The Kubernetes store. Inside a cluster its service account is used, elsewhere `KUBECONFIG`.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KubernetesStore {
    /// Name of the Secret; created when absent. Each vendor also has a Lease.
    #[schemars(required, extend("format" = "object-name"))]
    pub(super) secret: Option<String>,
    /// Its namespace. Default: the service account's, or the context's.
    #[schemars(extend("format" = "namespace"))]
    pub(super) namespace: Option<String>,
}

/// A reference to a secret, never bare text.
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
    /// Name of the environment variable that holds it; used as it is, with a warning about
    /// surrounding white space.
    #[schemars(extend("format" = "environment-variable"))]
    pub(super) env: Option<String>,
    /// File that holds it, read again when it changes; surrounding white space is trimmed.
    pub(super) file: Option<String>,
    /// The secret itself; accepted with a warning.
    pub(super) value: Option<String>,
}

/// Text, or a reference to a secret.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum PlainOrSecret {
    Plain(String),
    Secret(Secret),
}

/// One vendor: a route, an upstream, path rules, one credential.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Vendor {
    /// The preset, which supplies the settings that are absent here.
    pub(super) preset: Option<String>,
    /// Path prefix that routes here; the longest match of whole segments wins. Default: `/` and the
    /// vendor's name.
    pub(super) prefix: Option<String>,
    /// Host names (without port) that route here with their full path; a host match wins.
    pub(super) hosts: Option<List<String>>,
    /// `https://host[:port][/base]`; the base path replaces the prefix.
    pub(super) upstream: Option<String>,
    /// Accepts `http://` for the upstream and for token URLs, with a warning.
    #[schemars(extend("default" = false))]
    pub(super) allow_plaintext: Option<bool>,
    /// The credential. Absent, and no preset: none.
    pub(super) auth: Option<Auth>,
    /// Client certificate for the upstream; reloaded when the files change.
    pub(super) client_cert: Option<CertFiles>,
    /// PEM bundle used instead of the system's roots, for the upstream and for token URLs: issuers,
    /// or the vendor's own certificate. A self-signed one with `CA:TRUE` is accepted when the
    /// vendor presents exactly it, over HTTP/1.1.
    pub(super) ca: Option<String>,
    /// TLS settings of the upstream.
    pub(super) tls: Option<VendorTls>,
    /// Time limits; `0s`: no limit.
    pub(super) timeouts: Option<Timeouts>,
    /// Size and rate limits; 0: no limit.
    pub(super) limits: Option<Limits>,
    /// `http://host:port` of an outbound CONNECT proxy, for the upstream and for token URLs.
    /// Default: `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` of the environment, in either case, as
    /// curl reads them.
    pub(super) proxy: Option<String>,
    /// Accepts link-local addresses (169.254.0.0/16, `fe80::/10`), and others of clouds' metadata
    /// services, as upstream and in token URLs.
    #[schemars(extend("default" = false))]
    pub(super) allow_link_local: Option<bool>,
    /// Treatment of Cookie and Set-Cookie. If they pass, the caller holds the vendor's session.
    #[schemars(extend("default" = "strip"))]
    pub(super) cookies: Option<Cookies>,
    /// The circuit breaker.
    pub(super) breaker: Option<Breaker>,
    /// Renews the credential after a vendor's 401 and replays the request once.
    #[schemars(extend("default" = true))]
    pub(super) retry_on_401: Option<bool>,
    /// Paths that never pass, in addition to the preset's: `[!][METHOD[,METHOD]] /pattern`. The
    /// pattern is matched with the path as sent upstream (base path included), case-insensitively.
    /// `*` matches within a segment, `**` across segments; `!` makes an exception.
    pub(super) refuse: Option<List<String>>,
    /// The only paths that pass, in the same form. May only narrow a preset's.
    #[schemars(length(min = 1))]
    pub(super) allow: Option<List<String>>,
    /// The treatment of a caller's own login call: refused, or answered with a token of the proxy
    /// when it presents a caller's key.
    #[schemars(extend("default" = "refuse"))]
    pub(super) login: Option<Login>,
    /// Treatment of %2F and %5C in a path.
    #[schemars(extend("default" = "refuse"))]
    pub(super) encoded_slash: Option<EncodedSlash>,
    /// Names of headers that callers may send although they hold more than letters, digits and `-`,
    /// for example `X_Account`. Any other name of this kind is refused, because servers take `_`
    /// and other characters for `-`. A header that could be taken for a credential is still
    /// removed.
    pub(super) header_names: Option<List<String>>,
    /// Masks the credential that the proxy added where the vendor's response repeats it: raw,
    /// base64, URL-encoded, JSON-escaped or escaped for HTML or XML, at the same length. A
    /// compressed response is cut off instead, and so is one that decompresses to too much to be
    /// searched.
    #[schemars(extend("default" = true))]
    pub(super) redact_echo: Option<bool>,
}

/// TLS settings of the upstream.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VendorTls {
    /// For servers that request the client certificate only after reading the path, by TLS 1.2
    /// renegotiation or TLS 1.3 post-handshake authentication: IIS, per-location rules of Apache.
    /// OpenSSL then speaks TLS 1.2 or 1.3 to the upstream and the token URLs, with the same trust
    /// and certificates, over HTTP/1.1. These servers buffer a request's body meanwhile, and
    /// respond with 413 when it is longer than their buffer (Apache `SSLRenegBufferSize`, 128 KiB;
    /// IIS `uploadReadAheadSize`, 48 KiB).
    #[schemars(extend("default" = false))]
    pub(super) late_client_auth: Option<bool>,
}

/// Time limits; `0s`: no limit.
#[derive(serde::Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    /// Limit of the TCP connect, and again of the TLS handshake.
    #[schemars(extend("default" = "5s"))]
    pub(super) connect: Option<Span>,
    /// From the end of the request to the first byte of the response.
    #[schemars(extend("default" = "60s"))]
    pub(super) first_byte: Option<Span>,
    /// Longest silence in both directions. WebSocket and gRPC have 5m unless it is set.
    #[schemars(extend("default" = "60s"))]
    pub(super) idle: Option<Span>,
    /// Limit of the whole exchange.
    #[schemars(extend("default" = "0s"))]
    pub(super) total: Option<Span>,
    /// Time for which an unused pooled connection is kept.
    #[schemars(extend("default" = "30s"))]
    pub(super) keepalive: Option<Span>,
    /// Time for which a request waits for a credential.
    #[schemars(extend("default" = "5s"))]
    pub(super) token_wait: Option<Span>,
}

/// Size and rate limits; 0: no limit.
#[derive(serde::Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Concurrent requests to this vendor.
    #[schemars(extend("default" = 1024))]
    pub(super) in_flight: Option<usize>,
    /// Size of a request body.
    #[schemars(extend("default" = "100MiB"))]
    pub(super) body: Option<Size>,
    /// The rate of requests.
    pub(super) rate: Option<Rate>,
    /// `true` if a 429 or 503 of the vendor with Retry-After holds further requests back: until
    /// then, and for at most 10 minutes, they are refused with the same status.
    #[schemars(extend("default" = false))]
    pub(super) honour_retry_after: Option<bool>,
}

/// The circuit breaker: while it is open, requests are refused with 503. Then one at a time is let
/// through as a probe, until one gets a response.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Breaker {
    /// Requests in a row that end in 502, 503 or 504, whether the vendor sends it or does not
    /// respond (no connection, a timeout); 0: never.
    #[schemars(extend("default" = 10))]
    pub(super) failures: Option<u32>,
    /// The first open period. Each further one is twice as long, up to 5 minutes.
    #[schemars(extend("default" = "10s"))]
    pub(super) open_for: Option<Span>,
}

/// The rate of requests.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rate {
    /// Requests per second, fractions included: `0.2` is one in five seconds. 0: no limit.
    #[schemars(extend("default" = 0, "format" = "rate", "minimum" = 0))]
    pub(super) per_second: Option<f64>,
    /// Requests that may come at once. Default: as many as in a second, and at least 1.
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
