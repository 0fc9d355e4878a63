//! Callers by a signed token (RFC 7519). The issuer's keys decide about the algorithm, never the
//! token.
//!
//! Anyone can send a token, and verifying a signature is expensive. So the claims are compared
//! first, unverified; then one signature is verified for each key set that could have made it,
//! however many rules it serves. Verified tokens are remembered until they expire, failures for a
//! moment.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, crypto};
use moka::sync::Cache;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Caller;
use crate::config;
use crate::jwks::Keys;

/// Tolerated difference of clocks, seconds.
const LEEWAY: u64 = 60;
/// Longest token that is looked at, bytes.
const LONGEST: usize = 16 * 1024;
/// Number of verified tokens that are remembered.
const REMEMBERED: u64 = 10_000;
/// Number of failed tokens that are remembered, and for how long.
const FAILURES: u64 = 10_000;
const FAILED_FOR: Duration = Duration::from_secs(5);

/// The rules for tokens, and the callers they prove.
pub(super) struct Tokens {
    issuers: HashMap<String, Vec<Rule>>,
    memory: Arc<Memory>,
}

struct Rule {
    keys: Arc<Keys>,
    audience: String,
    subject: Option<String>,
    caller: Arc<Caller>,
}

/// Results by a token's SHA-256. Reading takes no lock; rarely used entries are evicted.
struct Memory {
    verified: Cache<[u8; 32], Arc<Verified>>,
    /// Failures, by the key sets that did not verify the token. Only a wrong signature is
    /// remembered: a token that is not valid yet is looked at again.
    failed: Cache<[u8; 32], Arc<Sets>>,
    /// The number of signatures verified so far, good or not.
    verifications: AtomicU64,
}

/// Key sets, and the generation of each that was looked at.
struct Sets(Vec<(Arc<Keys>, u64)>);

impl Sets {
    fn are_current(&self) -> bool {
        let mut sets = self.0.iter();
        sets.all(|(keys, generation)| keys.current().generation() == *generation)
    }
}

/// A good token, and its expiry.
struct Verified {
    proof: Proof,
    /// Seconds since 1970, the leeway included.
    until: u64,
    sets: Sets,
}

/// The caller that a token proves.
#[derive(Clone, Debug)]
pub(super) enum Proof {
    One {
        caller: Arc<Caller>,
        /// `exp`, seconds since 1970.
        until: u64,
        /// Thumbprint of the key that signed it.
        thumbprint: [u8; 8],
    },
    /// The rules of two callers match: that proves neither.
    Several,
}

/// The result of looking at a token without verifying it.
pub(super) enum TokenLookup {
    /// It is known, and proves this.
    Verified(Proof),
    /// It proves nothing.
    Unknown,
    /// Its claims match, and its signature is to be verified.
    Unverified(Unverified),
}

