//! `countersign authorize`: obtains a user's consent, once, for a vendor that needs it.
//!
//! Accepts the redirect from a callback on loopback, if `redirect_uri` is there, and at the same
//! time from pasted text: the browser may be on another machine than this terminal.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::response::Html;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, StatusCode, Uri};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use url::{Host, Url};

use super::progress::with_progress;
use super::terminal::Input;
use crate::config::{self, Auth, Config};
use crate::credential::consent::{Consent, Granted, Redirect};
use crate::secret::Secret;
use crate::store::{self, StoreError};

/// A failure of `countersign authorize`.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No vendor has this name.
    #[error("the configuration has no vendor \"{name}\"; those that need consent: {known}")]
    NoVendor {
        /// The name on the command line.
        name: String,
        /// The vendors with `authorization_code`.
        known: String,
    },
    /// The vendor's credential needs no consent.
    #[error(
        "vendors.{vendor} has auth {kind}; only authorization_code needs a user's consent; \
         `countersign probe {vendor}` tests its credential"
    )]
    NothingToConsent {
        /// The vendor.
        vendor: String,
        /// Its `auth`.
        kind: &'static str,
    },
    /// The store cannot be written. The user was not asked.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The authorization URL cannot be built.
    #[error("{0}")]
    Url(String),
    /// stdin was closed, and there is no callback listener.
    #[error(
        "stdin was closed before a redirect was pasted; run the command again and paste the URL \
         that the browser was redirected to"
    )]
    NoInput,
    /// The pasted redirect belongs to another authorization request.
    #[error(
        "the redirect has the state of another request: nothing was exchanged; run the command \
         again and open the URL that it prints then"
    )]
    WrongState,
    /// The redirect comes from another server.
    #[error(
        "the redirect specifies the issuer {found}, not {wanted}: nothing was exchanged; if this is \
         your vendor's issuer, write `issuer: {found}` beside `authorize_url`"
    )]
    OtherIssuer {
        /// The issuer in the redirect.
        found: String,
        /// The issuer that is expected.
        wanted: String,
    },
    /// The server or the user refused.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The code could not be exchanged, or the tokens could not be stored.
    #[error("{0}")]
    Exchange(String),
    /// The terminal could not be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Asks for consent for `vendor`'s `authorization_code` and stores the tokens. With `no_state`, a
/// redirect without `state` is accepted without asking; one with a wrong `state` never is.
///
/// # Errors
/// [`Error`]; nothing is stored in this case.
pub(super) async fn run(config: &Config, vendor: &str, no_state: bool) -> Result<(), Error> {
    let vendor = config
        .vendors
        .iter()
        .find(|candidate| candidate.name == vendor)
        .ok_or_else(|| {
            let consents =
                |vendor: &&config::Vendor| matches!(vendor.auth, Some(Auth::AuthorizationCode(_)));
            let known: Vec<_> = config.vendors.iter().filter(consents).collect();
            let known: Vec<_> = known.iter().map(|vendor| vendor.name.as_str()).collect();
            Error::NoVendor {
                name: vendor.to_owned(),
                known: if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                },
            }
        })?;
    let Some(Auth::AuthorizationCode(auth)) = &vendor.auth else {
        return Err(Error::NothingToConsent {
            vendor: vendor.name.clone(),
            kind: vendor.auth.as_ref().map_or("none", |auth| auth.kind().name),
        });
    };
    let consent = Consent::new(auth, vendor, store::open(&config.store));
    with_progress("checking the store", consent.check_store()).await?;

    let mut prompts = io::stderr();
    let mut listeners = Vec::new();
    for address in callback_addresses(auth.redirect_uri.url()) {
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            Err(cause) => writeln!(
                prompts,
                "Cannot listen for the callback at {}: {cause}",
                std::net::SocketAddr::from(address)
            )?,
        }
    }
    let callback = Callback::serve(listeners, auth.redirect_uri.url());
    let mut conversation = Conversation {
        consent,
        redirect_uri: auth.redirect_uri.as_str().to_owned(),
        no_state,
        vendor: vendor.name.clone(),
        results: io::stdout(),
        prompts,
    };
    let mut input = Input::start()?;
    conversation.run(callback, &mut input.lines).await
}

