//! Spans of requests and of credential renewals, sent to a collector as OTLP over HTTP. Active only
//! if the environment specifies a collector, in the variables of OpenTelemetry; otherwise none of
//! this runs, and callers' trace context passes unchanged.
//!
//! A span is completed at its end, from the same data as the line of the access log. It goes into a
//! queue that never blocks: if the collector is slow or unavailable, spans are dropped and counted,
//! and requests are not affected.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{
    Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    SdkTracer, SdkTracerProvider, SpanData, SpanExporter as _, SpanProcessor,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use crate::endpoint::{self, InvalidUrl};
use crate::logs::Line;
use crate::outbound::Outbound;
use crate::tls::Roots;
use crate::wording::describe;

/// The tracer and its queue.
#[derive(Clone)]
pub struct Traces {
    tracer: SdkTracer,
    queue: mpsc::Sender<Message>,
}

enum Message {
    Ended(Box<SpanData>),
    Flush(oneshot::Sender<()>),
}

/// Time limit of one request to the collector.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Minimum interval between warnings of lost spans.
const WARN_INTERVAL: Duration = Duration::from_mins(1);
/// Limit of a collector's response, bytes.
const MAX_RESPONSE: usize = 64 * 1024;

impl Traces {
    /// Starts the sender that the environment specifies; `None` if it specifies none. Must be
    /// called inside a tokio runtime, on which the sender then runs.
    ///
    /// # Errors
    /// The variable that cannot be used, and the reason. Values are not repeated: they may hold
    /// secrets.
    pub fn from_environment() -> Result<Option<Self>, String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let either = |last: &str| {
            [
                format!("OTEL_EXPORTER_OTLP_TRACES_{last}"),
                format!("OTEL_EXPORTER_OTLP_{last}"),
            ]
            .into_iter()
            .find_map(|name| variable(&name).map(|value| (name, value)))
        };
        let Some((name, endpoint)) = either("ENDPOINT") else {
            return Ok(None);
        };
        let disabled = variable("OTEL_SDK_DISABLED");
        if disabled.is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none")
        {
            return Ok(None);
        }
        let url = endpoint::web_with_login(endpoint.trim()).map_err(|wrong| {
            if wrong == InvalidUrl::NotUrl {
                format!("{name} is not the URL of a collector, such as http://localhost:4318")
            } else {
                format!("{name} {wrong}; {}", wrong.hint())
            }
        })?;
        if either("PROTOCOL").is_some_and(|(_, protocol)| protocol != "http/protobuf") {
            tracing::warn!(
                "OTEL_EXPORTER_OTLP_PROTOCOL is ignored: spans are sent as http/protobuf, which \
                 collectors accept on port 4318"
            );
        }
        let certificate = either("CERTIFICATE");
        let collector = Collector::new(&url, certificate.as_ref().map(|(_, path)| &**path))?;
        let is_base_url = !name.contains("TRACES");
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(target(url.clone(), is_base_url))
            .with_http_client(collector)
            .with_protocol(Protocol::HttpBinary)
            .build()
            // The text of the error may repeat the endpoint, which may hold a password.
            .map_err(|_| {
                format!("OTEL_EXPORTER_OTLP_* cannot be used: {name} or the compression is invalid")
            })?;
        tracing::info!(
            host = url.host_str(),
            "sending spans of requests and renewals"
        );
        Ok(Some(Self::start(exporter, Bounds::from_environment())))
    }

    fn start(mut exporter: SpanExporter, bounds: Bounds) -> Self {
        let resource = resource();
        exporter.set_resource(&resource);
        let (queue, ended) = mpsc::channel(bounds.queue);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        tokio::spawn(async move { send(ended, &exporter, &lost, bounds).await });
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_span_processor(Queue {
                queue: queue.clone(),
                dropped,
            })
            .build();
        Self {
            tracer: provider.tracer(env!("CARGO_PKG_NAME")),
            queue,
        }
    }

    /// Starts the span of a request with these header fields. A valid `traceparent` is its parent;
    /// otherwise it begins a new trace (W3C Trace Context §4.3).
    #[must_use]
    pub fn start_span(&self, method: &str, headers: &HeaderMap) -> Box<RequestSpan> {
        let parent = Parent::of(headers);
        let context = parent.as_ref().map_or_else(Context::new, |parent| {
            Context::new().with_remote_span_context(parent.context(headers))
        });
        let builder = self
            .tracer
            .span_builder(known_method(method))
            .with_kind(SpanKind::Server)
            .with_start_time(SystemTime::now());
        let span = self.tracer.build_with_context(builder, &context);
        let ours = span.span_context();
        let (trace, id, flags) = (ours.trace_id(), ours.span_id(), ours.trace_flags());
        let text = format!("00-{trace}-{id}-{flags:02x}");
        Box::new(RequestSpan {
            trace_id: trace.to_string(),
            // Hexadecimal digits are always a valid value.
            traceparent: HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("")),
            begins_trace: parent.is_none(),
            span,
        })
    }

    /// Records one attempt to obtain `vendor`'s credential that has just ended. `generation`: the
    /// number of the new credential; `failure`: a word for the reason of a failure.
    pub fn record_refresh(
        &self,
        vendor: &str,
        took: Duration,
        generation: Option<u64>,
        failure: Option<&'static str>,
    ) {
        let ended = SystemTime::now();
        let mut attributes = vec![
            KeyValue::new("countersign.vendor", vendor.to_owned()),
            KeyValue::new("countersign.outcome", failure.unwrap_or("ok")),
        ];
        attributes.extend(generation.map(|one| KeyValue::new("countersign.generation", int(one))));
        attributes.extend(failure.map(|word| KeyValue::new("error.type", word)));
        let builder = self
            .tracer
            .span_builder(format!("refresh {vendor}"))
            .with_kind(SpanKind::Client)
            .with_start_time(ended.checked_sub(took).unwrap_or(ended))
            .with_attributes(attributes);
        let mut span = self.tracer.build_with_context(builder, &Context::new());
        if failure.is_some() {
            span.set_status(Status::error(""));
        }
        span.end_with_timestamp(ended);
    }

    /// Waits until every span that has ended so far is sent or lost, for `at_most`.
    pub async fn flush(&self, at_most: Duration) {
        let flushed = async {
            let (done, wait) = oneshot::channel();
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                // Fails only when the sender has ended: nothing is left to wait for.
                let _ = wait.await;
            }
        };
        if timeout(at_most, flushed).await.is_err() {
            tracing::warn!(
                "the collector is too slow or unavailable: the last spans were not sent"
            );
        }
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Traces")
    }
}

