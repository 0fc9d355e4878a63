//! The status page: what an operator opens at 3 a.m. Worst first, in words, with what to do.
//!
//! One page that fetches nothing and needs no script; with one, [`events`] keeps it up to date. Every
//! text in it goes through `html!`, which escapes: names, addresses and errors come from a file and
//! from vendors. Nothing here can reach a secret: credentials are seen as [`credential::Status`].

mod advice;
pub(super) mod events;
pub(super) mod history;

use std::fmt::Write;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use self::history::{History, SAMPLES, STEP};
use super::admin::{Console, NONE, breaker};
use super::live::Watched;
use crate::credential;
use crate::metrics::{Answered, COMMIT};
use crate::tls::sha256;

/// What the page shows, all of one moment.
pub(super) struct Sight {
    now: SystemTime,
    started: SystemTime,
    draining: bool,
    /// SHA-256 of the configuration in use, hex, and when it came into use.
    configuration: (String, SystemTime),
    /// Why the last reload was refused.
    refused: Option<String>,
    /// Worst first, in the file's order otherwise.
    vendors: Vec<Row>,
    /// The next to end first.
    certificates: Vec<(String, SystemTime)>,
    /// Requests that reached no vendor.
    astray: Vec<Answered>,
}

/// One vendor.
struct Row {
    name: String,
    prefix: String,
    hosts: Vec<String>,
    upstream: String,
    auth: &'static str,
    /// `None`: nothing is injected.
    credential: Option<credential::Status>,
    usable: bool,
    in_flight: usize,
    breaker: &'static str,
    /// Why it is not closed.
    breaker_reason: Option<String>,
    samples: Vec<Answered>,
}

/// How bad it is; the order is that of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// Callers get errors.
    Down,
    /// Callers are served, and will not be for long, or not well.
    Risk,
    /// The first attempt is under way.
    Pending,
    /// Nothing to do.
    Well,
}

/// A certificate that ends sooner has been forgotten.
const CERTIFICATE_SOON: Duration = Duration::from_hours(14 * 24);

/// Fewer errors in a quarter of an hour wake nobody.
const FEW_ERRORS: u64 = 3;

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http:%2F%2Fwww.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath d='M8 1l6 2v5c0 4-3 6-6 7-3-1-6-3-6-7V3z' fill='%23556'/%3E%3Cpath d='M5 8l2 2 4-4' stroke='%23fff' stroke-width='1.5' fill='none'/%3E%3C/svg%3E";

/// The page may run and look like what is written here, ask its own listener for events, and
/// nothing else.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(sha256(&[text.as_bytes()]));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

impl Sight {
    pub(super) fn now(console: &Console, history: &History) -> Self {
        let live = &console.live;
        let view = live.view.load();
        let answered = live.metrics.answered();
        let samples = |name: &str| {
            let counted = answered.get(name).copied().unwrap_or_default();
            history.of(name, counted)
        };
        let mut vendors: Vec<Row> = view
            .vendors
            .iter()
            .map(|watched| Row::of(watched, samples(&watched.vendor.name)))
            .collect();
        vendors.sort_by_key(Row::level);
        let mut certificates: Vec<(String, SystemTime)> = live
            .metrics
            .certificates()
            .into_iter()
            .map(|(name, ends)| {
                let ends = Duration::try_from_secs_f64(ends).unwrap_or_default();
                (name, SystemTime::UNIX_EPOCH + ends)
            })
            .collect();
        certificates.sort_by_key(|(_, ends)| *ends);
        Self {
            now: SystemTime::now(),
            started: console.started,
            draining: console.draining.load(Ordering::Acquire),
            configuration: (view.sha256.clone(), view.loaded),
            refused: live.last_error.load().as_deref().cloned(),
            vendors,
            certificates,
            astray: samples("none"),
        }
    }

