//! `countersign authorize`: obtains a user's consent, once, for a vendor that needs it.
//!
//! Accepts the redirect from a callback on loopback, if `redirect_uri` is there, and at the same
//! time from pasted text: the browser may be on another machine than this terminal.

mod callback;

use std::io::{self, Write};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use self::callback::{Callback, Page};
use super::progress::with_progress;
use super::terminal::Input;
use crate::config::{self, Auth, Config};
use crate::credential::consent::{Consent, Granted, Redirect};
use crate::secret::Secret;
use crate::store::{self, StoreError};

/// A failure of `countersign authorize`.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No vendor has this name.
    #[error("the configuration has no vendor \"{name}\"; those that need consent: {known}")]
    NoVendor {
        /// The name on the command line.
        name: String,
        /// The vendors with `authorization_code`.
        known: String,
    },
    /// The vendor's credential needs no consent.
    #[error(
        "vendors.{vendor} has auth {kind}; only authorization_code needs a user's consent; \
         `countersign probe {vendor}` tests its credential"
    )]
    NothingToConsent {
        /// The vendor.
        vendor: String,
        /// Its `auth`.
        kind: &'static str,
    },
    /// The store cannot be written. The user was not asked.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The authorization URL cannot be built.
    #[error("{0}")]
    Url(String),
    /// stdin was closed, and there is no callback listener.
    #[error(
        "stdin was closed before a redirect was pasted; run the command again and paste the URL \
         that the browser was redirected to"
    )]
    NoInput,
    /// The pasted redirect belongs to another authorization request.
    #[error(
        "the redirect has the state of another request: nothing was exchanged; run the command \
         again and open the URL that it prints then"
    )]
    WrongState,
    /// The redirect comes from another server.
    #[error(
        "the redirect specifies the issuer {found}, not {wanted}: nothing was exchanged; if this is \
         your vendor's issuer, write `issuer: {found}` beside `authorize_url`"
    )]
    OtherIssuer {
        /// The issuer in the redirect.
        found: String,
        /// The issuer that is expected.
        wanted: String,
    },
    /// The server or the user refused.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The code could not be exchanged, or the tokens could not be stored.
    #[error("{0}")]
    Exchange(String),
    /// The terminal could not be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Asks for consent for `vendor`'s `authorization_code` and stores the tokens. With `no_state`, a
/// redirect without `state` is accepted without asking; one with a wrong `state` never is.
///
/// # Errors
/// [`Error`]; nothing is stored in this case.
pub(super) async fn run(config: &Config, vendor: &str, no_state: bool) -> Result<(), Error> {
    let vendor = config
        .vendors
        .iter()
        .find(|candidate| candidate.name == vendor)
        .ok_or_else(|| {
            let consents =
                |vendor: &&config::Vendor| matches!(vendor.auth, Some(Auth::AuthorizationCode(_)));
            let known: Vec<_> = config.vendors.iter().filter(consents).collect();
            let known: Vec<_> = known.iter().map(|vendor| vendor.name.as_str()).collect();
            Error::NoVendor {
                name: vendor.to_owned(),
                known: if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                },
            }
        })?;
    let Some(Auth::AuthorizationCode(auth)) = &vendor.auth else {
        return Err(Error::NothingToConsent {
            vendor: vendor.name.clone(),
            kind: vendor.auth.as_ref().map_or("none", |auth| auth.kind().name),
        });
    };
    let consent = Consent::new(auth, vendor, store::open(&config.store));
    with_progress("checking the store", consent.check_store()).await?;

    let mut prompts = io::stderr();
    let mut listeners = Vec::new();
    for address in callback::addresses(auth.redirect_uri.url()) {
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            Err(cause) => writeln!(
                prompts,
                "Cannot listen for the callback at {}: {cause}",
                std::net::SocketAddr::from(address)
            )?,
        }
    }
    let callback = Callback::serve(listeners, auth.redirect_uri.url());
    let mut conversation = Conversation {
        consent,
        redirect_uri: auth.redirect_uri.as_str().to_owned(),
        no_state,
        vendor: vendor.name.clone(),
        results: io::stdout(),
        prompts,
    };
    let mut input = Input::start()?;
    conversation.run(callback, &mut input.lines).await
}

/// The dialogue with the user.
struct Conversation<Results, Prompts> {
    consent: Consent,
    /// The redirect URI as configured.
    redirect_uri: String,
    no_state: bool,
    vendor: String,
    results: Results,
    prompts: Prompts,
}

