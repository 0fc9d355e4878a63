//! What runs under one configuration, and how the next configuration takes over from it without a
//! request noticing: whole or not at all, and every part that has not changed goes on as it is.

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
use crate::upstream::resolver::Resolver;

/// The configuration in use and what it made run.
pub(super) struct Runtime {
    /// Tells the store which logins were ended, and learns it from there; since the first vendor
    /// with logins.
    logins: OnceLock<EndedLoginSync>,
    /// What requests begin with.
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    /// What the admin listener shows.
    pub(super) view: ArcSwap<AdminView>,
    /// Why the last reload was refused; `None` when it was not.
    pub(super) last_error: ArcSwapOption<String>,
    /// Every series.
    pub(super) metrics: Arc<Metrics>,
    certificates: Vec<Option<Arc<ListenerCertificates>>>,
    /// Of all certificates that are shown to anybody.
    certificate_expiry: Arc<CertificateExpiry>,
    resolver: Resolver,
    store: Arc<dyn Store>,
    /// Of the files as they were when the first configuration was taken into use.
    read: [u8; 32],
    /// Its tokens outlive reloads.
    mint: Arc<Mint>,
    /// One reload at a time; requests never come here.
    state: tokio::sync::Mutex<State>,
}

struct State {
    config: Config,
    vendors: HashMap<String, VendorRuntime>,
    issuers: Vec<Issuer>,
    /// Tells connections of one configuration from those of the next.
    generation: u64,
}

/// One source of keys that sign callers' tokens.
#[derive(Clone)]
struct Issuer {
    source: KeySource,
    keys: Arc<Keys>,
    /// Held because dropping it ends the task.
    _task: Arc<KeyRefreshTask>,
}

/// What one vendor made run.
#[derive(Clone)]
struct VendorRuntime {
    config: ConfiguredVendor,
    /// Of the certificate and CA files as they were read.
    trust: [u8; 32],
    route: Arc<Route>,
    view: Arc<VendorView>,
    refresh_task: Option<Arc<RefreshTask>>,
}

/// Why a new configuration was not taken into use. The one before goes on.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It has mistakes: all of them, a line each.
    #[error("the configuration has errors:\n{0}")]
    Invalid(String),
    /// It changes what only a restart can change.
    #[error("{0} changed, which needs a restart; the new configuration is not in use")]
    NeedsRestart(&'static str),
    /// It is valid and something it names cannot be used.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// How often files are looked at. Promised is "in use within 10 s".
const POLL_INTERVAL: Duration = Duration::from_secs(3);

impl Runtime {
    /// Makes everything of `config` run.
    pub(super) fn start(
        config: Config,
        metrics: Arc<Metrics>,
        certificates: Vec<Option<Arc<ListenerCertificates>>>,
    ) -> Result<Self, StartError> {
        let resolver = Resolver::system();
        let store = store::open(&config.store);
        let mint = Arc::new(mint(&config.store));
        let listeners = certificates.iter().flatten();
        let authorities = listeners.flat_map(|served| served.authorities()).collect();
        let builder = Builder {
            metrics: &metrics,
            resolver: &resolver,
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

    /// Whether it is known which caller tokens of other processes were ended, as far as it can be.
    pub(super) fn ended_logins_known(&self) -> bool {
        self.logins.get().is_none_or(EndedLoginSync::settled)
    }

    /// Reads the file again and takes it into use, or says why not.
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
                tracing::error!(cause, "reload refused; the previous configuration stays in use");
                self.last_error.store(Some(Arc::new(cause)));
            }
        }
        // Refused or not: what a credential is made from may have changed as well.
        for vendor in &self.view.load().vendors {
            if let Some(credential) = &vendor.credential {
                credential.check_secrets_now();
            }
        }
        for vendor_runtime in self.state.lock().await.vendors.values() {
            vendor_runtime.route.upstream.forget_demand();
        }
    }

    /// For a clean stop: ends every refresh task, and the grants that are to end with the process.
    pub(super) async fn stop(&self) {
        let mut stopping = JoinSet::new();
        for vendor_runtime in self.state.lock().await.vendors.values() {
            if let Some(refresh_task) = vendor_runtime.refresh_task.clone() {
                stopping.spawn(async move { refresh_task.stop().await });
            }
        }
        stopping.join_all().await;
    }

    /// For a stop with a successor: ends every refresh task, and no grant.
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

    /// Takes `config` into use, whole or not at all.
    fn adopt(&self, state: &mut State, config: Config) -> Result<String, ReloadError> {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        needs_restart(&state.config, &config)?;
        let generation = state.generation + 1;
        // Everything that can fail comes before the first that takes effect.
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
        let states = super::status::states();
        for gone in state
            .vendors
            .keys()
            .filter(|name| !built.vendors.contains_key(*name))
        {
            self.metrics.remove_vendor_gauges(gone, &states);
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

    /// Reloads whenever a file that the configuration is made from changes. Contents are compared,
    /// so that every way of changing a file is seen, the symlinks Kubernetes swaps included.
    pub(super) async fn watch(&self) {
        let mut known = self.read;
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let now = self.contents().await;
            if now != known {
                // A change that is refused is not tried again until the next one.
                known = now;
                self.reload().await;
            }
            self.refresh_certificate_expiry().await;
        }
    }

    /// What logs in is read at each login and makes no reload: its gauge follows by itself.
    async fn refresh_certificate_expiry(&self) {
        let (presented, reloaded) = {
            let state = self.state.lock().await;
            (state.config.presented.clone(), files_of(&state.config))
        };
        let (expiry, metrics) = (self.certificate_expiry.clone(), self.metrics.clone());
        let refresh = move || expiry.refresh(&presented, &reloaded, &metrics);
        // Fails only when it panics, and the next look is as good.
        let _ = tokio::task::spawn_blocking(refresh).await;
    }

    async fn contents(&self) -> [u8; 32] {
        let files = files_of(&self.state.lock().await.config);
        tokio::task::spawn_blocking(move || current_digest(&files))
            .await
            .unwrap_or_default()
    }
}

/// Does what takes long for many vendors without keeping the requests of this thread waiting.
fn run_blocking<T>(work: impl FnOnce() -> T) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}

