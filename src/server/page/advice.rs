//! Advice for each vendor: what is wrong, in plain words, and what to do. The reader may have been
//! asleep five minutes ago.

use std::time::SystemTime;

use maud::{Markup, html};

use super::format::{counted, grouped, when};
use super::row::Row;
use crate::credential::State;

/// Renders the advice on a vendor; `None` when nothing is wrong.
pub(super) fn of(row: &Row, now: SystemTime) -> Option<Markup> {
    let error = row.last_error();
    let state = row.credential.as_ref().map(|status| status.state);
    let about_credential = match state {
        Some(State::Expired | State::Failed | State::Reauthorize) => true,
        None | Some(State::Pending | State::Fresh | State::Refreshing | State::Static) => {
            error.is_some()
        }
    };
    let open = matches!(row.breaker, "open" | "half_open");
    // If callers are not served anyway, their errors are no news.
    let rejected = row.rejected();
    let errors = row.too_many_errors() && row.usable && !open && !rejected;
    let unreached = row.unreached.as_deref();
    if !(about_credential || open || errors || rejected || unreached.is_some()) {
        return None;
    }
    Some(html! {
        dl.advice {
            @if rejected {
                div { dt { "Callers" } dd {
                    "Get the vendor's own " code { "401" } ": its response to "
                    (grouped(row.responses.unauthorized)) " of the last "
                    (counted(row.responses.all, "request")) " within 10 minutes."
                } }
                div { dt { "To do" } dd { (where_to_look(row)) } }
            } @else if about_credential {
                div { dt { "Callers" } dd { (consequence(row, now)) } }
                @if let Some(error) = error { div { dt { "Error" } dd.error { (error) } } }
                div { dt { "To do" } dd { (what_to_do(row, error.unwrap_or_default())) } }
            }
            // The line above tells what callers get; this tells why the renewal does not help.
            @if rejected && about_credential {
                @if let Some(error) = error {
                    div { dt { "Last renewal" } dd.error { (error) } }
                    div { dt { "To do" } dd { (what_to_do(row, error)) } }
                }
            }
            @if let Some(why) = unreached {
                div { dt { "Connection" } dd.error { (why) } }
                div { dt { "To do" } dd {
                    "The last request that needed a connection to " code { (row.upstream) } " got none. Check \
                     its name, and the network or outbound proxy on the way. If a certificate is \
                     refused, check " code { "vendors." (row.name) ".ca" } ", which specifies the CAs to \
                     trust, and " code { "client_cert" } ". This clears with the next connection."
                } }
            }
            @if open {
                div { dt { "Breaker" } dd {
                    @if let Some(reason) = &row.breaker_reason { (reason) ": callers" }
                    @else { "The vendor failed too often in a row: callers" }
                    " get " code { "503 circuit_open" }
                    ", and their requests are not sent. The breaker closes automatically when the vendor \
                     responds again. Check the vendor's status page and the network on the way."
                } }
            }
            @if errors {
                div { dt { "Errors" } dd {
                    "At least 10 % of the responses of the last 15 minutes were errors. "
                    @if row.responses.unauthorized > 0 {
                        "The vendor responded " code { "401" } " to "
                        (grouped(row.responses.unauthorized)) " of the last "
                        (counted(row.responses.all, "request"))
                        " within 10 minutes: the credential may lack a permission that these need. "
                    } @else if !about_credential { "The credential is not the reason. " }
                    "The access log on stdout has details: look for " code { "\"vendor\":\"" (row.name) "\"" }
                    " and compare " code { "status" } " and " code { "reason" } ". Without a "
                    code { "reason" } ", the response is the vendor's own."
                } }
            }
        }
    })
}

