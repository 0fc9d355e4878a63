//! Who sends a request, where it goes and whether it may. One pure function, which the request path
//! and `explain` share.

use std::sync::{Arc, LazyLock};

use crate::config::LoginShape;
use crate::error::Error;
use crate::pattern::interpretations;
use crate::request::caller::{self, Caller};
use crate::request::path::Target;
use crate::request::vendor::{Routes, Vendor};

/// The parts of a request that the decision needs.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The method.
    pub method: &'a str,
    /// The checked target.
    pub target: Target<'a>,
    /// Host and port, checked.
    pub authority: &'a str,
    /// The TLS server name, lower-case, when the handshake had one.
    pub server_name: Option<&'a str>,
}

/// The outcome: the vendor and the caller, and the upstream path or the refusal.
#[derive(Debug)]
pub struct Decision<'a, V> {
    /// The vendor, when one matched.
    pub vendor: Option<&'a Arc<V>>,
    /// Matched by path prefix rather than by host.
    pub by_prefix: bool,
    /// The caller, when one was proven.
    pub caller: Option<Arc<Caller>>,
    /// The path to send upstream, or the refusal.
    pub path: Result<String, Error>,
    /// The form of the response when this is a login call that is answered here. It overrides
    /// `path` once its body was read.
    pub login: Option<LoginShape>,
    /// The rule that decided. Where the request may pass: the caller's permission. Otherwise: the
    /// vendor's pattern that refused the path, `allow` when no pattern of that list matched,
    /// `upstream` when the path leaves the base path, or `login: stub`. `None`: nothing permits it.
    pub rule: Option<Arc<str>>,
}

/// Decides, for `caller` or for an unknown sender. Every refusal has the vendor where one matched,
/// so that it is counted there.
#[must_use]
pub fn decide<'a, V: AsRef<Vendor>>(
    routes: &'a Routes<V>,
    ask: Ask<'_>,
    caller: Result<Arc<Caller>, Error>,
) -> Decision<'a, V> {
    let host = caller::lower(caller::host_of(ask.authority));
    let by_host = routes.by_host(&host).is_some();
    let found = routes.find(&host, ask.target.path);
    let mut decision = Decision {
        vendor: found.as_ref().map(|found| found.vendor),
        by_prefix: !by_host,
        caller: None,
        path: Err(Error::NoVendor),
        login: None,
        rule: None,
    };
    let misdirected = ask
        .server_name
        .is_some_and(|name| *name != *host && (by_host || routes.by_host(name).is_some()));
    let path = found.as_ref().map(|found| {
        let vendor: &Vendor = (**found.vendor).as_ref();
        let path = vendor.upstream_path(ask.target, found.prefix);
        if !misdirected {
            decision.login = vendor.logins.shape(ask.method, &path);
            decision.rule = decision.login.map(|_| STUB.clone());
        }
        path
    });
    let caller = match caller {
        Ok(caller) => decision.caller.insert(caller).clone(),
        Err(refusal) => {
            decision.path = Err(refusal);
            return decision;
        }
    };
    // Not before the caller is known: it would show which names are vendors'.
    if misdirected {
        decision.path = Err(Error::Misdirected);
        return decision;
    }
    let (Some(found), Some(path)) = (found, path) else {
        return decision;
    };
    let vendor: &Vendor = (**found.vendor).as_ref();
    if ask.target.encoded_slash && !vendor.encoded_slash_pass {
        decision.path = Err(Error::BadRequest(
            "The path holds an encoded slash or backslash; encoded_slash: pass would permit it for this vendor.",
        ));
        return decision;
    }
    let inner = match &ask.target.path[found.prefix..] {
        "" => "/",
        inner => inner,
    };
    let granted = caller.grant(&vendor.name, ask.method, inner).filter(|_| {
        let all = interpretations::of(inner);
        all.iter().all(|interpretation| {
            caller.grants_interpretation(&vendor.name, ask.method, interpretation)
        })
    });
    let Some(grant) = granted else {
        decision.path = Err(Error::Forbidden);
        return decision;
    };
    match vendor.rules.check(ask.method, &path) {
        Ok(()) => {
            decision.rule.get_or_insert_with(|| grant.clone());
            decision.path = Ok(path);
        }
        Err(refusal) => {
            decision.rule.get_or_insert_with(|| refusal.rule().into());
            decision.path = Err(Error::RefusedPath);
        }
    }
    decision
}

static STUB: LazyLock<Arc<str>> = LazyLock::new(|| "login: stub".into());
