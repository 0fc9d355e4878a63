//! Presets: facts about vendors, as data, merged under the file's settings.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::report::{KeyPath, Report, suggest};
use crate::pattern::PathRule;

/// A login call of a vendor's own clients that is answered here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginPath {
    /// The calls, by the path as it would be sent upstream.
    pub rule: PathRule,
    /// The form of the response.
    pub shape: LoginShape,
}

/// The form of the response to a login call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginShape {
    /// RFC 6749 §5.1.
    Oauth,
    /// RFC 6749 §5.1 with absolute times and a refresh token.
    Vedauth,
    /// `user_id` and `token`.
    UserToken,
    /// `APIKey` and `ValidUntil`.
    ApiKey,
    /// Revokes the token; 204.
    Logout,
    /// Revokes the token; 200.
    Revoke,
}

/// One entry of presets.yaml.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Preset {
    /// One sentence for people.
    #[serde(rename = "about")]
    _about: String,
    /// Rules that come before the file's own.
    #[serde(default)]
    pub(super) refuse: Vec<String>,
    /// The only paths that pass; empty: all that are not refused.
    #[serde(default)]
    pub(super) allow: Vec<String>,
    #[serde(default)]
    pub(super) trailing_dots_ignored: bool,
    #[serde(default)]
    caller_key_headers: Vec<String>,
    /// Path rules by the form of the response.
    #[serde(default)]
    pub(super) logins: BTreeMap<LoginShape, Vec<String>>,
    /// All other settings, spelled as in proxy.yaml; null: required in the file.
    #[serde(flatten)]
    pub(super) settings: Map<String, Value>,
}

static PRESETS: LazyLock<Vec<(String, Preset)>> = LazyLock::new(|| {
    let entries: super::file::Entries<Preset> = serde_yaml::from_str(include_str!("presets.yaml"))
        .expect("a test reads presets.yaml as it is compiled in");
    let present = |(name, preset): (String, Option<Preset>)| Some((name, preset?));
    entries.0.into_iter().filter_map(present).collect()
});

/// Returns the values of `preset:`.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| name.as_str())
}

/// Returns the headers in which vendors' own clients send their secret.
pub(super) fn caller_key_headers() -> impl Iterator<Item = &'static str> {
    let presets = PRESETS.iter();
    presets.flat_map(|(_, preset)| preset.caller_key_headers.iter().map(String::as_str))
}

/// Returns the headers in which vendors take a login of their own making.
pub(super) fn login_headers() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().flat_map(|(_, preset)| {
        let headers = preset.settings.get("auth").map(|auth| &auth["headers"]);
        let names = headers.and_then(Value::as_object).into_iter().flatten();
        names.map(|(name, _)| name.as_str())
    })
}

pub(super) fn find(name: &str) -> Option<&'static Preset> {
    let (_, preset) = PRESETS.iter().find(|(known, _)| known == name)?;
    Some(preset)
}

/// Merges the preset of every vendor under its settings. `refuse` and `allow` stay the file's own:
/// they are merged as rules.
pub(super) fn apply(document: &mut Value, report: &mut Report<'_>) {
    let Some(vendors) = document.get_mut("vendors").and_then(Value::as_object_mut) else {
        return;
    };
    for (name, vendor) in vendors {
        let at = KeyPath::default().key("vendors").key(name);
        let Some(vendor) = vendor.as_object_mut() else {
            continue;
        };
        let Some(wanted) = vendor.get("preset").and_then(Value::as_str) else {
            continue;
        };
        if let Some(preset) = find(wanted) {
            fill(vendor, &preset.settings, &at, report);
        } else {
            let hint = suggest(wanted, names());
            report.error(&at.key("preset"), "there is no preset of this name", hint);
            report.ignore_missing(at);
        }
    }
}

/// Adds the fields to `own` that only `preset` has. A null in `own` has been reported, and counts
/// as absent.
fn fill(
    own: &mut Map<String, Value>,
    preset: &Map<String, Value>,
    at: &KeyPath,
    report: &mut Report,
) {
    for (name, value) in preset {
        // Only header names differ in case and mean the same; the vendor is known to accept the
        // preset's spelling.
        let written = own
            .keys()
            .find(|key| key.eq_ignore_ascii_case(name))
            .cloned();
        if let Some(written) = written.filter(|_| !own.contains_key(name)) {
            let entries = std::mem::take(own);
            let renamed = |(key, value)| (if key == written { name.clone() } else { key }, value);
            own.extend(entries.into_iter().map(renamed));
            if let Some(place) = report.positions.values.get(&at.key(&written)).copied() {
                report.positions.values.insert(at.key(name), place);
            }
        }
        let here = at.key(name);
        match (own.get_mut(name).filter(|own| !own.is_null()), value) {
            (None, Value::Null) => report.missing_key(&here, "the preset cannot know it"),
            (None, Value::Object(fields)) => {
                let mut filled = Map::new();
                fill(&mut filled, fields, &here, report);
                own.insert(name.clone(), Value::Object(filled));
            }
            (None, value) => {
                own.insert(name.clone(), value.clone());
            }
            (Some(Value::Object(own)), Value::Object(fields)) => {
                let other_kind =
                    name == "auth" && !own.keys().all(|kind| fields.contains_key(kind));
                if !other_kind {
                    fill(own, fields, &here, report);
                }
            }
            (Some(_), _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_preset_is_a_vendor_of_proxy_yaml() {
        for (name, preset) in PRESETS.iter() {
            let mut settings = Value::Object(preset.settings.clone());
            without_null(&mut settings);
            let mut document = serde_json::json!({ "vendors": { name: settings } });
            let mut report = Report::new(Path::new("presets.yaml"));
            super::super::schema_check::check(&mut document, &mut report);
            assert_eq!(report.finish(), Ok((vec![], vec![])), "{name}");
            for rule in preset.refuse.iter().chain(&preset.allow) {
                super::super::rules::path_rules(rule).unwrap();
            }
        }
    }

    #[test]
    fn fields_are_merged_and_another_kind_of_auth_replaces() {
        let preset = serde_json::json!({
            "upstream": "https://a.example",
            "auth": { "headers": { "customerUri": null, "login": null } },
            "timeouts": { "idle": "1s" },
        });
        let merged = |own: Value| {
            let mut own = own.as_object().unwrap().clone();
            let mut report = Report::new(Path::new("f"));
            fill(
                &mut own,
                preset.as_object().unwrap(),
                &KeyPath::default().key("v"),
                &mut report,
            );
            (
                Value::Object(own),
                report.finish().err().unwrap_or_default().len(),
            )
        };

        let (same, missing) = merged(serde_json::json!({
            "timeouts": { "total": "2s" },
            "auth": { "headers": { "customeruri": "x" } },
        }));
        assert_eq!(missing, 1, "login");
        assert_eq!(same["upstream"], "https://a.example");
        assert_eq!(
            same["timeouts"],
            serde_json::json!({ "total": "2s", "idle": "1s" })
        );
        assert_eq!(
            same["auth"]["headers"],
            serde_json::json!({ "customerUri": "x" })
        );

        let (other, missing) = merged(serde_json::json!({ "auth": { "bearer": {} } }));
        assert_eq!(
            (&other["auth"], missing),
            (&serde_json::json!({ "bearer": {} }), 0)
        );
    }

    fn without_null(value: &mut Value) {
        if let Value::Object(fields) = value {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_null);
            // An `auth` kind of which the preset only knows that it is needed.
            fields.retain(|name, value| name != "headers" && *value != serde_json::json!({}));
        }
    }
}
