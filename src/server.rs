//! Starts a proxy from a configuration and stops it: sockets, certificates, tasks, drain.

pub mod accept;
pub mod admin;
mod admin_state;
mod certificates;
pub mod handover;
mod logins;
mod page;
pub mod runtime;
mod status;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use pingora::listeners::tls::TlsSettings;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::accept::{ListenerContext, RejectionLog};
use self::admin_state::AdminState;
use self::handover::{InheritedListeners, Successor};
use self::runtime::Runtime;
use crate::config::{self, Config};
use crate::credential;
use crate::downstream::budget::{self, HeadBudget};
use crate::downstream::tls::{self, ListenerCertificates};
use crate::logs::AccessLog;
use crate::metrics::Metrics;
use crate::request::Proxy;
use crate::traces::Traces;

/// The reason why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is in use, does not belong to this machine, or needs privileges we lack.
    #[error("cannot listen on {address}: {cause}{}", hint(*address, cause))]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// The error of the system.
        cause: std::io::Error,
    },
    /// A certificate, key or CA file cannot be used.
    #[error("{place}: {cause}")]
    Tls {
        /// The place in the configuration that specifies it.
        place: String,
        /// The cause.
        cause: crate::tls::Error,
    },
    /// The connection to a vendor's servers cannot be configured.
    #[error("vendors.{vendor}: {cause}")]
    Upstream {
        /// The vendor.
        vendor: String,
        /// The cause.
        cause: crate::upstream::StartError,
    },
    /// A caller's key cannot be read.
    #[error("callers.{caller}.api_key: {cause}")]
    Caller {
        /// The caller.
        caller: String,
        /// The cause.
        cause: crate::secret::reference::SecretError,
    },
    /// A vendor's credential cannot be set up.
    #[error("vendors.{vendor}.auth: {cause}")]
    Credential {
        /// The vendor.
        vendor: String,
        /// The cause.
        cause: credential::StartError,
    },
    /// The environment specifies a trace collector that cannot be used.
    #[error("{0}")]
    Traces(String),
    /// The system refused a thread or a socket option.
    #[error("the system refused a resource: {0}")]
    System(#[from] std::io::Error),
}

/// Returns advice on an address that cannot be bound.
fn hint(address: SocketAddr, cause: &std::io::Error) -> String {
    use std::io::ErrorKind;

    let port = address.port();
    let kind = cause.kind();
    if kind == ErrorKind::AddrInUse {
        format!(
            "; another program uses it: `ss -ltnp sport = :{port}` shows which; stop that one, or bind \
             another port"
        )
    } else if kind == ErrorKind::AddrNotAvailable {
        "; no interface of this machine has this address: `ip addr` lists them; 0.0.0.0 and [::] \
         stand for all of them"
            .to_owned()
    } else if kind == ErrorKind::PermissionDenied && port < 1024 {
        let higher = port + 8000;
        format!("; ports below 1024 need extra privileges: bind a higher one, such as {higher}")
    } else {
        String::new()
    }
}

/// A running proxy.
pub struct Running {
    /// Addresses of the listeners for callers, in the configuration's order, with the ports as
    /// bound.
    pub listeners: Vec<SocketAddr>,
    /// Address of the admin listener.
    pub admin: SocketAddr,
    drain: config::Drain,
    draining: Arc<AtomicBool>,
    serving: Arc<AtomicUsize>,
    access_log: AccessLog,
    traces: Option<Traces>,
    stop: watch::Sender<bool>,
    accepting: Vec<JoinHandle<()>>,
    admin_task: JoinHandle<()>,
    watcher: JoinHandle<()>,
    /// Further handles of the listeners, for a successor. While one of them is open, callers wait
    /// rather than being refused.
    sockets: Vec<TcpListener>,
    /// While `false`, connections wait in the system's queue.
    open: watch::Sender<bool>,
    admin_state: Arc<AdminState>,
    /// `true` once a successor serves: grants that it may share with this process must not be
    /// revoked.
    handed_over: bool,
    runtime: Arc<Runtime>,
}

/// Starts a proxy on the current runtime. When this returns, every socket is bound and accepts
/// connections.
///
/// # Errors
/// [`StartError`]; nothing keeps running then.
///
/// # Panics
/// Outside a tokio runtime.
pub fn start(config: Config) -> Result<Running, StartError> {
    let running = prepare(config, InheritedListeners::none())?;
    running.open();
    Ok(running)
}

