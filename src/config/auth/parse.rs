//! The reader of `auth:`.

use http::HeaderName;
use std::time::Duration;
use url::Url;

use crate::config::auth::{
    Auth, AuthorizationCode, ClientAuth, ClientCredentials, RedirectUri, TokenTimes, Vedauth,
    VedauthGrant,
};
use crate::config::file::{self, Entries};
use crate::config::reader::Reader;
use crate::config::report::{KeyPath, list};
use crate::config::upstream::{Upstream, refuse_link_local, web_url};
use crate::endpoint;
use crate::secret::{Secret, SecretRef};
use crate::tls::CertFiles;

/// The facts of a vendor that its credential depends on.
#[derive(Clone, Copy)]
pub(in crate::config) struct AuthContext<'a> {
    pub(in crate::config) upstream: Option<&'a Upstream>,
    pub(in crate::config) client_cert: Option<&'a CertFiles>,
    pub(in crate::config) allow_plaintext: bool,
    /// The vendor's setting, too.
    pub(in crate::config) allow_link_local: bool,
}

/// Reads `auth:`. `None`: it has an error, which has been reported.
pub(in crate::config) fn auth(
    written: &file::Auth,
    auth_context: AuthContext<'_>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<Auth> {
    // In full, so that the compiler asks for the reader of a new kind.
    let file::Auth {
        bearer,
        basic,
        headers,
        query,
        client_credentials,
        authorization_code,
        vedauth,
    } = written;
    if let Some(bearer) = bearer {
        let at = at.key("bearer").key("token");
        let token = required(bearer.token.as_ref(), &at, reader)?;
        let token = reader.secret(token, &at)?;
        reader.bearer_token(&token, &at);
        Some(Auth::Bearer { token })
    } else if let Some(basic) = basic {
        self::basic(basic, &at.key("basic"), reader)
    } else if let Some(Entries(headers)) = headers {
        Some(self::headers(headers, &at.key("headers"), reader))
    } else if let Some(Entries(query)) = query {
        let at = at.key("query");
        let mut read = Vec::with_capacity(query.len());
        for (name, secret) in query {
            let at = at.key(name);
            if name.is_empty() {
                reader
                    .report
                    .error_at_key(&at, "a parameter needs a name", "");
            }
            if let Some(secret) = secret {
                read.extend(
                    reader
                        .secret(secret, &at)
                        .map(|secret| (name.clone(), secret)),
                );
            }
        }
        Some(Auth::Query(read))
    } else if let Some(client) = client_credentials {
        let at = at.key("client_credentials");
        self::client_credentials(client, auth_context, &at, reader).map(Auth::ClientCredentials)
    } else if let Some(client) = authorization_code {
        let at = at.key("authorization_code");
        self::authorization_code(client, auth_context, &at, reader).map(Auth::AuthorizationCode)
    } else if let Some(server) = vedauth {
        self::vedauth(server, auth_context, &at.key("vedauth"), reader).map(Auth::Vedauth)
    } else {
        None
    }
}

fn required<'w, T>(written: Option<&'w T>, at: &KeyPath, reader: &mut Reader<'_>) -> Option<&'w T> {
    if written.is_none() {
        reader.report.missing_key(at, "");
    }
    written
}

fn basic(written: &file::Basic, at: &KeyPath, reader: &mut Reader<'_>) -> Option<Auth> {
    let name_at = at.key("username");
    let username = required(written.username.as_ref(), &name_at, reader)
        .and_then(|username| reader.plain_or_secret(username, &name_at));
    let known = match &username {
        Some(SecretRef::Value(name)) => name.expose(),
        Some(SecretRef::Plain(name)) => name,
        Some(SecretRef::Env(_) | SecretRef::File(_)) | None => "",
    };
    if known.contains(':') {
        let hint = "Basic puts a colon between user name and password (RFC 7617 §2)";
        reader.report.error(&name_at, "must not hold a colon", hint);
    }
    let at = at.key("password");
    let password = required(written.password.as_ref(), &at, reader)
        .and_then(|password| reader.secret(password, &at));
    Some(Auth::Basic {
        username: username?,
        password: password?,
    })
}

