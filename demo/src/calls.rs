//! One call per login, through the proxy, by a caller that holds no vendor's secret. Checks that
//! the vendor saw exactly the login it requires, and no credential that the caller sent.

use std::net::SocketAddr;
use std::time::Duration;

use super::{MockServer, MockVendors, RecordedRequest};

/// The value of the credentials that the caller sends itself, none of which may reach a vendor. It
/// occurs nowhere else.
const DECOY: &str = "decoy-of-the-demo";
const DECOYS: [&str; 7] = [
    "Authorization",
    "login",
    "password",
    "customerUri",
    "X-Api-Key",
    "X-Venafi-Api-Key",
    "Cookie",
];

/// A call that uses one login of one vendor, and the credentials that the vendor must see.
pub struct Call {
    /// The vendor's name in [`MockVendors::proxy_yaml`].
    pub vendor: &'static str,
    /// Path and query after the prefix. The method is GET.
    pub path: &'static str,
    server: fn(&MockVendors) -> &MockServer,
    /// Names of the credentials that the call must carry.
    login: &'static [&'static str],
    /// The token request behind it, if the login has one.
    token: Option<Token>,
}

/// A token request, and the credentials that it must carry.
struct Token {
    server: fn(&MockVendors) -> &MockServer,
    path: &'static str,
    login: &'static [&'static str],
}

/// The calls, one for each login.
pub const CALLS: [Call; 9] = [
    Call {
        vendor: "certcenter",
        path: "/rest/v1/Limit",
        server: |vendors| &vendors.certcenter,
        login: &["Authorization"],
        token: None,
    },
    Call {
        vendor: "certcenter-oauth",
        path: "/rest/v1/Limit",
        server: |vendors| &vendors.certcenter,
        login: &["Authorization"],
        token: Some(Token {
            server: |vendors| &vendors.certcenter,
            path: "/oauth2/token",
            login: &["client_id", "client_secret"],
        }),
    },
    Call {
        vendor: "sectigo-oauth",
        path: "/api/ssl/v1/types",
        server: |vendors| &vendors.sectigo,
        login: &["Authorization"],
        token: Some(Token {
            server: |vendors| &vendors.sectigo_auth,
            path: super::sectigo::TOKEN_PATH,
            login: &["client_id", "client_secret"],
        }),
    },
    Call {
        vendor: "sectigo",
        path: "/api/ssl/v1/types",
        server: |vendors| &vendors.cert_manager,
        login: &["login", "password", "customerUri"],
        token: None,
    },
    Call {
        vendor: "sectigo-private",
        path: "/private/api/ssl/v1/types",
        server: |vendors| &vendors.cert_manager,
        login: &["login", "customerUri", "certificate"],
        token: None,
    },
    Call {
        vendor: "certn",
        path: "/hr/v1/applicants/",
        server: |vendors| &vendors.certn,
        login: &["Authorization"],
        token: Some(Token {
            server: |vendors| &vendors.certn,
            path: "/token/",
            login: &["Authorization"],
        }),
    },
    Call {
        vendor: "maxmd",
        path: "/api/certificate/query?page=1",
        server: |vendors| &vendors.maxmd,
        login: &["Authorization"],
        token: Some(Token {
            server: |vendors| &vendors.maxmd_auth,
            path: "/oauth/token",
            login: &["client_id", "client_secret", "code"],
        }),
    },
    Call {
        vendor: "venafi",
        path: "/vedsdk/certificates/",
        server: |vendors| &vendors.venafi,
        login: &["Authorization"],
        token: Some(Token {
            server: |vendors| &vendors.venafi,
            path: "/vedauth/authorize/certificate",
            login: &["client_id", "certificate"],
        }),
    },
    Call {
        vendor: "venafi-password",
        path: "/vedsdk/certificates/",
        server: |vendors| &vendors.venafi,
        login: &["Authorization"],
        token: Some(Token {
            server: |vendors| &vendors.venafi,
            path: "/vedauth/authorize/oauth",
            login: &["client_id", "username", "password"],
        }),
    },
];

/// A request as the vendor saw it, ready to be printed: every value is masked.
pub struct Row {
    /// The vendor's name in proxy.yaml.
    pub vendor: &'static str,
    /// Method and target.
    pub request: String,
    /// Names and masked values, in the order they were received.
    pub login: String,
    /// Status of the vendor's response; 0 when the request never arrived.
    pub status: u16,
    /// Description of the failure, if there was one.
    pub problem: Option<String>,
}

