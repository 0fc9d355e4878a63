//! Which file imports which: read off the `use` declarations and paths of the sources.

use std::collections::{BTreeMap, BTreeSet};

use super::sources;

/// A module of the crate as its path's segments: `["config", "auth", "parse"]`.
type Module = Vec<String>;

/// The modules that each module imports, tests left out.
pub(super) struct Imports(BTreeMap<Module, BTreeSet<Module>>);

impl Imports {
    /// Reads the sources.
    pub(super) fn read() -> Self {
        let texts: BTreeMap<Module, String> = sources()
            .into_iter()
            .filter(|(name, _)| !name.starts_with("demo/"))
            .map(|(name, text)| {
                let path = name.trim_end_matches(".rs").split('/');
                (path.map(str::to_owned).collect(), without_tests(&text))
            })
            .filter(|(module, _): &(Module, _)| {
                let last = module.last().unwrap().as_str();
                !["lib", "main", "tests", "fakes"].contains(&last)
                    && !module.iter().any(|part| part == "tests")
            })
            .collect();
        let known: BTreeSet<Module> = texts.keys().cloned().collect();
        let imports = texts.iter().map(|(module, text)| {
            let paths = paths(text).into_iter();
            let found = paths.filter_map(|path| resolve(module, &path, &known));
            let others = found.filter(|import| import != module).collect();
            (module.clone(), others)
        });
        Self(imports.collect())
    }

    /// The top-level modules that each top-level module imports.
    pub(super) fn of_rooms(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut rooms: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (module, imports) in &self.0 {
            let room = rooms.entry(module[0].clone()).or_default();
            let others = imports.iter().map(|import| import[0].clone());
            room.extend(others.filter(|other| *other != module[0]));
        }
        rooms
    }

    /// The files that each file imports. A file may use what the files of its own parents define:
    /// `foo.rs` declares and uses `foo/bar.rs`, which is no circle of two equals.
    pub(super) fn of_files(&self) -> BTreeMap<String, BTreeSet<String>> {
        let name = |module: &Module| module.join("/");
        let files = self.0.iter().map(|(module, imports)| {
            let others = imports.iter().filter(|import| !module.starts_with(import));
            (name(module), others.map(name).collect())
        });
        files.collect()
    }
}

/// A circle in `graph`, if there is one: `a → b → a`.
pub(super) fn circle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    fn walk<'a>(
        at: &'a str,
        graph: &'a BTreeMap<String, BTreeSet<String>>,
        path: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<String> {
        if let Some(start) = path.iter().position(|before| *before == at) {
            return Some(format!("{} → {at}", path[start..].join(" → ")));
        }
        if !done.insert(at) {
            return None;
        }
        path.push(at);
        let found = graph
            .get(at)
            .into_iter()
            .flatten()
            .find_map(|next| walk(next, graph, path, done));
        path.pop();
        found
    }
    let mut done = BTreeSet::new();
    let mut starts = graph.keys();
    starts.find_map(|start| walk(start, graph, &mut Vec::new(), &mut done))
}

/// The text up to the tests at its end, comment lines left out.
fn without_tests(text: &str) -> String {
    let tests = regex::Regex::new(r"#\[cfg\(test\)\]\n(?:pub\S* )?mod \w+ ?\{").unwrap();
    let code = tests.split(text).next().unwrap_or_default();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Every path of `text` that begins with `crate`, `super` or `self`, trees of `use` expanded.
fn paths(text: &str) -> Vec<String> {
    let uses = regex::Regex::new(r"\buse\s+((?:crate|super|self)\b[^;]*);").unwrap();
    let visibility = regex::Regex::new(r"pub\(in [^)]*\)").unwrap();
    let inline = regex::Regex::new(r"\b(?:crate|super)(?:::\w+)+").unwrap();
    let mut found = Vec::new();
    for tree in uses.captures_iter(text) {
        let tree: String = tree[1].split_whitespace().collect::<Vec<_>>().join(" ");
        expand(&tree, "", &mut found);
    }
    let rest = uses.replace_all(text, "");
    let rest = visibility.replace_all(&rest, "");
    found.extend(inline.find_iter(&rest).map(|path| path.as_str().to_owned()));
    found
}

/// Adds the paths of one `use` tree, each behind `prefix`.
fn expand(tree: &str, prefix: &str, found: &mut Vec<String>) {
    let Some((base, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        found.push(format!("{prefix}{}", path.trim()));
        return;
    };
    let group = group.trim_end().strip_suffix('}').expect("a closed group");
    let prefix = format!("{prefix}{}", base.trim());
    let (mut depth, mut start) = (0, 0);
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                expand(group[start..at].trim(), &prefix, found);
                start = at + 1;
            }
            _ => {}
        }
    }
    expand(group[start..].trim(), &prefix, found);
}

/// The deepest known module that `path`, as `module` writes it, leads into.
fn resolve(module: &Module, path: &str, known: &BTreeSet<Module>) -> Option<Module> {
    let mut whole: Module = Vec::new();
    let mut base = module.clone();
    for part in path.split("::") {
        match part {
            "crate" => base.clear(),
            "super" => {
                base.pop();
            }
            "self" | "" => {}
            name => whole.push(name.to_owned()),
        }
    }
    base.extend(whole);
    while !base.is_empty() && !known.contains(&base) {
        base.pop();
    }
    (!base.is_empty()).then_some(base)
}

#[test]
fn use_trees_are_expanded_and_resolved() {
    let mut found = Vec::new();
    expand("crate::{a, b::{self, C}, d as e}", "", &mut found);
    assert_eq!(
        found,
        ["crate::a", "crate::b::self", "crate::b::C", "crate::d"]
    );
    let module = |path: &str| path.split("::").map(str::to_owned).collect::<Module>();
    let known = BTreeSet::from([module("a"), module("a::b"), module("c")]);
    let resolved = |path| resolve(&module("a::b"), path, &known);
    assert_eq!(resolved("super::X"), Some(module("a")));
    assert_eq!(resolved("crate::c::Y"), Some(module("c")));
    assert_eq!(resolved("crate::unknown"), None);
}

#[test]
fn a_circle_is_found() {
    let graph = |edges: &[(&str, &[&str])]| {
        let edge = |(from, to): &(&str, &[&str])| {
            let to = to.iter().map(|name| (*name).to_owned()).collect();
            ((*from).to_owned(), to)
        };
        edges.iter().map(edge).collect::<BTreeMap<_, BTreeSet<_>>>()
    };
    assert_eq!(circle(&graph(&[("a", &["b", "c"]), ("b", &["c"])])), None);
    let found = circle(&graph(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]));
    assert_eq!(found.as_deref(), Some("b → c → b"));
}
