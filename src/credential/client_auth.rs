//! How a client proves itself at a token endpoint.

use std::time::SystemTime;

use aws_lc_rs::rand;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use url::Url;
use url::form_urlencoded;

use super::fixed::basic;
use super::token_request::TokenRequest;
use crate::config::{ClientAuth, SecretRef};
use crate::secret::Secret;

/// The token request with `params`, and with the proof `auth` wants added; `None` is a public
/// client, which only names itself. Secrets are read here, at each request.
///
/// # Errors
/// What is missing or unusable, without showing it.
pub(super) fn prove(
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
    };
    match auth {
        Some(ClientAuth::Basic(secret)) => {
            let secret = resolve(secret)?;
            // RFC 6749 §2.3.1 and its Appendix B; servers that skip the decoding see no
            // difference for the letters and digits most secrets are made of.
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
            let pem = resolve(private_key)?;
            let assertion = assertion(&pem, algorithm, key_id.clone(), &client_id, audience)
                .map_err(|cause| format!("{}: {cause}", private_key.describe()))?;
            request.params.push(("client_id", client_id));
            request
                .params
                .push(("client_assertion_type", Secret::new(JWT_BEARER)));
            request.params.push(("client_assertion", assertion.clone()));
            request.secrets.push(assertion);
        }
        Some(ClientAuth::Tls(_)) | None => request.params.push(("client_id", client_id)),
    }
    Ok(request)
}

/// RFC 7523 §3, signed anew for each request.
fn assertion(
    pem: &Secret,
    algorithm: &str,
    key_id: Option<String>,
    client_id: &Secret,
    audience: &str,
) -> Result<Secret, String> {
    let unusable = || format!("not a private key for {algorithm}");
    let text = pem.expose().as_bytes();
    let key = match algorithm {
        "RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512" => {
            EncodingKey::from_rsa_pem(text).map_err(|_| unusable())?
        }
        "ES256" => elliptic(text, &ECDSA_P256_SHA256_FIXED_SIGNING).ok_or_else(unusable)?,
        "ES384" => elliptic(text, &ECDSA_P384_SHA384_FIXED_SIGNING).ok_or_else(unusable)?,
        "EdDSA" => EncodingKey::from_ed_pem(text).map_err(|_| unusable())?,
        _ => return Err(format!("the algorithm {algorithm} is unknown")),
    };
    let algorithm: Algorithm = algorithm.parse().map_err(|_| unusable())?;
    let issued = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let claims = json!({
        "iss": client_id.expose(),
        "sub": client_id.expose(),
        "aud": audience,
        "jti": hex::encode(random::<16>()),
        "iat": issued,
        "exp": issued + ASSERTION_SECONDS,
    });
    let mut header = Header::new(algorithm);
    header.kid = key_id;
    jsonwebtoken::encode(&header, &claims, &key)
        .map(Secret::new)
        .map_err(|_| unusable())
}

/// The JWT library reads PKCS#8 only; openssl writes SEC1 unless told otherwise.
fn elliptic(pem: &[u8], curve: &'static EcdsaSigningAlgorithm) -> Option<EncodingKey> {
    let der = PrivateKeyDer::from_pem_slice(pem).ok()?;
    let pair = EcdsaKeyPair::from_private_key_der(curve, der.secret_der()).ok()?;
    let pkcs8 = pair.to_pkcs8v1().ok()?;
    Some(EncodingKey::from_ec_der(pkcs8.as_ref()))
}

/// Bytes nobody can guess.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system's random source works or nothing secure does");
    bytes
}

/// RFC 7523 §2.2.
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Long enough for the request and for clocks that differ a little.
const ASSERTION_SECONDS: u64 = 60;
