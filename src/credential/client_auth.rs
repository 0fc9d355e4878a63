//! Client authentication at the token endpoint.

use std::time::SystemTime;

use aws_lc_rs::rand;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use serde_json::json;
use url::Url;
use url::form_urlencoded;

use super::static_auth::basic;
use super::token_request::TokenRequest;
use crate::config::ClientAuth;
use crate::secret::{Secret, SecretRef};
use crate::tls::pem::{UNUSABLE_KEY, private_key, unadorned};

/// Returns the token request with `params` and the client's authentication by `auth`. `None` is a
/// public client, which only sends its name. Secrets are read here, at each request.
///
/// # Errors
/// Returns the secret that is missing or unusable, without showing it.
pub(super) fn authenticate_client(
    auth: Option<&ClientAuth>,
    client_id: &SecretRef,
    token_url: &Url,
    params: Vec<(&'static str, Secret)>,
) -> Result<TokenRequest, String> {
    let resolve = |secret: &SecretRef| secret.resolve().map_err(|cause| cause.to_string());
    let client_id = resolve(client_id)?;
    let mut request = TokenRequest {
        authorization: None,
        params,
        extra: Vec::new(),
        json: false,
        client_id: client_id.clone(),
        secrets: Vec::new(),
        time_bound: false,
    };
    match auth {
        Some(ClientAuth::Basic(secret)) => {
            let secret = resolve(secret)?;
            // RFC 6749 §2.3.1 and its Appendix B. For the letters and digits that most secrets
            // consist of, servers that skip the decoding see no difference.
            let encode = |half: &Secret| {
                let bytes = half.expose().as_bytes();
                Secret::new(form_urlencoded::byte_serialize(bytes).collect::<String>())
            };
            request.authorization = Some(basic(&encode(&client_id), &encode(&secret)));
            request.secrets.push(secret);
        }
        Some(ClientAuth::Post(secret)) => {
            let secret = resolve(secret)?;
            request.params.push(("client_id", client_id));
            request.params.push(("client_secret", secret.clone()));
            request.secrets.push(secret);
        }
        Some(ClientAuth::Json(secret)) => {
            let secret = resolve(secret)?;
            request.params.push(("client_id", client_id));
            request.params.push(("client_secret", secret.clone()));
            request.secrets.push(secret);
            request.json = true;
        }
        Some(ClientAuth::PrivateKeyJwt {
            private_key,
            key_id,
            algorithm,
            audience,
        }) => {
            let audience = audience.as_deref().unwrap_or(token_url.as_str());
            let pem = private_key.resolve_bytes();
            let pem = pem.map_err(|cause| cause.to_string())?;
            let assertion = assertion(&pem, algorithm, key_id.clone(), &client_id, audience)
                .map_err(|cause| format!("{} {cause}", private_key.describe()))?;
            request.params.push(("client_id", client_id));
            request
                .params
                .push(("client_assertion_type", Secret::new(JWT_BEARER)));
            request.params.push(("client_assertion", assertion));
            request.time_bound = true;
        }
        Some(ClientAuth::Tls(_)) | None => request.params.push(("client_id", client_id)),
    }
    Ok(request)
}

/// Signs an assertion (RFC 7523 §3), a new one for each request.
fn assertion(
    pem: &[u8],
    algorithm: &str,
    key_id: Option<String>,
    client_id: &Secret,
    audience: &str,
) -> Result<Secret, String> {
    let der = private_key(pem).map_err(|fault| fault.to_string())?;
    let unusable = || match any_supported_type(&der) {
        Ok(_) => format!("is not a private key for {algorithm}"),
        Err(_) => UNUSABLE_KEY.to_string(),
    };
    let text = &*unadorned(pem);
    let key = match algorithm {
        "RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512" => {
            EncodingKey::from_rsa_pem(text).map_err(|_| unusable())?
        }
        "ES256" => ec_key(text, &ECDSA_P256_SHA256_FIXED_SIGNING).ok_or_else(unusable)?,
        "ES384" => ec_key(text, &ECDSA_P384_SHA384_FIXED_SIGNING).ok_or_else(unusable)?,
        "EdDSA" => EncodingKey::from_ed_pem(text).map_err(|_| unusable())?,
        _ => return Err(format!("cannot sign: the algorithm {algorithm} is unknown")),
    };
    let algorithm: Algorithm = algorithm.parse().map_err(|_| unusable())?;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let claims = json!({
        "iss": client_id.expose(),
        "sub": client_id.expose(),
        "aud": audience,
        "jti": hex::encode(random::<16>()),
        // A server whose clock is behind must not find it issued in its future, and one whose clock
        // is ahead must not find it expired on arrival.
        "iat": now.saturating_sub(SKEW_SECONDS),
        "exp": now + TRANSIT_SECONDS + SKEW_SECONDS,
    });
    let mut header = Header::new(algorithm);
    header.kid = key_id;
    jsonwebtoken::encode(&header, &claims, &key)
        .map(Secret::new)
        .map_err(|_| unusable())
}

/// Converts an EC key: the JWT library reads PKCS#8 only, and openssl writes SEC1 by default.
fn ec_key(pem: &[u8], curve: &'static EcdsaSigningAlgorithm) -> Option<EncodingKey> {
    let der = private_key(pem).ok()?;
    let pair = EcdsaKeyPair::from_private_key_der(curve, der.secret_der()).ok()?;
    let pkcs8 = pair.to_pkcs8v1().ok()?;
    Some(EncodingKey::from_ec_der(pkcs8.as_ref()))
}

/// Returns unguessable bytes.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system's random source works or nothing secure does");
    bytes
}

