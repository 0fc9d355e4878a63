//! What may pass to a vendor: `refuse:` and `allow:`, the preset's and the file's together.

use url::Url;

use super::auth::Auth;
use super::file;
use super::presets::Preset;
use super::reference::Context;
use super::report::{Spot, list};
use super::rules::{is_unreserved, path_rules};
use super::upstream::Upstream;
use crate::pattern::PathRule;
use crate::request::path::glob;

/// A login call of a vendor's own clients that we answer ourselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginPath {
    /// Which calls, by the path as it would be sent upstream.
    pub rule: PathRule,
    /// What the answer looks like.
    pub shape: LoginShape,
}

/// What the answer to a login call looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginShape {
    /// RFC 6749 §5.1.
    Oauth,
    /// The same with absolute times and a refresh token.
    Vedauth,
    /// `user_id` and `token`.
    UserToken,
    /// `APIKey` and `ValidUntil`.
    ApiKey,
    /// The token ends; 204.
    Logout,
    /// The token ends; 200.
    Revoke,
}

/// The paths of the upstream's own server where tokens are asked for, handed out or revoked.
pub(super) fn logins(auth: &Auth, upstream: &Upstream) -> Vec<Login> {
    let on_upstream = |url: &Url| {
        // Where http:// and https:// of one host both stand on their default ports, it is one
        // server.
        let port = |port: u16| if port == 80 { 443 } else { port };
        let host = url.host_str().unwrap_or_default();
        host.trim_matches(['[', ']']) == upstream.host
            && url.port_or_known_default().map(port) == Some(port(upstream.port))
    };
    let path = |url: &Url| comparable(url.path().trim_end_matches('/'));
    let exact = |url: &Url| Login {
        rules: vec![path(url), path(url) + "/"],
        never: vec![path(url), path(url) + "/"],
    };
    let urls = match auth {
        Auth::ClientCredentials(client) => vec![&client.token_url],
        Auth::AuthorizationCode(client) => vec![&client.token_url, &client.authorize_url],
        Auth::Vedauth(server) if on_upstream(&server.url) => {
            let path = path(&server.url);
            return vec![Login {
                rules: vec![path.clone(), format!("{path}/**")],
                never: VEDAUTH_LOGINS.map(|login| path.clone() + login).to_vec(),
            }];
        }
        Auth::Vedauth(_)
        | Auth::Bearer { .. }
        | Auth::Basic { .. }
        | Auth::Headers(_)
        | Auth::Query(_) => vec![],
    };
    let on_upstream = urls.into_iter().filter(|url| on_upstream(url));
    on_upstream.map(exact).collect()
}

/// The login calls that `login: stub` answers: the kind's own and the preset's, below the prefix
/// even where the vendor takes them on another host.
pub(super) fn answered(
    auth: &Auth,
    preset: Option<&Preset>,
    upstream: &Upstream,
    at: &Spot,
    context: &mut Context<'_>,
) -> Vec<LoginPath> {
    let base = upstream.base.as_str();
    let below = |path: &str| match path.strip_prefix(base) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => path.to_owned(),
        _ => format!("{base}{path}"),
    };
    let path = |url: &Url| below(&comparable(url.path().trim_end_matches('/')));
    let call = |method: Option<&str>, pattern: String, shape| LoginPath {
        rule: PathRule {
            exception: false,
            method: method.map(ToOwned::to_owned),
            pattern,
        },
        shape,
    };
    let mut logins = match auth {
        Auth::ClientCredentials(client) => {
            vec![call(
                Some("POST"),
                path(&client.token_url),
                LoginShape::Oauth,
            )]
        }
        Auth::AuthorizationCode(client) => {
            vec![call(
                Some("POST"),
                path(&client.token_url),
                LoginShape::Oauth,
            )]
        }
        Auth::Vedauth(server) => {
            let url = path(&server.url);
            let mut calls: Vec<_> = ["oauth", "certificate", "token"]
                .into_iter()
                .map(|login| {
                    let pattern = format!("{url}/authorize/{login}");
                    call(Some("POST"), pattern, LoginShape::Vedauth)
                })
                .collect();
            calls.push(call(
                None,
                format!("{url}/revoke/token"),
                LoginShape::Revoke,
            ));
            calls
        }
        Auth::Bearer { .. } | Auth::Basic { .. } | Auth::Headers(_) | Auth::Query(_) => vec![],
    };
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
        let hint = "a kind that fetches tokens or a preset has login calls; this vendor has none";
        context.report.warn(at, "there is nothing to answer", hint);
    }
    logins
}

