//! Patterns of paths, such as `notes/*.md`.

use crate::data::DataError;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The files that a pattern names, sorted.
pub(super) fn matching(pattern: &str) -> Result<Vec<PathBuf>, DataError> {
    let bad = |reason: String| DataError::Spec { spec: pattern.to_string(), reason };
    // The crate's own search fails on names that are not UTF-8.
    let options =
        glob::MatchOptions { require_literal_separator: true, require_literal_leading_dot: true, ..Default::default() };
    let matcher = glob::Pattern::new(pattern).map_err(|e| bad(format!("not a pattern: {e}")))?;
    let root = fixed_part(Path::new(pattern));
    let deepest =
        if pattern.contains("**") { usize::MAX } else { Path::new(pattern).iter().count() - root.iter().count() };
    let (mut found, mut folders, mut seen) = (Vec::new(), vec![(root, 1)], HashSet::new());
    while let Some((folder, depth)) = folders.pop() {
        let here = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
        if !here.canonicalize().is_ok_and(|full| seen.insert(full)) {
            continue;
        }
        for item in fs::read_dir(here).map_err(|e| DataError::io("list", here, e))? {
            let item = item.map_err(|e| DataError::io("list", here, e))?;
            let path = folder.join(item.file_name());
            let Ok(meta) = fs::metadata(&path) else { continue };
            if meta.is_dir() && depth < deepest {
                folders.push((path, depth + 1));
            } else if meta.is_file() && meta.len() > 0 && matcher.matches_path_with(&path, options) {
                found.push(path);
            }
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(bad("no file that is not empty matches this pattern".to_string()));
    }
    Ok(found)
}

/// The folder of a pattern before its first wildcard.
pub(super) fn fixed_part(pattern: &Path) -> PathBuf {
    pattern.iter().map_while(|part| literal(part.to_str()?)).collect()
}

/// A part of a pattern that stands for one name: without wildcards, but for those that are escaped, as `[[]` is `[`.
fn literal(part: &str) -> Option<String> {
    let (mut name, mut rest) = (String::new(), part);
    while let Some(c) = rest.chars().next() {
        let escaped = ["[*]", "[?]", "[[]", "[]]"].into_iter().find(|escaped| rest.starts_with(escaped));
        match (escaped, c) {
            (Some(escaped), _) => name.push_str(&escaped[1..2]),
            (None, '*' | '?' | '[') => return None,
            (None, c) => name.push(c),
        }
        rest = &rest[escaped.map_or(c.len_utf8(), str::len)..];
    }
    Some(name)
}
