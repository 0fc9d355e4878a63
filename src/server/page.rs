//! The status page, for an operator woken at 3 a.m.: the worst first, in words, with what to do.
//!
//! The page fetches nothing and needs no script; with one, [`events`] keeps it up to date. Every
//! text goes through `html!`, which escapes: names, addresses and errors come from a file and from
//! vendors. Secrets cannot reach the page: credentials are seen as [`crate::credential::Status`].

mod advice;
pub(super) mod events;
mod format;
pub(super) mod history;
mod row;

use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use self::format::{clock, counted, date, grouped, when};
use self::history::History;
use self::row::{COLUMNS, Level, Row, covered};
use super::admin_state::AdminState;
use crate::metrics::{COMMIT, ResponseCounts};
use crate::tls::sha256;

/// The data of the page, all of one moment.
pub(super) struct PageData {
    now: SystemTime,
    started: SystemTime,
    draining: bool,
    /// SHA-256 of the current configuration, hex, and the time when it came into use.
    configuration: (String, SystemTime),
    /// The reason why the last reload was refused.
    reload_error: Option<String>,
    /// All vendors, the worst first, otherwise in the configuration's order.
    vendors: Vec<Row>,
    /// Certificates, the first to expire first.
    certificates: Vec<(String, SystemTime)>,
    /// Counts of requests that reached no vendor.
    unrouted: Vec<ResponseCounts>,
}

/// Threshold for a warning: a certificate that expires sooner was probably forgotten.
const EXPIRES_SOON: Duration = Duration::from_hours(14 * 24);

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http:%2F%2Fwww.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath d='M8 1l6 2v5c0 4-3 6-6 7-3-1-6-3-6-7V3z' fill='%23556'/%3E%3Cpath d='M5 8l2 2 4-4' stroke='%23fff' stroke-width='1.5' fill='none'/%3E%3C/svg%3E";

/// Content security policy: only this page's own style and script, and events of its own listener.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(sha256(&[text.as_bytes()]));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

impl PageData {
    pub(super) fn now(state: &AdminState, history: &History) -> Self {
        let runtime = &state.runtime;
        let view = runtime.view.load();
        let answered = runtime.metrics.response_counts();
        let samples = |name: &str| {
            let counted = answered.get(name).copied().unwrap_or_default();
            history.samples(name, counted)
        };
        let mut vendors: Vec<Row> = view
            .vendors
            .iter()
            .map(|vendor| Row::of(vendor, samples(&vendor.vendor.name)))
            .collect();
        vendors.sort_by_key(Row::level);
        let mut certificates: Vec<(String, SystemTime)> = runtime
            .metrics
            .certificates()
            .into_iter()
            .map(|(name, expires)| {
                let expires = Duration::try_from_secs_f64(expires).unwrap_or_default();
                (name, SystemTime::UNIX_EPOCH + expires)
            })
            .collect();
        certificates.sort_by_key(|(_, expires)| *expires);
        Self {
            now: SystemTime::now(),
            started: state.started,
            draining: state.draining.load(Ordering::Acquire),
            configuration: (view.sha256.clone(), view.loaded),
            reload_error: runtime.last_error.load().as_deref().cloned(),
            vendors,
            certificates,
            unrouted: samples("none"),
        }
    }

    fn rows(&self, vendor: &Row) -> Markup {
        vendor.rows(advice::of(vendor, self.now), self.now)
    }

