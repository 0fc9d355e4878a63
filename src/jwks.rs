//! The public keys of callers' token issuers (JWK sets, RFC 7517), kept current.
//!
//! One task per source reads them at intervals; requests only load what is there. A source that is
//! down or broken changes nothing for a day: its last keys go on verifying. A source that has no
//! keys any more has withdrawn them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse, ThumbprintHash,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::{Client, redirect};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};
use url::Url;

use crate::endpoint;
use crate::outbound::Outbound;
use crate::secret::SecretRef;
use crate::tls::{Roots, sha256};
use crate::wording::describe;

/// The source of an issuer's public keys.
#[derive(Clone, Debug, PartialEq)]
pub enum KeySource {
    /// A JWK set in a file.
    File(PathBuf),
    /// A JWK set behind a URL.
    Url {
        /// The URL, https, or http on loopback.
        url: url::Url,
        /// Trusted instead of the system's roots.
        ca: Option<PathBuf>,
        /// Sent as a bearer token.
        token: Option<SecretRef>,
    },
}

/// One key that may verify tokens.
pub struct Key {
    /// `kid`.
    pub id: Option<String>,
    /// The algorithms it may verify: decided by the key, never by a token.
    pub algorithms: Vec<Algorithm>,
    /// The key itself.
    pub verifier: DecodingKey,
    /// The beginning of its RFC 7638 thumbprint, which tells it from others with the same `kid`.
    pub thumbprint: [u8; 8],
}

impl Key {
    /// `None`: of a kind that verifies no token here. Symmetric keys never do: anyone who knows one
    /// could sign with it.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what is not listed verifies nothing, what will be added included"
    )]
    fn new(jwk: &Jwk) -> Option<Self> {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        let common = &jwk.common;
        let of_kind: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512],
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => &[ES256],
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => &[ES384],
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                &[EdDSA]
            }
            _ => return None,
        };
        let algorithms: Vec<_> = match common.key_algorithm {
            None => of_kind.to_vec(),
            Some(only) => {
                let only: Algorithm = only.to_string().parse().ok()?;
                of_kind.iter().copied().filter(|of| *of == only).collect()
            }
        };
        let signs = common
            .public_key_use
            .as_ref()
            .is_none_or(|it| *it == PublicKeyUse::Signature)
            && common
                .key_operations
                .as_ref()
                .is_none_or(|they| they.contains(&KeyOperations::Verify));
        if algorithms.is_empty() || !signs {
            return None;
        }
        let digest = jwk.thumbprint(ThumbprintHash::SHA256).ok()?;
        let mut thumbprint = [0; 8];
        thumbprint.copy_from_slice(&sha256(&[digest.as_bytes()])[..8]);
        Some(Self {
            id: common.key_id.clone(),
            algorithms,
            verifier: DecodingKey::from_jwk(jwk).ok()?,
            thumbprint,
        })
    }
}

/// The keys of one source at one time.
#[derive(Default)]
pub struct KeySet {
    keys: Vec<Key>,
    digest: [u8; 32],
    generation: u64,
}

/// Most keys of a set; no issuer has more.
const MOST_KEYS: usize = 32;
/// Most keys that a token is tried against, and most keys without `kid` in a set: anyone can send a
/// token that matches none of them.
const MOST_TRIES: usize = 8;
/// Longest JWK set, bytes.
const LONGEST: usize = 1 << 20;

