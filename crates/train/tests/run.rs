//! A whole run through the library: asked for, prepared, trained, loaded, and refused where it is finished.

use std::fs;
use std::path::Path;
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
        ("model.bigram", "64"),
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

/// Stages with batches of their own, documents in another order every epoch, a momentum that changes and a mean of the weights: a
/// run that is resumed in the middle of either stage has the same bits as one that never stopped.
#[test]
fn a_resumed_run_has_the_bits_of_one_that_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (hardware, stop) = (Hardware::detect().unwrap(), AtomicBool::new(false));
    let mut layers = Layers::of(&settings());
    let stages = "[[train.stages]]\nseq_len = 32\nshare = 0.4\nbatch = 4\n[[train.stages]]\nseq_len = 64\nshare = 0.6";
    layers.merge_text(stages, "stages").unwrap();
    for (key, value) in [
        ("data.source", "synthetic:8"),
        ("data.shuffle", "documents"),
        ("train.steps", "96"),
        ("train.optimizer", "muon"),
        ("train.final_momentum", "0.8"),
        ("train.average_share", "0.3"),
        ("train.checkpoint_every", "40"),
        ("train.keep", "9"),
    ] {
        layers.set(key, value).unwrap();
    }
    let settings = layers.settings().unwrap();
    let train = |settings: &Settings, origin: Origin, run: &Path| {
        let request = Request { origin, cache: folder.path().join("cache"), ..Request::new(settings.clone()) };
        let resolved = request.resolve(&hardware, &mut |_| ()).unwrap();
        let cx = resolved.exec();
        let prepared = resolved.prepare(&stop, &mut |_| ()).unwrap();
        let mut trainer = prepared.trainer(&cx, Claim::new(run, None).unwrap()).unwrap();
        let mut notes = Vec::new();
        let mut tell = |event: Event| {
            if let Event::Note(line) = event {
                notes.push(line.to_string());
            }
        };
        let Ended { outcome, ending } = trainer.run(&stop, &mut tell).unwrap();
        assert_eq!(outcome, Outcome::Finished);
        // Progress of the first of them: 68 / 96 is the first that is 0.7 or more.
        let kept = notes.iter().find(|line| line.contains("their mean over the last 28 steps")).unwrap();
        let scores: Vec<f64> =
            kept.split([' ', ':', ',']).filter_map(|word| word.parse().ok()).filter(|x| *x < 28.0).collect();
        assert_eq!((scores.len(), scores[1] < scores[0]), (2, kept.contains("the mean is kept")), "{kept}");
        let probed = ending.unwrap().last.probe_bpb.unwrap();
        assert!(
            (probed - scores[0].min(scores[1])).abs() < 1e-4,
            "{kept}, and the model of the last step has {probed}"
        );
        // Steps of 128 and of 512 tokens: 70 of the first stage are 40 % of all tokens.
        assert_eq!((trainer.state().step, trainer.state().stage, trainer.state().stage_start), (96, 1, 70));
        assert_eq!(trainer.state().windows, Some(26 * 8));
        let passes = trainer.state().epochs_before[0];
        assert!(passes > 1.0, "the documents were in more than one order: {passes} epochs");
    };
    let whole = folder.path().join("whole");
    train(&settings, Origin::Fresh, &whole);
    let checkpoint = |run: &Path, step: u64| run.join(format!("checkpoints/step-{step:08}"));
    for step in [40, 80] {
        let resume = Resume::open(&checkpoint(&whole, step)).unwrap();
        let (run, settings) = (folder.path().join(step.to_string()), continued(&resume.from).unwrap());
        train(&settings, Origin::Resumed(resume), &run);
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let read = |run: &Path| fs::read(checkpoint(run, 96).join(file)).unwrap();
            assert!(read(&run) == read(&whole), "{file} after a resume from step {step}");
        }
    }
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
