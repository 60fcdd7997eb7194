//! Models of other programs against those programs: PyTorch's logits, llama2.c's text, its bits per byte.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use flashlm_kernels::{Exec, Isa, Token};
use flashlm_model::io::safetensors::TensorFile;
use flashlm_model::model_file::read_params;
use flashlm_model::peer::PeerText;
use flashlm_model::sample::Settings;
use flashlm_model::tok::Tokenizer;
use flashlm_model::{Peer, Precision, Shape};
use flashlm_train::config::TrainSettings;
use flashlm_train::data::source::Source;
use flashlm_train::eval::bpb::{Float, Scorer};
use flashlm_train::eval::source::full;
use flashlm_train::expect::compare;
use flashlm_train::recognise::recognise;
use flashlm_train::run::{Hardware, Origin, Place, Request, Resume};
use flashlm_train::run_folder::RunFolder;
use flashlm_train::stepper::{Step, Stepper};
use flashlm_train::trainer::{Outcome, continued};

fn cx() -> Exec {
    Exec::new(Isa::detect().unwrap(), 2)
}

/// The folder `shared` beside the checkout, or what `FLASHLM_SHARED` names.
fn shared() -> Option<PathBuf> {
    let named = std::env::var_os("FLASHLM_SHARED").map(PathBuf::from);
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("shared"));
    let found = named.into_iter().chain(above).find(|folder| folder.join("fixtures").is_dir());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "../shared is missing in CI");
        eprintln!("skipped: ../shared is not there");
    }
    found
}

/// A file of `tests/reference`.
fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference").join(name)
}

#[test]
fn logits_are_those_of_pytorch() {
    let Some(shared) = shared() else { return };
    let fixtures = shared.join("fixtures");
    let expected = fixtures.join("v4_tiny_checkpoint_expected.safetensors");
    let own = ["v4_tiny_checkpoint.pt", "v4_tiny_weights_only.pt"].map(|name| (fixtures.join(name), expected.clone()));
    let peers = ["gpt_neo", "llama_gqa", "llama_tied"].map(|name| fixtures.join("peers").join(name));
    let peers = peers.map(|folder| (folder.clone(), folder.join("expected.safetensors")));
    for (model, expected) in own.into_iter().chain(peers) {
        let found = compare(&cx(), &model, &TensorFile::open(&expected).unwrap()).unwrap();
        assert!(found.passed(), "{}: {found:?}", model.display());
        assert_eq!(found.nll_abs_diff_max.is_some(), model.is_dir());
    }
}

/// The vocabulary of an original's file is not at hand; another one of its size has the same ids.
fn letters(size: usize) -> Tokenizer {
    let text: String = (' '..='~').chain('à'..='ÿ').flat_map(|c| [c, ' ']).collect();
    Tokenizer::train_frequency([text.as_str()].into_iter(), size).unwrap()
}

/// What `peers.py` printed: the numbers that transformers counts in each.
const COUNTED: [(&str, usize); 4] =
    [("gpt_neo_window", 23_160), ("gpt_neo_untied", 11_408), ("llama_one_key", 9_072), ("llama_biases", 8_268)];

#[test]
fn vectors_made_here_are_those_of_transformers() {
    for (name, numbers) in COUNTED {
        let folder = reference("peers").join(name);
        let expected = TensorFile::open(&folder.join("expected.safetensors")).unwrap();
        let found = compare(&cx(), &folder, &expected).unwrap();
        assert!(found.passed() && found.nll_abs_diff_max.is_some(), "{name}: {found:?}");
        assert_eq!(Peer::weights(&cx(), &folder).unwrap().parameters(), numbers, "{name}");
    }
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let from = reference("peers/llama_biases");
    let copy = |edit: &dyn Fn(&mut serde_json::Value)| {
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(from.join(name), at(name)).unwrap();
        }
        let mut config = serde_json::from_slice(&std::fs::read(at("config.json")).unwrap()).unwrap();
        edit(&mut config);
        std::fs::write(at("config.json"), config.to_string()).unwrap();
    };
    let error = || match Peer::open(&cx(), place.path()) {
        Ok(_) => panic!("it was opened"),
        Err(e) => e.to_string(),
    };
    let path = place.path().display().to_string();
    let says = |part: &str| {
        let error = error();
        assert!(error.contains(part) && error.matches(&path).count() == 1, "{error}");
    };
    copy(&|config| config["rope_scaling"] = serde_json::json!({"factor": 4.0}));
    says("`rope_type`: expected default, found none, and a factor of 4");
    copy(&|_| ());
    says("expected tokenizer.json or tokenizer.bin");
    std::fs::write(at("tokenizer.model"), b"\x0a").unwrap();
    says("tokenizer.model: a SentencePiece model");
    std::fs::write(at("tokenizer.json"), br#"{"model": {"type": "Unigram"}}"#).unwrap();
    says("tokenizer.json: model type is Unigram");
    std::fs::rename(at("model.safetensors"), at("model-00001-of-00002.safetensors")).unwrap();
    std::fs::write(at("model.safetensors.index.json"), "{}").unwrap();
    says("model.safetensors.index.json: the weights are in several files");
    // What a path is, before it is opened.
    std::fs::remove_file(at("model.safetensors.index.json")).unwrap();
    copy(&|config| drop(config.as_object_mut().unwrap().remove("model_type")));
    assert_eq!(recognise(place.path()).to_string(), "a model folder whose config.json has no model_type");
    let header: Vec<u8> = [64i32, 172, 5, 8, 4, 512, 512].into_iter().flat_map(i32::to_le_bytes).collect();
    std::fs::write(at("cut.bin"), [&header[..], &[0; 1000]].concat()).unwrap();
    let cut = recognise(&at("cut.bin")).to_string();
    assert!(
        cut.starts_with("a damaged llama2.c file (expected 1") && cut.ends_with("found 1028: it was cut short)"),
        "{cut}"
    );
    std::fs::write(at("other.bin"), (0..1028u32).map(|i| (i * 37 % 251) as u8).collect::<Vec<_>>()).unwrap();
    assert_eq!(recognise(&at("other.bin")).to_string(), "a binary file");
}

