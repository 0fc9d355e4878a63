//! The paths that may pass to a vendor: `refuse:` and `allow:`, of the preset and of the file.

use url::Url;

use super::auth::{Auth, LoginEndpoint};
use super::file;
use super::presets::{LoginPath, Preset};
use super::reader::Reader;
use super::report::{KeyPath, list};
use super::rules::path_rules;
use super::upstream::Upstream;
use crate::pattern::{
    PathRule, comparable, decode_slashes, glob, is_unreserved, stands_in_segments,
};

/// Returns the paths of the upstream's own server that issue, renew or revoke tokens.
pub(super) fn logins(auth: &Auth, upstream: &Upstream, trailing_dots_ignored: bool) -> Vec<Login> {
    let on_upstream = |url: &Url| {
        // http:// and https:// of one host on their default ports are one server.
        let port = |port: u16| if port == 80 { 443 } else { port };
        let host = url.host_str().unwrap_or_default();
        host.trim_matches(['[', ']']) == upstream.host
            && url.port_or_known_default().map(port) == Some(port(upstream.port))
    };
    let endpoints = auth
        .kind()
        .tokens
        .map_or(Vec::new(), |tokens| tokens.endpoints);
    let on_upstream = endpoints
        .iter()
        .filter(|endpoint| on_upstream(endpoint.url));
    let protect = |endpoint: &LoginEndpoint<'_>, path: String| {
        if endpoint.closed_below.is_empty() {
            let rules = vec![path.clone(), path + "/"];
            return Login {
                never: rules.clone(),
                rules,
            };
        }
        let never = endpoint.closed_below.iter();
        Login {
            never: never.map(|below| format!("{path}{below}")).collect(),
            rules: vec![format!("{path}/**"), path],
        }
    };
    on_upstream
        .flat_map(|endpoint| {
            let forms = compared_forms(endpoint.url, trailing_dots_ignored).into_iter();
            forms.map(|path| protect(endpoint, path))
        })
        .collect()
}