    /// The whole page.
    pub(super) fn page(&self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="robots" content="noindex";
                    title { (self.title()) }
                    link rel="icon" href=(ICON);
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    header {
                        p.brand { "Countersign" }
                        p #live.live role="status" { "as of " (clock(self.now)) " UTC" }
                    }
                    main {
                        (self.verdict())
                        section aria-labelledby="vendors" {
                            h2 #vendors { "Vendors" }
                            table role="table" {
                                caption.aside {
                                    "Each vendor, its way in and its credential; the worst first."
                                }
                                thead role="rowgroup" {
                                    tr role="row" {
                                        @for head in HEADS {
                                            th scope="col" role="columnheader" { (head) }
                                        }
                                    }
                                }
                                @for vendor in &self.vendors { (vendor.rows(self.now)) }
                            }
                        }
                        (self.certificates())
                        (self.process())
                    }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        page.into_string()
    }

    /// Everything that can change, by the id of its element; vendors in their order.
    fn parts(&self) -> Vec<(String, String)> {
        let mut parts = vec![
            ("verdict".to_owned(), self.verdict().into_string()),
            ("certificates".to_owned(), self.certificates().into_string()),
            ("process".to_owned(), self.process().into_string()),
        ];
        let rows = self.vendors.iter();
        parts.extend(rows.map(|row| (row.id(), row.rows(self.now).into_string())));
        parts
    }

    fn title(&self) -> String {
        let bad = self.bad();
        if self.draining {
            "draining · Countersign".to_owned()
        } else if bad > 0 {
            let verb = if bad == 1 { "needs" } else { "need" };
            format!("{bad} {verb} you · Countersign")
        } else {
            "Countersign".to_owned()
        }
    }

    fn bad(&self) -> usize {
        self.at(Level::Down).count() + self.at(Level::Risk).count()
    }

    fn at(&self, level: Level) -> impl Iterator<Item = &Row> {
        self.vendors.iter().filter(move |row| row.level() == level)
    }

    fn ending(&self) -> impl Iterator<Item = &(String, SystemTime)> {
        let soon = self.now + CERTIFICATE_SOON;
        self.certificates
            .iter()
            .filter(move |(_, ends)| *ends < soon)
    }