/// A token whose claims match the rules of these callers, by the key sets of the rules.
pub(super) struct Unverified {
    token: Zeroizing<Vec<u8>>,
    digest: [u8; 32],
    algorithm: Algorithm,
    id: Option<String>,
    until: u64,
    rules: Vec<(Arc<Keys>, Vec<Arc<Caller>>)>,
    memory: Arc<Memory>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    #[serde(default)]
    sub: Option<String>,
    exp: f64,
    #[serde(default)]
    nbf: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn has(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Several(several) => several.iter().any(|one| one == wanted),
        }
    }
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self {
            issuers: HashMap::new(),
            memory: Arc::new(Memory {
                verified: Cache::new(REMEMBERED),
                failed: Cache::builder()
                    .max_capacity(FAILURES)
                    .time_to_live(FAILED_FOR)
                    .build(),
                verifications: AtomicU64::new(0),
            }),
        }
    }

    pub(super) fn add(&mut self, jwt: &config::Jwt, keys: Arc<Keys>, caller: Arc<Caller>) {
        let rules = self.issuers.entry(jwt.issuer.clone()).or_default();
        rules.push(Rule {
            keys,
            audience: jwt.audience.clone(),
            subject: jwt.subject.clone(),
            caller,
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.issuers.is_empty()
    }

    /// Looks at `token`, whose SHA-256 is `digest`, without verifying a signature.
    pub(super) fn look_up(&self, token: &[u8], digest: &[u8; 32]) -> TokenLookup {
        let now = SystemTime::now();
        let now = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs());
        if let Some(known) = self.memory.verified.get(digest)
            && now < known.until
            && known.sets.are_current()
        {
            return TokenLookup::Verified(known.proof.clone());
        }
        if let Some(failed) = self.memory.failed.get(digest)
            && failed.are_current()
        {
            return TokenLookup::Unknown;
        }
        let unverified = self.unverified(token, digest, now);
        unverified.map_or(TokenLookup::Unknown, TokenLookup::Unverified)
    }

    /// Returns the matching rules. `None`: no rule matches the claims.
    fn unverified(&self, token: &[u8], digest: &[u8; 32], now: u64) -> Option<Unverified> {
        // `{"` in base64: other values need not be decoded.
        if token.len() > LONGEST || !token.starts_with(b"ey") {
            return None;
        }
        let header = jsonwebtoken::decode_header(token).ok()?;
        // RFC 7515 §4.1.11: we support no critical extension.
        if header.crit.is_some() {
            return None;
        }
        let claims: Claims = jsonwebtoken::dangerous::insecure_decode_claims(token).ok()?;
        let until = whole_seconds(claims.exp);
        let begins = claims.nbf.map_or(0, whole_seconds);
        if until.saturating_add(LEEWAY) < now || begins > now.saturating_add(LEEWAY) {
            return None;
        }
        let mut rules: Vec<(Arc<Keys>, Vec<Arc<Caller>>)> = Vec::new();
        let of_issuer = self.issuers.get(&claims.iss)?.iter();
        for rule in of_issuer.filter(|rule| rule.fits(&claims)) {
            let of_set = rules
                .iter_mut()
                .find(|(keys, _)| Arc::ptr_eq(keys, &rule.keys));
            match of_set {
                Some((_, callers)) => callers.push(rule.caller.clone()),
                None => rules.push((rule.keys.clone(), vec![rule.caller.clone()])),
            }
        }
        (!rules.is_empty()).then(|| Unverified {
            token: Zeroizing::new(token.to_vec()),
            digest: *digest,
            algorithm: header.alg,
            id: header.kid,
            until,
            rules,
            memory: self.memory.clone(),
        })
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("issuers", &self.issuers.keys())
            .finish_non_exhaustive()
    }
}

impl Rule {
    fn fits(&self, claims: &Claims) -> bool {
        claims.aud.has(&self.audience)
            && self.subject.as_deref().is_none_or(|pattern| {
                let subject = claims.sub.as_deref();
                subject.is_some_and(|subject| matches(pattern, subject))
            })
    }
}

impl Unverified {
    /// Verifies the signature, once for each key set. Yields the thread after each key.
    pub(super) async fn verify(self) -> Option<Proof> {
        let mut proven: Option<Proof> = None;
        let mut sets = Vec::with_capacity(self.rules.len());
        let mut tried = false;
        for (keys, callers) in &self.rules {
            let current = keys.current().clone();
            sets.push((keys.clone(), current.generation()));
            let mut signer = None;
            for key in current.candidates(self.id.as_deref(), self.algorithm) {
                tried = true;
                self.memory.verifications.fetch_add(1, Ordering::Relaxed);
                let good = self.is_signed_with(&key.verifier);
                tokio::task::yield_now().await;
                if good {
                    signer = Some(key.thumbprint);
                    break;
                }
            }
            let Some(thumbprint) = signer else {
                if self.id.as_deref().is_none_or(|id| !current.has(id)) {
                    // The source may have a new key.
                    keys.missed();
                }
                continue;
            };
            for caller in callers {
                proven = Some(match proven {
                    Some(Proof::One { caller: other, .. }) if !Arc::ptr_eq(&other, caller) => {
                        Proof::Several
                    }
                    Some(other) => other,
                    None => Proof::One {
                        caller: caller.clone(),
                        until: self.until,
                        thumbprint,
                    },
                });
            }
        }
        let sets = Sets(sets);
        match &proven {
            Some(proof) => {
                let verified = Verified {
                    proof: proof.clone(),
                    until: self.until.saturating_add(LEEWAY),
                    sets,
                };
                let verified = Arc::new(verified);
                self.memory.verified.insert(self.digest, verified);
            }
            None if tried => self.memory.failed.insert(self.digest, Arc::new(sets)),
            None => {}
        }
        proven
    }

