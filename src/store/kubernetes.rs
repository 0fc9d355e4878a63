//! Stores grants in a Kubernetes Secret, shared by replicas: one encrypted entry per vendor, and
//! beside it one Lease per vendor as the lock. Only the API server is needed.
//!
//! Nodes' clocks differ, so every time in a Lease is the API server's, taken from its responses.
//! The API server compares `resourceVersion` at every update, so that no change is lost. Nothing is
//! watched: a replica that waits for another's token polls every few seconds.
//!
//! The service account needs, with `secret: countersign-state` and a vendor `acme`:
//!
//! ```yaml
//! rules:
//!   - { apiGroups: [ "" ], resources: [ secrets ], resourceNames: [ countersign-state ], verbs: [ get, update ] }
//!   - { apiGroups: [ coordination.k8s.io ], resources: [ leases ], resourceNames: [ countersign-state-acme ], verbs: [ get, update ] }
//! ```
//!
//! An administrator creates both beforehand, empty. Missing ones are created here if `create` is
//! granted too. It had better not be: it cannot be granted for one name, and a client that may
//! create Secrets may create one that holds another service account's token.

mod cluster;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{Method, StatusCode};
use humantime::format_duration;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, timeout};

use self::cluster::{ApiResponse, Cluster};
use super::lease::{HeldLease, LeaseStore};
use super::seal::Seal;
use super::{Grant, Kind, Lock, Store, StoreError, new_holder};
use crate::secret::SecretRef;
use crate::tls::sha256;

/// The Kubernetes store.
pub(super) struct KubernetesStore(Arc<Objects>);

struct Objects {
    cluster: Cluster,
    secret: String,
    namespace: Option<String>,
    key: SecretRef,
    /// Read when first needed.
    seal: OnceLock<Seal>,
}

impl KubernetesStore {
    pub(super) fn new(secret: &str, namespace: Option<&String>, key: &SecretRef) -> Self {
        Self(Arc::new(Objects {
            cluster: Cluster::from_environment(),
            secret: secret.to_owned(),
            namespace: namespace.cloned(),
            key: key.clone(),
            seal: OnceLock::new(),
        }))
    }
}

#[async_trait]
impl Store for KubernetesStore {
    async fn lock(
        &self,
        vendor: &str,
        lease: Duration,
        at_most: Duration,
    ) -> Result<Lock, StoreError> {
        let deadline = Instant::now() + at_most;
        let holder = new_holder()?;
        loop {
            let requested = Instant::now();
            if self
                .0
                .with_timeout(self.0.acquire(vendor, &holder, lease))
                .await?
            {
                let held = HeldLease::new(self.0.clone(), vendor, holder, lease, requested);
                return Ok(Lock(Kind::Lease(held)));
            }
            if Instant::now() >= deadline {
                let name = self.0.lease_name(vendor);
                return Err(StoreError::Locked(format!("the Lease {name}")));
            }
            sleep(LOCK_POLL).await;
        }
    }

    async fn load(&self, vendor: &str) -> Result<Option<Grant>, StoreError> {
        let secret = self.0.with_timeout(self.0.secret()).await?;
        self.0.grant_in(secret.as_ref(), vendor)
    }

    async fn replace(&self, vendor: &str, over: u64, next: &Grant) -> Result<(), StoreError> {
        self.0
            .with_timeout(self.0.replace(vendor, over, next))
            .await
    }
}

#[async_trait]
impl LeaseStore for Objects {
    async fn renew(&self, vendor: &str, holder: &str, lease: Duration) -> Result<bool, StoreError> {
        let renewing = async {
            let name = self.lease_name(vendor);
            let (mut found, now) = self.get(LEASES, &name).await?;
            if let Some(found) = &mut found
                && found["spec"]["holderIdentity"] == holder
            {
                found["spec"]["renewTime"] = micro_time(now);
                found["spec"]["leaseDurationSeconds"] = whole_seconds(lease).into();
                return self.put(LEASES, &name, found).await;
            }
            Ok(false)
        };
        self.with_timeout(renewing).await
    }

    async fn release(&self, vendor: &str, holder: &str) -> Result<(), StoreError> {
        let releasing = async {
            let name = self.lease_name(vendor);
            let (mut found, _) = self.get(LEASES, &name).await?;
            if let Some(found) = &mut found
                && found["spec"]["holderIdentity"] == holder
                && let Some(spec) = found["spec"].as_object_mut()
            {
                spec.remove("holderIdentity");
                self.put(LEASES, &name, found).await?;
            }
            Ok(())
        };
        self.with_timeout(releasing).await
    }
}

impl Objects {
    /// Returns `None` when the Secret does not exist.
    async fn secret(&self) -> Result<Option<Value>, StoreError> {
        let (secret, _) = self.get(SECRETS, &self.secret).await?;
        Ok(secret)
    }