/// The span of a request in progress.
#[derive(Debug)]
pub struct RequestSpan {
    /// Trace id, 32 hexadecimal digits.
    pub trace_id: String,
    /// The `traceparent` for the vendor: this span is the parent of its spans.
    pub traceparent: HeaderValue,
    /// `true` if there was no valid `traceparent`, so that a `tracestate` has no meaning.
    pub begins_trace: bool,
    span: opentelemetry_sdk::trace::Span,
}

impl RequestSpan {
    /// Ends the span. `host`: the host that the caller addressed, without its port; `None`: not
    /// known to be valid.
    pub fn end(&mut self, line: &Line<'_>, scheme: &'static str, host: Option<&str>) {
        if !self.span.is_recording() {
            return;
        }
        let method = known_method(line.method);
        let text = |key, value: &str| KeyValue::new(key, value.to_owned());
        let mut attributes = vec![
            KeyValue::new("http.request.method", method),
            text("url.path", &String::from_utf8_lossy(line.path)),
            KeyValue::new("url.scheme", scheme),
            KeyValue::new("countersign.attempts", i64::from(line.attempts)),
            text("countersign.request_id", line.request_id),
        ];
        let client = line.client;
        attributes.extend(host.map(|host| text("server.address", host)));
        attributes.extend(client.map(|from| text("client.address", &from.ip().to_string())));
        attributes.extend(line.vendor.map(|name| text("countersign.vendor", name)));
        attributes.extend(line.caller.map(|name| text("countersign.caller", name)));
        attributes.extend(line.reason.map(|word| text("countersign.reason", word)));
        let generation = line.generation.map(int);
        attributes.extend(generation.map(|one| KeyValue::new("countersign.generation", one)));
        let rule = line.rule.map(str::to_owned);
        attributes.extend(rule.map(|one| KeyValue::new("countersign.rule", one)));
        if line.status == CLIENT_CLOSED_REQUEST {
            attributes.push(KeyValue::new("error.type", "caller_gone"));
        } else {
            let status = i64::from(line.status);
            attributes.push(KeyValue::new("http.response.status_code", status));
        }
        if line.status >= 500 {
            let status = line.status.to_string();
            attributes.push(text("error.type", line.reason.unwrap_or(&status)));
            self.span.set_status(Status::error(""));
        }
        if let Some(vendor) = line.vendor {
            self.span.update_name(format!("{method} {vendor}"));
        }
        self.span.set_attributes(attributes);
        self.span.end();
    }
}

