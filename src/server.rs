//! From a configuration to a running proxy and to its end: sockets, certificates, tasks, drain.

pub mod accept;
pub mod admin;
pub mod live;
pub mod logs;
mod preamble;
mod tls;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use pingora::apps::{HttpServerOptions, ServerApp};
use pingora::listeners::tls::TlsSettings;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::accept::Door;
use self::live::Live;
use self::logs::AccessLog;
use self::tls::ListenerCertificates;
use crate::config::{self, Config};
use crate::credential;
use crate::metrics::Metrics;
use crate::request::Proxy;

/// Why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken, not ours, or needs rights we lack.
    #[error("cannot listen on {address}: {cause}")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A certificate, key or CA file.
    #[error("{place}: {cause}")]
    Tls {
        /// Where the configuration names it.
        place: String,
        /// What is wrong with it.
        cause: crate::tls::Error,
    },
    /// A caller's key.
    #[error("callers.{caller}.api_key: {cause}")]
    Caller {
        /// The caller.
        caller: String,
        /// What is wrong with it.
        cause: config::secret_ref::SecretError,
    },
    /// A vendor's credential.
    #[error("vendors.{vendor}.auth: {cause}")]
    Credential {
        /// The vendor.
        vendor: String,
        /// What is wrong with it.
        cause: credential::StartError,
    },
    /// The place where refresh tokens live.
    #[error("store: {0}")]
    Store(String),
    /// The system refused a thread or a socket option.
    #[error("the system refused a resource: {0}")]
    System(#[from] std::io::Error),
}

/// A running proxy.
pub struct Running {
    /// Where callers connect, in the configuration's order, ports as bound.
    pub listeners: Vec<SocketAddr>,
    /// Where operators connect.
    pub admin: SocketAddr,
    drain: config::Drain,
    draining: Arc<AtomicBool>,
    serving: Arc<AtomicUsize>,
    access_log: Option<AccessLog>,
    stop: watch::Sender<bool>,
    app: Arc<HttpProxy<Proxy>>,
    accepting: Vec<JoinHandle<()>>,
    background: [JoinHandle<()>; 2],
    live: Arc<Live>,
}