    fn grant_in(&self, secret: Option<&Value>, vendor: &str) -> Result<Option<Grant>, StoreError> {
        // Every vendor's name is a valid key: letters, digits, `-`, `_` and `.`.
        let entry = secret.and_then(|secret| secret["data"][vendor].as_str());
        let Some(entry) = entry else {
            return Ok(None);
        };
        let sealed = BASE64_STANDARD.decode(entry).ok();
        let seal = self.seal()?;
        let grant = sealed.and_then(|sealed| seal.open(vendor, &sealed));
        grant
            .ok_or_else(|| StoreError::Sealed(format!("{vendor} in the Secret {}", self.secret)))
            .map(Some)
    }

    async fn replace(&self, vendor: &str, over: u64, next: &Grant) -> Result<(), StoreError> {
        let sealed = BASE64_STANDARD.encode(self.seal()?.seal(vendor, next));
        loop {
            let found = self.secret().await?;
            let stored = self.grant_in(found.as_ref(), vendor)?;
            if stored.map_or(0, |stored| stored.version) != over {
                return Err(StoreError::Conflict(vendor.to_owned()));
            }
            let replaced = if let Some(mut secret) = found {
                // The field is absent while the Secret is empty.
                if !secret["data"].is_object() {
                    secret["data"] = Map::new().into();
                }
                secret["data"][vendor] = sealed.as_str().into();
                self.put(SECRETS, &self.secret, &secret).await?
            } else {
                let secret = json!({
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": { "name": self.secret, "labels": { MANAGED_BY: "countersign" } },
                    "type": "Opaque",
                    "data": { vendor: sealed },
                });
                self.post(SECRETS, &secret).await?
            };
            if replaced {
                return Ok(());
            }
            // It may have been another vendor's entry; ours is compared again.
            sleep(Duration::from_millis(fastrand::u64(10..50))).await;
        }
    }

    /// Acquires the lock if it is free; `false`: it is not, or somebody else was faster.
    async fn acquire(
        &self,
        vendor: &str,
        holder: &str,
        lease: Duration,
    ) -> Result<bool, StoreError> {
        let name = self.lease_name(vendor);
        let (found, server_time) = self.get(LEASES, &name).await?;
        let now = micro_time(server_time);
        let Some(mut found) = found else {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": name, "labels": { MANAGED_BY: "countersign" } },
                "spec": {
                    "holderIdentity": holder,
                    "leaseDurationSeconds": whole_seconds(lease),
                    "acquireTime": now,
                    "renewTime": now,
                    "leaseTransitions": 0,
                },
            });
            return self.post(LEASES, &lease).await;
        };
        let held_by_another = found["spec"]["holderIdentity"]
            .as_str()
            .is_some_and(|other| !other.is_empty() && other != holder);
        if held_by_another && !is_expired(&found, server_time) {
            return Ok(false);
        }
        let transitions = found["spec"]["leaseTransitions"].as_u64().unwrap_or(0);
        found["spec"] = json!({
            "holderIdentity": holder,
            "leaseDurationSeconds": whole_seconds(lease),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": transitions + 1,
        });
        self.put(LEASES, &name, &found).await
    }

    /// Returns the object (`None`: there is none) and the API server's time.
    async fn get(
        &self,
        collection: Collection,
        name: &str,
    ) -> Result<(Option<Value>, SystemTime), StoreError> {
        let response = self
            .request(Method::GET, collection, Some(name), None)
            .await?;
        match response.status {
            StatusCode::OK => Ok((Some(response.body), response.server_time)),
            StatusCode::NOT_FOUND => Ok((None, response.server_time)),
            _ => Err(response.error()),
        }
    }

    /// Returns `false` when the object was changed or deleted since it was read.
    async fn put(
        &self,
        collection: Collection,
        name: &str,
        object: &Value,
    ) -> Result<bool, StoreError> {
        let response = self
            .request(Method::PUT, collection, Some(name), Some(object))
            .await?;
        match response.status {
            StatusCode::OK | StatusCode::CREATED => Ok(true),
            StatusCode::CONFLICT | StatusCode::NOT_FOUND => Ok(false),
            _ => Err(response.error()),
        }
    }

    /// Returns `false` when somebody else created the object meanwhile.
    async fn post(&self, collection: Collection, object: &Value) -> Result<bool, StoreError> {
        let response = self
            .request(Method::POST, collection, None, Some(object))
            .await?;
        match response.status {
            StatusCode::OK | StatusCode::CREATED => Ok(true),
            StatusCode::CONFLICT => Ok(false),
            _ => Err(response.error()),
        }
    }

    async fn request(
        &self,
        method: Method,
        collection: Collection,
        name: Option<&str>,
        body: Option<&Value>,
    ) -> Result<ApiResponse, StoreError> {
        let Collection { group, plural } = collection;
        let name = name.map(|name| format!("/{name}")).unwrap_or_default();
        let path = |namespace: &str| format!("{group}/namespaces/{namespace}/{plural}{name}");
        self.cluster
            .request(method, self.namespace.as_deref(), path, body)
            .await
    }

    /// Returns `SECRET-VENDOR` where Kubernetes accepts that as a name; otherwise a sanitized form,
    /// made unique by a digest.
    fn lease_name(&self, vendor: &str) -> String {
        let plain = format!("{}-{vendor}", self.secret);
        let label = |text: &str| {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            !text.is_empty()
                && text.bytes().all(inner)
                && !text.starts_with('-')
                && !text.ends_with('-')
        };
        if plain.len() <= MAX_NAME && plain.split('.').all(label) {
            return plain;
        }
        let digest = hex::encode(&sha256(&[vendor.as_bytes()])[..8]);
        let sanitized: String = vendor
            .bytes()
            .take(32)
            .map(|b| match b.to_ascii_lowercase() {
                b if b.is_ascii_lowercase() || b.is_ascii_digit() => char::from(b),
                _ => '-',
            })
            .collect();
        let max_secret = MAX_NAME - digest.len() - sanitized.len() - 4;
        let secret: String = self.secret.chars().take(max_secret).collect();
        let secret = secret.trim_end_matches(['-', '.']);
        format!("{secret}-x{sanitized}x-{digest}")
    }

    async fn with_timeout<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        timeout(OPERATION_TIMEOUT, work).await.unwrap_or_else(|_| {
            Err(StoreError::Remote {
                server: "the Kubernetes API".to_owned(),
                cause: format!("no response within {}", format_duration(OPERATION_TIMEOUT)),
            })
        })
    }

    fn seal(&self) -> Result<&Seal, StoreError> {
        if let Some(seal) = self.seal.get() {
            return Ok(seal);
        }
        let seal = Seal::from_ref(&self.key)?;
        Ok(self.seal.get_or_init(|| seal))
    }
}

