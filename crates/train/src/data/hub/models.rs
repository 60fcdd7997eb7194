//! Models of the hub by name, and which files of a repository a model consists of.
//!
//! ```text
//! hf:OWNER/NAME[@REVISION][:FILE]
//! ```
//!
//! REVISION is a branch, a tag or a commit (`main` by default), FILE a path in the repository. Without FILE, a repository with a
//! `config.json` is a model folder: that, its weights (safetensors, else `pytorch_model.bin`) and its tokenizer; without one, the only
//! file of weights is the model, with the tokenizer beside it.

use super::names::is_repo;

/// What a model folder has.
const CONFIG: &str = "config.json";
/// Weights in a folder, best first.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// Endings of files that can be models by themselves.
const ENDINGS: [&str; 4] = [".safetensors", ".pt", ".pth", ".bin"];
/// What ends so, and is no model.
const OTHERS: [&str; 4] = ["tokenizer.bin", "training_args.bin", "optimizer.pt", "scheduler.pt"];

/// A model of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    repo: String,
    revision: String,
    file: Option<String>,
}

/// Which files a model consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub files: Vec<String>,
    /// The file that is the model; none where their folder is.
    pub model: Option<String>,
}

impl ModelName {
    /// The model that is named; none where it is a name of another form, an error where it is a bad one.
    pub fn parse(spec: &str) -> Option<Result<ModelName, String>> {
        spec.strip_prefix("hf:").map(|rest| {
            let (name, file) = rest.split_once(':').map_or((rest, None), |(name, file)| (name, Some(file.to_string())));
            let (repo, revision) = name.split_once('@').unwrap_or((name, "main"));
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if !is_repo(repo) {
                return Err(format!("`{repo}` is not the name of a model; expected hf:OWNER/NAME[@REVISION][:FILE]"));
            }
            if revision.is_empty()
                || revision.starts_with('.')
                || !revision.chars().all(plain)
                || revision.contains("..")
            {
                return Err(format!(
                    "`{revision}` is not a revision; expected a branch, a tag or a commit, without a slash"
                ));
            }
            if file.as_ref().is_some_and(String::is_empty) {
                return Err("there is no file behind the colon; expected hf:OWNER/NAME[@REVISION][:FILE]".to_string());
            }
            Ok(ModelName { repo: repo.to_string(), revision: revision.to_string(), file })
        })
    }

    /// `OWNER/NAME`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// A branch, a tag or a commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The file that is named.
    pub(super) fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The files that it consists of; else what the repository has instead.
    pub(super) fn select(&self, files: &[&str]) -> Result<Parts, String> {
        let has = |name: &str| files.contains(&name);
        if let Some(file) = &self.file {
            if !has(file) {
                let like = candidates(files);
                let list = if like.is_empty() { "no file of weights".to_string() } else { like.join(", ") };
                return Err(format!("it has no file {file}; there is {list}"));
            }
            return Ok(with_tokenizer(files, file));
        }
        if has(CONFIG) {
            let Some(weights) = WEIGHTS.into_iter().find(|name| has(name)) else {
                let index = files.iter().find(|file| file.ends_with(".index.json"));
                return Err(match index {
                    Some(index) => format!("its weights are in several files ({index}), which cannot be read"),
                    None => format!("it has a {CONFIG}, but neither {} nor {}", WEIGHTS[0], WEIGHTS[1]),
                });
            };
            let beside = ["tokenizer.json", "tokenizer.bin"].into_iter().filter(|name| has(name));
            let mut all: Vec<String> = [CONFIG, weights].into_iter().chain(beside).map(String::from).collect();
            if all.len() == 2 && has("tokenizer.model") {
                // So that it is refused by its name.
                all.push("tokenizer.model".into());
            }
            return Ok(Parts { files: all, model: None });
        }
        match candidates(files)[..] {
            [file] => Ok(with_tokenizer(files, file)),
            [] => Err("it has no file of weights".into()),
            ref many => {
                let list = many.iter().take(20).copied().collect::<Vec<_>>().join(", ");
                Err(format!("it has several models; name one: hf:{}:FILE with {list}", self.repo))
            }
        }
    }
}

