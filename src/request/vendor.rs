//! Vendors as the request path knows them, and the look-up by path prefix or host, whose cost does
//! not grow with the number of vendors.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::{HashMap, HashMapExt};
use http::{HeaderName, HeaderValue};

use crate::config::{self, Limits, Timeouts};
use crate::credential::Credential;
use crate::error::Error;
use crate::metrics::VendorMetrics;
use crate::pattern::Rules;
use crate::request::auth_outcomes::AuthOutcomes;
use crate::request::limit::{Limiter, RetryAfterHold};
use crate::request::login::Logins;
use crate::request::path::Target;
use crate::request::placement::Placement;
use crate::request::redact::Prepared;
use crate::request::retry::Budget;
use crate::upstream::breaker::Breaker;

/// One vendor, prepared: nothing here is computed again for a request.
#[derive(Debug)]
pub struct Vendor {
    /// The name in logs, metrics and local replies.
    pub name: Arc<str>,
    /// The path before the vendor's own; empty for the root.
    pub prefix: String,
    /// The upstream's origin and base path.
    pub upstream: config::Upstream,
    /// The value of `Host` for it.
    pub host: HeaderValue,
    /// The path rules.
    pub rules: Rules,
    /// The credential and its placement; `None`: nothing is injected.
    pub credential: Option<(Placement, Arc<Credential>)>,
    /// The time limits.
    pub timeouts: Timeouts,
    /// The size and rate limits.
    pub limits: Limits,
    /// The login calls that are answered here.
    pub logins: Logins,
    /// The bucket of `limits.rate`; `None`: no limit.
    pub rate: Option<Arc<Limiter>>,
    /// The hold by `Retry-After`; `None`: `Retry-After` is ignored.
    pub hold: Option<RetryAfterHold>,
    /// The circuit breaker.
    pub breaker: Arc<Breaker>,
    /// The retry budget.
    pub retries: Budget,
    /// `true`: Cookie and Set-Cookie pass.
    pub cookies_pass: bool,
    /// `true`: `%2F` and `%5C` pass.
    pub encoded_slash_pass: bool,
    /// Names of headers that pass although they hold more than letters, digits and `-`.
    pub header_names: Vec<HeaderName>,
    /// `true`: a 401 renews the credential and replays the request.
    pub retry_on_401: bool,
    /// The counts of how it receives our credential.
    pub auth_outcomes: Arc<AuthOutcomes>,
    /// Prepares the search of responses for our credential; `None`: they are not searched.
    pub echo: Option<Prepared>,
    /// The vendor's metrics.
    pub metrics: VendorMetrics,
    /// The number of requests in flight.
    pub in_flight: Arc<AtomicUsize>,
}

impl Vendor {
    /// Prepares a vendor.
    ///
    /// # Panics
    /// Never: the configuration admits only host names that are header values.
    #[must_use]
    pub fn new(
        vendor: &config::Vendor,
        credential: Option<Arc<Credential>>,
        metrics: VendorMetrics,
    ) -> Self {
        Self {
            name: Arc::from(vendor.name.as_str()),
            prefix: vendor.prefix.trim_end_matches('/').to_owned(),
            upstream: vendor.upstream.clone(),
            host: HeaderValue::from_str(&vendor.upstream.authority())
                .expect("the configuration admits only hosts that are field values"),
            rules: Rules::new(&vendor.refuse, &vendor.allow, vendor.trailing_dots_ignored)
                .below(&vendor.upstream.base),
            credential: vendor.auth.as_ref().map(Placement::of).zip(credential),
            timeouts: vendor.timeouts,
            limits: vendor.limits,
            rate: vendor.limits.rate.map(Limiter::new).map(Arc::new),
            hold: vendor.limits.honour_retry_after.then(RetryAfterHold::none),
            breaker: Arc::new(Breaker::new(&vendor.name, vendor.breaker)),
            retries: Budget::new(),
            logins: Logins::new(&vendor.logins, vendor.trailing_dots_ignored),
            cookies_pass: vendor.cookies_pass,
            encoded_slash_pass: vendor.encoded_slash_pass,
            header_names: vendor.header_names.clone(),
            retry_on_401: vendor.retry_on_401,
            auth_outcomes: Arc::default(),
            echo: vendor.redact_echo.then(Prepared::default),
            metrics,
            in_flight: Arc::default(),
        }
    }

    /// Takes over the counts of `before`, the same vendor under an earlier configuration. Not its
    /// breaker and its hold: the change may have removed the cause. Nor, with another credential,
    /// the counts of its predecessor.
    pub fn take_over(&mut self, before: &Self) {
        self.in_flight = before.in_flight.clone();
        let same_credential = match (&self.credential, &before.credential) {
            (Some((_, now)), Some((_, before))) => Arc::ptr_eq(now, before),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if same_credential {
            self.auth_outcomes = before.auth_outcomes.clone();
        }
        let same = before
            .rate
            .clone()
            .filter(|limiter| Some(limiter.rate()) == self.limits.rate);
        self.rate = same.or_else(|| self.rate.take());
    }

    /// Returns the path to send upstream: the prefix, `prefix` bytes long, replaced by the base
    /// path. It has room for the query.
    #[must_use]
    pub fn upstream_path(&self, target: Target<'_>, prefix: usize) -> String {
        let rest = &target.path[prefix..];
        let base = &self.upstream.base;
        let query = target.query.map_or(0, str::len);
        let mut sent = String::with_capacity(base.len() + rest.len() + 1 + query);
        sent.push_str(base);
        sent.push_str(rest);
        if sent.is_empty() {
            sent.push('/');
        }
        sent
    }

    /// Counts one request in, until the returned value is dropped.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when `limits.in_flight` is reached.
    pub fn enter(self: &Arc<Self>) -> Result<InFlight, Error> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let guard = InFlight(self.clone());
        self.metrics.in_flight.inc();
        if self.limits.in_flight > 0 && before >= self.limits.in_flight {
            return Err(Error::Overloaded);
        }
        Ok(guard)
    }
}

