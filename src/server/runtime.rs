//! The parts that run under one configuration, and their replacement by those of the next, whole or
//! not at all. Requests do not notice, and every part that has not changed keeps running.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::header::{AUTHORIZATION, HeaderName};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinSet;

use super::certificates::CertificateExpiry;
use super::logins::{self, EndedLoginSync};
use super::status::{AdminView, VendorView};
use super::{StartError, unix_seconds};
use crate::config::{
    self, ApiKey, Callers as ConfiguredCallers, Carrier, Config, Secrets,
    Vendor as ConfiguredVendor,
};
use crate::content_digest;
use crate::credential::{self, Credential, RefreshTask};
use crate::downstream::tls::{Certificates, ListenerCertificates};
use crate::jwks::{self, KeyRefreshTask, KeySource, Keys};
use crate::metrics::Metrics;
use crate::request::caller::Callers;
use crate::request::caller::token::Mint;
use crate::request::headers::StrippedHeaders;
use crate::request::vendor::{Routes, Vendor};
use crate::request::{Route, Snapshot};
use crate::secret::SecretRef;
use crate::store::{self, Store};
use crate::tls::{CertFiles, sha256};
use crate::upstream::Upstream;
use crate::upstream::connector::Connector;
use crate::upstream::resolver::Resolver;

/// The current configuration and everything that runs under it.
pub(super) struct Runtime {
    /// The task that shares revoked logins through the store, started with the first vendor that
    /// has logins.
    logins: OnceLock<EndedLoginSync>,
    /// The configuration that new requests use.
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    /// The view of the admin listener.
    pub(super) view: ArcSwap<AdminView>,
    /// The reason why the last reload was refused; `None` when it was not.
    pub(super) last_error: ArcSwapOption<String>,
    /// All metrics.
    pub(super) metrics: Arc<Metrics>,
    certificates: Vec<Option<Arc<ListenerCertificates>>>,
    /// Expiry of all certificates that are presented or served.
    certificate_expiry: Arc<CertificateExpiry>,
    resolver: Resolver,
    connector: Arc<Connector>,
    store: Arc<dyn Store>,
    /// Digest of the files when the first configuration was loaded.
    read: [u8; 32],
    /// Issuer of caller tokens, which outlive reloads.
    mint: Arc<Mint>,
    /// State that one reload at a time changes; requests never use it.
    state: tokio::sync::Mutex<State>,
}

struct State {
    config: Config,
    vendors: HashMap<String, VendorRuntime>,
    issuers: Vec<Issuer>,
    /// Number of the configuration, which separates its connections from those of the next.
    generation: u64,
}

/// A source of keys that verify callers' tokens.
#[derive(Clone)]
struct Issuer {
    source: KeySource,
    keys: Arc<Keys>,
    /// Held because dropping it ends the task.
    _task: Arc<KeyRefreshTask>,
}

/// The running parts of one vendor.
#[derive(Clone)]
struct VendorRuntime {
    config: ConfiguredVendor,
    /// Digest of the certificate and CA files as they were read.
    trust: [u8; 32],
    route: Arc<Route>,
    view: Arc<VendorView>,
    refresh_task: Option<Arc<RefreshTask>>,
}