/// Rules nobody has to write, and paths no exception may open.
pub(super) struct Login {
    rules: Vec<String>,
    never: Vec<String>,
}

/// `path` as it is when paths are compared: %xx of unreserved characters decoded, parameters
/// dropped.
fn comparable(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        let (segment, _) = segment.split_once(';').unwrap_or((segment, ""));
        let mut decoded = String::with_capacity(segment.len());
        let mut rest = segment;
        while let Some(at) = rest.find('%') {
            decoded.push_str(&rest[..at]);
            let byte = rest
                .get(at + 1..at + 3)
                .and_then(|digits| u8::from_str_radix(digits, 16).ok());
            if let Some(byte) = byte.filter(|byte| is_unreserved(*byte)) {
                decoded.push(char::from(byte));
                rest = &rest[at + 3..];
            } else {
                decoded.push('%');
                rest = &rest[at + 1..];
            }
        }
        decoded.push_str(rest);
        segments.push(decoded);
    }
    segments.join("/")
}

/// `refuse` and `allow` of a vendor: the preset's, the file's, and those that protect `logins`.
pub(super) fn rules(
    entry: &file::Vendor,
    preset: Option<&Preset>,
    base: &str,
    logins: Vec<Login>,
    at: &Spot,
    context: &mut Context<'_>,
) -> (Vec<PathRule>, Vec<PathRule>) {
    let read = |written: &[Option<String>], at: &Spot, context: &mut Context<'_>| {
        let mut read: Vec<(usize, PathRule)> = Vec::new();
        for (nth, text) in written.iter().enumerate() {
            let Some(text) = text else { continue };
            match path_rules(text) {
                Ok(rules) => read.extend(rules.into_iter().map(|rule| (nth, rule))),
                Err((message, hint)) => context.report.wrong(&at.index(nth), message, hint),
            }
        }
        read
    };
    let of_preset = |texts: &[String]| -> Vec<PathRule> {
        let rules = texts.iter().filter_map(|text| path_rules(text).ok());
        let rules: Vec<PathRule> = rules.flatten().collect();
        // Behind a gateway the vendor's paths begin with the base; a base that is part of the
        // vendor's own paths is in them already.
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
        context,
    ) {
        let pattern = rule.pattern.to_ascii_lowercase();
        let mut never = logins.iter().flat_map(|login| &login.never);
        if rule.exception && never.any(|path| glob(&pattern, &path.to_ascii_lowercase())) {
            context.report.wrong(
                &refuse_at.index(nth),
                "opens the path where this vendor's tokens are handed out",
                "it stays refused: whoever calls it could take the credential along",
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
    let own = read(written, &allow_at, context);
    if !own.is_empty() && own.iter().all(|(_, rule)| rule.exception) {
        let hint = "add what may pass, for example `/**`";
        context
            .report
            .wrong(&allow_at, "has only exceptions, so nothing passes", hint);
    }
    for (nth, rule) in &own {
        if !rule.exception && !widest.is_empty() && !widest.iter().any(|wide| within(rule, wide)) {
            let known: Vec<&str> = widest.iter().map(|rule| rule.pattern.as_str()).collect();
            context.report.wrong(
                &allow_at.index(*nth),
                "passes more than the preset does",
                format!(
                    "the preset allows {}, and can only be narrowed",
                    list(&known)
                ),
            );
        }
    }
    (refuse, own.into_iter().map(|(_, rule)| rule).collect())
}

/// Whether all that `rule` covers is plainly covered by `wide` (`/…/**`) as well.
fn within(rule: &PathRule, wide: &PathRule) -> bool {
    let (Some(root), None) = (wide.pattern.strip_suffix("**"), &wide.method) else {
        return rule.pattern.eq_ignore_ascii_case(&wide.pattern);
    };
    let start = rule.pattern.get(..root.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(root))
}

/// Below a vedauth server's URL: what hands out, renews or destroys a grant.
const VEDAUTH_LOGINS: [&str; 9] = [
    "/authorize/certificate",
    "/authorize/oauth",
    "/authorize/jwt",
    "/authorize/integrated",
    "/authorize/device",
    "/authorize/token",
    "/authorize",
    "/revoke/token",
    "/revoke",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_decoded_and_without_parameters() {
        assert_eq!(comparable("/%74oken;x=1/%2F%7e"), "/token/%2F~");
        assert_eq!(comparable("/a%"), "/a%");
    }
}