#[test]
fn stories260k_writes_its_known_text() {
    let Some(shared) = shared() else { return };
    let weights = shared.join("data/weights");
    let (cx, model) = (cx(), weights.join("stories260K.bin"));
    let peer = Arc::new(Peer::open(&cx, &model).unwrap());
    let settings = Settings { temperature: 0.0, ..Settings::default() };
    let mut text = PeerText::new(&peer, "", settings, 200, &[]).unwrap();
    let mut written = String::new();
    while text.finish().is_none() {
        text.advance(&cx).unwrap();
        written += text.text();
    }
    let known = std::fs::read_to_string(weights.join("stories260K_greedy_200.txt")).unwrap();
    assert_eq!(written.trim_end(), known.trim_end());
}

#[test]
fn stories260k_has_its_known_bits_per_byte() {
    let Some(shared) = shared() else { return };
    let cx = cx();
    let peer = Arc::new(Peer::open(&cx, &shared.join("data/weights/stories260K.bin")).unwrap());
    let source = Source::parse(shared.join("data/tinystories/valid.txt").to_str().unwrap()).unwrap();
    let mut float = Float::new(peer.clone(), cx);
    let scorers: Vec<&mut dyn Scorer> = vec![&mut float];
    let scored = full(scorers, peer.tokenizer().unwrap(), &source, &mut |_| ControlFlow::Continue(())).unwrap();
    // Measured with PyTorch, 512 tokens of context, to two digits.
    assert!((scored.reports[0].bpb - 0.91).abs() < 0.005, "{}", scored.reports[0].bpb);
}

#[test]
fn a_file_of_the_original_scripts_goes_on_as_pytorch_does() {
    let Some(shared) = shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), letters(61).to_json()).unwrap();
    let open = |name: &str| {
        let path = folder.path().join(name);
        std::fs::copy(shared.join("fixtures").join(name), &path).unwrap();
        Resume::open(&path).unwrap()
    };
    let file = TensorFile::open(&reference("resume.safetensors")).unwrap();
    let shape = file.shape("batches").unwrap();
    let (turns, b, t) = (shape[0], shape[1], shape[2] - 1);
    let tokens: Vec<Token> = file.ints("batches").unwrap().iter().map(|&id| id as Token).collect();
    let wanted = file.f64("losses").unwrap();
    let run = |resume: &Resume| {
        let settings = continued(&resume.from).unwrap();
        let train = TrainSettings { precision: Precision::F32, ..settings.train };
        let shape = Shape { batch: b, seq_len: t };
        let mut stepper = Stepper::new(&settings.model, Precision::F32, shape, &train).unwrap();
        stepper.params = read_params(&resume.from.tensors("model.safetensors").unwrap(), &settings.model, "").unwrap();
        let moments = resume.from.tensors("optimizer.safetensors").unwrap();
        for tensor in stepper.optimizers.state() {
            tensor.data.copy_from_slice(&moments.f32(&tensor.name).unwrap());
        }
        let cx = cx();
        let one = |i: usize| {
            let number = resume.from.step() + 1 + i as u64;
            let step = Step { shape, settings: &train, lr: 4e-3, momentum: 0.95, number, frozen: 0 };
            let window = |row: usize| &tokens[(i % turns * b + row) * (t + 1)..][..t + 1];
            stepper.step(&cx, step, window).loss
        };
        (0..wanted.len()).map(one).collect::<Vec<f64>>()
    };
    let resume = open("v4_tiny_checkpoint.pt");
    assert_eq!((resume.from.step(), wanted.len()), (1, 20));
    let losses = run(&resume);
    for (i, (got, want)) in losses.iter().zip(&wanted).enumerate() {
        assert!((got - want).abs() < 1e-4, "step {i}: {got} {want}");
    }
    // Without its moments it goes elsewhere: what is compared depends on them.
    let bare = open("v4_tiny_weights_only.pt");
    assert_eq!(bare.from.step(), 0);
    let apart = run(&bare).iter().zip(&wanted).map(|(got, want)| (got - want).abs()).fold(0.0, f64::max);
    assert!(apart > 1e-3, "{apart}");
}

