//! Updates of the page as server-sent events: the parts that have changed, every two seconds while
//! a page is open. Without an open page nothing is rendered.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::PageData;

/// Limit of open pages; further ones get 503. Each costs a connection, and all together one
/// rendering every two seconds.
const MAX_PAGES: usize = 32;

/// Interval between updates.
const INTERVAL: Duration = Duration::from_secs(2);

/// Interval between heartbeats. A page without events for longer takes the connection for dead, and
/// so do proxies in between.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Time limit for a client that reads nothing: its slot is freed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The open pages.
pub(in crate::server) struct Events {
    slots: Arc<Semaphore>,
    /// The newest rendering, shared by all pages that need one within [`INTERVAL`].
    newest: Mutex<Option<(Instant, Arc<Rendering>)>>,
}

/// All parts that can change, rendered at one moment.
struct Rendering {
    title: String,
    draining: bool,
    /// Ids of the vendors' parts, in the order of the page.
    order: Vec<String>,
    parts: Vec<(String, String)>,
}

impl Events {
    pub(in crate::server) fn new() -> Self {
        Self {
            slots: Arc::new(Semaphore::new(MAX_PAGES)),
            newest: Mutex::new(None),
        }
    }

    /// Returns a stream of updates from `data_now`, until the client disconnects or a drain begins.
    pub(in crate::server) fn stream(
        self: &Arc<Self>,
        data_now: impl Fn() -> PageData + Send + 'static,
    ) -> Response {
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            let text = "too many status pages are open; this one is not updated\n";
            return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
        };
        // Capacity one: updates do not pile up for a slow client.
        let (sender, receiver) = mpsc::channel(1);
        let events = self.clone();
        tokio::spawn(async move {
            events.send_updates(data_now, sender).await;
            drop(slot);
        });
        let kind = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        (kind, Body::new(Stream(receiver))).into_response()
    }

    async fn send_updates(
        self: Arc<Self>,
        data_now: impl Fn() -> PageData,
        to: mpsc::Sender<Bytes>,
    ) {
        let mut sent = SentParts::default();
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = to.closed() => return,
            }
            let rendering = self.rendering(&data_now);
            let mut text = sent
                .changes(&rendering)
                .map(|changes| format!("data: {changes}\n\n"));
            if rendering.draining {
                text.get_or_insert_default()
                    .push_str("event: end\ndata: draining\n\n");
            } else if text.is_none() && last.elapsed() >= HEARTBEAT {
                text = Some(": still here\nevent: beat\ndata: \n\n".to_owned());
            }
            if let Some(text) = text {
                last = Instant::now();
                // Also ends when the client stops reading on an open connection.
                if to.send_timeout(text.into(), WRITE_TIMEOUT).await.is_err() {
                    return;
                }
            }
            if rendering.draining {
                return;
            }
        }
    }

    fn rendering(&self, data_now: &impl Fn() -> PageData) -> Arc<Rendering> {
        let mut newest = self.newest.lock();
        if let Some((at, rendering)) = &*newest
            && at.elapsed() < INTERVAL / 2
        {
            return rendering.clone();
        }
        let data = data_now();
        let rendering = Arc::new(Rendering {
            title: data.title(),
            draining: data.draining,
            order: data.vendors.iter().map(super::row::Row::id).collect(),
            parts: data.parts(),
        });
        *newest = Some((Instant::now(), rendering.clone()));
        rendering
    }
}

/// The parts that one page has received.
#[derive(Default)]
struct SentParts {
    order: Vec<String>,
    parts: HashMap<String, String>,
}

impl SentParts {
    /// Returns the changes since the last call, as JSON on one line; `None` if there are none.
    fn changes(&mut self, now: &Rendering) -> Option<Value> {
        let changed: serde_json::Map<String, Value> = now
            .parts
            .iter()
            .filter(|(id, html)| self.parts.get(id) != Some(html))
            .map(|(id, html)| (id.clone(), html.clone().into()))
            .collect();
        if changed.is_empty() && self.order == now.order {
            return None;
        }
        self.order.clone_from(&now.order);
        self.parts = now.parts.iter().cloned().collect();
        Some(json!({ "title": now.title, "order": now.order, "parts": changed }))
    }
}

/// The body of the response.
struct Stream(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.poll_recv(context);
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendering(parts: &[(&str, &str)]) -> Rendering {
        let parts = parts
            .iter()
            .map(|(id, html)| ((*id).to_owned(), (*html).to_owned()));
        Rendering {
            title: "t".into(),
            draining: false,
            order: vec!["a".into(), "b".into()],
            parts: parts.collect(),
        }
    }

    #[test]
    fn a_page_is_told_only_what_has_changed() {
        let mut sent = SentParts::default();
        let first = sent
            .changes(&rendering(&[("a", "1"), ("b", "\n2")]))
            .unwrap();
        assert_eq!(first["parts"], json!({"a": "1", "b": "\n2"}));
        assert!(!first.to_string().contains('\n'), "an event is one line");
        assert!(
            sent.changes(&rendering(&[("a", "1"), ("b", "\n2")]))
                .is_none()
        );
        let next = sent.changes(&rendering(&[("a", "1"), ("b", "3")])).unwrap();
        assert_eq!(next["parts"], json!({"b": "3"}));
        let mut moved = rendering(&[("a", "1"), ("b", "3")]);
        moved.order.reverse();
        let next = sent.changes(&moved).unwrap();
        assert_eq!(next["order"], json!(["b", "a"]));
    }
}
