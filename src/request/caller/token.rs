//! Caller tokens of the proxy's own, for vendors' clients that insist on logging in first. Nothing
//! is stored for one. It contains the caller, the expiry and the evidence of its login, sealed with
//! our key, and is valid as long as the evidence.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::Caller;
use super::ended_logins::{Ended, Full, now};
use crate::secret::Secret;

/// Longest lifetime of an access token.
pub const LIFETIME: Duration = Duration::from_hours(1);
/// Longest time after a login in which its tokens can be renewed. Renewing does not extend it.
pub const REFRESH_LIFETIME: Duration = Duration::from_hours(24 * 30);

/// Prefix that tells our tokens from keys before anything is computed.
const BEGINNING: &[u8] = b"cst2-";
const SEAL: usize = 32;

/// Makes and reads caller tokens.
pub struct Mint {
    /// A key of this process is made for its first token: few configurations need one, and the
    /// first random byte costs a start tens of milliseconds.
    key: OnceLock<hmac::Key>,
    /// `true` if other processes have the same key, and the store has the revocations.
    shared: bool,
    /// Tells tokens of this process from those of others.
    process: [u8; 4],
    ended: Ended,
}

/// One login, and every token issued for it: revoking one revokes all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Login {
    id: [u8; 8],
    /// Expiry of its last token, seconds since 1970.
    until: u64,
    /// `true` if it has refresh tokens.
    renewable: bool,
    basis: Basis,
}

impl Login {
    /// Returns a new login, if its evidence is still valid. The seal keeps it from being forged.
    #[must_use]
    pub fn new(basis: Basis) -> Option<Self> {
        let now = now();
        (now < basis.until).then(|| Self {
            id: fastrand::u64(..).to_be_bytes(),
            until: basis.until.min(now + REFRESH_LIFETIME.as_secs()),
            renewable: false,
            basis,
        })
    }

    /// Adds refresh tokens.
    #[must_use]
    pub fn renewable(self) -> Self {
        Self {
            renewable: true,
            ..self
        }
    }

    /// Returns the expiry of a token of `purpose` issued now, seconds since 1970.
    #[must_use]
    pub fn end_of(&self, purpose: Purpose) -> u64 {
        match purpose {
            Purpose::Call => self.until.min(now() + LIFETIME.as_secs()),
            Purpose::Refresh => self.until,
        }
    }

    pub(super) fn basis(&self) -> Basis {
        self.basis
    }
}

/// The evidence of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Evidence {
    pub(super) kind: Kind,
    /// SHA-256 of the caller's key, or of the rule that names its certificate or its tokens.
    pub(super) rule: [u8; 32],
    /// The issuer's key that signed the token, or the certificate's authority.
    pub(super) signer: [u8; 8],
    /// Expiry of the token or certificate, seconds since 1970.
    pub(super) until: u64,
}

impl Evidence {
    /// No evidence, where none is needed.
    pub(super) const NOTHING: Self = Self {
        kind: Kind::Nothing,
        rule: [0; 32],
        signer: [0; 8],
        until: u64::MAX,
    };

    /// Returns the evidence of a key, by its SHA-256.
    pub(super) fn key(digest: &[u8; 32]) -> Self {
        Self {
            kind: Kind::Key,
            rule: *digest,
            ..Self::NOTHING
        }
    }
}

/// The evidence of a login, as its tokens have it. They expire with it, or when it is removed from
/// the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Basis {
    kind: Kind,
    /// See [`Mint::mark`].
    rule: [u8; 8],
    signer: [u8; 8],
    until: u64,
}

/// The kinds of proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No evidence is needed.
    Nothing = 0,
    /// A key of the caller's.
    Key = 1,
    /// A certificate.
    Certificate = 2,
    /// A token of an issuer's.
    Token = 3,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Nothing, Self::Key, Self::Certificate, Self::Token]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

impl Basis {
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn rule(&self) -> [u8; 8] {
        self.rule
    }

    pub(super) fn signer(&self) -> [u8; 8] {
        self.signer
    }
}

/// The purpose of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Used in place of a caller's key.
    Call = 1,
    /// Renews the login.
    Refresh = 2,
}

/// A valid token of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) name: String,
    pub(super) login: Login,
    /// Its expiry.
    until: u64,
}

