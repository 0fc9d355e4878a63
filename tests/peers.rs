//! Logins against third-party servers: what they accept is not our reading of an RFC.

mod late;
mod rotating;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::{Value, json};

use crate::support::peers::{Apache, Oidc, PASTED, PROFILE, Pki, browse, free_port};
use crate::support::{Proxy, countersign, eventually};

#[tokio::test]
async fn a_secret_in_basic_is_form_encoded_as_a_certified_server_wants_it() {
    let auth = "
        client_id: by basic
        client_secret: { file: secret }
        client_auth: basic
        scope: orders:read";
    let (seen, calls) = client_credentials(auth, "").await;

    assert_eq!(seen["client"], "by basic");
    assert_eq!(seen["scope"], "orders:read");
    assert_eq!(calls, [call("by basic", "basic", Some("orders:read"))]);
}

#[tokio::test]
async fn a_secret_in_the_form_body_gets_a_token() {
    let auth = "
        client_id: post
        client_secret: { file: secret }
        client_auth: post";
    let (seen, calls) = client_credentials(auth, "").await;

    assert_eq!(seen["client"], "post");
    assert_eq!(calls, [call("post", "post", None)]);
}

#[tokio::test]
async fn a_signed_assertion_gets_a_token() {
    let auth = "
        client_id: jwt
        client_auth: private_key_jwt
        private_key: { file: assertion.key }
        key_id: key-1
        algorithm: ES256";
    let (seen, calls) = client_credentials(auth, "").await;

    assert_eq!(seen["client"], "jwt");
    assert_eq!(calls, [call("jwt", "jwt", None)]);
}

#[tokio::test]
async fn a_certificate_gets_a_token_that_is_worth_something_with_that_certificate_alone() {
    let auth = "
        client_id: tls
        client_auth: tls";
    let vendor = "client_cert: { cert: client.pem, key: client.key }";
    let (seen, calls) = client_credentials(auth, vendor).await;

    assert_eq!(seen["client"], "tls");
    // RFC 8705 §3: the API saw the certificate too.
    assert_eq!(seen["bound"], true);
    assert_eq!(calls, [call("tls", "certificate", None)]);
}

#[tokio::test]
async fn a_certificate_for_the_token_call_alone_may_be_self_signed() {
    let auth = "
        client_id: self-signed
        client_auth: tls
        client_cert: { cert: self-signed.pem, key: self-signed.key }";
    let (seen, calls) = client_credentials(auth, "").await;

    assert_eq!(seen["client"], "self-signed");
    assert_eq!(calls, [call("self-signed", "certificate", None)]);
}

/// What the API saw of a request with nothing but a path, and the token calls it took.
async fn client_credentials(auth: &str, vendor: &str) -> (Value, Vec<Value>) {
    let pki = Pki::new();
    let oidc = Oidc::start(&pki, 600);
    let origin = &oidc.origin;
    let yaml = format!(
        "
listeners: [{{ bind: 127.0.0.1:0 }}]
admin: {{ bind: 127.0.0.1:0 }}
vendors:
  orders:
    upstream: {origin}
    ca: ca.pem
    {vendor}
    auth:
      client_credentials:
        token_url: {origin}/token{auth}
"
    );
    let proxy = Proxy::start(pki.dir(), &yaml);

    let (status, seen) = whoami(&pki, &proxy).await;

    assert_eq!(status, 200, "{seen}");
    assert_eq!(
        Some(seen["others"]["host"].as_str().unwrap()),
        origin.strip_prefix("https://")
    );
    (seen, oidc.token_calls())
}

#[tokio::test]
async fn a_secret_the_server_refuses_is_not_tried_again_and_again() {
    let pki = Pki::new();
    let oidc = Oidc::start(&pki, 600);
    let origin = &oidc.origin;
    let yaml = format!(
        "
listeners: [{{ bind: 127.0.0.1:0 }}]
admin: {{ bind: 127.0.0.1:0 }}
vendors:
  orders:
    upstream: {origin}
    ca: ca.pem
    auth:
      client_credentials:
        token_url: {origin}/token
        client_id: post
        client_secret: {{ file: ca.pem }}
        client_auth: post
"
    );
    let proxy = Proxy::start(pki.dir(), &yaml);

    for _ in 0..3 {
        let (status, problem) = whoami(&pki, &proxy).await;
        assert_eq!(status, 503);
        assert_eq!(problem["reason"], "credential_unavailable");
    }

    let calls = oidc.token_calls();
    assert_eq!(calls.len(), 1, "{calls:#?}");
    assert_eq!(calls[0]["error"], "invalid_client");
}

#[tokio::test]
async fn consent_by_loopback_outlives_renewals_with_rotation_and_a_killed_proxy() {
    let pki = Pki::new();
    let oidc = Oidc::start(&pki, 4);
    let redirect = format!("http://127.0.0.1:{}/callback", free_port());
    // Without a secret, so PKCE is what protects the code.
    let yaml = consent_yaml(&oidc, "client_id: public", &redirect);
    std::fs::write(pki.file("proxy.yaml"), &yaml).unwrap();

    let mut authorize = Authorize::start(&pki);
    let callback = browse(&pki, &authorize.url, &redirect).await;
    let page = pki.client().get(callback).send().await.unwrap();
    assert_eq!(page.status(), 200);
    assert!(authorize.child.wait().unwrap().success());

    for _ in 0..2 {
        let proxy = Proxy::start(pki.dir(), &yaml);
        // The first is the one that was stored.
        for tokens in 1..=4 {
            // In use, not only asked for: what is being spent when its holder is killed is lost.
            eventually("renewed", || (obtained(&proxy) >= tokens).then_some(()));
            let (status, seen) = whoami(&pki, &proxy).await;
            assert_eq!((status, &seen["client"]), (200, &json!("public")), "{seen}");
        }
        // Dropped: killed without a chance to tidy up.
    }

    let calls = oidc.token_calls();
    let (consents, renewals): (Vec<_>, Vec<_>) = calls
        .iter()
        .partition(|call| call["grant"] == "authorization_code");
    assert_eq!((consents.len(), oidc.families_killed()), (1, 0));
    assert!(renewals.len() >= 6, "{renewals:#?}");
    for renewal in renewals {
        let plain = json!({
            "event": "token", "client": "public", "grant": "refresh_token", "auth": "none",
        });
        assert_eq!(*renewal, plain);
    }
}

