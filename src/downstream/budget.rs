//! How many connections there may be, and how much their unfinished heads may hold: what strangers
//! can make us keep must fit into the memory that we were given.
//!
//! Two bounds together. A connection costs little as long as its heads are short, and the number of
//! connections follows from the memory limit by `CONNECTION`, the most that one may cost on
//! average. What is long, or comes in great number over HTTP/2, draws on one account of all
//! connections (`Room`), which is that average's share for heads: so a few may be long, and not
//! all of them. The other way, a bound on connections by the worst that a single one can do
//! (100 streams of 64 KiB), would leave a small pod two dozen of them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderMap;

/// Connections of all listeners at a time; further ones wait in the system's queue, as nginx has it.
const MAX_CONNECTIONS: usize = 16 * 1024;
/// Open files that are neither a caller's connection nor one to a vendor.
const OTHER_FILES: usize = 64;

/// What a connection costs at worst before anybody is known on it, bytes, when all of them are as bad
/// as can be: 64 KiB of a TLS handshake, or its buffers ([`OWN`] of heads included) and its share of
/// the account.
pub(crate) const CONNECTION: usize = 128 * 1024;
/// Of that, for heads beyond [`OWN`], bytes.
const SHARE: usize = 32 * 1024;
/// What a connection may hold of heads without drawing on the account, bytes. Most heads are shorter:
/// they are read whatever others do.
const OWN: usize = 8 * 1024;
/// The account holds at least this, bytes, however few the connections are: each may have 100 streams.
const LEAST_ROOM: usize = 16 * 1024 * 1024;

/// A field of a decoded head costs this beside its own bytes.
const FIELD: usize = 160;
/// A stream that is being served costs this beside its head, bytes.
const STREAM: usize = 40 * 1024;
/// A block of fields in several frames is decoded as it comes, and costs this at worst, bytes: 64 KiB
/// by RFC 9113 §6.5.2, which counts 32 bytes for a field.
const OPEN_BLOCK: usize = 192 * 1024;

/// How many files this process may have open; `None`: as many as it likes.
pub(crate) fn files_permitted() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// How many connections there may be in all, where the process may have `files` open and use `memory`
/// bytes. A quarter of the files stays for connections to vendors, since idle callers must not keep
/// others from those; a quarter of the memory for everything else.
#[must_use]
pub fn connections(files: Option<u64>, memory: Option<u64>) -> usize {
    let number = |of: Option<u64>| of.map(|of| usize::try_from(of).unwrap_or(usize::MAX));
    let by_files = number(files).map_or(usize::MAX, |files| {
        files.saturating_sub(OTHER_FILES) / 4 * 3
    });
    let by_memory = number(memory).map_or(usize::MAX, |memory| memory / 4 * 3 / CONNECTION);
    by_files.min(by_memory).clamp(1, MAX_CONNECTIONS)
}

/// How many each listener takes of `all`, where some have numbers of their own: the others share what
/// those leave.
pub(crate) fn each(all: usize, written: &[Option<usize>]) -> Vec<usize> {
    let taken: usize = written.iter().flatten().sum();
    let others = written.iter().filter(|most| most.is_none()).count();
    let share = (all.saturating_sub(taken) / others.max(1)).max(1);
    written.iter().map(|most| most.unwrap_or(share)).collect()
}

/// How much memory this process may use, bytes: the least of its control groups' limits (version 1
/// and 2, those of its parents included) and of what the machine has. `root` is `/` outside of tests.
#[must_use]
pub fn memory_permitted(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let groups = read("proc/self/cgroup").unwrap_or_default();
    let mounts = read("proc/self/mountinfo").unwrap_or_default();
    let mut limits: Vec<u64> = Vec::new();
    for line in groups.lines() {
        // hierarchy-ID:controllers:path (cgroups(7)); version 2 has neither number nor controllers.
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (kind, file) = if controllers.is_empty() {
            ("cgroup2", "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            ("cgroup", "memory.limit_in_bytes")
        } else {
            continue;
        };
        for mount in mounts.lines().filter_map(|line| Mount::parse(line, kind)) {
            limits.extend(mount.files(group, file).filter_map(|path| {
                let text = std::fs::read_to_string(root.join(path)).ok()?;
                text.trim().parse::<u64>().ok()
            }));
        }
    }
    let total = read("proc/meminfo").and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kilobytes = line.trim().trim_end_matches("kB").trim();
        kilobytes.parse::<u64>().ok()?.checked_mul(1024)
    });
    limits.into_iter().chain(total).min()
}

/// Where a hierarchy of control groups is to be seen (proc(5), mountinfo).
struct Mount {
    /// The group that is seen at `at`: not the first of all where the file system, but not the name
    /// space, is a container's own.
    root: String,
    /// Without the slash in front.
    at: String,
}

