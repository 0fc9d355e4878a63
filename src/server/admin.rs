//! The admin listener: probes, metrics, `/status`, the status page, forced renewals. It never
//! serves callers' requests.
//!
//! Anyone who can connect may read it; nothing it shows is a secret. The threat is a web page in an
//! operator's browser. A page of another site cannot read what it fetches here (no CORS is
//! granted), unless its host name is made to resolve to this machine (DNS rebinding). Therefore,
//! when the listener is on loopback, every request but a probe must also use a loopback name as its
//! host.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;

use super::accept::{Bound, accept_within};
use super::admin_state::AdminState;
use super::page::events::Events;
use super::page::history::History;
use super::page::{self, PageData};
use super::status::{CircuitView, CredentialView, as_json, rfc3339, states};
use super::unix_seconds;
use crate::request::caller::{host_of, is_loopback};
use crate::tls::sha256;

/// Limit of open connections; further ones wait. It is above the number of status pages that are
/// updated live, and small enough to leave files for callers.
const MAX_CONNECTIONS: usize = 128;
/// Time limit for receiving a request's head, counted from the start of the connection or the end
/// of the previous request.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// Limit of a request's head, bytes. hyper would buffer 400 KB per connection.
const MAX_HEAD: usize = 32 * 1024;

struct Admin {
    state: Arc<AdminState>,
    /// Samples for the plots of the page.
    history: History,
    /// The open status pages.
    events: Arc<Events>,
    /// `true` when the listener is bound to loopback, so that only loopback names are accepted.
    on_loopback: bool,
    /// Once `true`, an unavailable vendor never makes the process unready.
    was_ready: AtomicBool,
}

/// Serves until the future is dropped.
pub(super) async fn serve(state: Arc<AdminState>, socket: tokio::net::TcpListener) {
    let admin = Arc::new(Admin {
        state,
        history: History::default(),
        events: Arc::new(Events::new()),
        on_loopback: socket
            .local_addr()
            .is_ok_and(|address| address.ip().to_canonical().is_loopback()),
        was_ready: AtomicBool::new(false),
    });
    let app = Router::new()
        .route("/", get(status_page))
        .route("/events", get(events))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/vendors/{name}/refresh", post(refresh))
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(admin.clone(), check_host))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(admin.clone())
        .layer(middleware::map_response(add_browser_headers));
    tokio::select! {
        () = accept(socket, app) => {}
        () = admin.history.sample(&admin.state.runtime.metrics) => {}
    }
}

