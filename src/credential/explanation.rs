//! Reads what a token server says in an error's body, in any of the shapes in use.

mod verdict;

use serde_json::{Map, Value};
use url::form_urlencoded;

use super::quote::visible_text;
pub(super) use verdict::Verdict;

/// The readable parts of one body, not masked yet.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Explanation {
    /// Identifiers such as `invalid_grant`, as received.
    codes: Vec<String>,
    /// Sentences for people.
    messages: Vec<String>,
    /// The body says that something failed, whatever the status says.
    failed: bool,
    /// The message is the text of a page, which any intermediary may have written.
    is_page: bool,
}

impl Explanation {
    /// Reads `body`: JSON in the shapes of RFC 6749 §5.2, of RFC 9457 and of many servers' own; a
    /// form; a page; or plain text.
    pub(super) fn read(body: &[u8], content_type: Option<&str>) -> Self {
        let mut explanation = Self::default();
        let text = String::from_utf8_lossy(&body[..body.len().min(MAX_READ)]);
        let text = text.trim_start_matches('\u{feff}').trim();
        let kind = content_type.unwrap_or_default().to_ascii_lowercase();
        if let Some(json) = json(body) {
            match &json {
                Value::String(message) => explanation.add_message(message),
                Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::Array(_)
                | Value::Object(_) => explanation.value(&json, 0),
            }
        } else if kind.contains("x-www-form-urlencoded") || text.starts_with("error=") {
            let pairs = form_urlencoded::parse(text.as_bytes());
            let fields: Map<String, Value> = pairs
                .map(|(name, value)| (name.into_owned(), value.into()))
                .collect();
            explanation.object(&fields, 0);
        } else if kind.contains("html") || kind.contains("xml") || text.starts_with('<') {
            explanation.is_page = true;
            explanation.add_message(&visible_text(text));
        } else if is_readable(text) && !may_hold_tokens(text) {
            explanation.add_message(text);
        }
        explanation
    }

    /// Reads the text of a page where tokens were expected. Any other body might hold a token.
    pub(super) fn from_page(body: &[u8], content_type: Option<&str>) -> Self {
        let html = |kind: &str| kind.to_ascii_lowercase().contains("html");
        if content_type.is_some_and(html) && json(body).is_none() {
            Self::read(body, content_type)
        } else {
            Self::default()
        }
    }

    /// Reads a form that says that something failed, which some servers send although JSON was
    /// requested.
    pub(super) fn read_form(body: &[u8], content_type: Option<&str>) -> Self {
        let form = content_type.is_some_and(|kind| kind.contains("x-www-form-urlencoded"));
        if form || body.starts_with(b"error=") {
            Self::read(body, content_type)
        } else {
            Self::default()
        }
    }

    /// Reads a JSON object that came with a status of success.
    pub(super) fn from_object(fields: &Map<String, Value>) -> Self {
        let mut explanation = Self::default();
        explanation.object(fields, 0);
        if !explanation.failed {
            // Without a failure, identifiers may mean anything.
            explanation.codes.clear();
        }
        explanation
    }

    /// Tells whether the body itself says that something failed.
    pub(super) fn is_failure(&self) -> bool {
        self.failed
    }