/// The reason why a new configuration was not applied. The previous one stays in use.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It has errors: all of them, one per line.
    #[error("the configuration has errors:\n{0}")]
    Invalid(String),
    /// It changes a setting that needs a restart.
    #[error("{0} changed, which needs a restart; the new configuration is not in use")]
    NeedsRestart(&'static str),
    /// It is valid, but a resource that it specifies cannot be used.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Interval between checks of the files. The documentation promises "in use within 10 s".
const POLL_INTERVAL: Duration = Duration::from_secs(3);

impl Runtime {
    /// Starts everything that `config` specifies.
    pub(super) fn start(
        config: Config,
        metrics: Arc<Metrics>,
        certificates: Vec<Option<Arc<ListenerCertificates>>>,
    ) -> Result<Self, StartError> {
        let resolver = Resolver::system();
        let connector = Connector::start();
        let store = store::open(&config.store);
        let mint = Arc::new(mint(&config.store));
        let listeners = certificates.iter().flatten();
        let authorities = listeners.flat_map(|served| served.authorities()).collect();
        let builder = Builder {
            metrics: &metrics,
            resolver: &resolver,
            connector: &connector,
            store: &store,
            mint: &mint,
            authorities,
            generation: 1,
        };
        let read = loaded_digest(&config);
        let built = builder.all(&config, None)?;
        let certificate_expiry = Arc::new(CertificateExpiry::default());
        certificate_expiry.set(&config.presented, &metrics);
        let logins = OnceLock::new();
        share_logins(&config, &logins, &mint, &store);
        Ok(Self {
            certificate_expiry,
            read,
            logins,
            snapshot: Arc::new(ArcSwap::from_pointee(built.snapshot)),
            view: ArcSwap::from_pointee(built.view),
            last_error: ArcSwapOption::empty(),
            certificates,
            resolver,
            connector,
            store,
            mint,
            state: tokio::sync::Mutex::new(State {
                config,
                vendors: built.vendors,
                issuers: built.issuers,
                generation: 1,
            }),
            metrics,
        })
    }

    /// Tells whether the caller tokens that other processes revoked are known, as far as possible.
    pub(super) fn ended_logins_known(&self) -> bool {
        self.logins.get().is_none_or(EndedLoginSync::settled)
    }

    /// Reads the configuration again and applies it, or records why not.
    pub(super) async fn reload(&self) {
        let outcome = self.try_reload().await;
        self.metrics.count_reload(outcome.is_ok());
        match outcome {
            Ok(sha256) => {
                self.last_error.store(None);
                tracing::info!(sha256, "the configuration was reloaded");
            }
            Err(cause) => {
                let cause = cause.to_string();
                tracing::error!(
                    cause,
                    "reload refused; the previous configuration stays in use"
                );
                self.last_error.store(Some(Arc::new(cause)));
            }
        }
        // Even if the reload is refused, the secrets of credentials may have changed.
        for vendor in &self.view.load().vendors {
            if let Some(credential) = &vendor.credential {
                credential.check_secrets_now();
            }
        }
        for vendor_runtime in self.state.lock().await.vendors.values() {
            vendor_runtime.route.upstream.forget_demand();
        }
    }

    /// Ends every refresh task for a clean stop, and revokes the grants that end with the process.
    pub(super) async fn stop(&self) {
        let mut stopping = JoinSet::new();
        for vendor_runtime in self.state.lock().await.vendors.values() {
            if let Some(refresh_task) = vendor_runtime.refresh_task.clone() {
                stopping.spawn(async move { refresh_task.stop().await });
            }
        }
        stopping.join_all().await;
    }

    /// Ends every refresh task and revokes no grant, for a stop after a handover.
    pub(super) async fn stop_without_revoking(&self) {
        for vendor_runtime in self.state.lock().await.vendors.values() {
            if let Some(refresh_task) = &vendor_runtime.refresh_task {
                refresh_task.stop_without_revoking();
            }
        }
    }

    async fn try_reload(&self) -> Result<String, ReloadError> {
        let mut state = self.state.lock().await;
        let path = state.config.path.clone();
        let config = tokio::task::spawn_blocking(move || Config::load(&path, Secrets::Resolve))
            .await
            .map_err(|cause| ReloadError::Invalid(cause.to_string()))?
            .map_err(|errors| {
                let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
                ReloadError::Invalid(lines.join("\n"))
            })?;
        run_blocking(|| self.adopt(&mut state, config))
    }

    /// Applies `config`, whole or not at all.
    fn adopt(&self, state: &mut State, config: Config) -> Result<String, ReloadError> {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        needs_restart(&state.config, &config)?;
        let generation = state.generation + 1;
        // Steps that can fail come before the first one that takes effect.
        let mut certificates = Vec::new();
        for (index, (listener, served)) in
            config.listeners.iter().zip(&self.certificates).enumerate()
        {
            if let Some(served) = served {
                let read = served.read(listener).map_err(|cause| StartError::Tls {
                    place: format!("listeners[{index}].tls"),
                    cause,
                })?;
                certificates.push((served, read));
            }
        }
        let read = certificates.iter().map(|(_, read)| read);
        let authorities = read.flat_map(Certificates::authorities).collect();
        let builder = Builder {
            metrics: &self.metrics,
            resolver: &self.resolver,
            connector: &self.connector,
            store: &self.store,
            mint: &self.mint,
            authorities,
            generation,
        };
        let before = self.snapshot.load_full();
        let built = builder.all(&config, Some((state, &before)))?;
        for (served, read) in certificates {
            served.swap(read);
        }
        self.certificate_expiry
            .set(&config.presented, &self.metrics);
        share_logins(&config, &self.logins, &self.mint, &self.store);
        let sha256 = config.sha256.clone();
        let last = tokio::time::Instant::now() + config.drain.timeout;
        before.callers.leave(&built.snapshot.callers, last);
        self.snapshot.store(Arc::new(built.snapshot));
        self.view.store(Arc::new(built.view));
        *state = State {
            config,
            vendors: built.vendors,
            issuers: built.issuers,
            generation,
        };
        Ok(sha256)
    }

    /// Reloads whenever a file of the configuration changes. Contents are compared, so that every
    /// kind of change is noticed, including the symbolic links that Kubernetes swaps.
    pub(super) async fn watch(&self) {
        let mut known = self.read;
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let now = self.contents().await;
            if now != known {
                // A refused change is not retried until the next change.
                known = now;
                self.reload().await;
            }
            self.refresh_certificate_expiry().await;
        }
    }

    /// Updates the gauge of client certificates that are read at each login, which cause no reload.
    async fn refresh_certificate_expiry(&self) {
        let (presented, reloaded) = {
            let state = self.state.lock().await;
            (state.config.presented.clone(), files_of(&state.config))
        };
        let (expiry, metrics) = (self.certificate_expiry.clone(), self.metrics.clone());
        let refresh = move || expiry.refresh(&presented, &reloaded, &metrics);
        // Fails only if the task panics; the next check repeats it.
        let _ = tokio::task::spawn_blocking(refresh).await;
    }

    async fn contents(&self) -> [u8; 32] {
        let files = files_of(&self.state.lock().await.config);
        tokio::task::spawn_blocking(move || current_digest(&files))
            .await
            .unwrap_or_default()
    }
}