/// Starts a proxy with listeners that may be open already. Connections wait until
/// [`Running::open`].
///
/// # Errors
/// [`StartError`]; nothing keeps running then.
///
/// # Panics
/// Outside a tokio runtime.
#[expect(clippy::too_many_lines, reason = "one step after the other")]
pub fn prepare(config: Config, mut inherited: InheritedListeners) -> Result<Running, StartError> {
    crate::tls::install_provider();
    let data = config
        .listeners
        .iter()
        .map(|listener| bind(listener.bind, &mut inherited))
        .collect::<Result<Vec<_>, _>>()?;
    let (admin_socket, admin_address) = bind(config.admin.bind, &mut inherited)?;
    inherited.close_unused();
    let shared = data
        .iter()
        .map(|(socket, _)| socket)
        .chain([&admin_socket])
        .map(TcpListener::try_clone)
        .collect::<Result<Vec<_>, _>>()?;

    let traces = Traces::from_environment().map_err(StartError::Traces)?;
    let metrics = Arc::new(Metrics::new().with_traces(traces.clone()));
    let access_log = AccessLog::to_stdout()?;
    let certificates = certificates(&config)?;
    let (drain, ready_when, key) = (config.drain, config.admin.ready_when, config.admin.key);
    let protocols: Vec<_> = config
        .listeners
        .iter()
        .map(|listener| (listener.h2c, listener.proxied_by.clone()))
        .collect();
    let configured_limits: Vec<_> = config
        .listeners
        .iter()
        .map(|listener| listener.max_connections)
        .collect();
    let runtime = Arc::new(Runtime::start(config, metrics, certificates.clone())?);
    let draining = Arc::new(AtomicBool::new(false));
    let serving = Arc::new(AtomicUsize::new(0));
    let rejections = RejectionLog {
        snapshot: runtime.snapshot.clone(),
        access_log: access_log.clone(),
    };
    let proxy = Arc::new(Proxy {
        snapshot: runtime.snapshot.clone(),
        serving: serving.clone(),
        draining: draining.clone(),
        access_log: access_log.clone(),
        traces: traces.clone(),
    });

    let (stop, stopping) = watch::channel(false);
    let (open, opened) = watch::channel(false);
    let mut listeners = Vec::new();
    let mut accepting = Vec::new();
    let memory = budget::memory_permitted(Path::new("/"));
    let permitted = budget::connections(budget::files_permitted(), memory);
    let limits = budget::each(permitted, &configured_limits);
    let head_budget = HeadBudget::new(limits.iter().sum());
    if configured_limits.iter().flatten().sum::<usize>() > permitted {
        tracing::warn!(
            permitted,
            "the sum of `max_connections` exceeds what the limits of open files and memory permit"
        );
    }
    let sockets = data
        .into_iter()
        .zip(certificates)
        .zip(protocols)
        .zip(limits);
    for (index, ((((socket, address), certificates), (h2c, proxied_by)), limit)) in
        sockets.enumerate()
    {
        let tls = certificates
            .map(tls::settings)
            .transpose()
            .map_err(|cause| StartError::Tls {
                place: format!("listeners[{index}].tls"),
                cause,
            })?
            .map(TlsSettings::build);
        tracing::info!(%address, tls = tls.is_some(), "listening");
        let listener_context = Arc::new(ListenerContext {
            proxy: proxy.clone(),
            tls,
            h2c,
            proxied_by,
            head_budget: head_budget.clone(),
            rejections: rejections.clone(),
        });
        let socket = tokio::net::TcpListener::from_std(socket)?;
        let (mut opened, stopping) = (opened.clone(), stopping.clone());
        accepting.push(tokio::spawn(async move {
            if opened.wait_for(|open| *open).await.is_ok() {
                accept::accept(listener_context, socket, stopping, limit).await;
            }
        }));
        listeners.push(address);
    }

    let admin_state = Arc::new(AdminState {
        runtime: runtime.clone(),
        draining: draining.clone(),
        ready_when,
        key,
        started: SystemTime::now(),
    });
    let admin_socket = tokio::net::TcpListener::from_std(admin_socket)?;
    let admin_task = tokio::spawn({
        let (mut opened, admin_state) = (opened, admin_state.clone());
        async move {
            if opened.wait_for(|open| *open).await.is_ok() {
                admin::serve(admin_state, admin_socket).await;
            }
        }
    });
    tracing::info!(address = %admin_address, "admin");

    let watching = runtime.clone();
    let watcher = tokio::spawn(async move { watching.watch().await });

    Ok(Running {
        listeners,
        admin: admin_address,
        drain,
        draining,
        serving,
        access_log,
        traces,
        stop,
        accepting,
        admin_task,
        watcher,
        sockets: shared,
        open,
        admin_state,
        handed_over: false,
        runtime,
    })
}

impl Running {
    /// Reads the configuration again and applies it, whole or not at all. The outcome is logged,
    /// counted and shown in `/status`.
    pub async fn reload(&self) {
        self.runtime.reload().await;
    }

