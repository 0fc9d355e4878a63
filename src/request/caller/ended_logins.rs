//! Revoked logins. Every request with a token of ours checks them, without a lock. They are bounded
//! for each caller, and none is dropped to make room.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use foldhash::HashMapExt;
use tokio::sync::{Notify, watch};

use crate::tls::sha256;

/// Most revoked logins of one caller, counted apart for those with refresh tokens and those
/// without.
pub const MOST_EACH: usize = 512;
/// Most revoked logins of all callers, of either kind.
pub const MOST: usize = 16 * 1024;
/// Time for which a caller waits for its revocation to be stored.
const STORED_WITHIN: Duration = Duration::from_secs(5);
/// Size of a stored entry, bytes.
const ENTRY: usize = 17;

/// The bound is reached: this login cannot be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The revoked logins.
pub struct Ended {
    current: ArcSwap<Entries>,
    /// The number of revocations made here.
    here: watch::Sender<u64>,
    /// The number of those that the store has; unused where there is none.
    stored: watch::Sender<u64>,
    /// `true` if the store has been read once.
    heard: watch::Sender<bool>,
    /// Notified by each revocation.
    more: Notify,
}

type Entries = foldhash::HashMap<[u8; 8], Entry>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    /// Expiry of the login's last token, seconds since 1970.
    until: u32,
    /// The beginning of the SHA-256 of the caller's name. Callers that share it share a bound.
    caller: [u8; 4],
    /// `true` if the login had refresh tokens.
    renewable: bool,
}

impl Ended {
    /// Returns an empty set.
    #[must_use]
    pub fn none() -> Self {
        Self {
            current: ArcSwap::from_pointee(Entries::new()),
            here: watch::Sender::new(0),
            stored: watch::Sender::new(0),
            heard: watch::Sender::new(false),
            more: Notify::new(),
        }
    }

    /// Tells whether this login was revoked.
    pub(super) fn has(&self, login: [u8; 8]) -> bool {
        self.current.load().contains_key(&login)
    }

    /// Revokes a login of `caller`, which would expire at `until`.
    ///
    /// # Errors
    /// [`Full`]; nothing has changed then.
    pub(super) fn end(
        &self,
        login: [u8; 8],
        caller: &str,
        until: u64,
        renewable: bool,
    ) -> Result<(), Full> {
        let mut name = [0; 4];
        name.copy_from_slice(&sha256(&[caller.as_bytes()])[..4]);
        let entry = Entry {
            until: u32::try_from(until).unwrap_or(u32::MAX),
            caller: name,
            renewable,
        };
        let mut outcome = Ok(());
        self.current.rcu(|before| {
            outcome = Ok(());
            if before.contains_key(&login) {
                return before.clone();
            }
            let now = now();
            let alike = |of: &&Entry| of.renewable == renewable && u64::from(of.until) > now;
            let all = before.values().filter(alike).count();
            let own = before.values().filter(alike);
            if all >= MOST || own.filter(|of| of.caller == name).count() >= MOST_EACH {
                outcome = Err(Full);
                return before.clone();
            }
            let mut after = Entries::with_capacity(before.len() + 1);
            after.extend(current(before, now));
            after.insert(login, entry);
            after.into()
        });
        outcome?;
        self.here.send_modify(|count| *count += 1);
        self.more.notify_one();
        Ok(())
    }

    /// Revokes a login of no particular caller, for tests of the code that shares them.
    #[cfg(test)]
    pub(crate) fn end_one(&self, login: [u8; 8]) {
        self.end(login, "ci", now() + 1000, true).unwrap();
    }

    /// Waits until the store has the revocations made so far. `false`: it has not taken them in
    /// time, and will be asked again.
    pub async fn stored(&self) -> bool {
        let wanted = *self.here.borrow();
        let mut stored = self.stored.subscribe();
        let waiting = stored.wait_for(|stored| *stored >= wanted);
        let waited = tokio::time::timeout(STORED_WITHIN, waiting).await;
        waited.is_ok_and(|stored| stored.is_ok())
    }

    /// Tells whether the store has been read.
    #[must_use]
    pub fn heard(&self) -> bool {
        *self.heard.borrow()
    }

    /// Waits for the next revocation.
    pub async fn more(&self) {
        self.more.notified().await;
    }

    /// Returns the number of revocations so far, for [`Ended::are_stored`] once they are in the
    /// store.
    #[must_use]
    pub fn here(&self) -> u64 {
        *self.here.borrow()
    }

    /// Notes that the store has the revocations that [`Ended::here`] counted.
    pub fn are_stored(&self, here: u64) {
        self.stored.send_replace(here);
    }

