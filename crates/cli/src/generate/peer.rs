//! Texts of a model of another program, one after another, streamed.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use flashlm_kernels::Exec;
use flashlm_model::Peer;
use flashlm_model::peer::PeerText;
use flashlm_model::sample::Settings;
use flashlm_train::units::{counted, thousands};
use serde_json::{Value, json};

use super::batch::name;
use super::writer::why;
use crate::common::{out, say, write_out};
use crate::scored::{of_peer, tokens};

/// Which texts are to be written.
pub struct Texts<'a> {
    /// What they begin with.
    pub prompts: &'a [String],
    /// Texts of each prompt.
    pub samples: usize,
    /// How tokens are chosen in the first text of a prompt; the others have the seeds that follow.
    pub settings: Settings,
    /// Most tokens of a text.
    pub limit: usize,
    /// Strings before which a text ends.
    pub stop: &'a [String],
    /// Whether they are printed as lines of JSON.
    pub json: bool,
}

/// Writes them.
pub fn run(peer: Peer, cx: &Exec, texts: Texts) -> anyhow::Result<()> {
    let peer = Arc::new(peer);
    let prompts = texts.prompts.iter().enumerate();
    let all = prompts.flat_map(|(index, prompt)| (0..texts.samples).map(move |sample| (index, prompt, sample)));
    for (i, (index, prompt, sample)) in all.enumerate() {
        if texts.json {
            out!("{}", as_json(&peer, cx, &texts, (index, prompt, sample))?);
            continue;
        }
        if i > 0 {
            out!("<|endoftext|>");
        }
        let seed = texts.settings.seed.wrapping_add(sample as u64);
        let settings = Settings { seed, ..texts.settings.clone() };
        let mut text = PeerText::new(&peer, prompt, settings, texts.limit, texts.stop)?;
        write_out(format_args!("{prompt}"), false);
        let start = Instant::now();
        while text.finish().is_none() {
            text.advance(cx).with_context(|| peer.path().display().to_string())?;
            write_out(format_args!("{}", text.text()), false);
        }
        out!("");
        let seconds = start.elapsed().as_secs_f64();
        let speed = thousands((text.tokens() as f64 / seconds.max(1e-9)).round() as u64);
        let tokens = counted(text.tokens() as u64, "token");
        say!("{tokens} in {seconds:.3} s, {speed} tokens/s; {}", why(text.finish()));
    }
    Ok(())
}

/// One text as `generate --json` prints those of other models.
fn as_json(
    peer: &Arc<Peer>,
    cx: &Exec,
    texts: &Texts,
    (index, prompt, sample): (usize, &str, usize),
) -> anyhow::Result<Value> {
    let seed = texts.settings.seed.wrapping_add(sample as u64);
    let settings = Settings { seed, ..texts.settings.clone() };
    let mut text = PeerText::new(peer, prompt, settings, texts.limit, texts.stop)?;
    let (mut written, mut chosen) = (String::new(), Vec::new());
    while text.finish().is_none() {
        text.advance(cx).with_context(|| peer.path().display().to_string())?;
        written += text.text();
        chosen.extend(text.chosen());
    }
    let tokenizer = peer.tokenizer().context("a model that writes is opened with its tokenizer")?;
    let mut given = vec![tokenizer.eos()];
    tokenizer.encode(prompt, &mut given);
    let log_probs = of_peer(peer, cx, &given, &chosen);
    Ok(json!({
        "prompt_index": index,
        "sample": sample,
        "seed": seed,
        "prompt": prompt,
        "text": written,
        "finish": name(text.finish()),
        "prompt_tokens": given.len() - 1,
        "logprob": log_probs.iter().sum::<f64>(),
        "tokens": tokens(tokenizer, &chosen, &log_probs),
    }))
}
