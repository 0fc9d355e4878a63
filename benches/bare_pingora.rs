//! The yardstick, a proxy on pingora alone, as a process of its own; see [`pass_through`].

mod pass_through;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    pass_through::run(&arguments);
    eprintln!("usage: bare_pingora {}", pass_through::USAGE);
    std::process::exit(2);
}
