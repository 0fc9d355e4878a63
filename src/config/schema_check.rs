//! Checks a document against the schema. Every deviation is reported and removed (made null), so
//! that the rest can be checked as well.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value};

use super::file::SCHEMA;
use super::report::{KeyPath, Report, list, suggest};
use super::units;

/// Checks `document` against the schema of proxy.yaml.
pub(super) fn check(document: &mut Value, report: &mut Report<'_>) {
    node(&SCHEMA, document, &KeyPath::default(), "", report);
}

/// Checks one value. `hint`: the schema's advice so far.
fn node(schema: &Value, value: &mut Value, at: &KeyPath, hint: &str, report: &mut Report<'_>) {
    let hint = schema["x-hint"].as_str().unwrap_or(hint);
    if value.is_null() {
        let hint = if hint.is_empty() {
            "give it one, or remove the key"
        } else {
            hint
        };
        report.error_at_key(at, "has no value", hint);
        return;
    }
    if let Some(name) = schema["$ref"].as_str() {
        node(target(name), value, at, hint, report);
    } else if let Some(choices) = schema["anyOf"].as_array() {
        match choices
            .iter()
            .find(|choice| types(choice).iter().any(|name| is_type(value, name)))
        {
            Some(choice) => node(choice, value, at, hint, report),
            None => wrong_type(schema, value, at, hint, report),
        }
    } else if types(schema).iter().any(|name| is_type(value, name)) {
        match value {
            Value::Object(fields) => mapping(schema, fields, at, hint, report),
            Value::Array(items) => sequence(schema, items, at, report),
            Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null => {
                scalar(schema, value, at, hint, report);
            }
        }
    } else if !types(schema).is_empty() {
        wrong_type(schema, value, at, hint, report);
    }
}

fn mapping(
    schema: &Value,
    fields: &mut Map<String, Value>,
    at: &KeyPath,
    hint: &str,
    report: &mut Report<'_>,
) {
    let known = schema["properties"].as_object();
    let known_names = || known.into_iter().flatten().map(|(name, _)| name.as_str());
    let mut unknown = false;
    for (name, value) in fields.iter_mut() {
        let here = at.key(name);
        if let Some(property) = known.and_then(|known| known.get(name)) {
            node(property, value, &here, "", report);
        } else if schema["additionalProperties"].is_object() {
            node(&schema["additionalProperties"], value, &here, "", report);
        } else {
            unknown = true;
            unknown_key(name, value, schema, at, report);
        }
    }
    if known.is_some() {
        fields.retain(|name, _| known.is_some_and(|known| known.contains_key(name)));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        if !fields.contains_key(name) {
            report.missing_key(&at.key(name), "");
        }
    }
    let limit = |name: &str| schema[name].as_u64();
    let count = fields.len() as u64;
    let too_few = limit("minProperties").is_some_and(|least| count < least);
    let too_many = limit("maxProperties").is_some_and(|most| count > most);
    if known.is_none() && too_few {
        report.error(at, "is empty", hint);
    } else if too_many || (too_few && !unknown) {
        let names: Vec<&str> = known_names().collect();
        let message = if too_many {
            "gives more than one"
        } else {
            "is empty"
        };
        let hint = if hint.is_empty() {
            format!("give exactly one of {}", list(&names))
        } else {
            hint.to_owned()
        };
        report.error(at, message, hint);
        fields.values_mut().for_each(|value| *value = Value::Null);
    }
}

/// Reports an unknown key. In a flow mapping, `{ token:abc }` and `{ abc }` are keys without a
/// value, so a key may be a misplaced secret, and is not repeated then.
fn unknown_key(name: &str, value: &Value, schema: &Value, at: &KeyPath, report: &mut Report<'_>) {
    let here = at.key(name);
    let known = schema["properties"].as_object();
    let suggestion = suggest(
        name,
        known.into_iter().flatten().map(|(name, _)| name.as_str()),
    );
    let harmless = !value.is_null()
        && schema["x-secret"] != true
        && name.len() <= 40
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if harmless {
        report.error_at_key(&here, "unknown key", suggestion);
    } else if name == "<<" {
        report.error_at_key(
            &here,
            "merge keys are not supported",
            "an alias can stand for a whole value",
        );
    } else {
        let place = report.positions.keys.get(&here).copied();
        let hint = if value.is_null() && name.contains(':') {
            "a blank is missing after the `:`".to_owned()
        } else {
            suggestion
        };
        match place {
            Some(place) => report.error_in(place, at, "holds an unknown key", hint),
            None => report.error(at, "holds an unknown key", hint),
        }
    }
}

