//! Where a path ends that leads nowhere.

use crate::similar::edit_distance;
use std::path::Path;

/// How far `path` exists, and the most similar name at the point where it ends.
pub(crate) fn missing_hint(path: &Path) -> String {
    let here = Path::new(".");
    let mut ancestors = path.ancestors().map(|a| if a.as_os_str().is_empty() { here } else { a });
    let mut wanted = match ancestors.next() {
        Some(path) => path,
        None => return String::new(),
    };
    for folder in ancestors {
        if folder.is_dir() {
            let name = wanted.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            // A folder of millions of files is not worth a hint.
            let names = folder.read_dir().into_iter().flatten().take(10_000).flatten();
            let alike = names
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .map(|other| (edit_distance(&name, &other.to_lowercase()), other))
                .filter(|(distance, _)| *distance <= (name.len() / 3).max(2).min(name.len() / 2))
                .min();
            return match alike {
                Some((_, other)) => format!("; did you mean {}?", folder.join(other).display()),
                None => format!("; the nearest folder that exists is {}", folder.display()),
            };
        }
        wanted = folder;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::Folder;

    #[test]
    fn missing_paths_name_the_parent_or_a_neighbour() {
        let folder = Folder::new();
        folder.file("stories/train.txt", "x");
        let typo = missing_hint(&folder.path().join("stories/trian.txt"));
        assert!(typo.contains("did you mean") && typo.contains("train.txt"), "{typo}");
        let folder_typo = missing_hint(&folder.path().join("storeis/train.txt"));
        assert!(folder_typo.ends_with("stories?"), "{folder_typo}");
        // Every name is near to one of a letter.
        folder.file("ab", "x");
        let short = missing_hint(&folder.path().join("-"));
        assert!(!short.contains("did you mean"), "{short}");
        let far = missing_hint(&folder.path().join("quite/another/place.txt"));
        assert!(far.contains("nearest folder") && far.ends_with(&folder.path().display().to_string()), "{far}");
    }
}
