//! The number of connections, and the memory of their unfinished heads: what strangers make us keep
//! must fit into the memory we have.
//!
//! Two bounds together. A connection costs little while its heads are short, and the number of
//! connections follows from the memory limit by `CONNECTION`, the most that one may cost on
//! average. Long heads, or many of them over HTTP/2, draw on one budget of all connections
//! (`HeadBudget`), which is that average's share for heads: a few may be long, but not all. A bound
//! on connections by the worst that a single one can do (100 streams of 64 KiB) would leave a small
//! pod two dozen of them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderMap;

/// Most connections of all listeners; further ones wait in the system's queue, as in nginx.
const MAX_CONNECTIONS: usize = 16 * 1024;
/// Open files that are neither a caller's connection nor one to a vendor.
const OTHER_FILES: usize = 64;

/// Worst cost of a connection before its caller is known, bytes, when all are as bad as possible:
/// 64 KiB of a TLS handshake, or its buffers (with [`OWN`] of heads) and its share of the budget.
pub(crate) const CONNECTION: usize = 128 * 1024;
/// Its share of the budget, for heads beyond [`OWN`], bytes.
const SHARE: usize = 32 * 1024;
/// Bytes of heads that a connection may hold without drawing on the budget. Most heads are shorter:
/// they are read whatever others do.
const OWN: usize = 8 * 1024;
/// Smallest budget, bytes, however few the connections are: each may have 100 streams.
const LEAST_ROOM: usize = 16 * 1024 * 1024;

/// Cost of a header in a decoded head, beside its own bytes.
const FIELD: usize = 160;
/// Cost of a stream in service, beside its head, bytes.
const STREAM: usize = 40 * 1024;
/// Worst cost of a field block in several frames, which is decoded as it comes, bytes: 64 KiB by
/// RFC 9113 §6.5.2, which counts 32 bytes for a field.
const OPEN_BLOCK: usize = 192 * 1024;

/// Returns how many files this process may open; `None`: no limit.
pub(crate) fn files_permitted() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// Returns the number of connections where the process may open `files` and use `memory` bytes. A
/// quarter of the files stays for connections to vendors, which idle callers must not use up; a
/// quarter of the memory stays for everything else.
#[must_use]
pub fn connections(files: Option<u64>, memory: Option<u64>) -> usize {
    let number = |of: Option<u64>| of.map(|of| usize::try_from(of).unwrap_or(usize::MAX));
    let by_files = number(files).map_or(usize::MAX, |files| {
        files.saturating_sub(OTHER_FILES) / 4 * 3
    });
    let by_memory = number(memory).map_or(usize::MAX, |memory| memory / 4 * 3 / CONNECTION);
    by_files.min(by_memory).clamp(1, MAX_CONNECTIONS)
}

/// Divides `all` connections among the listeners: those without a number of their own share the
/// rest.
pub(crate) fn each(all: usize, written: &[Option<usize>]) -> Vec<usize> {
    let taken: usize = written.iter().flatten().sum();
    let others = written.iter().filter(|most| most.is_none()).count();
    let share = (all.saturating_sub(taken) / others.max(1)).max(1);
    written.iter().map(|most| most.unwrap_or(share)).collect()
}

/// Returns how much memory this process may use, bytes: the least of its control groups' limits
/// (version 1 and 2, their parents included) and the machine's memory. `root` is `/` outside of
/// tests.
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

/// A mounted hierarchy of control groups (proc(5), mountinfo).
struct Mount {
    /// The group that is mounted at `at`: not the root where the file system, but not the name
    /// space, is a container's own.
    root: String,
    /// The mount point, without its first slash.
    at: String,
}

impl Mount {
    /// Returns the mount of this line when its groups limit memory.
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

