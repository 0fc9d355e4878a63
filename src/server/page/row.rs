//! One vendor on the page: its level, its credential, its last quarter of an hour.

use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use maud::{Markup, html};

use super::format::{counted, grouped, span, when};
use super::history::{SAMPLES, STEP};
use crate::credential;
use crate::metrics::ResponseCounts;
use crate::request::auth_outcomes::Responses;
use crate::server::status::{CredentialView, REJECTED, VendorView, breaker, state_word};

/// A vendor on the page.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) prefix: String,
    pub(super) hosts: Vec<String>,
    pub(super) upstream: String,
    pub(super) auth: &'static str,
    /// Status of the credential; `None`: no credential is injected.
    pub(super) credential: Option<credential::Status>,
    pub(super) usable: bool,
    /// Counts of the vendor's responses in the last ten minutes.
    pub(super) responses: Responses,
    /// The reason why requests get no connection to the vendor.
    pub(super) unreached: Option<String>,
    pub(super) in_flight: usize,
    pub(super) breaker: &'static str,
    /// The reason why the breaker is not closed.
    pub(super) breaker_reason: Option<String>,
    pub(super) samples: Vec<ResponseCounts>,
}

/// Severity of a vendor's state. The order is that of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Callers get errors.
    Down,
    /// Callers are served, but soon may not be, or get too many errors.
    Risk,
    /// The first attempt to obtain a credential is in progress.
    Pending,
    /// Nothing needs to be done.
    Healthy,
}

/// Minimum of errors in a quarter of an hour that counts as a problem.
const MIN_ERRORS: u64 = 3;

/// Titles of the columns.
pub(super) const COLUMNS: [&str; 7] = [
    "Vendor",
    "State",
    "Route",
    "Credential",
    "Last 15 minutes",
    "In flight",
    "Breaker",
];

impl Row {
    pub(super) fn of(view: &VendorView, samples: Vec<ResponseCounts>) -> Self {
        let vendor = &view.vendor;
        let credential = CredentialView::of(view);
        let prefix = if vendor.prefix.is_empty() {
            "/"
        } else {
            &vendor.prefix
        };
        let (breaker, breaker_reason) = breaker(view);
        Self {
            name: vendor.name.to_string(),
            prefix: prefix.to_owned(),
            hosts: view.hosts.clone(),
            upstream: format!("{}{}", vendor.upstream.origin(), vendor.upstream.base),
            auth: view.auth,
            credential: credential.status,
            usable: credential.usable,
            responses: credential.responses,
            unreached: credential.unreached.map(|why| why.to_string()),
            in_flight: vendor.in_flight.load(Ordering::Relaxed),
            breaker,
            breaker_reason,
            samples,
        }
    }

    pub(super) fn id(&self) -> String {
        format!("vendor-{}", self.name)
    }