impl KeySet {
    /// Reads a JWK set. Keys that cannot verify tokens are left out.
    ///
    /// # Errors
    /// The problem, for people; nothing of the text is repeated.
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let set = Self::parse_any(text)?;
        if set.keys.is_empty() {
            return Err("holds no key that could verify a token (RSA, P-256, P-384, Ed25519)");
        }
        Ok(set)
    }

    /// Reads a JWK set that may have no keys.
    fn parse_any(text: &[u8]) -> Result<Self, &'static str> {
        if text.trim_ascii().is_empty() {
            return Err(BLANK);
        }
        let set: Value = serde_json::from_slice(text).map_err(|_| "is not JSON")?;
        let keys = set["keys"].as_array().ok_or("is not a JWK set")?;
        let mut nameless = 0;
        let keys: Vec<Key> = keys
            .iter()
            .filter_map(|key| Key::new(&serde_json::from_value(key.clone()).ok()?))
            .filter(|key| {
                nameless += usize::from(key.id.is_none());
                key.id.is_some() || nameless <= MOST_TRIES
            })
            .take(MOST_KEYS)
            .collect();
        if nameless > MOST_TRIES {
            warn!(
                keys = nameless,
                used = MOST_TRIES,
                "a JWK set has more keys without a kid than are tried; give each key a kid"
            );
        }
        Ok(Self {
            keys,
            digest: sha256(&[text]),
            generation: 0,
        })
    }

    /// Returns a set without keys.
    fn gone(why: &str) -> Self {
        Self {
            keys: Vec::new(),
            digest: sha256(&[why.as_bytes()]),
            generation: 0,
        }
    }

    /// Returns the keys that may have signed by `algorithm`. With an `id`: the keys with it, or,
    /// where there are none, those without one. Without an `id`: the keys without one, then the
    /// others. At most eight.
    pub fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &Key> {
        let named = id.is_some_and(|id| self.has(id));
        let fits = move |key: &&Key| {
            key.algorithms.contains(&algorithm)
                && if named {
                    key.id.as_deref() == id
                } else {
                    id.is_none() || key.id.is_none()
                }
        };
        let nameless = self.keys.iter().filter(|key| key.id.is_none());
        let others = self.keys.iter().filter(|key| key.id.is_some());
        nameless.chain(others).filter(fits).take(MOST_TRIES)
    }

    /// Tells whether one of the keys has this `kid`.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.id.as_deref() == Some(id))
    }

    /// Tells whether the key with this [`Key::thumbprint`] is in the set.
    #[must_use]
    pub fn holds(&self, thumbprint: [u8; 8]) -> bool {
        self.keys.iter().any(|key| key.thumbprint == thumbprint)
    }

    /// Returns the number of the set among its source's: a result under another set may rest on a
    /// key that is gone.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet")
            .field("keys", &self.keys.len())
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// The keys of one source, as requests see them.
#[derive(Debug, Default)]
pub struct Keys {
    current: ArcSwap<KeySet>,
    missed: Notify,
    settled: AtomicBool,
}

impl Keys {
    /// Returns the keys to use now: one atomic load.
    #[must_use]
    pub fn current(&self) -> arc_swap::Guard<Arc<KeySet>> {
        self.current.load()
    }

    /// Notes that a token has an unknown key id: the source may have a new key.
    pub fn missed(&self) {
        self.missed.notify_one();
    }

    /// Tells whether the first attempt to read them has finished, with or without success.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Publishes `set`, and tells whether it differs from the one before.
    fn publish(&self, mut set: KeySet) -> bool {
        let before = self.current.load();
        self.settled.store(true, Ordering::Release);
        if before.digest == set.digest {
            return false;
        }
        set.generation = before.generation + 1;
        if set.keys.is_empty() {
            warn!("an issuer has withdrawn its keys: its tokens are refused");
        } else {
            info!(keys = set.keys.len(), "an issuer's keys are read");
        }
        self.current.store(Arc::new(set));
        true
    }

    /// Returns keys that never change, for tests of their users.
    #[cfg(test)]
    pub(crate) fn fixed(text: &[u8]) -> Arc<Self> {
        let keys = Self::default();
        keys.publish(KeySet::parse(text).unwrap());
        Arc::new(keys)
    }

    /// Replaces the keys, for tests of their users.
    #[cfg(test)]
    pub(crate) fn replace(&self, text: &[u8]) {
        assert!(self.publish(KeySet::parse(text).unwrap()));
    }
}

/// The task that reads a source, ended when this is dropped. The keys stay usable.
#[derive(Debug)]
pub struct KeyRefreshTask(AbortHandle);

