//! Caller tokens of the proxy's own, for vendors' clients that insist on logging in first. Nothing
//! is stored for one: it says who it is for, until when, and what it was bought with, under our key.
//! It ends with that.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::Caller;
use super::ended::{Ended, Full, now};
use crate::secret::Secret;

/// How long a token gets its bearer in, at most.
pub const LIFETIME: Duration = Duration::from_hours(1);
/// How long after a login its tokens can be renewed, at most: renewing does not prolong it.
pub const REFRESH_LIFETIME: Duration = Duration::from_hours(24 * 30);

/// Tells our tokens from keys before anything is computed.
const BEGINNING: &[u8] = b"cst2-";
const SEAL: usize = 32;

/// Makes and reads caller tokens.
pub struct Mint {
    /// One of this process is made for its first token: few have such callers, and the first random
    /// byte costs a start tens of milliseconds.
    key: OnceLock<hmac::Key>,
    /// Other processes have the same key, and the store what was ended.
    shared: bool,
    /// Tells the tokens of this process from those of others.
    process: [u8; 4],
    ended: Ended,
}

/// One login, and every token that came of it: whoever ends one of them ends all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Login {
    id: [u8; 8],
    /// None of its tokens lasts longer; seconds since 1970.
    until: u64,
    /// It has refresh tokens.
    renewable: bool,
    basis: Basis,
}

impl Login {
    /// A new one, if there is any time left for it. The seal keeps it from being made up.
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

    /// The same with refresh tokens.
    #[must_use]
    pub fn renewable(self) -> Self {
        Self {
            renewable: true,
            ..self
        }
    }

    /// When a token of `purpose` ends that is made now; seconds since 1970.
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

/// What was shown that a login can rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Evidence {
    pub(super) kind: Kind,
    /// SHA-256 of the caller's key, or of the rule that names its certificate or its tokens.
    pub(super) rule: [u8; 32],
    /// The issuer's key that has signed the token, or the certificate's authority.
    pub(super) signer: [u8; 8],
    /// The end of the token or certificate; seconds since 1970.
    pub(super) until: u64,
}

impl Evidence {
    /// Where nobody has to prove anything.
    pub(super) const NOTHING: Self = Self {
        kind: Kind::Nothing,
        rule: [0; 32],
        signer: [0; 8],
        until: u64::MAX,
    };

    /// A key of the caller's, by its SHA-256.
    pub(super) fn key(digest: &[u8; 32]) -> Self {
        Self {
            kind: Kind::Key,
            rule: *digest,
            ..Self::NOTHING
        }
    }
}

/// What a login was proven with. Its tokens end with it, or when it is taken out of the
/// configuration.
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
    /// Nobody has to prove anything.
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

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Wherever a caller's key is.
    Call = 1,
    /// Logging in again.
    Refresh = 2,
}

/// A token of ours that is good.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) name: String,
    pub(super) login: Login,
    /// When it ends by itself.
    until: u64,
}

impl Mint {
    /// With a key made from `secret`, so that replicas which share it accept each other's tokens;
    /// `None`: with one of this process, whose end is that of its tokens.
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

    /// The logins that were ended early.
    #[must_use]
    pub fn ended(&self) -> &Ended {
        &self.ended
    }

    /// Whether tokens are good at other processes too, and what is ended here has to be ended there.
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

    /// What a login rests on that was proven so.
    #[must_use]
    pub(super) fn basis(&self, evidence: &Evidence) -> Basis {
        Basis {
            kind: evidence.kind,
            rule: self.mark(evidence.kind, &evidence.rule),
            signer: evidence.signer,
            until: evidence.until,
        }
    }

    /// Digest of a rule under our key, because a token's holder can read it and guess at a short key.
    pub(super) fn mark(&self, kind: Kind, rule: &[u8; 32]) -> [u8; 8] {
        let mut context = hmac::Context::with_key(self.key());
        context.update(b"basis");
        context.update(&[kind as u8]);
        context.update(rule);
        let mut mark = [0; 8];
        mark.copy_from_slice(&context.sign().as_ref()[..8]);
        mark
    }

    /// A new token for `caller`, of this login.
    ///
    /// # Panics
    /// Where the system has no randomness.
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

    /// Whom `token` is for, when it is good for `purpose`.
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
        // Before the store was read, nobody knows which of other processes' logins have been ended.
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

    /// Ends `token` before its time, if it is one of ours, and all that came of the same login.
    ///
    /// # Errors
    /// [`Full`] when it cannot be remembered; it is good as before then.
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
            // The last character holds bits that count for nothing.
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
