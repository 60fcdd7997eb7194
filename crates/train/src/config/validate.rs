//! Whether every value is one that a run can have.

use super::SettingsError;
use super::settings::Settings;
use crate::data::DataError;
use crate::optim;
use crate::stage::Boundaries;

impl Settings {
    /// Checks every value.
    pub fn validate(&self) -> Result<(), SettingsError> {
        self.model.validate()?;
        let t = &self.train;
        let check = |ok: bool, key, found: String, expected| {
            if ok { Ok(()) } else { Err(SettingsError::Value { key, found, expected }) }
        };
        let within = |x: f64, low: f64, high: f64| x >= low && x <= high;
        check((1..=65_536).contains(&t.seq_len), "train.seq_len", t.seq_len.to_string(), "between 1 and 65536")?;
        check(t.batch <= 65_536, "train.batch", t.batch.to_string(), "at most 65536")?;
        check(
            (1..=4096).contains(&t.accumulation),
            "train.accumulation",
            t.accumulation.to_string(),
            "between 1 and 4096",
        )?;
        check(t.pass_rows <= 1 << 22, "train.pass_rows", t.pass_rows.to_string(), "at most 4194304")?;
        let stories = self.tokenizer.stories;
        check(stories >= 1, "tokenizer.stories", stories.to_string(), "at least 1")?;
        check(t.lr > 0.0 && t.lr <= 10.0, "train.lr", t.lr.to_string(), "above 0 and at most 10")?;
        check(within(t.min_lr, 0.0, 10.0), "train.min_lr", t.min_lr.to_string(), "a number between 0 and 10")?;
        check(within(t.epochs, 1e-6, 1e6), "train.epochs", t.epochs.to_string(), "above 0 and at most 1000000")?;
        check(within(t.minutes, 0.0, 1e6), "train.minutes", t.minutes.to_string(), "between 0 and 1000000")?;
        check(within(t.decay_share, 0.0, 1.0), "train.decay_share", t.decay_share.to_string(), "between 0 and 1")?;
        if !optim::NAMES.contains(&t.optimizer.as_str()) {
            return Err(SettingsError::Optimizer(t.optimizer.clone()));
        }
        check(within(t.matrix_lr, 0.0, 10.0), "train.matrix_lr", t.matrix_lr.to_string(), "between 0 and 10")?;
        let decay = t.matrix_weight_decay;
        check(within(decay, 0.0, 10.0), "train.matrix_weight_decay", decay.to_string(), "between 0 and 10")?;
        for (key, beta) in [
            ("train.beta1", t.beta1),
            ("train.beta2", t.beta2),
            ("train.momentum", t.momentum),
            ("train.final_momentum", t.final_momentum),
            ("train.matrix_beta2", t.matrix_beta2),
        ] {
            check((0.0..1.0).contains(&beta), key, beta.to_string(), "at least 0 and below 1")?;
        }
        let steps = t.newton_schulz_steps;
        check((1..=20).contains(&steps), "train.newton_schulz_steps", steps.to_string(), "between 1 and 20")?;
        check(within(t.eps, 1e-30, 1.0), "train.eps", t.eps.to_string(), "above 0 and at most 1")?;
        check(within(t.weight_decay, 0.0, 10.0), "train.weight_decay", t.weight_decay.to_string(), "between 0 and 10")?;
        check(within(t.clip, 1e-6, 1e6), "train.clip", t.clip.to_string(), "above 0")?;
        check(within(t.z_loss, 0.0, 1.0), "train.z_loss", t.z_loss.to_string(), "between 0 and 1")?;
        let smoothing = t.label_smoothing;
        check(within(smoothing, 0.0, 0.9), "train.label_smoothing", smoothing.to_string(), "between 0 and 0.9")?;
        for (other, expected) in [
            (self.model.logit_softcap > 0.0, "0 where model.logit_softcap is not"),
            (self.model.pointer > 0, "0 where model.pointer is not"),
        ] {
            check(smoothing == 0.0 || !other, "train.label_smoothing", smoothing.to_string(), expected)?;
        }
        check(within(t.loss_share, 0.001, 1.0), "train.loss_share", t.loss_share.to_string(), "between 0.001 and 1")?;
        check(within(t.dropout, 0.0, 0.9), "train.dropout", t.dropout.to_string(), "between 0 and 0.9")?;
        let share = t.activation_share;
        check(within(share, 1e-6, 1.0), "train.activation_share", share.to_string(), "above 0 and at most 1")?;
        let share = t.average_share;
        check(within(share, 0.0, 1.0), "train.average_share", share.to_string(), "between 0 and 1")?;
        let decay = t.average_decay;
        check((0.0..1.0).contains(&decay), "train.average_decay", decay.to_string(), "at least 0 and below 1")?;
        check(
            within(t.checkpoint_seconds, 0.0, 1e9),
            "train.checkpoint_seconds",
            t.checkpoint_seconds.to_string(),
            "0 or more",
        )?;
        check(t.keep >= 1, "train.keep", t.keep.to_string(), "at least 1")?;
        check(t.log_every >= 1, "train.log_every", t.log_every.to_string(), "at least 1")?;
        check(t.threads <= 1024, "train.threads", t.threads.to_string(), "at most 1024")?;
        check(t.sample_tokens <= 100_000, "train.sample_tokens", t.sample_tokens.to_string(), "at most 100000")?;
        let holdout = self.data.holdout;
        let held = holdout == 0.0 || within(holdout, 1e-6, 0.9);
        check(held, "data.holdout", holdout.to_string(), "0 for none, or between 0.000001 and 0.9")?;
        let (boundaries, reset) = (self.data.boundaries, self.model.reset);
        if boundaries != Boundaries::Padded && reset != (boundaries == Boundaries::Reset) {
            return Err(SettingsError::Boundaries { boundaries: boundaries.name(), reset });
        }
        self.validate_stages()
    }