/// Status in the access log when the caller disconnected before a response.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Returns the method by the semantic conventions: those of RFC 9110 and PATCH; all others are one.
fn known_method(method: &str) -> &'static str {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    let known = KNOWN.into_iter().find(|known| *known == method);
    known.unwrap_or("_OTHER")
}

fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Returns the trace id that the caller sent, 32 hexadecimal digits; `None` without a valid
/// `traceparent`.
#[must_use]
pub fn trace_id(headers: &HeaderMap) -> Option<&str> {
    Parent::of(headers).map(|parent| parent.trace_id)
}

/// A valid `traceparent` (W3C Trace Context §3.2).
struct Parent<'a> {
    trace_id: &'a str,
    span_id: &'a str,
    flags: u8,
}

impl<'a> Parent<'a> {
    fn of(headers: &'a HeaderMap) -> Option<Self> {
        let mut fields = headers.get_all("traceparent").iter();
        let (Some(field), None) = (fields.next(), fields.next()) else {
            return None;
        };
        let hex = |part: &&str, length: usize| {
            let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            part.len() == length && part.bytes().all(digit)
        };
        let some = |part: &&str| part.bytes().any(|byte| byte != b'0');
        let mut parts = field.to_str().ok()?.splitn(5, '-');
        let mut next = |length| parts.next().filter(|part| hex(part, length));
        let version = next(2).filter(|version| *version != "ff")?;
        let trace_id = next(32).filter(some)?;
        let span_id = next(16).filter(some)?;
        let flags = next(2)?;
        // Later versions may add fields, which are ignored.
        if version == "00" && parts.next().is_some() {
            return None;
        }
        Some(Self {
            trace_id,
            span_id,
            flags: u8::from_str_radix(flags, 16).ok()?,
        })
    }

    fn context(&self, headers: &HeaderMap) -> SpanContext {
        let states: Vec<_> = headers
            .get_all("tracestate")
            .iter()
            .filter_map(|state| state.to_str().ok())
            .collect();
        SpanContext::new(
            // Both have the right number of digits.
            TraceId::from_hex(self.trace_id).unwrap_or(TraceId::INVALID),
            SpanId::from_hex(self.span_id).unwrap_or(SpanId::INVALID),
            // The flags "sampled" and "random" (level 2); the others are undefined.
            TraceFlags::new(self.flags & 0b11),
            true,
            // The vendor gets the original; this copy is for the collector.
            states.join(",").parse::<TraceState>().unwrap_or_default(),
        )
    }
}

/// Limits of the queue, with the defaults of OpenTelemetry.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Limit of waiting spans.
    queue: usize,
    /// Limit of spans sent at once.
    batch: usize,
    /// Time for which a span waits for others.
    delay: Duration,
}

impl Bounds {
    fn from_environment() -> Self {
        let number = |name: &str, default: usize| {
            let value = std::env::var(name).ok().and_then(|text| text.parse().ok());
            value.filter(|value| *value > 0).unwrap_or(default)
        };
        let delay = number("OTEL_BSP_SCHEDULE_DELAY", 5000);
        Self {
            queue: number("OTEL_BSP_MAX_QUEUE_SIZE", 2048),
            batch: number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512),
            delay: Duration::from_millis(delay as u64),
        }
    }
}

/// Returns the resource: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, or our own name.
fn resource() -> Resource {
    let name = opentelemetry::Key::from_static_str("service.name");
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let found = Resource::builder().with_attribute(version.clone()).build();
    let named = found
        .get(&name)
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    if named {
        return found;
    }
    Resource::builder()
        .with_attribute(version)
        .with_service_name(env!("CARGO_PKG_NAME"))
        .build()
}