    /// Accepts connections from now on, beginning with those that have been waiting.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(&self) {
        self.open.send_replace(true);
        // In the background, so that neither the start nor the first handshake waits for it.
        tokio::task::spawn_blocking(crate::tls::gather_randomness);
    }

    /// Waits until requests can be served, as `/readyz` defines it.
    pub async fn ready(&self) {
        while !self.admin_state.waiting_for().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts this program again with our listeners and waits until it is ready to replace this
    /// process, which then calls [`Running::stop_after_handover`].
    ///
    /// # Errors
    /// The reason why no successor is ready; this process continues to serve.
    pub fn hand_over(&self) -> impl Future<Output = Result<Successor, String>> + Send + use<> {
        let sockets: std::io::Result<Vec<_>> =
            self.sockets.iter().map(TcpListener::try_clone).collect();
        async move {
            let sockets = sockets.map_err(|cause| cause.to_string())?;
            handover::start_successor(&sockets).await
        }
    }

    /// Stops after a handover. New connections go to the successor at once. Existing ones have
    /// `drain.delay` to be closed between two requests, and requests in flight have
    /// `drain.timeout`.
    pub async fn stop_after_handover(mut self) {
        self.handed_over = true;
        for listener in &self.accepting {
            listener.abort();
        }
        self.admin_task.abort();
        self.stop().await;
    }

    /// Drains and stops: becomes unready, accepts connections for `drain.delay`, then none, and
    /// gives requests in flight `drain.timeout`. Returns as soon as no request is in flight.
    pub async fn stop(self) {
        self.draining.store(true, Ordering::Release);
        let delay = humantime::format_duration(self.drain.delay);
        tracing::info!(%delay, "draining");
        tokio::time::sleep(self.drain.delay).await;
        let timeout = self.drain.timeout;
        self.stop_now(timeout).await;
    }

    /// Stops on request of a user: accepts no more connections at once, gives requests in flight
    /// `drain.timeout`, and returns as soon as no request is in flight.
    pub async fn stop_interrupted(self) {
        tracing::info!("stopping");
        let timeout = self.drain.timeout;
        self.stop_now(timeout).await;
    }

    /// Accepts no more connections and gives requests in flight `timeout`.
    pub async fn stop_now(self, timeout: Duration) {
        self.draining.store(true, Ordering::Release);
        drop(self.sockets);
        // Fails without a receiver: every listener has ended already.
        let _ = self.stop.send(true);
        let deadline = tokio::time::Instant::now() + timeout;
        for listener in self.accepting {
            let _ = tokio::time::timeout_at(deadline, listener).await;
        }
        while self.serving.load(Ordering::Acquire) > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let left = self.serving.load(Ordering::Acquire);
        if left > 0 {
            tracing::warn!(left, "drain.timeout has passed: requests are cut off");
        }
        self.admin_task.abort();
        self.watcher.abort();
        if self.handed_over {
            self.runtime.stop_without_revoking().await;
        } else {
            self.runtime.stop().await;
        }
        credential::wait_for_refreshes(TOKEN_RESPONSE_TIME).await;
        if let Some(traces) = self.traces {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            traces.flush(left.clamp(LEAST_FLUSH, MOST_FLUSH)).await;
        }
        let log = self.access_log;
        let _ = tokio::task::spawn_blocking(move || log.flush()).await;
        tracing::info!("stopped");
    }
}

/// Time to wait for token responses: longer than a token request takes by default, since a lost
/// response may cost a consent.
const TOKEN_RESPONSE_TIME: Duration = Duration::from_secs(15);

/// Bounds of the time for sending the last spans, which otherwise is what is left of the drain.
const LEAST_FLUSH: Duration = Duration::from_secs(1);
const MOST_FLUSH: Duration = Duration::from_secs(5);

/// Loads the certificates of each listener; `None` for plaintext.
fn certificates(config: &Config) -> Result<Vec<Option<Arc<ListenerCertificates>>>, StartError> {
    let listeners = config.listeners.iter().enumerate();
    listeners
        .map(|(index, listener)| match &listener.tls {
            None => Ok(None),
            Some(_) => ListenerCertificates::start(listener)
                .map(|certificates| Some(Arc::new(certificates)))
                .map_err(|cause| StartError::Tls {
                    place: format!("listeners[{index}].tls"),
                    cause,
                }),
        })
        .collect()
}

fn bind(
    address: SocketAddr,
    inherited: &mut InheritedListeners,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let refused = |cause| StartError::Bind { address, cause };
    let socket = match inherited.pick(address) {
        Some(socket) => socket,
        None => TcpListener::bind(address).map_err(refused)?,
    };
    socket.set_nonblocking(true).map_err(refused)?;
    let bound = socket.local_addr().map_err(refused)?;
    Ok((socket, bound))
}

/// Converts a time to Unix seconds, the unit of Prometheus.
pub(crate) fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