/// What it takes to make the parts of a configuration run.
struct Builder<'a> {
    metrics: &'a Metrics,
    resolver: &'a Resolver,
    store: &'a Arc<dyn Store>,
    mint: &'a Arc<Mint>,
    /// Of callers' certificates.
    authorities: HashSet<[u8; 8]>,
    generation: u64,
}

/// Everything that a configuration makes run.
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

    /// One vendor: as it was when nothing of it changed, with the credential it had when that did
    /// not change, new otherwise.
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
        let upstream =
            Upstream::start(vendor, self.generation, self.resolver).map_err(|cause| {
                StartError::Upstream {
                    vendor: vendor.name.clone(),
                    cause,
                }
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

/// Has ended logins shared from the first vendor on that has any: the store is touched only when it is
/// needed.
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

/// Replicas share the store's key, and so accept each other's caller tokens.
fn mint(store: &config::Store) -> Mint {
    let key = match store {
        config::Store::File { encryption_key, .. } => encryption_key.as_ref(),
        config::Store::Redis { encryption_key, .. }
        | config::Store::Kubernetes { encryption_key, .. } => Some(encryption_key),
    };
    let key = key.and_then(|key| key.resolve_bytes().ok());
    Mint::new(key.as_ref().map(|key| key.as_slice()))
}

/// Whether `now` obtains its credential just as `before` did: from the same place, with the same
/// proof, on the same way.
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

/// Whether a token issued under `before` may go on serving until `now` has brought one of its own:
/// only for the same account at the same place.
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

/// The header fields that any vendor's credential uses.
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

/// Every file a reload reads. Secrets of credentials are not among them: their own tasks watch
/// those.
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

/// Returns the digest of a configuration's files, the file itself as it was when it was read: a change
/// since then must be noticed.
fn loaded_digest(config: &Config) -> [u8; 32] {
    let mut config_file = [0; 32];
    // Written by us as 64 hex digits.
    let is_known = hex::decode_to_slice(&config.sha256, &mut config_file).is_ok();
    digest(is_known.then_some(config_file), &files_of(config))
}

/// Returns the digest of what `files` hold now, the first of them being the configuration itself.
fn current_digest(files: &[PathBuf]) -> [u8; 32] {
    let config_file = files.first().and_then(|path| std::fs::read(path).ok());
    let config_file = config_file.map(zeroize::Zeroizing::new);
    digest(config_file.map(|content| sha256(&[&content])), files)
}

/// `itself`: the SHA-256 of the first of `files`, which is not read.
fn digest(config_file: Option<[u8; 32]>, files: &[PathBuf]) -> [u8; 32] {
    let others = content_digest::of_files(files.iter().skip(1));
    sha256(&[&config_file.unwrap_or_default(), &others])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of one worker, requests would otherwise wait for the work to end, and the work for them.
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