    /// Checks the stages and what they name.
    fn validate_stages(&self) -> Result<(), SettingsError> {
        let t = &self.train;
        let check = |ok: bool, key, found: String, expected| {
            if ok { Ok(()) } else { Err(SettingsError::Value { key, found, expected }) }
        };
        if !t.stages.is_empty() {
            let sum: f64 = t.stages.iter().map(|s| s.share).sum();
            let each = t.stages.iter().all(|s| s.share > 0.0 && (1..=65_536).contains(&s.seq_len));
            let expected = "stages whose seq_len is 1 to 65536 and whose shares add up to 1";
            check(each && (sum - 1.0).abs() < 1e-3, "train.stages", format!("(shares add up to {sum:.3})"), expected)?;
            let batch = t.stages.iter().map(|s| s.batch).max().unwrap_or(0);
            check(batch <= 65_536, "train.stages.batch", batch.to_string(), "at most 65536")?;
            let last = t.stages.last().map(|s| s.seq_len);
            let expected = "the seq_len of the last stage, at which validation runs";
            check(last == Some(t.seq_len), "train.seq_len", t.seq_len.to_string(), expected)?;
        }
        for sources in t.stages.iter().map(|stage| &stage.sources) {
            for (i, source) in sources.iter().enumerate() {
                let (name, weight) = (&source.source, source.weight);
                check(!name.is_empty(), "train.stages.sources.source", "\"\"".into(), "a text, like data.source")?;
                let found = format!("{weight} of {name}");
                check(
                    (1e-6..=1e6).contains(&weight),
                    "train.stages.sources.weight",
                    found,
                    "between 0.000001 and 1000000",
                )?;
                let why = |why: DataError| SettingsError::Filter { text: name.clone(), why: why.to_string() };
                source.filter.check().map_err(why)?;
                let once = !sources[..i].iter().any(|other| other.is_same(source));
                check(
                    once,
                    "train.stages.sources",
                    format!("{name} given twice"),
                    "different texts, each with its weight",
                )?;
            }
        }
        Ok(())
    }
}
