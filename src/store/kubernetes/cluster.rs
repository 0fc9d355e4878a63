//! Access to the API server: by a pod's service account, otherwise by a KUBECONFIG.
//!
//! Everything is read again for each request, because Kubernetes replaces a pod's token every hour.
//! From a KUBECONFIG the current context's server, token or certificate are supported; a login by a
//! command is not.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, DATE};
use http::{Method, StatusCode};
use parking_lot::Mutex;
use reqwest::{Certificate, Client, Identity, redirect};
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use crate::config;
use crate::endpoint;
use crate::secret::Secret;
use crate::store::StoreError;
use crate::tls::{self, Roots, sha256};
use crate::wording::describe;

/// The API server and our identity there.
pub(super) struct Cluster {
    source: ConfigSource,
    /// The client, with a digest of what it was made from.
    built: Mutex<Option<([u8; 32], Client)>>,
}

enum ConfigSource {
    Pod {
        /// `https://HOST:PORT`.
        server: String,
        /// Token, CA and namespace.
        account: PathBuf,
    },
    /// The files that KUBECONFIG lists; the first that exists is read.
    Kubeconfig(Vec<PathBuf>),
}

/// A response of the API server.
pub(super) struct ApiResponse {
    pub(super) status: StatusCode,
    pub(super) body: Value,
    /// Time of the response on the server's clock, in whole seconds.
    pub(super) server_time: SystemTime,
}

impl ApiResponse {
    /// Reports an unexpected response in the server's own words: they name who may not do what.
    pub(super) fn error(&self) -> StoreError {
        // The server's message repeats the status.
        let message = if self.status == StatusCode::UNAUTHORIZED {
            "the service account's token, or the login of KUBECONFIG, is not accepted"
        } else {
            self.body["message"].as_str().unwrap_or_default()
        };
        let printable = |c: char| if c.is_control() { '?' } else { c };
        let message: String = message.chars().take(300).map(printable).collect();
        error_from(format!("{}: {message}", self.status).trim_end_matches([':', ' ']))
    }
}

/// Everything one request needs.
struct Access {
    server: String,
    namespace: String,
    /// PEM; `None`: the system's roots.
    ca: Option<Vec<u8>>,
    token: Option<Secret>,
    /// Certificate and key, PEM.
    identity: Option<Secret>,
}

impl Cluster {
    pub(super) fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let source = if let Some(host) = variable("KUBERNETES_SERVICE_HOST") {
            let host = if host.contains(':') {
                format!("[{host}]")
            } else {
                host
            };
            let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
            ConfigSource::Pod {
                server: format!("https://{host}:{port}"),
                account: SERVICE_ACCOUNT.into(),
            }
        } else if let Some(files) = variable("KUBECONFIG") {
            ConfigSource::Kubeconfig(std::env::split_paths(&files).collect())
        } else {
            let home = variable("HOME").unwrap_or_default();
            ConfigSource::Kubeconfig(vec![Path::new(&home).join(".kube/config")])
        };
        Self {
            source,
            built: Mutex::new(None),
        }
    }

    /// Sends one request for the object or collection at `path` of a namespace, ours by default.
    pub(super) async fn request(
        &self,
        method: Method,
        namespace: Option<&str>,
        path: impl FnOnce(&str) -> String,
        body: Option<&Value>,
    ) -> Result<ApiResponse, StoreError> {
        let access = self.source.access().map_err(error_from)?;
        let namespace = namespace.unwrap_or(&access.namespace);
        let url = format!("{}{}", access.server, path(namespace));
        let mut request = self
            .client(&access)
            .map_err(error_from)?
            .request(method, url);
        if let Some(token) = &access.token {
            let value = token.to_header("Bearer ");
            let value = value.map_err(|_| error_from("the token cannot be sent"))?;
            request = request.header(AUTHORIZATION, value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request
            .send()
            .await
            .map_err(|error| error_from(error_chain(error)))?;
        let status = response.status();
        let date = response.headers().get(DATE);
        let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        // Not always JSON: a proxy before the API server responds in its own way.
        let body = response
            .bytes()
            .await
            .map_err(|error| error_from(error_chain(error)))?;
        Ok(ApiResponse {
            status,
            server_time: date.unwrap_or_else(SystemTime::now),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        })
    }

    /// Returns the client, made again when a CA or certificate has changed.
    fn client(&self, access: &Access) -> Result<Client, String> {
        let ca = access.ca.as_deref();
        let identity = access.identity.as_ref();
        let digest = sha256(&[
            &sha256(&[ca.unwrap_or_default()]),
            identity.map_or(&[], |identity| identity.expose().as_bytes()),
        ]);
        if let Some((built_from, client)) = &*self.built.lock()
            && *built_from == digest
        {
            return Ok(client.clone());
        }
        let roots = match ca {
            Some(pem) => {
                tls::pem::certificates(pem).map_err(|fault| format!("the cluster's CA {fault}"))?
            }
            None => Roots::system().certificates,
        };
        let usable = |der: &CertificateDer<'_>| Certificate::from_der(der).ok();
        let roots: Vec<_> = roots.iter().filter_map(usable).collect();
        let mut builder = Client::builder()
            .tls_certs_only(roots)
            .https_only(true)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("countersign/", env!("CARGO_PKG_VERSION")));
        if let Some(identity) = identity {
            // The library's error about either may repeat a line of the key.
            let pem = identity.expose().as_bytes();
            tls::pem::certificates(pem)
                .map_err(|fault| format!("the client certificate {fault}"))?;
            tls::pem::private_key(pem).map_err(|fault| format!("the client key {fault}"))?;
            let identity = Identity::from_pem(&tls::pem::unadorned(pem))
                .map_err(|_| "the client certificate or its key is not PEM".to_owned())?;
            builder = builder.identity(identity);
        }
        let client = builder.build().map_err(|_| {
            "TLS with its CA, client certificate and key cannot be set up: they are damaged or do \
             not belong together"
                .to_owned()
        })?;
        *self.built.lock() = Some((digest, client.clone()));
        Ok(client)
    }
}