impl Mint {
    /// Returns a mint with a key made from `secret`, so that replicas sharing it accept each
    /// other's tokens. `None`: with a key of this process, with which its tokens end.
    #[must_use]
    pub fn new(secret: Option<&[u8]>) -> Self {
        let key = OnceLock::new();
        if let Some(secret) = secret {
            let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
            let made = hmac::sign(&secret, b"countersign caller tokens");
            let _ = key.set(hmac::Key::new(hmac::HMAC_SHA256, made.as_ref()));
        }
        Self {
            key,
            shared: secret.is_some(),
            process: fastrand::u32(..).to_be_bytes(),
            ended: Ended::none(),
        }
    }

    /// Returns the revoked logins.
    #[must_use]
    pub fn ended(&self) -> &Ended {
        &self.ended
    }

    /// Tells whether tokens are valid at other processes, too, so that revocations must be shared.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    fn key(&self) -> &hmac::Key {
        self.key.get_or_init(|| {
            let mut key = Zeroizing::new([0; SEAL]);
            aws_lc_rs::rand::fill(&mut *key)
                .expect("a system without randomness has no TLS either");
            hmac::Key::new(hmac::HMAC_SHA256, &*key)
        })
    }

    /// Returns the evidence in the form that tokens have.
    #[must_use]
    pub(super) fn basis(&self, evidence: &Evidence) -> Basis {
        Basis {
            kind: evidence.kind,
            rule: self.mark(evidence.kind, &evidence.rule),
            signer: evidence.signer,
            until: evidence.until,
        }
    }

    /// Digest of a rule under our key: a token's holder can read it, and could guess a short key.
    pub(super) fn mark(&self, kind: Kind, rule: &[u8; 32]) -> [u8; 8] {
        let mut context = hmac::Context::with_key(self.key());
        context.update(b"basis");
        context.update(&[kind as u8]);
        context.update(rule);
        let mut mark = [0; 8];
        mark.copy_from_slice(&context.sign().as_ref()[..8]);
        mark
    }

    /// Issues a token of `login` for `caller`.
    ///
    /// # Panics
    /// Panics if the system has no randomness.
    #[must_use]
    pub fn issue(&self, caller: &Caller, purpose: Purpose, login: &Login) -> Secret {
        let mut sealed = vec![purpose as u8];
        sealed.extend_from_slice(&login.end_of(purpose).to_be_bytes());
        sealed.extend_from_slice(&self.process);
        // No two tokens are the same.
        sealed.extend_from_slice(&fastrand::u64(..).to_be_bytes());
        sealed.extend_from_slice(&login.id);
        sealed.extend_from_slice(&login.until.to_be_bytes());
        sealed.push(login.renewable.into());
        sealed.push(login.basis.kind as u8);
        sealed.extend_from_slice(&login.basis.rule);
        sealed.extend_from_slice(&login.basis.signer);
        sealed.extend_from_slice(caller.name.as_bytes());
        let seal = hmac::sign(self.key(), &sealed);
        sealed.extend_from_slice(seal.as_ref());
        let text = URL_SAFE_NO_PAD.encode(sealed);
        Secret::new(String::from_utf8_lossy(BEGINNING).into_owned() + &text)
    }

    /// Reads `token`, when it is valid for `purpose`.
    pub(super) fn read(&self, token: &[u8], purpose: Purpose) -> Option<Bearer> {
        let sealed = URL_SAFE_NO_PAD
            .decode(token.strip_prefix(BEGINNING)?)
            .ok()?;
        let (content, seal) = sealed.split_at_checked(sealed.len().checked_sub(SEAL)?)?;
        hmac::verify(self.key(), content, seal).ok()?;
        let (of, rest) = content.split_first()?;
        let (until, rest) = rest.split_first_chunk()?;
        let (process, rest) = rest.split_first_chunk::<4>()?;
        let (_, rest) = rest.split_first_chunk::<8>()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (login_until, rest) = rest.split_first_chunk()?;
        let ([renewable, kind], rest) = rest.split_first_chunk::<2>()?;
        let (rule, rest) = rest.split_first_chunk()?;
        let (signer, name) = rest.split_first_chunk()?;
        let (until, login_until) = (u64::from_be_bytes(*until), u64::from_be_bytes(*login_until));
        // Before the store was read, the revocations of other processes are unknown.
        let known = *process == self.process || self.ended.heard();
        let good = *of == purpose as u8 && now() < until && known && !self.ended.has(*id);
        if !good {
            return None;
        }
        Some(Bearer {
            name: String::from_utf8_lossy(name).into_owned(),
            until,
            login: Login {
                id: *id,
                until: login_until,
                renewable: *renewable != 0,
                basis: Basis {
                    kind: Kind::of(*kind)?,
                    rule: *rule,
                    signer: *signer,
                    until: login_until,
                },
            },
        })
    }

    /// Revokes `token`, if it is one of ours, and all others of its login.
    ///
    /// # Errors
    /// [`Full`] when the bound is reached; the token stays valid then.
    pub(super) fn end(&self, token: &[u8]) -> Result<(), Full> {
        let ours = [Purpose::Call, Purpose::Refresh];
        let Some(bearer) = ours.iter().find_map(|of| self.read(token, *of)) else {
            return Ok(());
        };
        let login = bearer.login;
        let until = if login.renewable {
            login.until
        } else {
            bearer.until
        };
        self.ended
            .end(login.id, &bearer.name, until, login.renewable)
    }
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mint").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn caller(name: &str) -> Caller {
        Caller::new(&config::Caller {
            name: name.into(),
            api_key: None,
            certificate: None,
            jwt: None,
            allow: vec![],
            rate: None,
        })
    }

    fn login() -> Login {
        let basis = Mint::new(None).basis(&Evidence::NOTHING);
        Login::new(basis).unwrap().renewable()
    }

    #[test]
    fn a_token_is_read_by_its_maker_for_its_purpose_until_it_is_ended() {
        let mint = Mint::new(None);
        let caller = caller("ci");
        let login = login();
        let token = mint.issue(&caller, Purpose::Call, &login);
        let token = token.expose().as_bytes();
        let read = || mint.read(token, Purpose::Call).map(|bearer| bearer.name);

        assert_eq!(read(), Some("ci".into()));
        assert_eq!(mint.read(token, Purpose::Refresh), None);
        assert_eq!(Mint::new(None).read(token, Purpose::Call), None);
        for at in 0..token.len() {
            let mut changed = token.to_vec();
            changed[at] ^= 1;
            // The last character holds bits without meaning.
            assert!(
                mint.read(&changed, Purpose::Call).is_none() || at == token.len() - 1,
                "{at}"
            );
        }
        let refresh = mint.issue(&caller, Purpose::Refresh, &login);
        let refresh = refresh.expose().as_bytes();
        let of = mint.read(refresh, Purpose::Refresh).map(|read| read.login);
        assert_eq!(
            of.map(|of| (of.id, of.until)),
            Some((login.id, login.until))
        );
        mint.end(token).unwrap();
        assert_eq!(read(), None);
        assert_eq!(
            mint.read(refresh, Purpose::Refresh),
            None,
            "of the same login"
        );
        let later = mint.issue(&caller, Purpose::Call, &self::login());
        let later = later.expose().as_bytes();
        assert!(mint.read(later, Purpose::Call).is_some());
    }

    #[test]
    fn replicas_with_one_secret_accept_each_others_tokens_once_they_know_what_was_ended() {
        let (one, other) = (Mint::new(Some(b"shared")), Mint::new(Some(b"shared")));
        let token = one.issue(&caller("ci"), Purpose::Refresh, &login());
        let token = token.expose().as_bytes();
        assert!(one.read(token, Purpose::Refresh).is_some(), "its own");
        assert_eq!(other.read(token, Purpose::Refresh), None);
        other.ended().merge(&[]);
        let read = other.read(token, Purpose::Refresh);
        assert_eq!(read.unwrap().name, "ci");
        one.end(token).unwrap();
        other.ended().merge(&one.ended().written());
        assert_eq!(other.read(token, Purpose::Refresh), None);
    }

    #[test]
    fn no_token_outlasts_what_it_was_bought_with() {
        let mint = Mint::new(None);
        let basis = |until| {
            mint.basis(&Evidence {
                kind: Kind::Token,
                until,
                ..Evidence::NOTHING
            })
        };
        let now = now();
        assert_eq!(Login::new(basis(now)), None, "it has ended");
        let short = Login::new(basis(now + 4)).unwrap().renewable();
        for purpose in [Purpose::Call, Purpose::Refresh] {
            assert_eq!(short.end_of(purpose), now + 4);
        }
        let token = mint.issue(&caller("ci"), Purpose::Refresh, &short);
        let again = mint.read(token.expose().as_bytes(), Purpose::Refresh);
        let again = again.unwrap().login;
        assert_eq!(again.end_of(Purpose::Call), now + 4);
        assert_eq!(again.end_of(Purpose::Refresh), now + 4);

        let long = Login::new(basis(u64::MAX)).unwrap();
        let last = long.end_of(Purpose::Refresh);
        assert!(last >= now + REFRESH_LIFETIME.as_secs());
        assert!(last <= now + REFRESH_LIFETIME.as_secs() + 60);
    }
}
