//! The part of a Kubernetes API server that a store needs: Secrets and Leases of one namespace,
//! over TLS, with a service account's token and its rights.
//!
//! As the real one does, it numbers every change (`resourceVersion`), refuses an update of
//! anything but the newest version, checks names and contents, and says no in a `Status` object.
//! `kubernetes/recorded.json` holds a real one's answers, and a test compares.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{Request, Response, StatusCode, header};
use axum::routing::any;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::peers::Pki;

/// A running API server. Gone when dropped.
pub struct Kubernetes {
    /// For `KUBECONFIG`.
    pub kubeconfig: PathBuf,
    server: Arc<Mutex<Server>>,
    accepting: JoinHandle<()>,
}

/// The only namespace.
pub const NAMESPACE: &str = "apps";
const TOKEN: &str = "token-of-the-service-account";

#[derive(Default)]
struct Server {
    /// By plural and name.
    objects: BTreeMap<(String, String), Value>,
    changes: u64,
    /// What the service account may not do: verb and plural.
    forbidden: BTreeSet<(String, String)>,
    /// Every request: verb, plural, status.
    told: Vec<String>,
    /// So many updates of Secrets find that somebody else was faster.
    overtaken: u32,
    down: bool,
}

impl Kubernetes {
    /// Starts it with `pki`'s server certificate, and writes a KUBECONFIG into `pki`'s directory.
    pub async fn start(pki: &Pki) -> Self {
        countersign::tls::install_provider();
        let certificate = CertificateDer::from_pem_file(pki.file("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(pki.file("server.key")).unwrap();
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Arc::new(Mutex::new(Server {
            // A real one has made many before anybody asks.
            changes: 100,
            ..Server::default()
        }));
        let router = Router::new()
            .fallback(any(serve))
            .with_state(server.clone());
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, router) = (acceptor.clone(), router.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = TowerToHyperService::new(router);
                    let connection = hyper::server::conn::http1::Builder::new();
                    // Clients are killed in the middle of it.
                    let _ = connection
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        let kubeconfig = pki.file("kubeconfig");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{ "name": "test", "context":
                { "cluster": "test", "user": "test", "namespace": NAMESPACE } }],
            "clusters": [{ "name": "test", "cluster":
                { "server": format!("https://localhost:{port}"), "certificate-authority": "ca.pem" } }],
            "users": [{ "name": "test", "user": { "token": TOKEN } }],
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        Self {
            kubeconfig,
            server,
            accepting,
        }
    }

    /// The object; `plural` is `secrets` or `leases`.
    pub fn object(&self, plural: &str, name: &str) -> Option<Value> {
        let key = (plural.to_owned(), name.to_owned());
        self.server.lock().unwrap().objects.get(&key).cloned()
    }

    /// Its response to `account`, or to anybody else: status and body.
    pub fn ask(&self, who: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        let known = (who == "account").then_some(true);
        let (_, answer) = self
            .server
            .lock()
            .unwrap()
            .answer(method, path, body, known);
        answer
    }

    /// Makes an empty Secret, as an administrator would.
    pub fn create_secret(&self, name: &str) {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": { "name": name },
        });
        let mut server = self.server.lock().unwrap();
        server.store("secrets", name, secret);
    }

    /// Removes everything, as an administrator should not.
    pub fn clear(&self) {
        self.server.lock().unwrap().objects.clear();
    }

    /// Takes the right to `verb` on `plural` away, or gives it back.
    pub fn forbid(&self, verb: &str, plural: &str, forbidden: bool) {
        let right = (verb.to_owned(), plural.to_owned());
        let mut server = self.server.lock().unwrap();
        if forbidden {
            server.forbidden.insert(right);
        } else {
            server.forbidden.remove(&right);
        }
    }

    /// Lets another writer be faster at each of the next `count` updates of Secrets.
    pub fn overtake(&self, count: u32) {
        self.server.lock().unwrap().overtaken = count;
    }

    /// Answers nothing but 503 from now on, or again as it should.
    pub fn set_down(&self, down: bool) {
        self.server.lock().unwrap().down = down;
    }

    /// What it was asked so far and what it answered: `GET secrets 404`.
    pub fn told(&self) -> Vec<String> {
        self.server.lock().unwrap().told.clone()
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        self.accepting.abort();
        let told = self.told();
        let last = &told[told.len().saturating_sub(50)..];
        println!("--- the API server told last: {last:#?}");
    }
}