/// The dialogue with the user.
struct Conversation<Results, Prompts> {
    consent: Consent,
    /// The redirect URI as configured.
    redirect_uri: String,
    no_state: bool,
    vendor: String,
    results: Results,
    prompts: Prompts,
}

impl<Results: Write, Prompts: Write> Conversation<Results, Prompts> {
    async fn run(
        &mut self,
        mut callback: Callback,
        lines: &mut mpsc::Receiver<String>,
    ) -> Result<(), Error> {
        let url = self.consent.url().map_err(Error::Url)?;
        writeln!(self.prompts, "Open this URL in a browser and consent:")?;
        writeln!(self.results, "{url}")?;
        self.results.flush()?;
        let instruction = if callback.listening {
            "Waiting for the redirect. If the browser cannot reach this machine, paste the URL it \
             was redirected to here:"
        } else {
            "Then paste the URL the browser was redirected to, or the code in it:"
        };
        writeln!(self.prompts, "{instruction}")?;

        let mut unproven: Option<Secret> = None;
        let mut reading = true;
        while reading || callback.listening {
            tokio::select! {
                Some((query, page)) = callback.redirects.recv() => {
                    match self.consent.read(&query) {
                        Redirect::Code(code) => return self.finish(code, callback, Some(page)).await,
                        Redirect::Stateless(code) if self.no_state => {
                            return self.finish(code, callback, Some(page)).await;
                        }
                        Redirect::Refused(text) => {
                            callback.close_with(Some(page), REFUSED).await;
                            return Err(Error::Refused(text));
                        }
                        foreign @ (Redirect::StatelessRefused(_)
                        | Redirect::Stateless(_)
                        | Redirect::OtherIssuer(_)
                        | Redirect::NoIssuer
                        | Redirect::Foreign
                        | Redirect::Empty) => {
                            let _ = page.send(FOREIGN);
                            writeln!(
                                self.prompts,
                                "A redirect that does not belong to this request was ignored."
                            )?;
                            if let Redirect::OtherIssuer(found) = foreign {
                                let wanted = self.consent.issuer();
                                let error = Error::OtherIssuer { found, wanted };
                                writeln!(self.prompts, "It has the right state, but {error}.")?;
                            } else if let Redirect::NoIssuer = foreign {
                                writeln!(self.prompts, "{NO_ISSUER}")?;
                            }
                        }
                    }
                }
                line = lines.recv(), if reading => {
                    let Some(line) = line else {
                        reading = false;
                        continue;
                    };
                    let line = line.trim();
                    if line.is_empty() {
                        continue;
                    }
                    if let Some(code) = unproven.take() {
                        if line.eq_ignore_ascii_case("yes") {
                            return self.finish(code, callback, None).await;
                        }
                        writeln!(self.prompts, "Not used. Paste another one:")?;
                        continue;
                    }
                    match self.pasted(line) {
                        Redirect::Code(code) => return self.finish(code, callback, None).await,
                        Redirect::Stateless(code) if self.no_state => {
                            return self.finish(code, callback, None).await;
                        }
                        Redirect::Stateless(code) => {
                            unproven = Some(code);
                            writeln!(
                                self.prompts,
                                "There is no state in it, so it may belong to another request. \
                                 Type yes to use it anyway:"
                            )?;
                        }
                        Redirect::Foreign => return Err(Error::WrongState),
                        Redirect::OtherIssuer(found) => {
                            let wanted = self.consent.issuer();
                            return Err(Error::OtherIssuer { found, wanted });
                        }
                        Redirect::NoIssuer => {
                            writeln!(self.prompts, "{NO_ISSUER} Paste another one:")?;
                        }
                        Redirect::Refused(text) | Redirect::StatelessRefused(text) => {
                            return Err(Error::Refused(text));
                        }
                        Redirect::Empty => {
                            writeln!(self.prompts, "There is no code in it. Paste another one:")?;
                        }
                    }
                }
                else => break,
            }
        }
        Err(Error::NoInput)
    }

