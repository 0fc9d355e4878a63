//! Listeners that outlive a process: inherited from a service manager or a predecessor, and passed
//! to a successor.
//!
//! Both processes hold the same sockets, so there is one queue of connections and none is lost
//! during the handover. The protocol is that of service managers (`LISTEN_FDS`,
//! `sd_listen_fds(3)`), no matter who starts the process. A successor reports that it is ready on
//! its standard input, which is a socket in that case.
//!
//! ```text
//! SIGUSR2 ─▶ old: starts its own program with its listeners ─▶ new: reads the configuration,
//!            keeps serving                                          obtains credentials, is ready
//!            takes no more connections, drains, exits ◀─ "ready" ── takes connections
//! ```

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use listenfd::ListenFd;
use tokio::io::AsyncReadExt;
use tokio::process::Child;

/// The listeners and the predecessor that a process was started with.
#[derive(Debug, Default)]
pub struct InheritedListeners {
    listeners: Vec<TcpListener>,
    predecessor: Option<Predecessor>,
}

/// The process that started this one to take its place.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

/// A process started by this one that is ready to replace it.
#[derive(Debug)]
pub struct Successor {
    /// Its process id.
    pub id: u32,
}

/// Variable that marks a successor in its environment.
const SUCCESSOR_VARIABLE: &str = "COUNTERSIGN_SUCCESSOR";
/// The first inherited descriptor (`sd_listen_fds(3)`).
const FIRST_FD: i32 = 3;
/// The message of a successor that is ready.
const READY_MESSAGE: &[u8] = b"ready\n";
/// Time limit for a successor to become ready. Every vendor's first token request ends within 30 s;
/// reading the configuration may take a while on top.
const READY_TIMEOUT: Duration = Duration::from_mins(1);

impl InheritedListeners {
    /// Returns no listeners and no predecessor.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Takes the listeners that the environment announces. Must be called while the process has
    /// only one thread, because the variables are removed from the environment.
    #[must_use]
    pub fn from_environment() -> Self {
        let mut announced = ListenFd::from_env();
        let mut listeners = Vec::new();
        for nth in 0..announced.len() {
            match announced.take_tcp_listener(nth) {
                Ok(listener) => listeners.extend(listener),
                Err(cause) => tracing::warn!(%cause, "an inherited socket cannot be used"),
            }
        }
        let is_successor = std::env::var_os(SUCCESSOR_VARIABLE).is_some();
        let predecessor = is_successor
            .then(|| std::io::stdin().as_fd().try_clone_to_owned().ok())
            .flatten()
            .map(|socket| Predecessor(UnixStream::from(socket)));
        Self {
            listeners,
            predecessor,
        }
    }

    /// Removes and returns the inherited listener for this address; with port 0, one with any port.
    pub(super) fn pick(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let nth = self.listeners.iter().position(|listener| {
            listener.local_addr().is_ok_and(|bound| {
                bound.ip() == address.ip()
                    && (address.port() == 0 || bound.port() == address.port())
            })
        })?;
        Some(self.listeners.remove(nth))
    }

    /// Logs and closes the listeners that were not picked.
    pub(super) fn close_unused(&mut self) {
        for listener in self.listeners.drain(..) {
            let address = listener
                .local_addr()
                .map_or_else(|cause| cause.to_string(), |at| at.to_string());
            tracing::warn!(
                address,
                "an inherited socket is not among the configured listeners: closed"
            );
        }
    }

    /// Returns the process that this one is to replace.
    pub fn predecessor(&mut self) -> Option<Predecessor> {
        self.predecessor.take()
    }
}

impl Predecessor {
    /// Tells the predecessor that this process serves, so that it stops.
    pub fn notify_ready(mut self) {
        // Fails when the predecessor is gone already.
        let _ = self.0.write_all(READY_MESSAGE);
    }
}

