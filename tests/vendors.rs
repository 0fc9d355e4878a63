//! Every login of every vendor, seen from the vendor: the real binary in front of mocks that
//! refuse a wrong login as the real ones do and keep every byte they are sent.

mod logins;
mod refusals;
mod tokens;

use countersign_demo::RecordedRequest;

fn statuses(seen: Vec<RecordedRequest>) -> Vec<u16> {
    seen.into_iter().map(|seen| seen.status).collect()
}