/// Runs work that takes long with many vendors without blocking the requests of this thread.
fn run_blocking<T>(work: impl FnOnce() -> T) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}

/// The inputs for starting the parts of a configuration.
struct Builder<'a> {
    metrics: &'a Metrics,
    resolver: &'a Resolver,
    connector: &'a Arc<Connector>,
    store: &'a Arc<dyn Store>,
    mint: &'a Arc<Mint>,
    /// Authorities of callers' certificates.
    authorities: HashSet<[u8; 8]>,
    generation: u64,
}

/// All running parts of a configuration.
struct Built {
    snapshot: Snapshot,
    view: AdminView,
    vendors: HashMap<String, VendorRuntime>,
    issuers: Vec<Issuer>,
}

impl Builder<'_> {
    fn all(
        &self,
        config: &Config,
        before: Option<(&State, &Snapshot)>,
    ) -> Result<Built, StartError> {
        let mut issuers: Vec<Issuer> = Vec::new();
        let known = before.map_or(&[][..], |(state, _)| &state.issuers);
        let callers = Callers::new(
            &config.callers,
            before.map(|(_, snapshot)| &snapshot.callers),
            self.mint,
            self.authorities.clone(),
            |source| {
                let of_source = |issuer: &&Issuer| issuer.source == *source;
                if let Some(issuer) = issuers.iter().find(of_source) {
                    return issuer.keys.clone();
                }
                let issuer = known.iter().find(of_source).cloned().unwrap_or_else(|| {
                    let (keys, task) = jwks::start(source);
                    Issuer {
                        source: source.clone(),
                        keys,
                        _task: Arc::new(task),
                    }
                });
                issuers.push(issuer.clone());
                issuer.keys
            },
        )
        .map_err(|(caller, cause)| StartError::Caller { caller, cause })?;
        let mut routes = Vec::new();
        let mut view = Vec::new();
        let mut vendors = HashMap::new();
        for vendor in &config.vendors {
            let before = before.and_then(|(state, _)| state.vendors.get(&vendor.name));
            let vendor_runtime = self.vendor_runtime(vendor, before)?;
            routes.push((
                vendor.prefix.clone(),
                vendor.hosts.clone(),
                vendor_runtime.route.clone(),
            ));
            view.push(vendor_runtime.view.clone());
            vendors.insert(vendor.name.clone(), vendor_runtime);
        }
        let now = SystemTime::now();
        self.metrics.set_config_loaded(unix_seconds(now));
        let snapshot = Snapshot {
            callers,
            routes: Routes::new(routes),
            stripped: StrippedHeaders::new(credential_fields(config)),
            unrouted: self.metrics.vendor("none"),
            access_log: config.access_log,
        };
        let view = AdminView {
            issuers: issuers.iter().map(|issuer| issuer.keys.clone()).collect(),
            vendors: view,
            sha256: config.sha256.clone(),
            loaded: now,
        };
        Ok(Built {
            snapshot,
            view,
            vendors,
            issuers,
        })
    }

    /// Returns the running parts of one vendor: the previous ones if nothing has changed, new ones
    /// otherwise, with the previous credential if that has not changed.
    fn vendor_runtime(
        &self,
        vendor: &ConfiguredVendor,
        before: Option<&VendorRuntime>,
    ) -> Result<VendorRuntime, StartError> {
        let trust = content_digest::of_files(trust_files(vendor));
        if let Some(before) = before
            && before.config == *vendor
            && before.trust == trust
        {
            return Ok(before.clone());
        }
        let upstream = Upstream::start(vendor, self.generation, self.resolver, self.connector)
            .map_err(|cause| StartError::Upstream {
                vendor: vendor.name.clone(),
                cause,
            })?;
        let (credential, refresh_task) = self.credential(vendor, before)?.unzip();
        let mut prepared = Vendor::new(
            vendor,
            credential.clone(),
            self.metrics.vendor(&vendor.name),
        );
        if let Some(before) = before {
            prepared.take_over(&before.route.vendor);
        }
        let prepared = Arc::new(prepared);
        Ok(VendorRuntime {
            config: vendor.clone(),
            trust,
            route: Arc::new(Route {
                vendor: prepared.clone(),
                upstream: upstream.clone(),
            }),
            view: Arc::new(VendorView {
                vendor: prepared,
                hosts: vendor.hosts.clone(),
                auth: vendor.auth.as_ref().map_or("none", |auth| auth.kind().name),
                credential,
                upstream,
            }),
            refresh_task,
        })
    }

    #[expect(clippy::type_complexity, reason = "both or neither")]
    fn credential(
        &self,
        vendor: &ConfiguredVendor,
        before: Option<&VendorRuntime>,
    ) -> Result<Option<(Arc<Credential>, Arc<RefreshTask>)>, StartError> {
        if vendor.auth.is_none() {
            return Ok(None);
        }
        let held = before.and_then(|before| {
            let credential = before.view.credential.clone()?;
            Some((&before.config, credential, before.refresh_task.clone()?))
        });
        if let Some((config, credential, refresh_task)) = &held
            && is_obtained_alike(config, vendor)
        {
            return Ok(Some((credential.clone(), refresh_task.clone())));
        }
        let previous = held
            .filter(|(config, ..)| same_account(config, vendor))
            .and_then(|(_, credential, _)| credential.current().ok());
        let (credential, refresh_task) = credential::start(
            vendor,
            self.store,
            self.metrics.fetch(&vendor.name),
            previous,
        )
        .map_err(|cause| StartError::Credential {
            vendor: vendor.name.clone(),
            cause,
        })?;
        Ok(Some((credential, Arc::new(refresh_task))))
    }
}

