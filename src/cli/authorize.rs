//! `countersign authorize`: one person's consent, once, for a vendor that wants it.
//!
//! The redirect is taken from a callback on loopback, when that is where it goes, and at the same
//! time from what is pasted: the browser may be on another machine than this terminal.

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

use super::progress;
use super::terminal::Input;
use crate::config::{self, Auth, Config};
use crate::credential::consent::{Consent, Granted, Redirect};
use crate::secret::Secret;
use crate::store::{self, StoreError};

/// Why no consent was stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No such vendor.
    #[error("there is no vendor \"{name}\" in the configuration; those that need consent: {known}")]
    NoVendor {
        /// What was asked for.
        name: String,
        /// Vendors with `authorization_code`.
        known: String,
    },
    /// A vendor whose credential needs no consent.
    #[error(
        "vendors.{vendor} has auth {kind}; only authorization_code needs a person's consent; \
         `countersign probe {vendor}` tells whether its credential can be had"
    )]
    NothingToConsent {
        /// The vendor.
        vendor: String,
        /// Its `auth`.
        kind: &'static str,
    },
    /// Tokens could not be stored; nobody was asked.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The URL cannot be made.
    #[error("{0}")]
    Url(String),
    /// stdin ended, and no callback can come.
    #[error(
        "stdin was closed before a redirect was pasted; run it again and paste the address that \
         the browser was sent to"
    )]
    NoInput,
    /// Pasted from another consent than the one asked for.
    #[error(
        "the state in it is not the one of this request: nothing was exchanged; run it again and \
         open the address it prints then"
    )]
    WrongState,
    /// From another server than the one that was asked.
    #[error(
        "it names the issuer {found} and not {wanted}: nothing was exchanged; if this is what your \
         vendor calls itself, write `issuer: {found}` beside `authorize_url`"
    )]
    OtherIssuer {
        /// What the redirect says.
        found: String,
        /// What it has to say.
        wanted: String,
    },
    /// The server or the person said no.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The code was not exchanged, or what came could not be stored.
    #[error("{0}")]
    Exchange(String),
    /// The terminal went away.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Asks for consent to `vendor`'s `authorization_code` and stores what comes of it. With
/// `no_state`, a redirect without `state` is accepted unasked; a wrong one never is.
///
/// # Errors
/// [`Error`]; nothing is stored then.
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
    progress::shown("trying the store", consent.prepare()).await?;

    let mut prompts = io::stderr();
    let mut listeners = Vec::new();
    for address in callback_addresses(auth.redirect_uri.url()) {
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            Err(cause) => writeln!(
                prompts,
                "No callback at {}: {cause}",
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
    conversation.hold(callback, &mut input.lines).await
}

/// What is said, and to whom.
struct Conversation<Results, Prompts> {
    consent: Consent,
    /// As it is written in the configuration.
    redirect_uri: String,
    no_state: bool,
    vendor: String,
    results: Results,
    prompts: Prompts,
}

impl<Results: Write, Prompts: Write> Conversation<Results, Prompts> {
    async fn hold(
        &mut self,
        mut callback: Callback,
        lines: &mut mpsc::Receiver<String>,
    ) -> Result<(), Error> {
        let url = self.consent.url().map_err(Error::Url)?;
        writeln!(self.prompts, "Open this address in a browser and consent:")?;
        writeln!(self.results, "{url}")?;
        self.results.flush()?;
        let where_to = if callback.listening {
            "Waiting for the browser to come back. If it cannot reach this machine, paste the \
             address it was sent to here:"
        } else {
            "Then paste the address the browser was sent to, or the code in it:"
        };
        writeln!(self.prompts, "{where_to}")?;

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
                        | Redirect::Nothing) => {
                            let _ = page.send(FOREIGN);
                            writeln!(
                                self.prompts,
                                "A redirect that does not belong to this request was ignored."
                            )?;
                            if let Redirect::OtherIssuer(found) = foreign {
                                let wanted = self.consent.issuer();
                                let error = Error::OtherIssuer { found, wanted };
                                writeln!(self.prompts, "It has our state, but {error}.")?;
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
                                "There is no state in it, so nothing proves that it is the answer \
                                 to this very request. Type yes to use it all the same:"
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
                        Redirect::Nothing => {
                            writeln!(self.prompts, "There is no code in it. Paste another one:")?;
                        }
                    }
                }
                else => break,
            }
        }
        Err(Error::NoInput)
    }

    /// The whole address, with or without its scheme, its query, or the code alone; in the quotes or
    /// brackets that it was copied with.
    fn pasted(&self, line: &str) -> Redirect {
        let line = bare(line);
        let (before, fragment) = line.split_once('#').unwrap_or((line, ""));
        let (address, query) = before.split_once('?').unwrap_or((before, ""));
        let alone = if address.contains("://") { "" } else { address };
        for form in [query, fragment, alone] {
            if form.contains("code=") || form.contains("error=") {
                return self.consent.read(form);
            }
        }
        let ours = self.redirect_uri.split_once("://");
        let ours = ours.is_some_and(|(_, address)| line.starts_with(address));
        if line.is_empty() || line.contains("://") || ours || line.contains(char::is_whitespace) {
            return Redirect::Nothing;
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
        let outcome = progress::shown("exchanging the code", exchange).await;
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
                "The server gave no refresh token: consent is needed again in {}.",
                humantime::format_duration(lifetime)
            )?;
        }
        Ok(())
    }
}

