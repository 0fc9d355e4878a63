//! The responses of token servers, and what is read from them.

use std::time::SystemTime;

use super::super::fakes::{Reply, TokenServer, json, response, times, value, vendor};
use super::response::epoch;
use super::*;
use crate::config::Auth;

fn client() -> TokenClient {
    client_with(times())
}

fn client_with(times: TokenTimes) -> TokenClient {
    let vendor = vendor(Auth::Bearer { token: value("x") });
    TokenClient::new(&vendor, None, times)
}

fn request() -> TokenRequest {
    TokenRequest {
        authorization: None,
        params: vec![("grant_type", Secret::new("client_credentials"))],
        extra: vec![("tenant".into(), "a b".into())],
        json: false,
        client_id: Secret::new("my-app"),
        secrets: vec![Secret::new("hunter2&x")],
        time_bound: false,
    }
}

async fn ask(reply: Reply) -> Result<TokenResponse, TokenError> {
    let server = TokenServer::start([reply]).await;
    client().post(&server.url("/token"), request()).await
}

/// Returns the text of a temporary failure, without the server's address.
async fn trouble(reply: Reply) -> String {
    let error = ask(reply).await.unwrap_err();
    assert!(matches!(error, TokenError::Temporary { .. }), "{error:?}");
    let text = error.to_string();
    text.split_once("/token: ").unwrap().1.to_owned()
}

async fn refusal(status: &str, body: &str) -> (Option<&'static str>, String) {
    let error = ask(response(status, "", body)).await.unwrap_err();
    let TokenError::Refused { code, cause, .. } = error else {
        panic!("{error:?}");
    };
    (code, cause.split_once("/token: ").unwrap().1.to_owned())
}