impl AsRef<Self> for Vendor {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// One request in flight.
#[derive(Debug)]
pub struct InFlight(Arc<Vendor>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.in_flight.dec();
    }
}

/// All routes, each to a `V`.
#[derive(Debug)]
pub struct Routes<V> {
    prefixes: HashMap<Box<str>, Arc<V>>,
    hosts: HashMap<Box<str>, Arc<V>>,
    /// Length of the longest prefix, bytes: longer parts of a path need not be tried.
    longest: usize,
}

/// The result of a look-up.
#[derive(Debug, PartialEq, Eq)]
pub struct RouteMatch<'a, V> {
    /// The vendor.
    pub vendor: &'a Arc<V>,
    /// The length of the matched prefix, bytes; 0 where the host matched.
    pub prefix: usize,
}

impl<V> Routes<V> {
    /// Builds the table from `(prefix, hosts, vendor)`, in any order.
    pub fn new(vendors: impl IntoIterator<Item = (String, Vec<String>, Arc<V>)>) -> Self {
        let mut routes = Self {
            prefixes: HashMap::new(),
            hosts: HashMap::new(),
            longest: 0,
        };
        for (prefix, hosts, vendor) in vendors {
            for host in hosts {
                routes.hosts.insert(host.into_boxed_str(), vendor.clone());
            }
            let prefix = prefix.trim_end_matches('/');
            routes.longest = routes.longest.max(prefix.len());
            routes.prefixes.insert(prefix.into(), vendor);
        }
        routes
    }

    /// Returns the vendor with this `host` (lower-case, without a port), or else the one with the
    /// longest prefix of `path`. A prefix matches whole segments: `/v1` covers `/v1` and `/v1/x`,
    /// never `/v10`.
    #[must_use]
    pub fn find(&self, host: &str, path: &str) -> Option<RouteMatch<'_, V>> {
        if let Some(vendor) = self.by_host(host) {
            return Some(RouteMatch { vendor, prefix: 0 });
        }
        let mut end = path.len();
        loop {
            if end <= self.longest
                && let Some(vendor) = self.prefixes.get(&path[..end])
            {
                return Some(RouteMatch {
                    vendor,
                    prefix: end,
                });
            }
            end = path[..end].rfind('/')?;
        }
    }

    /// Returns the vendor that has this host.
    #[must_use]
    pub fn by_host(&self, host: &str) -> Option<&Arc<V>> {
        if self.hosts.is_empty() {
            return None;
        }
        self.hosts.get(host)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(prefixes: &[&str]) -> Routes<String> {
        Routes::new(
            prefixes
                .iter()
                .map(|prefix| ((*prefix).to_owned(), vec![], Arc::new((*prefix).to_owned()))),
        )
    }

    fn found<'a>(routes: &'a Routes<String>, path: &str) -> Option<(&'a str, usize)> {
        routes
            .find("", path)
            .map(|found| (found.vendor.as_str(), found.prefix))
    }

    #[test]
    fn the_longest_whole_segment_prefix_wins() {
        let routes = table(&["/a", "/a/b"]);
        for (path, want) in [
            ("/a", Some(("/a", 2))),
            ("/a/", Some(("/a", 2))),
            ("/a/x", Some(("/a", 2))),
            ("/a/b", Some(("/a/b", 4))),
            ("/a/b/c", Some(("/a/b", 4))),
            ("/a/bc", Some(("/a", 2))),
            ("/ab", None),
            ("/", None),
        ] {
            assert_eq!(found(&routes, path), want, "{path}");
        }
    }

    #[test]
    fn the_root_prefix_takes_what_no_other_takes() {
        let routes = table(&["/", "/a"]);
        assert_eq!(found(&routes, "/a/x"), Some(("/a", 2)));
        assert_eq!(found(&routes, "/"), Some(("/", 0)));
        assert_eq!(found(&routes, "/x/y"), Some(("/", 0)));
    }

    #[test]
    fn a_host_wins_over_every_prefix() {
        let routes = Routes::new([
            ("/a".to_owned(), vec![], Arc::new("by path")),
            (
                "/b".to_owned(),
                vec!["b.internal".to_owned()],
                Arc::new("by host"),
            ),
        ]);
        let hit = routes.find("b.internal", "/a/x").unwrap();
        assert_eq!((**hit.vendor, hit.prefix), ("by host", 0));
        assert_eq!(**routes.find("other", "/a/x").unwrap().vendor, "by path");
    }

    proptest! {
        #[test]
        fn order_of_declaration_is_irrelevant(path in "(/[ab]{0,2}){0,4}") {
            let declared = table(&["/a", "/a/b", "/b"]);
            let reversed = table(&["/b", "/a/b", "/a"]);
            prop_assert_eq!(found(&declared, &path), found(&reversed, &path));
        }
    }
}
