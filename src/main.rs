//! The `countersign` program: see [`countersign::cli`].

/// mimalloc, because a request allocates about a hundred times, mostly in pingora and in headers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    countersign::cli::main()
}
