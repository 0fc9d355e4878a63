//! Stores grants in a Redis, shared by replicas: a hash per vendor with the encrypted grant and its
//! version, and beside it the lock, a key that expires.
//!
//! Every operation is one command or script on one key, and ends within [`OPERATION_TIMEOUT`]
//! whatever the server does. Nothing is watched: a replica that waits for another's token polls
//! every few seconds.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use humantime::format_duration;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind,
    TlsCertificates, cmd,
};
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::lease::{HeldLease, LeaseStore};
use super::seal::Seal;
use super::{Grant, Kind, Lock, Store, StoreError, new_holder};
use crate::endpoint;
use crate::secret::SecretRef;
use crate::tls::Roots;
use crate::wording::describe;

/// The Redis store.
pub(super) struct RedisStore(Arc<Server>);

struct Server {
    url: SecretRef,
    ca: Option<PathBuf>,
    key: SecretRef,
    /// Read when first needed.
    seal: OnceLock<Seal>,
    /// The connection that last worked.
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl RedisStore {
    pub(super) fn new(url: &SecretRef, ca: Option<&PathBuf>, key: &SecretRef) -> Self {
        Self(Arc::new(Server {
            url: url.clone(),
            ca: ca.cloned(),
            key: key.clone(),
            seal: OnceLock::new(),
            connection: Mutex::new(None),
        }))
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn lock(
        &self,
        vendor: &str,
        lease: Duration,
        at_most: Duration,
    ) -> Result<Lock, StoreError> {
        let deadline = Instant::now() + at_most;
        let holder = new_holder()?;
        let mut acquire = cmd("EVAL");
        acquire
            .arg(ACQUIRE)
            .arg(1)
            .arg(lock_key(vendor))
            .arg(&holder)
            .arg(milliseconds(lease));
        loop {
            let requested = Instant::now();
            if self.0.query(&acquire).await? {
                let held = HeldLease::new(self.0.clone(), vendor, holder, lease, requested);
                return Ok(Lock(Kind::Lease(held)));
            }
            if Instant::now() >= deadline {
                let server = self.0.server();
                let key = lock_key(vendor);
                return Err(StoreError::Locked(format!("{key} in {server}")));
            }
            sleep(LOCK_POLL).await;
        }
    }

    async fn load(&self, vendor: &str) -> Result<Option<Grant>, StoreError> {
        let mut get = cmd("HMGET");
        get.arg(grant_key(vendor)).arg(VERSION).arg(SEALED);
        let (version, sealed): (Option<u64>, Option<Vec<u8>>) = self.0.query(&get).await?;
        let Some(sealed) = sealed else {
            return Ok(None);
        };
        self.0
            .seal()?
            .open(vendor, &sealed)
            // The outer version is the one that is compared; it must agree with the encrypted one.
            .filter(|grant| Some(grant.version) == version)
            .map(Some)
            .ok_or_else(|| {
                let server = self.0.server();
                StoreError::Sealed(format!("{} in {server}", grant_key(vendor)))
            })
    }

    async fn replace(&self, vendor: &str, over: u64, next: &Grant) -> Result<(), StoreError> {
        let sealed = self.0.seal()?.seal(vendor, next);
        let mut replace = cmd("EVAL");
        replace
            .arg(REPLACE)
            .arg(1)
            .arg(grant_key(vendor))
            .arg(over)
            .arg(next.version)
            .arg(sealed);
        if self.0.query::<bool>(&replace).await? {
            return Ok(());
        }
        Err(StoreError::Conflict(vendor.to_owned()))
    }
}

#[async_trait]
impl LeaseStore for Server {
    async fn renew(&self, vendor: &str, holder: &str, lease: Duration) -> Result<bool, StoreError> {
        let mut renew = cmd("EVAL");
        renew
            .arg(RENEW)
            .arg(1)
            .arg(lock_key(vendor))
            .arg(holder)
            .arg(milliseconds(lease));
        self.query(&renew).await
    }

    async fn release(&self, vendor: &str, holder: &str) -> Result<(), StoreError> {
        let mut release = cmd("EVAL");
        release
            .arg(RELEASE)
            .arg(1)
            .arg(lock_key(vendor))
            .arg(holder);
        self.query::<bool>(&release).await.map(drop)
    }
}

impl Server {
    /// Returns the response to `command`, which must do no harm when it is executed twice.
    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let querying = timeout(OPERATION_TIMEOUT, async {
            let known = self.connection.lock().clone();
            if let Some(mut connection) = known {
                match command.query_async(&mut connection).await {
                    // The server was restarted, or replaced by another, since the last query.
                    Err(error) if should_reconnect(&error) => {}
                    response => return response.map_err(|error| self.error(&error)),
                }
            }
            let mut connection = self.connect().await?;
            let response = command.query_async(&mut connection).await;
            let response = response.map_err(|error| self.error(&error))?;
            *self.connection.lock() = Some(connection);
            Ok(response)
        });
        let response = querying.await.unwrap_or_else(|_| {
            Err(self.remote(format!(
                "no response within {}",
                format_duration(OPERATION_TIMEOUT)
            )))
        });
        if let Err(StoreError::Remote { .. }) = &response {
            // The next query connects again.
            *self.connection.lock() = None;
        }
        response
    }

    /// Connects with the URL's current user and password.
    async fn connect(&self) -> Result<MultiplexedConnection, StoreError> {
        let url = self.url.resolve();
        let url = url.map_err(|cause| self.remote(format!("its URL: {cause}")))?;
        // The library's error for a text that is no URL may repeat parts of it.
        endpoint::redis(url.expose())
            .map_err(|wrong| self.remote(format!("its URL {wrong}; {}", wrong.hint())))?;
        // The library's errors about PEM repeat parts of the file.
        let roots = self.ca.as_deref().map(Roots::load).transpose();
        let roots = roots.map_err(|cause| self.remote(cause.to_string()))?;
        let client = match roots {
            Some(roots) => Client::build_with_tls(
                url.expose(),
                TlsCertificates {
                    client_tls: None,
                    root_cert: Some(roots.pem()),
                },
            ),
            None => Client::open(url.expose()),
        };
        // `query` limits the whole operation.
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        client
            .map_err(|error| self.error(&error))?
            .get_multiplexed_async_connection_with_config(&limits)
            .await
            .map_err(|error| self.error(&error))
    }

    fn seal(&self) -> Result<&Seal, StoreError> {
        if let Some(seal) = self.seal.get() {
            return Ok(seal);
        }
        let seal = Seal::from_ref(&self.key)?;
        Ok(self.seal.get_or_init(|| seal))
    }

    /// Describes an error without what a server may quote of a login.
    fn error(&self, error: &RedisError) -> StoreError {
        let text = error.to_string();
        let quotes_login = self.parsed_url().is_none_or(|url| {
            let login = [url.password().unwrap_or_default(), url.username()];
            login.iter().any(|part| {
                let plain = percent_encoding::percent_decode_str(part).decode_utf8_lossy();
                !part.is_empty() && (text.contains(*part) || text.contains(&*plain))
            })
        });
        self.remote(if quotes_login {
            format!(
                "{} (the rest is left out: it quotes the login)",
                error.category()
            )
        } else {
            text
        })
    }

    fn remote(&self, cause: impl Into<String>) -> StoreError {
        StoreError::Remote {
            server: self.server(),
            cause: describe(&cause.into()),
        }
    }

    /// Returns the URL without user, password and options.
    fn server(&self) -> String {
        self.parsed_url().map_or_else(
            || "the Redis of store.redis.url".to_owned(),
            |mut url| {
                let port = url.port().unwrap_or(6379);
                // Only fails for a URL without a host.
                let _ = url.set_port(Some(port));
                endpoint::without_login(&url)
            },
        )
    }

    /// Returns the current URL; `None`: it cannot be read, or is none.
    fn parsed_url(&self) -> Option<Url> {
        endpoint::redis(self.url.resolve().ok()?.expose()).ok()
    }
}

/// Tells whether another connection may work.
fn should_reconnect(error: &RedisError) -> bool {
    error.is_connection_dropped()
        || error.is_unrecoverable_error()
        // A primary that has become a replica; its name may lead to the new one by now.
        || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
}

fn grant_key(vendor: &str) -> String {
    format!("countersign:{vendor}:grant")
}

fn lock_key(vendor: &str) -> String {
    format!("countersign:{vendor}:lock")
}

fn milliseconds(lease: Duration) -> u64 {
    u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)
}

/// Limit of one operation, including connecting.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(3);

/// Time between two tries while another replica requests a token, which takes tenths of a second.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// Fields of a grant's hash.
const VERSION: &str = "version";
const SEALED: &str = "sealed";

/// Returns 1: stored, or stored already (no two sealed grants are equal); 0: something else is.
const REPLACE: &str = "
local stored = redis.call('HMGET', KEYS[1], 'version', 'sealed')
if stored[2] == ARGV[3] then return 1 end
if (stored[1] or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'sealed', ARGV[3])
return 1";

/// Works like `SET NX PX`, and may be repeated.
const ACQUIRE: &str = "
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";

const RENEW: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

const RELEASE: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])";
