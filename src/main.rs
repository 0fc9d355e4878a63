//! Arguments → command, exit code: see [`countersign::cli`].

fn main() -> std::process::ExitCode {
    countersign::cli::main()
}