fn headers(
    written: &[(String, Option<file::PlainOrSecret>)],
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Auth {
    let mut read: Vec<(String, SecretRef)> = Vec::with_capacity(written.len());
    for (name, value) in written {
        let at = at.key(name);
        let lower = name.to_ascii_lowercase();
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            reader
                .report
                .error_at_key(&at, "is not a header's name", "");
            continue;
        }
        if CONNECTION_FIELDS.contains(&lower.as_str()) {
            reader.report.error_at_key(
                &at,
                "cannot carry a credential",
                "it belongs to the connection, not to the request",
            );
            continue;
        }
        if read
            .iter()
            .any(|(other, _)| other.eq_ignore_ascii_case(name))
        {
            reader.report.error_at_key(
                &at,
                "is given twice",
                "case does not count in a header's name",
            );
        }
        let Some(value) = value else { continue };
        let looks_secret = ["authorization", "key", "password", "secret", "token"]
            .iter()
            .any(|word| lower.contains(word));
        if looks_secret && matches!(value, file::PlainOrSecret::Plain(_)) {
            reader.report.warn(
                &at,
                "looks like a secret and is written into the configuration",
                "`{ env: NAME }` or `{ file: PATH }` keep it out",
            );
        }
        if let Some(mut secret) = reader.plain_or_secret(value, &at) {
            reader.header_value(&secret, &at);
            if looks_secret && let SecretRef::Plain(text) = secret {
                secret = SecretRef::Value(Secret::new(text));
            }
            read.push((name.clone(), secret));
        }
    }
    Auth::Headers(read)
}

fn client_credentials(
    written: &file::ClientCredentials,
    auth_context: AuthContext<'_>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<ClientCredentials> {
    let token_url = login_url(
        written.token_url.as_ref(),
        "token_url",
        auth_context,
        at,
        reader,
    );
    let client_id = client_id(written.client_id.as_ref(), at, reader);
    let proof = Proof {
        client_secret: written.client_secret.as_ref(),
        private_key: written.private_key.as_ref(),
        key_id: written.key_id.as_ref(),
        algorithm: written.algorithm,
        assertion_audience: written.assertion_audience.as_ref(),
        client_cert: written.client_cert.as_ref(),
    };
    let kind = written.client_auth.unwrap_or(file::ClientAuth::Basic);
    let client_cert = presented_cert(&proof, token_url.as_ref(), auth_context, at, reader);
    let client_auth = client_auth(kind, &proof, client_cert.as_ref(), at, reader);
    let mut params = Vec::new();
    for (name, value) in written.params.iter().flat_map(|params| &params.0) {
        if OWN_PARAMETERS.contains(&name.as_str()) {
            reader.report.error_at_key(
                &at.key("params").key(name),
                "is set by the proxy",
                format!(
                    "only further parameters; the proxy sets {}",
                    list(&OWN_PARAMETERS)
                ),
            );
        }
        params.extend(value.clone().map(|value| (name.clone(), value)));
    }
    if kind == file::ClientAuth::Tls && proof.client_cert.is_none() {
        requires_https(token_url.as_ref(), &at.key("client_auth"), reader);
    }
    let times = times(
        written.default_lifetime,
        written.request_timeout,
        at,
        reader,
    );
    Some(ClientCredentials {
        token_url: token_url?,
        client_id: client_id?,
        client_auth: client_auth?,
        client_cert,
        scope: non_empty(written.scope.as_ref()),
        audience: non_empty(written.audience.as_ref()),
        resource: non_empty(written.resource.as_ref()),
        params,
        share: written.share.unwrap_or(false),
        times,
    })
}

