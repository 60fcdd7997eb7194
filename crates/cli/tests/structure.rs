//! The shape of the house, read from the sources: files use each other in one direction, modules lie in the layers that
//! docs/architecture.md draws, and a file holds one noun.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a file without its tests.
const LINES: usize = 420;

/// One source file without its tests.
struct Source {
    path: PathBuf,
    lines: Vec<String>,
    /// Names that `use` brings in: of each, its path from the crate's root.
    imports: BTreeMap<String, Vec<String>>,
}

/// All files of a crate by their module path, which is empty for the root.
type Crate = BTreeMap<Vec<String>, Source>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn crates() -> Vec<(String, Crate)> {
    let names = ["kernels", "model", "train", "serve", "cli", "python"];
    names.map(|name| (name.to_string(), read_crate(&root().join("crates").join(name).join("src")))).into()
}

fn read_crate(src: &Path) -> Crate {
    let mut files = Crate::new();
    let mut tests = Vec::new();
    let mut folders = vec![src.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                // A program beside a library of the same crate calls it, and has no modules.
                if path == src.join("main.rs") && src.join("lib.rs").exists() {
                    continue;
                }
                let module = module_of(path.strip_prefix(src).unwrap());
                let (lines, own_tests) = without_tests(&fs::read_to_string(&path).unwrap());
                tests.extend(own_tests.into_iter().map(|name| [&module[..], &[name]].concat()));
                files.insert(module, Source { path, lines, imports: BTreeMap::new() });
            }
        }
    }
    // Files that are modules of tests, and what lies below them.
    files.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
    let modules: BTreeSet<_> = files.keys().cloned().collect();
    for (module, source) in &mut files {
        for (_, tree) in uses(&source.lines) {
            for path in flat(&tree) {
                let path = absolute(module, &path, &modules);
                if let Some(name) = path.last() {
                    source.imports.insert(name.clone(), path.clone());
                }
            }
        }
    }
    files
}

fn module_of(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> = path.with_extension("").iter().map(|p| p.to_str().unwrap().to_string()).collect();
    if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// The lines outside of `#[cfg(test)]` items, comments left out, and the modules that are for tests alone.
fn without_tests(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut lines, mut tests) = (Vec::new(), Vec::new());
    let mut all = text.lines();
    while let Some(line) = all.next() {
        if line.trim() == "#[cfg(test)]" {
            let indent = line.len() - line.trim_start().len();
            let end = format!("{}}}", " ".repeat(indent));
            let Some(item) = all.by_ref().find(|line| !line.trim_start().starts_with("#[")) else { break };
            if let Some(name) = item.trim_end_matches(';').split("mod ").nth(1)
                && item.ends_with(';')
            {
                tests.push(name.to_string());
            }
            if !item.ends_with(';') && !item.ends_with('}') {
                all.by_ref().find(|line| *line == end || *line == format!("{end};"));
            }
        } else if !line.trim_start().starts_with("//") {
            lines.push(line.to_string());
        }
    }
    (lines, tests)
}

