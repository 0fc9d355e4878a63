//! Host names resolved to addresses, in the background, again each time a resolution's lifetime
//! ends.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;
use tokio::time::Instant;

use crate::wording::describe;

/// The addresses of one name, never empty, in the resolver's order.
pub type Resolved = Vec<IpAddr>;

/// The system's name servers and hosts file; the C library's resolver where those cannot be read.
#[derive(Clone)]
pub struct Resolver(Option<Arc<TokioResolver>>);

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Resolver").field(&self.0.is_some()).finish()
    }
}

/// Bounds of the interval between resolutions, whatever their lifetime is: a lifetime of zero must
/// not become a storm, one of a day must not outlive a vendor's move.
const SOONEST: Duration = Duration::from_secs(5);
const LATEST: Duration = Duration::from_mins(5);
/// Pause after a failure; doubles up to half a minute.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

impl Resolver {
    /// Reads the system's settings.
    #[must_use]
    pub fn system() -> Self {
        let built =
            TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build);
        match built {
            Ok(resolver) => Self(Some(Arc::new(resolver))),
            Err(cause) => {
                tracing::warn!(%cause, "the system's resolver settings cannot be read; using the C library's resolver");
                Self(None)
            }
        }
    }

    /// Prepares to watch `host`.
    #[must_use]
    pub fn watch(&self, host: String) -> Watch {
        Watch {
            resolver: self.clone(),
            host,
        }
    }

    async fn resolve(&self, host: &str) -> Result<(Resolved, Instant), String> {
        let (mut addresses, until): (Resolved, _) = if let Some(resolver) = &self.0 {
            let answer = resolver
                .lookup_ip(host)
                .await
                .map_err(|cause| told(&cause))?;
            let left = answer
                .valid_until()
                .saturating_duration_since(std::time::Instant::now());
            (answer.iter().collect(), Instant::now() + left)
        } else {
            let answer = tokio::net::lookup_host((host, 0))
                .await
                .map_err(|cause| cause.to_string())?;
            let until = Instant::now() + Duration::from_secs(30);
            (answer.map(|address| address.ip()).collect(), until)
        };
        // A repeated address would be tried twice.
        let mut seen = Vec::with_capacity(addresses.len());
        addresses.retain(|address| {
            let new = !seen.contains(address);
            seen.push(*address);
            new
        });
        // IPv4 first: a machine without IPv6 still gets AAAA records, and each one costs a failed
        // connect.
        addresses.sort_by_key(IpAddr::is_ipv6);
        if addresses.is_empty() {
            return Err("the name has no address".into());
        }
        Ok((addresses, until))
    }
}

/// One name to watch.
#[derive(Debug)]
pub struct Watch {
    resolver: Resolver,
    host: String,
}

impl Watch {
    /// Resolves for ever, passing every result to `publish` and every failure to `failed`. A
    /// failure publishes nothing: the last good addresses stay in use.
    pub async fn run(
        self,
        publish: impl Fn(Resolved) + Send + Sync,
        failed: impl Fn(String) + Send + Sync,
    ) {
        let resolve = || self.resolver.resolve(&self.host);
        keep_resolving(&self.host, resolve, publish, failed).await;
    }
}

/// Describes a failure. hickory's own texts repeat the question as a structure of its code.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "hickory's list of errors is open"
)]
fn told(cause: &NetError) -> String {
    if cause.is_nx_domain() {
        return "there is no such name".to_owned();
    }
    if cause.is_no_records_found() {
        return "the name has no address".to_owned();
    }
    match cause {
        NetError::Timeout => "the name servers do not answer".to_owned(),
        NetError::NoConnections => "no name server can be reached".to_owned(),
        NetError::Io(cause) => format!("no name server can be reached: {cause}"),
        other => describe(&other.to_string()),
    }
}

async fn keep_resolving<F>(
    host: &str,
    resolve: impl Fn() -> F,
    publish: impl Fn(Resolved),
    failed: impl Fn(String),
) where
    F: Future<Output = Result<(Resolved, Instant), String>>,
{
    let mut retry = FIRST_RETRY;
    loop {
        match resolve().await {
            Ok((addresses, until)) => {
                retry = FIRST_RETRY;
                publish(addresses);
                let left = until.saturating_duration_since(Instant::now());
                tokio::time::sleep(left.clamp(SOONEST, LATEST)).await;
            }
            Err(cause) => {
                tracing::warn!(host, cause, "the upstream's name cannot be resolved");
                failed(cause);
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn localhost_is_resolved_without_a_name_server() {
        let (addresses, _) = Resolver::system().resolve("localhost").await.unwrap();
        assert!(addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
    }

    /// Returns when each result of `script` (a lifetime in seconds, or a failure) was requested and
    /// published, in seconds from the start. Every failure is reported.
    async fn timeline(script: &[Result<u64, ()>]) -> (Vec<f64>, Vec<f64>) {
        let start = Instant::now();
        let since = || (start.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        let (asked, published) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let resolve = || async {
            let step = asked.borrow().len();
            asked.borrow_mut().push(since());
            match script.get(step) {
                Some(Ok(seconds)) => Ok((
                    vec![IpAddr::from([192, 0, 2, 1])],
                    Instant::now() + Duration::from_secs(*seconds),
                )),
                Some(Err(())) => Err("no answer".to_owned()),
                None => std::future::pending().await,
            }
        };
        let publish = |_| published.borrow_mut().push(since());
        let day = Duration::from_hours(24);
        let failed = RefCell::new(0);
        let told = |_| *failed.borrow_mut() += 1;
        let resolving = keep_resolving("a.test", resolve, publish, told);
        let _ = tokio::time::timeout(day, resolving).await;
        let failures = script.iter().filter(|step| step.is_err()).count();
        assert_eq!(failed.take(), failures);
        (asked.take(), published.take())
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_resolved_again_as_its_lifetime_ends_within_bounds() {
        let (asked, published) = timeline(&[Ok(60), Ok(0), Ok(86_400), Ok(60)]).await;
        assert_eq!(asked, [0.0, 60.0, 65.0, 365.0, 425.0]);
        assert_eq!(published, [0.0, 60.0, 65.0, 365.0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_publishes_nothing_and_is_tried_again_ever_later() {
        let script = [Ok(60), Err(()), Err(()), Err(()), Ok(60), Err(())];
        let (asked, published) = timeline(&script).await;
        assert_eq!(asked, [0.0, 60.0, 60.5, 61.5, 63.5, 123.5, 124.0]);
        assert_eq!(published, [0.0, 63.5]);
    }
}