fn authorization_code(
    written: &file::AuthorizationCode,
    auth_context: AuthContext<'_>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<AuthorizationCode> {
    let authorize_url = written.authorize_url.as_ref();
    let authorize_url = login_url(authorize_url, "authorize_url", auth_context, at, reader);
    let token_url = login_url(
        written.token_url.as_ref(),
        "token_url",
        auth_context,
        at,
        reader,
    );
    let client_id = client_id(written.client_id.as_ref(), at, reader);
    let proof = Proof {
        client_secret: written.client_secret.as_ref(),
        private_key: written.private_key.as_ref(),
        key_id: written.key_id.as_ref(),
        algorithm: written.algorithm,
        assertion_audience: written.assertion_audience.as_ref(),
        client_cert: written.client_cert.as_ref(),
    };
    let client_cert = presented_cert(&proof, token_url.as_ref(), auth_context, at, reader);
    let client_auth = match (written.client_auth, &written.client_secret) {
        // RFC 6749 §2.1: a public client has no secret.
        (None, None) if proof.private_key.is_none() && proof.client_cert.is_none() => Some(None),
        (kind, _) => {
            let kind = kind.unwrap_or(file::ClientAuth::Post);
            client_auth(kind, &proof, client_cert.as_ref(), at, reader).map(Some)
        }
    };
    if written.client_auth == Some(file::ClientAuth::Tls) && proof.client_cert.is_none() {
        requires_https(token_url.as_ref(), &at.key("client_auth"), reader);
    }
    let redirect_at = at.key("redirect_uri");
    let redirect_uri = match &written.redirect_uri {
        None => {
            reader.report.missing_key(
                &redirect_at,
                "as registered with the vendor, for example `http://127.0.0.1:8765/callback`",
            );
            None
        }
        Some(text) => redirect_uri(text, &redirect_at, reader),
    };
    let issuer = non_empty(written.issuer.as_ref());
    if let Some(issuer) = &issuer {
        let url = endpoint::web(issuer);
        // RFC 8414 §2: a URL without query and fragment.
        if !url.is_ok_and(|url| url.query().is_none() && url.fragment().is_none()) {
            let hint = "written as the server's redirects name it in `iss`, for example \
                        `https://login.example/realms/a`";
            let message = "is not an issuer identifier";
            reader.report.error(&at.key("issuer"), message, hint);
        }
    }
    if written.share == Some(false) {
        reader.report.error(
            &at.key("share"),
            "cannot be false",
            "replicas share what a refresh token brings, or they would revoke each other's grant; leave it out",
        );
    }
    let times = times(
        written.default_lifetime,
        written.request_timeout,
        at,
        reader,
    );
    Some(AuthorizationCode {
        authorize_url: authorize_url?,
        token_url: token_url?,
        client_id: client_id?,
        client_auth: client_auth?,
        client_cert,
        scope: non_empty(written.scope.as_ref()),
        redirect_uri: redirect_uri?,
        send_redirect_uri: written.send_redirect_uri.unwrap_or(true),
        pkce: written.pkce.unwrap_or(true),
        issuer,
        times,
    })
}

/// RFC 6749 §3.1.2: absolute, without a fragment.
fn redirect_uri(text: &str, at: &KeyPath, reader: &mut Reader<'_>) -> Option<RedirectUri> {
    let blank = |c: char| c.is_whitespace() || c.is_control();
    let message = match text.parse::<RedirectUri>() {
        // A parser drops some of these characters; a server does not.
        Ok(_) if text.contains(blank) => "has a character that no URL may have",
        Ok(uri) if uri.url().fragment().is_none() => return Some(uri),
        Ok(_) => "must not have a fragment",
        Err(_) => "is not an absolute URL",
    };
    reader.report.error(at, message, "");
    None
}