    /// All of it in one sentence, and who is concerned.
    fn verdict(&self) -> Markup {
        let (all, bad) = (self.vendors.len(), self.bad());
        let pending = self.at(Level::Pending).count();
        let ending = self.ending().count();
        let mut level = self.vendors.first().map_or(Level::Well, Row::level);
        let mut sentence = if bad > 0 {
            let verb = if bad == 1 { "needs" } else { "need" };
            format!("{bad} of {} {verb} attention.", counted(all, "vendor"))
        } else if pending > 0 {
            format!(
                "{} waiting for the first credential.",
                counted(pending, "vendor")
            )
        } else if all == 1 {
            "The vendor is well.".to_owned()
        } else {
            format!("All {all} vendors are well.")
        };
        if level == Level::Well && (self.refused.is_some() || ending > 0) {
            level = Level::Risk;
            sentence.pop();
            sentence.push_str(match (&self.refused, ending) {
                (Some(_), _) => "; the last reload was refused.",
                (None, 1) => "; a certificate is not.",
                (None, _) => "; certificates are not.",
            });
        }
        html! {
            section #verdict.verdict.(level.class()) aria-label="Summary" {
                h1 { (sentence) }
                @if self.draining {
                    p.notice {
                        strong { "Draining." }
                        " This process takes no new work soon, and ends when what is in flight is done."
                    }
                }
                @for (level, what) in [
                    (Level::Down, "Callers get errors from "),
                    (Level::Risk, "Still served, and not well: "),
                ] {
                    @if self.at(level).next().is_some() {
                        p.(level.class()) {
                            (what)
                            @for (nth, row) in self.at(level).enumerate() {
                                @if nth > 0 { ", " }
                                a href={ "#" (row.id()) } { (row.name) }
                            }
                            "."
                        }
                    }
                }
                @for (name, ends) in self.ending() {
                    p.risk {
                        "The certificate " code { (name) }
                        @if *ends <= self.now { " has ended " } @else { " ends " }
                        (when(*ends, self.now)) ": replace its files; they are read by themselves."
                    }
                }
                @if let Some(refused) = &self.refused {
                    div.refused {
                        p {
                            strong { "The last reload was refused." }
                            " The configuration of " (clock(self.configuration.1))
                            " UTC goes on. Correct this, and it is read again by itself:"
                        }
                        pre tabindex="0" { (refused) }
                    }
                }
            }
        }
    }

    fn certificates(&self) -> Markup {
        html! {
            section #certificates aria-labelledby="certificates-head" {
                h2 #certificates-head { "Certificates" }
                @if self.certificates.is_empty() {
                    p.aside { "None: no TLS listener, and no client certificate for an upstream." }
                } @else {
                    ul.certificates {
                        @for (name, ends) in &self.certificates {
                            @let left = ends.duration_since(self.now).unwrap_or_default();
                            @let level = match left {
                                Duration::ZERO => Level::Down,
                                left if left < CERTIFICATE_SOON => Level::Risk,
                                _ => Level::Well,
                            };
                            li.(level.class()) {
                                code { (name) }
                                span.days {
                                    (level.mark()) " "
                                    @if *ends <= self.now { "ended " } @else { "ends " }
                                    (when(*ends, self.now))
                                }
                                span.aside { (date(*ends)) }
                            }
                        }
                    }
                }
            }
        }
    }

    fn process(&self) -> Markup {
        let (sha256, loaded) = &self.configuration;
        let astray: u64 = self.astray.iter().map(|sample| sample.requests).sum();
        html! {
            section #process aria-labelledby="process-head" {
                h2 #process-head { "This process" }
                dl {
                    div { dt { "Version" } dd {
                        (env!("CARGO_PKG_VERSION"))
                        @if COMMIT != "unknown" { " " span.aside { (COMMIT) } }
                    } }
                    div { dt { "Started" } dd { (when(self.started, self.now)) } }
                    div { dt { "State" } dd { @if self.draining { "draining" } @else { "serving" } } }
                    div { dt { "Configuration loaded" } dd { (when(*loaded, self.now)) } }
                    div { dt { "Last reload" } dd {
                        @if self.refused.is_some() { "refused" }
                        // The first configuration is older than the listeners.
                        @else if *loaded < self.started { "none since the start" }
                        @else { "in use" }
                    } }
                    div { dt { "Requests that no vendor matched" } dd {
                        (grouped(astray)) " in " (covered(self.astray.len()))
                    } }
                    div.wide { dt { "SHA-256 of the configuration" } dd { code.hash { (sha256) } } }
                }
            }
        }
    }
}

const HEADS: [&str; 7] = [
    "Vendor",
    "State",
    "Way in",
    "Credential",
    "Last 15 minutes",
    "In flight",
    "Breaker",
];

impl Row {
    fn of(watched: &Watched, samples: Vec<Answered>) -> Self {
        let (vendor, credential) = (&watched.vendor, watched.credential.as_ref());
        let prefix = if vendor.prefix.is_empty() {
            "/"
        } else {
            &vendor.prefix
        };
        let (breaker, breaker_reason) = breaker(watched);
        Self {
            name: vendor.name.to_string(),
            prefix: prefix.to_owned(),
            hosts: watched.hosts.clone(),
            upstream: format!("{}{}", vendor.upstream.origin(), vendor.upstream.base),
            auth: watched.auth,
            credential: credential.map(|credential| credential.status()),
            usable: credential.is_none_or(|credential| credential.current().is_ok()),
            in_flight: vendor.in_flight.load(Ordering::Relaxed),
            breaker,
            breaker_reason,
            samples,
        }
    }

    fn id(&self) -> String {
        format!("vendor-{}", self.name)
    }