/// The page a browser is shown; nothing in it comes from anywhere but here.
type Page = (StatusCode, &'static str);

/// Listens where the redirect goes.
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
            let app = Router::new().fallback(answer).with_state(shared.clone());
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

    /// Shows the last page, and gives the browser a moment to have it.
    async fn close_with(mut self, page: Option<oneshot::Sender<Page>>, text: Page) {
        if let Some(page) = page {
            let _ = page.send(text);
        }
        // Further redirects find nobody.
        self.redirects.close();
        let _ = self.stop.send(true);
        let all = async { while self.serving.join_next().await.is_some() {} };
        let _ = timeout(Duration::from_secs(2), all).await;
    }
}

type Shared = Arc<(String, mpsc::Sender<(String, oneshot::Sender<Page>)>)>;

/// Takes a redirect, or the form that a page of the server posts in its place (OAuth 2.0 Form Post
/// Response Mode §2).
async fn answer(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> (StatusCode, Html<&'static str>) {
    let (path, redirects) = &*shared;
    if uri.path() != path {
        return (StatusCode::NOT_FOUND, Html("Nothing here."));
    }
    let parameters = match method {
        Method::GET => uri.query().unwrap_or_default().to_owned(),
        Method::POST if is_form(&headers) => match to_bytes(body, READ_OF_FORM).await {
            Ok(body) if body.len() <= LONGEST_FORM => String::from_utf8_lossy(&body).into_owned(),
            Ok(_) | Err(_) => return (StatusCode::PAYLOAD_TOO_LARGE, Html("Too long.")),
        },
        Method::POST => return (StatusCode::UNSUPPORTED_MEDIA_TYPE, Html("Not a form.")),
        _ => return (StatusCode::METHOD_NOT_ALLOWED, Html("Not here.")),
    };
    let (page, shown) = oneshot::channel();
    let (status, text) = match redirects.send((parameters, page)).await {
        Ok(()) => shown.await.unwrap_or(LATE),
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

/// `line` without what it was copied with: quotes, brackets, white space.
fn bare(line: &str) -> &str {
    let mut line = line.trim();
    while let Some(inner) = PAIRS
        .iter()
        .find_map(|(open, close)| line.strip_prefix(*open)?.strip_suffix(*close))
    {
        line = inner.trim();
    }
    line
}

/// What stands around an address in a chat, a mail or a shell.
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

/// Bytes of a posted form: codes of a few kilobytes occur.
const LONGEST_FORM: usize = 256 * 1024;
/// Bytes of a posted form that are read before it is refused: a connection that is closed while its
/// browser still sends shows no page.
const READ_OF_FORM: usize = 16 * LONGEST_FORM;

const NO_ISSUER: &str = "It names no issuer (`iss`), and `issuer` in the configuration asks for one: \
                         if the server sends none, remove `issuer`.";

/// Where a callback can be taken; empty: the redirect goes elsewhere.
fn callback_addresses(redirect_uri: &Url) -> Vec<(IpAddr, u16)> {
    let Some(port) = redirect_uri.port_or_known_default() else {
        return Vec::new();
    };
    let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
    let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
    let hosts = match redirect_uri.host() {
        // Over TLS we would need a certificate the browser believes.
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
    "<!doctype html><title>countersign</title><p>Consent was refused. The terminal says more.",
);
const FAILED: Page = (
    StatusCode::BAD_GATEWAY,
    "<!doctype html><title>countersign</title><p>That did not work. The terminal says why.",
);
const FOREIGN: Page = (
    StatusCode::BAD_REQUEST,
    "<!doctype html><title>countersign</title><p>This does not answer the request that is \
     waiting. Use the address in the terminal.",
);
const LATE: Page = (
    StatusCode::GONE,
    "<!doctype html><title>countersign</title><p>Nobody is waiting for this any more.",
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

    /// A person at a terminal, a token server and a store.
    struct Scene {
        server: TokenServer,
        dir: TempDir,
        no_state: bool,
        pkce: bool,
        listen: bool,
        issuer: Option<String>,
    }

    /// What a run of the command came to.
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

        /// Runs the command; `person` gets the printed URL's parameters, the callback's address
        /// and the terminal.
        async fn run<F: Future<Output = ()> + Send + 'static>(
            &self,
            person: impl FnOnce(HashMap<String, String>, String, mpsc::Sender<String>) -> F,
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
            consent.prepare().await.unwrap();
            let url = consent.url().unwrap();
            let (terminal, mut lines) = mpsc::channel(8);
            let query = url.query_pairs().into_owned().collect();
            let person = tokio::spawn(person(query, redirect_uri, terminal));
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
            let held = conversation.hold(callback, &mut lines);
            let result = timeout(Duration::from_secs(20), held)
                .await
                .expect("it hangs");
            person.await.unwrap();
            assert_eq!(String::from_utf8_lossy(&results), format!("{url}\n"));
            Outcome {
                result,
                printed: url.to_string(),
                prompts: String::from_utf8(prompts).unwrap(),
            }
        }

        /// Runs the command with a person who pastes these lines and then closes stdin; `{state}`
        /// in them is this request's.
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
        let answer = client.get(url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
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

        let sent: HashMap<_, _> = scene.server.seen()[0].form().into_iter().collect();
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
        assert!(!scene.server.seen()[0].body.contains("code_verifier"));
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
        assert!(scene.server.seen().is_empty());
        assert!(scene.stored().await.is_none());
    }

    #[tokio::test]
    async fn a_missing_state_wants_a_typed_yes_or_the_option() {
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
            assert_eq!(scene.server.seen().len(), usize::from(exchanged));
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
    async fn a_code_the_server_does_not_take_stores_nothing() {
        let refusal = r#"{"error":"invalid_grant","error_description":"code c-hunter2 is old"}"#;
        let scene = Scene::new([crate::credential::fakes::answer("400 Bad", "", refusal)]).await;
        let outcome = scene.paste(&["?code=c-hunter2&state={state}"]).await;
        let text = outcome.result.unwrap_err().to_string();
        assert!(
            text.contains("invalid_grant") && !text.contains("hunter2"),
            "{text}"
        );
        assert!(scene.stored().await.is_none());
    }

    #[tokio::test]
    async fn the_callback_takes_only_the_answer_to_this_request() {
        let mut scene = Scene::new([json(r#"{"access_token":"a","expires_in":3600}"#)]).await;
        scene.listen = true;
        let outcome = scene
            .run(async |query, callback, terminal| {
                // stdin is closed: only the callback is left.
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
        assert_eq!(scene.server.seen().len(), 1);
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
    async fn stdin_that_is_closed_ends_it_when_no_callback_can_come() {
        let outcome = Scene::new([]).await.paste(&[]).await;
        assert!(matches!(outcome.result, Err(Error::NoInput)));
    }

    #[test]
    fn a_callback_is_taken_on_loopback_only() {
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
