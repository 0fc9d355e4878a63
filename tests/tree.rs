//! The tree keeps its shape: which part may know which, and which words may not appear.

mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use self::imports::Imports;

/// Every source file below `src/`, with its path relative to it and its text; those of the demo's
/// crate as `demo/src/…`.
fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(&root.join("src"), &mut found);
    walk(&root.join("demo/src"), &mut found);
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            let name = name.strip_prefix("src/").unwrap_or(name).to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .filter(|(name, _)| Path::new(name).extension().is_some_and(|kind| kind == "rs"))
        .collect()
}

/// The lines of `text` that name `what` outside of comments.
fn uses(text: &str, what: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//") && line.contains(what))
        .map(ToOwned::to_owned)
        .collect()
}

#[test]
fn only_what_drives_it_knows_pingora() {
    for (name, text) in sources() {
        let may = name == "request.rs"
            // The request that a credential is put on.
            || name == "request/placement.rs"
            // Its types of heads.
            || name == "http1/head.rs"
            || ["request/exchange", "request/phase/", "downstream", "upstream", "server"]
                .iter()
                .any(|room| name.starts_with(room));
        if !may {
            assert_eq!(uses(&text, "pingora::"), [""; 0], "{name}");
        }
    }
}

#[test]
fn the_two_paths_share_only_the_credential() {
    for (name, text) in sources() {
        if name.starts_with("credential") {
            assert_eq!(uses(&text, "crate::request"), [""; 0], "{name}");
            assert_eq!(uses(&text, "crate::upstream"), [""; 0], "{name}");
        }
        if name.starts_with("request") {
            for line in uses(&text, "crate::credential") {
                assert!(
                    line == "use crate::credential::Held;"
                        || line == "use crate::credential::Credential;",
                    "{name}: {line}"
                );
            }
            assert_eq!(uses(&text, "crate::store"), [""; 0], "{name}");
        }
    }
}

#[test]
fn no_module_and_no_file_imports_what_imports_it() {
    let imports = Imports::read();
    assert_eq!(imports::circle(&imports.of_rooms()), None);
    assert_eq!(imports::circle(&imports.of_files()), None);
}

#[test]
fn each_module_imports_what_the_architecture_says_it_may() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let (_, table) = text
        .split_once("| module | what lives there | may import |")
        .unwrap();
    let names = |cell: &str| -> BTreeSet<String> {
        // Every other piece stands between backquotes.
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let said: BTreeMap<String, BTreeSet<String>> = rows
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
            let module = names(cells[0]).pop_first().unwrap();
            (module, names(cells[2]))
        })
        .collect();
    let found = Imports::read().of_rooms();
    assert_eq!(said, found);
    assert!(!found["request"].contains("server"));
}

/// Whatever else asks about a kind asks `Auth::kind`.
#[test]
fn a_kind_of_credential_is_named_in_three_files() {
    let variants = [
        "Basic {",
        "Headers(",
        "Query(",
        "ClientCredentials(",
        "AuthorizationCode(",
        "Vedauth(",
    ];
    let mut naming = BTreeSet::new();
    for (name, text) in sources() {
        let code = text
            .split("#[cfg(test)]\nmod tests")
            .next()
            .unwrap_or_default();
        let is_test = name.ends_with("tests.rs") || name.ends_with("fakes.rs");
        let named = |variant: &str| !uses(code, &format!("Auth::{variant}")).is_empty();
        if !is_test && variants.into_iter().any(named) {
            naming.insert(name);
        }
    }
    // Its facts are `Self::…` in config/auth/kind.rs; `authorize` is the command of one kind alone.
    assert_eq!(
        naming,
        ["cli/authorize.rs", "config/auth/parse.rs", "credential.rs"]
            .map(str::to_owned)
            .into()
    );
}

#[test]
fn one_function_is_unsafe_and_one_file_knows_openssl() {
    for (name, text) in sources() {
        let may = name == "late_client_auth.rs";
        let found = uses(&text, "unsafe {").len() + uses(&text, "unsafe fn").len();
        assert_eq!(found, usize::from(may), "{name}");
        if !may {
            assert_eq!(uses(&text, "openssl::"), [""; 0], "{name}");
        }
    }
}

