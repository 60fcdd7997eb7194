//! One C11 file with engine, tokenizer, sampler and weights (`c/`, of which `story.h` says how it is used). Its weights are string
//! literals, which compilers read a hundred times faster than lists of numbers.

use super::source::{Exported, Refused, Source};
use super::story;

const PARTS: [&str; 8] = [
    include_str!("c/story.h"),
    include_str!("c/exact.c"),
    include_str!("c/matrix.c"),
    include_str!("c/ring.c"),
    include_str!("c/pointer.c"),
    include_str!("c/model.c"),
    include_str!("c/text.c"),
    include_str!("c/sample.c"),
];
const MAIN: &str = include_str!("c/main.c");

/// What weights may be written as: the codes of the packed model, in the file or in one of their own.
pub const WEIGHTS: &[&str] = &["packed", "separate"];

/// The bytes of the file, or of the engine and `story.bin`.
pub fn write(source: &Source, weights: &str) -> Result<Exported, Refused> {
    let model = story::bytes(source)?;
    if weights == "separate" {
        return Ok(Exported::Folder(vec![("story.c", engine(None).into_bytes()), ("story.bin", model)]));
    }
    Ok(Exported::File(engine(Some(&model)).into_bytes()))
}

/// The program with its model, or one that reads a model.
fn engine(model: Option<&[u8]>) -> String {
    let mut file = "/* cc -std=c11 -O3 -march=native -ffp-contract=off story.c -o story && ./story -p \"Once upon a time\"\n * A \
                    language model written by flashlm export c: see the API below; -DSTORY_NO_MAIN leaves out the program. */\n"
        .to_owned();
    if model.is_none() {
        file += "/* The model is a file of its own: the program reads it, and a program of yours gives its bytes to story_init. */\n\
                 #define STORY_SEPARATE\n";
    }
    file += &PARTS.join("\n");
    if let Some(model) = model {
        file += "\n/* The model, little-endian. */\n#if defined(__GNUC__)\n#pragma GCC diagnostic ignored \"-Woverlength-strings\"\n\
                 #endif\nstatic const unsigned char own_model[] =\n";
        literal(&mut file, model);
        file += ";\n\nSTORY_API const unsigned char *story_model(size_t *bytes) {\n    *bytes = sizeof own_model - 1;\n    return \
                 own_model;\n}\n";
    }
    file + "\n" + MAIN
}