async fn serve(State(server): State<Arc<Mutex<Server>>>, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap_or_default();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let token = head.headers.get(header::AUTHORIZATION);
    let known = token.map(|token| token == &format!("Bearer {TOKEN}"));
    let (status, answer) = {
        let mut server = server.lock().unwrap();
        let (plural, answer) = server.answer(head.method.as_str(), head.uri.path(), body, known);
        let (status, _) = &answer;
        let line = format!("{} {plural} {status}", head.method);
        server.told.push(line);
        answer
    };
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header("content-type", "application/json")
        .body(Body::from(answer.to_string()))
        .unwrap()
}

impl Server {
    /// `known`: whether the token is ours; `None`: there was none.
    fn answer(
        &mut self,
        method: &str,
        path: &str,
        body: Value,
        known: Option<bool>,
    ) -> (String, (u16, Value)) {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (plural, namespace, name) = match parts.as_slice() {
            ["api", "v1", "namespaces", namespace, "secrets", name @ ..] => {
                ("secrets", *namespace, name.first().copied())
            }
            [
                "apis",
                "coordination.k8s.io",
                "v1",
                "namespaces",
                namespace,
                "leases",
                name @ ..,
            ] => ("leases", *namespace, name.first().copied()),
            _ => return (path.to_owned(), no(404, "NotFound", "no such resource")),
        };
        let answer = self.act(method, plural, namespace, name, body, known);
        (plural.to_owned(), answer)
    }

    #[expect(
        clippy::too_many_lines,
        reason = "one question after the other, as the real one asks them"
    )]
    fn act(
        &mut self,
        method: &str,
        plural: &str,
        namespace: &str,
        name: Option<&str>,
        body: Value,
        known: Option<bool>,
    ) -> (u16, Value) {
        if self.down {
            return no(
                503,
                "ServiceUnavailable",
                "the server is currently unable to handle it",
            );
        }
        let account = format!("system:serviceaccount:{NAMESPACE}:countersign");
        let user = match known {
            Some(true) => account.as_str(),
            Some(false) => return no(401, "Unauthorized", "Unauthorized"),
            None => "system:anonymous",
        };
        let verb = match (method, name) {
            ("GET", Some(_)) => "get",
            ("POST", None) => "create",
            ("PUT", Some(_)) => "update",
            // Not needed here, so not granted.
            ("DELETE", Some(_)) => "delete",
            _ => return no(405, "MethodNotAllowed", "not needed here"),
        };
        let (group, resource, kind) = if plural == "secrets" {
            ("", "secrets".to_owned(), "Secret")
        } else {
            let group = "coordination.k8s.io";
            (group, format!("{plural}.{group}"), "Lease")
        };
        let right = (verb.to_owned(), plural.to_owned());
        if known.is_none()
            || verb == "delete"
            || namespace != NAMESPACE
            || self.forbidden.contains(&right)
        {
            let which = name.map_or(resource.clone(), |name| format!("{resource} \"{name}\""));
            let message = format!(
                "{which} is forbidden: User \"{user}\" cannot {verb} resource \"{plural}\" in API \
                 group \"{group}\" in the namespace \"{namespace}\""
            );
            return no(403, "Forbidden", &message);
        }
        let own_name = body["metadata"]["name"].as_str().unwrap_or_default();
        let key = (plural.to_owned(), name.unwrap_or(own_name).to_owned());
        let name = key.1.as_str();
        let there = self.objects.get(&key).cloned();
        let missing = || no(404, "NotFound", &format!("{resource} \"{name}\" not found"));
        if verb == "get" {
            return there.map_or_else(missing, |object| (200, object));
        }

        if let Err(wrong) = decodes(plural, kind, &body) {
            return no(400, "BadRequest", &wrong);
        }
        if own_name != name {
            let message = format!(
                "the name of the object ({own_name}) does not match the name on the URL ({name})"
            );
            return no(400, "BadRequest", &message);
        }
        let version = &body["metadata"]["resourceVersion"];
        if verb == "create" && !version.is_null() {
            let message = "resourceVersion should not be set on objects to be created";
            return no(500, "", message);
        }
        let Some(mut there) = there else {
            // A Lease, unlike a Secret, is made by an update as well.
            return if verb == "update" && plural == "secrets" {
                missing()
            } else if let Err(wrong) = check(plural, &body) {
                no(422, "Invalid", &wrong)
            } else {
                (201, self.store(plural, name, body))
            };
        };
        if verb == "create" {
            let message = format!("{resource} \"{name}\" already exists");
            return no(409, "AlreadyExists", &message);
        }
        if plural == "secrets" && self.overtaken > 0 {
            self.overtaken -= 1;
            there["metadata"]["annotations"]["example.com/overtaken"] = json!("yes");
            there = self.store(plural, name, there);
        }
        // A Secret, unlike a Lease, may be replaced whatever it is.
        if version.is_null() && plural == "leases" {
            let message = format!(
                "{resource} \"{name}\" is invalid: metadata.resourceVersion: Invalid value: 0x0: \
                 must be specified for an update"
            );
            return no(422, "Invalid", &message);
        }
        if !version.is_null() && *version != there["metadata"]["resourceVersion"] {
            let message = format!(
                "Operation cannot be fulfilled on {resource} \"{name}\": the object has been \
                 modified; please apply your changes to the latest version and try again"
            );
            return no(409, "Conflict", &message);
        }
        if let Err(wrong) = check(plural, &body) {
            return no(422, "Invalid", &wrong);
        }
        if plural == "secrets" && body["type"] != there["type"] {
            let message = format!(
                "Secret \"{name}\" is invalid: type: Invalid value: {}: field is immutable",
                body["type"]
            );
            return no(422, "Invalid", &message);
        }
        (200, self.store(plural, name, body))
    }

    fn store(&mut self, plural: &str, name: &str, mut object: Value) -> Value {
        self.changes += 1;
        object["metadata"]["namespace"] = NAMESPACE.into();
        let uid = format!("00000000-0000-4000-8000-{:012}", self.changes);
        let before = self.objects.get(&(plural.to_owned(), name.to_owned()));
        for (field, made) in [
            ("uid", uid.as_str()),
            ("creationTimestamp", "2026-01-01T00:00:00Z"),
        ] {
            let kept = before.map(|before| before["metadata"][field].clone());
            object["metadata"][field] = kept.unwrap_or_else(|| made.into());
        }
        object["metadata"]["resourceVersion"] = self.changes.to_string().into();
        self.objects
            .insert((plural.to_owned(), name.to_owned()), object.clone());
        object
    }
}