#[test]
fn no_vendor_is_named_outside_the_presets_and_the_demo() {
    for (name, text) in sources() {
        if name.starts_with("demo/") || name == "cli/demo.rs" {
            continue;
        }
        // Tests may use the vendors as examples.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for vendor in [
            "sectigo",
            "cert-manager",
            "certn",
            "maxmd",
            "venafi",
            "certcenter",
        ] {
            let found: Vec<_> = uses(&code.to_lowercase(), vendor);
            assert_eq!(found, [""; 0], "{name}");
        }
    }
}

#[test]
fn the_demo_and_the_proxy_know_nothing_of_each_other() {
    for (name, text) in sources() {
        if name.starts_with("demo/") {
            assert_eq!(uses(&text, "countersign::"), [""; 0], "{name}");
        } else if name != "cli/demo.rs" {
            assert_eq!(uses(&text, "countersign_demo"), [""; 0], "{name}");
        }
    }
}

#[test]
fn modules_are_files_beside_their_folders_and_none_is_a_drawer() {
    for (name, _) in sources() {
        let file = name.rsplit('/').next().unwrap();
        for drawer in [
            "mod.rs",
            "utils.rs",
            "util.rs",
            "common.rs",
            "types.rs",
            "helpers.rs",
            "manager.rs",
        ] {
            assert_ne!(file, drawer, "{name}");
        }
    }
}

#[test]
fn the_refresh_path_uses_a_clock_that_tests_can_stop() {
    for (name, text) in sources() {
        if name.starts_with("credential") || name.starts_with("request") {
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            assert_eq!(uses(code, "std::time::Instant"), [""; 0], "{name}");
        }
    }
}

#[test]
fn the_table_of_what_http_works_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("docs/http.md")).unwrap();
    let mut named = 0;
    for row in table.lines().filter(|line| line.starts_with('|')) {
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap();
        // Every other piece stands between backquotes.
        for name in cell.split('`').skip(1).step_by(2) {
            let (module, function) = name.rsplit_once("::").expect(name);
            let file = format!("{}.rs", module.replace("::", "/"));
            // Tests of one part of the program stand in its own file.
            let text = ["tests", "src"]
                .iter()
                .find_map(|folder| std::fs::read_to_string(root.join(folder).join(&file)).ok())
                .unwrap_or_else(|| panic!("{name}: no {file}"));
            let is_test = text.split("test").skip(1).any(|after| {
                let declared = after.split_once("fn ").map_or("", |(_, rest)| rest);
                declared.starts_with(&format!("{function}("))
            });
            assert!(is_test, "{name}: {file} has no such test");
            named += 1;
        }
    }
    assert!(named > 60, "{named}");
}

/// Debug texts are for those who have the source: variants' names, `Some(…)`, fields in braces. What
/// operators read says it in words ([`countersign::wording`]).
#[test]
fn nothing_is_printed_the_way_debug_prints_it() {
    // Where, what, and why an operator is not shown a variant's name by it.
    let exceptions = [
        // RFC 7518 §3.1 has these names.
        ("config/auth/parse.rs", "{algorithm:?}"),
        ("config/reader.rs", "{algorithm:?}"),
        // Quotes and escapes a key of the file.
        ("config/report.rs", "{key:?}"),
        // The same of words of the command line.
        ("cli/config_file.rs", "{word:?}"),
        // Hashed, not shown.
        ("request/caller.rs", "{:?} {:?}"),
        ("request/caller.rs", "rule(&format!("),
        (
            "request/caller.rs",
            "(&jwt.issuer, &jwt.audience, &jwt.subject)",
        ),
        // The format's words for its own kinds, in lower case.
        ("metrics.rs", "{:?}\", family.get_field_type()"),
        // Durations print as people write them: 10s, 250ms.
        ("", "within {"),
    ];
    let tests = regex::Regex::new(r"#\[cfg\(test\)\]\n(?:pub\S* )?mod tests").unwrap();
    let debug = regex::Regex::new(r"\{[^{}]*:#?\?\}|[=,(]\s*\?[a-z_]|^\?[a-z_]").unwrap();
    for (name, text) in sources() {
        let for_tests = ["tests", "tests.rs", "fakes.rs"];
        if name.split('/').any(|part| for_tests.contains(&part)) {
            continue;
        }
        let code = tests.split(&text).next().unwrap_or_default();
        for line in code.lines().map(str::trim) {
            let excepted = exceptions
                .iter()
                .any(|(file, what)| name.starts_with(file) && line.contains(what));
            if !line.starts_with("//") && !excepted {
                assert!(!debug.is_match(line), "{name}: {line}");
            }
        }
    }
}