impl Mount {
    /// The mount of this line when it is one of groups with memory in them.
    fn parse(line: &str, kind: &str) -> Option<Self> {
        let (mount, about) = line.split_once(" - ")?;
        let mut words = mount.split(' ').skip(3);
        let (root, at) = (words.next()?, words.next()?);
        let mut about = about.split(' ');
        let is_it = about.next()? == kind
            && (kind == "cgroup2"
                || about
                    .nth(1)?
                    .split(',')
                    .any(|controller| controller == "memory"));
        is_it.then(|| Self {
            root: root.trim_end_matches('/').to_owned(),
            at: at.trim_start_matches('/').to_owned(),
        })
    }

    /// `file` of `group` and of all groups that it is in, as far as they are to be seen.
    fn files(&self, group: &str, file: &str) -> impl Iterator<Item = String> {
        // Seen from another name space, our group may not be below what is mounted: then what is
        // mounted is ours.
        let below = group
            .strip_prefix(&self.root)
            .filter(|below| below.is_empty() || below.starts_with('/'))
            .unwrap_or_default()
            .trim_end_matches('/');
        let ends = below
            .match_indices('/')
            .map(|(at, _)| at)
            .chain([below.len()]);
        let parents: Vec<String> = ends
            .map(|end| format!("{}{}/{file}", self.at, &below[..end]))
            .collect();
        parents.into_iter()
    }
}

/// What all connections together may hold of heads beyond [`OWN`] bytes each.
#[derive(Debug)]
pub(crate) struct Room {
    /// Bytes.
    left: AtomicUsize,
}

impl Room {
    /// For so many connections.
    pub(crate) fn new(connections: usize) -> Arc<Self> {
        let left = connections.saturating_mul(SHARE).max(LEAST_ROOM);
        Arc::new(Self {
            left: AtomicUsize::new(left),
        })
    }

    fn take(&self, bytes: usize) -> bool {
        let order = Ordering::Relaxed;
        self.left
            .fetch_update(order, order, |left| left.checked_sub(bytes))
            .is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What one connection holds of heads. What it has drawn goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Holding {
    room: Arc<Room>,
    /// Bytes, [`OWN`] included.
    held: AtomicUsize,
}

impl Holding {
    /// Of a connection that holds nothing.
    pub(crate) fn new(room: Arc<Room>) -> Self {
        Self {
            room,
            held: AtomicUsize::new(0),
        }
    }

    /// Holds so many bytes more. `false`: there is no room, and nothing has changed.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        let mut before = self.held.load(Ordering::Relaxed);
        loop {
            let drawn = beyond(before + bytes) - beyond(before);
            if drawn > 0 && !self.room.take(drawn) {
                return false;
            }
            match self.held.compare_exchange_weak(
                before,
                before + bytes,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                // A stream of this connection has ended meanwhile: other bytes are beyond its own.
                Err(now) => {
                    self.room.give_back(drawn);
                    before = now;
                }
            }
        }
    }

    /// Holds so many bytes less.
    pub(crate) fn give_back(&self, bytes: usize) {
        let before = self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.room.give_back(beyond(before) - beyond(before - bytes));
    }

    /// Holds nothing any more.
    pub(crate) fn give_all_back(&self) {
        // Most of the time it is nothing already, and a load costs less than a swap.
        if self.held.load(Ordering::Relaxed) > 0 {
            let held = self.held.swap(0, Ordering::Relaxed);
            if held > OWN {
                self.room.give_back(beyond(held));
            }
        }
    }

    /// Holds what a block of fields costs that comes in several frames.
    pub(crate) fn open_block(&self) -> bool {
        self.take(OPEN_BLOCK)
    }

    /// That block is complete.
    pub(crate) fn close_block(&self) {
        self.give_back(OPEN_BLOCK);
    }

    /// Holds what a request over HTTP/2 costs, for as long as it is being served; `None`: there is no
    /// room for it.
    pub(crate) fn stream(self: &Arc<Self>, fields: &HeaderMap) -> Option<Stream> {
        let fields: usize = fields
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + FIELD)
            .sum();
        let bytes = STREAM + fields;
        self.take(bytes).then(|| Stream {
            holding: self.clone(),
            bytes,
        })
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.give_all_back();
    }
}

fn beyond(held: usize) -> usize {
    held.saturating_sub(OWN)
}