    fn state(&self) -> &'static str {
        let state = self.credential.as_ref().map(|status| status.state);
        state_word(state, self.usable, self.responses)
    }

    /// Tells whether the vendor rejects its credential.
    pub(super) fn rejected(&self) -> bool {
        self.state() == REJECTED
    }

    pub(super) fn level(&self) -> Level {
        use credential::State;

        let of_credential = match self.credential.as_ref().map(|status| status.state) {
            Some(State::Pending) => Level::Pending,
            Some(State::Expired) => Level::Down,
            Some(State::Failed | State::Reauthorize) if !self.usable => Level::Down,
            Some(State::Failed | State::Reauthorize) => Level::Risk,
            Some(State::Fresh | State::Refreshing) if self.last_error().is_some() => Level::Risk,
            None | Some(State::Fresh | State::Refreshing | State::Static) => Level::Healthy,
        };
        if self.breaker == "open" || self.rejected() {
            Level::Down
        } else if self.breaker == "half_open" || self.unreached.is_some() || self.too_many_errors()
        {
            of_credential.min(Level::Risk)
        } else {
            of_credential
        }
    }

    pub(super) fn last_error(&self) -> Option<&str> {
        self.credential.as_ref()?.last_error.as_deref()
    }

    pub(super) fn totals(&self) -> ResponseCounts {
        let sum = |all: ResponseCounts, one: &ResponseCounts| ResponseCounts {
            requests: all.requests + one.requests,
            errors: all.errors + one.errors,
        };
        self.samples.iter().fold(ResponseCounts::default(), sum)
    }

    pub(super) fn too_many_errors(&self) -> bool {
        let ResponseCounts { requests, errors } = self.totals();
        errors >= MIN_ERRORS && errors * 10 >= requests
    }

    /// Renders the vendor's row and, beneath it, the advice.
    pub(super) fn rows(&self, advice: Option<Markup>, now: SystemTime) -> Markup {
        let level = self.level();
        html! {
            tbody #(self.id()) role="rowgroup" .(level.class()) {
                tr role="row" {
                    th.name scope="row" role="rowheader" {
                        (self.name) span.aside { (self.auth) }
                    }
                    td.state role="cell" { (level.mark()) " " (self.state()) }
                    td.route role="cell" {
                        code { (self.prefix) }
                        @for host in &self.hosts { " " code { (host) } }
                        span.to { span aria-hidden="true" { "→ " } span.unseen { "to " } (self.upstream) }
                    }
                    td.credential role="cell" { (self.credential_cell(now)) }
                    td.traffic role="cell" { (self.traffic_cell()) }
                    td.number role="cell" { (grouped(self.in_flight as u64)) }
                    td.breaker role="cell" { (self.breaker.replace('_', " ")) }
                }
                @if let Some(advice) = advice {
                    tr.trouble role="row" {
                        td colspan=(COLUMNS.len()) role="cell" { (advice) }
                    }
                }
            }
        }
    }

    /// Renders the lifetime of the credential: a bar that shrinks, with a mark at the renewal.
    fn credential_cell(&self, now: SystemTime) -> Markup {
        use credential::State;

        let Some(status) = &self.credential else {
            return html! { span.aside { "no credential is added" } };
        };
        if status.state == State::Static {
            return html! { span.aside { "static" } };
        }
        let Some(expires) = status.expires_at else {
            return html! {
                @if self.usable { "no stated expiry" }
                @else { strong { "none" } }
                @if let Some(next) = status.refresh_at { span.line { "next attempt " (when(next, now)) } }
            };
        };
        let from_now = |at: SystemTime| at.duration_since(now).unwrap_or_default();
        let left = from_now(expires);
        let bar = status.last_refresh.and_then(|since| {
            let whole = expires.duration_since(since).ok()?.as_secs_f64();
            let share = |span: Duration| (span.as_secs_f64() / whole * 100.0).clamp(0.0, 100.0);
            let renewal = status.refresh_at.filter(|at| *at > now && *at < expires);
            let renewal = renewal
                .and_then(|at| expires.duration_since(at).ok())
                .map(share);
            (whole > 0.0).then(|| (share(left), renewal))
        });
        html! {
            @if let Some((left, renewal)) = bar {
                svg.bar viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true" {
                    rect.track width="100" height="6" {}
                    rect.left width={ (format!("{left:.1}")) } height="6" {}
                    @if let Some(at) = renewal {
                        rect.renewal x={ (format!("{:.1}", at.min(99.0))) } width="1" height="6" {}
                    }
                }
            }
            @match status.refresh_at {
                Some(at) if at > now => {
                    @if self.last_error().is_some() { "next attempt " } @else { "renews " }
                    (when(at, now)) ", "
                }
                Some(_) => { "renewing, " }
                None => {}
            }
            @if left.is_zero() { "expired " } @else { "expires " }
            (when(expires, now))
        }
    }

    /// Renders the plot and its description in words.
    fn traffic_cell(&self) -> Markup {
        let ResponseCounts { requests, errors } = self.totals();
        let most = self
            .samples
            .iter()
            .map(|sample| sample.requests.max(sample.errors))
            .max();
        let most = most.unwrap_or_default();
        let last_error = self
            .samples
            .iter()
            .rev()
            .position(|sample| sample.errors > 0);
        let ago = |steps: usize| match u32::try_from(steps) {
            Ok(0) | Err(_) => "just now".to_owned(),
            Ok(steps) => format!("{} ago", span(STEP * steps)),
        };
        let words = format!(
            "{} and {} in {}; at most {} in {}",
            counted(requests, "request"),
            counted(errors, "error"),
            covered(self.samples.len()),
            counted(most, "request"),
            span(STEP),
        );
        html! {
            svg.plot viewBox="0 0 180 24" role="img" aria-label=(words) {
                path.base d="M0 23.5H180" {}
                path.requests d=(bars(&self.samples, most, |sample| sample.requests)) {}
                path.errors d=(bars(&self.samples, most, |sample| sample.errors)) {}
            }
            span.line {
                @if requests == 0 && errors == 0 { span.aside { "no requests" } }
                @else { (counted(requests, "request")) }
                @if errors > 0 {
                    span.errors { ", " (counted(errors, "error")) }
                    @if let Some(steps) = last_error { ", last " (ago(steps)) }
                }
            }
        }
    }
}

