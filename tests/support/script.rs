//! A server whose every byte is the test's: a token server that misbehaves, an API that judges
//! tokens. One request per connection, so that nothing of one answer leaks into the next.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// What it was sent.
#[derive(Clone, Debug)]
pub struct Asked {
    /// When its last byte had come.
    pub at: Instant,
    /// Target, as it came.
    pub target: String,
    /// `Authorization`, whatever it is.
    pub authorization: Option<String>,
    /// The token in `Authorization: Bearer`.
    pub bearer: Option<String>,
    /// The body, transfer coding removed.
    pub body: Vec<u8>,
}

impl Asked {
    /// The member of this name in a form body or a JSON one.
    pub fn member(&self, name: &str) -> Option<String> {
        if let Ok(json) = serde_json::from_slice::<serde_json::Value>(&self.body) {
            return json[name].as_str().map(ToOwned::to_owned);
        }
        let mut pairs = url::form_urlencoded::parse(&self.body);
        let found = pairs.find(|(found, _)| found == name)?;
        Some(found.1.into_owned())
    }
}

/// What it answers.
pub enum Reply {
    /// These bytes, then the end of the connection.
    Bytes(Vec<u8>),
    /// The same, one at a time with a pause after each.
    Drip(Vec<u8>, Duration),
    /// Nothing, ever, on a connection that stays open.
    Silence,
    /// Nothing but the end of the connection.
    Close,
}

impl Reply {
    /// A complete answer; `fields` end in CR LF each.
    pub fn whole(status: &str, fields: &str, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let length = body.len();
        let mut bytes =
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{fields}\r\n").into_bytes();
        bytes.extend_from_slice(body);
        Self::Bytes(bytes)
    }

    /// 200 with this JSON.
    pub fn json(body: impl AsRef<str>) -> Self {
        let kind = "Content-Type: application/json\r\n";
        Self::whole("200 OK", kind, body.as_ref())
    }
}

type Answering = Pin<Box<dyn Future<Output = Reply> + Send>>;
type Script = Arc<dyn Fn(Asked) -> Answering + Send + Sync>;

/// The server; gone when dropped.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    accepting: AbortHandle,
}

impl Server {
    /// Answers each request as `script` says.
    pub async fn start<F, A>(script: F) -> Self
    where
        F: Fn(Asked) -> A + Send + Sync + 'static,
        A: Future<Output = Reply> + Send + 'static,
    {
        Self::at(TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
    }

    /// The same, at a listener of the caller's.
    pub fn at<F, A>(listener: TcpListener, script: F) -> Self
    where
        F: Fn(Asked) -> A + Send + Sync + 'static,
        A: Future<Output = Reply> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let script: Script = Arc::new(move |asked| Box::pin(script(asked)));
        let sink = asked.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, script.clone(), sink.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            asked,
            accepting: accepting.abort_handle(),
        }
    }

    /// `http://ADDRESS` and this path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Everything it was sent so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The same, for one target.
    pub fn asked_at(&self, target: &str) -> Vec<Asked> {
        let asked = self.asked();
        let here = asked.into_iter().filter(|asked| asked.target == target);
        here.collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut stream: TcpStream, script: Script, sink: Arc<Mutex<Vec<Asked>>>) {
    let Some(asked) = read(&mut stream).await else {
        return;
    };
    sink.lock().unwrap().push(asked.clone());
    // Whoever stopped listening is what some tests want.
    match script(asked).await {
        Reply::Bytes(bytes) => {
            let _ = stream.write_all(&bytes).await;
        }
        Reply::Drip(bytes, pause) => {
            for byte in bytes {
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        }
        Reply::Silence => {
            let mut rest = [0; 64];
            while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
        }
        Reply::Close => return,
    }
    let _ = stream.shutdown().await;
    // Closing on unread bytes would take the answer back.
    let mut rest = [0; 1024];
    let draining = async { while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {} };
    let _ = tokio::time::timeout(Duration::from_secs(2), draining).await;
}

/// One request; `None` when it breaks off.
async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut rest = bytes.split_off(head_end + 4);
    let field = |name: &str| {
        head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found
                .eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let mut body = Vec::new();
    if let Some(length) = field("content-length") {
        let length: usize = length.parse().ok()?;
        while rest.len() < length {
            if stream.read_buf(&mut rest).await.ok()? == 0 {
                return None;
            }
        }
        body = rest;
        body.truncate(length);
    } else if field("transfer-encoding").is_some() {
        loop {
            let line_end = loop {
                if let Some(end) = find(&rest, b"\r\n") {
                    break end;
                }
                if stream.read_buf(&mut rest).await.ok()? == 0 {
                    return None;
                }
            };
            let size = String::from_utf8_lossy(&rest[..line_end]).into_owned();
            let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
            while rest.len() < line_end + 2 + size + 2 {
                if stream.read_buf(&mut rest).await.ok()? == 0 {
                    return None;
                }
            }
            body.extend_from_slice(&rest[line_end + 2..line_end + 2 + size]);
            rest.drain(..line_end + 2 + size + 2);
            if size == 0 {
                break;
            }
        }
    }
    let mut start = head.lines().next()?.split(' ');
    Some(Asked {
        at: Instant::now(),
        target: start.nth(1)?.to_owned(),
        authorization: field("authorization"),
        bearer: field("authorization")
            .and_then(|value| value.strip_prefix("Bearer ").map(ToOwned::to_owned)),
        body,
    })
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