    /// Renders the whole page.
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
                                    "Each vendor with its route and its credential, the worst first."
                                }
                                thead role="rowgroup" {
                                    tr role="row" {
                                        @for column in COLUMNS {
                                            th scope="col" role="columnheader" { (column) }
                                        }
                                    }
                                }
                                @for vendor in &self.vendors { (self.rows(vendor)) }
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

    /// Returns everything that can change, by the id of its element; vendors in their order.
    fn parts(&self) -> Vec<(String, String)> {
        let mut parts = vec![
            ("verdict".to_owned(), self.verdict().into_string()),
            ("certificates".to_owned(), self.certificates().into_string()),
            ("process".to_owned(), self.process().into_string()),
        ];
        let rows = self.vendors.iter();
        parts.extend(rows.map(|row| (row.id(), self.rows(row).into_string())));
        parts
    }

    fn title(&self) -> String {
        let unhealthy = self.count_unhealthy();
        if self.draining {
            "draining · Countersign".to_owned()
        } else if unhealthy > 0 {
            let verb = if unhealthy == 1 { "needs" } else { "need" };
            format!("{unhealthy} {verb} you · Countersign")
        } else {
            "Countersign".to_owned()
        }
    }

    fn count_unhealthy(&self) -> usize {
        self.at(Level::Down).count() + self.at(Level::Risk).count()
    }

    fn at(&self, level: Level) -> impl Iterator<Item = &Row> {
        self.vendors.iter().filter(move |row| row.level() == level)
    }

    fn expiring(&self) -> impl Iterator<Item = &(String, SystemTime)> {
        let soon = self.now + EXPIRES_SOON;
        self.certificates
            .iter()
            .filter(move |(_, expires)| *expires < soon)
    }

    /// Renders the summary: one sentence, and the vendors that need attention.
    fn verdict(&self) -> Markup {
        let (all, unhealthy) = (self.vendors.len(), self.count_unhealthy());
        let pending = self.at(Level::Pending).count();
        let expiring = self.expiring().count();
        let mut level = self.vendors.first().map_or(Level::Healthy, Row::level);
        let mut sentence = if unhealthy > 0 {
            let verb = if unhealthy == 1 { "needs" } else { "need" };
            format!(
                "{unhealthy} of {} {verb} attention.",
                counted(all as u64, "vendor")
            )
        } else if pending > 0 {
            format!(
                "{} waiting for the first credential.",
                counted(pending as u64, "vendor")
            )
        } else if all == 1 {
            "The vendor is healthy.".to_owned()
        } else {
            format!("All {all} vendors are healthy.")
        };
        if level == Level::Healthy && (self.reload_error.is_some() || expiring > 0) {
            level = Level::Risk;
            sentence.pop();
            sentence.push_str(match (&self.reload_error, expiring) {
                (Some(_), _) => "; the last reload was refused.",
                (None, 1) => "; a certificate expires soon.",
                (None, _) => "; certificates expire soon.",
            });
        }
        html! {
            section #verdict.verdict.(level.class()) aria-label="Summary" {
                h1 { (sentence) }
                @if self.draining {
                    p.notice {
                        strong { "Draining." }
                        " This process will soon accept no new connections, and exits when the requests in flight are done."
                    }
                }
                @for (level, what) in [
                    (Level::Down, "Callers get errors from "),
                    (Level::Risk, "Still served, but at risk: "),
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
                @for (name, expires) in self.expiring() {
                    p.risk {
                        "The certificate " code { (name) }
                        @if *expires <= self.now { " has expired " } @else { " expires " }
                        (when(*expires, self.now)) ": replace its files; they are reloaded automatically."
                    }
                }
                @if let Some(refused) = &self.reload_error {
                    div.refused {
                        p {
                            strong { "The last reload was refused." }
                            " The configuration of " (clock(self.configuration.1))
                            " UTC stays in use. Correct these errors; the file is then reloaded automatically:"
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
                    p.aside { "None: no TLS listener and no client certificate is configured." }
                } @else {
                    ul.certificates {
                        @for (name, expires) in &self.certificates {
                            @let left = expires.duration_since(self.now).unwrap_or_default();
                            @let level = match left {
                                Duration::ZERO => Level::Down,
                                left if left < EXPIRES_SOON => Level::Risk,
                                _ => Level::Healthy,
                            };
                            li.(level.class()) {
                                code { (name) }
                                span.days {
                                    (level.mark()) " "
                                    @if *expires <= self.now { "expired " } @else { "expires " }
                                    (when(*expires, self.now))
                                }
                                span.aside { (date(*expires)) }
                            }
                        }
                    }
                }
            }
        }
    }

    fn process(&self) -> Markup {
        let (sha256, loaded) = &self.configuration;
        let unrouted: u64 = self.unrouted.iter().map(|sample| sample.requests).sum();
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
                        @if self.reload_error.is_some() { "refused" }
                        // The first configuration is loaded before the listeners start.
                        @else if *loaded < self.started { "none since start" }
                        @else { "in use" }
                    } }
                    div { dt { "Requests that no vendor matched" } dd {
                        (grouped(unrouted)) " in " (covered(self.unrouted.len()))
                    } }
                    div.wide { dt { "SHA-256 of the configuration" } dd { code.hash { (sha256) } } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::row::tests::row;
    use super::*;
    use crate::credential::State;

    fn data(vendors: Vec<Row>) -> PageData {
        let now = SystemTime::now();
        PageData {
            now,
            started: now - Duration::from_hours(3),
            draining: false,
            configuration: ("00".into(), now),
            reload_error: None,
            vendors,
            certificates: vec![],
            unrouted: vec![],
        }
    }

    #[test]
    fn every_text_is_escaped() {
        let hostile = "</script><script>alert(1)</script>\"' onload='x";
        let mut data = data(vec![row(State::Failed, Some(hostile))]);
        data.reload_error = Some(hostile.to_owned());
        data.configuration.0 = hostile.to_owned();
        data.certificates = vec![(hostile.to_owned(), data.now)];
        data.vendors[0].name = hostile.to_owned();
        data.vendors[0].upstream = hostile.to_owned();
        let page = data.page();
        // The page's own script.
        assert_eq!(page.matches("<script>").count(), 1);
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(page.contains("<code>&lt;i&gt;</code>"));
        assert!(!page.contains("\"' onload"));
    }

    #[test]
    fn the_verdict_names_the_worst_and_says_when_all_are_healthy() {
        let page = |vendors| data(vendors).page();
        assert!(page(vec![row(State::Fresh, None)]).contains("The vendor is healthy."));
        let two = vec![row(State::Fresh, None), row(State::Static, None)];
        assert!(page(two).contains("All 2 vendors are healthy."));
        let waiting = page(vec![row(State::Pending, None)]);
        assert!(waiting.contains("1 vendor waiting for the first credential."));
        let one = vec![row(State::Expired, Some("late")), row(State::Fresh, None)];
        let one = page(one);
        assert!(one.contains("1 of 2 vendors needs attention."), "{one}");
        let mut refused = data(vec![row(State::Fresh, None)]);
        refused.reload_error = Some("line 3".into());
        assert!(
            refused
                .page()
                .contains("The vendor is healthy; the last reload was refused.")
        );
        assert!(one.contains("Callers get errors from <a href=\"#vendor-v\">v</a>."));
    }
}