    fn state(&self) -> &'static str {
        self.credential
            .as_ref()
            .map_or(NONE, |credential| credential.state.word())
    }

    fn level(&self) -> Level {
        use credential::State;

        let of_credential = match self.credential.as_ref().map(|status| status.state) {
            Some(State::Pending) => Level::Pending,
            Some(State::Expired) => Level::Down,
            Some(State::Failed | State::Reauthorize) if !self.usable => Level::Down,
            Some(State::Failed | State::Reauthorize) => Level::Risk,
            Some(State::Refreshing) if self.last_error().is_some() => Level::Risk,
            None | Some(State::Fresh | State::Refreshing | State::Static) => Level::Well,
        };
        if self.breaker == "open" {
            Level::Down
        } else if self.breaker == "half_open" {
            of_credential.min(Level::Risk)
        } else if self.too_many_errors() {
            of_credential.min(Level::Risk)
        } else {
            of_credential
        }
    }

    fn last_error(&self) -> Option<&str> {
        self.credential.as_ref()?.last_error.as_deref()
    }

    fn answered(&self) -> Answered {
        let sum = |all: Answered, one: &Answered| Answered {
            requests: all.requests + one.requests,
            errors: all.errors + one.errors,
        };
        self.samples.iter().fold(Answered::default(), sum)
    }

    fn too_many_errors(&self) -> bool {
        let Answered { requests, errors } = self.answered();
        errors >= FEW_ERRORS && errors * 10 >= requests
    }

    /// The vendor's line, and beneath it what is wrong and what to do.
    fn rows(&self, now: SystemTime) -> Markup {
        let level = self.level();
        let advice = advice::of(self, now);
        html! {
            tbody #(self.id()) role="rowgroup" .(level.class()) {
                tr role="row" {
                    th.name scope="row" role="rowheader" {
                        (self.name) span.aside { (self.auth) }
                    }
                    td.state role="cell" { (level.mark()) " " (self.state()) }
                    td.way role="cell" {
                        code { (self.prefix) }
                        @for host in &self.hosts { " " code { (host) } }
                        span.to { span aria-hidden="true" { "→ " } span.unseen { "to " } (self.upstream) }
                    }
                    td.credential role="cell" { (self.life(now)) }
                    td.traffic role="cell" { (self.traffic()) }
                    td.number role="cell" { (grouped(self.in_flight as u64)) }
                    td.breaker role="cell" { (self.breaker.replace('_', " ")) }
                }
                @if let Some(advice) = advice {
                    tr.trouble role="row" {
                        td colspan=(HEADS.len()) role="cell" { (advice) }
                    }
                }
            }
        }
    }

    /// What is left of the credential: a bar that empties, with a notch where it is renewed.
    fn life(&self, now: SystemTime) -> Markup {
        use credential::State;

        let Some(status) = &self.credential else {
            return html! { span.aside { "nothing is added" } };
        };
        if status.state == State::Static {
            return html! { span.aside { "fixed, used as it is written" } };
        }
        let Some(end) = status.expires_at else {
            return html! {
                @if self.usable { "no stated end" }
                @else { strong { "none held" } }
                @if let Some(next) = status.refresh_at { span.line { "next attempt " (when(next, now)) } }
            };
        };
        let from_now = |at: SystemTime| at.duration_since(now).unwrap_or_default();
        let left = from_now(end);
        let bar = status.last_refresh.and_then(|since| {
            let whole = end.duration_since(since).ok()?.as_secs_f64();
            let share = |span: Duration| (span.as_secs_f64() / whole * 100.0).clamp(0.0, 100.0);
            let renewal = status.refresh_at.filter(|at| *at > now && *at < end);
            let renewal = renewal
                .and_then(|at| end.duration_since(at).ok())
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
                    @if self.last_error().is_some() { "next attempt " } @else { "renewed " }
                    (when(at, now)) ", "
                }
                Some(_) => { "renewal under way, " }
                None => {}
            }
            @if left.is_zero() { "ended " } @else { "ends " }
            (when(end, now))
        }
    }

    /// The plot, and the same in words.
    fn traffic(&self) -> Markup {
        let Answered { requests, errors } = self.answered();
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
            counted_in(requests, "request"),
            counted_in(errors, "error"),
            covered(self.samples.len()),
            counted_in(most, "request"),
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
                @else { (counted_in(requests, "request")) }
                @if errors > 0 {
                    span.errors { ", " (counted_in(errors, "error")) }
                    @if let Some(steps) = last_error { ", last " (ago(steps)) }
                }
            }
        }
    }
}