    /// Returns everything the server said, for people: `error: description; …`. Empty when it said
    /// nothing.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // "error" adds nothing.
        let codes = self
            .codes
            .iter()
            .filter(|code| !UNINFORMATIVE.contains(&normalized(code).as_str()));
        let code = codes.clone().next();
        let rest = codes.skip(1).filter(|_| self.messages.is_empty());
        for part in code.into_iter().chain(&self.messages).chain(rest) {
            if text.contains(part.as_str()) {
                continue;
            }
            if !text.is_empty() {
                let only_code = code.is_some_and(|code| *code == text);
                text.truncate(text.trim_end_matches('.').len());
                text.push_str(if only_code { ": " } else { "; " });
            }
            text.push_str(part);
        }
        text
    }

    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Object(fields) if depth < MAX_DEPTH => self.object(fields, depth),
            Value::Array(items) if depth < MAX_DEPTH => {
                for item in items.iter().take(MAX_PARTS) {
                    match item {
                        Value::String(message) => self.add_message(message),
                        Value::Null
                        | Value::Bool(_)
                        | Value::Number(_)
                        | Value::Array(_)
                        | Value::Object(_) => self.value(item, depth + 1),
                    }
                }
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {}
        }
    }

    fn object(&mut self, fields: &Map<String, Value>, depth: usize) {
        // The fields of RFC 6749 come first, whatever their order.
        let rank = |name: &str| match name {
            "error" => 0,
            "error_description" => 1,
            _ => 2,
        };
        let mut fields: Vec<_> = fields.iter().take(MAX_FIELDS).collect();
        fields.sort_by_key(|(name, _)| rank(name));
        for (name, value) in fields {
            self.field(&normalized(name), value, depth);
        }
    }

    fn field(&mut self, name: &str, value: &Value, depth: usize) {
        match (name, value) {
            ("ok" | "success" | "succeeded", Value::Bool(false))
            | ("error" | "err" | "iserror", Value::Bool(true)) => self.failed = true,
            ("ok" | "success" | "succeeded", Value::String(text)) if text == "false" => {
                self.failed = true;
            }
            ("error" | "err", Value::String(text)) if !is_no_error(text) => {
                self.failed = true;
                self.add_code_or_message(text);
            }
            ("error" | "err" | "errors" | "errorcauses" | "fault", _) if is_non_empty(value) => {
                self.failed = true;
                self.errors(value, depth);
            }
            ("error" | "err" | "errorcode" | "errcode" | "ecode", Value::Number(number)) => {
                self.failed |= number.as_f64() != Some(0.0);
            }
            ("code", Value::Number(number)) => {
                let success = number
                    .as_i64()
                    .is_some_and(|n| n == 0 || (200..300).contains(&n));
                self.failed |= !success;
            }
            ("status" | "statuscode", Value::Number(number)) => {
                self.failed |= number.as_i64().is_some_and(|status| status >= 400);
            }
            (
                "errorcode" | "errcode" | "ecode" | "suberror" | "errorsubtype",
                Value::String(text),
            ) if !is_no_error(text) => {
                self.failed = true;
                self.add_code(text);
            }
            ("status" | "result" | "message", Value::String(text))
                if FAILURE_VALUES.contains(&normalized(text).as_str()) =>
            {
                self.failed = true;
                self.add_code(text);
            }
            ("errortype" | "errorname" | "errorid", Value::String(text)) => self.add_code(text),
            ("code" | "status" | "type" | "name" | "reasoncode", Value::String(text)) => {
                self.add_code(text);
            }
            (name, Value::String(text)) if MESSAGE_FIELDS.contains(&name) => {
                self.failed |= name.starts_with("err") && !is_no_error(text);
                self.add_message(text);
            }
            (name, _) if MESSAGE_FIELDS.contains(&name) || CONTAINER_FIELDS.contains(&name) => {
                self.value(value, depth + 1);
            }
            _ => {}
        }
    }

    /// Reads `errors` and similar fields: an object, a list, or a map from fields to their errors.
    fn errors(&mut self, value: &Value, depth: usize) {
        let known = self.codes.len() + self.messages.len();
        self.value(value, depth + 1);
        if let Value::Object(fields) = value
            && self.codes.len() + self.messages.len() == known
        {
            for (name, wrong) in fields.iter().take(MAX_PARTS) {
                let wrong = match wrong {
                    Value::Array(list) => list.first().and_then(Value::as_str),
                    Value::String(text) => Some(text.as_str()),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
                };
                if let Some(wrong) = wrong {
                    self.add_message(&format!("{name}: {wrong}"));
                }
            }
        }
    }

    fn add_code_or_message(&mut self, text: &str) {
        if is_identifier(text) {
            self.add_code(text);
        } else {
            self.add_message(text);
        }
    }

    fn add_code(&mut self, text: &str) {
        let text = text.trim();
        if is_identifier(text) && self.codes.len() < MAX_PARTS {
            self.codes.push(text.to_owned());
        }
    }

    fn add_message(&mut self, text: &str) {
        let text = text.trim();
        if !text.is_empty() && self.messages.len() < MAX_PARTS {
            self.messages.push(text.chars().take(MAX_MESSAGE).collect());
        }
    }
}

/// Parses the JSON in `body`. IIS may put a byte order mark before it.
pub(super) fn json(body: &[u8]) -> Option<Value> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    serde_json::from_slice(body).ok()
}

/// Tells whether `text` is an identifier: it has letters and no white space.
fn is_identifier(text: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || "_-./:#".contains(c);
    (2..=64).contains(&text.len())
        && text.chars().all(part)
        && text.contains(|c: char| c.is_ascii_alphabetic())
        && !text.contains("//")
}

/// Recognises what servers write where there is no error.
fn is_no_error(text: &str) -> bool {
    let text = text.trim();
    matches!(
        text.to_ascii_lowercase().as_str(),
        "" | "0" | "none" | "null" | "false" | "ok" | "success"
    )
}

fn is_non_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Tells text from a compressed or binary body.
fn is_readable(text: &str) -> bool {
    let unreadable =
        |c: &char| *c == char::REPLACEMENT_CHARACTER || (c.is_control() && !c.is_whitespace());
    let (unreadable, all) = (
        text.chars().filter(unreadable).count(),
        text.chars().count(),
    );
    unreadable * 20 <= all
}

/// A broken piece of JSON may still hold tokens.
fn may_hold_tokens(text: &str) -> bool {
    text.contains("access_token") || text.contains("refresh_token\"")
}

/// Keeps letters and digits, in lower case: `Invalid-Grant` and `invalidGrant` become
/// `invalidgrant`.
fn normalized(text: &str) -> String {
    text.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// Fields that hold a message, or a list of errors; normalized.
const MESSAGE_FIELDS: [&str; 21] = [
    "errordescription",
    "description",
    "message",
    "msg",
    "errormessage",
    "errormsg",
    "errmsg",
    "detail",
    "details",
    "errordetail",
    "errordetails",
    "errorsummary",
    "errortext",
    "title",
    "reason",
    "hint",
    "developermessage",
    "localizedmessage",
    "usermessage",
    "faultstring",
    "cause",
];
/// Fields whose value is searched as well.
const CONTAINER_FIELDS: [&str; 4] = ["data", "body", "response", "exception"];
/// Values of `status` and similar fields that say that something failed.
const FAILURE_VALUES: [&str; 6] = ["error", "errors", "fail", "failed", "failure", "ko"];
/// Codes that add no information.
const UNINFORMATIVE: [&str; 8] = [
    "error",
    "errors",
    "fail",
    "failed",
    "failure",
    "ko",
    "aboutblank",
    "badrequest",
];
/// Bytes of a body that are read for an explanation.
const MAX_READ: usize = 64 * 1024;
/// Bounds of how deep lists and objects are followed, and of how much of each is read.
const MAX_DEPTH: usize = 4;
const MAX_FIELDS: usize = 64;
const MAX_PARTS: usize = 6;
/// Longest message, in characters.
const MAX_MESSAGE: usize = 2000;

#[cfg(test)]
mod tests;
