//! Encrypts grants, in the same form for every store.

use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Access, Grant, Intent, StoreError};
use crate::secret::{Secret, SecretRef};

/// Encrypts and decrypts grants.
pub(super) struct Seal(RandomizedNonceKey);

impl Seal {
    /// Reads the configured key.
    pub(super) fn from_ref(key: &SecretRef) -> Result<Self, StoreError> {
        let bytes = key
            .resolve_bytes()
            .map_err(|cause| StoreError::Key(cause.to_string()))?;
        Self::new(&bytes).ok_or_else(|| {
            StoreError::Key(format!(
                "{} does not hold 32 bytes as base64, hex or raw",
                key.describe()
            ))
        })
    }

    /// Reads a key as people write it: 32 bytes raw, in hex, or in base64 of either alphabet.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(key).map_or("", str::trim);
        let decoded = match (key.len(), text.len()) {
            (KEY_LEN, _) => Zeroizing::new(key.to_vec()),
            (_, 64) => Zeroizing::new(hex::decode(text).ok()?),
            _ => [STANDARD, URL_SAFE]
                .iter()
                .find_map(|alphabet| {
                    let lenient = GeneralPurposeConfig::new()
                        .with_decode_padding_mode(DecodePaddingMode::Indifferent);
                    GeneralPurpose::new(alphabet, lenient).decode(text).ok()
                })
                .map(Zeroizing::new)?,
        };
        RandomizedNonceKey::new(&AES_256_GCM, &decoded)
            .ok()
            .map(Self)
    }

    /// Encrypts `grant`. `vendor` is authenticated too: one vendor's file does not open under
    /// another's name.
    pub(super) fn seal(&self, vendor: &str, grant: &Grant) -> Vec<u8> {
        let mut text = encode(grant);
        let nonce = self
            .0
            .seal_in_place_append_tag(context(vendor), &mut *text)
            .expect("a grant is far shorter than what one nonce may encrypt");
        let mut sealed = MAGIC.to_vec();
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&text);
        sealed
    }

    /// Decrypts a grant; `None`: it has another key, belongs to another vendor, or is damaged.
    pub(super) fn open(&self, vendor: &str, sealed: &[u8]) -> Option<Grant> {
        let sealed = sealed.strip_prefix(MAGIC)?;
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = Zeroizing::new(text.to_vec());
        let opened = self.0.open_in_place(nonce, context(vendor), &mut text);
        decode(opened.ok()?)
    }
}

/// The JSON inside. It is a type of its own because [`Secret`] deliberately cannot be serialised.
#[derive(Serialize, Deserialize)]
struct Wire<Text> {
    version: u64,
    binding: Text,
    refresh_token: Option<Text>,
    access_token: Option<Text>,
    /// Seconds since the epoch, as all times here.
    access_issued: Option<f64>,
    access_lifetime: Option<f64>,
    refresh_until: Option<f64>,
    intent: Option<WireIntent>,
}

#[derive(Serialize, Deserialize)]
struct WireIntent {
    refresh_token_sha256: Option<String>,
    at: f64,
    tries: u32,
}

fn encode(grant: &Grant) -> Zeroizing<Vec<u8>> {
    let wire = Wire {
        version: grant.version,
        binding: grant.binding.as_str(),
        refresh_token: grant.refresh_token.as_ref().map(Secret::expose),
        access_token: grant.access.as_ref().map(|access| access.token.expose()),
        access_issued: grant.access.as_ref().map(|access| epoch(access.issued)),
        access_lifetime: grant
            .access
            .as_ref()
            .map(|access| access.lifetime.as_secs_f64()),
        refresh_until: grant.refresh_until.map(epoch),
        intent: grant.intent.as_ref().map(|intent| WireIntent {
            refresh_token_sha256: intent.refresh_token.clone(),
            at: epoch(intent.at),
            tries: intent.tries,
        }),
    };
    Zeroizing::new(serde_json::to_vec(&wire).expect("numbers and text are always JSON"))
}