/// The trees of all `use` items, and whether each is public.
fn uses(lines: &[String]) -> Vec<(bool, String)> {
    let (mut all, mut lines) = (Vec::new(), lines.iter());
    while let Some(line) = lines.next() {
        let (public, line) = match line.trim_start().strip_prefix("pub") {
            Some(rest) => (true, rest.trim_start_matches(|c: char| c != ' ').trim_start()),
            None => (false, line.trim_start()),
        };
        let Some(start) = line.strip_prefix("use ") else { continue };
        let mut tree = start.to_string();
        while !tree.contains(';') {
            tree += lines.next().expect("the end of a use");
        }
        all.push((public, tree.split(';').next().unwrap_or_default().split_whitespace().collect()));
    }
    all
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`; a `self` is the path before it.
fn flat(tree: &str) -> Vec<Vec<String>> {
    let Some(open) = tree.find('{') else {
        let name = tree.split("as").next().unwrap_or(tree);
        return vec![name.split("::").filter(|part| !part.is_empty() && *part != "self").map(String::from).collect()];
    };
    let prefix: Vec<String> = tree[..open].split("::").filter(|p| !p.is_empty()).map(String::from).collect();
    let inside = &tree[open + 1..tree.rfind('}').unwrap()];
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inside[start..]);
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.flat_map(flat).map(|path| [prefix.clone(), path].concat()).collect()
}

/// A path from the crate's root; empty for what another crate has.
fn absolute(module: &[String], path: &[String], modules: &BTreeSet<Vec<String>>) -> Vec<String> {
    match path.first().map(String::as_str) {
        Some("crate") => path[1..].to_vec(),
        Some("self") => [module, &path[1..]].concat(),
        Some("super") => {
            let up = path.iter().take_while(|part| *part == "super").count();
            [&module[..module.len().saturating_sub(up)], &path[up..]].concat()
        }
        Some(first) if modules.contains(&[module, &[first.to_string()]].concat()) => [module, path].concat(),
        _ => Vec::new(),
    }
}

/// The module that defines what a path names: imports of the modules on the way are followed.
fn definer(files: &Crate, path: &[String], depth: usize) -> Option<Vec<String>> {
    let at = (0..=path.len()).rev().find(|&n| files.contains_key(&path[..n]))?;
    let module = &path[..at];
    match path.get(at).and_then(|name| files[module].imports.get(name)) {
        Some(further) if depth < 8 && !further.is_empty() => definer(files, further, depth + 1),
        _ => Some(module.to_vec()),
    }
}

/// Which files use which, by their module paths.
fn arrows(files: &Crate) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let modules: BTreeSet<_> = files.keys().cloned().collect();
    let mut all = BTreeMap::new();
    for (module, source) in files {
        let mut used = BTreeSet::new();
        let text = source.lines.join("\n");
        // A public import is a name for others; this file does not use it itself.
        let private = uses(&source.lines).into_iter().filter(|(public, _)| !public);
        let mut paths: Vec<Vec<String>> = private.flat_map(|(_, tree)| flat(&tree)).collect();
        for start in ["crate::", "super::"] {
            for (at, _) in text.match_indices(start) {
                let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
                let path: String = text[at..].chars().take_while(|&c| word(c)).collect();
                let inside = text[..at].chars().next_back().is_some_and(word);
                if !inside && !path.ends_with("::") {
                    paths.push(path.split("::").map(String::from).collect());
                }
            }
        }
        for path in paths {
            let path = absolute(module, &path, &modules);
            if let Some(target) = definer(files, &path, 0).filter(|_| !path.is_empty())
                && target != *module
            {
                used.insert(target);
            }
        }
        all.insert(module.clone(), used);
    }
    all
}

/// All that can be reached from a file.
fn reach(arrows: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>, from: &Vec<String>) -> BTreeSet<Vec<String>> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(at) = next.pop() {
        for to in &arrows[at] {
            if seen.insert(to.clone()) {
                next.push(to);
            }
        }
    }
    seen
}

#[test]
fn files_use_each_other_in_one_direction() {
    let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
    let mut files_read = 0;
    for (_, files) in crates() {
        let arrows = arrows(&files);
        files_read += files.len();
        let reached: BTreeMap<_, _> = arrows.keys().map(|module| (module, reach(&arrows, module))).collect();
        for (module, to) in &reached {
            let circle = to.iter().filter(|other| to.contains(*module) && reached[other].contains(*module));
            let name = |module: &Vec<String>| {
                files[module].path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/")
            };
            let circle: BTreeSet<String> = circle.map(name).collect();
            if !circle.is_empty() {
                circles.insert(circle.into_iter().collect());
            }
        }
    }
    assert!(files_read > 150, "{files_read} files");
    assert!(circles.is_empty(), "files that use each other in a circle: {circles:?}");
}

#[test]
fn modules_lie_in_the_layers_that_are_drawn() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    for (name, files) in crates() {
        let title = format!("layers of {name}");
        let drawn = page.split("```").find(|block| block.starts_with(&format!("text {title}\n")));
        let drawn = drawn.unwrap_or_else(|| panic!("docs/architecture.md has no block \"```text {title}\""));
        let layer: BTreeMap<&str, usize> = (drawn.lines().skip(1).enumerate())
            .flat_map(|(i, line)| line.split_whitespace().map(move |module| (module, i)))
            .collect();
        let mut there = BTreeSet::new();
        for (module, used) in arrows(&files) {
            let Some(from) = module.first() else { continue };
            there.insert(from.clone());
            for to in used.iter().filter_map(|to| to.first()).filter(|to| *to != from) {
                let of = |module: &String| layer.get(module.as_str()).copied();
                let (Some(high), Some(low)) = (of(from), of(to)) else {
                    panic!("{title} in docs/architecture.md: `{from}` or `{to}` is not drawn");
                };
                let path = module.join("::");
                assert!(
                    high < low,
                    "{name}: {path} uses `{to}`, which docs/architecture.md draws above or beside `{from}`"
                );
            }
        }
        let drawn: BTreeSet<String> = layer.keys().map(|module| module.to_string()).collect();
        assert_eq!(there, drawn, "modules that are there (left) and those that docs/architecture.md draws in {title}");
    }
}