    fn is_signed_with(&self, key: &jsonwebtoken::DecodingKey) -> bool {
        let Some(dot) = self.token.iter().rposition(|byte| *byte == b'.') else {
            return false;
        };
        let (message, signature) = (&self.token[..dot], &self.token[dot + 1..]);
        std::str::from_utf8(signature).is_ok_and(|signature| {
            crypto::verify(signature, message, key, self.algorithm).unwrap_or(false)
        })
    }
}

/// Rounds a number of seconds that may have a fraction (RFC 7519 §2).
fn whole_seconds(seconds: f64) -> u64 {
    Duration::try_from_secs_f64(seconds.max(0.0)).map_or(u64::MAX, |time| time.as_secs())
}

/// Tells whether `text` matches `pattern`, in which `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    use rcgen::{KeyPair, PublicKeyData};
    use serde_json::{Value, json};

    use super::*;
    use crate::jwks::KeySet;
    use crate::tls::sha256;

    /// A signing key and its public half as a JWK.
    struct Signer {
        key: EncodingKey,
        algorithm: Algorithm,
        jwk: Value,
    }

    impl Signer {
        fn new(algorithm: Algorithm, id: &str) -> Self {
            use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256};
            let pair = |kind| KeyPair::generate_for(kind).unwrap();
            let (pair, key) = if algorithm == Algorithm::ES256 {
                let pair = pair(&PKCS_ECDSA_P256_SHA256);
                let key = EncodingKey::from_ec_der(&pair.serialize_der());
                (pair, key)
            } else if algorithm == Algorithm::EdDSA {
                let pair = pair(&PKCS_ED25519);
                let key = EncodingKey::from_ed_der(&pair.serialize_der());
                (pair, key)
            } else {
                let pair = pair(&PKCS_RSA_SHA256);
                let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes());
                (pair, key.unwrap())
            };
            let mut jwk = if algorithm == Algorithm::EdDSA {
                let x = URL_SAFE_NO_PAD.encode(pair.der_bytes());
                json!({ "kty": "OKP", "crv": "Ed25519", "x": x })
            } else {
                let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, algorithm);
                serde_json::to_value(jwk.unwrap()).unwrap()
            };
            jwk["kid"] = json!(id);
            Self {
                key,
                algorithm,
                jwk,
            }
        }

        fn sign(&self, id: Option<&str>, claims: &Value) -> String {
            let mut header = Header::new(self.algorithm);
            header.kid = id.map(ToOwned::to_owned);
            jsonwebtoken::encode(&header, claims, &self.key).unwrap()
        }
    }

    static ES: LazyLock<Signer> = LazyLock::new(|| Signer::new(Algorithm::ES256, "es"));
    static ED: LazyLock<Signer> = LazyLock::new(|| Signer::new(Algorithm::EdDSA, "ed"));
    static RS: LazyLock<Signer> = LazyLock::new(|| Signer::new(Algorithm::RS256, "rs"));

    fn keys(jwks: &[&Value]) -> Arc<Keys> {
        Keys::fixed(json!({ "keys": jwks }).to_string().as_bytes())
    }

    fn now() -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.unwrap().as_secs()
    }

    fn good() -> Value {
        json!({
            "iss": "https://issuer", "aud": ["other", "countersign"],
            "sub": "system:apps:ci", "exp": now() + 300, "nbf": now() - 5,
        })
    }

    fn with(claim: &str, value: Value) -> Value {
        let mut claims = good();
        claims[claim] = value;
        claims
    }

    fn caller(name: &str) -> Arc<Caller> {
        Arc::new(Caller::new(&config::Caller {
            name: name.into(),
            api_key: None,
            certificate: None,
            jwt: None,
            allow: vec![],
            rate: None,
        }))
    }

    /// Returns rules for tokens of `https://issuer` for `countersign`: subjects and their callers.
    fn tokens(keys: &Arc<Keys>, rules: &[(&str, &str)]) -> Tokens {
        let mut tokens = Tokens::new();
        for (subject, name) in rules {
            let jwt = config::Jwt {
                issuer: "https://issuer".into(),
                audience: "countersign".into(),
                subject: Some((*subject).into()),
                keys: crate::jwks::KeySource::File("unused".into()),
            };
            tokens.add(&jwt, keys.clone(), caller(name));
        }
        tokens
    }

    fn who(tokens: &Tokens, token: &str) -> Option<String> {
        let digest = sha256(&[token.as_bytes()]);
        let proof = match tokens.look_up(token.as_bytes(), &digest) {
            TokenLookup::Verified(proof) => Some(proof),
            TokenLookup::Unknown => None,
            TokenLookup::Unverified(unverified) => {
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                runtime.unwrap().block_on(unverified.verify())
            }
        };
        proof.map(|proof| match proof {
            Proof::One { caller, .. } => caller.name.to_string(),
            Proof::Several => "several".to_owned(),
        })
    }

    /// Returns the number of signatures verified for `token`, and the caller it proves.
    fn cost(tokens: &Tokens, token: &str) -> (u64, Option<String>) {
        let before = tokens.memory.verifications.load(Ordering::Relaxed);
        let who = who(tokens, token);
        let after = tokens.memory.verifications.load(Ordering::Relaxed);
        (after - before, who)
    }

    #[test]
    fn a_signature_is_verified_once_for_all_rules_and_only_when_the_claims_fit() {
        let keys = keys(&[&ES.jwk, &ED.jwk, &RS.jwk]);
        let rules: Vec<(String, String)> = (0..10)
            .map(|nth| (format!("system:apps:{nth}*"), format!("caller-{nth}")))
            .collect();
        let mut rules: Vec<(&str, &str)> = rules
            .iter()
            .map(|(subject, name)| (subject.as_str(), name.as_str()))
            .collect();
        rules.push(("system:apps:ci", "ci"));
        let tokens = tokens(&keys, &rules);
        let good_token = ES.sign(Some("es"), &good());
        assert_eq!(cost(&tokens, &good_token), (1, Some("ci".into())));
        assert_eq!(cost(&tokens, &good_token), (0, Some("ci".into())));

        for (what, claims) in [
            ("issuer", with("iss", json!("https://other"))),
            ("audience", with("aud", json!("other"))),
            ("subject", with("sub", json!("system:other"))),
            ("ended", with("exp", json!(now() - 61))),
            ("not begun", with("nbf", json!(now() + 90))),
        ] {
            let token = ES.sign(Some("es"), &claims);
            assert_eq!(cost(&tokens, &token), (0, None), "{what}");
        }

        // Ten matching rules cost one verification, and one failure is remembered.
        let many: Vec<(&str, &str)> = rules.iter().map(|(_, name)| ("*", *name)).collect();
        let tokens = self::tokens(&keys, &many);
        let stranger = Signer::new(Algorithm::ES256, "es");
        let forged = stranger.sign(Some("es"), &good());
        assert_eq!(cost(&tokens, &forged), (1, None));
        for _ in 0..100 {
            assert_eq!(cost(&tokens, &forged), (0, None));
        }
        assert_eq!(cost(&tokens, &good_token), (1, Some("several".into())));
    }

    #[test]
    fn a_failure_is_forgotten_when_the_keys_change() {
        let keys = keys(&[&ED.jwk, &RS.jwk]);
        let tokens = tokens(&keys, &[("*", "ci")]);
        let nameless = {
            let mut jwk = ES.jwk.clone();
            jwk.as_object_mut().unwrap().remove("kid");
            jwk
        };
        let stranger = Signer::new(Algorithm::ES256, "");
        let mut other = stranger.jwk.clone();
        other.as_object_mut().unwrap().remove("kid");
        let set = |keys: &[&Value]| json!({ "keys": keys }).to_string();
        keys.replace(set(&[&other]).as_bytes());
        let token = ES.sign(None, &good());
        assert_eq!(cost(&tokens, &token), (1, None));
        assert_eq!(cost(&tokens, &token), (0, None));
        keys.replace(set(&[&other, &nameless]).as_bytes());
        assert_eq!(cost(&tokens, &token), (2, Some("ci".into())));
    }

    #[test]
    fn a_token_is_tried_against_few_keys_however_many_there_are() {
        let strangers: Vec<Signer> = (0..32)
            .map(|nth| Signer::new(Algorithm::ES256, &format!("key-{nth}")))
            .collect();
        let named: Vec<&Value> = strangers.iter().map(|stranger| &stranger.jwk).collect();
        let nameless: Vec<Value> = strangers
            .iter()
            .map(|stranger| {
                let mut jwk = stranger.jwk.clone();
                jwk.as_object_mut().unwrap().remove("kid");
                jwk
            })
            .collect();
        let same: Vec<Value> = strangers
            .iter()
            .map(|stranger| {
                let mut jwk = stranger.jwk.clone();
                jwk["kid"] = json!("es");
                jwk
            })
            .collect();
        for (what, jwks, id, most) in [
            ("named", named.clone(), Some("key-31"), 1),
            ("named otherwise", named.clone(), Some("es"), 0),
            ("named, and the token is not", named, None, 8),
            ("nameless", nameless.iter().collect(), Some("es"), 8),
            ("nameless both", nameless.iter().collect(), None, 8),
            ("all of one name", same.iter().collect(), Some("es"), 8),
        ] {
            let tokens = tokens(&keys(&jwks), &[("*", "ci")]);
            let token = ES.sign(id, &good());
            assert_eq!(cost(&tokens, &token), (most, None), "{what}");
        }
        // A key without an id does not replace the one that the token names.
        let mixed: Vec<&Value> = nameless.iter().chain([&ES.jwk]).collect();
        let tokens = tokens(&keys(&mixed), &[("*", "ci")]);
        let token = ES.sign(Some("es"), &good());
        assert_eq!(cost(&tokens, &token), (1, Some("ci".into())));
    }

    #[test]
    fn every_kind_of_key_verifies_what_it_signed() {
        let keys = keys(&[&ES.jwk, &ED.jwk, &RS.jwk]);
        let tokens = tokens(&keys, &[("system:*", "ci")]);
        for (signer, id) in [(&*ES, "es"), (&*ED, "ed"), (&*RS, "rs")] {
            for id in [Some(id), None] {
                let token = signer.sign(id, &good());
                for time in ["first", "remembered"] {
                    assert_eq!(who(&tokens, &token), Some("ci".into()), "{id:?} {time}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_exactly_right_proves_nobody() {
        let keys = keys(&[&ES.jwk]);
        let tokens = tokens(&keys, &[("system:apps:*", "ci")]);
        let stranger = Signer::new(Algorithm::ES256, "es");
        let mut without_exp = good();
        without_exp.as_object_mut().unwrap().remove("exp");
        let mut without_aud = good();
        without_aud.as_object_mut().unwrap().remove("aud");
        let good_token = ES.sign(Some("es"), &good());
        let (signed, _) = good_token.rsplit_once('.').unwrap();
        for (what, token) in [
            ("another key", stranger.sign(Some("es"), &good())),
            ("ended", ES.sign(None, &with("exp", json!(now() - 61)))),
            ("not begun", ES.sign(None, &with("nbf", json!(now() + 90)))),
            ("endless", ES.sign(None, &without_exp)),
            ("odd end", ES.sign(None, &with("exp", json!("never")))),
            ("audience", ES.sign(None, &with("aud", json!("other")))),
            ("no audience", ES.sign(None, &without_aud)),
            (
                "issuer",
                ES.sign(None, &with("iss", json!("https://issuer/"))),
            ),
            (
                "issuers",
                ES.sign(None, &with("iss", json!(["https://issuer"]))),
            ),
            (
                "subject",
                ES.sign(None, &with("sub", json!("system:appsci"))),
            ),
            ("no subject", ES.sign(None, &with("sub", Value::Null))),
            ("no signature", format!("{signed}.")),
            ("two parts", signed.to_owned()),
            ("nothing", String::new()),
        ] {
            assert_eq!(who(&tokens, &token), None, "{what}: {token}");
        }
        assert_eq!(who(&tokens, &good_token), Some("ci".into()));
        let within = ES.sign(None, &with("exp", json!(now() - 30)));
        assert_eq!(who(&tokens, &within), Some("ci".into()));
    }

    /// Signs `header` and `good()` with HMAC over `secret`, or leaves them unsigned.
    fn forged(header: &Value, secret: Option<&[u8]>) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(&good()));
        let signature = secret.map_or(vec![], |secret| {
            use aws_lc_rs::hmac;
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
            hmac::sign(&key, signed.as_bytes()).as_ref().to_vec()
        });
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn a_token_does_not_choose_its_algorithm() {
        let public = URL_SAFE_NO_PAD.decode(RS.jwk["n"].as_str().unwrap());
        let symmetric = json!({ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "kid": "oct" });
        let keys = keys(&[&RS.jwk, &ES.jwk, &symmetric]);
        let tokens = tokens(&keys, &[("*", "ci")]);
        for (header, secret) in [
            (json!({ "alg": "none" }), None),
            (json!({ "alg": "None", "kid": "rs" }), None),
            (
                json!({ "alg": "HS256", "kid": "rs" }),
                Some(public.unwrap()),
            ),
            (
                json!({ "alg": "HS256", "kid": "oct" }),
                Some(b"secret".to_vec()),
            ),
            (json!({ "alg": "HS256" }), Some(b"secret".to_vec())),
            (json!({ "alg": "ES256", "kid": "rs" }), None),
            (
                json!({ "alg": "ES256", "jwk": ES.jwk, "jku": "https://evil" }),
                None,
            ),
        ] {
            let token = forged(&header, secret.as_deref());
            assert_eq!(who(&tokens, &token), None, "{header}");
        }
        // The key says RS256, so a PS256 signature by it is not accepted.
        let pss = Signer {
            algorithm: Algorithm::PS256,
            key: RS.key.clone(),
            jwk: Value::Null,
        };
        assert_eq!(who(&tokens, &pss.sign(Some("rs"), &good())), None);
        let mut critical = Header::new(Algorithm::ES256);
        critical.crit = Some(vec!["exp".into()]);
        let critical = jsonwebtoken::encode(&critical, &good(), &ES.key).unwrap();
        assert_eq!(who(&tokens, &critical), None);
    }

    #[test]
    fn two_callers_for_one_token_are_none() {
        let keys = keys(&[&ES.jwk]);
        let tokens = tokens(&keys, &[("system:apps:*", "a"), ("system:*:ci", "b")]);
        let token = ES.sign(None, &good());
        assert_eq!(who(&tokens, &token), Some("several".into()));
        assert_eq!(who(&tokens, &token), Some("several".into()));
        let one = ES.sign(None, &with("sub", json!("system:apps:web")));
        assert_eq!(who(&tokens, &one), Some("a".into()));
    }

    #[test]
    fn symmetric_and_encryption_keys_verify_nothing() {
        let parse = |keys: Value| KeySet::parse(json!({ "keys": keys }).to_string().as_bytes());
        let mut encrypts = ES.jwk.clone();
        encrypts["use"] = json!("enc");
        for keys in [
            json!([]),
            json!([{ "kty": "oct", "k": "c2VjcmV0" }]),
            json!([encrypts]),
        ] {
            assert!(parse(keys.clone()).is_err(), "{keys}");
        }
        assert!(parse(json!([ES.jwk, "odd", { "kty": "new" }])).is_ok());
        assert!(KeySet::parse(b"<html>").is_err());
    }

    #[test]
    fn an_asterisk_stands_for_any_characters() {
        for (pattern, text, want) in [
            ("system:apps:*", "system:apps:a:b", true),
            ("system:apps:*", "system:apps:", true),
            ("system:apps:*", "system:app", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "a/b/b/c", true),
            ("a*b*c", "acb", false),
            ("*", "", true),
            ("ab*ba", "aba", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            assert_eq!(matches(pattern, text), want, "{pattern} {text}");
        }
    }
}
