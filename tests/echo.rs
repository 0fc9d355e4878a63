//! Our own credential never comes back to a caller, whatever a vendor repeats.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder};

use crate::support::script::{Reply, Server};
use crate::support::world::World;
use crate::support::{Proxy, eventually, exchange_bytes, status_of};

const TOKEN: &str = "the+token/of=ours-0123456789";

/// The vendor `v`, with [`TOKEN`] in its credential.
async fn start(more: &str) -> World {
    World::with_vendor(&format!("    {more}\n")).start().await
}

/// How often the credential was masked.
fn redacted(world: &World) -> String {
    world.metric("countersign_echo_redacted_total{vendor=\"v\"} ")
}

fn bearer() -> String {
    format!("auth: {{ bearer: {{ token: {{ value: \"{TOKEN}\" }} }} }}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_credential_is_masked_in_bodies_and_fields_at_its_length() {
    let world = start(&bearer()).await;
    let stars = "*".repeat(TOKEN.len());

    let body = world.get("/v/x?echo=Authorization");
    assert!(body.ends_with(&format!("\r\n\r\nBearer {stars}")), "{body}");
    let field = world.get("/v/x?into=X-You-Sent:Authorization&header=X-You-Sent:two&body=ok");
    assert!(
        field.contains(&format!(
            "X-You-Sent: Bearer {stars}\r\nX-You-Sent: two\r\n"
        )),
        "{field}"
    );
    assert!(field.ends_with("\r\n\r\nok"), "{field}");
    let location = world.get(&format!(
        "/v/x?body=ok&status=302&reason={}&header=Location:/next?t={}",
        TOKEN.replace('+', "%2B"),
        TOKEN
            .replace('+', "%252B")
            .replace('/', "%252f")
            .replace('=', "%253D")
    ));
    assert!(
        location.starts_with(&format!("HTTP/1.1 302 {stars}\r\n")),
        "{location}"
    );
    assert!(
        location.contains("Location: /v/next?t=******"),
        "{location}"
    );
    assert!(!location.contains("0123456789"), "{location}");
    assert_eq!(redacted(&world), "4");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_halves_of_basic_are_masked() {
    let world = start(&format!(
        "auth: {{ basic: {{ username: someone, password: {{ value: \"{TOKEN}\" }} }} }}"
    ))
    .await;
    let echoed = world.get("/v/x?echo=Authorization");
    let (_, body) = echoed.split_once("\r\n\r\n").unwrap();
    assert_eq!(body.trim_end_matches('*'), "Basic ", "{echoed}");
    let plain = world.get(&format!("/v/x?body=someone:{}", TOKEN.replace('+', "%2B")));
    let (_, body) = plain.split_once("\r\n\r\n").unwrap();
    assert_eq!(body.trim_end_matches('*'), "", "{plain}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_secret_is_not_masked() {
    let world = start(
        "auth: { headers: { login: somebody, password: { value: hunter-22 }, customerUri: our-corp } }",
    )
    .await;
    assert!(world.get("/v/x?echo=login").ends_with("somebody"));
    assert!(world.get("/v/x?echo=customerUri").ends_with("our-corp"));
    assert!(
        world
            .get("/v/x?echo=password")
            .ends_with("\r\n\r\n*********")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_answer_that_repeats_the_credential_is_broken_off() {
    let world = start(&bearer()).await;
    let get = |query: &str| {
        let head =
            format!("GET /v/x?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = exchange_bytes(world.proxy.data, head.as_bytes());
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let (head, body) = answer.split_at(end.unwrap() + 4);
        (String::from_utf8_lossy(head).into_owned(), body.to_vec())
    };
    let (head, body) = get("size=300000&code=gzip");
    assert_eq!(status_of(&head), 200, "{head}");
    let mut read = Vec::new();
    GzDecoder::new(&body[..]).read_to_end(&mut read).unwrap();
    assert_eq!(read.len(), 300_000);

    // Begun already when it is found: cut.
    let (head, body) = get("size=3000000&echo=Authorization&code=gzip");
    assert_eq!(status_of(&head), 200, "{head}");
    let mut read = Vec::new();
    assert!(GzDecoder::new(&body[..]).read_to_end(&mut read).is_err());
    assert!(!read.ends_with(b"Bearer the+token"), "{}", read.len());

    // Found before anything was sent: an answer of our own.
    let (head, body) = get("echo=Authorization&code=gzip");
    assert_eq!(status_of(&head), 502, "{head}");
    let body = String::from_utf8_lossy(&body);
    assert!(body.contains("\"reason\":\"credential_echoed\""), "{body}");
    assert_eq!(redacted(&world), "2");
}

/// The proxy before a vendor of the test's, with [`TOKEN`] as its credential.
async fn before(vendor: &Server) -> (Proxy, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]\nadmin: {{ bind: 127.0.0.1:0 }}\nvendors:\n  v:\n    upstream: {}\n    allow_plaintext: true\n    {}\n",
        vendor.url(""),
        bearer()
    );
    let directory = dir.path().to_owned();
    let proxy = tokio::task::spawn_blocking(move || Proxy::start(&directory, &yaml))
        .await
        .unwrap();
    (proxy, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_decompresses_to_far_too_much_is_broken_off_and_one_of_like_rows_passes() {
    const BROTLI: &str = "Content-Encoding: br\r\n";
    const GZIP: &str = "Content-Encoding: gzip\r\n";
    let gzip = |text: &mut dyn Read| {
        let mut out = Vec::new();
        let mut encoder = GzEncoder::new(text, Compression::best());
        encoder.read_to_end(&mut out).unwrap();
        out
    };
    let bomb = gzip(&mut std::io::repeat(b' ').take(256 << 20));
    let rows = "{\"state\":\"issued\"},\n".repeat(1 << 19);
    let rows = gzip(&mut rows.as_bytes());
    let mut brotli = Vec::new();
    let spaces = std::io::repeat(b' ').take(256 << 20);
    brotli::CompressorReader::new(spaces, 1 << 16, 5, 22)
        .read_to_end(&mut brotli)
        .unwrap();
    assert!(brotli.len() < 10_000, "{}", brotli.len());
    let vendor = Server::start(move |asked| {
        let reply = match asked.target.as_str() {
            "/bomb" => Reply::whole("200 OK", GZIP, &bomb),
            "/brotli" => Reply::whole("200 OK", BROTLI, &brotli),
            _ => Reply::whole("200 OK", GZIP, &rows),
        };
        async { reply }
    })
    .await;
    let (proxy, _dir) = before(&vendor).await;
    for target in ["bomb", "brotli"] {
        let answer = proxy.raw(format!(
            "GET /v/{target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ));
        assert_eq!(status_of(&answer), 502, "{answer}");
        assert!(answer.contains("\"credential_echoed\""), "{answer}");
    }
    eventually("said why, twice", || {
        let said = proxy.stderr();
        let why = "so much that it could not be searched for our credential";
        (said.matches(why).count() == 2).then_some(())
    });
    let request = b"GET /v/rows HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = exchange_bytes(proxy.data, request);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let mut read = Vec::new();
    let body = &answer[end.unwrap() + 4..];
    GzDecoder::new(body).read_to_end(&mut read).unwrap();
    assert_eq!(read.len(), 20 << 19);
    // Nothing was masked.
    let metrics = proxy.admin("/metrics").1;
    assert!(metrics.contains("countersign_echo_redacted_total{vendor=\"v\"} 0\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_shows_the_credential_as_html_shows_a_mask() {
    let vendor = Server::start(|asked| {
        let token = asked.bearer.unwrap();
        assert_eq!(token, TOKEN);
        let named = token
            .replace('+', "&plus;")
            .replace('/', "&sol;")
            .replace('=', "&equals;");
        let dotnet = token.replace('+', "&#x2B;");
        let hexadecimal = token
            .replace('+', "&#x2b;")
            .replace('/', "&#x2F;")
            .replace('=', "&#x3D;")
            .replace('-', "&#X2d;");
        let decimal = token.replace('/', "&#47;").replace('=', "&#061;");
        let page = format!("<p>{named}</p><p>{dotnet}</p><p>{hexadecimal}</p><p>{decimal}</p>");
        async { Reply::whole("200 OK", "Content-Type: text/html\r\n", page) }
    })
    .await;
    let (proxy, _dir) = before(&vendor).await;
    let answer = proxy.raw("GET /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let (_, page) = answer.split_once("\r\n\r\n").unwrap();
    let left: String = page.chars().filter(|one| *one != '*').collect();
    assert_eq!(left, "<p></p>".repeat(4), "{page}");
}

/// A login page that is told where to return to, as so many are.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_parameter_is_masked_as_it_was_sent_too() {
    let vendor = Server::start(async |asked| {
        let next: String = url::form_urlencoded::byte_serialize(asked.target.as_bytes()).collect();
        let again = STANDARD.encode(format!("{} ", asked.target));
        let location = format!("Location: /login?next={next}\r\n");
        Reply::whole("302 Found", &location, format!("{next} {again}"))
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]\nadmin: {{ bind: 127.0.0.1:0 }}\nvendors:\n  v:\n    upstream: {}\n    allow_plaintext: true\n    auth: {{ query: {{ apikey: {{ value: \"{TOKEN}\" }} }} }}\n",
        vendor.url("")
    );
    let proxy = Proxy::start(dir.path(), &yaml);
    let answer = proxy.raw("GET /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(status_of(&answer), 302, "{answer}");
    let sent = &vendor.asked()[0].target;
    assert!(
        sent.ends_with("the%2Btoken%2Fof%3Dours-0123456789"),
        "{sent}"
    );
    assert!(!answer.contains("ours-0123456789"), "{answer}");
    let body = answer.split(' ').next_back().unwrap();
    let decoded = STANDARD.decode(body.replace('*', "A")).unwrap();
    let decoded = String::from_utf8_lossy(&decoded);
    assert!(decoded.starts_with("/x?apikey="), "{decoded}");
    assert!(!decoded.contains("0123456789"), "{decoded}");
}

#[tokio::test(flavor = "multi_thread")]
async fn masking_can_be_turned_off() {
    let world = start(&format!("{}\n    redact_echo: false", bearer())).await;
    assert!(world.get("/v/x?echo=Authorization").ends_with(TOKEN));
}