impl ConfigSource {
    fn access(&self) -> Result<Access, String> {
        match self {
            Self::Pod { server, account } => {
                let namespace = read(&account.join("namespace"))?;
                Ok(Access {
                    server: server.clone(),
                    namespace: String::from_utf8_lossy(&namespace).trim().to_owned(),
                    ca: Some(read(&account.join("ca.crt"))?),
                    token: Some(text(read(&account.join("token"))?)?),
                    identity: None,
                })
            }
            Self::Kubeconfig(files) => {
                let file = files.iter().find(|file| file.exists()).ok_or(
                    "this is not a pod (KUBERNETES_SERVICE_HOST is not set), and there is no KUBECONFIG",
                )?;
                let wrong = |cause: String| format!("{}: {cause}", file.display());
                let yaml = String::from_utf8(read(file)?).unwrap_or_default();
                let config = config::yaml(&yaml).ok_or_else(|| wrong("is not YAML".to_owned()))?;
                current_context(&config, file.parent().unwrap_or(Path::new(""))).map_err(wrong)
            }
        }
    }
}

/// Reads the current context of a KUBECONFIG. Its relative paths are relative to `dir`.
fn current_context(config: &Value, dir: &Path) -> Result<Access, String> {
    let entry = |list: &str, kind: &str, name: &Value| {
        let entries = config[list].as_array().into_iter().flatten();
        let mut named = entries.filter(|entry| entry["name"] == *name);
        let found = named.next().map(|entry| entry[kind].clone());
        // Anything but a name is something in the wrong place, such as a token.
        let name = name
            .as_str()
            .unwrap_or("that its current context could use");
        found.ok_or_else(|| format!("has no {kind} `{name}`"))
    };
    let context = entry("contexts", "context", &config["current-context"])?;
    let cluster = entry("clusters", "cluster", &context["cluster"])?;
    let user = entry("users", "user", &context["user"])?;

    for (object, key) in [
        (&cluster, "insecure-skip-tls-verify"),
        (&cluster, "tls-server-name"),
        (&cluster, "proxy-url"),
        (&user, "exec"),
        (&user, "auth-provider"),
        (&user, "username"),
    ] {
        if !object[key].is_null() && object[key] != false {
            return Err(format!(
                "its current context uses `{key}`, which is not supported; a service account's \
                 token or a client certificate is"
            ));
        }
    }
    // Data in the file itself takes precedence over the name of a file.
    let content = |object: &Value, key: &str| -> Result<Option<Vec<u8>>, String> {
        if let Some(data) = object[format!("{key}-data")].as_str() {
            let bytes = BASE64_STANDARD.decode(data.trim());
            return bytes
                .map(Some)
                .map_err(|_| format!("`{key}-data` is not base64"));
        }
        object[key]
            .as_str()
            .map(|path| read(&dir.join(path)))
            .transpose()
    };
    let token = match (user["token"].as_str(), user["tokenFile"].as_str()) {
        (Some(token), _) => Some(Secret::new(token)),
        (None, Some(path)) => Some(text(read(&dir.join(path))?)?),
        (None, None) => None,
    };
    let certificate = content(&user, "client-certificate")?;
    let key = content(&user, "client-key")?;
    let identity = match (certificate, key) {
        (Some(mut pem), Some(key)) => {
            pem.push(b'\n');
            pem.extend(key);
            Some(text(pem)?)
        }
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err("one of `client-certificate` and `client-key` is missing".to_owned());
        }
    };
    let server = cluster["server"].as_str().unwrap_or_default();
    endpoint::web(server)
        .map_err(|wrong| format!("`server` of its current context {wrong}; {}", wrong.hint()))?;
    Ok(Access {
        server: server.trim_end_matches('/').to_owned(),
        namespace: context["namespace"]
            .as_str()
            .unwrap_or("default")
            .to_owned(),
        ca: content(&cluster, "certificate-authority")?,
        token,
        identity,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|cause| format!("{}: {cause}", path.display()))
}

