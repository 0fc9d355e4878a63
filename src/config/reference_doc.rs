//! The configuration reference, Markdown, made from the schema of proxy.yaml, so that it cannot
//! differ from what is checked.

use std::collections::HashSet;
use std::fmt::Write;

use serde_json::{Map, Value};

use super::file::SCHEMA;

/// Returns the whole reference.
pub(super) fn reference_doc() -> String {
    let mut reference_doc = Manual {
        text: HEAD.to_owned(),
        written: HashSet::new(),
    };
    reference_doc.section("The file", "", &SCHEMA);
    reference_doc.text
}

const HEAD: &str = "\
# Configuration reference

<!-- Made by `countersign schema --markdown` from the schema that checks every file; `make generated`
regenerates it. Corrections belong in the descriptions in src/config/file.rs and beside it. -->

One YAML file says everything; [proxy.yaml](../proxy.yaml) is a commented sample, and editors that know
`yaml-language-server` complete and check it by [proxy.schema.json](../proxy.schema.json).
`countersign check` reports every error of a file at once. Every command that reads one takes it as
`--config FILE`, `-c FILE` or as an argument (`countersign serve FILE`); else the environment variable `COUNTERSIGN_CONFIG` names it, else it is `proxy.yaml`.

* Unknown keys, keys that occur twice and keys without a value are errors.
* A **duration** is a whole number and a unit: `250ms`, `5s`, `2m`, `1h`.
* A **size** is a number of bytes, or a whole number and a unit: `512B`, `64KiB`, `10MiB`, `1GiB`.
* A **path** is relative to the file.
* A **secret** is never bare text: `{ env: NAME }`, `{ file: path }` (read again when the file changes) or
  `{ value: \"…\" }` (accepted, with a warning).
* The file and everything it names are read again when they change. A change of `listeners`, `admin`,
  `threads` or `store` needs a restart.

";

