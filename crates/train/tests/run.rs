//! A whole run through the library: asked for, prepared, trained, loaded, and refused where it is finished.

use std::sync::atomic::AtomicBool;

use flashlm_train::config::{Layers, Settings};
use flashlm_train::load::load_model;
use flashlm_train::run::{Hardware, Origin, Place, Request, Resolved, Resume};
use flashlm_train::run_folder::Claim;
use flashlm_train::trainer::{Ended, Event, Outcome, TrainError, continued};

fn settings() -> Settings {
    let mut layers = Layers::preset("flash-tiny").unwrap();
    for (key, value) in [
        ("data.source", "synthetic:400"),
        ("tokenizer.vocab", "300"),
        ("model.dim", "32"),
        ("model.blocks", "2"),
        ("model.ffn_hidden", "48"),
        ("train.seq_len", "64"),
        ("train.batch", "8"),
        ("train.steps", "80"),
        ("train.warmup_steps", "8"),
        ("train.eval_tokens", "2000"),
        ("train.sample_tokens", "5"),
    ] {
        layers.set(key, value).unwrap();
    }
    layers.settings().unwrap()
}

#[test]
fn a_run_is_asked_for_prepared_trained_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let (run, stop, mut notes) = (folder.path().join("run"), AtomicBool::new(false), String::new());
    let mut tell = |event: Event| {
        if let Event::Note(line) = event {
            notes += line;
            notes.push('\n');
        }
    };
    let hardware = Hardware::detect().unwrap();
    let mut ask = |settings: Settings, origin: Origin| -> Result<Resolved, TrainError> {
        let request = Request { origin, cache: folder.path().join("cache"), ..Request::new(settings) };
        request.resolve(&hardware, &mut tell)
    };
    let resolved = ask(Settings { name: "test".into(), ..settings() }, Origin::Fresh).unwrap();
    assert!(resolved.threads() == hardware.threads.get() && resolved.settings().train.batch == 8);
    let cx = resolved.exec();
    let prepared = resolved.prepare(&stop, &mut |_| ()).unwrap();
    let (vocab, bound) = (prepared.tokenizer.vocab_size(), prepared.entropy_bound.unwrap());
    assert_eq!((prepared.settings().model.vocab_size, prepared.texts.texts().len()), (vocab, 1));
    let stories = prepared.stories() as usize + prepared.valid.len();
    assert!(stories == 400 && prepared.duplicates() == 0, "{stories}");
    let mut trainer = prepared.trainer(&cx, Claim::new(&run, None).unwrap()).unwrap();
    let Ended { outcome, ending } = trainer.run(&stop, &mut |_| ()).unwrap();
    drop(trainer);
    let best = ending.unwrap().best;
    assert_eq!(outcome, Outcome::Finished);
    // An untrained model knows nothing of V tokens; no model knows more than the grammar tells.
    assert!(best.full.loss_per_token < 0.8 * (vocab as f64).ln(), "{best:?}");
    assert!(best.full.bpb > bound, "{best:?}, bound {bound}");

    let model = load_model(&run).unwrap();
    assert_eq!((model.step, model.tokenizer.vocab_size()), (Some(best.step), vocab));

    // The same asked for again has nothing left to do, and more of it goes on from the end.
    let resume = || Resume::open(&run).unwrap();
    let mut settings = continued(&resume().from).unwrap();
    let same = ask(settings.clone(), Origin::Resumed(resume())).unwrap();
    let over = Place::choose(&same, None, None).map(drop).unwrap_err();
    assert!(over.to_string().contains("finished at step 80"), "{over}");
    settings.train.steps = 81;
    let resolved = ask(settings, Origin::Resumed(resume())).unwrap();
    let claim = Place::choose(&resolved, None, None).unwrap().claim(None).unwrap();
    let prepared = resolved.prepare(&stop, &mut |_| ()).unwrap();
    let Ended { outcome, ending } = prepared.trainer(&cx, claim).unwrap().run(&stop, &mut |_| ()).unwrap();
    assert!(outcome == Outcome::Finished && ending.unwrap().last.step == 81);
    assert!(notes.contains("threads"), "{notes}");
}

#[test]
fn a_flag_stops_before_anything_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let request = Request { cache: folder.path().join("cache"), ..Request::new(settings()) };
    let resolved = request.resolve(&Hardware::detect().unwrap(), &mut |_| ()).unwrap();
    let stopped = resolved.prepare(&AtomicBool::new(true), &mut |_| ()).map(drop).unwrap_err();
    assert!(stopped.to_string().contains("stopped"), "{stopped}");
    assert!(!folder.path().join("cache").exists());
}