fn decode(text: &[u8]) -> Option<Grant> {
    let wire: Wire<String> = serde_json::from_slice(text).ok()?;
    let token = wire.access_token.map(Secret::new);
    let access = token.zip(wire.access_issued).zip(wire.access_lifetime).map(
        |((token, issued), lifetime)| Access {
            token,
            issued: time(issued),
            lifetime: Duration::try_from_secs_f64(lifetime).unwrap_or_default(),
        },
    );
    Some(Grant {
        version: wire.version,
        binding: wire.binding,
        refresh_token: wire.refresh_token.map(Secret::new),
        access,
        refresh_until: wire.refresh_until.map(time),
        intent: wire.intent.map(|intent| Intent {
            refresh_token: intent.refresh_token_sha256,
            at: time(intent.at),
            tries: intent.tries,
        }),
    })
}

fn context(vendor: &str) -> Aad<Vec<u8>> {
    Aad::from([CONTEXT, vendor.as_bytes()].concat())
}

fn epoch(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

fn time(epoch: f64) -> SystemTime {
    let since = Duration::try_from_secs_f64(epoch).unwrap_or_default();
    SystemTime::UNIX_EPOCH
        .checked_add(since)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(super) const KEY_LEN: usize = 32;
/// Names the format, so that a later one can be distinguished.
const MAGIC: &[u8] = b"countersign grant 1\n";
/// Prefix of the vendor's name in the authenticated data.
const CONTEXT: &[u8] = b"countersign grant of ";

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            version: 7,
            binding: "b".into(),
            refresh_token: Some(Secret::new("hunter2")),
            access: Some(Access {
                token: Secret::new("access"),
                issued: time(1_700_000_000.5),
                lifetime: Duration::from_hours(1),
            }),
            refresh_until: Some(time(1_800_000_000.0)),
            intent: Some(Intent {
                refresh_token: Some("00ff".into()),
                at: time(1_700_000_001.0),
                tries: 1,
            }),
        }
    }

    #[test]
    fn a_sealed_grant_opens_to_itself_and_reveals_nothing() {
        let seal = Seal::new(&[7; 32]).unwrap();
        let sealed = seal.seal("maxmd", &grant());
        let opened = seal.open("maxmd", &sealed).unwrap();

        assert_eq!(format!("{opened:?}"), format!("{:?}", grant()));
        assert_eq!(opened.refresh_token.unwrap().expose(), "hunter2");
        assert_eq!(opened.access.unwrap().token.expose(), "access");
        for needle in [&b"hunter2"[..], b"access", b"version"] {
            assert!(!sealed.windows(needle.len()).any(|part| part == needle));
        }
        assert_ne!(
            sealed,
            seal.seal("maxmd", &grant()),
            "a nonce was used twice"
        );
    }

    #[test]
    fn another_key_another_vendor_and_any_damaged_byte_do_not_open() {
        let seal = Seal::new(&[7; 32]).unwrap();
        let sealed = seal.seal("maxmd", &grant());

        assert!(
            Seal::new(&[8; 32])
                .unwrap()
                .open("maxmd", &sealed)
                .is_none()
        );
        assert!(seal.open("venafi", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(seal.open("maxmd", &damaged).is_none(), "byte {at}");
            assert!(seal.open("maxmd", &sealed[..at]).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn a_key_is_accepted_in_every_spelling_and_only_with_32_bytes() {
        let key: [u8; 32] = std::array::from_fn(|i| 0xE0 | u8::try_from(i).unwrap());
        let sealed = Seal::new(&key).unwrap().seal("v", &grant());
        let hex = hex::encode(key);
        for spelling in [
            hex.clone(),
            format!("{}\n", hex.to_uppercase()),
            base64::prelude::BASE64_STANDARD.encode(key),
            base64::prelude::BASE64_STANDARD_NO_PAD.encode(key),
            format!(" {}\n", base64::prelude::BASE64_URL_SAFE.encode(key)),
        ] {
            let seal = Seal::new(spelling.as_bytes()).expect(&spelling);
            assert!(seal.open("v", &sealed).is_some(), "{spelling}");
        }
        for bad in ["", "short", &hex[2..], &"zz".repeat(32), &"A".repeat(40)] {
            assert!(Seal::new(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
