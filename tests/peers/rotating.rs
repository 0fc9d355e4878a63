//! Refresh tokens that work once, at servers that end the family when one is shown again.

use std::time::Duration;

use countersign::config::{Config, Secrets};
use countersign::store;
use serde_json::{Value, json};

use super::{Authorize, Proxy, eventually, obtained};
use crate::support::peers::rotating::{Glewlwyd, Toolkit};
use crate::support::peers::{PASTED, Pki, SECRET};

#[tokio::test]
async fn the_preset_of_a_django_vendor_logs_in_at_a_django_server() {
    let pki = Pki::new();
    let toolkit = Toolkit::start(&pki, 600);
    let origin = &toolkit.origin;
    let yaml = format!(
        "
listeners: [{{ bind: 127.0.0.1:0 }}]
admin: {{ bind: 127.0.0.1:0 }}
vendors:
  certn:
    preset: certn
    upstream: {origin}
    ca: ca.pem
    auth:
      client_credentials:
        token_url: {origin}/token/
        client_id: machine
        client_secret: {{ file: secret }}
"
    );
    let proxy = Proxy::start(pki.dir(), &yaml);
    let (status, seen) = get(&pki, &proxy, "/certn/hr/v1/whoami/").await;

    assert_eq!(
        (status, &seen["client"]),
        (200, &json!("machine")),
        "{seen}"
    );
    let call = json!({"event": "token", "grant": "client_credentials", "status": 200});
    assert_eq!(toolkit.token_calls(), [call]);
    // The login paths of that server, and what else it has at its root.
    for path in ["/token/", "/revoke_token/", "/introspect/"] {
        let (status, problem) = get(&pki, &proxy, &format!("/certn{path}")).await;
        assert_eq!((status, &problem["reason"]), (403, &json!("refused_path")));
    }
}

#[tokio::test]
async fn django_oauth_toolkit_sees_every_refresh_token_once_across_a_killed_proxy() {
    let pki = Pki::new();
    let toolkit = Toolkit::start(&pki, 3);
    let origin = &toolkit.origin;
    let server = Server {
        authorize_url: format!("{origin}/authorize/"),
        token_url: format!("{origin}/token/"),
        scope: "read",
        whoami: "/orders/hr/v1/whoami/",
        cookie: String::new(),
        addition: "",
    };
    server.survives_kills(&pki, origin).await;
    let calls = toolkit.token_calls();
    assert!(calls.iter().all(|call| call["status"] == 200), "{calls:#?}");

    // Somebody shows an old one: the server ends the family, and says so.
    server.is_told_of_a_theft(&pki, origin, "reauthorize").await;
}

#[tokio::test]
async fn glewlwyd_sees_every_refresh_token_once_across_a_killed_proxy() {
    let pki = Pki::new();
    let glewlwyd = Glewlwyd::start(&pki, 3);
    let origin = &glewlwyd.origin;
    let server = Server {
        authorize_url: format!("{origin}/api/oidc/auth"),
        token_url: format!("{origin}/api/oidc/token"),
        scope: "openid",
        whoami: "/orders/api/oidc/userinfo",
        cookie: glewlwyd.cookie.clone(),
        // What its own login page adds, and what OpenID requires of clients that request an
        // identity.
        addition: "&g_continue&nonce=n",
    };
    server.survives_kills(&pki, origin).await;
    // It ends the family as well, and gives no reason.
    server.is_told_of_a_theft(&pki, origin, "failed").await;
}

/// Where a person consents, and what proves a token good.
struct Server {
    authorize_url: String,
    token_url: String,
    scope: &'static str,
    whoami: &'static str,
    cookie: String,
    addition: &'static str,
}

impl Server {
    fn yaml(&self, origin: &str) -> String {
        let Self {
            authorize_url,
            token_url,
            scope,
            ..
        } = self;
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
        authorize_url: {authorize_url}
        token_url: {token_url}
        client_id: person
        client_secret: {{ file: secret }}
        client_auth: post
        scope: {scope}
        redirect_uri: {PASTED}
"
        )
    }

    async fn consent(&self, pki: &Pki) {
        use std::io::Write as _;

        let mut authorize = Authorize::start(pki);
        let answer = pki
            .client()
            .get(format!("{}{}", authorize.url, self.addition))
            .header("cookie", &self.cookie)
            .send()
            .await
            .unwrap();
        let location = answer
            .headers()
            .get("location")
            .map(|l| l.to_str().unwrap());
        let redirected = location.unwrap_or_default().to_owned();
        assert!(redirected.starts_with(PASTED), "{redirected}");
        writeln!(authorize.stdin, "{redirected}").unwrap();
        assert!(authorize.child.wait().unwrap().success());
    }

    async fn survives_kills(&self, pki: &Pki, origin: &str) {
        let yaml = self.yaml(origin);
        std::fs::write(pki.file("proxy.yaml"), &yaml).unwrap();
        self.consent(pki).await;
        for _ in 0..2 {
            let proxy = Proxy::start(pki.dir(), &yaml);
            // The first is the one that was stored, unless its end was near.
            for tokens in 1..=3 {
                eventually("renewed", || (obtained(&proxy) >= tokens).then_some(()));
                let (status, seen) = get(pki, &proxy, self.whoami).await;
                assert_eq!(status, 200, "{seen}");
            }
            // Dropped: killed without a chance to tidy up.
        }
    }

    /// Shows the server a refresh token that has been spent: to it, somebody has stolen the grant.
    async fn is_told_of_a_theft(&self, pki: &Pki, origin: &str, state: &str) {
        let proxy = Proxy::start(pki.dir(), &self.yaml(origin));
        let old = stored(pki).await;
        eventually("renewed", || (obtained(&proxy) >= 2).then_some(()));
        let shown = pki
            .client()
            .post(&self.token_url)
            .form(&[
                ("grant_type", "refresh_token"),
                ("refresh_token", old.as_str()),
                ("client_id", "person"),
                ("client_secret", SECRET),
            ])
            .send()
            .await
            .unwrap();
        assert_eq!(shown.status(), 400);

        let seen = || {
            let status: Value = serde_json::from_str(&proxy.admin("/status").1).unwrap();
            status["vendors"][0]["state"].as_str().unwrap().to_owned()
        };
        eventually(state, || (seen() == state).then_some(()));
        let tried = obtained(&proxy);
        eventually("over", || {
            // Access tokens of some servers outlive their family.
            let answer = proxy.raw(format!(
                "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                self.whoami
            ));
            (crate::support::status_of(&answer) == 503).then_some(())
        });
        self.consent(pki).await;
        eventually("obtained", || (obtained(&proxy) > tried).then_some(()));
        // A server whose 401 were most of its latest responses counts as one that rejects us, until
        // they are not.
        for _ in 0..100 {
            assert_eq!(get(pki, &proxy, self.whoami).await.0, 200);
            if seen() == "fresh" {
                return;
            }
        }
        panic!("{} after 100 accepted requests", seen());
    }
}

async fn stored(pki: &Pki) -> String {
    let config = Config::load(&pki.file("proxy.yaml"), Secrets::Resolve).unwrap();
    let store = store::open(&config.store);
    let grant = store.load("orders").await.unwrap().unwrap();
    grant.refresh_token.unwrap().expose().to_owned()
}

async fn get(pki: &Pki, proxy: &Proxy, path: &str) -> (u16, Value) {
    let answer = pki
        .client()
        .get(format!("http://{}{path}", proxy.data))
        .timeout(Duration::from_secs(10))
        .send()
        .await
        .unwrap();
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or_default())
}