#[test]
fn a_file_holds_one_noun() {
    for (_, files) in crates() {
        for source in files.values() {
            let lines = source.lines.len();
            assert!(lines <= LINES, "{} has {lines} lines without its tests: split it", source.path.display());
        }
    }
}

/// A file that no `mod` names is not compiled, and nothing says so.
#[test]
fn every_file_belongs_to_a_module() {
    for (_, files) in crates() {
        for (module, source) in &files {
            let Some((name, parent)) = module.split_last() else { continue };
            let declares = |line: &String| {
                line.trim_end()
                    .strip_suffix(&format!("mod {name};"))
                    .is_some_and(|before| before.is_empty() || before.ends_with(' '))
            };
            assert!(
                files[parent].lines.iter().any(declares),
                "{} wants `mod {name};` in {}",
                source.path.display(),
                files[parent].path.display()
            );
        }
    }
}

/// Names of the folders, or of the files that hold `sign`, in a folder of the sources.
fn names(folder: &str, sign: Option<&str>) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let wanted = entries.filter(|path| match sign {
        None => path.is_dir(),
        Some(sign) => path.is_file() && fs::read_to_string(path).unwrap().contains(sign),
    });
    wanted.map(|path| path.file_stem().unwrap().to_str().unwrap().to_string()).collect()
}

#[test]
fn mixers_families_and_exports_are_registered() {
    let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
    let listed = set(flashlm_model::mixer::NAMES);
    assert_eq!(names("crates/model/src/mixer", None), listed, "a folder wants a line in `mixers!` (mixer/mod.rs)");
    let listed = set(flashlm_model::family::NAMES);
    assert_eq!(names("crates/model/src/family", None), listed, "a folder wants a line in `families!` (family/mod.rs)");
    let listed: Vec<&str> = flashlm_model::export::FORMATS.iter().map(|format| format.0).collect();
    let found = names("crates/model/src/export", Some("pub fn write(source: &Source,"));
    assert_eq!(found, set(&listed), "a file wants a line in `exports!` (export/mod.rs)");
}

#[test]
fn use_lines_are_read_as_the_compiler_reads_them() {
    let words = |path: &str| path.split("::").map(String::from).collect::<Vec<_>>();
    let flat = |tree: &str| flat(&tree.split_whitespace().collect::<String>());
    assert_eq!(flat("a::{self, b, c::{d, e}}"), ["a", "a::b", "a::c::d", "a::c::e"].map(words));
    let lines =
        ["fn f() {}", "pub(crate) use a::b;", "// or use c;", "    use d::{", "        e,", "    };"].map(String::from);
    assert_eq!(uses(&lines), [(true, "a::b".to_string()), (false, "d::{e,}".to_string())]);
    let modules = BTreeSet::from([words("m"), words("m::n")]);
    assert_eq!(absolute(&words("m::n"), &words("super::x"), &modules), words("m::x"));
    assert_eq!(absolute(&words("m"), &words("n::x"), &modules), words("m::n::x"));
    assert!(absolute(&words("m"), &words("std::x"), &modules).is_empty());
    let (lines, tests) = without_tests("a\n#[cfg(test)]\nmod t;\nb\n#[cfg(test)]\nmod u {\n    x\n}\nc\n");
    assert_eq!((lines.join(""), tests), ("abc".into(), vec!["t".to_string()]));
}
