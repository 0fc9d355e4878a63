//! Caller tokens of the proxy's own, for vendors' clients that insist on logging in first. Nothing
//! is stored for one: it says who it is for and until when, under our key.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use moka::sync::Cache;
use zeroize::Zeroizing;

use super::Caller;
use crate::secret::Secret;

/// How long a token gets its bearer in.
pub const LIFETIME: Duration = Duration::from_hours(1);
/// How long one that only logs in again does.
pub const REFRESH_LIFETIME: Duration = Duration::from_hours(24 * 30);

/// Tells our tokens from keys before anything is computed.
const BEGINNING: &[u8] = b"cst1-";
const SEAL: usize = 32;
/// How many grants that were ended early are remembered.
const ENDED: u64 = 100_000;

/// Makes and reads caller tokens.
pub struct Mint {
    /// One of this process is made for its first token: few have such callers, and the first random
    /// byte costs a start tens of milliseconds.
    key: OnceLock<hmac::Key>,
    /// Grants whose tokens are good no more; nothing is in it for longer than a token lasts.
    ended: Cache<Grant, ()>,
}

/// One login, and every token that came of it: whoever ends one of them ends all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant([u8; 8]);

impl Grant {
    /// A new login's. The seal keeps it from being made up.
    #[must_use]
    pub fn random() -> Self {
        Self(fastrand::u64(..).to_be_bytes())
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
    pub(super) grant: Grant,
    /// Of what the caller could show when it was made: a caller whose key was changed has to log in
    /// again.
    pub(super) proof: [u8; 8],
}

impl Mint {
    /// With a key made from `secret`, so that replicas which share it accept each other's tokens;
    /// `None`: with one of this process.
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
            ended: Cache::builder()
                .max_capacity(ENDED)
                .time_to_live(REFRESH_LIFETIME)
                .build(),
        }
    }

    fn key(&self) -> &hmac::Key {
        self.key.get_or_init(|| {
            let mut key = Zeroizing::new([0; SEAL]);
            aws_lc_rs::rand::fill(&mut *key)
                .expect("a system without randomness has no TLS either");
            hmac::Key::new(hmac::HMAC_SHA256, &*key)
        })
    }

    /// A new token for `caller`, of this login.
    ///
    /// # Panics
    /// Where the system has no randomness.
    #[must_use]
    pub fn issue(&self, caller: &Caller, purpose: Purpose, grant: Grant) -> Secret {
        let lifetime = match purpose {
            Purpose::Call => LIFETIME,
            Purpose::Refresh => REFRESH_LIFETIME,
        };
        let mut sealed = vec![purpose as u8];
        sealed.extend_from_slice(&(now() + lifetime.as_secs()).to_be_bytes());
        sealed.extend_from_slice(&grant.0);
        // No two tokens are the same.
        sealed.extend_from_slice(&fastrand::u64(..).to_be_bytes());
        sealed.extend_from_slice(&caller.proof);
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
        let (grant, rest) = rest.split_first_chunk()?;
        let grant = Grant(*grant);
        let (_, rest) = rest.split_first_chunk::<8>()?;
        let (proof, name) = rest.split_first_chunk()?;
        let good = *of == purpose as u8
            && now() < u64::from_be_bytes(*until)
            && !self.ended.contains_key(&grant);
        good.then(|| Bearer {
            name: String::from_utf8_lossy(name).into_owned(),
            grant,
            proof: *proof,
        })
    }

    /// The login that a refresh token came of.
    #[must_use]
    pub fn grant_of(&self, refresh_token: &[u8]) -> Option<Grant> {
        let bearer = self.read(refresh_token, Purpose::Refresh)?;
        Some(bearer.grant)
    }

    /// Ends `token` before its time, if it is one of ours, and all that came of the same login.
    pub(super) fn end(&self, token: &[u8]) {
        let ours = [Purpose::Call, Purpose::Refresh];
        if let Some(bearer) = ours.iter().find_map(|of| self.read(token, *of)) {
            self.ended.insert(bearer.grant, ());
        }
    }
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mint").finish_non_exhaustive()
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
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

    #[test]
    fn a_token_is_read_by_its_maker_for_its_purpose_until_it_is_ended() {
        let mint = Mint::new(None);
        let caller = caller("ci");
        let grant = Grant::random();
        let token = mint.issue(&caller, Purpose::Call, grant);
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
        let refresh = mint.issue(&caller, Purpose::Refresh, grant);
        let refresh = refresh.expose().as_bytes();
        assert_eq!(mint.grant_of(refresh), Some(grant));
        assert_eq!(mint.grant_of(token), None, "for calls only");
        mint.end(token);
        assert_eq!(read(), None);
        assert_eq!(mint.grant_of(refresh), None, "of the same login");
        let later = mint.issue(&caller, Purpose::Call, Grant::random());
        let later = later.expose().as_bytes();
        assert!(mint.read(later, Purpose::Call).is_some());
    }

    #[test]
    fn replicas_with_one_secret_accept_each_others_tokens() {
        let (one, other) = (Mint::new(Some(b"shared")), Mint::new(Some(b"shared")));
        let token = one.issue(&caller("ci"), Purpose::Refresh, Grant::random());
        let read = other.read(token.expose().as_bytes(), Purpose::Refresh);
        assert_eq!(read.unwrap().name, "ci");
    }
}