/// Starts this program again, as it is on disk now, with the same arguments and these listeners,
/// and waits until it is ready to serve.
///
/// # Errors
/// The reason for the log. Nothing has changed for this process, and the other one has ended.
pub(super) async fn start_successor(listeners: &[TcpListener]) -> Result<Successor, String> {
    if std::process::id() == 1 {
        return Err("this is the first process of a container, which ends with it: replace the container instead".into());
    }
    let (mut child, ours) = spawn(listeners).map_err(|cause| cause.to_string())?;
    let id = child.id().unwrap_or_default();
    tracing::info!(pid = id, "a successor was started with our listeners");
    match tokio::time::timeout(READY_TIMEOUT, receive_ready(ours)).await {
        Ok(true) => {
            // The successor must outlive this process.
            std::mem::forget(child);
            Ok(Successor { id })
        }
        // Dropping the child kills it, so that no half-started process is left.
        Ok(false) => {
            let left = tokio::time::timeout(Duration::from_secs(1), child.wait()).await;
            Err(match left {
                Ok(Ok(status)) => format!("it ended with {status}; its own log says why"),
                Ok(Err(_)) | Err(_) => "it closed the connection to this process".into(),
            })
        }
        Err(_) => Err(format!(
            "it was not ready within {}",
            humantime::format_duration(READY_TIMEOUT)
        )),
    }
}

fn spawn(listeners: &[TcpListener]) -> std::io::Result<(Child, tokio::net::UnixStream)> {
    let mut arguments = std::env::args_os();
    // The path of the running file would be wrong after a symbolic link was changed.
    let program = arguments.next().unwrap_or_else(|| "countersign".into());
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mappings = (FIRST_FD..)
        .zip(listeners)
        .map(|(child_fd, listener)| {
            let parent_fd = OwnedFd::from(listener.try_clone()?);
            Ok(FdMapping {
                parent_fd,
                child_fd,
            })
        })
        .collect::<std::io::Result<Vec<_>>>()?;
    let mut command = std::process::Command::new(program);
    command
        .args(arguments)
        .env("LISTEN_FDS", listeners.len().to_string())
        // Its process id is unknown before it runs.
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDNAMES")
        .env(SUCCESSOR_VARIABLE, "1")
        .stdin(Stdio::from(OwnedFd::from(theirs)));
    command
        .fd_mappings(mappings)
        .map_err(std::io::Error::other)?;
    // Dropping the command closes our copies of the descriptors.
    let child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, tokio::net::UnixStream::from_std(ours)?))
}

/// Returns `true` when the other side reports that it is ready, `false` when it ends before that.
async fn receive_ready(mut socket: tokio::net::UnixStream) -> bool {
    let mut said = [0; READY_MESSAGE.len()];
    socket.read_exact(&mut said).await.is_ok() && said == READY_MESSAGE
}

/// Notifies the service manager, if there is one, that this process serves (`Type=notify`).
pub fn notify_ready() {
    notify(&[sd_notify::NotifyState::Ready]);
}

/// Notifies the service manager that this process is about to end.
pub fn notify_stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

/// Notifies the service manager of the process that replaces this one.
pub fn notify_main_pid(by: &Successor) {
    notify(&[sd_notify::NotifyState::MainPid(by.id)]);
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(cause) = sd_notify::notify(states) {
        tracing::warn!(%cause, "cannot notify the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inherited_listener_is_found_by_its_address() {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (first, second) = (bind(), bind());
        let at = second.local_addr().unwrap();
        let mut inherited = InheritedListeners {
            listeners: vec![first, second],
            predecessor: None,
        };
        assert!(inherited.pick("127.0.0.2:0".parse().unwrap()).is_none());
        assert!(inherited.pick("127.0.0.1:1".parse().unwrap()).is_none());
        assert_eq!(inherited.pick(at).unwrap().local_addr().unwrap(), at);
        assert!(inherited.pick(at).is_none());
        assert!(inherited.pick("127.0.0.1:0".parse().unwrap()).is_some());
    }
}