impl Drop for KeyRefreshTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts reading a source. Must be called inside a tokio runtime, which the task then lives on.
/// Keys from a file are there when this returns.
#[must_use]
pub fn start(source: &KeySource) -> (Arc<Keys>, KeyRefreshTask) {
    let keys = Arc::new(Keys::default());
    if let KeySource::File(path) = source
        && let Ok(set) = read(path)
    {
        keys.publish(set);
    }
    let task = tokio::spawn(keep_current(keys.clone(), source.clone()));
    (keys, KeyRefreshTask(task.abort_handle()))
}

/// Interval of reading a URL.
const EVERY: Duration = Duration::from_mins(5);
/// Interval of reading a file; "in use within 10 s" is promised.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Shortest interval in which unknown key ids of tokens cause a read: anyone can send them.
const AT_MOST_EVERY: Duration = Duration::from_secs(30);
/// Time for which the keys of an unreadable source are used.
const KEPT_FOR: Duration = Duration::from_hours(24);
/// The error of an empty source, which may be about to be written.
const BLANK: &str = "is empty";
/// Pause after a failure: doubled from the first value to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

async fn keep_current(keys: Arc<Keys>, source: KeySource) {
    let mut failures = 0_u32;
    let mut forced_from = Instant::now();
    let mut read_last = Instant::now();
    let mut blank = false;
    loop {
        let outcome = match &source {
            KeySource::File(path) => {
                let path = path.clone();
                let reading = tokio::task::spawn_blocking(move || read(&path));
                reading.await.unwrap_or_else(|cause| Err(cause.to_string()))
            }
            KeySource::Url { url, ca, token } => fetch(url, ca.as_deref(), token.as_ref()).await,
        };
        let was_blank = std::mem::replace(
            &mut blank,
            outcome.as_ref().is_err_and(|cause| cause == BLANK),
        );
        let outcome = match outcome {
            // Twice is no accident.
            Err(_) if blank && was_blank => Ok(KeySet::gone(BLANK)),
            outcome => outcome,
        };
        let pause = match outcome {
            Ok(set) => {
                failures = 0;
                read_last = Instant::now();
                keys.publish(set);
                EVERY.mul_f64(0.9 + fastrand::f64() / 5.0)
            }
            Err(cause) => {
                keys.settled.store(true, Ordering::Release);
                // A file that stays broken is worth one line.
                if failures == 0 || matches!(source, KeySource::Url { .. }) {
                    let source = source_name(&source);
                    warn!(
                        source,
                        cause,
                        "an issuer's keys cannot be read; the last ones stay in use for a day"
                    );
                }
                if read_last.elapsed() >= KEPT_FOR && !keys.current().keys.is_empty() {
                    warn!(
                        source = source_name(&source),
                        "an issuer's keys could not be read for a day: they are no longer used"
                    );
                    keys.publish(KeySet::gone("too old"));
                }
                let pause = BACK_OFF.0.saturating_mul(2_u32.saturating_pow(failures));
                failures += 1;
                pause.min(BACK_OFF.1)
            }
        };
        if let KeySource::File(_) = source {
            sleep(LOOK_EVERY).await;
            continue;
        }
        let due = Instant::now() + pause;
        tokio::select! {
            () = sleep_until(due) => {}
            () = async {
                keys.missed.notified().await;
                sleep_until(forced_from).await;
            } => forced_from = Instant::now() + AT_MOST_EVERY,
        }
    }
}

/// Returns the source's name for logs.
fn source_name(source: &KeySource) -> String {
    match source {
        KeySource::File(path) => path.display().to_string(),
        KeySource::Url { url, .. } => endpoint::without_login(url),
    }
}

fn read(path: &Path) -> Result<KeySet, String> {
    let text = std::fs::read(path).map_err(|cause| cause.to_string())?;
    KeySet::parse_any(&text).map_err(ToOwned::to_owned)
}