/// Example files, each complete but for the files it refers to; a test loads every one.
const EXAMPLES: [(&str, &str); 11] = [
    (
        "listeners[]",
        "\
listeners:
  - bind: 127.0.0.1:8080
  - bind: 0.0.0.0:8443
    tls: { cert: tls.crt, key: tls.key, client_ca: callers-ca.crt }
callers:
  ci: { certificate: { san: \"spiffe://corp/ci\" }, allow: [ \"*\" ] }
",
    ),
    (
        "admin",
        "\
admin:
  bind: 0.0.0.0:9090          # beyond loopback, for kubelet and Prometheus
  ready_when: all
",
    ),
    ("drain", "drain: { delay: 5s, timeout: 30s }\n"),
    (
        "callers.NAME",
        "\
callers:
  issuance:
    api_key: { sha256: \"ae7c022f4749d3e48322c3118034beac91e30933ad979745003afac1b60349bc\" }
    allow: [ \"acme GET,POST /v1/**\" ]
    rate: { per_second: 50, burst: 100 }
",
    ),
    (
        "callers.NAME.jwt",
        "\
callers:
  pods:
    jwt:
      issuer: https://kubernetes.default.svc
      audience: countersign
      subject: \"system:serviceaccount:apps:*\"
      jwks_url: https://kubernetes.default.svc/openid/v1/jwks
    allow: [ acme ]
",
    ),
    (
        "store",
        "\
store:
  redis: { url: { env: REDIS_URL } }
  encryption_key: { file: store.key }
",
    ),
    (
        "vendors.NAME",
        "\
vendors:
  acme:
    upstream: https://api.acme.example/v2   # /acme/users becomes /v2/users
    auth: { bearer: { token: { file: acme.token } } }
    refuse: [ \"/v2/admin/**\" ]
",
    ),
    (
        "vendors.NAME.timeouts",
        "\
vendors:
  acme:
    upstream: https://api.acme.example
    timeouts: { first_byte: 120s, token_wait: 2s }
    limits: { in_flight: 64, body: 10MiB, rate: { per_second: 20 } }
",
    ),
    (
        "vendors.NAME.auth.client_credentials",
        "\
vendors:
  acme:
    upstream: https://api.acme.example
    auth:
      client_credentials:
        token_url: https://login.acme.example/oauth/token
        client_auth: private_key_jwt
        client_id: countersign
        private_key: { file: acme-signing.key }
        key_id: \"2024-01\"
",
    ),
    (
        "vendors.NAME.auth.authorization_code",
        "\
vendors:
  acme:
    upstream: https://api.acme.example
    auth:
      authorization_code:
        authorize_url: https://login.acme.example/authorize
        token_url: https://login.acme.example/oauth/token
        client_id: { env: ACME_CLIENT_ID }
        client_secret: { env: ACME_CLIENT_SECRET }
        redirect_uri: http://127.0.0.1:8765/callback
",
    ),
    (
        "vendors.NAME.auth.vedauth",
        "\
vendors:
  tpp:
    upstream: https://tpp.example.com
    auth:
      vedauth:
        client_id: countersign
        scope: certificate:manage
        certificate: { cert: tpp.crt, key: tpp.key }
",
    ),
];

struct Manual {
    text: String,
    /// Names of definitions that have a section.
    written: HashSet<String>,
}

impl Manual {
    /// Writes a table of the keys of `schema`, then a section for each kind of object in it.
    fn section(&mut self, title: &str, path: &str, schema: &Value) {
        // A chapter for each key of the file, whatever it is a list or a mapping of.
        let below = path.trim_end_matches("[]").trim_end_matches(".NAME");
        let level = if below.contains('.') { "###" } else { "##" };
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{level} {title}\n");
        let about = schema["description"].as_str().unwrap_or_default();
        let _ = writeln!(self.text, "{}\n", about.replace('\n', " "));
        if schema["maxProperties"] == 1 && !about.contains("exactly one") {
            self.text.push_str("Exactly one of these keys.\n\n");
        }
        self.text
            .push_str("| key | value | default | meaning |\n| --- | --- | --- | --- |\n");
        let none = Map::new();
        let keys = schema["properties"].as_object().unwrap_or(&none);
        for (name, property) in keys {
            let required = schema["required"].as_array();
            let required = required.is_some_and(|all| all.iter().any(|one| one == name));
            let about = property["description"].as_str().unwrap_or_default();
            let default = match &property["default"] {
                _ if required => "**required**".to_owned(),
                Value::Null => String::new(),
                Value::String(text) => format!("`{text}`"),
                value
                @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                    format!("`{value}`")
                }
            };
            let _ = writeln!(
                self.text,
                "| `{name}` | {} | {default} | {} |",
                value(property).replace('|', "\\|"),
                about.replace('\n', " ").replace('|', "\\|"),
            );
        }
        self.text.push('\n');
        if let Some((_, example)) = EXAMPLES.iter().find(|(of, _)| *of == path) {
            let _ = writeln!(self.text, "```yaml\n{example}```\n");
        }
        for (name, property) in keys {
            let below = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            self.below(&below, property);
        }
    }

    /// Writes the section of the object at `path`, unless it has been written.
    fn below(&mut self, path: &str, schema: &Value) {
        if let Some(name) = schema["$ref"].as_str() {
            let target = target(name);
            if target["properties"].is_object() {
                if self.written.insert(name.to_owned()) {
                    self.section(&heading(name, path), path, target);
                }
            } else {
                self.below(path, target);
            }
        } else if let Some(choices) = schema["anyOf"].as_array() {
            for choice in choices {
                self.below(path, choice);
            }
        } else if schema["items"].is_object() {
            self.below(&format!("{path}[]"), &schema["items"]);
        } else if schema["additionalProperties"].is_object() {
            self.below(&format!("{path}.NAME"), &schema["additionalProperties"]);
        }
    }
}

/// Returns the permitted values.
fn value(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        let target = target(name);
        return match target["format"].as_str() {
            Some("span") => "duration".to_owned(),
            Some("size") => "size".to_owned(),
            _ if target["properties"].is_object() => {
                format!("[{}](#{})", noun(name), anchor(&heading_of(name)))
            }
            _ => value(target),
        };
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let choices: Vec<String> = choices.iter().map(value).collect();
        return choices.join(" or ");
    }
    if let Some(words) = schema["enum"].as_array() {
        let words: Vec<String> = words
            .iter()
            .filter_map(Value::as_str)
            .map(|word| format!("`{word}`"))
            .collect();
        return words.join(", ");
    }
    // The schema has a copy of it instead of a reference here.
    if schema["x-secret"] == true {
        return "[secret](#secret)".to_owned();
    }
    match schema["type"].as_str() {
        Some("array") => format!("list of {}", value(&schema["items"])),
        Some("object") => format!("`NAME:` {}", value(&schema["additionalProperties"])),
        Some("boolean") => "`true`, `false`".to_owned(),
        Some("integer") => match (schema["minimum"].as_u64(), schema["maximum"].as_u64()) {
            (Some(least), Some(most)) => format!("{least} to {most}"),
            (Some(least), None) if least > 0 => format!("number, at least {least}"),
            _ => "number".to_owned(),
        },
        Some("number") => "number, also with a decimal point".to_owned(),
        _ => match schema["format"].as_str() {
            Some("socket-address") => "IP:PORT",
            Some("sha256") => "64 hex digits",
            _ => "text",
        }
        .to_owned(),
    }
}

fn target(name: &str) -> &'static Value {
    let pointer = name.strip_prefix('#').unwrap_or(name);
    SCHEMA.pointer(pointer).unwrap_or(&Value::Null)
}

/// Returns the heading of a section: what occurs in many places is named by what it is, the rest by
/// its place.
fn heading(name: &str, path: &str) -> String {
    match target(name)["title"].as_str() {
        Some(_) if target(name)["x-secret"] == true => sentence(noun(name)),
        _ if SHARED.iter().any(|(shared, _)| name.ends_with(shared)) => sentence(noun(name)),
        _ => format!("`{path}`"),
    }
}

/// Returns the heading that this definition has or will have.
fn heading_of(name: &str) -> String {
    let mut path = String::new();
    find(&SCHEMA, "", name, &mut path);
    heading(name, &path)
}

/// Finds the first place of a definition, in the order in which sections are written.
fn find(schema: &Value, path: &str, name: &str, found: &mut String) -> bool {
    if let Some(here) = schema["$ref"].as_str() {
        if here == name {
            path.clone_into(found);
            return true;
        }
        return find(target(here), path, name, found);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        return choices.iter().any(|choice| find(choice, path, name, found));
    }
    if schema["items"].is_object() {
        return find(&schema["items"], &format!("{path}[]"), name, found);
    }
    if schema["additionalProperties"].is_object() {
        let below = format!("{path}.NAME");
        return find(&schema["additionalProperties"], &below, name, found);
    }
    let mut keys = schema["properties"].as_object().into_iter().flatten();
    keys.any(|(key, property)| {
        let below = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        find(property, &below, name, found)
    })
}

/// Definitions that are used in several places, and their names.
const SHARED: [(&str, &str); 4] = [
    ("/CertFiles", "certificate and key"),
    ("/Rate", "rate"),
    ("/Secret", "secret"),
    ("/ApiKey", "caller's key"),
];

fn noun(name: &str) -> &'static str {
    let shared = SHARED.iter().find(|(shared, _)| name.ends_with(shared));
    shared.map_or("object", |(_, noun)| noun)
}

fn sentence(noun: &str) -> String {
    let (first, rest) = noun.split_at(1);
    format!("{}{rest}", first.to_uppercase())
}

/// Returns the anchor of a heading, as GitHub and most others make it.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::reader::Secrets;

    #[test]
    fn every_example_is_a_valid_file() {
        for (path, example) in EXAMPLES {
            let vendors = if example.contains("vendors:") {
                ""
            } else {
                "vendors: { acme: { upstream: \"https://acme.example\" } }\n"
            };
            let text = format!("{example}{vendors}");
            let parsed =
                Config::parse(&text, std::path::Path::new("proxy.yaml"), Secrets::FormOnly);
            let errors = parsed.err().unwrap_or_default();
            assert!(errors.is_empty(), "{path}: {errors:?}");
            let headed = format!("# `{path}`\n");
            assert!(reference_doc().contains(&headed), "{path} has a section");
        }
    }

    #[test]
    fn every_key_of_every_object_has_a_row_and_every_link_a_heading() {
        let reference_doc = reference_doc();
        let objects = SCHEMA["$defs"].as_object().unwrap().values();
        for object in objects.chain([&*SCHEMA]) {
            for (name, property) in object["properties"].as_object().into_iter().flatten() {
                let about = property["description"].as_str().unwrap_or_default();
                let about = about.replace('\n', " ").replace('|', "\\|");
                let row = reference_doc.lines().find(|line| {
                    line.starts_with(&format!("| `{name}` |")) && line.contains(&about)
                });
                assert!(row.is_some(), "{name}: {about}");
            }
        }
        let headings: HashSet<String> = reference_doc
            .lines()
            .filter(|line| line.starts_with("##"))
            .map(|line| anchor(line.trim_start_matches(['#', ' '])))
            .collect();
        for link in reference_doc.split("](#").skip(1) {
            let link = link.split(')').next().unwrap();
            assert!(headings.contains(link), "#{link}");
        }
        assert!(reference_doc.contains("| `connect` | duration | `5s` |"));
    }
}
