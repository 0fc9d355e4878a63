//! Who was found in what a request shows.

use std::fmt;
use std::sync::Arc;

use super::Caller;
use super::jwt::{Proof, Unverified};
use super::token::{Evidence, Kind, Login, Mint};
use crate::error::Error;

/// The outcome of looking for a request's sender.
#[derive(Debug)]
pub enum Identified {
    /// Nothing is left to verify. [`Error::UnknownCaller`]: what is shown is of two different
    /// callers, or is more than is looked at. [`Error::CrossSite`]: only this machine's programs may
    /// call, and a browser or a foreign name is in play.
    Found(Result<Found, Error>),
    /// Signatures are.
    Unverified(Box<Unfinished>),
}

/// Who was found.
#[derive(Debug, Default)]
pub struct Found {
    caller: Option<Arc<Caller>>,
    /// What a login would rest on; a token that calls is nothing to rest on, it would have no end.
    evidence: Option<Evidence>,
    /// The login that is being renewed.
    renewed: Option<Login>,
}

impl Found {
    /// Where everybody is the same caller.
    pub(super) fn certainly(caller: &Arc<Caller>) -> Self {
        Self {
            caller: Some(caller.clone()),
            evidence: Some(Evidence::NOTHING),
            renewed: None,
        }
    }

    /// `evidence`: what a login would rest on. Of several the one that lasts longest counts.
    ///
    /// # Errors
    /// [`Error::UnknownCaller`] when somebody else was found.
    pub(super) fn prove(
        &mut self,
        caller: &Arc<Caller>,
        evidence: Option<Evidence>,
    ) -> Result<(), Error> {
        match &self.caller {
            Some(other) if !Arc::ptr_eq(other, caller) => return Err(Error::UnknownCaller),
            Some(_) => {}
            None => self.caller = Some(caller.clone()),
        }
        if let Some(evidence) = evidence
            && self
                .evidence
                .is_none_or(|other| evidence.until > other.until)
        {
            self.evidence = Some(evidence);
        }
        Ok(())
    }

    /// The same by a refresh token of `login`.
    pub(super) fn renews(&mut self, caller: &Arc<Caller>, login: Login) -> Result<(), Error> {
        self.prove(caller, None)?;
        self.renewed.get_or_insert(login);
        Ok(())
    }

    pub(super) fn prove_by_token(&mut self, proof: &Proof) -> Result<(), Error> {
        match proof {
            Proof::One {
                caller,
                until,
                thumbprint,
            } => {
                let evidence = caller.issued.as_ref().map(|(rule, _)| Evidence {
                    kind: Kind::Token,
                    rule: *rule,
                    signer: *thumbprint,
                    until: *until,
                });
                self.prove(caller, evidence)
            }
            Proof::Several => Err(Error::UnknownCaller),
        }
    }

    /// The caller.
    ///
    /// # Errors
    /// [`Error::UnknownCaller`] when nobody was found.
    pub fn caller(&self) -> Result<Arc<Caller>, Error> {
        self.caller.clone().ok_or(Error::UnknownCaller)
    }

    /// Whether a login needs no more than this.
    #[must_use]
    pub fn can_log_in(&self) -> bool {
        self.evidence.is_some()
    }

    /// The login that the caller gets: the one that is being renewed, or a new one.
    ///
    /// # Errors
    /// [`Error::UnknownCaller`] when it has shown nothing to log in with, or nothing that lasts.
    pub fn login(&self, mint: &Mint) -> Result<Login, Error> {
        let new = || Login::new(mint.basis(&self.evidence?));
        self.renewed.or_else(new).ok_or(Error::UnknownCaller)
    }
}

/// What was found, and the tokens that may still prove something.
pub struct Unfinished {
    pub(super) found: Found,
    pub(super) tokens: Vec<Unverified>,
}

impl fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unfinished").finish_non_exhaustive()
    }
}

impl Unfinished {
    /// Verifies the tokens.
    ///
    /// # Errors
    /// [`Error::UnknownCaller`] when they and what else is shown are of two different callers.
    pub async fn finish(self) -> Result<Found, Error> {
        let mut found = self.found;
        for token in self.tokens {
            if let Some(proof) = token.verify().await {
                found.prove_by_token(&proof)?;
            }
        }
        Ok(found)
    }
}