impl Level {
    fn class(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Risk => "risk",
            Self::Pending => "pending",
            Self::Well => "well",
        }
    }

    /// The colour's shape, for those who do not see the colour.
    fn mark(self) -> Markup {
        let shape = match self {
            Self::Down => "M2 2L10 10M10 2L2 10",
            Self::Risk => "M6 1.5L11 10.5H1Z M6 5V7.5 M6 9v.2",
            Self::Pending => "M6 1.5A4.5 4.5 0 1 1 1.5 6",
            Self::Well => "M1.5 6.5L4.5 9.5L10.5 2.5",
        };
        html! { svg.mark viewBox="0 0 12 12" aria-hidden="true" { path d=(shape) {} } }
    }
}

/// One bar per sample, the newest at the right end of 180 by 24.
fn bars(samples: &[Answered], most: u64, height: fn(&Answered) -> u64) -> String {
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

/// How long so many samples are: what the words say under the plot.
fn covered(samples: usize) -> String {
    if samples > SAMPLES {
        return "the last 15 minutes".to_owned();
    }
    let steps = u32::try_from(samples).unwrap_or(1);
    format!("the last {}", span(STEP * steps))
}

/// From now, with the moment itself for machines and for whoever points at it.
fn when(at: SystemTime, now: SystemTime) -> Markup {
    let words = match at.duration_since(now) {
        Ok(left) if left < Duration::from_secs(1) => "now".to_owned(),
        Ok(left) => format!("in {}", span(left)),
        Err(past) if past.duration() < Duration::from_secs(1) => "now".to_owned(),
        Err(past) => format!("{} ago", span(past.duration())),
    };
    let exact = humantime::format_rfc3339_seconds(at).to_string();
    html! { time datetime=(exact) title=(exact) { (words) } }
}

/// As exact as it matters.
fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min"),
        3600..86400 if minutes % 60 == 0 => format!("{hours} h"),
        3600..86400 => format!("{hours} h {} min", minutes % 60),
        86400..172_800 => format!("1 day {} h", hours % 24),
        _ => format!("{days} days"),
    }
}

/// Hours, minutes and seconds, UTC.
fn clock(at: SystemTime) -> String {
    let exact = humantime::format_rfc3339_seconds(at).to_string();
    exact.get(11..19).unwrap_or_default().to_owned()
}

fn date(at: SystemTime) -> String {
    let exact = humantime::format_rfc3339_seconds(at).to_string();
    exact.get(..10).unwrap_or_default().to_owned()
}

fn counted(number: usize, noun: &str) -> String {
    counted_in(number as u64, noun)
}

