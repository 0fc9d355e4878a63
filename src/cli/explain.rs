//! `countersign explain`: shows what would happen to a request, without sending it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{self, Auth, Callers, Carrier, Config, Secrets};
use crate::downstream::raw_head;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::request::caller::{Caller, Identified, Presented, host_of, lower};
use crate::request::decide::{Ask, Decision, decide};
use crate::request::headers::{self, StrippedHeaders};
use crate::request::path::Target;
use crate::request::vendor::{Routes, Vendor};
use crate::request::{self, placement};
use crate::server::runtime;
use clap::Args;
use http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::check;
use super::config_file::{self, ConfigFile};

/// Arguments of `countersign explain`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The method, for example GET
    method: String,
    /// Path and query as a caller would send them, for example /certn/hr/v1/applicants/
    path: String,
    /// Same as --config FILE
    #[arg(
        value_name = "FILE",
        value_hint = clap::ValueHint::FilePath,
        conflicts_with = "config"
    )]
    argument: Option<String>,
    /// The Host header that a caller would send
    #[arg(long, default_value = "localhost")]
    host: String,
    /// The caller's name; without it, `allow` rules of callers are not applied
    #[arg(long)]
    caller: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    file: ConfigFile,
}

/// Explains the request. Exit code 0: it would be forwarded; 1: refused; 2: invalid configuration.
pub(super) fn run(mut arguments: Arguments) -> ExitCode {
    let given = arguments.file.with_request(
        &arguments.method,
        &arguments.path,
        arguments.argument.as_deref(),
    );
    let (method, path, file) = given.unwrap_or_else(|message| config_file::refuse(message));
    (arguments.method, arguments.path) = (method.to_owned(), path.to_owned());
    let config = match Config::load(&file, Secrets::FormOnly) {
        Ok(config) => config,
        Err(errors) => {
            check::print_errors(&file, &errors);
            return ExitCode::from(check::BAD_CONFIGURATION);
        }
    };
    let explanation = match explain(&config, &arguments) {
        Ok(explanation) => explanation,
        Err(cause) => return super::failed_or_done(Err(cause)),
    };
    let text = if arguments.json {
        format!("{explanation:#}\n")
    } else {
        as_text(&explanation)
    };
    if let Err(cause) = std::io::stdout().write_all(text.as_bytes()) {
        return super::failed_or_done(Err(cause.to_string()));
    }
    if explanation["forwarded"] == true {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn explain(config: &Config, arguments: &Arguments) -> Result<Value, String> {
    let metrics = Metrics::new();
    let routes = Routes::new(config.vendors.iter().map(|vendor| {
        let prepared = Vendor::new(vendor, None, metrics.vendor(&vendor.name));
        (
            vendor.prefix.clone(),
            vendor.hosts.clone(),
            Arc::new(prepared),
        )
    }));
    let caller = caller(config, arguments.caller.as_deref())?;
    let caller = match &config.callers {
        // Without `callers:`, access depends on the Host header.
        Callers::Loopback => this_machine(&routes, &arguments.host, caller),
        Callers::Anyone | Callers::Known(_) => Ok(caller),
    };
    let decision = decision(&routes, arguments, caller);
    let vendor = decision
        .vendor
        .and_then(|found| config.vendors.iter().find(|one| *one.name == *found.name));
    let query = arguments.path.split_once('?').map(|(_, query)| query);
    if let (Some(_), Some(_)) = (decision.login, &decision.caller) {
        return Ok(json!({
            "forwarded": false,
            "vendor": vendor.map(|vendor| &vendor.name),
            "preset": vendor.and_then(|vendor| vendor.preset.as_ref()),
            "status": 200,
            "reason": "login",
            "detail": "The proxy responds to this login itself, with a caller token of its own.",
            "rule": decision.rule,
        }));
    }
    Ok(match &decision.path {
        Ok(path) => {
            let query = sent_query(vendor, query);
            let target = query.map_or(path.clone(), |query| format!("{path}?{query}"));
            let origin = vendor
                .map(|vendor| vendor.upstream.origin())
                .unwrap_or_default();
            json!({
                "forwarded": true,
                "vendor": vendor.map(|vendor| &vendor.name),
                "preset": vendor.and_then(|vendor| vendor.preset.as_ref()),
                "rule": decision.rule,
                "auth": vendor.map(auth_kind),
                "shared": vendor.is_some_and(is_shared),
                "upstream": format!("{origin}{target}"),
                "headers_added": vendor.map(added).unwrap_or_default(),
                "headers_removed": removed(config, vendor),
                "refused_paths": vendor.map(refused_paths).unwrap_or_default(),
            })
        }
        Err(refusal) => {
            let verdict = refusal.verdict();
            json!({
                "forwarded": false,
                "vendor": vendor.map(|vendor| &vendor.name),
                "preset": vendor.and_then(|vendor| vendor.preset.as_ref()),
                "status": verdict.status.as_u16(),
                "reason": verdict.reason,
                "detail": verdict.detail,
                "rule": decision.rule,
            })
        }
    })
}

/// Identifies `caller` as the proxy identifies a program on this machine.
fn this_machine(
    routes: &Routes<Vendor>,
    authority: &str,
    caller: Arc<Caller>,
) -> Result<Arc<Caller>, Error> {
    let identified = request::caller::Callers::Loopback(caller).identify(Presented {
        headers: &HeaderMap::new(),
        certificate: None,
        authority,
        known_host: routes.by_host(&lower(host_of(authority))).is_some(),
    });
    match identified {
        Identified::Found(found) => found?.caller(),
        Identified::Unverified(_) => Err(Error::UnknownCaller),
    }
}

fn decision<'a>(
    routes: &'a Routes<Vendor>,
    arguments: &Arguments,
    caller: Result<Arc<Caller>, Error>,
) -> Decision<'a, Vendor> {
    let refused = |refusal: Error| Decision {
        vendor: None,
        by_prefix: false,
        caller: None,
        path: Err(refusal),
        login: None,
        rule: None,
    };
    match Method::from_bytes(arguments.method.as_bytes()) {
        Err(_) => return refused(Error::BadRequest(raw_head::ODD_REQUEST_LINE)),
        Ok(Method::TRACE | Method::CONNECT) => return refused(Error::MethodNotAllowed),
        Ok(_) => {}
    }
    if let Err(refusal) = raw_head::check_method(arguments.method.as_bytes()) {
        return refused(refusal);
    }
    let target = match Target::parse(arguments.path.as_bytes()) {
        Ok(target) => target,
        Err(refusal) => return refused(refusal),
    };
    let none = HeaderMap::new();
    let authority = match headers::authority(&none, Some(&arguments.host)) {
        Ok(authority) => authority,
        Err(refusal) => return refused(refusal),
    };
    let ask = Ask {
        method: &arguments.method,
        target,
        authority,
        server_name: None,
    };
    decide(routes, ask, caller)
}

