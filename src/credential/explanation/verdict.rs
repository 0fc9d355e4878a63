//! Decides what a token server's explanation means: whether the refresh token is invalid, and whether
//! the server is busy or has failed.

use http::StatusCode;

use super::{Explanation, is_identifier, normalized};

/// Meaning of a refusal for the refresh token of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::credential) enum Verdict {
    /// The token is invalid, or a person has to consent again: there is a code for it.
    Invalid,
    /// The token is probably invalid, by a message or by a code that has other uses as well.
    ProbablyInvalid,
    /// The token may be invalid, or something else is wrong.
    Unclear,
    /// Something else is wrong; the token is not affected.
    Unrelated,
}

impl Explanation {
    /// Returns the error code of RFC 6749 §5.2, if there is one.
    pub(in crate::credential) fn code(&self) -> Option<&'static str> {
        let stated = |code: &&str| self.codes.iter().any(|stated| stated == code);
        RFC_CODES.into_iter().find(stated)
    }

    /// Tells whether the server only asks to come back later, and has done nothing.
    pub(in crate::credential) fn is_busy(&self) -> bool {
        let message = |message: &String| {
            let message = message.to_ascii_lowercase();
            ["too many requests", "rate limit exceeded"]
                .iter()
                .any(|phrase| message.contains(phrase))
        };
        self.has_code(&BUSY) || self.messages.iter().any(message)
    }

    /// Tells whether the server says that it failed, rather than that it refuses.
    pub(in crate::credential) fn is_server_error(&self) -> bool {
        self.has_code(&SERVER_ERRORS)
    }

    /// Returns what a refusal with this status and body means for the refresh token of its request.
    pub(in crate::credential) fn verdict(&self, status: StatusCode) -> Verdict {
        let code = self.code();
        if code == Some("invalid_grant") {
            return Verdict::Invalid;
        }
        // Other statuses are about the path or the method.
        if self.is_page || !matches!(status.as_u16(), 200..=299 | 400 | 401 | 403 | 422) {
            return if status.is_client_error() && !self.is_page {
                Verdict::Unrelated
            } else {
                Verdict::Unclear
            };
        }
        let any = |test: fn(&str) -> bool| self.messages.iter().any(|message| test(message));
        let refresh_token = any(says_refresh_token_invalid);
        match code {
            Some("invalid_client") if refresh_token => return Verdict::Unclear,
            Some("invalid_client" | "unsupported_grant_type" | "invalid_scope") => {
                return Verdict::Unrelated;
            }
            _ => {}
        }
        if self.has_code(&INVALID_GRANT) {
            return Verdict::Invalid;
        }
        if refresh_token {
            return Verdict::ProbablyInvalid;
        }
        if code == Some("unauthorized_client") {
            return if status == StatusCode::FORBIDDEN {
                Verdict::ProbablyInvalid
            } else {
                Verdict::Unclear
            };
        }
        if (any(says_token_invalid) || self.has_code(&INVALID_TOKEN)) && !any(mentions_client) {
            return Verdict::ProbablyInvalid;
        }
        if self.has_code(&INVALID_CLIENT) {
            return Verdict::Unrelated;
        }
        Verdict::Unclear
    }

    /// Tells whether a code equals, or ends in, one of these; some servers put codes in place of a
    /// message.
    fn has_code(&self, codes: &[&str]) -> bool {
        let messages = self
            .messages
            .iter()
            .filter(|message| is_identifier(message));
        let stated = self.codes.iter().chain(messages);
        stated.map(|code| normalized(code)).any(|stated| {
            let about_us = stated.contains("client") || stated.contains("assertion");
            codes
                .iter()
                .any(|code| stated == *code || (stated.ends_with(code) && !about_us))
        })
    }
}

/// Tells whether "token" may mean the client's own authentication.
fn mentions_client(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["client", "assertion", "jwt", "api"]
        .iter()
        .any(|word| message.contains(word))
}

fn says_refresh_token_invalid(message: &str) -> bool {
    let message = message.to_ascii_lowercase().replace(['_', '-'], " ");
    (message.contains("refresh token") || message.contains("refreshtoken"))
        && INVALID_PHRASES
            .iter()
            .any(|phrase| message.contains(phrase))
        && !UNRELATED_PHRASES
            .iter()
            .any(|other| message.contains(other))
}