/// Accepts connections within bounds, which axum's own loop lacks: anyone who reaches the listener
/// could open files until none are left for callers and vendors.
async fn accept(socket: tokio::net::TcpListener, app: Router) {
    let bound = Bound {
        most: MAX_CONNECTIONS,
        when_full: None,
        when_failed: "cannot accept a connection to the admin listener",
    };
    accept_within(bound, socket, |stream, from| {
        let service = TowerToHyperService::new(app.clone().layer(Extension(ConnectInfo(from))));
        async move {
            // An error concerns only this connection.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
    .await;
}

/// Refuses requests whose host is not a loopback name, when the listener is on loopback.
async fn check_host(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let authority = request
        .uri()
        .authority()
        .map(axum::http::uri::Authority::as_str);
    let host = authority.or_else(|| request.headers().get(header::HOST)?.to_str().ok());
    // Browsers always send a Host; without one, the request is not from a browser.
    if admin.on_loopback && host.is_some_and(|host| !is_loopback(host_of(host))) {
        let hint = "this admin listener is on loopback and accepts loopback names only: use \
                    127.0.0.1 or localhost in the address, or bind `admin` to another address\n";
        return (StatusCode::FORBIDDEN, hint).into_response();
    }
    next.run(request).await
}

/// Forbids browsers to share responses with other sites and to guess content types.
async fn add_browser_headers(mut response: Response) -> Response {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        let headers = response.headers_mut();
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn status_page(State(admin): State<Arc<Admin>>) -> Response {
    let head = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, page::POLICY.as_str()),
    ];
    let data = PageData::now(&admin.state, &admin.history);
    (head, Html(data.page())).into_response()
}

async fn events(State(admin): State<Arc<Admin>>) -> Response {
    let shared = admin.clone();
    admin
        .events
        .stream(move || PageData::now(&shared.state, &shared.history))
}

async fn not_found() -> Response {
    let pages = "This is Countersign's admin listener. It serves:\n\
        GET  /                       the status page\n\
        GET  /events                 its updates, server-sent events\n\
        GET  /livez                  200 while the process runs\n\
        GET  /readyz                 200 when ready for callers\n\
        GET  /metrics                Prometheus text\n\
        GET  /status                 vendors and credentials, JSON\n\
        POST /vendors/NAME/refresh   renew a credential now\n";
    (StatusCode::NOT_FOUND, pages).into_response()
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    if admin.state.draining.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    if admin.was_ready.load(Ordering::Acquire) {
        return "ready\n".into_response();
    }
    let waiting = admin.state.waiting_for();
    if waiting.is_empty() {
        admin.was_ready.store(true, Ordering::Release);
        return "ready\n".into_response();
    }
    let body = format!("waiting for {}\n", waiting.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let runtime = &admin.state.runtime;
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    let text = runtime.metrics.scrape(|| {
        let words = states();
        for view in &runtime.view.load().vendors {
            let CredentialView { word, status, .. } = CredentialView::of(view);
            let expires = status.and_then(|status| status.expires_at);
            let expires = expires.map(unix_seconds);
            let name = &view.vendor.name;
            runtime.metrics.set_credential(name, &words, word, expires);
            let open = CircuitView::of(&view.vendor).word;
            runtime
                .metrics
                .set_breaker(name, matches!(open, "open" | "half_open"));
        }
    });
    (kind, text).into_response()
}

async fn status(State(admin): State<Arc<Admin>>) -> Response {
    let state = &admin.state;
    let view = state.runtime.view.load();
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started": rfc3339(state.started),
        "config": {
            "sha256": view.sha256,
            "loaded": rfc3339(view.loaded),
            "last_error": state.runtime.last_error.load().as_deref(),
        },
        "vendors": view.vendors.iter().map(|view| as_json(view)).collect::<Vec<_>>(),
    });
    let fresh = [(header::CACHE_CONTROL, "no-store")];
    (fresh, Json(body)).into_response()
}

async fn refresh(
    State(admin): State<Arc<Admin>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    // A page in an operator's browser can reach loopback, too.
    let from_page = headers.contains_key(header::ORIGIN)
        || headers
            .get("sec-fetch-site")
            .is_some_and(|site| site != "none");
    let permitted = match admin.state.key {
        Some(digest) if !from.ip().to_canonical().is_loopback() => has_key(&headers, digest),
        Some(_) => true,
        None => from.ip().to_canonical().is_loopback(),
    };
    if from_page || !permitted {
        let hint =
            "only from loopback, or with admin.key as a bearer token; never from a web page\n";
        return (StatusCode::FORBIDDEN, hint).into_response();
    }
    let view = admin.state.runtime.view.load();
    let Some(view) = view.vendors.iter().find(|view| *view.vendor.name == *name) else {
        return (StatusCode::NOT_FOUND, "no such vendor\n").into_response();
    };
    let Some(credential) = &view.credential else {
        return (StatusCode::CONFLICT, "this vendor has no credential\n").into_response();
    };
    credential.refresh_now();
    (StatusCode::ACCEPTED, "renewal requested\n").into_response()
}

/// Tells whether the request carries the admin key. Digests are compared, so that timing reveals
/// nothing about the key.
fn has_key(headers: &HeaderMap, digest: [u8; 32]) -> bool {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .is_some_and(|key| sha256(&[key.trim().as_bytes()]) == digest)
}