/// Whether it is an object of that kind at all.
fn decodes(plural: &str, kind: &str, object: &Value) -> Result<(), String> {
    let is = object["kind"].as_str().unwrap_or_default();
    let wrong = Err(format!(
        "{is} in version \"v1\" cannot be handled as a {kind}: "
    ));
    let version = if plural == "secrets" {
        "v1"
    } else {
        "coordination.k8s.io/v1"
    };
    if is != kind || object["apiVersion"] != version {
        return wrong;
    }
    for value in object["data"].as_object().into_iter().flat_map(Map::values) {
        let bytes = value.as_str().map(|text| BASE64_STANDARD.decode(text));
        if !matches!(bytes, Some(Ok(_))) {
            return wrong;
        }
    }
    for time in ["acquireTime", "renewTime"] {
        // A MicroTime: exactly six digits behind the point.
        let fits = |text: &str| text.len() == 27 && humantime::parse_rfc3339(text).is_ok();
        let time = &object["spec"][time];
        if !time.is_null() && !time.as_str().is_some_and(fits) {
            return wrong;
        }
    }
    Ok(())
}

/// What the real one would refuse in an object of the right kind.
fn check(plural: &str, object: &Value) -> Result<(), String> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let kind = if plural == "secrets" {
        "Secret"
    } else {
        "Lease.coordination.k8s.io"
    };
    let wrong = |what: String| Err(format!("{kind} \"{name}\" is invalid: {what}"));
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label = |text: &str| {
        !text.is_empty() && text.chars().all(word) && !text.starts_with('-') && !text.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return wrong(format!("metadata.name: Invalid value: {name:?}: "));
    }
    for key in object["data"].as_object().into_iter().flat_map(Map::keys) {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if key.is_empty() || !key.chars().all(fits) {
            return wrong(format!("data[{key}]: Invalid value: {key:?}: "));
        }
    }
    let spec = &object["spec"];
    for (field, least, said) in [
        ("leaseDurationSeconds", 1, "must be greater than 0"),
        ("leaseTransitions", 0, "must to greater or equal than 0"),
    ] {
        if let Some(number) = spec[field].as_i64()
            && number < least
        {
            return wrong(format!("spec.{field}: Invalid value: {number}: {said}"));
        }
    }
    // Newer ones than the one that was recorded refuse this, too.
    if spec["holderIdentity"] == "" {
        return wrong("spec.holderIdentity: Invalid value: \"\": must not be empty".to_owned());
    }
    Ok(())
}

fn no(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "code": code,
    });
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    (code, status)
}
