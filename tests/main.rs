//! What the program promises, tried from outside: the real binary, real sockets, every port the
//! system's choice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![allow(
    clippy::print_stdout,
    reason = "shown when a test fails, and only then"
)]
#![allow(
    unreachable_pub,
    reason = "nothing is reachable here; `pub` says what modules offer"
)]

mod authorize;
mod bodies;
mod callers;
mod clients;
mod config;
mod connections;
mod deploy;
mod differential;
mod documentation;
mod dribbles;
mod echo;
mod faults;
mod floods;
mod fuzzing;
mod inspection;
mod login;
mod operating;
mod outbound;
mod page;
mod peers;
mod pinned;
mod prometheus;
mod refusals;
mod reload;
mod resilience;
mod routing;
mod sharing;
mod smuggling;
mod spellings;
mod stores;
mod streams;
mod support;
mod terminal;
mod traces;
mod tree;
mod upstream_h2;
mod urls;
mod vendors;