/// Renders advice on a vendor that rejects its credential, by the kind of credential.
fn where_to_look(row: &Row) -> Markup {
    let name = &row.name;
    let place = html! { code { "vendors." (name) ".auth" } };
    let paths = html! {
        " If only some paths are affected, the lines of the access log on stdout with "
        code { "\"vendor\":\"" (name) "\"" } " and " code { "\"status\":401" } " show which: some vendors \
         respond 401 when the account lacks a permission."
    };
    html! {
        @match row.credential.as_ref().map(|status| status.state) {
            None => {
                "Nothing is added to requests, and the callers' own credentials are removed: \
                 configure " (place) "."
            }
            Some(State::Static) => {
                "The vendor does not accept the credential that " (place) " specifies. Was it replaced, \
                 revoked, locked, or has it expired? Does it belong to another environment than "
                code { (row.upstream) } "? Put the current one there. A changed file is in use \
                 within 10 s; a changed environment variable needs a restart." (paths)
            }
            Some(_) => {
                "Its token server issues tokens, but its API does not accept them. Do "
                code { (row.upstream) } " and the token URL belong to the same environment? Are "
                code { "scope" } " and " code { "audience" } " under " (place) " correct? Has the \
                 client been granted access?" (paths)
            }
        }
    }
}

/// Renders the consequence for callers.
fn consequence(row: &Row, now: SystemTime) -> Markup {
    let end = row.credential.as_ref().and_then(|status| status.expires_at);
    html! {
        @match (row.usable, end) {
            (true, Some(end)) => {
                "Served with the current credential, which expires " (when(end, now)) "."
            }
            (true, None) => { "Served with the current credential." }
            (false, _) => { "Get " code { "503 credential_unavailable" } "." }
        }
    }
}

/// Renders what to do, by the error first and by the state otherwise.
fn what_to_do(row: &Row, error: &str) -> Markup {
    let name = &row.name;
    // The error begins with the URL of the request, in which any word may occur.
    let (_, said) = error
        .split_once(": ")
        .filter(|(address, _)| address.contains("://"))
        .unwrap_or(("", error));
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let status = said.split(' ').next().unwrap_or_default();
    let place = html! { code { "vendors." (name) ".auth" } };
    let probe = html! { code { "countersign probe " (name) } };
    let state = row.credential.as_ref().map(|status| status.state);
    html! {
        @if state == Some(State::Reauthorize) {
            "Someone must consent again: run " code { "countersign authorize " (name) }
            " with this proxy's configuration and store. The new tokens are in use within 10 s, \
             without a restart."
        } @else if says(&["keeps only one alive"]) {
            @if says(&["`share: true`"]) {
                "Set " code { "share: true" } " under " (place) ", and have all replicas use one " code { "store" }
                " (Redis or Kubernetes; a directory for processes on one host): they then share one \
                 token. Any other program that uses this client needs a client of its own."
            } @else {
                "Find out what other program obtains tokens with this client, and give it a client of its own."
            }
        } @else if says(&["store:", "cannot be stored"]) {
            "The store of refresh tokens is unavailable: check that it exists, is reachable and \
             writable (" code { "store" } " in the configuration). It is retried automatically."
        } @else if says(&["cannot be read:", "is not set"]) {
            "A secret or file that " (place) " specifies is missing or unreadable: put it in place. \
             Changed files are read within 10 s; a changed environment variable needs a restart."
        } @else if says(&["invalid_client", "unauthorized_client"]) || status == "401" {
            "The vendor does not accept our client id or its secret: was it rotated or revoked \
             there? Put the new one where " (place) " specifies; a changed file is in use within \
             10 s. " (probe) " tests it."
        } @else if says(&["invalid_scope"]) {
            "The vendor does not grant the scope asked for: correct " code { "scope" } " under "
            (place) ", or have the scope granted at the vendor."
        } @else if says(&["invalid_grant"]) {
            "The vendor does not accept our login: the user name, password, certificate or \
             assertion is wrong, expired or locked. Correct it where " (place) " specifies. "
            (probe) " tests it."
        } @else if says(&["certificate", "tls", "TLS", "handshake"]) {
            "No trusted connection to the token server. If its CA is not a public one, specify it \
             as " code { "vendors." (name) ".ca" } "; otherwise its certificate, or ours, has expired."
        } @else if says(&["a redirect to"]) {
            "The token URL under " (place) " must be the final one: specify the address it redirects to."
        } @else if status == "429" {
            "The vendor limits token requests, and we now send fewer: wait. Do other programs use \
             the same client id?"
        } @else if is_refusal(status) {
            "The vendor refused: compare " (place) " with what the vendor gave you, including the \
             address. The request is retried every 5 minutes, and at once when a secret changes or with "
            code { "curl -X POST …/vendors/" (name) "/refresh" } " on this listener."
        } @else if status.len() == 3 && status.starts_with('2') {
            "The server responded, but without a token. Is the token URL under " (place) " correct, and \
             do the client id, the secret and the parameters belong to it? The request is retried \
             automatically; " (probe) " tries at once."
        } @else if !error.is_empty() {
            "Retried automatically, so this may need no action. Check the vendor's status page, DNS, \
             and the network or outbound proxy on the way to its token server."
        } @else {
            (probe) " tries it once and reports the outcome."
        }
    }
}

