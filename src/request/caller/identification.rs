//! The outcome of identifying a request's sender.

use std::fmt;
use std::sync::Arc;

use super::Caller;
use super::jwt::{Proof, Unverified};
use super::token::{Evidence, Kind, Login, Mint};
use crate::error::Error;

/// The outcome of looking for a request's sender.
#[derive(Debug)]
pub enum Identified {
    /// Nothing is left to verify. [`Error::UnknownCaller`]: the credentials belong to two callers,
    /// or there are too many. [`Error::CrossSite`]: only this machine's programs may call, and a
    /// browser or a foreign name is involved.
    Found(Result<Identification, Error>),
    /// Signatures are left to verify.
    Unverified(Box<PendingIdentification>),
}

/// The caller that was found, if any.
#[derive(Debug, Default)]
pub struct Identification {
    caller: Option<Arc<Caller>>,
    /// The evidence for a login. A token that calls is none: the login would never expire.
    evidence: Option<Evidence>,
    /// The login that is being renewed.
    renewed: Option<Login>,
}

impl Identification {
    /// Returns the one caller there is.
    pub(super) fn certainly(caller: &Arc<Caller>) -> Self {
        Self {
            caller: Some(caller.clone()),
            evidence: Some(Evidence::NOTHING),
            renewed: None,
        }
    }

    /// Adds a proof. `evidence`: the evidence for a login; of several, the one that lasts longest
    /// counts.
    ///
    /// # Errors
    /// [`Error::UnknownCaller`] when another caller was found.
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

    /// Adds a proof by a refresh token of `login`.
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

    /// Returns the caller.
    ///
    /// # Errors
    /// [`Error::UnknownCaller`] when none was found.
    pub fn caller(&self) -> Result<Arc<Caller>, Error> {
        self.caller.clone().ok_or(Error::UnknownCaller)
    }

    /// Tells whether this is enough for a login.
    #[must_use]
    pub fn can_log_in(&self) -> bool {
        self.evidence.is_some()
    }

    /// Returns the login that the caller gets: the one being renewed, or a new one.
    ///
    /// # Errors
    /// [`Error::UnknownCaller`] without evidence for a login, or without any that lasts.
    pub fn login(&self, mint: &Mint) -> Result<Login, Error> {
        let new = || Login::new(mint.basis(&self.evidence?));
        self.renewed.or_else(new).ok_or(Error::UnknownCaller)
    }
}

/// The proofs so far, and the tokens that may still prove something.
pub struct PendingIdentification {
    pub(super) found: Identification,
    pub(super) tokens: Vec<Unverified>,
}

impl fmt::Debug for PendingIdentification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingIdentification")
            .finish_non_exhaustive()
    }
}

impl PendingIdentification {
    /// Verifies the tokens.
    ///
    /// # Errors
    /// [`Error::UnknownCaller`] when they and the other credentials belong to two callers.
    pub async fn finish(self) -> Result<Identification, Error> {
        let mut found = self.found;
        for token in self.tokens {
            if let Some(proof) = token.verify().await {
                found.prove_by_token(&proof)?;
            }
        }
        Ok(found)
    }
}