fn caller(config: &Config, name: Option<&str>) -> Result<Arc<Caller>, String> {
    let Some(name) = name else {
        return Ok(Arc::new(Caller::anyone()));
    };
    let Callers::Known(known) = &config.callers else {
        return Err(format!(
            "the configuration has no `callers:`, so no \"{name}\""
        ));
    };
    known
        .iter()
        .find(|caller| caller.name == name)
        .map(|caller| Arc::new(Caller::new(caller)))
        .ok_or_else(|| {
            let names: Vec<_> = known.iter().map(|caller| caller.name.as_str()).collect();
            format!(
                "the configuration has no caller \"{name}\"; it has: {}",
                names.join(", ")
            )
        })
}

fn auth_kind(vendor: &config::Vendor) -> &'static str {
    vendor.auth.as_ref().map_or("none", |auth| auth.kind().name)
}

/// Tells whether all replicas share one token, because the vendor keeps only one valid.
fn is_shared(vendor: &config::Vendor) -> bool {
    vendor.auth.as_ref().is_some_and(Auth::is_shared)
}

/// Returns the query sent upstream, with our own values masked.
fn sent_query(vendor: Option<&config::Vendor>, callers: Option<&str>) -> Option<String> {
    let auth = vendor.and_then(|vendor| vendor.auth.as_ref());
    let Some(Carrier::Query(parameters)) = auth.map(|auth| auth.kind().carrier) else {
        return callers.map(ToOwned::to_owned);
    };
    let names: Vec<_> = parameters.iter().map(|(name, _)| name.clone()).collect();
    let ours = names.iter().map(|name| format!("{name}=***"));
    let theirs = placement::without(callers.unwrap_or_default(), &names).map(ToOwned::to_owned);
    Some(theirs.chain(ours).collect::<Vec<_>>().join("&"))
}

