//! What is written for people holds: configurations load, commands exist, links lead somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use countersign::config::{Config, Secrets};

use crate::support::run;

#[test]
fn every_configuration_in_the_documentation_is_valid() {
    let mut tried = 0;
    for page in pages() {
        for (line, block) in blocks(&page.text, "yaml") {
            if !block.lines().any(|line| line.starts_with("vendors:")) {
                continue;
            }
            let at = format!("{}:{line}", page.name);
            let config = Config::parse(&block, Path::new("proxy.yaml"), Secrets::FormOnly);
            let config = config.unwrap_or_else(|mistakes| panic!("{at}: {mistakes:#?}"));
            assert!(
                config.warnings.is_empty() || page.name == "docs/configuration.md",
                "{at}: {:?}",
                config.warnings
            );
            tried += 1;
        }
    }
    assert!(tried > 15, "{tried} configurations: are they still found?");
}

#[test]
fn every_preset_has_a_worked_setup() {
    let vendors = fs::read_to_string(root().join("docs/vendors.md")).unwrap();
    let presets = fs::read_to_string(root().join("src/config/presets.yaml")).unwrap();
    let mut names = 0;
    for line in presets.lines() {
        let name = line.strip_suffix(':').unwrap_or_default();
        if !name.is_empty() && !name.starts_with([' ', '#']) {
            let stanza = format!("    preset: {name}\n");
            assert!(vendors.contains(&stanza), "docs/vendors.md: {name}");
            names += 1;
        }
    }
    assert!(names > 5, "{names} presets: are they still found?");
}

#[test]
fn every_command_in_the_documentation_exists() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let mut helps = BTreeMap::new();
    for page in pages() {
        for (_, block) in blocks(&page.text, "sh") {
            for line in block.lines() {
                let command = line.split(" #").next().unwrap();
                let mut words = command.split_whitespace().peekable();
                match words.next() {
                    Some("make") => {
                        let target = words.next().unwrap();
                        let rule = format!("\n{target}:");
                        assert!(makefile.contains(&rule), "{}: {line}", page.name);
                    }
                    Some("countersign") => {
                        let mut path = vec![words.next().unwrap_or("--version").to_owned()];
                        if path[0] == "caller" {
                            path.push(words.next().unwrap().to_owned());
                        }
                        let help = helps.entry(path.clone()).or_insert_with(|| {
                            path.push("--help".to_owned());
                            let path: Vec<_> = path.iter().map(String::as_str).collect();
                            let help = run(root(), &path);
                            assert_eq!(help.code, Some(0), "{}: {line}", page.name);
                            help.stdout
                        });
                        for option in words.filter(|word| word.starts_with("--")) {
                            assert!(help.contains(option), "{}: {line}", page.name);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    assert!(helps.len() > 5, "{helps:?}: are they still found?");
}

#[test]
fn every_link_in_the_documentation_leads_somewhere() {
    for page in pages() {
        for target in links(&page.text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let here = root().join(&page.name);
            let file = match path {
                "" => here,
                path => here.parent().unwrap().join(path),
            };
            assert!(file.exists(), "{}: {target}", page.name);
            if !anchor.is_empty() {
                let text = fs::read_to_string(&file).unwrap();
                let known = anchors(&text);
                assert!(known.contains(anchor), "{}: {target}", page.name);
            }
        }
    }
}

#[test]
fn every_page_is_reached_from_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let linked: BTreeSet<_> = links(&readme).into_iter().collect();
    for page in pages() {
        let known = page.name == "README.md" || linked.contains(page.name.as_str());
        assert!(known, "{} is not linked from README.md", page.name);
    }
}

struct Page {
    /// Relative to the root.
    name: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page for people: those of the root, of docs/ and of deploy/kubernetes/.
fn pages() -> Vec<Page> {
    let mut pages = Vec::new();
    for dir in ["", "docs", "deploy/kubernetes"] {
        for entry in fs::read_dir(root().join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|kind| kind == "md") {
                let relative: PathBuf = path.strip_prefix(root()).unwrap().into();
                pages.push(Page {
                    name: relative.to_str().unwrap().to_owned(),
                    text: fs::read_to_string(&path).unwrap(),
                });
            }
        }
    }
    assert!(pages.len() > 10, "pages: are they still found?");
    pages
}

/// The fenced blocks of one language, each with the line it begins at.
fn blocks(text: &str, language: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, &str, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match (open.take(), line.strip_prefix("```")) {
            (None, Some(info)) => open = Some((number + 2, info, String::new())),
            (Some((at, info, block)), Some(_)) if info == language => found.push((at, block)),
            (Some(_), Some(_)) | (None, None) => {}
            (Some((at, info, mut block)), None) => {
                block.push_str(line);
                block.push('\n');
                open = Some((at, info, block));
            }
        }
    }
    assert!(open.is_none(), "a block without an end");
    found
}

/// The lines that are not in a fenced block.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

fn links(text: &str) -> Vec<&str> {
    let after = prose(text).flat_map(|line| line.split("](").skip(1));
    after.map(|rest| rest.split(')').next().unwrap()).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose(text).filter(|line| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let anchor: String = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let again = (1..).map(|n| format!("{anchor}-{n}"));
        let free = std::iter::once(anchor.clone())
            .chain(again)
            .find(|anchor| !anchors.contains(anchor));
        anchors.extend(free);
    }
    anchors
}