    /// Reads a pasted redirect: the whole URL, with or without its scheme, its query, or the code
    /// alone; possibly in quotes or brackets.
    fn pasted(&self, line: &str) -> Redirect {
        let line = unquoted(line);
        let (rest, fragment) = line.split_once('#').unwrap_or((line, ""));
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let alone = if address.contains("://") { "" } else { address };
        for form in [query, fragment, alone] {
            if form.contains("code=") || form.contains("error=") {
                return self.consent.read(form);
            }
        }
        let ours = self.redirect_uri.split_once("://");
        let ours = ours.is_some_and(|(_, address)| line.starts_with(address));
        if line.is_empty() || line.contains("://") || ours || line.contains(char::is_whitespace) {
            return Redirect::Empty;
        }
        self.consent.read_code(line)
    }

    async fn finish(
        &mut self,
        code: Secret,
        callback: Callback,
        page: Option<oneshot::Sender<Page>>,
    ) -> Result<(), Error> {
        let exchange = self.consent.complete(code);
        let outcome = with_progress("exchanging the code", exchange).await;
        let page_text = if outcome.is_ok() { DONE } else { FAILED };
        callback.close_with(page, page_text).await;
        let Granted {
            renewable,
            lifetime,
        } = outcome.map_err(Error::Exchange)?;
        let vendor = &self.vendor;
        writeln!(
            self.prompts,
            "Stored. A running proxy uses it for {vendor} within 10 seconds."
        )?;
        if !renewable {
            writeln!(
                self.prompts,
                "The server issued no refresh token: consent is needed again in {}.",
                humantime::format_duration(lifetime)
            )?;
        }
        Ok(())
    }
}