/// RFC 7523 §2.2.
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Largest accepted difference between a server's clock and ours, either way.
const SKEW_SECONDS: u64 = 60;
/// Longest time a request may take to arrive. With the skew on both sides an assertion is valid for
/// four minutes; some servers accept no more than five.
const TRANSIT_SECONDS: u64 = 120;

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
    use aws_lc_rs::signature::KeyPair as _;
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use jsonwebtoken::{DecodingKey, Validation};
    use serde_json::Value;

    use super::super::fakes::value;
    use super::*;

    fn authenticate(auth: Option<&ClientAuth>) -> Result<TokenRequest, String> {
        let url = "https://as.example/token".parse().unwrap();
        authenticate_client(auth, &value("my app"), &url, Vec::new())
    }

    fn params(request: &TokenRequest) -> Vec<(&str, &str)> {
        request
            .params
            .iter()
            .map(|(name, secret)| (*name, secret.expose()))
            .collect()
    }

    #[test]
    fn a_secret_goes_where_the_server_wants_it() {
        let basic = authenticate(Some(&ClientAuth::Basic(value("p:a s%")))).unwrap();
        let header = basic.authorization.as_ref().unwrap();
        let encoded = BASE64_STANDARD.encode("my+app:p%3Aa+s%25");
        assert_eq!(header.to_str().unwrap(), format!("Basic {encoded}"));
        assert!(header.is_sensitive() && params(&basic).is_empty() && !basic.json);

        let both = [("client_id", "my app"), ("client_secret", "s")];
        let post = authenticate(Some(&ClientAuth::Post(value("s")))).unwrap();
        assert!(params(&post) == both && post.authorization.is_none() && !post.json);
        let json = authenticate(Some(&ClientAuth::Json(value("s")))).unwrap();
        assert!(params(&json) == both && json.json);
        let public = authenticate(None).unwrap();
        assert_eq!(params(&public), [("client_id", "my app")]);
    }

    fn pem(label: &str, der: &[u8]) -> String {
        let body = BASE64_STANDARD.encode(der);
        let lines: Vec<_> = body.as_bytes().chunks(64).collect();
        let lines: Vec<_> = lines
            .iter()
            .map(|l| std::str::from_utf8(l).unwrap())
            .collect();
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            lines.join("\n")
        )
    }

    fn signed(algorithm: &str, key: &str) -> Result<String, String> {
        let request = authenticate(Some(&ClientAuth::PrivateKeyJwt {
            private_key: value(key),
            key_id: Some("k1".into()),
            algorithm: algorithm.into(),
            audience: None,
        }))?;
        let params = params(&request);
        assert_eq!(params[0], ("client_id", "my app"));
        assert_eq!(params[1], ("client_assertion_type", JWT_BEARER));
        Ok(params[2].1.to_owned())
    }

    fn claims(assertion: &str, algorithm: &str, key: &DecodingKey) -> Value {
        let mut wanted = Validation::new(algorithm.parse().unwrap());
        wanted.set_audience(&["https://as.example/token"]);
        let decoded = jsonwebtoken::decode::<Value>(assertion, key, &wanted).unwrap();
        assert_eq!(decoded.header.kid.as_deref(), Some("k1"));
        decoded.claims
    }

    #[test]
    fn assertions_verify_for_every_kind_of_key_in_every_pem_form() {
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let rsa_der = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap();
        let rsa_pem = pem("PRIVATE KEY", rsa_der.as_ref());
        let public = AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(rsa.public_key());
        let public = pem("PUBLIC KEY", public.unwrap().as_ref());
        let public = DecodingKey::from_rsa_pem(public.as_bytes()).unwrap();
        for algorithm in ["RS256", "RS512", "PS256", "PS384"] {
            claims(&signed(algorithm, &rsa_pem).unwrap(), algorithm, &public);
        }

        for (algorithm, curve) in [
            ("ES256", &rcgen::PKCS_ECDSA_P256_SHA256),
            ("ES384", &rcgen::PKCS_ECDSA_P384_SHA384),
        ] {
            let key = rcgen::KeyPair::generate_for(curve).unwrap();
            let public = DecodingKey::from_ec_pem(key.public_key_pem().as_bytes()).unwrap();
            let signing = match algorithm {
                "ES256" => &ECDSA_P256_SHA256_FIXED_SIGNING,
                _ => &ECDSA_P384_SHA384_FIXED_SIGNING,
            };
            let pair = EcdsaKeyPair::from_pkcs8(signing, &key.serialize_der()).unwrap();
            let sec1 = pair.private_key().as_der().unwrap();
            for pem in [key.serialize_pem(), pem("EC PRIVATE KEY", sec1.as_ref())] {
                claims(&signed(algorithm, &pem).unwrap(), algorithm, &public);
            }
        }

        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let public = DecodingKey::from_ed_pem(key.public_key_pem().as_bytes()).unwrap();
        let first = claims(
            &signed("EdDSA", &key.serialize_pem()).unwrap(),
            "EdDSA",
            &public,
        );
        let second = claims(
            &signed("EdDSA", &key.serialize_pem()).unwrap(),
            "EdDSA",
            &public,
        );
        assert_eq!(
            (&first["iss"], &first["sub"]),
            (&"my app".into(), &"my app".into())
        );
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap().as_secs();
        let (iat, exp) = (
            first["iat"].as_u64().unwrap(),
            first["exp"].as_u64().unwrap(),
        );
        // By a clock a minute behind ours, and by one a minute ahead, when it arrives last.
        assert!(iat <= now - 60 && exp > now + 60 + 60, "{iat} {now} {exp}");
        assert!(exp - iat <= 300);
        assert_ne!(first["jti"], second["jti"]);
    }

    #[test]
    fn a_key_of_another_kind_is_named_and_not_quoted() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        for algorithm in ["RS256", "ES384", "EdDSA", "HS256", "none"] {
            let error = signed(algorithm, &key.serialize_pem()).unwrap_err();
            assert!(error.contains(algorithm), "{error}");
            assert!(
                error.starts_with("the value in the configuration "),
                "{error}"
            );
            assert!(!error.contains("PRIVATE"), "{error}");
        }
        assert!(
            signed("ES256", "hunter2")
                .unwrap_err()
                .contains("does not hold a private key")
        );
    }
}