fn sequence(schema: &Value, items: &mut [Value], at: &KeyPath, report: &mut Report<'_>) {
    for (nth, item) in items.iter_mut().enumerate() {
        node(&schema["items"], item, &at.index(nth), "", report);
    }
    if schema["minItems"]
        .as_u64()
        .is_some_and(|least| (items.len() as u64) < least)
    {
        report.error(at, "is empty", "give at least one, or remove the key");
    }
}

fn scalar(schema: &Value, value: &mut Value, at: &KeyPath, hint: &str, report: &mut Report<'_>) {
    let allowed: Option<Vec<&str>> = schema["enum"]
        .as_array()
        .map(|allowed| allowed.iter().filter_map(Value::as_str).collect())
        .or_else(|| schema["const"].as_str().map(|only| vec![only]));
    let wrong = if let (Some(allowed), Some(text)) = (&allowed, value.as_str()) {
        (!allowed.contains(&text)).then(|| {
            let message = format!("must be one of {}", list(allowed));
            let close = suggest(text, allowed.iter().copied());
            let hint = if close.starts_with("did") {
                close
            } else {
                hint.to_owned()
            };
            (message, hint)
        })
    } else if let Some(text) = value.as_str() {
        let format = schema["format"].as_str().unwrap_or_default();
        let (verdict, usual) = formatted(format, text);
        let whole = (format == "socket-address")
            .then(|| whole_address(text, schema))
            .flatten();
        let usual = whole.as_deref().unwrap_or(usual);
        let hint = if hint.is_empty() { usual } else { hint };
        verdict
            .err()
            .map(|message| (message.to_owned(), hint.to_owned()))
    } else if let (Some("rate"), Some(rate)) = (schema["format"].as_str(), value.as_f64()) {
        let within = rate == 0.0 || (SLOWEST..=FASTEST).contains(&rate);
        (!within).then(|| {
            let message = format!("must be 0, or between {SLOWEST} (one a day) and {FASTEST}");
            (message, hint.to_owned())
        })
    } else if let Some(number) = value.as_u64() {
        let least = schema["minimum"].as_u64().unwrap_or(0);
        let most = schema["maximum"].as_u64().unwrap_or(u64::MAX);
        if number < least {
            Some((format!("must be at least {least}"), hint.to_owned()))
        } else if number > most {
            Some((format!("must be at most {most}"), hint.to_owned()))
        } else {
            None
        }
    } else {
        // Negative or larger than 64 bits: no setting takes such a number.
        value.is_number().then(|| {
            (
                "must be a whole number of 0 or more".to_owned(),
                hint.to_owned(),
            )
        })
    };
    if let Some((message, hint)) = wrong {
        report.error(at, message, hint);
        *value = Value::Null;
    }
}

/// Bounds of a rate, per second.
const SLOWEST: f64 = 0.000_011_5;
const FASTEST: f64 = 1e9;

/// Checks the formats of [`super::file`], and returns how each is written.
fn formatted(format: &str, text: &str) -> (Result<(), &'static str>, &'static str) {
    match format {
        "span" => (units::duration(text).map(drop), units::DURATIONS),
        "size" => (units::size(text).map(drop), units::SIZES),
        "socket-address" => (
            text.parse::<SocketAddr>()
                .map(drop)
                .map_err(|_| "is not an IP address with a port"),
            SOCKET_ADDRESSES,
        ),
        "sha256" => (
            if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
                Ok(())
            } else {
                Err("is not a SHA-256 digest")
            },
            "a digest has 64 hex digits, as `countersign caller new NAME` and `sha256sum` print it",
        ),
        "environment-variable" => (
            if !text.is_empty()
                && !text.starts_with(|c: char| c.is_ascii_digit())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            {
                Ok(())
            } else {
                Err("is not the name of an environment variable")
            },
            "names have letters, digits and `_`; the secret itself does not belong here",
        ),
        "object-name" => (
            if text.len() <= 253 && text.split('.').all(is_dns_label) {
                Ok(())
            } else {
                Err("is not the name of a Kubernetes object")
            },
            "names have lower-case letters, digits, `-` and `.`, and begin and end with a letter or digit",
        ),
        "namespace" => (
            if is_dns_label(text) {
                Ok(())
            } else {
                Err("is not the name of a Kubernetes namespace")
            },
            "names have at most 63 lower-case letters, digits and `-`",
        ),
        _ => (Ok(()), ""),
    }
}

const SOCKET_ADDRESSES: &str = "addresses are written `127.0.0.1:8080` or `[::1]:8080`";