#[tokio::test]
async fn a_request_is_a_form_or_a_json_object_and_asks_for_json() {
    let ok = || json(r#"{"access_token":"t"}"#);
    let server = TokenServer::start([ok(), ok()]).await;
    let form = client().post(&server.url("/token?v=1"), request()).await;
    form.unwrap();
    let mut request = request();
    request.json = true;
    request.authorization = Some(HeaderValue::from_static("Basic x"));
    client().post(&server.url("/token"), request).await.unwrap();

    let seen = server.requests();
    assert_eq!(seen[0].request_line, "POST /token?v=1 HTTP/1.1");
    assert_eq!(seen[0].body, "grant_type=client_credentials&tenant=a+b");
    assert_eq!(seen[0].header("accept"), Some("application/json"));
    let form = Some("application/x-www-form-urlencoded");
    assert_eq!(seen[0].header("content-type"), form);
    assert_eq!(
        seen[1].body,
        r#"{"grant_type":"client_credentials","tenant":"a b"}"#
    );
    assert_eq!(seen[1].header("content-type"), Some("application/json"));
    assert_eq!(seen[1].header("authorization"), Some("Basic x"));
}

#[tokio::test]
async fn every_way_of_stating_a_lifetime_is_understood() {
    let day = 86_400.0;
    let date = "Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"; // 1700000000
    let soon = epoch(SystemTime::now()) + 100.0;
    for (headers, fields, seconds) in [
        ("", r#""expires_in":3600"#.to_owned(), 3600.0),
        ("", r#""expires_in":"3600""#.to_owned(), 3600.0),
        ("", r#""expires_in":3600.5"#.to_owned(), 3600.5),
        ("", r#""expires_in":1"#.to_owned(), 1.0),
        ("", r#""expires_in":1e12"#.to_owned(), 365.0 * day),
        ("", r#""scope":"x""#.to_owned(), 300.0),
        ("", r#""expires_in":null"#.to_owned(), 300.0),
        ("", r#""expires_in":"soon""#.to_owned(), 300.0),
        ("", r#""expires_in":"inf""#.to_owned(), 300.0),
        ("", r#""expires_in":[1]"#.to_owned(), 300.0),
        // A server whose clock is years off, and one without a `Date`.
        (date, r#""expires":1700000600"#.to_owned(), 600.0),
        (date, r#""expires":"1700000600""#.to_owned(), 600.0),
        ("", format!(r#""expires":{soon}"#), 100.0),
        (
            date,
            r#""expires_in":5,"expires":1700000600"#.to_owned(),
            5.0,
        ),
    ] {
        let body = format!(r#"{{"access_token":"t",{fields}}}"#);
        let before = Instant::now();
        let response = ask(response("200 OK", headers, &body)).await.unwrap();
        let total = response.lifetime.total.as_secs_f64();
        assert!((total - seconds).abs() < 5.0, "{fields}: {total}");
        let end = response.lifetime.end;
        assert!(
            end >= before + response.lifetime.total
                && end < Instant::now() + response.lifetime.total
        );
    }
    for (headers, fields) in [
        ("", r#""expires_in":0"#),
        ("", r#""expires_in":-1"#),
        ("", r#""expires_in":"-5""#),
        (date, r#""expires":1699999999"#),
    ] {
        let body = format!(r#"{{"access_token":"t",{fields}}}"#);
        let text = trouble(response("200 OK", headers, &body)).await;
        assert_eq!(text, "200 OK: a token that has already expired", "{fields}");
    }
}

#[tokio::test]
async fn refresh_tokens_and_the_end_of_a_grant_are_read_by_the_servers_clock() {
    let response = ask(response(
        "200 OK",
        "Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n",
        r#"{"access_token":" t\n","refresh_token":"r","token_type":"bEARER","refresh_until":1700003600}"#,
    ))
    .await
    .unwrap();
    assert_eq!(response.access_token.expose(), "t");
    assert_eq!(response.refresh_token.unwrap().expose(), "r");
    let left = response
        .refresh_until
        .unwrap()
        .duration_since(SystemTime::now());
    assert!((3590.0..3601.0).contains(&left.unwrap().as_secs_f64()));

    let body = "\u{feff}{\"access_token\":\"t\",\"refresh_token\":\"\",\"token_type\":null}";
    let marked = ask(json(body)).await.unwrap();
    assert!(marked.refresh_token.is_none() && marked.refresh_until.is_none());
}

#[tokio::test]
async fn an_unreadable_response_is_a_temporary_failure_that_says_so_and_quotes_no_secret() {
    let huge = format!(r#"{{"access_token":"{}"}}"#, "hunter2".repeat(1_500_000));
    for (reply, text) in [
        (json(""), "200 OK: a response without a body"),
        (
            response("204 No Content", "", ""),
            "204 No Content: a response without a body",
        ),
        (
            Reply::Raw("200 OK\r\nContent-Type: text/html\r\n\r\n<p>hunter2</p>".into()),
            "200 OK: a response that is not a JSON object (14 bytes of text/html): [masked]",
        ),
        (
            json(r#"{"access_token":"hunter2"#),
            "200 OK: a response that is not a JSON object (24 bytes of application/json)",
        ),
        (
            json(r#"["hunter2"]"#),
            "200 OK: a response that is not a JSON object (11 bytes of application/json)",
        ),
        (
            json(r#"{"token":"hunter2"}"#),
            "200 OK: a response without access_token",
        ),
        (
            json(r#"{"access_token":["hunter2"]}"#),
            "200 OK: an access_token that is not a string, or is empty",
        ),
        (
            json(r#"{"access_token":" "}"#),
            "200 OK: an access_token that is not a string, or is empty",
        ),
        (
            json(r#"{"access_token":"hunter2","refresh_token":7}"#),
            "200 OK: a refresh_token that is not a string",
        ),
        (json(&huge), "200 OK: a response of more than 1048576 bytes"),
        (
            Reply::Raw("200 OK\r\nContent-Length: 99\r\n\r\n{\"access_token\":\"hunter2\"}".into()),
            "200 OK: the response was cut off",
        ),
        (
            response("301 Moved", "Location: /token/?code=hunter2\r\n", ""),
            "301 Moved: a redirect to /token/, not followed: a token URL must be the final one",
        ),
        (
            response("429 Slow", "", r#"{"error":"hunter2"}"#),
            "429 Slow: the server asks to try again later: [masked]",
        ),
        (
            response("500 Oops", "", "hunter2"),
            "500 Oops: the server failed: [masked]",
        ),
        (
            response("999 What", "", "hunter2"),
            "999 What: the server failed: [masked]",
        ),
        (Reply::Silence, "no complete response within 2s"),
        (
            Reply::Drip("200 OK\r\nContent-Length: 99\r\n\r\n{}".into()),
            "no complete response within 2s",
        ),
    ] {
        assert_eq!(trouble(reply).await, text);
    }
    let closed = trouble(Reply::Close).await;
    assert!(closed.contains("connection closed"), "{closed}");
}

#[tokio::test]
async fn a_server_that_is_not_there_was_not_asked() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    let url = url.parse().unwrap();
    drop(listener);
    let error = client().post(&url, request()).await.unwrap_err();
    let TokenError::Temporary {
        not_received,
        cause,
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert!(not_received);
    assert!(cause.contains("onnection refused"), "{cause}");
}

#[tokio::test]
async fn retry_after_is_read_in_both_forms_and_bounded() {
    for (headers, seconds) in [
        ("Retry-After: 7\r\n", Some(7)),
        ("Retry-After: 86400\r\n", Some(600)),
        (
            "Date: Tue, 14 Nov 2023 22:13:20 GMT\r\nRetry-After: Tue, 14 Nov 2023 22:13:50 GMT\r\n",
            Some(30),
        ),
        (
            "Date: Tue, 14 Nov 2023 22:13:20 GMT\r\nRetry-After: Tue, 14 Nov 2023 22:00:00 GMT\r\n",
            Some(0),
        ),
        ("Retry-After: soon\r\n", None),
        ("Retry-After: -3\r\n", None),
        ("", None),
    ] {
        let error = ask(response("503 Busy", headers, "")).await.unwrap_err();
        let TokenError::Temporary { retry_after, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(retry_after, seconds.map(Duration::from_secs), "{headers}");
    }
}

#[tokio::test]
async fn a_refusal_quotes_the_servers_reason_but_never_our_secret() {
    for (status, body, code, text) in [
        (
            "401 Unauthorized",
            r#"{"error":"invalid_client"}"#,
            Some("invalid_client"),
            "401 Unauthorized: invalid_client",
        ),
        (
            "400 Bad Request",
            r#"{"error":"invalid_grant","error_description":"my-app: e\u00e9\u0007 n"}"#,
            Some("invalid_grant"),
            "400 Bad Request: invalid_grant: [client_id]: eé n",
        ),
        // The explanation is in the reason phrase alone.
        (
            "400 Grant has been revoked, has expired",
            "",
            None,
            "400 Grant has been revoked, has expired: no OAuth error in the response",
        ),
        (
            "403 hunter2&x",
            r#"{"error":"invalid_client","error_description":"wrong: hunter2%26x"}"#,
            Some("invalid_client"),
            "403 [masked]: invalid_client: wrong: [masked]",
        ),
        (
            "400 Bad Request",
            r#"{"error":["hunter2"],"error_description":{"a":"hunter2"}}"#,
            None,
            "400 Bad Request: [masked]",
        ),
    ] {
        let (found, cause) = refusal(status, body).await;
        assert_eq!((found, cause.as_str()), (code, text));
    }
    let long = format!(r#"{{"error":"{}"}}"#, "e".repeat(5000));
    assert!(refusal("400 Bad", &long).await.1.len() < 300);
    let strange = json(r#"{"access_token":"hunter2","token_type":"MAC"}"#);
    let error = ask(strange).await.unwrap_err();
    let TokenError::Refused { cause, .. } = error else {
        panic!("{error:?}");
    };
    assert!(cause.ends_with("a token of type MAC, where Bearer was expected"));
}

#[tokio::test]
async fn two_requests_are_a_second_apart() {
    let ok = || json(r#"{"access_token":"t"}"#);
    let server = TokenServer::start([ok(), ok()]).await;
    let client = client();
    for _ in 0..2 {
        client.post(&server.url("/token"), request()).await.unwrap();
    }
    let seen = server.requests();
    assert!(seen[1].at - seen[0].at >= Duration::from_millis(990));
}

#[tokio::test]
async fn plaintext_must_be_allowed_and_missing_files_are_named() {
    let mut vendor = vendor(Auth::Bearer { token: value("x") });
    vendor.allow_plaintext = false;
    let server = TokenServer::start([json(r#"{"access_token":"t"}"#)]).await;
    let url = server.url("/token");
    let strict = TokenClient::new(&vendor, None, times());
    strict.post(&url, request()).await.unwrap_err();
    assert!(server.requests().is_empty());

    vendor.ca = Some("/nowhere/ca.pem".into());
    let lost = TokenClient::new(&vendor, None, times());
    let error = lost.post(&url, request()).await.unwrap_err();
    assert!(matches!(&error, TokenError::NotSent(text) if text.contains("/nowhere/ca.pem")));
}

#[tokio::test]
async fn a_refusal_under_a_good_status_is_a_refusal_with_its_text() {
    for (reply, text) in [
        (
            json(r#"{"error":"bad_verification_code","error_description":"Expired."}"#),
            "200 OK: bad_verification_code: Expired.",
        ),
        (
            json(r#"{"ok":false,"error":"invalid_auth"}"#),
            "200 OK: invalid_auth",
        ),
        (
            json(r#"{"success":false,"message":"No such client"}"#),
            "200 OK: No such client",
        ),
        (
            json(r#"{"access_token":"","error":{"message":"No"}}"#),
            "200 OK: No",
        ),
        (
            json(r#"{"errcode":40013,"errmsg":"invalid appid"}"#),
            "200 OK: invalid appid",
        ),
        (
            Reply::Raw(
                "200 OK\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n\
                 error=incorrect_client_credentials&error_description=No+good"
                    .into(),
            ),
            "200 OK: incorrect_client_credentials: No good",
        ),
        (
            response("500 Oops", "", r#"{"error":"invalid_client"}"#),
            "500 Oops: invalid_client",
        ),
    ] {
        let error = ask(reply).await.unwrap_err();
        assert!(matches!(error, TokenError::Refused { .. }), "{error:?}");
        let said = error.to_string();
        assert_eq!(said.split_once("/token: ").unwrap().1, text);
    }
    // A token is a token, whatever is said beside it.
    for body in [
        r#"{"access_token":"t","error":null,"errcode":0,"errmsg":"ok"}"#,
        r#"{"access_token":"t","error":"","status":"approved"}"#,
        r#"{"ok":true,"access_token":"t"}"#,
    ] {
        ask(json(body)).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_busy_or_broken_is_asked_again_and_quoted() {
    for (reply, text, acted) in [
        (
            json(r#"{"ok":false,"error":"ratelimited"}"#),
            "200 OK: the server asks to try again later: ratelimited",
            false,
        ),
        (
            response("400 Bad", "", r#"{"error":"temporarily_unavailable"}"#),
            "400 Bad: the server asks to try again later: temporarily_unavailable",
            false,
        ),
        (
            json(r#"{"ok":false,"error":"fatal_error"}"#),
            "200 OK: the server failed: fatal_error",
            true,
        ),
        (
            response(
                "500 Oops",
                "",
                r#"{"error":"Internal Server Error","message":"db down"}"#,
            ),
            "500 Oops: the server failed: Internal Server Error; db down",
            true,
        ),
        (
            Reply::Raw(
                "502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n<html><title>502 Bad Gateway\
                 </title><h1>502 Bad Gateway</h1>\n<hr>nginx</html>"
                    .into(),
            ),
            "502 Bad Gateway: the server failed: 502 Bad Gateway nginx",
            true,
        ),
        (
            Reply::Raw("503 Busy\r\nRetry-After: 9\r\n\r\nno healthy upstream\n".into()),
            "503 Busy: the server failed: no healthy upstream",
            false,
        ),
        (
            Reply::Raw("503 Busy\r\n\r\nupstream reset".into()),
            "503 Busy: the server failed: upstream reset",
            true,
        ),
        (
            Reply::Raw(
                "200 OK\r\nContent-Type: text/html\r\n\r\n<title>Sign in</title><p>to go on".into(),
            ),
            "200 OK: a response that is not a JSON object (33 bytes of text/html): Sign in: to go on",
            true,
        ),
        (
            json(r#"{"message":"Welcome","code":"sesame"}"#),
            "200 OK: a response without access_token: Welcome",
            true,
        ),
    ] {
        let error = ask(reply).await.unwrap_err();
        let TokenError::Temporary { not_received, .. } = error else {
            panic!("{error:?}");
        };
        let said = error.to_string();
        assert_eq!(said.split_once("/token: ").unwrap().1, text);
        assert_eq!(not_received, !acted, "{text}");
    }
}

#[tokio::test]
async fn explanations_are_quoted_from_wherever_servers_put_them() {
    for (body, text) in [
        (r#"{"message":"Locked"}"#, "Locked"),
        (r#"{"error":{"code":400,"message":"Locked"}}"#, "Locked"),
        (r#"{"errors":[{"message":"Locked"}]}"#, "Locked"),
        (r#"{"detail":"Locked"}"#, "Locked"),
        (
            r#"{"errorCode":"E1","errorSummary":"Locked"}"#,
            "E1: Locked",
        ),
        ("Locked\r\nout", "Locked out"),
        (
            "<html><title>Denied</title><p>Ref&#58; 18.2d35</html>",
            "Denied: Ref: 18.2d35",
        ),
        (
            r#"{"message":"hunter2&amp;x and aHVudGVyMiZ4 are wrong"}"#,
            "[masked] and [masked] are wrong",
        ),
        ("", "no OAuth error in the response"),
        ("{}", "no OAuth error in the response"),
    ] {
        let (_, cause) = refusal("403 No", body).await;
        assert_eq!(cause, format!("403 No: {text}"));
    }
    let (_, cause) = refusal("403 No", &"wall of words ".repeat(100)).await;
    assert!(cause.ends_with("...") && cause.len() < 220, "{cause}");
}

#[tokio::test]
async fn what_an_operator_added_under_a_secretive_name_is_not_quoted() {
    let reply = response(
        "400 No",
        "",
        r#"{"message":"pin-4711-aa for tenant-9-x is wrong"}"#,
    );
    let server = TokenServer::start([reply]).await;
    let mut request = request();
    request.extra = vec![
        ("app_secret".into(), "pin-4711-aa".into()),
        ("tenant".into(), "tenant-9-x".into()),
    ];
    let error = client().post(&server.url("/token"), request).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.ends_with(": [masked] for tenant-9-x is wrong"),
        "{error}"
    );
}

#[tokio::test]
async fn tokens_of_odd_types_are_sent_as_bearer_and_those_of_other_schemes_are_refused() {
    for kind in [
        r#""BearerToken""#,
        r#""Bearer ""#,
        r#""N_A""#,
        r#""""#,
        r#"" ""#,
        r#""JWT""#,
        r#""bot""#,
        r#""access_token""#,
        "null",
        "7",
    ] {
        let body = format!(r#"{{"access_token":"t","token_type":{kind}}}"#);
        let issued = ask(json(&body)).await.unwrap().issued().unwrap();
        assert_eq!(issued.values, ["Bearer t"], "{kind}");
    }
    for kind in ["mac", "MAC", "DPoP", "PoP ", "hawk", "Basic"] {
        let body = format!(r#"{{"access_token":"t","token_type":"{kind}"}}"#);
        let error = ask(json(&body)).await.unwrap_err();
        let TokenError::Refused { cause, .. } = error else {
            panic!("{error:?}");
        };
        let kind = kind.trim();
        let text = format!("a token of type {kind}, where Bearer was expected");
        assert!(cause.ends_with(&text), "{cause}");
    }
}

#[tokio::test]
async fn a_refused_assertion_names_the_difference_between_the_clocks() {
    let date = |at: SystemTime| format!("Date: {}\r\n", httpdate::fmt_http_date(at));
    let now = SystemTime::now();
    let hour = Duration::from_hours(1);
    for (field, time_bound, named) in [
        (date(now + hour), true, Some("ahead of ours")),
        (date(now - hour), true, Some("behind ours")),
        (date(now + Duration::from_secs(20)), true, None),
        (date(now + hour), false, None),
        ("Date: yesterday\r\n".to_owned(), true, None),
        (String::new(), true, None),
    ] {
        let reply = response("401 No", &field, r#"{"error":"invalid_client"}"#);
        let server = TokenServer::start([reply]).await;
        let mut request = request();
        request.time_bound = time_bound;
        let error = client().post(&server.url("/token"), request).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("401 No: invalid_client"), "{error}");
        match named {
            Some(named) => {
                assert!(error.contains(named), "{error}");
                let difference = error.contains("is 1h ") || error.contains("is 59m ");
                assert!(
                    difference && error.contains("time of this machine"),
                    "{error}"
                );
            }
            None => assert!(error.ends_with("401 No: invalid_client"), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_failed_connect_counts_as_not_received() {
    // Accepts no connection: its queue is full.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut vendor = vendor(Auth::Bearer { token: value("x") });
    // Longer than the whole request may take.
    vendor.timeouts.connect = Duration::from_mins(1);
    let client = TokenClient::new(&vendor, None, times());
    let mut waiting = Vec::new();
    let full = async {
        loop {
            let connecting = tokio::net::TcpStream::connect(address);
            match tokio::time::timeout(Duration::from_millis(200), connecting).await {
                Ok(Ok(stream)) => waiting.push(stream),
                Ok(Err(_)) | Err(_) => break,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), full)
        .await
        .unwrap();
    let url = format!("http://{address}/token").parse().unwrap();
    let error = client.post(&url, request()).await.unwrap_err();
    assert!(
        matches!(
            error,
            TokenError::Temporary {
                not_received: true,
                ..
            }
        ),
        "{error:?}"
    );
}