/// Starts a proxy on the current runtime. Every socket is bound when this returns.
///
/// # Errors
/// [`StartError`]; nothing keeps running then.
///
/// # Panics
/// Outside a tokio runtime.
pub fn start(config: Config) -> Result<Running, StartError> {
    crate::tls::install_provider();
    let data = config
        .listeners
        .iter()
        .map(|listener| bind(listener.bind))
        .collect::<Result<Vec<_>, _>>()?;
    let (admin_socket, admin_address) = bind(config.admin.bind)?;

    let metrics = Arc::new(Metrics::new());
    let access_log = config.access_log.then(AccessLog::to_stdout).transpose()?;
    let certificates = config
        .listeners
        .iter()
        .enumerate()
        .map(|(index, listener)| match &listener.tls {
            None => Ok(None),
            Some(_) => ListenerCertificates::start(listener, &metrics)
                .map(|certificates| Some(Arc::new(certificates)))
                .map_err(|cause| StartError::Tls {
                    place: format!("listeners[{index}].tls"),
                    cause,
                }),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let (threads, drain, ready_when, key) = (
        config.threads,
        config.drain,
        config.admin.ready_when,
        config.admin.key,
    );
    let doors: Vec<_> = config
        .listeners
        .iter()
        .map(|listener| (listener.h2c, listener.proxied_by.clone()))
        .collect();
    let live = Arc::new(Live::start(config, metrics, certificates.clone())?);
    let draining = Arc::new(AtomicBool::new(false));
    let serving = Arc::new(AtomicUsize::new(0));
    let proxy = Proxy {
        snapshot: live.snapshot.clone(),
        serving: serving.clone(),
        draining: draining.clone(),
        access_log: access_log.clone(),
    };

    let app = Arc::new(app(proxy, threads));
    let (stop, stopping) = watch::channel(false);
    let mut listeners = Vec::new();
    let mut accepting = Vec::new();
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let most = accept::connections_each(files, data.len());
    let sockets = data.into_iter().zip(certificates).zip(doors);
    for (index, (((socket, address), certificates), (h2c, proxied_by))) in sockets.enumerate() {
        let tls = certificates
            .map(tls::settings)
            .transpose()
            .map_err(|cause| StartError::Tls {
                place: format!("listeners[{index}].tls"),
                cause,
            })?
            .map(TlsSettings::build);
        tracing::info!(%address, tls = tls.is_some(), "listening");
        let door = Arc::new(Door {
            app: app.clone(),
            tls,
            h2c,
            proxied_by,
        });
        let socket = tokio::net::TcpListener::from_std(socket)?;
        accepting.push(tokio::spawn(accept::accept(
            door,
            socket,
            stopping.clone(),
            most,
        )));
        listeners.push(address);
    }

    let console = admin::Console {
        live: live.clone(),
        draining: draining.clone(),
        ready_when,
        key,
        started: SystemTime::now(),
    };
    admin_socket.set_nonblocking(true)?;
    let admin_socket = tokio::net::TcpListener::from_std(admin_socket)?;
    let admin_task = tokio::spawn(admin::serve(console, admin_socket));
    tracing::info!(address = %admin_address, "admin");

    let watching = live.clone();
    let watcher = tokio::spawn(async move { watching.watch().await });

    Ok(Running {
        listeners,
        admin: admin_address,
        drain,
        draining,
        serving,
        access_log,
        stop,
        app,
        accepting,
        background: [admin_task, watcher],
        live,
    })
}

impl Running {
    /// Reads the configuration again and takes it into use, whole or not at all. The outcome is
    /// logged, counted and shown in `/status`.
    pub async fn reload(&self) {
        self.live.reload().await;
    }

    /// Drains and stops: turns unready, takes new connections for `drain.delay`, then none, and
    /// gives requests in flight `drain.timeout`. Returns as soon as nothing is being served.
    pub async fn stop(self) {
        self.draining.store(true, Ordering::Release);
        tracing::info!(delay = ?self.drain.delay, "draining");
        tokio::time::sleep(self.drain.delay).await;
        let timeout = self.drain.timeout;
        self.stop_now(timeout).await;
    }

    /// Takes no more connections and gives requests in flight `timeout`.
    pub async fn stop_now(self, timeout: Duration) {
        self.draining.store(true, Ordering::Release);
        // No receiver: every listener has ended already.
        let _ = self.stop.send(true);
        let deadline = tokio::time::Instant::now() + timeout;
        for listener in self.accepting {
            let _ = tokio::time::timeout_at(deadline, listener).await;
        }
        // Ends connections between two requests.
        self.app.cleanup().await;
        while self.serving.load(Ordering::Acquire) > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let left = self.serving.load(Ordering::Acquire);
        if left > 0 {
            tracing::warn!(left, "drain.timeout is over: requests are cut off");
        }
        for task in self.background {
            task.abort();
        }
        self.live.stop().await;
        credential::answers_are_stored(ANSWER_TIME).await;
        if let Some(log) = self.access_log {
            let _ = tokio::task::spawn_blocking(move || log.flush()).await;
        }
        tracing::info!("stopped");
    }
}

/// Longer than a token request takes by default: an answer that is lost may cost a consent.
const ANSWER_TIME: Duration = Duration::from_secs(15);

fn app(proxy: Proxy, threads: usize) -> HttpProxy<Proxy> {
    let conf = ServerConf {
        threads,
        max_retries: 8,
        ..ServerConf::default()
    };
    let mut app = http_proxy(&Arc::new(conf), proxy);
    let mut options = HttpServerOptions::default();
    // Our own 405 answers CONNECT.
    options.allow_connect_method_proxying = true;
    options.h2_idle_timeout = Some(Duration::from_secs(75));
    app.server_options = Some(options);
    app
}

fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let refused = |cause| StartError::Bind { address, cause };
    let socket = TcpListener::bind(address).map_err(refused)?;
    socket.set_nonblocking(true).map_err(refused)?;
    let bound = socket.local_addr().map_err(refused)?;
    Ok((socket, bound))
}

/// Seconds since 1970, as Prometheus counts.
pub(crate) fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