#[tokio::test]
async fn consent_pasted_into_a_terminal_reaches_the_running_proxy() {
    let pki = Pki::new();
    let oidc = Oidc::start(&pki, 600);
    let client = "client_id: consent
        client_secret: { file: secret }
        client_auth: basic";
    let proxy = Proxy::start(pki.dir(), &consent_yaml(&oidc, client, PASTED));
    assert_eq!(whoami(&pki, &proxy).await.0, 503);

    let mut authorize = Authorize::start(&pki);
    let redirected = browse(&pki, &authorize.url, PASTED).await;
    writeln!(authorize.stdin, "{redirected}").unwrap();
    assert!(authorize.child.wait().unwrap().success());

    // Ten seconds are promised; `eventually` is kinder to a busy machine.
    eventually("fresh", || {
        proxy.admin("/status").1.contains("\"fresh\"").then_some(())
    });
    let (status, seen) = whoami(&pki, &proxy).await;
    assert_eq!(
        (status, &seen["client"]),
        (200, &json!("consent")),
        "{seen}"
    );
    assert_eq!(seen["scope"], "openid orders:read");
}

fn consent_yaml(oidc: &Oidc, client: &str, redirect: &str) -> String {
    let origin = &oidc.origin;
    format!(
        "
listeners: [{{ bind: 127.0.0.1:0 }}]
admin: {{ bind: 127.0.0.1:0 }}
store: {{ file: {{ dir: state }} }}
vendors:
  orders:
    upstream: {origin}
    ca: ca.pem
    auth:
      authorization_code:
        authorize_url: {origin}/auth
        token_url: {origin}/token
        scope: openid orders:read
        redirect_uri: {redirect}
        send_redirect_uri: true
        pkce: true
        {client}
"
    )
}

/// How many tokens this process has obtained and put to use.
fn obtained(proxy: &Proxy) -> u64 {
    let metrics = proxy.admin("/metrics").1;
    metrics
        .lines()
        .filter(|line| line.starts_with("countersign_credential_fetch_total{"))
        .filter(|line| line.contains("outcome=\"ok\""))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// A running `countersign authorize` that has said where to consent. Killed when dropped.
struct Authorize {
    url: String,
    child: Child,
    stdin: ChildStdin,
    // Held, or the next thing it says would end it.
    _stdout: BufReader<ChildStdout>,
}

impl Authorize {
    fn start(pki: &Pki) -> Self {
        let mut child = countersign()
            .args(["authorize", "orders", "--config"])
            .arg(pki.file("proxy.yaml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut url = String::new();
        stdout.read_line(&mut url).unwrap();
        assert!(
            url.starts_with("https://"),
            "not an address alone on its line: {url:?}"
        );
        Self {
            url: url.trim_end().to_owned(),
            child,
            stdin,
            _stdout: stdout,
        }
    }
}

impl Drop for Authorize {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_certificate_demanded_in_the_handshake_is_shown_with_the_headers_beside_it() {
    let pki = Pki::new();
    let apache = Apache::start(&pki);
    let yaml = format!(
        "
listeners: [{{ bind: 127.0.0.1:0 }}]
admin: {{ bind: 127.0.0.1:0 }}
vendors:
  orders:
    upstream: {}/private
    ca: ca.pem
    client_cert: {{ cert: client.pem, key: client.key }}
    auth:
      headers:
        login: svc-login
        customerUri: example-customer
",
        apache.origin
    );
    let proxy = Proxy::start(pki.dir(), &yaml);

    let answer = pki
        .client()
        .get(format!("http://{}/orders/api/profile", proxy.data))
        // Were it to pass, the server would refuse it beside the certificate.
        .header("password", "the caller's")
        .send()
        .await
        .unwrap();

    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text().await.unwrap(), PROFILE);
    let requests = apache.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    let fields: Vec<_> = requests[0].split('|').collect();
    assert_eq!(fields[0], "GET /private/api/profile HTTP/1.1");
    assert!(fields.contains(&"login:svc-login"), "{fields:?}");
    assert!(
        fields.contains(&"customerUri:example-customer"),
        "{fields:?}"
    );
    // The same call without the certificate ends in the handshake.
    let alone = pki
        .client()
        .get(format!("{}/private/api/profile", apache.origin))
        .send()
        .await;
    assert!(alone.is_err(), "{alone:?}");
}

async fn whoami(pki: &Pki, proxy: &Proxy) -> (u16, Value) {
    let url = format!("http://{}/orders/api/whoami", proxy.data);
    let answer = pki.client().get(url).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap())
}

/// A successful call of the token endpoint, as [`Oidc::token_calls`] tells it.
fn call(client: &str, auth: &str, scope: Option<&str>) -> Value {
    let mut call = json!({
        "event": "token", "client": client, "grant": "client_credentials", "auth": auth,
    });
    if let Some(scope) = scope {
        call["scope"] = scope.into();
    }
    call
}