impl<Results: Write, Prompts: Write> Conversation<Results, Prompts> {
    async fn run(
        &mut self,
        mut callback: Callback,
        lines: &mut mpsc::Receiver<String>,
    ) -> Result<(), Error> {
        let url = self.consent.url().map_err(Error::Url)?;
        writeln!(self.prompts, "Open this URL in a browser and consent:")?;
        writeln!(self.results, "{url}")?;
        self.results.flush()?;
        let instruction = if callback.listening {
            "Waiting for the redirect. If the browser cannot reach this machine, paste the URL it \
             was redirected to here:"
        } else {
            "Then paste the URL the browser was redirected to, or the code in it:"
        };
        writeln!(self.prompts, "{instruction}")?;

        let mut unproven: Option<Secret> = None;
        let mut reading = true;
        while reading || callback.listening {
            tokio::select! {
                Some((query, page)) = callback.redirects.recv() => {
                    match self.consent.read(&query) {
                        Redirect::Code(code) => return self.finish(code, callback, Some(page)).await,
                        Redirect::Stateless(code) if self.no_state => {
                            return self.finish(code, callback, Some(page)).await;
                        }
                        Redirect::Refused(text) => {
                            callback.close_with(Some(page), callback::REFUSED).await;
                            return Err(Error::Refused(text));
                        }
                        foreign @ (Redirect::StatelessRefused(_)
                        | Redirect::Stateless(_)
                        | Redirect::OtherIssuer(_)
                        | Redirect::NoIssuer
                        | Redirect::Foreign
                        | Redirect::Empty) => {
                            let _ = page.send(callback::FOREIGN);
                            writeln!(
                                self.prompts,
                                "A redirect that does not belong to this request was ignored."
                            )?;
                            if let Redirect::OtherIssuer(found) = foreign {
                                let wanted = self.consent.issuer();
                                let error = Error::OtherIssuer { found, wanted };
                                writeln!(self.prompts, "It has the right state, but {error}.")?;
                            } else if let Redirect::NoIssuer = foreign {
                                writeln!(self.prompts, "{NO_ISSUER}")?;
                            }
                        }
                    }
                }
                line = lines.recv(), if reading => {
                    let Some(line) = line else {
                        reading = false;
                        continue;
                    };
                    let line = line.trim();
                    if line.is_empty() {
                        continue;
                    }
                    if let Some(code) = unproven.take() {
                        if line.eq_ignore_ascii_case("yes") {
                            return self.finish(code, callback, None).await;
                        }
                        writeln!(self.prompts, "Not used. Paste another one:")?;
                        continue;
                    }
                    match self.pasted(line) {
                        Redirect::Code(code) => return self.finish(code, callback, None).await,
                        Redirect::Stateless(code) if self.no_state => {
                            return self.finish(code, callback, None).await;
                        }
                        Redirect::Stateless(code) => {
                            unproven = Some(code);
                            writeln!(
                                self.prompts,
                                "There is no state in it, so it may belong to another request. \
                                 Type yes to use it anyway:"
                            )?;
                        }
                        Redirect::Foreign => return Err(Error::WrongState),
                        Redirect::OtherIssuer(found) => {
                            let wanted = self.consent.issuer();
                            return Err(Error::OtherIssuer { found, wanted });
                        }
                        Redirect::NoIssuer => {
                            writeln!(self.prompts, "{NO_ISSUER} Paste another one:")?;
                        }
                        Redirect::Refused(text) | Redirect::StatelessRefused(text) => {
                            return Err(Error::Refused(text));
                        }
                        Redirect::Empty => {
                            writeln!(self.prompts, "There is no code in it. Paste another one:")?;
                        }
                    }
                }
                else => break,
            }
        }
        Err(Error::NoInput)
    }

    /// Reads a pasted redirect: the whole URL, with or without its scheme, its query, or the code
    /// alone; possibly in quotes or brackets.
    fn pasted(&self, line: &str) -> Redirect {
        let line = unquoted(line);
        let (rest, fragment) = line.split_once('#').unwrap_or((line, ""));
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let alone = if address.contains("://") { "" } else { address };
        for form in [query, fragment, alone] {
            if form.contains("code=") || form.contains("error=") {
                return self.consent.read(form);
            }
        }
        let ours = self.redirect_uri.split_once("://");
        let ours = ours.is_some_and(|(_, address)| line.starts_with(address));
        if line.is_empty() || line.contains("://") || ours || line.contains(char::is_whitespace) {
            return Redirect::Empty;
        }
        self.consent.read_code(line)
    }

    async fn finish(
        &mut self,
        code: Secret,
        callback: Callback,
        page: Option<oneshot::Sender<Page>>,
    ) -> Result<(), Error> {
        let exchange = self.consent.complete(code);
        let outcome = with_progress("exchanging the code", exchange).await;
        let page_text = if outcome.is_ok() {
            callback::DONE
        } else {
            callback::FAILED
        };
        callback.close_with(page, page_text).await;
        let Granted {
            renewable,
            lifetime,
        } = outcome.map_err(Error::Exchange)?;
        let vendor = &self.vendor;
        writeln!(
            self.prompts,
            "Stored. A running proxy uses it for {vendor} within 10 seconds."
        )?;
        if !renewable {
            writeln!(
                self.prompts,
                "The server issued no refresh token: consent is needed again in {}.",
                humantime::format_duration(lifetime)
            )?;
        }
        Ok(())
    }
}

/// Removes surrounding quotes, brackets and white space.
fn unquoted(line: &str) -> &str {
    let mut line = line.trim();
    while let Some(inner) = PAIRS
        .iter()
        .find_map(|(open, close)| line.strip_prefix(*open)?.strip_suffix(*close))
    {
        line = inner.trim();
    }
    line
}

/// Pairs that surround a URL in a chat, a mail or a shell.
const PAIRS: [(char, char); 8] = [
    ('"', '"'),
    ('\'', '\''),
    ('`', '`'),
    ('<', '>'),
    ('(', ')'),
    ('[', ']'),
    ('\u{201c}', '\u{201d}'),
    ('\u{2018}', '\u{2019}'),
];

const NO_ISSUER: &str = "The redirect has no issuer (`iss`), and `issuer` in the configuration \
                         requires one: if the server sends none, remove `issuer`.";

#[cfg(test)]
mod tests;
