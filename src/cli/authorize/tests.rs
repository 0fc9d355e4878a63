//! `countersign authorize` with a user, a token server and a store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;
use url::Url;

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