/// Returns the whole address for a part of it: a port, alone or after a colon, `*`, or `localhost`;
/// or an IP address alone. A port and an address are no secrets, and are repeated.
fn whole_address(text: &str, schema: &Value) -> Option<String> {
    let text = text.trim();
    let everywhere = "`0.0.0.0` in its place takes connections from other machines";
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let usual: Option<SocketAddr> = schema["default"].as_str().and_then(|it| it.parse().ok());
        let whole = SocketAddr::new(address, usual.map_or(8080, |usual| usual.port()));
        return Some(format!("a port is missing: write `{whole}`, for example"));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let port: u16 = port.parse().ok()?;
    match host {
        "" => Some(format!(
            "write the whole address, `127.0.0.1:{port}`; {everywhere} and needs `callers:`"
        )),
        "*" => Some(format!(
            "write `0.0.0.0:{port}`, or `[::]:{port}` for IPv6 too"
        )),
        "localhost" => Some(format!(
            "names are not looked up: write `127.0.0.1:{port}` or `[::1]:{port}`"
        )),
        _ => None,
    }
}

/// RFC 1123 §2.1, in lower case.
fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn wrong_type(
    schema: &Value,
    value: &mut Value,
    at: &KeyPath,
    hint: &str,
    report: &mut Report<'_>,
) {
    let found = match value {
        Value::Null => "nothing",
        Value::Bool(_) => "`true` or `false`",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    };
    let mut wanted: Vec<String> = Vec::new();
    nouns(schema, &mut wanted);
    let is_address = schema["format"] == "socket-address";
    let whole = value.as_u64().filter(|_| is_address);
    let whole = whole.and_then(|port| whole_address(&port.to_string(), schema));
    if is_address {
        wanted = vec!["an IP address with a port".to_owned()];
    }
    let hint = if let Some(whole) = &whole {
        whole
    } else if is_address {
        SOCKET_ADDRESSES
    } else if hint.is_empty()
        && (value.is_number() || value.is_boolean())
        && types(schema).contains(&"string")
    {
        "put it in quotes"
    } else {
        hint
    };
    report.error(
        at,
        format!("must be {}, not {found}", wanted.join(" or ")),
        hint,
    );
    *value = Value::Null;
}

/// Describes what the schema permits.
fn nouns(schema: &Value, into: &mut Vec<String>) {
    if let Some(title) = schema["title"]
        .as_str()
        .filter(|title| *title != "proxy.yaml")
    {
        into.push(title.to_owned());
    } else if let Some(name) = schema["$ref"].as_str() {
        nouns(target(name), into);
    } else if let Some(choices) = schema["anyOf"].as_array() {
        for choice in choices {
            nouns(choice, into);
        }
    } else {
        for name in types(schema) {
            let noun = match name {
                "object" => "a mapping",
                "array" => "a list",
                "string" => "text",
                "integer" => "a whole number",
                "number" => "a number",
                "boolean" => "`true` or `false`",
                other => other,
            };
            into.push(noun.to_owned());
        }
    }
}

fn types(schema: &Value) -> Vec<&str> {
    if let Some(name) = schema["$ref"].as_str() {
        return types(target(name));
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        return choices.iter().flat_map(types).collect();
    }
    match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    }
}

fn is_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        _ => false,
    }
}

fn target(reference: &str) -> &'static Value {
    let pointer = reference.trim_start_matches('#');
    SCHEMA.pointer(pointer).unwrap_or(&Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_uses_nothing_this_file_does_not_check() {
        fn visit(schema: &Value, seen: &mut Vec<String>) {
            match schema {
                Value::Object(fields) => {
                    if let Some(Value::String(format)) = fields.get("format") {
                        seen.push(format!("format {format}"));
                    }
                    for (name, value) in fields {
                        if name == "properties" || name == "$defs" {
                            value
                                .as_object()
                                .unwrap()
                                .values()
                                .for_each(|v| visit(v, seen));
                            continue;
                        }
                        seen.push(name.clone());
                        if name != "default" {
                            visit(value, seen);
                        }
                    }
                }
                Value::Array(items) => items.iter().for_each(|item| visit(item, seen)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        let mut seen = Vec::new();
        visit(&SCHEMA, &mut seen);
        seen.sort();
        seen.dedup();
        let checked = [
            "$ref",
            "additionalProperties",
            "anyOf",
            "const",
            "enum",
            "items",
            "maxProperties",
            "maximum",
            "minItems",
            "minProperties",
            "minimum",
            "required",
            "type",
            "x-secret",
            "x-hint",
            "format span",
            "format size",
            "format socket-address",
            "format sha256",
            "format environment-variable",
            "format object-name",
            "format namespace",
            "format rate",
        ];
        // Said elsewhere: `format` checks what `pattern` says for editors; the unsigned formats are
        // `minimum` and the type's size.
        let silent = [
            "$schema",
            "title",
            "description",
            "default",
            "format",
            "pattern",
            "format uint",
            "format uint32",
            "format uint64",
        ];
        for keyword in seen {
            assert!(
                checked.contains(&keyword.as_str()) || silent.contains(&keyword.as_str()),
                "{keyword}"
            );
        }
    }
}