/// Tells whether a Lease's holder has failed to renew it.
fn is_expired(lease: &Value, now: SystemTime) -> bool {
    let spec = &lease["spec"];
    let duration = Duration::from_secs(spec["leaseDurationSeconds"].as_u64().unwrap_or(0));
    let renewed = spec["renewTime"].as_str().unwrap_or_default();
    let renewed = humantime::parse_rfc3339(renewed).unwrap_or(SystemTime::UNIX_EPOCH);
    renewed + duration + CLOCK_SKEW < now
}

/// Objects of one kind.
#[derive(Clone, Copy)]
struct Collection {
    group: &'static str,
    plural: &'static str,
}

const SECRETS: Collection = Collection {
    group: "/api/v1",
    plural: "secrets",
};
const LEASES: Collection = Collection {
    group: "/apis/coordination.k8s.io/v1",
    plural: "leases",
};

/// Formats a time as Kubernetes does: RFC 3339 with microseconds.
fn micro_time(at: SystemTime) -> Value {
    humantime::format_rfc3339_micros(at).to_string().into()
}

fn whole_seconds(lease: Duration) -> u64 {
    lease.as_secs() + u64::from(lease.subsec_nanos() > 0)
}

/// Limit of one operation, including all its requests.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(3);

/// Time between two tries while another replica requests a token. The API server serves others too.
const LOCK_POLL: Duration = Duration::from_millis(500);

/// Difference between API servers, which tell whole seconds. A living holder renews its Lease long
/// before.
const CLOCK_SKEW: Duration = Duration::from_secs(2);

/// Longest name of an object, in bytes.
const MAX_NAME: usize = 253;

/// The label that Kubernetes recommends.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn objects(secret: &str) -> Objects {
        let key = SecretRef::Value(Secret::new("11".repeat(32)));
        Arc::into_inner(KubernetesStore::new(secret, None, &key).0).unwrap()
    }

    #[test]
    fn every_vendor_has_a_lease_with_a_name_that_kubernetes_accepts() {
        assert_eq!(objects("state").lease_name("acme"), "state-acme");
        let long = "s".repeat(253);
        let mut names = Vec::new();
        for secret in ["state", "a.b", &long] {
            for vendor in [
                "a",
                "A",
                "a_",
                "_a",
                "a.",
                "a.b",
                "a-b",
                "a_b",
                "-",
                &"x".repeat(300),
            ] {
                let name = objects(secret).lease_name(vendor);
                assert!(name.len() <= MAX_NAME, "{name}");
                for label in name.split('.') {
                    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                    assert!(label.chars().all(fits), "{name}");
                    assert!(!label.is_empty(), "{name}");
                    assert!(!label.starts_with('-') && !label.ends_with('-'), "{name}");
                }
                names.push(name);
            }
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_lease_expires_when_it_was_not_renewed_for_its_duration() {
        let renewed = SystemTime::now();
        let lease = json!({
            "spec": { "leaseDurationSeconds": 15, "renewTime": micro_time(renewed) },
        });
        for (seconds, over) in [
            (0, false),
            (15, false),
            (16, false),
            (18, true),
            (3600, true),
        ] {
            let now = renewed + Duration::from_secs(seconds);
            assert_eq!(is_expired(&lease, now), over, "{seconds}");
        }
        assert!(!is_expired(&lease, renewed - Duration::from_mins(10)));
        // A Lease without times is free, whoever wrote it.
        assert!(is_expired(
            &json!({ "spec": { "holderIdentity": "x" } }),
            renewed
        ));
    }
}
