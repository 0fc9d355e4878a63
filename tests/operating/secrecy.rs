//! No secret in anything the program says, whatever happens and however much it is asked to say.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;

use crate::support::front::{Front, Plan, answer};
use crate::support::{eventually, run, signal};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_said_at_trace_level_holds_a_secret() {
    let mut plan = Plan::new().await;
    for (_, stanza) in plan.stands.stanzas() {
        plan = plan.stanza_of(&stanza);
    }
    let query = "  by-query:
    upstream: https://127.0.0.1:1
    auth: { query: { api_key: { file: secrets/venafi-jwt } } }
";
    let mut front = plan
        .stanza_of(query)
        .environment("RUST_LOG", "trace")
        .consented()
        .await
        .start();

    provoke(&front).await;

    let secrets = secrets(&front);
    assert!(secrets.len() > 30, "{}", secrets.len());
    let mut said = vec![
        ("status", front.proxy.admin("/status").1),
        ("metrics", front.proxy.admin("/metrics").1),
    ];
    for arguments in [
        &["check"][..],
        &["explain", "GET", "/certn/hr/v1/applicants/"],
        &["explain", "--json", "GET", "/sectigo/api/ssl/v1/types"],
        &["explain", "GET", "/by-query/x"],
    ] {
        let ran = run(front.dir(), arguments);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        said.push((arguments[0], ran.stdout + &ran.stderr));
    }
    signal(front.proxy.id(), "TERM");
    assert_eq!(front.proxy.ended(), Some(0));
    let stderr = front.proxy.stderr();
    for event in [
        "credential obtained",
        "credential not obtained",
        "request failed",
    ] {
        assert!(stderr.contains(event), "{event}");
    }
    said.push(("stderr", stderr));
    let stdout = front.proxy.stdout();
    assert!(stdout.lines().count() >= 2 * CALLS.len());
    said.push(("stdout", stdout));
    for file in walk(&front.dir().join("state")) {
        said.push((
            "state",
            String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned(),
        ));
    }
    for (place, text) in said {
        for secret in &secrets {
            let found = text.find(secret.as_str());
            // The line before it says who said it; the secret itself is not repeated here.
            let context = found.map(|at| text[..at].lines().last().unwrap_or_default().to_owned());
            assert_eq!(context, None, "in {place}");
        }
    }
}

/// Logins that work, that are refused, that fail, that are renewed.
async fn provoke(front: &Front) {
    for target in CALLS {
        assert_eq!(front.answer(target).await.status, 200, "{target}");
    }
    for stand in [
        &front.stands.certn,
        &front.stands.venafi,
        &front.stands.maxmd,
    ] {
        stand.revoke_all();
    }
    for target in CALLS {
        assert_eq!(front.answer(target).await.status, 200, "{target}");
    }
    front.stands.certn.fail_next(1, StatusCode::BAD_REQUEST);
    front
        .stands
        .sectigo_auth
        .fail_next(2, StatusCode::BAD_GATEWAY);
    front
        .stands
        .maxmd_auth
        .fail_next(1, StatusCode::UNAUTHORIZED);
    for vendor in [
        "certn",
        "sectigo-oauth",
        "maxmd",
        "venafi",
        "certcenter-oauth",
    ] {
        assert_eq!(front.refresh(vendor).await, 202);
    }
    eventually("refused", || {
        (front.status("certn")["state"] == "failed").then_some(())
    });
    eventually("retried", || {
        (front.stands.sectigo_auth.token_calls().len() >= 4).then_some(())
    });
    let target = "/certn/hr/v1/applicants/?token=canary-of-the-query";
    let post = front.request(reqwest::Method::POST, target);
    let posted = answer(post.body("\"canary-of-the-body\"")).await;
    assert_eq!(posted.status, 201, "{posted:?}");
    // A connection that fails: its error names the peer.
    assert_eq!(front.answer("/by-query/x").await.status, 502);
}

const CALLS: [&str; 9] = [
    "/certcenter/rest/v1/Limit",
    "/certcenter-oauth/rest/v1/Limit",
    "/sectigo-oauth/api/ssl/v1/types",
    "/sectigo/api/ssl/v1/types",
    "/sectigo-private/private/api/ssl/v1/types",
    "/certn/hr/v1/applicants/",
    "/maxmd/api/certificate/query?page=1",
    "/venafi/vedsdk/certificates/",
    "/venafi-password/vedsdk/certificates/",
];

/// Everything secret that has been used, in the forms it has been used in.
fn secrets(front: &Front) -> Vec<String> {
    let logins = &front.stands.logins;
    let mut secrets = vec![
        "canary-of-the-query".to_owned(),
        "canary-of-the-body".to_owned(),
        crate::support::front::DECOY.to_owned(),
    ];
    for secret in [
        &logins.caller_key,
        &logins.certcenter_token,
        &logins.certcenter.secret,
        &logins.sectigo.secret,
        &logins.cert_manager_password,
        &logins.certn.secret,
        &logins.maxmd.secret,
        &logins.venafi_password,
        &logins.venafi_jwt,
    ] {
        // What comes first is the same in every encoding but base64.
        secrets.push(secret[..32].to_owned());
        secrets.push(STANDARD.encode(secret)[..40].to_owned());
    }
    for stand in front.stands.all() {
        for seen in stand.requests() {
            if let Some(value) = seen.field("authorization") {
                let (_, value) = value.split_once(' ').unwrap();
                secrets.push(value.to_owned());
            }
            for name in ["refresh_token", "code"] {
                let member = seen.json()[name].as_str().map(str::to_owned);
                secrets.extend(member.or_else(|| seen.form(name)));
            }
        }
    }
    secrets.sort_unstable();
    secrets.dedup();
    for secret in &secrets {
        assert!(
            secret.len() >= 18,
            "too short to be looked for: {}",
            secret.len()
        );
    }
    secrets
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_writes_no_core_and_open_key_files_are_warned_about() {
    use std::os::unix::fs::PermissionsExt;

    let plan = Plan::new().await.vendor("certn");
    let secrets = plan.dir().join("secrets");
    for entry in std::fs::read_dir(&secrets).unwrap() {
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(entry.unwrap().path(), open).unwrap();
    }
    let front = plan.start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", front.proxy.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let mut words = core.split_whitespace().skip(4);
    assert_eq!(
        (words.next(), words.next()),
        (Some("0"), Some("0")),
        "{core}"
    );
    let said = front.proxy.stderr();
    assert!(said.contains("can be read by every user"), "{said}");
}