/// Tells whether a retry without a change will have the same result. Of the other 4xx, 408 and 425
/// are temporary, and 429 has advice of its own.
fn is_refusal(status: &str) -> bool {
    status.len() == 3 && status.starts_with('4') && !matches!(status, "408" | "425")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::ResponseCounts;
    use crate::request::auth_outcomes::Responses;
    use crate::server::page::row::tests::row;

    #[test]
    fn advice_follows_what_the_server_said_and_not_its_address() {
        let now = SystemTime::now();
        for (error, advised) in [
            (
                "https://v.example/certificate/token: 401 Unauthorized: no",
                "does not accept our client id",
            ),
            (
                "https://v.example/t: 400 Bad Request: invalid_grant",
                "does not accept our login",
            ),
            (
                "https://store:8443/invalid_grant: 400 Bad: odd",
                "The vendor refused",
            ),
            (
                "https://v.example/t: invalid peer certificate: UnknownIssuer",
                "vendors.v.ca",
            ),
            (
                "https://tls.example/t: connection refused",
                "Retried automatically",
            ),
            (
                "https://v.example/t: 422 Unprocessable Entity: no such tenant",
                "The vendor refused",
            ),
            (
                "https://v.example/t: 200 OK: invalid_team: No such team",
                "responded, but without a token",
            ),
            (
                "https://v.example/t: 503 Service Unavailable",
                "Retried automatically",
            ),
            ("store: not writable", "The store of refresh tokens"),
            (
                "2 tokens or more: the vendor keeps only one alive; `share: true` in",
                "<code>share: true</code> under",
            ),
            (
                "4 tokens: the vendor keeps only one alive; give each",
                "a client of its own",
            ),
        ] {
            let advice = of(&row(State::Failed, Some(error)), now).unwrap();
            let advice = advice.into_string();
            assert!(advice.contains(advised), "{error}: {advice}");
        }
        let consent = of(&row(State::Reauthorize, Some("no consent")), now).unwrap();
        let consent = consent.into_string();
        assert!(consent.contains("countersign authorize v"), "{consent}");
        assert!(of(&row(State::Fresh, None), now).is_none());
    }

    #[test]
    fn a_vendor_that_answers_401_is_not_called_healthy_and_the_credential_is_named() {
        let now = SystemTime::now();
        let responses = Responses {
            all: 7,
            unauthorized: 6,
        };
        for (state, advised) in [
            (Some(State::Static), "Put the current one there"),
            (Some(State::Fresh), "Its token server issues tokens"),
            (None, "Nothing is added to requests"),
        ] {
            let mut rejected = row(state.unwrap_or(State::Static), None);
            rejected.responses = responses;
            if state.is_none() {
                rejected.credential = None;
            }
            let advice = of(&rejected, now).unwrap().into_string();
            for said in ["to 6 of the last 7 requests", advised] {
                assert!(advice.contains(said), "{said}: {advice}");
            }
        }
        // The reason of the failed renewal and the advice on it are shown as well.
        let mut refused = row(
            State::Failed,
            Some("https://v.example/t: 401 Unauthorized: invalid_client"),
        );
        refused.responses = responses;
        let advice = of(&refused, now).unwrap().into_string();
        for said in [
            "6 of the last 7",
            "invalid_client",
            "does not accept our client id",
        ] {
            assert!(advice.contains(said), "{said}: {advice}");
        }
        assert!(!advice.contains("Served with"), "{advice}");
        // Too few for `rejected`, but the credential may still be the reason.
        let mut some = row(State::Static, None);
        some.responses = Responses {
            all: 10,
            unauthorized: 4,
        };
        some.samples = vec![ResponseCounts {
            requests: 10,
            errors: 4,
        }];
        let advice = of(&some, now).unwrap().into_string();
        assert!(advice.contains("to 4 of the last 10 requests"), "{advice}");
        assert!(!advice.contains("is not the reason"), "{advice}");
    }
}