#[test]
fn such_a_file_is_resumed_as_a_run() {
    let Some(shared) = shared() else { return };
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    std::fs::write(at("tokenizer.json"), letters(61).to_json()).unwrap();
    let hardware = Hardware::detect().unwrap();
    let train = |origin: &Path, steps: u64, run: &Path| {
        let resume = Resume::open(origin).unwrap();
        let mut settings = continued(&resume.from).unwrap();
        settings.data.source = "synthetic:60".into();
        (settings.train.steps, settings.train.threads, settings.train.precision) = (steps, 1, Precision::F32);
        let origin = Origin::Resumed(resume);
        let request = Request { origin, offline: true, cache: at("cache"), ..Request::new(settings) };
        let resolved = request.resolve(&hardware, &mut |_| ()).unwrap();
        let place = Place::choose(&resolved, Some(run), None).unwrap();
        let (cx, stop) = (resolved.exec(), AtomicBool::new(false));
        let prepared = resolved.prepare(&stop, &mut |_| ()).unwrap();
        let mut trainer = prepared.trainer(&cx, place.claim(None).unwrap()).unwrap();
        assert_eq!(trainer.run(&stop, &mut |_| ()).unwrap().outcome, Outcome::Finished);
    };
    for (name, first) in [("v4_tiny_checkpoint.pt", 1), ("v4_tiny_weights_only.pt", 0)] {
        std::fs::copy(shared.join("fixtures").join(name), at(name)).unwrap();
        let run = at(&name.replace('.', "-"));
        train(&at(name), 4, &run);
        let steps = |run: &Path| RunFolder::at(run).list().unwrap().iter().map(|c| c.step).collect::<Vec<_>>();
        let saved = steps(&run);
        assert_eq!(
            (saved.first(), saved.last()),
            (Some(if first == 0 { &4 } else { &1 }), Some(&4)),
            "{name}: {saved:?}"
        );
        // From now on it is a run like any other.
        train(&run, 6, &run);
        assert_eq!(steps(&run).last(), Some(&6));
    }
}

/// A v3 that PyTorch saved after one step of AdamW, whole and as a bare state dict.
#[test]
fn a_v3_of_the_original_has_its_logits_and_its_moments() {
    let expected = TensorFile::open(&reference("v3_checkpoint.safetensors")).unwrap();
    for name in ["v3_checkpoint.pt", "v3_checkpoint_bare.pt"] {
        let found = compare(&cx(), &reference(name), &expected).unwrap();
        assert!(found.passed(), "{name}: {found:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), letters(97).to_json()).unwrap();
    let open = |name: &str| {
        let path = folder.path().join(name);
        std::fs::copy(reference(name), &path).unwrap();
        Resume::open(&path).unwrap()
    };
    let resume = open("v3_checkpoint.pt");
    assert_eq!((resume.from.step(), continued(&resume.from).unwrap().train.optimizer.as_str()), (1, "normuon"));
    let moments = resume.from.tensors("optimizer.safetensors").unwrap();
    for name in ["embedding.weight", "block.token_mixer.layers.2.conv_gate.conv.weight", "final_norm.scale"] {
        let [m, v] = ["m", "v"].map(|kind| moments.f32(&format!("{kind}.{name}")).unwrap());
        assert!(m.iter().any(|&m| m != 0.0), "{name}");
        // After one step m = 0.1 g and v = 0.001 g^2.
        assert!(m.iter().zip(&v).all(|(m, v)| (v - 0.1 * m * m).abs() <= 1e-5 * v), "{name}");
    }
    // The matrices are NorMuon's, whose momentum is of another kind.
    assert!(moments.f32("m.block.glu.up_proj.weight").unwrap().iter().all(|&m| m == 0.0));
    assert_eq!(open("v3_checkpoint_bare.pt").from.step(), 0);
    // What no v3 has is told by its key.
    let mut bytes = std::fs::read(reference("v3_checkpoint.pt")).unwrap();
    let key = b"n_recursions";
    let at = bytes.windows(key.len()).position(|part| part == key).unwrap() + key.len();
    let at = at + bytes[at..at + 8].windows(2).position(|part| part == b"K\x02").unwrap() + 1;
    bytes[at] = 0;
    let path = folder.path().join("none.pt");
    std::fs::write(&path, bytes).unwrap();
    let error = flashlm_model::original::Original::open(&path).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("`n_recursions` in its `config` that is no number from 1 to 128"), "{error}");
}