    /// Adds the store's revocations. Tells whether there are some here that the store does not
    /// have.
    pub fn merge(&self, stored: &[u8]) -> bool {
        let now = now();
        let stored = read(stored);
        self.current.rcu(|before| {
            let known = stored.keys().all(|login| before.contains_key(login));
            if known && before.values().all(|entry| u64::from(entry.until) > now) {
                return before.clone();
            }
            let mut after: Entries = current(before, now).collect();
            after.extend(current(&stored, now));
            after.into()
        });
        self.heard
            .send_if_modified(|heard| !std::mem::replace(heard, true));
        let all = self.current.load();
        let mut all = current(&all, now);
        all.any(|(login, _)| !stored.contains_key(&login))
    }

    /// Returns all revocations in their stored form.
    #[must_use]
    pub fn written(&self) -> Vec<u8> {
        let all = self.current.load();
        let mut written = Vec::with_capacity(all.len() * ENTRY);
        for (login, entry) in current(&all, now()) {
            written.extend_from_slice(&login);
            written.extend_from_slice(&entry.until.to_be_bytes());
            written.extend_from_slice(&entry.caller);
            written.push(entry.renewable.into());
        }
        written
    }
}

/// Returns those whose tokens have not expired.
fn current(entries: &Entries, now: u64) -> impl Iterator<Item = ([u8; 8], Entry)> {
    entries
        .iter()
        .map(|(login, entry)| (*login, *entry))
        .filter(move |(_, entry)| u64::from(entry.until) > now)
}

fn read(stored: &[u8]) -> Entries {
    let (entries, _) = stored.as_chunks::<ENTRY>();
    let read = entries.iter().filter_map(|entry| {
        let (login, rest) = entry.split_first_chunk()?;
        let (until, rest) = rest.split_first_chunk()?;
        let (caller, renewable) = rest.split_first_chunk()?;
        let entry = Entry {
            until: u32::from_be_bytes(*until),
            caller: *caller,
            renewable: renewable != [0],
        };
        Some((*login, entry))
    });
    read.collect()
}

/// Returns seconds since 1970.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(nth: usize) -> [u8; 8] {
        (nth as u64).to_be_bytes()
    }

    #[test]
    fn a_caller_that_ends_too_many_is_refused_and_nothing_is_forgotten() {
        let ended = Ended::none();
        let until = now() + 1000;
        for nth in 0..MOST_EACH {
            assert_eq!(ended.end(login(nth), "ci", until, false), Ok(()));
        }
        assert_eq!(ended.end(login(9999), "ci", until, false), Err(Full));
        assert!(!ended.has(login(9999)));
        assert!((0..MOST_EACH).all(|nth| ended.has(login(nth))));
        // Revoking twice changes nothing.
        assert_eq!(ended.end(login(0), "ci", until, false), Ok(()));
        // Other callers, and logins with refresh tokens, are counted apart.
        assert_eq!(ended.end(login(9999), "ci", until, true), Ok(()));
        assert_eq!(ended.end(login(10_000), "other", until, false), Ok(()));
    }

    #[test]
    fn what_ends_by_itself_makes_room() {
        let ended = Ended::none();
        for nth in 0..MOST_EACH {
            assert_eq!(ended.end(login(nth), "ci", now() - 1, false), Ok(()));
        }
        assert_eq!(ended.end(login(9999), "ci", now() + 9, false), Ok(()));
        assert!(!ended.has(login(0)));
    }

    #[test]
    fn all_callers_together_have_a_bound() {
        let ended = Ended::none();
        let until = now() + 1000;
        let all: Entries = (0..MOST)
            .map(|nth| {
                let entry = Entry {
                    until: u32::MAX,
                    caller: [9; 4],
                    renewable: true,
                };
                (login(nth), entry)
            })
            .collect();
        ended.current.store(all.into());
        assert_eq!(ended.end(login(MOST), "ci", until, true), Err(Full));
        assert_eq!(ended.end(login(MOST), "ci", until, false), Ok(()));
    }

    #[test]
    fn replicas_learn_from_the_store_what_the_others_ended() {
        let (one, other) = (Ended::none(), Ended::none());
        let until = now() + 1000;
        assert!(!one.heard());
        assert!(!one.merge(&[]));
        assert!(one.heard());
        one.end(login(1), "ci", until, true).unwrap();
        other.end(login(2), "ci", until, false).unwrap();
        assert!(one.merge(&[]), "not stored yet");
        assert!(other.merge(&one.written()));
        assert!(!one.merge(&other.written()));
        for ended in [&one, &other] {
            assert!(ended.has(login(1)) && ended.has(login(2)));
        }
        assert_eq!(*one.current.load(), *other.current.load());
        assert!(read(b"cut off").is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_revocation_waits_for_the_store_but_not_for_ever() {
        let ended = Ended::none();
        ended.end(login(1), "ci", now() + 1000, true).unwrap();
        let here = ended.here();
        ended.end(login(2), "ci", now() + 1000, true).unwrap();
        assert!(!ended.stored().await);
        ended.are_stored(here);
        assert!(!ended.stored().await, "the first alone is");
        ended.are_stored(ended.here());
        assert!(ended.stored().await);
    }
}