/// The span processor, which queues spans when they end, on the request path.
#[derive(Debug)]
struct Queue {
    queue: mpsc::Sender<Message>,
    dropped: Arc<AtomicU64>,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Message")
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled()
            && self.queue.try_send(Message::Ended(Box::new(span))).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends ended spans in batches until all senders are dropped.
async fn send(
    mut ended: mpsc::Receiver<Message>,
    exporter: &SpanExporter,
    dropped: &AtomicU64,
    bounds: Bounds,
) {
    let mut lost = 0;
    let mut warn_from = Instant::now();
    while let Some(first) = ended.recv().await {
        let deadline = Instant::now() + bounds.delay;
        let mut batch = Vec::new();
        let mut flushing = None;
        let mut message = Some(first);
        loop {
            match message {
                Some(Message::Ended(span)) => batch.push(*span),
                Some(Message::Flush(done)) => flushing = Some(done),
                None => break,
            }
            if flushing.is_some() || batch.len() >= bounds.batch {
                break;
            }
            message = timeout_at(deadline, ended.recv()).await.unwrap_or_default();
        }
        let count = batch.len() as u64;
        let mut cause = "the collector is too slow for their number".to_owned();
        if count > 0
            && let Err(error) = exporter.export(batch).await
        {
            lost += count;
            cause = describe(&error.to_string());
        }
        lost += dropped.swap(0, Ordering::Relaxed);
        if lost > 0 && (Instant::now() >= warn_from || flushing.is_some()) {
            tracing::warn!(lost, cause, "spans did not reach the collector");
            lost = 0;
            warn_from = Instant::now() + WARN_INTERVAL;
        }
        if let Some(done) = flushing {
            // The waiter may have stopped waiting.
            let _ = done.send(());
        }
    }
}

/// Returns the URL for spans: without user information, which goes into a header. A base URL for
/// all signals is completed with the path of this one (OTLP/HTTP, "Endpoint URLs").
fn target(mut url: Url, is_base_url: bool) -> String {
    // Both fail only for URLs that cannot have user information.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    if is_base_url && let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["v1", "traces"]);
    }
    url.into()
}

/// The HTTP client for the collector. It works as for other servers but follows no redirects, which
/// would send its key elsewhere.
#[derive(Debug)]
struct Collector {
    client: reqwest::Client,
    /// `Authorization`, if the URL has user information. Sensitive.
    authorization: Option<HeaderValue>,
}

impl Collector {
    fn new(url: &Url, certificate: Option<&str>) -> Result<Self, String> {
        let roots = match certificate {
            Some(path) => Roots::load(path.as_ref())
                .map_err(|cause| format!("OTEL_EXPORTER_OTLP_CERTIFICATE: {cause}"))?,
            None => Roots::system(),
        };
        let tls = match roots.client_config(None) {
            Ok(tls) => tls,
            // A bare container image has no roots at all, but plaintext still works.
            Err(_) if url.scheme() == "http" => rustls::ClientConfig::builder()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth(),
            Err(cause) => return Err(format!("OTEL_EXPORTER_OTLP_ENDPOINT: {cause}")),
        };
        let outbound = Outbound::new(None);
        outbound.via(url).map_err(|unusable| unusable.to_string())?;
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(REQUEST_TIMEOUT)
            .proxy(reqwest::Proxy::custom(move |url| outbound.url(url)))
            .tls_backend_preconfigured(tls)
            .build()
            .map_err(|cause| format!("OTEL_EXPORTER_OTLP_ENDPOINT: {}", cause.without_url()))?;
        Ok(Self {
            client,
            authorization: endpoint::authorization(url),
        })
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, HttpError> {
        let mut request = reqwest::Request::try_from(request)?;
        if let Some(authorization) = &self.authorization {
            // OTEL_EXPORTER_OTLP_HEADERS takes precedence.
            let fields = request.headers_mut();
            fields
                .entry(AUTHORIZATION)
                .or_insert_with(|| authorization.clone());
        }
        let mut received = self
            .client
            .execute(request)
            .await
            .map_err(reqwest::Error::without_url)?;
        let mut response = http::Response::builder().status(received.status());
        if let Some(headers) = response.headers_mut() {
            headers.clone_from(received.headers());
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = received
            .chunk()
            .await
            .map_err(reqwest::Error::without_url)?
        {
            if body.len() + chunk.len() > MAX_RESPONSE {
                break;
            }
            body.extend_from_slice(&chunk);
        }
        Ok(response.body(body.freeze())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn headers(traceparents: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in traceparents {
            headers.append("traceparent", value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_traceparent_is_taken_when_the_recommendation_says_it_is_one() {
        let good = format!("00-{TRACE}-{SPAN}-01");
        for valid in [
            good.clone(),
            format!("00-{TRACE}-{SPAN}-00"),
            format!("00-{TRACE}-{SPAN}-ff"),
            format!("01-{TRACE}-{SPAN}-01"),
            format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"),
        ] {
            assert_eq!(trace_id(&headers(&[&valid])), Some(TRACE), "{valid}");
        }
        for invalid in [
            String::new(),
            "00".into(),
            format!("00-{TRACE}"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("01-{TRACE}-{SPAN}-01more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-0x"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}0-{SPAN}-01"),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("{good},{good}"),
        ] {
            assert_eq!(trace_id(&headers(&[&invalid])), None, "{invalid}");
        }
        assert_eq!(trace_id(&headers(&[])), None);
        assert_eq!(trace_id(&headers(&[&good, &good])), None);
    }
}