    /// Returns `file` of `group` and of its visible parents.
    fn files(&self, group: &str, file: &str) -> impl Iterator<Item = String> {
        // From another name space, our group may not be below the mounted one: then the mounted one
        // is ours.
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

/// The memory of all connections for heads beyond [`OWN`] bytes each.
#[derive(Debug)]
pub(crate) struct HeadBudget {
    /// Free bytes.
    left: AtomicUsize,
}

impl HeadBudget {
    /// Returns the budget for this number of connections.
    pub(crate) fn new(connections: usize) -> Arc<Self> {
        let left = connections.saturating_mul(SHARE).max(LEAST_ROOM);
        Arc::new(Self {
            left: AtomicUsize::new(left),
        })
    }

    fn acquire(&self, bytes: usize) -> bool {
        let order = Ordering::Relaxed;
        self.left
            .fetch_update(order, order, |left| left.checked_sub(bytes))
            .is_ok()
    }

    fn release(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The memory of one connection's heads. What it has drawn goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct HeadMemory {
    head_budget: Arc<HeadBudget>,
    /// Held bytes, [`OWN`] included.
    held: AtomicUsize,
}

impl HeadMemory {
    /// Returns the memory of a connection that holds nothing.
    pub(crate) fn new(head_budget: Arc<HeadBudget>) -> Self {
        Self {
            head_budget,
            held: AtomicUsize::new(0),
        }
    }

    /// Acquires this many bytes. `false`: the budget is used up, and nothing has changed.
    pub(crate) fn acquire(&self, bytes: usize) -> bool {
        let mut before = self.held.load(Ordering::Relaxed);
        loop {
            let drawn = beyond(before + bytes) - beyond(before);
            if drawn > 0 && !self.head_budget.acquire(drawn) {
                return false;
            }
            match self.held.compare_exchange_weak(
                before,
                before + bytes,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                // A stream of this connection has ended meanwhile: other bytes exceed its own.
                Err(now) => {
                    self.head_budget.release(drawn);
                    before = now;
                }
            }
        }
    }

    /// Releases this many bytes.
    pub(crate) fn release(&self, bytes: usize) {
        let before = self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.head_budget
            .release(beyond(before) - beyond(before - bytes));
    }

    /// Releases everything.
    pub(crate) fn release_all(&self) {
        // Usually nothing is held already, and a load costs less than a swap.
        if self.held.load(Ordering::Relaxed) > 0 {
            let held = self.held.swap(0, Ordering::Relaxed);
            if held > OWN {
                self.head_budget.release(beyond(held));
            }
        }
    }

    /// Acquires the cost of a field block in several frames.
    pub(crate) fn open_block(&self) -> bool {
        self.acquire(OPEN_BLOCK)
    }

    /// Releases that cost: the block is complete.
    pub(crate) fn close_block(&self) {
        self.release(OPEN_BLOCK);
    }

    /// Acquires the cost of a request over HTTP/2 while it is being served; `None`: the budget is
    /// used up.
    pub(crate) fn stream(self: &Arc<Self>, fields: &HeaderMap) -> Option<Stream> {
        let fields: usize = fields
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + FIELD)
            .sum();
        let bytes = STREAM + fields;
        self.acquire(bytes).then(|| Stream {
            head_memory: self.clone(),
            bytes,
        })
    }
}

impl Drop for HeadMemory {
    fn drop(&mut self) {
        self.release_all();
    }
}

fn beyond(held: usize) -> usize {
    held.saturating_sub(OWN)
}

/// The cost of one request over HTTP/2, released when it is dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    head_memory: Arc<HeadMemory>,
    bytes: usize,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.head_memory.release(self.bytes);
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

    /// Returns a file system with these files.
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
        // With a name space of its own, as in Docker and Kubernetes.
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
        let head_budget = HeadBudget::new(0);
        let left = || head_budget.left.load(Ordering::Relaxed);
        let (one, two) = (
            HeadMemory::new(head_budget.clone()),
            HeadMemory::new(head_budget.clone()),
        );
        assert!(one.acquire(OWN) && two.acquire(OWN));
        assert_eq!(left(), LEAST_ROOM);
        assert!(one.acquire(LEAST_ROOM));
        assert_eq!(left(), 0);
        assert!(!two.acquire(1), "no room");
        two.release(OWN);
        assert!(two.acquire(OWN), "its own");
        one.release(100);
        assert!(two.acquire(100) && !two.acquire(1));
        one.release_all();
        assert_eq!(left(), LEAST_ROOM - 100);
        drop(two);
        assert_eq!(left(), LEAST_ROOM);

        let streams = Arc::new(HeadMemory::new(head_budget.clone()));
        let mut fields = HeaderMap::new();
        fields.insert("a", HeaderValue::from_static("bcd"));
        let held: Vec<_> = std::iter::from_fn(|| streams.stream(&fields)).collect();
        let each = STREAM + FIELD + 4;
        assert_eq!(held.len(), (LEAST_ROOM + OWN) / each);
        drop(held);
        assert_eq!(left(), LEAST_ROOM);
    }
}