/// Lists what is added to the request, values masked.
fn added(vendor: &config::Vendor) -> Vec<String> {
    let mut added = vec![format!("Host: {}", vendor.upstream.authority())];
    match vendor.auth.as_ref().map(|auth| auth.kind().carrier) {
        None => {}
        Some(Carrier::Authorization(scheme)) => added.push(format!("Authorization: {scheme} ***")),
        Some(Carrier::Headers(headers)) => {
            added.extend(headers.iter().map(|(name, _)| format!("{name}: ***")));
        }
        Some(Carrier::Query(parameters)) => {
            added.extend(parameters.iter().map(|(name, _)| format!("?{name}=***")));
        }
    }
    if vendor.client_cert.is_some() {
        added.push("(client certificate in the TLS handshake)".into());
    }
    added
}

fn removed(config: &Config, vendor: Option<&config::Vendor>) -> Vec<String> {
    let mut names = StrippedHeaders::new(runtime::credential_fields(config)).names();
    if vendor.is_some_and(|vendor| !vendor.cookies_pass) {
        names.push("cookie".into());
    }
    names.extend(headers::OVERRIDE_PREFIXES.map(|prefix| format!("{prefix}*")));
    names.sort();
    names
}

fn refused_paths(vendor: &config::Vendor) -> Vec<String> {
    let rules = vendor.refuse.iter().map(|rule| {
        let method = rule.method.as_ref().map(|method| format!("{method} "));
        let mark = if rule.exception { "!" } else { "" };
        format!("{mark}{}{}", method.unwrap_or_default(), rule.pattern)
    });
    rules.collect()
}

/// Formats the explanation as text.
fn as_text(explanation: &Value) -> String {
    let mut text = String::new();
    let text_of = |key: &str| match &explanation[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            explanation[key].to_string()
        }
    };
    let mut line = |key: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key:<16}{value}");
    };
    if explanation["forwarded"] == true {
        line("forwarded to", &text_of("upstream"));
        line("vendor", &text_of("vendor"));
        line("preset", &text_of("preset"));
        line("rule", &text_of("rule"));
        let shared = explanation["shared"] == true;
        let shared = if shared {
            ", one token for all replicas"
        } else {
            ""
        };
        line("auth", &format!("{}{shared}", text_of("auth")));
        for (title, key) in [
            ("added", "headers_added"),
            ("removed", "headers_removed"),
            ("never passes", "refused_paths"),
        ] {
            for (index, one) in explanation[key]
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
            {
                let title = if index == 0 { title } else { "" };
                line(title, one.as_str().unwrap_or_default());
            }
        }
    } else {
        line(
            "refused",
            &format!("{} {}", text_of("status"), text_of("reason")),
        );
        line("vendor", &text_of("vendor"));
        line("rule", &text_of("rule"));
        line("why", &text_of("detail"));
    }
    text
}