fn says_token_invalid(message: &str) -> bool {
    let message = format!(" {}", message.to_ascii_lowercase().replace(['_', '-'], " "));
    let about = |subjects: &[&str]| subjects.iter().any(|subject| message.contains(subject));
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| message.contains(phrase));
    let of_a_token = about(&["token"]) && says(&INVALID_PHRASES);
    let of_a_grant =
        about(&["grant", "consent", "authorization", "session"]) && says(&EXPIRED_PHRASES);
    (of_a_token || of_a_grant)
        && !UNRELATED_PHRASES.iter().any(|other| message.contains(other))
        // These are other tokens.
        && !["access", "api", "csrf", "bearer", "id", "security"]
            .iter()
            .any(|other| message.contains(&format!(" {other} token")))
}

/// Error codes of RFC 6749 §5.2.
const RFC_CODES: [&str; 6] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
];

/// Codes for an invalid refresh token, or for a person who is needed, besides `invalid_grant`;
/// normalized.
const INVALID_GRANT: [&str; 33] = [
    "invalidgrant",
    "badgrant",
    "expiredgrant",
    "grantexpired",
    "revokedgrant",
    "grantrevoked",
    "grantnotfound",
    "invalidauthorizationgrant",
    "invalidrefreshtoken",
    "badrefreshtoken",
    "refreshtokeninvalid",
    "refreshtokenisinvalid",
    "refreshtokennotvalid",
    "expiredrefreshtoken",
    "refreshtokenexpired",
    "revokedrefreshtoken",
    "refreshtokenrevoked",
    "unknownrefreshtoken",
    "refreshtokennotfound",
    "refreshtokenused",
    "refreshtokenalreadyused",
    "refreshtokenreused",
    "refreshtokenreuse",
    "invalidcode",
    "authorizationexpired",
    "authorizationrevoked",
    "expiredauthorization",
    "interactionrequired",
    "consentrequired",
    "loginrequired",
    "accountselectionrequired",
    "invalidrapt",
    "reauthorizationrequired",
];
/// Codes for an invalid token: the refresh token, unless the message speaks of another.
const INVALID_TOKEN: [&str; 20] = [
    "invalidtoken",
    "badtoken",
    "tokeninvalid",
    "tokenisinvalid",
    "tokennotvalid",
    "invalidoauthtoken",
    "expiredtoken",
    "tokenexpired",
    "tokenisexpired",
    "revokedtoken",
    "tokenrevoked",
    "tokennotfound",
    "unknowntoken",
    "inactivetoken",
    "tokeninactive",
    "tokennotactive",
    "sessionexpired",
    "sessionrevoked",
    "accessrevoked",
    "reauthenticationrequired",
];
/// Codes for a client that is unknown or fails to authenticate, besides `invalid_client`.
const INVALID_CLIENT: [&str; 9] = [
    "invalidclient",
    "invalidclientid",
    "invalidclientsecret",
    "badclientsecret",
    "incorrectclientcredentials",
    "invalidclientcredentials",
    "clientnotfound",
    "unknownclient",
    "unsupportedgranttype",
];
const BUSY: [&str; 10] = [
    "temporarilyunavailable",
    "slowdown",
    "ratelimited",
    "ratelimitexceeded",
    "requestlimitexceeded",
    "toomanyrequests",
    "throttled",
    "throttlingexception",
    "serviceunavailable",
    "overloaded",
];
const SERVER_ERRORS: [&str; 7] = [
    "servererror",
    "internalerror",
    "internalfailure",
    "internalservererror",
    "fatalerror",
    "requesttimeout",
    "unknownerror",
];
/// Phrases about an invalid token.
const INVALID_PHRASES: [&str; 22] = [
    "expired",
    "revoked",
    "invalid",
    "not valid",
    "no longer valid",
    "not found",
    "unknown",
    "already used",
    "been used",
    "reused",
    "reuse exceeded",
    "not active",
    "inactive",
    "not exist",
    "doesn't exist",
    "not recognized",
    "not recognised",
    "incorrect",
    "stale",
    "withdrawn",
    "terminated",
    "blacklisted",
];
/// Phrases about an expired consent; "invalid" may mean the header of that name.
const EXPIRED_PHRASES: [&str; 6] = [
    "expired",
    "revoked",
    "no longer valid",
    "withdrawn",
    "terminated",
    "not active",
];
/// Phrases that show that a message is about the request rather than its refresh token.
const UNRELATED_PHRASES: [&str; 16] = [
    "endpoint",
    "url",
    "client",
    "assertion",
    "missing",
    "required",
    "parameter",
    "malformed",
    "unsupported",
    "not supported",
    "not allowed",
    "grant type",
    "granttype",
    "scope",
    "header",
    "password",
];