/// Starts to share revoked logins once a vendor has logins: the store is used only when needed.
fn share_logins(
    config: &Config,
    sync: &OnceLock<EndedLoginSync>,
    mint: &Arc<Mint>,
    store: &Arc<dyn Store>,
) {
    let known = matches!(config.callers, ConfiguredCallers::Known(_));
    let mut vendors = config.vendors.iter();
    if known && mint.is_shared() && vendors.any(|vendor| !vendor.logins.is_empty()) {
        sync.get_or_init(|| logins::start(mint.clone(), store.clone()));
    }
}

/// Returns the issuer of caller tokens. Replicas share the store's key, and so accept each other's
/// caller tokens.
fn mint(store: &config::Store) -> Mint {
    let key = match store {
        config::Store::File { encryption_key, .. } => encryption_key.as_ref(),
        config::Store::Redis { encryption_key, .. }
        | config::Store::Kubernetes { encryption_key, .. } => Some(encryption_key),
    };
    let key = key.and_then(|key| key.resolve_bytes().ok());
    Mint::new(key.as_ref().map(|key| key.as_slice()))
}

/// Tells whether `now` obtains its credential as `before` did: from the same server, with the same
/// client authentication, over the same route.
fn is_obtained_alike(before: &ConfiguredVendor, now: &ConfiguredVendor) -> bool {
    before.auth == now.auth
        && before.ca == now.ca
        && before.client_cert == now.client_cert
        && before.late_client_auth == now.late_client_auth
        && before.upstream == now.upstream
        && before.proxy == now.proxy
        && before.allow_plaintext == now.allow_plaintext
        && before.timeouts.connect == now.timeouts.connect
}

