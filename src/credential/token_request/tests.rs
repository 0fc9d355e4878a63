//! What token servers answer, and what is made of it.

use super::super::fakes::{Reply, TokenServer, answer, json, times, value, vendor};
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
    }
}

async fn ask(reply: Reply) -> Result<Answer, TokenError> {
    let server = TokenServer::start([reply]).await;
    client().post(&server.url("/token"), request()).await
}

/// The text of a temporary failure, without the server's address.
async fn trouble(reply: Reply) -> String {
    let error = ask(reply).await.unwrap_err();
    assert!(matches!(error, TokenError::Temporary { .. }), "{error:?}");
    let text = error.to_string();
    text.split_once("/token: ").unwrap().1.to_owned()
}

async fn refusal(status: &str, body: &str) -> (Option<&'static str>, String) {
    let error = ask(answer(status, "", body)).await.unwrap_err();
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

    let seen = server.seen();
    assert_eq!(seen[0].line, "POST /token?v=1 HTTP/1.1");
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
        // A server whose clock is years off, and one that does not tell.
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
        let answer = ask(answer("200 OK", headers, &body)).await.unwrap();
        let total = answer.lifetime.total.as_secs_f64();
        assert!((total - seconds).abs() < 5.0, "{fields}: {total}");
        let end = answer.lifetime.end;
        assert!(
            end >= before + answer.lifetime.total && end < Instant::now() + answer.lifetime.total
        );
    }
    for (headers, fields) in [
        ("", r#""expires_in":0"#),
        ("", r#""expires_in":-1"#),
        ("", r#""expires_in":"-5""#),
        (date, r#""expires":1699999999"#),
    ] {
        let body = format!(r#"{{"access_token":"t",{fields}}}"#);
        let text = trouble(answer("200 OK", headers, &body)).await;
        assert_eq!(text, "200 OK: a token that has already expired", "{fields}");
    }
}

#[tokio::test]
async fn refresh_tokens_and_the_end_of_a_grant_are_read_by_the_servers_clock() {
    let answer = ask(answer(
        "200 OK",
        "Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n",
        r#"{"access_token":" t\n","refresh_token":"r","token_type":"bEARER","refresh_until":1700003600}"#,
    ))
    .await
    .unwrap();
    assert_eq!(answer.access_token.expose(), "t");
    assert_eq!(answer.refresh_token.unwrap().expose(), "r");
    let left = answer
        .refresh_until
        .unwrap()
        .duration_since(SystemTime::now());
    assert!((3590.0..3601.0).contains(&left.unwrap().as_secs_f64()));

    let body = "\u{feff}{\"access_token\":\"t\",\"refresh_token\":\"\",\"token_type\":null}";
    let marked = ask(json(body)).await.unwrap();
    assert!(marked.refresh_token.is_none() && marked.refresh_until.is_none());
}

#[tokio::test]
async fn whatever_cannot_be_read_is_a_temporary_failure_that_says_so_and_shows_nothing() {
    let huge = format!(r#"{{"access_token":"{}"}}"#, "hunter2".repeat(1_500_000));
    for (reply, text) in [
        (json(""), "200 OK: an answer without a body"),
        (
            answer("204 No Content", "", ""),
            "204 No Content: an answer without a body",
        ),
        (
            Reply::Raw("200 OK\r\nContent-Type: text/html\r\n\r\n<p>hunter2</p>".into()),
            "200 OK: an answer that is no JSON object (14 bytes of text/html)",
        ),
        (
            json(r#"{"access_token":"hunter2"#),
            "200 OK: an answer that is no JSON object (24 bytes of application/json)",
        ),
        (
            json(r#"["hunter2"]"#),
            "200 OK: an answer that is no JSON object (11 bytes of application/json)",
        ),
        (
            json(r#"{"token":"hunter2"}"#),
            "200 OK: an answer without access_token",
        ),
        (
            json(r#"{"access_token":["hunter2"]}"#),
            "200 OK: an access_token that is no text, or empty",
        ),
        (
            json(r#"{"access_token":" "}"#),
            "200 OK: an access_token that is no text, or empty",
        ),
        (
            json(r#"{"access_token":"hunter2","refresh_token":7}"#),
            "200 OK: a refresh_token that is no text",
        ),
        (json(&huge), "200 OK: an answer of more than 1048576 bytes"),
        (
            Reply::Raw("200 OK\r\nContent-Length: 99\r\n\r\n{\"access_token\":\"hunter2\"}".into()),
            "200 OK: the answer broke off",
        ),
        (
            answer("301 Moved", "Location: /token/?code=hunter2\r\n", ""),
            "301 Moved: a redirect to /token/, not followed: a token URL must be the final one",
        ),
        (
            answer("429 Slow", "", r#"{"error":"hunter2"}"#),
            "429 Slow: the server asks to try again later",
        ),
        (
            answer("500 Oops", "", "hunter2"),
            "500 Oops: the server failed",
        ),
        (
            answer("999 What", "", "hunter2"),
            "999 What: the server failed",
        ),
        (Reply::Silence, "no complete answer within 2s"),
        (
            Reply::Drip("200 OK\r\nContent-Length: 99\r\n\r\n{}".into()),
            "no complete answer within 2s",
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
    let TokenError::Temporary { unheard, cause, .. } = error else {
        panic!("{error:?}");
    };
    assert!(unheard);
    assert!(cause.contains("onnection refused"), "{cause}");
}

#[tokio::test]
async fn the_wish_to_be_left_alone_is_read_in_both_forms_and_bounded() {
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
        let error = ask(answer("503 Busy", headers, "")).await.unwrap_err();
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
            "400 Bad Request: invalid_grant: [client_id]: e?? n",
        ),
        // The story is in the reason phrase alone.
        (
            "400 Grant has been revoked, has expired",
            "",
            None,
            "400 Grant has been revoked, has expired: no OAuth error in the answer",
        ),
        (
            "403 hunter2&x",
            r#"{"error":"invalid_client","error_description":"wrong: hunter2%26x"}"#,
            Some("invalid_client"),
            "403 (left out: it repeats a secret): invalid_client: (left out: it repeats a secret)",
        ),
        (
            "400 Bad Request",
            r#"{"error":["hunter2"],"error_description":{"a":"hunter2"}}"#,
            None,
            "400 Bad Request: no OAuth error in the answer",
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
    let seen = server.seen();
    assert!(seen[1].at - seen[0].at >= Duration::from_millis(990));
}

#[tokio::test]
async fn plaintext_needs_leave_and_missing_files_are_named() {
    let mut vendor = vendor(Auth::Bearer { token: value("x") });
    vendor.allow_plaintext = false;
    let server = TokenServer::start([json(r#"{"access_token":"t"}"#)]).await;
    let url = server.url("/token");
    let strict = TokenClient::new(&vendor, None, times());
    strict.post(&url, request()).await.unwrap_err();
    assert!(server.seen().is_empty());

    vendor.ca = Some("/nowhere/ca.pem".into());
    let lost = TokenClient::new(&vendor, None, times());
    let error = lost.post(&url, request()).await.unwrap_err();
    assert!(matches!(&error, TokenError::NotSent(text) if text.contains("/nowhere/ca.pem")));
}