impl Level {
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Risk => "risk",
            Self::Pending => "pending",
            Self::Healthy => "healthy",
        }
    }

    /// Renders the level as a shape, for those who do not see the colour.
    pub(super) fn mark(self) -> Markup {
        let path = match self {
            Self::Down => "M2 2L10 10M10 2L2 10",
            Self::Risk => "M6 1.5L11 10.5H1Z M6 5V7.5 M6 9v.2",
            Self::Pending => "M6 1.5A4.5 4.5 0 1 1 1.5 6",
            Self::Healthy => "M1.5 6.5L4.5 9.5L10.5 2.5",
        };
        html! { svg.mark viewBox="0 0 12 12" aria-hidden="true" { path d=(path) {} } }
    }
}

/// Returns the path of a plot of 180 by 24: one bar per sample, the newest at the right.
fn bars(samples: &[ResponseCounts], most: u64, height: fn(&ResponseCounts) -> u64) -> String {
    let mut path = String::new();
    let empty = (SAMPLES + 1).saturating_sub(samples.len());
    for (nth, sample) in samples.iter().enumerate() {
        let value = height(sample);
        if value > 0 {
            let x = (empty + nth) * 3;
            #[expect(clippy::cast_precision_loss, reason = "a picture")]
            let tall = (value as f64 / most.max(1) as f64 * 22.0).max(2.0);
            // Writing to a String cannot fail.
            let _ = write!(path, "M{x} 23v-{tall:.1}h2v{tall:.1}z");
        }
    }
    path
}

/// Describes the time that `samples` cover, for the text under the plot.
pub(super) fn covered(samples: usize) -> String {
    if samples > SAMPLES {
        return "the last 15 minutes".to_owned();
    }
    let steps = u32::try_from(samples).unwrap_or(1);
    format!("the last {}", span(STEP * steps))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::credential::{State, Status};

    /// Returns a vendor whose credential is in this state.
    pub(in crate::server::page) fn row(state: State, last_error: Option<&str>) -> Row {
        let now = SystemTime::now();
        Row {
            name: "v".into(),
            prefix: "/v".into(),
            hosts: vec!["<i>".into()],
            upstream: "https://v.example".into(),
            auth: "client_credentials",
            credential: Some(Status {
                state,
                expires_at: Some(now + Duration::from_mins(30)),
                refresh_at: Some(now + Duration::from_mins(10)),
                last_refresh: Some(now - Duration::from_mins(30)),
                last_error: last_error.map(ToOwned::to_owned),
                generation: 1,
                settled: true,
                ever_usable: true,
            }),
            usable: !matches!(state, State::Expired | State::Pending),
            responses: Responses::default(),
            unreached: None,
            in_flight: 0,
            breaker: "off",
            breaker_reason: None,
            samples: vec![ResponseCounts::default()],
        }
    }

    #[test]
    fn how_bad_it_is_depends_on_what_callers_have() {
        for (state, error, level) in [
            (State::Fresh, None, Level::Healthy),
            (State::Static, None, Level::Healthy),
            (State::Refreshing, None, Level::Healthy),
            (State::Refreshing, Some("late"), Level::Risk),
            (State::Fresh, Some("lost"), Level::Risk),
            (State::Failed, Some("no"), Level::Risk),
            (State::Reauthorize, Some("no"), Level::Risk),
            (State::Expired, Some("no"), Level::Down),
            (State::Pending, None, Level::Pending),
        ] {
            assert_eq!(row(state, error).level(), level, "{state:?}");
        }
        let mut failed = row(State::Failed, Some("no"));
        failed.usable = false;
        assert_eq!(failed.level(), Level::Down);
        let mut open = row(State::Fresh, None);
        open.breaker = "open";
        assert_eq!(open.level(), Level::Down);
        let mut rejected = row(State::Static, None);
        for (unauthorized, state, level) in
            [(5, "static", Level::Healthy), (6, "rejected", Level::Down)]
        {
            rejected.responses = Responses {
                all: 10,
                unauthorized,
            };
            assert_eq!((rejected.state(), rejected.level()), (state, level));
        }
        let mut unreached = row(State::Fresh, None);
        unreached.unreached = Some("a.test does not resolve".into());
        assert_eq!(unreached.level(), Level::Risk);
        let mut failing = row(State::Fresh, None);
        for (errors, level) in [(2, Level::Healthy), (3, Level::Risk)] {
            let requests = 20;
            failing.samples = vec![ResponseCounts { requests, errors }];
            assert_eq!(failing.level(), level, "{errors} of {requests}");
        }
    }

    #[test]
    fn bars_end_at_the_right_and_errors_are_never_too_small_to_see() {
        let samples = [
            ResponseCounts {
                requests: 0,
                errors: 0,
            },
            ResponseCounts {
                requests: 1000,
                errors: 1,
            },
        ];
        let path = bars(&samples, 1000, |sample| sample.requests);
        assert_eq!(path, "M177 23v-22.0h2v22.0z");
        let path = bars(&samples, 1000, |sample| sample.errors);
        assert_eq!(path, "M177 23v-2.0h2v2.0z");
    }
}
