//! The callback: a listener on loopback, and the pages it responds with.

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

/// Returns the addresses to listen on for the callback; empty if the redirect is not to loopback.
pub(super) fn addresses(redirect_uri: &Url) -> Vec<(IpAddr, u16)> {
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

/// The listener at `redirect_uri`.
pub(super) struct Callback {
    /// `true` if there is a listener.
    pub(super) listening: bool,
    /// Parameters of redirects, each with the sender for the page of the response.
    pub(super) redirects: mpsc::Receiver<(String, oneshot::Sender<Page>)>,
    stop: watch::Sender<bool>,
    serving: JoinSet<()>,
}

impl Callback {
    /// Serves `listeners`. Without any, no redirect ever arrives.
    pub(super) fn serve(listeners: Vec<TcpListener>, redirect_uri: &Url) -> Self {
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
    pub(super) async fn close_with(mut self, page: Option<oneshot::Sender<Page>>, text: Page) {
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

/// A page for the browser: constant text, with nothing from the request in it.
pub(super) type Page = (StatusCode, &'static str);

/// Maximum size of a posted form in bytes: codes of a few kilobytes occur.
const MAX_FORM: usize = 256 * 1024;
/// Number of bytes of a posted form that are read before it is refused: if the connection is closed
/// while the browser is still sending, it shows no page.
const MAX_READ: usize = 16 * MAX_FORM;

pub(super) const DONE: Page = (
    StatusCode::OK,
    "<!doctype html><title>countersign</title><p>Done. You can close this window.",
);
pub(super) const REFUSED: Page = (
    StatusCode::OK,
    "<!doctype html><title>countersign</title><p>Consent was refused. See the terminal for details.",
);
pub(super) const FAILED: Page = (
    StatusCode::BAD_GATEWAY,
    "<!doctype html><title>countersign</title><p>An error occurred. See the terminal for details.",
);
pub(super) const FOREIGN: Page = (
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
    use super::*;

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
            let addresses = addresses(&uri.parse().unwrap());
            assert_eq!(addresses.len(), hosts, "{uri}");
        }
        assert_eq!(addresses(&"http://127.0.0.1/".parse().unwrap())[0].1, 80);
    }
}