async fn fetch(url: &Url, ca: Option<&Path>, token: Option<&SecretRef>) -> Result<KeySet, String> {
    let mut request = client(url, ca)?
        .get(url.clone())
        .header("Accept", "application/jwk-set+json, application/json");
    if let Some(token) = token {
        let token = token.resolve().map_err(|cause| cause.to_string())?;
        let token = token
            .to_header("Bearer ")
            .map_err(|_| "jwks_token holds a character that no header field may hold")?;
        request = request.header("Authorization", token);
    }
    // The error of a request contains its URL.
    let text = |cause: reqwest::Error| {
        let cause = cause.without_url();
        let source = std::error::Error::source(&cause).map(ToString::to_string);
        describe(&format!("{cause}: {}", source.unwrap_or_default()))
    };
    let mut answer = request.send().await.map_err(text)?;
    if answer.status() != 200 {
        return Err(format!("status {}", answer.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(text)? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST {
            return Err("longer than 1 MiB".into());
        }
    }
    KeySet::parse_any(&body).map_err(ToOwned::to_owned)
}

/// Returns a client for one request: the CA may have changed since the last.
fn client(url: &Url, ca: Option<&Path>) -> Result<Client, String> {
    let builder = Client::builder()
        .redirect(redirect::Policy::none())
        .timeout(Duration::from_secs(10))
        .user_agent(concat!("countersign/", env!("CARGO_PKG_VERSION")));
    let builder = if url.scheme() == "http" {
        // On this machine, and nowhere else.
        builder.no_proxy().tls_certs_only([])
    } else {
        let outbound = Outbound::new(None);
        outbound.via(url).map_err(|unusable| unusable.to_string())?;
        let roots = match ca {
            Some(path) => Roots::load(path).map_err(|cause| cause.to_string())?,
            None => Roots::system(),
        };
        let tls = roots
            .client_config(None)
            .map_err(|cause| cause.to_string())?;
        builder
            .proxy(reqwest::Proxy::custom(move |url| outbound.url(url)))
            .tls_backend_preconfigured(tls)
    };
    builder.build().map_err(|cause| cause.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const SET: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn keys_of(dir: &tempfile::TempDir) -> (PathBuf, Arc<Keys>, KeyRefreshTask) {
        let path = dir.path().join("jwks.json");
        std::fs::write(&path, SET).unwrap();
        let (keys, task) = start(&KeySource::File(path.clone()));
        assert!(keys.current().has("a"));
        (path, keys, task)
    }

    async fn eventually(keys: &Keys, there: bool) -> bool {
        let until = Instant::now() + Duration::from_secs(15);
        while keys.current().has("a") != there && Instant::now() < until {
            sleep(Duration::from_millis(500)).await;
        }
        keys.current().has("a") == there
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_that_was_emptied_takes_its_keys_back_within_15_s() {
        let dir = tempfile::tempdir().unwrap();
        let (path, keys, _task) = keys_of(&dir);
        for empty in [
            r#"{"keys":[]}"#,
            r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#,
            "",
        ] {
            std::fs::write(&path, empty).unwrap();
            assert!(eventually(&keys, false).await, "{empty}");
            std::fs::write(&path, SET).unwrap();
            assert!(eventually(&keys, true).await, "{empty}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_whose_source_is_gone_or_broken_are_used_for_a_day() {
        for broken in [None, Some("{")] {
            let dir = tempfile::tempdir().unwrap();
            let (path, keys, _task) = keys_of(&dir);
            sleep(Duration::from_secs(10)).await;
            match broken {
                None => std::fs::remove_file(&path).unwrap(),
                Some(text) => std::fs::write(&path, text).unwrap(),
            }
            tokio::time::advance(Duration::from_mins(24 * 60 - 1)).await;
            sleep(Duration::from_secs(10)).await;
            assert!(keys.current().has("a"), "{broken:?}");
            tokio::time::advance(Duration::from_mins(1)).await;
            assert!(eventually(&keys, false).await, "{broken:?}");
            std::fs::write(&path, SET).unwrap();
            assert!(eventually(&keys, true).await, "{broken:?}");
        }
    }
}