fn counted_in(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(number))
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::{State, Status};

    fn row(state: State, last_error: Option<&str>) -> Row {
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
            in_flight: 0,
            breaker: "off",
            breaker_reason: None,
            samples: vec![Answered::default()],
        }
    }

    fn sight(vendors: Vec<Row>) -> Sight {
        let now = SystemTime::now();
        Sight {
            now,
            started: now - Duration::from_hours(3),
            draining: false,
            configuration: ("00".into(), now),
            refused: None,
            vendors,
            certificates: vec![],
            astray: vec![],
        }
    }

    #[test]
    fn how_bad_it_is_depends_on_what_callers_have() {
        for (state, error, level) in [
            (State::Fresh, None, Level::Well),
            (State::Static, None, Level::Well),
            (State::Refreshing, None, Level::Well),
            (State::Refreshing, Some("late"), Level::Risk),
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
        let mut failing = row(State::Fresh, None);
        for (errors, level) in [(2, Level::Well), (3, Level::Risk)] {
            let requests = 20;
            failing.samples = vec![Answered { requests, errors }];
            assert_eq!(failing.level(), level, "{errors} of {requests}");
        }
    }

    #[test]
    fn every_text_is_escaped() {
        let hostile = "</script><script>alert(1)</script>\"' onload='x";
        let mut sight = sight(vec![row(State::Failed, Some(hostile))]);
        sight.refused = Some(hostile.to_owned());
        sight.configuration.0 = hostile.to_owned();
        sight.certificates = vec![(hostile.to_owned(), sight.now)];
        sight.vendors[0].name = hostile.to_owned();
        sight.vendors[0].upstream = hostile.to_owned();
        let page = sight.page();
        // The page's own one.
        assert_eq!(page.matches("<script>").count(), 1);
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(page.contains("<code>&lt;i&gt;</code>"));
        assert!(!page.contains("\"' onload"));
    }

    #[test]
    fn the_verdict_names_the_worst_and_says_when_all_is_well() {
        let page = |vendors| sight(vendors).page();
        assert!(page(vec![row(State::Fresh, None)]).contains("The vendor is well."));
        let two = vec![row(State::Fresh, None), row(State::Static, None)];
        assert!(page(two).contains("All 2 vendors are well."));
        let waiting = page(vec![row(State::Pending, None)]);
        assert!(waiting.contains("1 vendor waiting for the first credential."));
        let one = vec![row(State::Expired, Some("late")), row(State::Fresh, None)];
        let one = page(one);
        assert!(one.contains("1 of 2 vendors needs attention."), "{one}");
        let mut refused = sight(vec![row(State::Fresh, None)]);
        refused.refused = Some("line 3".into());
        assert!(
            refused
                .page()
                .contains("The vendor is well; the last reload was refused.")
        );
        assert!(one.contains("Callers get errors from <a href=\"#vendor-v\">v</a>."));
    }

    #[test]
    fn advice_follows_what_the_server_said_and_not_its_address() {
        let now = SystemTime::now();
        for (error, advised) in [
            (
                "https://v.example/certificate/token: 401 Unauthorized: no",
                "does not know our client id",
            ),
            (
                "https://v.example/t: 400 Bad Request: invalid_grant",
                "does not take what we log in with",
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
                "Tried again by itself",
            ),
            ("store: not writable", "The store of refresh tokens"),
        ] {
            let advice = advice::of(&row(State::Failed, Some(error)), now).unwrap();
            let advice = advice.into_string();
            assert!(advice.contains(advised), "{error}: {advice}");
        }
        let consent = advice::of(&row(State::Reauthorize, Some("no consent")), now).unwrap();
        let consent = consent.into_string();
        assert!(consent.contains("countersign authorize v"), "{consent}");
        assert!(advice::of(&row(State::Fresh, None), now).is_none());
    }

    #[test]
    fn bars_end_at_the_right_and_errors_are_never_too_small_to_see() {
        let samples = [
            Answered {
                requests: 0,
                errors: 0,
            },
            Answered {
                requests: 1000,
                errors: 1,
            },
        ];
        let path = bars(&samples, 1000, |sample| sample.requests);
        assert_eq!(path, "M177 23v-22.0h2v22.0z");
        let path = bars(&samples, 1000, |sample| sample.errors);
        assert_eq!(path, "M177 23v-2.0h2v2.0z");
    }

    #[test]
    fn times_and_numbers_are_as_exact_as_it_matters() {
        for (seconds, words) in [
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (7200, "2 h"),
            (7260, "2 h 1 min"),
            (90_000, "1 day 1 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), words);
        }
        for (number, words) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), words);
        }
    }
}