/// Appends bytes as string literals of some hundred characters.
fn literal(file: &mut String, bytes: &[u8]) {
    for line in bytes.chunks(64) {
        *file += "\"";
        for (i, &byte) in line.iter().enumerate() {
            match byte {
                b'"' | b'\\' | b'?' => file.extend(['\\', byte.into()]),
                b' '..=b'~' => file.push(byte.into()),
                // A digit behind it would be read as one of its own.
                _ if line.get(i + 1).is_some_and(|next| next.is_ascii_digit()) => *file += &format!("\\{byte:03o}"),
                _ => *file += &format!("\\{byte:o}"),
            }
        }
        *file += "\"\n";
    }
    file.truncate(file.trim_end().len());
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Arc;

    use flashlm_kernels::{Exec, Isa};

    use super::*;
    use crate::config::ModelConfig;
    use crate::export::Source;
    use crate::infer::testing::{Noise, shapes};
    use crate::infer::{Engine, Generation, PackedModel};
    use crate::io::safetensors::TensorFile;
    use crate::sample::Settings;
    use crate::testing::{recipe, tiny};
    use crate::tok::Tokenizer;

    const WARNINGS: [&str; 6] = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"];

    /// Compiler and flags of every way a file is built here.
    fn builds() -> Vec<(&'static str, Vec<&'static str>)> {
        let all = [
            ("cc", vec!["-O3"]),
            ("cc", vec!["-O3", "-march=native"]),
            ("cc", vec!["-O2", "-DSTORY_PLAIN"]),
            ("cc", vec!["-O1", "-march=native", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]),
            ("clang", vec!["-O3", "-march=native"]),
        ];
        let there = |name: &str| Command::new(name).arg("--version").output().is_ok();
        let found: Vec<_> = all.into_iter().filter(|(name, _)| there(name)).collect();
        if !found.iter().any(|(name, _)| *name == "clang") {
            eprintln!("without clang: C files are tested with cc alone");
        }
        assert!(!found.is_empty(), "no C compiler (cc), which the build of this program needs too");
        found
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("flashlm-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
            std::fs::write(self.0.join(name), bytes).unwrap();
            self.0.join(name)
        }

        /// Compiles `story.c` of this folder; the program.
        fn compile(&self, compiler: &str, flags: &[&str]) -> PathBuf {
            let program = self.0.join("story");
            let mut command = Command::new(compiler);
            command.args(WARNINGS).args(flags).arg(self.0.join("story.c")).arg("-o").arg(&program);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            program
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// What the program prints with the model in it, or that of a file.
    fn told(program: &Path, model: Option<&Path>, prompt: &str, s: &Settings) -> Result<String, String> {
        let mut command = Command::new(program);
        command.args(model.iter().flat_map(|model| [Path::new("-m"), *model])).args([
            "-p",
            prompt,
            "-n",
            "200",
            "-t",
            &s.temperature.to_string(),
        ]);
        command.args(["--top-k", &s.top_k.to_string(), "--top-p", &s.top_p.to_string()]);
        command.args(["--min-p", &s.min_p.to_string(), "--seed", &s.seed.to_string()]);
        let output = command.env("ASAN_OPTIONS", "detect_leaks=0").output().unwrap();
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(!err.contains("Sanitizer") && !err.contains("runtime error"), "{err}");
        if output.status.success() { Ok(out) } else { Err(err.into_owned()) }
    }

    fn wanted(model: &Arc<PackedModel>, prompt: &str, settings: &Settings) -> String {
        let mut engine = Engine::new(model.clone(), Exec::new(Isa::SCALAR, 1), 16);
        let mut generation = Generation::new(model, settings.clone(), 200, &[]).unwrap();
        generation.push(prompt);
        let mut text = prompt.to_owned();
        engine.generate(&mut generation, |piece| text += piece).unwrap();
        text + "\n"
    }

    /// The most likely tokens, and three ways of drawing them.
    fn ways() -> [Settings; 4] {
        let base = Settings::writing();
        [
            Settings { temperature: 0.0, ..base.clone() },
            Settings { seed: 1, ..base.clone() },
            Settings { temperature: 1.0, top_p: 1.0, seed: u64::MAX, ..base.clone() },
            Settings { temperature: 1.5, top_k: 40, min_p: 0.01, seed: 3, ..base },
        ]
    }

    fn source(bytes: &[u8]) -> Source {
        Source::read(TensorFile::from_bytes(bytes.to_vec(), "packed").unwrap()).unwrap()
    }

    /// A model of noise that points at the `pointer` tokens before; with a low bias it does not.
    fn pointing(mixer: &str, pointer: usize, reset: bool, bias: f32) -> Noise {
        Noise::with(ModelConfig { pointer, reset, ..recipe(mixer) }, &Tokenizer::bytes(), |name, own| match name {
            "pointer.scale" => own.fill(3.0),
            "pointer.bias" => own.fill(bias),
            _ => {}
        })
    }

    #[test]
    fn every_shape_of_model_writes_what_the_runtime_writes() {
        let folder = Folder::new("c-shapes");
        folder.write("story.c", engine(None).as_bytes());
        let mut models: Vec<_> = shapes().into_iter().map(|(name, config)| (name, Noise::new(config))).collect();
        // Rings of 16, 32, 64 and 320 rows, of which 200 tokens go round some more than once.
        for (mixer, window) in [("conv", 1), ("delta", 7), ("attention", 40), ("leaky", 300)] {
            let [model, other] = [2.0, -80.0].map(|bias| pointing(mixer, window, window % 2 == 1, bias));
            let [text, without] = [&model, &other].map(|noise| wanted(&noise.model, "One day", &ways()[2]));
            assert_ne!(text, without, "{mixer}: pointers that change no text test nothing");
            models.push((format!("{mixer}, pointers into {window}"), model));
        }
        let texts: Vec<[String; 4]> =
            models.iter().map(|(_, noise)| ways().map(|way| wanted(&noise.model, "One day", &way))).collect();
        assert!(texts.iter().any(|texts| texts[0].len() > 180), "texts that end at once test nothing");
        for (compiler, flags) in builds() {
            let program = folder.compile(compiler, &flags);
            for ((name, noise), texts) in models.iter().zip(&texts) {
                let model = folder.write("model", &story::bytes(&source(&noise.bytes)).unwrap());
                for (way, text) in ways().iter().zip(texts) {
                    assert_eq!(
                        told(&program, Some(&model), "One day", way).as_ref(),
                        Ok(text),
                        "{name}: {compiler} {flags:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_vocabulary_splits_and_joins_as_here() {
        let corpus =
            "Once upon a time, there was a little girl who said \"I'm here!\" and they'd 12 cats; naïve 你好 😀. "
                .repeat(9);
        let tokenizers = [
            Tokenizer::bytes(),
            Tokenizer::train_bpe([corpus.as_str()].into_iter(), 400).unwrap(),
            Tokenizer::train_frequency([corpus.as_str()].into_iter(), 60).unwrap(),
        ];
        let long = "a".repeat(3000);
        let prompts = [
            "",
            " ",
            "  x",
            "x  \n\n y\u{3000}\u{a0}z",
            "I'm 'll they'd''s",
            "naïve Été ½ ٣ 12a b",
            "你好😀\u{301}",
            "<|endoftext|>",
            "\u{10ffff}\u{e000}\u{d7ff}",
            "once upon a time there was",
            long.as_str(),
        ];
        let folder = Folder::new("c-texts");
        folder.write("story.c", engine(None).as_bytes());
        for (compiler, flags) in builds() {
            let program = folder.compile(compiler, &flags);
            for tokenizer in &tokenizers {
                let noise = Noise::with(tiny("conv"), tokenizer, |_, _| {});
                let model = folder.write("model", &story::bytes(&source(&noise.bytes)).unwrap());
                for prompt in prompts {
                    let way = Settings { temperature: 1.0, ..Settings::writing() };
                    let want = wanted(&noise.model, prompt, &way);
                    assert_eq!(
                        told(&program, Some(&model), prompt, &way),
                        Ok(want),
                        "{}: {prompt:?}",
                        tokenizer.kind()
                    );
                }
            }
        }
    }

    #[test]
    fn damaged_models_and_wrong_flags_are_told() {
        let folder = Folder::new("c-damage");
        folder.write("story.c", engine(None).as_bytes());
        let program = folder.compile(
            "cc",
            &["-DSTORY_MEMORY=100000000", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
        );
        let noise = Noise::new(tiny("attention"));
        let bytes = story::bytes(&source(&noise.bytes)).unwrap();
        let way = &Settings::writing();
        for len in (1..bytes.len()).step_by(bytes.len() / 60) {
            let model = folder.write("model", &bytes[..len]);
            assert!(told(&program, Some(&model), "", way).unwrap_err().contains("damaged"), "cut at {len}");
        }
        // A window of more memory than a program should take.
        let wide = [&bytes[..44], &(1_u32 << 20).to_le_bytes(), &bytes[48..]].concat();
        let wide = told(&program, Some(&folder.write("model", &wide)), "", way);
        assert!(wide.as_ref().is_err_and(|e| e.contains("STORY_MEMORY")), "{wide:?}");
        let other = [&b"FLSTORY1"[..], &bytes[8..]].concat();
        for (file, word) in
            [("other", "damaged"), ("empty", "cannot be read"), ("none", "cannot be read"), ("", "cannot be read")]
        {
            if !["none", ""].contains(&file) {
                folder.write(file, if file == "other" { &other } else { b"" });
            }
            let e = told(&program, Some(&folder.0.join(file)), "", way).unwrap_err();
            assert!(e.starts_with("error") && e.contains(word), "{file}: {e}");
        }
        let model = folder.write("model", &bytes);
        for (way, word) in [
            (Settings { temperature: -1.0, ..way.clone() }, "-t"),
            (Settings { top_p: 0.0, ..way.clone() }, "--top-p"),
            (Settings { min_p: 2.0, ..way.clone() }, "--min-p"),
        ] {
            assert!(told(&program, Some(&model), "", &way).unwrap_err().contains(word));
        }
    }

    /// Models cut, flipped and overwritten anywhere: nothing that a sanitizer has a word about.
    #[test]
    fn damage_of_any_kind_is_refused_or_writes() {
        let folder = Folder::new("c-fuzz");
        folder.write("story.c", engine(None).as_bytes());
        let source_file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/exports/fuzz.c");
        let program = folder.0.join("fuzz");
        let mut command = Command::new("cc");
        command.args(["-std=gnu11", "-g", "-O1", "-ffp-contract=off", "-fsanitize=address,undefined"]);
        command.arg("-fno-sanitize-recover=all").arg("-I").arg(&folder.0).arg(source_file).arg("-o").arg(&program);
        assert!(command.status().unwrap().success(), "{command:?}");
        let corpus = "a tale of a tale that was told, 12 times over. ".repeat(9);
        let [bytes, bpe, frequency] = [
            Tokenizer::bytes(),
            Tokenizer::train_bpe([corpus.as_str()].into_iter(), 300).unwrap(),
            Tokenizer::train_frequency([corpus.as_str()].into_iter(), 20).unwrap(),
        ];
        let names: [(&str, &Tokenizer, &str); 4] = [
            ("attention", &bytes, "3000"),
            ("delta", &bpe, "3000"),
            ("conv", &bpe, "3000"),
            ("leaky", &frequency, "60"),
        ];
        for (mixer, tokenizer, rounds) in names {
            let noise =
                Noise::with(ModelConfig { pointer: 6, pointer_words: true, ..tiny(mixer) }, tokenizer, |_, _| {});
            let model = folder.write("model", &story::bytes(&source(&noise.bytes)).unwrap());
            let output =
                Command::new(&program).arg(model).args([rounds, "1"]).env("ASAN_OPTIONS", "detect_leaks=0").output();
            let output = output.unwrap();
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{mixer}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(!told.contains(" 0 refused") && !told.contains(" 0 wrote"), "{mixer}: {told}");
        }
    }

    #[test]
    fn golden_models_compile_and_write_the_same() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        for name in ["conv", "delta", "hybrid"] {
            let bytes = std::fs::read(golden.join(name).with_extension("safetensors")).unwrap();
            let folder = Folder::new(&format!("c-{name}"));
            let Ok(Exported::File(file)) = write(&source(&bytes), "packed") else { panic!("a folder") };
            folder.write("story.c", &file);
            let model = Arc::new(PackedModel::from_bytes(bytes, name).unwrap());
            for (compiler, flags) in builds().into_iter().filter(|(_, flags)| flags.len() < 3) {
                let program = folder.compile(compiler, &flags);
                for way in ways() {
                    let want = wanted(&model, "One day", &way);
                    assert_eq!(told(&program, None, "One day", &way), Ok(want), "{name}: {compiler} {flags:?}");
                }
            }
            // The interface alone.
            folder.compile("cc", &["-DSTORY_NO_MAIN", "-c"]);
        }
    }
}
