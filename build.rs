//! Tells the crate which commit it is built from: `COUNTERSIGN_COMMIT` where the builder set it (an
//! image is built without `.git`), else the commit of this checkout, else `unknown`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The length of the commit's name; git takes more digits where these are ambiguous.
const SHORT: &str = "--short=12";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=COUNTERSIGN_COMMIT");
    let given = std::env::var("COUNTERSIGN_COMMIT").unwrap_or_default();
    let commit = if given.trim().is_empty() {
        checked_out().unwrap_or_else(|| "unknown".to_owned())
    } else {
        given.trim().to_owned()
    };
    println!("cargo:rustc-env=COUNTERSIGN_COMMIT={commit}");
}

/// Returns the commit of the checkout whose root this package is. Sources unpacked inside another
/// repository are not of that repository's commit.
fn checked_out() -> Option<String> {
    let prefix = git(&["rev-parse", "--show-prefix"])?;
    if !prefix.is_empty() {
        return None;
    }
    let commit = git(&["rev-parse", SHORT, "HEAD"])?;
    // HEAD names the branch, whose file changes with every commit, and is created again after its
    // references were packed; the log of HEAD has all of that where it is kept.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    let watched = ["HEAD", "logs/HEAD", "packed-refs"].map(str::to_owned);
    for name in watched.into_iter().chain(branch) {
        let Some(path) = git(&["rev-parse", "--git-path", &name]) else {
            continue;
        };
        // A missing file would make cargo build again every time.
        let path = root().join(path);
        if path.exists() {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
    Some(commit)
}

/// Returns git's output in one line; `None` without git, or without a repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(root())
        .output()
        .ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| said.trim().to_owned())
}

fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| Path::new(".").to_owned(), PathBuf::from)
}