fn vedauth(
    written: &file::Vedauth,
    auth_context: AuthContext<'_>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<Vedauth> {
    let url = match (&written.url, auth_context.upstream) {
        (Some(_), _) => login_url(written.url.as_ref(), "url", auth_context, at, reader),
        (None, Some(upstream)) => Url::parse(&upstream.origin()).ok(),
        // Reported as a missing or invalid upstream.
        (None, None) => None,
    };
    let url = url.map(|mut url| {
        let path = url.path().trim_end_matches('/').to_owned();
        let last = path.rsplit('/').next().unwrap_or_default();
        if last.eq_ignore_ascii_case("vedauth") {
            url.set_path(&path);
        } else {
            url.set_path(&format!("{path}/vedauth"));
        }
        url
    });
    let client_id = client_id(written.client_id.as_ref(), at, reader);
    let user = written.username.is_some() || written.password.is_some();
    let ways = [written.certificate.is_some(), user, written.jwt.is_some()];
    let grant = match ways {
        [true, false, false] => written
            .certificate
            .as_ref()
            .and_then(|files| reader.cert_files(files, &at.key("certificate")))
            .map(VedauthGrant::Certificate),
        [false, true, false] => {
            let name_at = at.key("username");
            let username = required(written.username.as_ref(), &name_at, reader)
                .and_then(|username| reader.plain_or_secret(username, &name_at));
            let at = at.key("password");
            let password = required(written.password.as_ref(), &at, reader)
                .and_then(|password| reader.secret(password, &at));
            username
                .zip(password)
                .map(|(username, password)| VedauthGrant::Password { username, password })
        }
        [false, false, true] => written
            .jwt
            .as_ref()
            .and_then(|jwt| reader.secret(jwt, &at.key("jwt")))
            .map(VedauthGrant::Jwt),
        [false, false, false] => {
            let certificate = at.key("certificate");
            reader.report.missing_key(
                &certificate,
                "or `username` and `password`, or `jwt`: one of them obtains the grant",
            );
            None
        }
        [_, _, _] => {
            reader.report.error(
                at,
                "has more than one way to obtain the grant",
                "give exactly one of `certificate`, `username` with `password`, and `jwt`",
            );
            None
        }
    };
    if let Some(VedauthGrant::Certificate(_)) = grant {
        requires_https(url.as_ref(), &at.key("certificate"), reader);
    }
    let times = times(
        written.default_lifetime,
        written.request_timeout,
        at,
        reader,
    );
    Some(Vedauth {
        url: url?,
        client_id: client_id?,
        scope: non_empty(written.scope.as_ref()),
        grant: grant?,
        refresh: written.refresh.unwrap_or(true),
        share: written.share.unwrap_or(false),
        revoke_on_exit: written.revoke_on_exit.unwrap_or(false),
        times,
    })
}

fn login_url(
    written: Option<&String>,
    name: &str,
    auth_context: AuthContext<'_>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<Url> {
    let at = at.key(name);
    let text = required(written, &at, reader)?;
    let clear = "the client's secret and the tokens travel";
    let url = web_url(text, auth_context.allow_plaintext, clear, &at, reader)?;
    if !auth_context.allow_link_local {
        refuse_link_local(&url, &at, reader);
    }
    // RFC 6749 §3.1, §3.2: a query is permitted, a fragment is not.
    if url.fragment().is_some() {
        reader.report.error(&at, "must not have a fragment", "");
    }
    Some(url)
}

/// Reports a client certificate for a URL without TLS.
fn requires_https(url: Option<&Url>, at: &KeyPath, reader: &mut Reader<'_>) {
    if url.is_some_and(|url| url.scheme() != "https") {
        let message = "a client certificate is never presented to an `http://` URL";
        let hint = "a certificate is part of the TLS handshake: use https://";
        reader.report.error_at_key(at, message, hint);
    }
}

fn client_id(
    written: Option<&file::PlainOrSecret>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<SecretRef> {
    let at = at.key("client_id");
    let written = required(written, &at, reader)?;
    reader.plain_or_secret(written, &at)
}

/// All means of client authentication in one kind.
struct Proof<'w> {
    client_secret: Option<&'w file::Secret>,
    private_key: Option<&'w file::Secret>,
    key_id: Option<&'w String>,
    algorithm: Option<file::Algorithm>,
    assertion_audience: Option<&'w String>,
    client_cert: Option<&'w file::CertFiles>,
}