/// Returns the login calls that `login: stub` answers: the kind's own and the preset's, below the
/// prefix even where the vendor takes them on another host.
pub(super) fn answered(
    auth: &Auth,
    preset: Option<&Preset>,
    upstream: &Upstream,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Vec<LoginPath> {
    let trailing_dots_ignored = preset.is_some_and(|preset| preset.trailing_dots_ignored);
    let base = upstream.base.as_str();
    let below = |path: &str| {
        let start = path.get(..base.len());
        let is_below = start.is_some_and(|start| start.eq_ignore_ascii_case(base))
            && matches!(path.as_bytes().get(base.len()), None | Some(b'/'));
        if is_below {
            path.to_owned()
        } else {
            format!("{base}{path}")
        }
    };
    let endpoints = auth
        .kind()
        .tokens
        .map_or(Vec::new(), |tokens| tokens.endpoints);
    let mut logins = Vec::new();
    for endpoint in endpoints {
        let url = below(&compared_form(endpoint.url, trailing_dots_ignored));
        for &(method, path, shape) in endpoint.stubs {
            logins.push(LoginPath {
                rule: PathRule {
                    exception: false,
                    method: method.map(ToOwned::to_owned),
                    pattern: format!("{url}{path}"),
                },
                shape,
            });
        }
    }
    for (shape, texts) in preset.iter().flat_map(|preset| &preset.logins) {
        let rules = texts.iter().filter_map(|text| path_rules(text).ok());
        logins.extend(rules.flatten().map(|rule| LoginPath {
            rule: PathRule {
                pattern: below(&rule.pattern),
                ..rule
            },
            shape: *shape,
        }));
    }
    if logins.is_empty() {
        let hint =
            "login calls come from a preset or a kind that fetches tokens; this vendor has neither";
        reader
            .report
            .warn(at, "there is no login call to answer", hint);
    }
    logins
}

/// Rules that are added by themselves, and paths that no exception may open.
pub(super) struct Login {
    rules: Vec<String>,
    never: Vec<String>,
}

/// Returns the path of `url` in the form in which rules are compared with a request's path.
fn compared_form(url: &Url, trailing_dots_ignored: bool) -> String {
    let path = url.path().trim_end_matches('/');
    comparable(path, trailing_dots_ignored, is_unreserved).into_owned()
}

/// Returns every form in which a request for `url` is compared: as [`Rules`] does it, once with the
/// escapes of unreserved characters decoded, once with all that servers decode within a segment.
///
/// [`Rules`]: crate::pattern::Rules
fn compared_forms(url: &Url, trailing_dots_ignored: bool) -> Vec<String> {
    let form = compared_form(url, trailing_dots_ignored);
    let slashed = decode_slashes(url.path().trim_end_matches('/'));
    let decoded = comparable(&slashed, trailing_dots_ignored, stands_in_segments).into_owned();
    if decoded == form {
        vec![form]
    } else {
        vec![form, decoded]
    }
}

/// Returns `refuse` and `allow` of a vendor: the preset's rules, the file's, and those that protect
/// `logins`.
pub(super) fn rules(
    entry: &file::Vendor,
    preset: Option<&Preset>,
    base: &str,
    logins: Vec<Login>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> (Vec<PathRule>, Vec<PathRule>) {
    let read = |written: &[Option<String>], at: &KeyPath, reader: &mut Reader<'_>| {
        let mut read: Vec<(usize, PathRule)> = Vec::new();
        for (nth, text) in written.iter().enumerate() {
            let Some(text) = text else { continue };
            match path_rules(text) {
                Ok(rules) => read.extend(rules.into_iter().map(|rule| (nth, rule))),
                Err((message, hint)) => reader.report.error(&at.index(nth), message, hint),
            }
        }
        read
    };
    let of_preset = |texts: &[String]| -> Vec<PathRule> {
        let rules = texts.iter().filter_map(|text| path_rules(text).ok());
        let rules: Vec<PathRule> = rules.flatten().collect();
        // Behind a gateway the vendor's paths begin with the base path. A base path that is part of
        // the vendor's own paths is in them already.
        let below = rules
            .iter()
            .filter(|_| !base.is_empty())
            .map(|rule| PathRule {
                pattern: format!("{base}{}", rule.pattern),
                ..rule.clone()
            });
        rules.iter().cloned().chain(below).collect()
    };

    let mut refuse = preset.map_or(vec![], |preset| of_preset(&preset.refuse));
    let refuse_at = at.key("refuse");
    for (nth, rule) in read(
        entry.refuse.as_deref().unwrap_or_default(),
        &refuse_at,
        reader,
    ) {
        let pattern = rule.pattern.to_ascii_lowercase();
        let mut never = logins.iter().flat_map(|login| &login.never);
        if rule.exception && never.any(|path| glob(&pattern, &path.to_ascii_lowercase())) {
            reader.report.error(
                &refuse_at.index(nth),
                "opens the path where this vendor's tokens are issued",
                "it stays refused: a caller could obtain the credential there",
            );
        }
        refuse.push(rule);
    }
    for pattern in logins.into_iter().flat_map(|login| login.rules) {
        let rule = PathRule {
            exception: false,
            method: None,
            pattern,
        };
        if !refuse.contains(&rule) {
            refuse.push(rule);
        }
    }

    let widest = preset.map_or(vec![], |preset| of_preset(&preset.allow));
    let allow_at = at.key("allow");
    let Some(written) = &entry.allow else {
        return (refuse, widest);
    };
    let own = read(written, &allow_at, reader);
    if !own.is_empty() && own.iter().all(|(_, rule)| rule.exception) {
        let hint = "add paths that may pass, for example `/**`";
        reader
            .report
            .error(&allow_at, "has only exceptions, so nothing passes", hint);
    }
    for (nth, rule) in &own {
        if !rule.exception && !widest.is_empty() && !widest.iter().any(|wide| within(rule, wide)) {
            let known: Vec<&str> = widest.iter().map(|rule| rule.pattern.as_str()).collect();
            reader.report.error(
                &allow_at.index(*nth),
                "permits more than the preset does",
                format!(
                    "the preset allows {}, and can only be narrowed",
                    list(&known)
                ),
            );
        }
    }
    (refuse, own.into_iter().map(|(_, rule)| rule).collect())
}

/// Tells whether `wide` (`/…/**`) plainly covers everything that `rule` covers.
fn within(rule: &PathRule, wide: &PathRule) -> bool {
    let (Some(root), None) = (wide.pattern.strip_suffix("**"), &wide.method) else {
        return rule.pattern.eq_ignore_ascii_case(&wide.pattern);
    };
    let start = rule.pattern.get(..root.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(root))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::{Config, Secrets};
    use crate::pattern::Rules;

    /// Returns the rules of a vendor whose token URL has this path.
    fn rules_for(path: &str, preset: &str) -> Rules {
        let yaml = format!(
            "vendors:\n  v:\n    prefix: /v\n{preset}    upstream: https://vendor.example\n    auth:\n      client_credentials:\n        token_url: https://vendor.example{path}\n        client_id: me\n        client_secret: {{ env: SECRET }}\n"
        );
        let config = Config::parse(&yaml, Path::new("proxy.yaml"), Secrets::FormOnly).unwrap();
        let vendor = &config.vendors[0];
        Rules::new(&vendor.refuse, &vendor.allow, vendor.trailing_dots_ignored)
    }

    #[test]
    fn a_token_url_is_protected_however_its_path_is_spelled() {
        for (written, called) in [
            ("/%74oken", "/token"),
            ("/token;v=1", "/token"),
            ("/token;v=1", "/token;v=1"),
            ("/token%3Bv=1", "/token%3Bv=1"),
            ("/token%3bv=1", "/token"),
            ("/oauth%2Ftoken", "/oauth%2Ftoken"),
            ("/oauth%2Ftoken", "/oauth/token"),
            ("/oauth%5Ctoken", "/oauth%5ctoken"),
            ("/Token", "/token"),
            ("/tok%21en", "/tok%21en"),
            ("/tok%21en", "/tok!en"),
            ("/tok!en", "/tok%21en"),
            ("/tok%C3%A9n", "/tok%c3%a9n"),
        ] {
            let rules = rules_for(written, "");
            assert!(
                rules.check("POST", called).is_err(),
                "{written} called as {called}"
            );
        }
        for (written, called) in [
            ("/token.", "/token."),
            ("/token.", "/token"),
            ("/token%20", "/token"),
        ] {
            let rules = rules_for(written, "    preset: venafi\n");
            assert!(
                rules.check("POST", called).is_err(),
                "{written} called as {called}"
            );
        }
        assert!(rules_for("/token", "").check("POST", "/tokens").is_ok());
    }
}