/// The files that can be models by themselves.
fn candidates<'a>(files: &[&'a str]) -> Vec<&'a str> {
    let weights = |file: &&&str| {
        let name = file.rsplit('/').next().unwrap_or(file);
        ENDINGS.iter().any(|end| name.ends_with(end)) && !OTHERS.contains(&name) && !is_pieces(name)
    };
    files.iter().filter(weights).copied().collect()
}

/// `tok512.bin`: the tokenizers of llama2.c.
fn is_pieces(name: &str) -> bool {
    let number = name.strip_prefix("tok").and_then(|rest| rest.strip_suffix(".bin"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// A file and the tokenizers beside it.
fn with_tokenizer(files: &[&str], file: &str) -> Parts {
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    let beside = |other: &&&str| {
        let (at, name) = other.rsplit_once('/').unwrap_or(("", other));
        at == folder && (["tokenizer.json", "tokenizer.bin"].contains(&name) || is_pieces(name)) && **other != file
    };
    let all = [file].into_iter().chain(files.iter().filter(beside).copied());
    Parts { files: all.map(String::from).collect(), model: Some(file.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: &str) -> ModelName {
        ModelName::parse(spec).unwrap().unwrap()
    }

    #[test]
    fn a_name_has_a_revision_and_a_file_or_not() {
        let name = parse("hf:roneneldan/TinyStories-1M");
        assert_eq!((name.repo(), name.revision(), &name.file), ("roneneldan/TinyStories-1M", "main", &None));
        let name = parse("hf:a/b@v1.0:x/model.pt");
        assert_eq!((name.revision(), name.file.as_deref()), ("v1.0", Some("x/model.pt")));
        assert_eq!(ModelName::parse("models/a"), None);
        for (bad, says) in [
            ("hf:a", "name of a model"),
            ("hf:../b", "name of a model"),
            ("hf:a/b@", "revision"),
            ("hf:a/b@../x", "revision"),
            ("hf:a/b:", "colon"),
        ] {
            let error = ModelName::parse(bad).unwrap().unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn a_model_is_its_folder_or_its_only_file() {
        let neo = ["README.md", "config.json", "merges.txt", "pytorch_model.bin", "tokenizer.json", "vocab.json"];
        let folder = parse("hf:a/b").select(&neo).unwrap();
        assert_eq!((folder.files, folder.model), (vec!["config.json".into(), neo[3].into(), neo[4].into()], None));
        let both = ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.model"];
        assert_eq!(
            parse("hf:a/b").select(&both).unwrap().files,
            ["config.json", "model.safetensors", "tokenizer.model"]
        );
        let llama2c =
            ["stories15M.bin", "stories260K/stories260K.bin", "stories260K/tok512.bin", "stories260K/readme.md"];
        let one = parse("hf:a/b:stories260K/stories260K.bin").select(&llama2c).unwrap();
        assert_eq!(
            (&one.files[..], one.model.as_deref()),
            (&[llama2c[1].into(), llama2c[2].into()][..], Some(llama2c[1]))
        );
        let error = |spec: &str, files: &[&str]| parse(spec).select(files).unwrap_err();
        let several = error("hf:a/b", &llama2c);
        assert!(several.contains("hf:a/b:FILE with stories15M.bin, stories260K/stories260K.bin"), "{several}");
        assert!(!several.contains("tok512"));
        assert!(error("hf:a/b:none.pt", &llama2c).contains("no file none.pt; there is stories15M.bin"));
        assert!(error("hf:a/b", &["README.md"]).contains("no file of weights"));
        let sharded = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"];
        assert!(error("hf:a/b", &sharded).contains("several files (model.safetensors.index.json)"));
        let own = ["README.md", "book.pt", "tokenizer.json"];
        assert_eq!(parse("hf:a/b").select(&own).unwrap().files, ["book.pt", "tokenizer.json"]);
    }
}
