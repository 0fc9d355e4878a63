//! Callers by a signed token (RFC 7519). What a token may be signed with is decided by its issuer's
//! keys, never by the token; what was verified once is remembered until the token's end.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Header, Validation};
use moka::sync::Cache;
use serde::Deserialize;

use super::Caller;
use crate::config;
use crate::jwks::Keys;

/// Clocks differ by so much, seconds.
const LEEWAY: u64 = 60;
/// Longer ones are not looked at, bytes.
const LONGEST: usize = 16 * 1024;
/// How many verified tokens are remembered.
const REMEMBERED: u64 = 10_000;

/// Whose tokens prove which caller.
pub(super) struct Tokens {
    issuers: HashMap<String, Vec<Rule>>,
    /// By SHA-256 of the token. Reading takes no lock; what is rarely used makes room.
    verified: Cache<[u8; 32], Arc<Verified>>,
}

struct Rule {
    keys: Arc<Keys>,
    audience: String,
    subject: Option<String>,
    caller: Arc<Caller>,
}

/// A token that was good, and until when it is.
struct Verified {
    caller: Proof,
    /// Seconds since 1970, the leeway included.
    until: u64,
    keys: Arc<Keys>,
    generation: u64,
}

/// Whom a token proves.
#[derive(Clone, Debug)]
pub(super) enum Proof {
    One(Arc<Caller>),
    /// Two callers' rules fit: that proves neither.
    Several,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    #[serde(default)]
    sub: Option<String>,
    exp: f64,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self {
            issuers: HashMap::new(),
            verified: Cache::new(REMEMBERED),
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

    /// Whom `token`, whose SHA-256 is `digest`, proves.
    pub(super) fn identify(&self, token: &[u8], digest: &[u8; 32]) -> Option<Proof> {
        let now = SystemTime::now();
        let now = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs());
        if let Some(known) = self.verified.get(digest)
            && now < known.until
            && known.generation == known.keys.current().generation()
        {
            return Some(known.caller.clone());
        }
        let verified = Arc::new(self.verify(token)?);
        let caller = verified.caller.clone();
        self.verified.insert(*digest, verified);
        Some(caller)
    }

    fn verify(&self, token: &[u8]) -> Option<Verified> {
        // `{"` in base64: everything else need not be decoded.
        if token.len() > LONGEST || !token.starts_with(b"ey") {
            return None;
        }
        let header = jsonwebtoken::decode_header(token).ok()?;
        // RFC 7515 §4.1.11: we understand no extension that must be understood.
        if header.crit.is_some() {
            return None;
        }
        let claimed: Claims = jsonwebtoken::dangerous::insecure_decode_claims(token).ok()?;
        let mut proven: Option<Verified> = None;
        for rule in self.issuers.get(&claimed.iss)? {
            let subject = claimed.sub.as_deref();
            let fits = rule
                .subject
                .as_deref()
                .is_none_or(|pattern| subject.is_some_and(|subject| matches(pattern, subject)));
            if !fits {
                continue;
            }
            let Some(verified) = rule.verify(token, &header) else {
                continue;
            };
            proven = Some(match proven {
                Some(other) if !verified.caller.is_same(&other.caller) => Verified {
                    caller: Proof::Several,
                    ..other
                },
                Some(other) => other,
                None => verified,
            });
        }
        proven
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
    fn verify(&self, token: &[u8], header: &Header) -> Option<Verified> {
        let keys = self.keys.current();
        let Some(candidates) = keys.named(header.kid.as_deref()) else {
            self.keys.missed();
            return None;
        };
        let mut wanted = Validation::new(header.alg);
        wanted.leeway = LEEWAY;
        wanted.validate_nbf = true;
        wanted.set_audience(&[&self.audience]);
        wanted.set_required_spec_claims(&["exp", "iss", "aud"]);
        let claims: Claims = candidates
            .filter(|key| key.algorithms.contains(&header.alg))
            .find_map(|key| jsonwebtoken::decode(token, &key.verifier, &wanted).ok())?
            .claims;
        Some(Verified {
            caller: Proof::One(self.caller.clone()),
            until: whole_seconds(claims.exp).saturating_add(LEEWAY),
            keys: self.keys.clone(),
            generation: keys.generation(),
        })
    }
}

impl Proof {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::One(one), Self::One(other)) => Arc::ptr_eq(one, other),
            (Self::One(_) | Self::Several, _) => false,
        }
    }
}

/// Times are numbers of seconds that may have a fraction (RFC 7519 §2).
fn whole_seconds(seconds: f64) -> u64 {
    Duration::try_from_secs_f64(seconds.max(0.0)).map_or(u64::MAX, |time| time.as_secs())
}

/// Whether `text` fits `pattern`, in which `*` stands for any characters.
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

    /// Tokens of `https://issuer` for `countersign`; each rule a subject and its caller.
    fn tokens(keys: &Arc<Keys>, rules: &[(&str, &str)]) -> Tokens {
        let mut tokens = Tokens::new();
        for (subject, name) in rules {
            let jwt = config::Jwt {
                issuer: "https://issuer".into(),
                audience: "countersign".into(),
                subject: Some((*subject).into()),
                keys: config::KeySource::File("unused".into()),
            };
            tokens.add(&jwt, keys.clone(), caller(name));
        }
        tokens
    }

    fn who(tokens: &Tokens, token: &str) -> Option<String> {
        let digest = sha256(&[token.as_bytes()]);
        tokens
            .identify(token.as_bytes(), &digest)
            .map(|proof| match proof {
                Proof::One(caller) => caller.name.to_string(),
                Proof::Several => "several".to_owned(),
            })
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
        // The key says RS256, so what it signed as PS256 is not what it is for.
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
