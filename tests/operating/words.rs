//! What operators read when something fails: words, not the names that programs have for it.

use regex::Regex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{HEAD, get};
use crate::support::front::Plan;
use crate::support::script::{Reply, Server};
use crate::support::{Proxy, countersign, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_in_words_and_not_as_debug_prints_them() {
    let plan = Plan::new().await;
    let server = Server::start(|asked| async move {
        match &*asked.target {
            "/refuses" => Reply::whole("400 Bad Request", "", r#"{"error":"invalid_client"}"#),
            "/fails" => Reply::whole("500 Oops", "", ""),
            _ => Reply::Bytes(b"garbage\r\n\r\n".to_vec()),
        }
    })
    .await;
    // It says something at once, and it is no TLS.
    let talker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let talks = format!("https://{}", talker.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = talker.accept().await {
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    let plain = server.url("");
    let certn = plan.mocks.certn.url();
    let nobody = "https://127.0.0.1:1";
    let mut yaml = format!("{HEAD}admin: {{ bind: 127.0.0.1:0 }}\nvendors:\n");
    for (name, upstream, token_url) in [
        // This machine does not trust its issuer.
        ("untrusted", &*certn, format!("{certn}/token/")),
        ("closed", nobody, format!("{nobody}/token")),
        ("no-tls", &*talks, talks.clone()),
        ("garbage", &*plain, format!("{plain}/garbage")),
        ("refuses", &*plain, format!("{plain}/refuses")),
        ("fails", &*plain, format!("{plain}/fails")),
        (
            "nameless",
            "https://v.invalid",
            "https://v.invalid/token".to_owned(),
        ),
    ] {
        let stanza = format!(
            "  {name}:
    upstream: {upstream}
    allow_plaintext: true
    auth: {{ client_credentials: {{ token_url: \"{token_url}\", client_id: a, client_secret: {{ value: b }} }} }}
  {name}-api: {{ upstream: \"{upstream}\", allow_plaintext: true }}
"
        );
        yaml.push_str(&stanza);
    }
    let proxy = Proxy::start(plan.dir(), &yaml);
    for name in ["untrusted", "closed", "no-tls", "garbage"] {
        let answer = get(&proxy, &format!("/{name}-api/x"), &[]).await;
        assert_eq!(answer.status, 502, "{name}");
    }
    let told = eventually("everything failed", || {
        let (_, status) = proxy.admin("/status");
        let (_, page) = proxy.admin("/");
        let (_, shown) = page.split_once("<main>").unwrap();
        let (shown, _) = shown.split_once("<script>").unwrap();
        let text = proxy.stderr() + &status + shown;
        let all = [
            "its issuer is not trusted",
            "the peer does not speak TLS",
            "Connection refused",
            "outcome=\"rejected\"",
            "outcome=\"temporary\"",
        ];
        all.iter().all(|said| text.contains(said)).then_some(text)
    });
    let table = tokio::task::block_in_place(|| {
        let admin = proxy.admin.to_string();
        let output = countersign().args(["status", "--admin", &admin]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    });
    let told = told + &table;
    // `Some(x)`, `Name { a: 1 }`, `Name("x")`, and names made of words as only programs have them.
    let debug =
        Regex::new(r#"Some\(|\b[A-Z]\w* \{ |\b[A-Z]\w*\("|\b(?:[A-Z]+[a-z]+){2,}\b"#).unwrap();
    for line in told.lines() {
        let found = debug.find(line).map(|found| found.as_str());
        assert!(found.is_none(), "{found:?} in {line}");
    }
}