impl MockVendors {
    /// Makes every call of [`CALLS`] through the proxy at `proxy`, as its only caller. Returns a
    /// row for the token request behind each call, where there is one, and a row for the call.
    ///
    /// # Errors
    /// Fails if the HTTP client cannot be created. Every other failure is reported in its row.
    pub async fn call_all(&self, proxy: SocketAddr) -> Result<Vec<Row>, reqwest::Error> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(30))
            .build()?;
        let mut rows = Vec::new();
        for call in &CALLS {
            let server = (call.server)(self);
            let before = server.api_calls().len();
            let mut request = client
                .get(format!("http://{proxy}/{}{}", call.vendor, call.path))
                .header("X-Countersign-Key", &self.logins.caller_key);
            for name in DECOYS {
                request = request.header(name, DECOY);
            }
            let received = match request.send().await {
                Ok(response) => response.status().as_u16(),
                Err(cause) => {
                    rows.push(Row {
                        vendor: call.vendor,
                        request: format!("GET {}", call.path),
                        login: String::new(),
                        status: 0,
                        problem: Some(cause.without_url().to_string()),
                    });
                    continue;
                }
            };
            if let Some(token) = &call.token {
                // The first one: later ones are renewals.
                let asked = (token.server)(self).token_calls();
                let asked = asked
                    .iter()
                    .find(|seen| seen.path().eq_ignore_ascii_case(token.path));
                rows.push(self.row(call.vendor, token.path, asked, token.login));
            }
            let calls = server.api_calls().split_off(before);
            let mut row = self.row(call.vendor, call.path, calls.last(), call.login);
            if row.problem.is_none() && calls.len() > 1 {
                row.problem = Some(format!("the vendor received {} requests", calls.len()));
            }
            if row.problem.is_none() && received != row.status {
                row.problem = Some(format!("the caller received {received}"));
            }
            if row.problem.is_some() && calls.is_empty() {
                row.problem = Some(format!(
                    "the caller received {received}, the vendor received nothing"
                ));
            }
            rows.push(row);
        }
        Ok(rows)
    }

    fn row(
        &self,
        vendor: &'static str,
        path: &str,
        seen: Option<&RecordedRequest>,
        required: &[&str],
    ) -> Row {
        let Some(seen) = seen else {
            return Row {
                vendor,
                request: path.to_owned(),
                login: String::new(),
                status: 0,
                problem: Some("the vendor received nothing".to_owned()),
            };
        };
        let login = seen.login();
        let mut names: Vec<&str> = login.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let mut wanted = required.to_vec();
        wanted.sort_unstable();
        let exact = names.len() == wanted.len()
            && names
                .iter()
                .zip(&wanted)
                .all(|(name, wanted)| name.eq_ignore_ascii_case(wanted));
        let leaked = [self.logins.caller_key.as_str(), DECOY]
            .iter()
            .any(|mine| self.all().iter().any(|server| server.has_read(mine)));
        let problem = if leaked {
            Some("a vendor received a credential of the caller".to_owned())
        } else if seen.status != 200 {
            Some("refused by the vendor".to_owned())
        } else if !exact {
            Some(format!("required: {}", required.join(", ")))
        } else {
            None
        };
        let login: Vec<String> = login
            .iter()
            .map(|(name, value)| format!("{name}: {}", masked(name, value)))
            .collect();
        Row {
            vendor,
            request: format!("{} {}", seen.method, seen.target),
            login: login.join(", "),
            status: seen.status,
            problem,
        }
    }
}

/// Returns enough of a value to recognise it: the scheme, two characters and the length. The
/// subject of a certificate is not a secret and returned whole.
fn masked(name: &str, value: &str) -> String {
    if name == "certificate" {
        return value.to_owned();
    }
    let (scheme, secret) = match value.split_once(' ') {
        Some((scheme, secret)) if name.eq_ignore_ascii_case("authorization") => {
            (format!("{scheme} "), secret)
        }
        _ => (String::new(), value),
    };
    let length = secret.chars().count();
    // Two characters would give away too much of a short secret.
    let shown: String = secret
        .chars()
        .take(if length < 8 { 0 } else { 2 })
        .collect();
    format!("{scheme}{shown}…({length})")
}

#[cfg(test)]
mod tests {
    use super::super::echo;
    use super::super::tests::{client, mock_vendors, send};
    use super::*;

    #[tokio::test]
    async fn a_response_that_is_not_the_vendors_is_reported() {
        let (_dir, vendors) = mock_vendors().await;
        let no_proxy = echo().await.unwrap();

        let rows = vendors.call_all(no_proxy.address()).await.unwrap();
        assert!(rows.len() >= CALLS.len());
        assert!(rows.iter().all(|row| row.problem.is_some()));
        // The caller's requests did arrive.
        assert!(no_proxy.has_read(&vendors.logins.caller_key));
        assert!(no_proxy.has_read(DECOY));
    }

    #[tokio::test]
    async fn surplus_missing_and_leaked_credentials_are_reported() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, None);
        let limit = vendors.certcenter.url() + "/rest/v1/Limit";
        let token = &vendors.logins.certcenter_token;
        let judge = |required: &[&str]| {
            let calls = vendors.certcenter.api_calls();
            vendors
                .row("certcenter", "/", calls.last(), required)
                .problem
        };

        assert_eq!(send(client.get(&limit).bearer_auth(token)).await.0, 200);
        assert_eq!(judge(&["Authorization"]), None);
        assert_eq!(
            judge(&["Authorization", "login"]).unwrap(),
            "required: Authorization, login"
        );
        let more = client.get(&limit).bearer_auth(token);
        assert_eq!(send(more.header("cookie", "a=b")).await.0, 200);
        assert_eq!(
            judge(&["Authorization"]).unwrap(),
            "required: Authorization"
        );
        assert_eq!(send(client.get(&limit)).await.0, 401);
        assert_eq!(judge(&[]).unwrap(), "refused by the vendor");
        let leak = client.get(&limit).bearer_auth(token);
        assert_eq!(send(leak.header("x-other", DECOY)).await.0, 200);
        assert_eq!(
            judge(&["Authorization"]).unwrap(),
            "a vendor received a credential of the caller"
        );
    }

    #[test]
    fn a_masked_value_keeps_its_scheme_two_characters_and_its_length() {
        assert_eq!(masked("Authorization", "Bearer abcdefgh"), "Bearer ab…(8)");
        assert_eq!(masked("password", "with a blank"), "wi…(12)");
        assert_eq!(masked("password", "hunter2"), "…(7)");
        assert_eq!(masked("certificate", "CN=demo"), "CN=demo");
    }
}