/// What one request over HTTP/2 holds, until it is dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    holding: Arc<Holding>,
    bytes: usize,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.holding.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn callers_leave_files_and_memory_for_the_rest() {
        assert_eq!(connections(None, None), MAX_CONNECTIONS);
        assert_eq!(connections(Some(1 << 20), None), MAX_CONNECTIONS);
        assert_eq!(connections(Some(1024), None), 720);
        assert_eq!(connections(Some(3), Some(3)), 1);
        assert_eq!(connections(None, Some(256 * MIB)), 1536);
        assert_eq!(connections(Some(1024), Some(256 * MIB)), 720);
        assert_eq!(connections(None, Some(u64::MAX)), MAX_CONNECTIONS);
    }

    #[test]
    fn listeners_share_what_those_with_numbers_of_their_own_leave() {
        assert_eq!(each(90, &[None, None, None]), [30, 30, 30]);
        assert_eq!(each(90, &[Some(50), None, None]), [50, 20, 20]);
        assert_eq!(each(90, &[Some(500), None]), [500, 1]);
        assert_eq!(each(90, &[Some(7)]), [7]);
    }

    /// A file system with these files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    const VERSION_2: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:        8388608 kB\nMemFree: 1 kB\n",
    );

    #[test]
    fn the_least_limit_of_a_group_and_its_parents_counts() {
        let group = "sys/fs/cgroup/kubepods.slice/pod1/app";
        let nested = |own: &str, pod: &str| {
            let root = machine(&[
                ("proc/self/cgroup", "0::/kubepods.slice/pod1/app\n"),
                ("proc/self/mountinfo", VERSION_2),
                MEMINFO,
                (&format!("{group}/memory.max"), own),
                ("sys/fs/cgroup/kubepods.slice/pod1/memory.max", pod),
                ("sys/fs/cgroup/kubepods.slice/memory.max", "max\n"),
            ]);
            memory_permitted(root.path())
        };
        assert_eq!(nested("268435456\n", "max\n"), Some(256 * MIB));
        assert_eq!(nested("max\n", "134217728\n"), Some(128 * MIB));
        assert_eq!(nested("268435456\n", "134217728\n"), Some(128 * MIB));
        assert_eq!(nested("max\n", "max\n"), Some(8192 * MIB), "the machine's");
    }

    #[test]
    fn a_container_sees_its_own_limit_at_the_root() {
        // With a name space of its own, as Docker and Kubernetes have it.
        let own = machine(&[
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", VERSION_2),
            ("sys/fs/cgroup/memory.max", "268435456\n"),
        ]);
        assert_eq!(memory_permitted(own.path()), Some(256 * MIB));
        // The host's name for the group, and a mount that begins at it.
        let hosts = machine(&[
            ("proc/self/cgroup", "0::/docker/abc\n"),
            (
                "proc/self/mountinfo",
                "30 24 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
            ),
            ("sys/fs/cgroup/memory.max", "134217728\n"),
        ]);
        assert_eq!(memory_permitted(hosts.path()), Some(128 * MIB));
    }

    #[test]
    fn version_1_is_read_where_its_memory_hierarchy_is_mounted() {
        let root = machine(&[
            (
                "proc/self/cgroup",
                "12:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n0::/system.slice\n",
            ),
            (
                "proc/self/mountinfo",
                "31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                 32 24 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
            ),
            MEMINFO,
            (
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            (
                "sys/fs/cgroup/memory/docker/memory.limit_in_bytes",
                "268435456\n",
            ),
        ]);
        assert_eq!(memory_permitted(root.path()), Some(256 * MIB));
        assert_eq!(memory_permitted(&root.path().join("nowhere")), None);
        assert!(memory_permitted(Path::new("/")).is_some(), "this machine's");
    }

    #[test]
    fn what_is_beyond_a_connections_own_share_is_drawn_and_given_back() {
        let room = Room::new(0);
        let left = || room.left.load(Ordering::Relaxed);
        let (one, two) = (Holding::new(room.clone()), Holding::new(room.clone()));
        assert!(one.take(OWN) && two.take(OWN));
        assert_eq!(left(), LEAST_ROOM);
        assert!(one.take(LEAST_ROOM));
        assert_eq!(left(), 0);
        assert!(!two.take(1), "no room");
        two.give_back(OWN);
        assert!(two.take(OWN), "its own");
        one.give_back(100);
        assert!(two.take(100) && !two.take(1));
        one.give_all_back();
        assert_eq!(left(), LEAST_ROOM - 100);
        drop(two);
        assert_eq!(left(), LEAST_ROOM);

        let streams = Arc::new(Holding::new(room.clone()));
        let mut fields = HeaderMap::new();
        fields.insert("a", HeaderValue::from_static("bcd"));
        let held: Vec<_> = std::iter::from_fn(|| streams.stream(&fields)).collect();
        let each = STREAM + FIELD + 4;
        assert_eq!(held.len(), (LEAST_ROOM + OWN) / each);
        drop(held);
        assert_eq!(left(), LEAST_ROOM);
    }
}
