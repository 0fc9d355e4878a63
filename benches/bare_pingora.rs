//! The yardstick as a process of its own, see [`pass_through`].
//!
//! ```text
//! bare_pingora LISTEN UPSTREAM [SERVER-NAME CA-FILE]      TLS to the upstream with the last two
//! ```

mod pass_through;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.len() != 2 && arguments.len() != 4 {
        eprintln!("usage: bare_pingora LISTEN UPSTREAM [SERVER-NAME CA-FILE]");
        std::process::exit(2);
    }
    pass_through::run(&arguments);
}