/// Returns the certificate for the token endpoint: the kind's own, or else the vendor's. The kind's
/// own requires https.
fn presented_cert(
    proof: &Proof<'_>,
    token_url: Option<&Url>,
    auth_context: AuthContext<'_>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<CertFiles> {
    let at = at.key("client_cert");
    let own = proof.client_cert.map(|files| reader.cert_files(files, &at));
    if own.is_some() {
        requires_https(token_url, &at, reader);
    }
    own.unwrap_or_else(|| auth_context.client_cert.cloned())
}

fn client_auth(
    kind: file::ClientAuth,
    proof: &Proof<'_>,
    shown: Option<&CertFiles>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<ClientAuth> {
    use file::ClientAuth::{Basic, Json, Post, PrivateKeyJwt, Tls};

    // A secret or key that the chosen client authentication does not use is an error.
    let by_secret = matches!(kind, Basic | Post | Json);
    let by_key = kind == PrivateKeyJwt;
    for (name, given, used, hint) in [
        (
            "client_secret",
            proof.client_secret.is_some(),
            by_secret,
            BY_SECRET,
        ),
        ("private_key", proof.private_key.is_some(), by_key, BY_KEY),
        ("key_id", proof.key_id.is_some(), by_key, BY_KEY),
        ("algorithm", proof.algorithm.is_some(), by_key, BY_KEY),
        (
            "assertion_audience",
            proof.assertion_audience.is_some(),
            by_key,
            BY_KEY,
        ),
    ] {
        if given && !used {
            reader
                .report
                .error_at_key(&at.key(name), "is not used by this `client_auth`", hint);
        }
    }
    match kind {
        Basic | Post | Json => {
            let at = at.key("client_secret");
            let secret = required(proof.client_secret, &at, reader)?;
            let secret = reader.secret(secret, &at)?;
            Some(match kind {
                Post => ClientAuth::Post(secret),
                Json => ClientAuth::Json(secret),
                Basic | PrivateKeyJwt | Tls => ClientAuth::Basic(secret),
            })
        }
        PrivateKeyJwt => {
            let at = at.key("private_key");
            let algorithm = proof.algorithm.unwrap_or(file::Algorithm::RS256);
            let key = required(proof.private_key, &at, reader)?;
            Some(ClientAuth::PrivateKeyJwt {
                private_key: reader.signing_key(key, algorithm, &at)?,
                key_id: proof.key_id.cloned(),
                algorithm: format!("{algorithm:?}"),
                audience: proof.assertion_audience.cloned(),
            })
        }
        Tls => {
            if shown.is_none() {
                let hint = "here, or as the vendor's own `client_cert`";
                reader.report.missing_key(&at.key("client_cert"), hint);
            }
            shown.cloned().map(ClientAuth::Tls)
        }
    }
}

fn times(
    default_lifetime: Option<file::Span>,
    request_timeout: Option<file::Span>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> TokenTimes {
    let mut positive = |span: Option<file::Span>, name: &str, default: u64| {
        let span = span.map_or(Duration::from_secs(default), |span| span.0);
        if span.is_zero() {
            reader
                .report
                .error(&at.key(name), "must be more than 0", "");
        }
        span
    };
    TokenTimes {
        default_lifetime: positive(default_lifetime, "default_lifetime", 300),
        request_timeout: positive(request_timeout, "request_timeout", 10),
    }
}

/// Returns a text that is not empty. An empty one removes a value of the preset.
fn non_empty(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

const BY_SECRET: &str = "`basic`, `post` and `json` use it";
const BY_KEY: &str = "`client_auth: private_key_jwt` uses it";

/// Headers of the connection or of the message's framing (RFC 9110 §7.6.1, RFC 9112 §6), and those
/// that the proxy sets itself.
pub(in crate::config) const CONNECTION_FIELDS: [&str; 14] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// RFC 6749, RFC 7521 §4.2, RFC 8707.
const OWN_PARAMETERS: [&str; 8] = [
    "grant_type",
    "client_id",
    "client_secret",
    "client_assertion",
    "client_assertion_type",
    "scope",
    "audience",
    "resource",
];