/// A page for the browser: constant text, with nothing from the request in it.
type Page = (StatusCode, &'static str);

/// The listener at `redirect_uri`.
struct Callback {
    listening: bool,
    redirects: mpsc::Receiver<(String, oneshot::Sender<Page>)>,
    stop: watch::Sender<bool>,
    serving: JoinSet<()>,
}

impl Callback {
    fn serve(listeners: Vec<TcpListener>, redirect_uri: &Url) -> Self {
        let (sender, redirects) = mpsc::channel(1);
        let (stop, stopped) = watch::channel(false);
        let listening = !listeners.is_empty();
        let shared = Arc::new((redirect_uri.path().to_owned(), sender));
        let mut serving = JoinSet::new();
        for listener in listeners {
            let app = Router::new()
                .fallback(receive_redirect)
                .with_state(shared.clone());
            let mut stopped = stopped.clone();
            serving.spawn(async move {
                let until = async move {
                    let _ = stopped.wait_for(|stop| *stop).await;
                };
                let _ = axum::serve(listener, app)
                    .with_graceful_shutdown(until)
                    .await;
            });
        }
        Self {
            listening,
            redirects,
            stop,
            serving,
        }
    }

    /// Sends the last page and closes, after at most 2 s for the browser to receive it.
    async fn close_with(mut self, page: Option<oneshot::Sender<Page>>, text: Page) {
        if let Some(page) = page {
            let _ = page.send(text);
        }
        // Further redirects are refused.
        self.redirects.close();
        let _ = self.stop.send(true);
        let all = async { while self.serving.join_next().await.is_some() {} };
        let _ = timeout(Duration::from_secs(2), all).await;
    }
}

type Shared = Arc<(String, mpsc::Sender<(String, oneshot::Sender<Page>)>)>;

/// Receives a redirect, or the form that a page of the server posts instead (OAuth 2.0 Form Post
/// Response Mode §2).
async fn receive_redirect(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> (StatusCode, Html<&'static str>) {
    let (path, redirects) = &*shared;
    if uri.path() != path {
        return (StatusCode::NOT_FOUND, Html("Not found."));
    }
    let parameters = match method {
        Method::GET => uri.query().unwrap_or_default().to_owned(),
        Method::POST if is_form(&headers) => match to_bytes(body, MAX_READ).await {
            Ok(body) if body.len() <= MAX_FORM => String::from_utf8_lossy(&body).into_owned(),
            Ok(_) | Err(_) => return (StatusCode::PAYLOAD_TOO_LARGE, Html("Too long.")),
        },
        Method::POST => return (StatusCode::UNSUPPORTED_MEDIA_TYPE, Html("Not a form.")),
        _ => return (StatusCode::METHOD_NOT_ALLOWED, Html("Method not allowed.")),
    };
    let (page, result) = oneshot::channel();
    let (status, text) = match redirects.send((parameters, page)).await {
        Ok(()) => result.await.unwrap_or(LATE),
        Err(_) => LATE,
    };
    (status, Html(text))
}

fn is_form(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let media_type = value.and_then(|value| value.split(';').next());
    media_type.is_some_and(|it| {
        it.trim()
            .eq_ignore_ascii_case("application/x-www-form-urlencoded")
    })
}

/// Removes surrounding quotes, brackets and white space.
fn unquoted(line: &str) -> &str {
    let mut line = line.trim();
    while let Some(inner) = PAIRS
        .iter()
        .find_map(|(open, close)| line.strip_prefix(*open)?.strip_suffix(*close))
    {
        line = inner.trim();
    }
    line
}

/// Pairs that surround a URL in a chat, a mail or a shell.
const PAIRS: [(char, char); 8] = [
    ('"', '"'),
    ('\'', '\''),
    ('`', '`'),
    ('<', '>'),
    ('(', ')'),
    ('[', ']'),
    ('\u{201c}', '\u{201d}'),
    ('\u{2018}', '\u{2019}'),
];

/// Maximum size of a posted form in bytes: codes of a few kilobytes occur.
const MAX_FORM: usize = 256 * 1024;
/// Number of bytes of a posted form that are read before it is refused: if the connection is closed
/// while the browser is still sending, it shows no page.
const MAX_READ: usize = 16 * MAX_FORM;

const NO_ISSUER: &str = "The redirect has no issuer (`iss`), and `issuer` in the configuration \
                         requires one: if the server sends none, remove `issuer`.";

/// Returns the addresses to listen on for the callback; empty if the redirect is not to loopback.
fn callback_addresses(redirect_uri: &Url) -> Vec<(IpAddr, u16)> {
    let Some(port) = redirect_uri.port_or_known_default() else {
        return Vec::new();
    };
    let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
    let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
    let hosts = match redirect_uri.host() {
        // TLS would need a certificate that the browser trusts.
        _ if redirect_uri.scheme() != "http" => vec![],
        Some(Host::Domain("localhost")) => vec![v4, v6],
        Some(Host::Ipv4(ip)) if ip.is_loopback() => vec![IpAddr::from(ip)],
        Some(Host::Ipv6(ip)) if ip.is_loopback() => vec![v6],
        Some(Host::Domain(_) | Host::Ipv4(_) | Host::Ipv6(_)) | None => vec![],
    };
    hosts.into_iter().map(|host| (host, port)).collect()
}

const DONE: Page = (
    StatusCode::OK,
    "<!doctype html><title>countersign</title><p>Done. You can close this window.",
);
const REFUSED: Page = (
    StatusCode::OK,
    "<!doctype html><title>countersign</title><p>Consent was refused. See the terminal for details.",
);
const FAILED: Page = (
    StatusCode::BAD_GATEWAY,
    "<!doctype html><title>countersign</title><p>An error occurred. See the terminal for details.",
);
const FOREIGN: Page = (
    StatusCode::BAD_REQUEST,
    "<!doctype html><title>countersign</title><p>This redirect does not belong to the \
     pending request. Open the URL in the terminal.",
);
const LATE: Page = (
    StatusCode::GONE,
    "<!doctype html><title>countersign</title><p>This request is no longer pending.",
);

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tempfile::TempDir;

    use super::*;
    use crate::config::{self, AuthorizationCode, ClientAuth};
    use crate::credential::fakes::{Reply, TokenServer, json, times, value, vendor};
    use crate::store::{Grant, Store};

    const TOKENS: &str = r#"{"access_token":"a","refresh_token":"r","expires_in":3600}"#;

    /// A user at a terminal, a token server and a store.
    struct Scene {
        server: TokenServer,
        dir: TempDir,
        no_state: bool,
        pkce: bool,
        listen: bool,
        issuer: Option<String>,
    }

    /// The result of running the command.
    struct Outcome {
        result: Result<(), Error>,
        printed: String,
        prompts: String,
    }

    impl Scene {
        async fn new(replies: impl IntoIterator<Item = Reply>) -> Self {
            Self {
                server: TokenServer::start(replies).await,
                dir: tempfile::tempdir().unwrap(),
                no_state: false,
                pkce: true,
                listen: false,
                issuer: None,
            }
        }

        fn store(&self) -> Arc<dyn Store> {
            let config = config::Store::File {
                dir: self.dir.path().join("state"),
                encryption_key: None,
            };
            store::open(&config)
        }

        async fn stored(&self) -> Option<Grant> {
            self.store().load("acme").await.unwrap()
        }

        /// Runs the command; `user` receives the printed URL's parameters, the callback's URL and
        /// the terminal.
        async fn run<F: Future<Output = ()> + Send + 'static>(
            &self,
            user: impl FnOnce(HashMap<String, String>, String, mpsc::Sender<String>) -> F,
        ) -> Outcome {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let redirect_uri = format!("http://{}/back", listener.local_addr().unwrap());
            let auth = AuthorizationCode {
                authorize_url: "https://as.example/authorize?tenant=7".parse().unwrap(),
                token_url: self.server.url("/token"),
                client_id: value("my app"),
                client_auth: Some(ClientAuth::Post(value("s"))),
                client_cert: None,
                scope: Some("tuser.account".into()),
                redirect_uri: redirect_uri.parse().unwrap(),
                send_redirect_uri: true,
                pkce: self.pkce,
                issuer: self.issuer.clone(),
                times: times(),
            };
            let vendor = vendor(Auth::AuthorizationCode(auth.clone()));
            let consent = Consent::new(&auth, &vendor, self.store());
            consent.check_store().await.unwrap();
            let url = consent.url().unwrap();
            let (terminal, mut lines) = mpsc::channel(8);
            let query = url.query_pairs().into_owned().collect();
            let user = tokio::spawn(user(query, redirect_uri, terminal));
            let listeners = if self.listen { vec![listener] } else { vec![] };
            let callback = Callback::serve(listeners, auth.redirect_uri.url());
            let (mut results, mut prompts) = (Vec::new(), Vec::new());
            let mut conversation = Conversation {
                consent,
                redirect_uri: auth.redirect_uri.as_str().to_owned(),
                no_state: self.no_state,
                vendor: "acme".into(),
                results: &mut results,
                prompts: &mut prompts,
            };
            let running = conversation.run(callback, &mut lines);
            let result = timeout(Duration::from_secs(20), running)
                .await
                .expect("the command ends");
            user.await.unwrap();
            assert_eq!(String::from_utf8_lossy(&results), format!("{url}\n"));
            Outcome {
                result,
                printed: url.to_string(),
                prompts: String::from_utf8(prompts).unwrap(),
            }
        }

        /// Runs the command with a user who pastes these lines and then closes stdin. `{state}` in
        /// them is replaced by this request's state.
        async fn paste(&self, lines: &[&str]) -> Outcome {
            let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
            self.run(async |query, _, terminal| {
                for line in lines {
                    let line = line.replace("{state}", &query["state"]);
                    let _ = terminal.send(line).await;
                }
            })
            .await
        }
    }

    async fn get(url: &str) -> (u16, String) {
        crate::tls::install_provider();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let response = client.get(url).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    #[tokio::test]
    async fn the_url_asks_for_a_code_with_state_and_pkce_and_keeps_its_own_query() {
        let scene = Scene::new([json(TOKENS)]).await;
        let outcome = scene
            .paste(&["https://x.example/?code=c&state={state}"])
            .await;
        outcome.result.unwrap();

        let url: Url = outcome.printed.parse().unwrap();
        let query: HashMap<_, _> = url.query_pairs().into_owned().collect();
        assert_eq!(query["tenant"], "7");
        assert_eq!(query["response_type"], "code");
        assert_eq!(query["client_id"], "my app");
        assert_eq!(query["scope"], "tuser.account");
        assert_eq!(query["code_challenge_method"], "S256");
        assert!(query["state"].len() >= 43 && query["redirect_uri"].ends_with("/back"));

        let sent: HashMap<_, _> = scene.server.requests()[0].form().into_iter().collect();
        assert_eq!(sent["code"], "c");
        assert_eq!(sent["redirect_uri"], query["redirect_uri"]);
        let challenge = crate::tls::sha256(&[sent["code_verifier"].as_bytes()]);
        let challenge = base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, challenge);
        assert_eq!(query["code_challenge"], challenge);

        let grant = scene.stored().await.unwrap();
        assert_eq!(grant.refresh_token.unwrap().expose(), "r");
        assert_eq!(grant.access.unwrap().token.expose(), "a");
        assert!(grant.version > 0);
        assert!(outcome.prompts.contains("within 10 seconds"));
    }

    #[tokio::test]
    async fn without_pkce_neither_challenge_nor_verifier_is_sent() {
        let mut scene = Scene::new([json(TOKENS)]).await;
        scene.pkce = false;
        let outcome = scene.paste(&["?code=c&state={state}"]).await;
        outcome.result.unwrap();
        assert!(!outcome.printed.contains("code_challenge"));
        assert!(!scene.server.requests()[0].body.contains("code_verifier"));
    }

    #[tokio::test]
    async fn a_wrong_state_is_never_exchanged() {
        let mut scene = Scene::new([json(TOKENS)]).await;
        for no_state in [false, true] {
            scene.no_state = no_state;
            let outcome = scene
                .paste(&["https://x.example/?code=c&state=other", "yes"])
                .await;
            assert!(matches!(outcome.result, Err(Error::WrongState)));
        }
        assert!(scene.server.requests().is_empty());
        assert!(scene.stored().await.is_none());
    }

    #[tokio::test]
    async fn a_missing_state_needs_a_typed_yes_or_the_option() {
        for (lines, no_state, exchanged) in [
            (&["https://x.example/?code=c", "yes"][..], false, true),
            (&["c", " YES "], false, true),
            (&["c"], true, true),
            (&["https://x.example/?code=c"], false, false),
            (&["c", "y"], false, false),
            (
                &["", "no code here", "https://x.example/", "c", "no"],
                false,
                false,
            ),
        ] {
            let mut scene = Scene::new([json(TOKENS)]).await;
            scene.no_state = no_state;
            let outcome = scene.paste(lines).await;
            assert_eq!(outcome.result.is_ok(), exchanged, "{lines:?}");
            if !exchanged {
                assert!(matches!(outcome.result, Err(Error::NoInput)));
            }
            assert_eq!(scene.server.requests().len(), usize::from(exchanged));
            assert_eq!(scene.stored().await.is_some(), exchanged);
        }
    }

    #[tokio::test]
    async fn a_refusal_is_reported_in_printable_characters() {
        let scene = Scene::new([]).await;
        let outcome = scene
            .paste(&[
                "https://x.example/?error=access_denied&error_description=no%1B%5B2J&state={state}",
            ])
            .await;
        let text = outcome.result.unwrap_err().to_string();
        assert_eq!(text, "the server refused: access_denied no?[2J");
    }

    #[tokio::test]
    async fn a_code_that_the_server_refuses_stores_nothing() {
        let refusal = r#"{"error":"invalid_grant","error_description":"code c-hunter2 is old"}"#;
        let scene = Scene::new([crate::credential::fakes::response("400 Bad", "", refusal)]).await;
        let outcome = scene.paste(&["?code=c-hunter2&state={state}"]).await;
        let text = outcome.result.unwrap_err().to_string();
        assert!(
            text.contains("invalid_grant") && !text.contains("hunter2"),
            "{text}"
        );
        assert!(scene.stored().await.is_none());
    }

    #[tokio::test]
    async fn the_callback_accepts_only_the_redirect_of_this_request() {
        let mut scene = Scene::new([json(r#"{"access_token":"a","expires_in":3600}"#)]).await;
        scene.listen = true;
        let outcome = scene
            .run(async |query, callback, terminal| {
                // stdin is closed: only the callback remains.
                drop(terminal);
                let origin = callback.trim_end_matches("/back").to_owned();
                assert_eq!(get(&origin).await.0, 404);
                for query in ["?code=c&state=other", "?code=c", "?error=access_denied", ""] {
                    let (status, page) = get(&format!("{callback}{query}")).await;
                    assert_eq!(status, 400, "{query}");
                    assert!(!page.contains("other"));
                }
                let state = &query["state"];
                let (status, page) = get(&format!("{callback}?code=c&state={state}")).await;
                assert!(status == 200 && page.contains("Done"), "{page}");
            })
            .await;
        outcome.result.unwrap();
        assert_eq!(scene.server.requests().len(), 1);
        assert!(
            outcome.prompts.contains("consent is needed again in 1h"),
            "{}",
            outcome.prompts
        );
        assert!(scene.stored().await.unwrap().refresh_token.is_none());
    }

    #[tokio::test]
    async fn the_callback_reports_a_refusal_and_a_failed_exchange() {
        for (reply, query, status) in [
            (None, "error=access_denied", 200),
            (Some(json("{}")), "code=c", 502),
        ] {
            let mut scene = Scene::new(reply).await;
            scene.listen = true;
            let outcome = scene
                .run(async move |fields, callback, _terminal| {
                    let state = &fields["state"];
                    let url = format!("{callback}?{query}&state={state}");
                    assert_eq!(get(&url).await.0, status);
                })
                .await;
            outcome.result.unwrap_err();
            assert!(scene.stored().await.is_none());
        }
    }

    #[tokio::test]
    async fn a_closed_stdin_ends_the_command_without_a_callback_listener() {
        let outcome = Scene::new([]).await.paste(&[]).await;
        assert!(matches!(outcome.result, Err(Error::NoInput)));
    }

    #[test]
    fn the_callback_listens_on_loopback_only() {
        for (uri, hosts) in [
            ("http://127.0.0.1:7777/back", 1),
            ("http://localhost:7777/back", 2),
            ("http://[::1]:7777/", 1),
            ("http://127.0.0.1/", 1),
            ("https://127.0.0.1:7777/back", 0),
            ("http://10.0.0.1:7777/back", 0),
            ("https://callback.example/", 0),
            ("urn:ietf:wg:oauth:2.0:oob", 0),
        ] {
            let addresses = callback_addresses(&uri.parse().unwrap());
            assert_eq!(addresses.len(), hosts, "{uri}");
        }
        assert_eq!(
            callback_addresses(&"http://127.0.0.1/".parse().unwrap())[0].1,
            80
        );
    }
}