/// Tells whether a token issued under `before` may be used until `now` has obtained its own: only
/// for the same account at the same vendor.
fn same_account(before: &ConfiguredVendor, now: &ConfiguredVendor) -> bool {
    let (before_auth, now_auth) = (before.auth.as_ref(), now.auth.as_ref());
    before.upstream == now.upstream
        && now_auth
            .zip(before_auth)
            .is_some_and(|(now, before)| now.is_same_account(before))
}

fn needs_restart(before: &Config, now: &Config) -> Result<(), ReloadError> {
    let same = [
        ("listeners", before.listeners == now.listeners),
        ("admin", before.admin == now.admin),
        ("threads", before.threads == now.threads),
        ("store", before.store == now.store),
    ];
    match same.iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(ReloadError::NeedsRestart(what)),
        None => Ok(()),
    }
}

/// Returns the header fields that any vendor's credential uses.
pub fn credential_fields(config: &Config) -> impl Iterator<Item = HeaderName> {
    config
        .vendors
        .iter()
        .filter_map(|vendor| vendor.auth.as_ref())
        .flat_map(|auth| match auth.kind().carrier {
            Carrier::Authorization(_) => vec![AUTHORIZATION],
            Carrier::Headers(headers) => headers
                .iter()
                .filter_map(|(name, _)| HeaderName::from_bytes(name.as_bytes()).ok())
                .collect(),
            Carrier::Query(_) => Vec::new(),
        })
}

/// Returns every file that a reload reads. Secrets of credentials are not among them: their own
/// tasks watch those.
fn files_of(config: &Config) -> Vec<PathBuf> {
    let mut files = vec![config.path.clone()];
    let listeners = config
        .listeners
        .iter()
        .filter_map(|listener| listener.tls.as_ref());
    files.extend(listeners.flatten().flat_map(pair));
    let authorities = config.listeners.iter();
    files.extend(authorities.filter_map(|listener| listener.client_ca.clone()));
    if let ConfiguredCallers::Known(callers) = &config.callers {
        files.extend(callers.iter().filter_map(|caller| match &caller.api_key {
            Some(ApiKey::Key(SecretRef::File(path))) => Some(path.clone()),
            Some(
                ApiKey::Key(SecretRef::Env(_) | SecretRef::Value(_) | SecretRef::Plain(_))
                | ApiKey::Sha256(_),
            )
            | None => None,
        }));
    }
    files.extend(config.vendors.iter().flat_map(trust_files));
    files
}

fn trust_files(vendor: &ConfiguredVendor) -> Vec<PathBuf> {
    let identity = vendor.client_cert.iter().flat_map(pair);
    identity.chain(vendor.ca.clone()).collect()
}

fn pair(files: &CertFiles) -> [PathBuf; 2] {
    [files.cert.clone(), files.key.clone()]
}

/// Returns the digest of a configuration's files. The configuration file itself counts as it was
/// when it was read, so that a change since then is noticed.
fn loaded_digest(config: &Config) -> [u8; 32] {
    let mut config_file = [0; 32];
    // `sha256` always is 64 hex digits.
    let is_known = hex::decode_to_slice(&config.sha256, &mut config_file).is_ok();
    digest(is_known.then_some(config_file), &files_of(config))
}

/// Returns the digest of the current contents of `files`, the first of which is the configuration
/// file.
fn current_digest(files: &[PathBuf]) -> [u8; 32] {
    let config_file = files.first().and_then(|path| std::fs::read(path).ok());
    let config_file = config_file.map(zeroize::Zeroizing::new);
    digest(config_file.map(|content| sha256(&[&content])), files)
}

/// Combines the digests of `files`. `config_file`: the SHA-256 of the first of them, which is not
/// read here.
fn digest(config_file: Option<[u8; 32]>, files: &[PathBuf]) -> [u8; 32] {
    let others = content_digest::of_files(files.iter().skip(1));
    sha256(&[&config_file.unwrap_or_default(), &others])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With one worker, requests would otherwise wait for the work to end, and the work for them.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_is_done_aside_keeps_nobody_of_its_thread_waiting() {
        let (request, served) = std::sync::mpsc::channel();
        let reload = tokio::spawn(async move {
            run_blocking(|| {
                tokio::spawn(async move { request.send(()) });
                served.recv_timeout(Duration::from_secs(20))
            })
        });
        assert_eq!(reload.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_runtime_of_one_thread_does_the_work_itself() {
        assert_eq!(run_blocking(|| 1), 1);
    }
}
