//! The `countersign` program: see [`countersign::cli`].

/// mimalloc, because a request allocates some forty times, mostly for headers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    countersign::cli::main()
}
