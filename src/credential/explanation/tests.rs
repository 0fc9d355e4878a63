use http::StatusCode;

use super::*;

const JSON: Option<&str> = Some("application/json");

fn text(body: &str) -> String {
    Explanation::read(body.as_bytes(), JSON).text()
}

fn verdict(status: u16, body: &str) -> Verdict {
    let status = StatusCode::from_u16(status).unwrap();
    Explanation::read(body.as_bytes(), None).verdict(status)
}

#[test]
fn explanations_are_found_in_every_shape() {
    for (body, wanted) in [
        (r#"{"error":"invalid_grant"}"#, "invalid_grant"),
        (
            r#"{"error_description":"Gone.","error":"invalid_grant"}"#,
            "invalid_grant: Gone.",
        ),
        (r#"{"message":"Locked"}"#, "Locked"),
        (r#"{"Message":"Locked"}"#, "Locked"),
        (
            r#"{"error":{"message":"Locked","code":190,"type":"OAuthException"}}"#,
            "OAuthException: Locked",
        ),
        (
            r#"{"errors":[{"code":"E1","detail":"Locked"},{"message":"Twice"}]}"#,
            "E1: Locked; Twice",
        ),
        (r#"{"errors":["Locked","Twice"]}"#, "Locked; Twice"),
        (
            r#"{"errors":{"username":["is locked"],"x":1}}"#,
            "username: is locked",
        ),
        (r#"{"detail":"Locked"}"#, "Locked"),
        (r#"{"detail":[{"loc":["body"],"msg":"Locked"}]}"#, "Locked"),
        (
            r#"{"errorCode":"E0000011","errorSummary":"Locked","errorLink":"E0000011","errorCauses":[{"errorSummary":"Why"}]}"#,
            "E0000011: Locked; Why",
        ),
        (
            r#"{"type":"https://x.example/y","title":"No","status":400,"detail":"Locked"}"#,
            "No; Locked",
        ),
        (
            r#"{"status":"BAD_REFRESH_TOKEN","message":"missing or unknown"}"#,
            "BAD_REFRESH_TOKEN: missing or unknown",
        ),
        (
            r#"{"fault":{"faultstring":"Locked","detail":{"errorcode":"oauth.v2.No"}}}"#,
            "oauth.v2.No: Locked",
        ),
        (
            r#"{"reason":"Invalid Token!","error":"invalid_request"}"#,
            "invalid_request: Invalid Token!",
        ),
        (
            r#"{"error":"invalid_request","hint":"Revoked","message":"It is invalid."}"#,
            "invalid_request: Revoked; It is invalid.",
        ),
        (
            r#"{"ErrorCode":"invalid_client","Error":"ClientId is Invalid"}"#,
            "invalid_client: ClientId is Invalid",
        ),
        (r#"[{"errorCode":"NO","message":"Locked"}]"#, "NO: Locked"),
        (r#""Locked""#, "Locked"),
        (r#"{"status":"error","message":"Locked"}"#, "Locked"),
        (
            r#"{"data":{"error_code":1,"description":"Locked"},"message":"error"}"#,
            "Locked",
        ),
        (
            "error=bad_code&error_description=Locked+out",
            "bad_code: Locked out",
        ),
        ("Locked out\n", "Locked out"),
        (
            "<html><title>Denied</title><p>by the wall</html>",
            "Denied: by the wall",
        ),
        ("\u{feff}{\"message\":\"Locked\"}", "Locked"),
        (r#"{"access_token":"half"#, ""),
        ("\u{1}\u{2}\u{3}binary", ""),
        ("{}", ""),
        ("[]", ""),
        ("null", ""),
        ("7", ""),
        ("", ""),
    ] {
        assert_eq!(text(body), wanted, "{body}");
    }
    let deep = format!("{}\"x\"{}", r#"{"error":"#.repeat(50), "}".repeat(50));
    assert_eq!(text(&deep), "");
}

#[test]
fn a_failure_is_recognised_whatever_the_status_says() {
    let failure = |body: &str| {
        let Some(Value::Object(fields)) = json(body.as_bytes()) else {
            panic!("{body}");
        };
        Explanation::from_object(&fields).is_failure()
    };
    for body in [
        r#"{"error":"x"}"#,
        r#"{"error":{"message":"x"}}"#,
        r#"{"error":true}"#,
        r#"{"ok":false,"error":"invalid_auth"}"#,
        r#"{"ok":false}"#,
        r#"{"success":false,"message":"x"}"#,
        r#"{"success":"false"}"#,
        r#"{"errors":["x"]}"#,
        r#"{"errcode":40029,"errmsg":"x"}"#,
        r#"{"code":20026,"msg":"x"}"#,
        r#"{"status":601,"error":"x"}"#,
        r#"{"status":"error","message":"x"}"#,
        r#"{"errorMessage":"x"}"#,
        r#"{"data":{"error_code":10010},"message":"error"}"#,
    ] {
        assert!(failure(body), "{body}");
    }
    for body in [
        "{}",
        r#"{"token":"x"}"#,
        r#"{"error":null}"#,
        r#"{"error":"","errors":[]}"#,
        r#"{"errcode":0,"errmsg":"ok"}"#,
        r#"{"code":0,"msg":"success","data":{"token":"x"}}"#,
        r#"{"status":200,"message":"fine"}"#,
        r#"{"ok":true}"#,
    ] {
        assert!(!failure(body), "{body}");
    }
}

#[test]
fn an_invalid_refresh_token_is_recognised_in_other_words() {
    for (status, body) in [
        (400, r#"{"error":"invalid_grant"}"#),
        (500, r#"{"error":"invalid_grant"}"#),
        (
            403,
            r#"{"error":"invalid_grant","error_description":"issued to another client"}"#,
        ),
        (200, r#"{"ok":false,"error":"invalid_refresh_token"}"#),
        (200, r#"{"error":"bad_refresh_token"}"#),
        (200, r#"{"error":"invalid_code"}"#),
        (
            400,
            r#"{"status":"BAD_REFRESH_TOKEN","message":"missing or invalid refresh token"}"#,
        ),
        (400, r#"{"error":"refresh_token_expired"}"#),
        (400, r#"{"error":"grant_expired"}"#),
        (
            400,
            r#"{"error":"interaction_required","error_description":"AADSTS50076"}"#,
        ),
        (400, r#"{"error":"consent_required"}"#),
        (
            401,
            r#"{"code":"refresh_token_not_found","message":"Invalid"}"#,
        ),
        (
            400,
            r#"{"error":{"errorId":"INVALID_REFRESH_TOKEN","localizedMessage":"no"}}"#,
        ),
    ] {
        assert_eq!(verdict(status, body), Verdict::Invalid, "{body}");
    }
    for (status, body) in [
        (403, r#"{"error":"unauthorized_client"}"#),
        (
            403,
            r#"{"error":"unauthorized_client","error_description":"refresh_token is invalid"}"#,
        ),
        (
            400,
            r#"{"error":"invalid_request","error_description":"The refresh token is invalid."}"#,
        ),
        (
            401,
            r#"{"message":"Invalid refresh token","type":"service.not_authorized"}"#,
        ),
        (401, r#"{"error":"invalid_token"}"#),
        (
            401,
            r#"{"error":"expired_token","error_description":"refresh token has been used"}"#,
        ),
        (400, r#"{"error":"token_expired"}"#),
        (
            400,
            r#"{"error":{"code":400,"message":"TOKEN_EXPIRED","status":"INVALID_ARGUMENT"}}"#,
        ),
        (400, r#"{"error":"token expired or revoked"}"#),
        (400, "Token has been expired or revoked."),
        (
            401,
            r#"{"detail":"Token is invalid or expired","code":"token_not_valid"}"#,
        ),
        (
            400,
            r#"{"reason":"Invalid Token!","error":"invalid_request"}"#,
        ),
        (403, r#"{"message":"The consent has been withdrawn"}"#),
    ] {
        assert_eq!(verdict(status, body), Verdict::ProbablyInvalid, "{body}");
    }
}

#[test]
fn what_may_have_another_reason_ends_no_grant() {
    for (status, body) in [
        (400, ""),
        (400, r#"{"error":"invalid_request"}"#),
        (400, r#"{"error":"unauthorized_client"}"#),
        (
            401,
            r#"{"error":"invalid_client","error_description":"refresh token expired"}"#,
        ),
        (
            400,
            r#"{"error":"invalid_request","error_description":"missing or invalid parameter refresh_token"}"#,
        ),
        (
            401,
            r#"{"error":"invalid_token","error_description":"the client assertion has expired"}"#,
        ),
        (403, "<html><p>Your session has expired</html>"),
        (
            401,
            r#"{"message":"The security token included in the request is invalid"}"#,
        ),
        (401, r#"{"message":"Invalid API token"}"#),
        (503, "<html><p>refresh token revoked</html>"),
    ] {
        assert_eq!(verdict(status, body), Verdict::Unclear, "{body}");
    }
    for (status, body) in [
        (401, r#"{"error":"invalid_client"}"#),
        (
            400,
            r#"{"error":"unsupported_grant_type","error_description":"unknown grant refresh_token"}"#,
        ),
        (200, r#"{"error":"incorrect_client_credentials"}"#),
        (404, r#"{"message":"token not found"}"#),
        (405, ""),
    ] {
        assert_eq!(verdict(status, body), Verdict::Unrelated, "{body}");
    }
}

#[test]
fn a_busy_server_is_distinguished_from_one_that_refuses() {
    let read = |body: &str| Explanation::read(body.as_bytes(), JSON);
    for body in [
        r#"{"ok":false,"error":"ratelimited"}"#,
        r#"{"error":"temporarily_unavailable"}"#,
        r#"{"error":"slow_down"}"#,
        r#"{"error":"access_denied","error_description":"You have made too many requests"}"#,
    ] {
        assert!(read(body).is_busy(), "{body}");
    }
    assert!(!read(r#"{"error":"access_denied"}"#).is_busy());
    assert!(!read(r#"{"message":"Locked, try again later"}"#).is_busy());
    assert!(read(r#"{"ok":false,"error":"fatal_error"}"#).is_server_error());
    assert!(!read(r#"{"error":"invalid_client"}"#).is_server_error());
}