fn text(bytes: Vec<u8>) -> Result<Secret, String> {
    String::from_utf8(bytes)
        .map(Secret::new)
        .map_err(|_| "a token or certificate is not text".to_owned())
}

fn error_from(cause: impl Into<String>) -> StoreError {
    StoreError::Remote {
        server: "the Kubernetes API".to_owned(),
        cause: describe(&cause.into()),
    }
}

/// Formats an error with its causes, which reqwest leaves out, and without the URL.
fn error_chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Directory in which every pod finds its own account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_pods_token_is_read_again_for_each_request() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("token", "one\n"),
            ("ca.crt", "PEM"),
            ("namespace", "apps\n"),
        ] {
            write(dir.path(), name, text);
        }
        let pod = ConfigSource::Pod {
            server: "https://10.0.0.1:443".to_owned(),
            account: dir.path().to_owned(),
        };
        let access = pod.access().unwrap();
        assert_eq!(access.server, "https://10.0.0.1:443");
        assert_eq!(access.namespace, "apps");
        assert_eq!(access.ca.as_deref(), Some(&b"PEM"[..]));
        assert_eq!(access.token.unwrap().expose(), "one");

        write(dir.path(), "token", "two");
        assert_eq!(pod.access().unwrap().token.unwrap().expose(), "two");
        fs::remove_file(dir.path().join("token")).unwrap();
        assert!(pod.access().err().unwrap().contains("token"));
    }

    fn kubeconfig(dir: &Path, cluster: &str, user: &str) -> Result<Access, String> {
        let yaml = format!(
            "
apiVersion: v1
kind: Config
current-context: ours
contexts:
- {{ name: other, context: {{ cluster: none, user: none }} }}
- {{ name: ours, context: {{ cluster: c, user: u, namespace: apps }} }}
clusters:
- name: c
  cluster: {{ server: \"https://api.example:6443/\", {cluster} }}
users:
- name: u
  user: {{ {user} }}
"
        );
        let file = write(dir, "kubeconfig", &yaml);
        ConfigSource::Kubeconfig(vec![dir.join("none"), file]).access()
    }

    #[test]
    fn a_kubeconfig_gives_its_current_contexts_server_and_login() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "ca.pem", "CA");
        write(dir.path(), "token", "from a file\n");
        let inline = kubeconfig(
            dir.path(),
            "certificate-authority-data: Q0E=",
            "token: t, tokenFile: token",
        )
        .unwrap();
        assert_eq!(inline.server, "https://api.example:6443");
        assert_eq!(inline.namespace, "apps");
        assert_eq!(inline.ca.as_deref(), Some(&b"CA"[..]));
        assert_eq!(inline.token.unwrap().expose(), "t");

        let files = kubeconfig(
            dir.path(),
            "certificate-authority: ca.pem",
            "tokenFile: token",
        );
        let files = files.unwrap();
        assert_eq!(files.ca.as_deref(), Some(&b"CA"[..]));
        assert_eq!(files.token.unwrap().expose(), "from a file");

        let user = "client-certificate-data: Q0VSVA==, client-key-data: S0VZ";
        let identity = kubeconfig(dir.path(), "", user).unwrap().identity;
        assert_eq!(identity.unwrap().expose(), "CERT\nKEY");
    }

    #[test]
    fn a_server_with_a_login_in_its_url_is_refused_and_not_repeated() {
        for login in ["us:hunter2@", "us:hunter2/x@", "us:6443/hunter2@"] {
            let config = serde_json::json!({
                "current-context": "c",
                "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
                "clusters": [{
                    "name": "c",
                    "cluster": { "server": format!("https://{login}api.example:6443") },
                }],
                "users": [{ "name": "u", "user": { "token": "t" } }],
            });
            let error = current_context(&config, Path::new("")).err().unwrap();
            assert!(error.contains("`server`"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_a_kubeconfig_asks_for_and_cannot_be_done_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (cluster, user, named) in [
            ("", "exec: { command: x }", "`exec`"),
            (
                "insecure-skip-tls-verify: true",
                "token: t",
                "`insecure-skip-tls-verify`",
            ),
            ("certificate-authority: no.pem", "token: t", "no.pem"),
            ("", "tokenFile: none", "none"),
            ("", "client-key-data: S0VZ", "`client-key`"),
            ("certificate-authority-data: '%'", "", "not base64"),
        ] {
            let error = kubeconfig(dir.path(), cluster, user).err().unwrap();
            assert!(error.contains(named), "{error}");
        }
        let skipped = kubeconfig(dir.path(), "insecure-skip-tls-verify: false", "token: t");
        assert!(skipped.is_ok());
        let none = ConfigSource::Kubeconfig(vec![dir.path().join("none")]).access();
        assert!(none.err().unwrap().contains("KUBECONFIG"));
    }
}
