//! Trace context that passes, and spans for a collector: a small one that keeps what it is sent.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use serde_json::Value;

use crate::support::front::{DECOY, Front, Plan, answer};
use crate::support::script::{Reply, Server};
use crate::support::{countersign, eventually, signal};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const COLLECTORS_KEY: &str = "canary-for-the-collector-alone";
const QUERY: &str = "canary-in-the-query";

/// Takes spans; gone when dropped.
struct Collector {
    address: SocketAddr,
    sent: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    serving: tokio::task::AbortHandle,
}

impl Collector {
    async fn start() -> Self {
        let sent: Arc<Mutex<Vec<_>>> = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let take = |State(sent): State<Arc<Mutex<Vec<_>>>>, headers: HeaderMap, body: Bytes| async move {
            sent.lock().unwrap().push((headers, body));
        };
        let app = Router::new()
            .route("/v1/traces", post(take))
            .with_state(sent.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await });
        Self {
            address,
            sent,
            serving: serving.abort_handle(),
        }
    }

    fn spans(&self) -> Vec<Span> {
        let sent = self.sent.lock().unwrap();
        let requests = sent
            .iter()
            .map(|(_, body)| ExportTraceServiceRequest::decode(body.clone()).unwrap());
        requests
            .flat_map(|request| request.resource_spans)
            .flat_map(|group| {
                let resource = attributes(group.resource.unwrap().attributes);
                let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans
                    .map(|span| Span {
                        trace: hex::encode(span.trace_id),
                        id: hex::encode(span.span_id),
                        parent: hex::encode(span.parent_span_id),
                        state: span.trace_state,
                        kind: SpanKind::try_from(span.kind).unwrap(),
                        failed: span.status.is_some_and(|s| s.code() == StatusCode::Error),
                        took: span.end_time_unix_nano - span.start_time_unix_nano,
                        name: span.name,
                        attributes: attributes(span.attributes),
                        resource: resource.clone(),
                    })
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// The first span for which this holds, as soon as there is one.
    fn span(&self, what: &str, of: impl Fn(&Span) -> bool) -> Span {
        eventually(what, || self.spans().into_iter().find(&of))
    }

    /// The request's span, by the `X-Request-Id` it was sent with.
    fn request(&self, id: &str) -> Span {
        self.span(id, |span| span.text("countersign.request_id") == id)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Clone, Debug)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    state: String,
    kind: SpanKind,
    failed: bool,
    took: u64,
    name: String,
    attributes: BTreeMap<String, String>,
    resource: BTreeMap<String, String>,
}

impl Span {
    /// An attribute as text; empty when there is none.
    fn text(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", |value| value)
    }
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: AnyValue| {
        if let Some(Any::StringValue(text)) = value.value {
            return text;
        }
        let Some(Any::IntValue(number)) = value.value else {
            panic!("an attribute of another kind: {value:?}");
        };
        number.to_string()
    };
    pairs
        .into_iter()
        .map(|pair| (pair.key, text(pair.value.unwrap())))
        .collect()
}

/// One vendor, and spans for a collector at this address, sent within `delay` milliseconds.
async fn traced(address: SocketAddr, delay: &'static str) -> Plan {
    // Once for each test: the environment of a process is set once.
    let url = Box::leak(format!("http://{address}").into_boxed_str());
    Plan::new()
        .await
        .vendor("certn")
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        .environment("OTEL_BSP_SCHEDULE_DELAY", delay)
}

async fn call(front: &Front, id: &str, fields: &[(&str, &str)]) -> u16 {
    let path = format!("/certn/hr/v1/applicants/?q={QUERY}");
    let mut request = front.get(&path).header("X-Request-Id", id);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    answer(request).await.status
}

/// Of the request line with this id.
fn line(front: &Front, id: &str) -> Value {
    eventually(id, || {
        let said = front.proxy.stdout();
        let mut lines = said
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| line["request_id"] == id)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_goes_on_through_our_span_to_the_vendor() {
    let collector = Collector::start().await;
    let front = traced(collector.address, "50").await.start();
    let theirs = format!("00-{TRACE}-{SPAN}-01");

    let state = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7";
    let fields = [("traceparent", &*theirs), ("tracestate", state)];
    assert_eq!(call(&front, "continued", &fields).await, 200);

    let span = collector.request("continued");
    assert_eq!((&*span.trace, &*span.parent), (TRACE, SPAN));
    assert_eq!(span.state, state);
    assert_eq!(line(&front, "continued")["trace_id"], TRACE);
    let calls = front.mocks.certn.api_calls();
    let seen = calls.last().unwrap();
    let ours = format!("00-{TRACE}-{}-01", span.id);
    assert_eq!(seen.field("traceparent"), Some(&*ours));
    assert_eq!(seen.field("tracestate"), Some(state));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_trace_context_begins_a_trace_of_its_own() {
    let collector = Collector::start().await;
    let front = traced(collector.address, "50").await.start();
    let good = format!("00-{TRACE}-{SPAN}-01");
    let upper = good.to_uppercase();
    let cases: [(&str, &[(&str, &str)]); 4] = [
        ("none", &[]),
        ("upper", &[("traceparent", &upper), ("tracestate", "a=b")]),
        ("long", &[("traceparent", &format!("{good}-1"))]),
        ("twice", &[("traceparent", &good), ("traceparent", &good)]),
    ];
    for (id, fields) in cases {
        assert_eq!(call(&front, id, fields).await, 200);

        let span = collector.request(id);
        assert_ne!(span.trace, TRACE, "{id}");
        assert_eq!(span.parent, "", "{id}");
        assert_eq!(line(&front, id)["trace_id"], *span.trace, "{id}");
        let calls = front.mocks.certn.api_calls();
        let seen = calls.last().unwrap();
        let ours = format!("00-{}-{}-01", span.trace, span.id);
        assert_eq!(seen.field("traceparent"), Some(&*ours), "{id}");
        let fields = seen.fields.iter();
        let found = fields.filter(|(name, _)| name.eq_ignore_ascii_case("traceparent"));
        assert_eq!(found.count(), 1, "{id}");
        assert_eq!(seen.field("tracestate"), None, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_does_not_record_its_trace_is_not_recorded() {
    let collector = Collector::start().await;
    let front = traced(collector.address, "50").await.start();
    let theirs = format!("00-{TRACE}-{SPAN}-00");

    assert_eq!(
        call(&front, "silent", &[("traceparent", &theirs)]).await,
        200
    );
    assert_eq!(call(&front, "loud", &[]).await, 200);

    // The later of the two, in the same queue.
    collector.request("loud");
    assert!(collector.spans().iter().all(|span| span.trace != TRACE));
    let calls = front.mocks.certn.api_calls();
    let sent = calls[0].field("traceparent").unwrap();
    assert!(
        sent.starts_with(&format!("00-{TRACE}-")) && sent.ends_with("-00"),
        "{sent}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_say_what_the_line_says_and_no_secret() {
    let collector = Collector::start().await;
    let front = traced(collector.address, "50")
        .await
        .environment("OTEL_SERVICE_NAME", "front-door")
        .environment(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "x-collector-key=canary-for-the-collector-alone",
        )
        .start();

    assert_eq!(call(&front, "passed", &[]).await, 200);
    let refused = front.get("/certn/token/").header("X-Request-Id", "refused");
    assert_eq!(answer(refused).await.status, 403);
    front
        .mocks
        .certn
        .fail_next(1, http::StatusCode::BAD_REQUEST);
    assert_eq!(front.refresh("certn").await, 202);

    let passed = collector.request("passed");
    assert_eq!(
        (&*passed.name, passed.kind),
        ("GET certn", SpanKind::Server)
    );
    assert!(!passed.failed && passed.took > 0);
    for (name, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/certn/hr/v1/applicants/"),
        ("url.scheme", "http"),
        ("server.address", "127.0.0.1"),
        ("client.address", "127.0.0.1"),
        ("http.response.status_code", "200"),
        ("error.type", ""),
        ("countersign.vendor", "certn"),
        ("countersign.caller", "app"),
        ("countersign.reason", ""),
        ("countersign.generation", "1"),
        ("countersign.rule", "*"),
        ("countersign.attempts", "1"),
    ] {
        assert_eq!(passed.text(name), value, "{name}");
    }
    assert_eq!(passed.resource["service.name"], "front-door");
    let refused = collector.request("refused");
    assert_eq!(refused.text("countersign.reason"), "refused_path");
    assert_eq!(refused.text("http.response.status_code"), "403");
    assert_eq!(refused.text("countersign.attempts"), "0");
    assert!(!refused.failed);

    let fetched = collector.span("renewed", |span| span.text("countersign.outcome") == "ok");
    assert_eq!(
        (&*fetched.name, fetched.kind),
        ("refresh certn", SpanKind::Client)
    );
    assert_eq!(fetched.text("countersign.vendor"), "certn");
    assert_eq!(fetched.text("countersign.generation"), "1");
    assert_eq!((&*fetched.parent, fetched.failed), ("", false));
    let failed = collector.span("failed", |span| span.failed);
    assert_eq!(failed.text("error.type"), "rejected");
    assert_eq!(failed.text("countersign.generation"), "");

    let sent = collector.sent.lock().unwrap();
    let token = front.mocks.certn.api_calls()[0]
        .bearer()
        .unwrap()
        .to_owned();
    let logins = &front.mocks.logins;
    for (headers, body) in &*sent {
        assert_eq!(headers["x-collector-key"], COLLECTORS_KEY);
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let body = String::from_utf8_lossy(body);
        for secret in [
            &*token,
            &logins.certn.secret,
            &logins.caller_key,
            DECOY,
            QUERY,
        ] {
            assert!(!body.contains(secret), "a secret among the spans");
        }
    }
    assert!(!front.proxy.stderr().contains(COLLECTORS_KEY));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_trace_context_passes_as_it_came() {
    let front = Plan::new().await.vendor("certn").start();
    let good = format!("00-{TRACE}-{SPAN}-01");
    for (id, sent, logged) in [
        ("good", &*good, Value::from(TRACE)),
        ("bad", "00-nothing", Value::Null),
    ] {
        let fields = [("traceparent", sent), ("tracestate", "a=b")];
        assert_eq!(call(&front, id, &fields).await, 200);

        assert_eq!(line(&front, id)["trace_id"], logged);
        let calls = front.mocks.certn.api_calls();
        let seen = calls.last().unwrap();
        assert_eq!(seen.field("traceparent"), Some(sent));
        assert_eq!(seen.field("tracestate"), Some("a=b"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_slow_or_away_costs_spans_and_no_request() {
    // One takes connections and says nothing, the other is not there.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let away = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [&silent, &away].map(|listener| listener.local_addr().unwrap());
    drop(away);
    for address in addresses {
        let mut front = traced(address, "10")
            .await
            .environment("OTEL_BSP_MAX_QUEUE_SIZE", "4")
            .start();

        for _ in 0..5 {
            for answer in front.burst(10, "/certn/hr/v1/applicants/").await {
                assert_eq!(answer.status, 200);
            }
        }
        eventually("complained", || {
            let said = front.proxy.stderr();
            said.contains("spans did not reach the collector")
                .then_some(())
        });
        signal(front.proxy.id(), "TERM");
        assert_eq!(front.proxy.ended(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_sent_before_the_process_ends() {
    let collector = Collector::start().await;
    let mut front = traced(collector.address, "3600000").await.start();
    assert_eq!(call(&front, "last", &[]).await, 200);

    signal(front.proxy.id(), "TERM");
    assert_eq!(front.proxy.ended(), Some(0));

    let spans = collector.spans();
    assert!(
        spans
            .iter()
            .any(|span| span.text("countersign.request_id") == "last")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_none_ends_the_process_with_1_and_is_not_repeated() {
    let plan = Plan::new().await.vendor("certn");
    std::fs::write(plan.dir().join("proxy.yaml"), plan.yaml()).unwrap();
    let output = countersign()
        .arg("serve")
        .current_dir(plan.dir())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "user:hunter2@collector")
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("OTEL_EXPORTER_OTLP_ENDPOINT is not the URL"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_in_the_collectors_url_is_sent_as_basic_and_said_nowhere() {
    let collector = Server::start(async |_| Reply::json("")).await;
    let url = format!(
        "http://us:canary%40pw@{}/otlp?key=canary",
        collector.address
    );
    let mut front = Plan::new()
        .await
        .vendor("certn")
        .environment(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            Box::leak(url.into_boxed_str()),
        )
        .environment("OTEL_BSP_SCHEDULE_DELAY", "50")
        .environment("RUST_LOG", "trace")
        .start();
    assert_eq!(call(&front, "basic", &[]).await, 200);
    let asked = eventually("spans", || collector.asked().into_iter().next());
    assert_eq!(asked.target, "/otlp/v1/traces?key=canary");
    // us:canary@pw
    assert_eq!(
        asked.authorization.as_deref(),
        Some("Basic dXM6Y2FuYXJ5QHB3")
    );
    signal(front.proxy.id(), "TERM");
    assert_eq!(front.proxy.ended(), Some(0));
    let stderr = front.proxy.stderr();
    for said in ["canary%40pw", "canary@pw", "dXM6Y2FuYXJ5QHB3"] {
        let lines: Vec<_> = stderr.lines().filter(|line| line.contains(said)).collect();
        assert!(lines.is_empty(), "{lines:#?}");
    }
}
