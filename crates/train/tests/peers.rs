//! Models of other programs against those programs: PyTorch's logits, llama2.c's text, its bits per byte.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flashlm_kernels::{Exec, Isa};
use flashlm_model::Peer;
use flashlm_model::io::safetensors::TensorFile;
use flashlm_model::peer::PeerText;
use flashlm_model::sample::Settings;
use flashlm_train::data::source::Source;
use flashlm_train::eval::bpb::{Float, Scorer};
use flashlm_train::eval::source::full;
use flashlm_train::expect::compare;

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
