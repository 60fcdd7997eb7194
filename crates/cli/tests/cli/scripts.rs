//! What programs read and write: prompts and continuations in, lines of JSON out.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::common::{Place, TINY, text};
use crate::schema::Schemas;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("not JSON ({e}): {line}"))).collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} is no number: {value}"))
}

fn with_stdin(place: &Place, args: &str, input: &str) -> Output {
    let mut command = place.command(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_run_tells_its_events_as_json() {
    let (place, schemas) = (Place::new(), Schemas::documented());
    let flags = "--steps 20 --set train.log_every=5 --set train.eval_every=8 --set train.sample_every=10";
    let events = lines(&place.ok(&format!("train {TINY} {flags} --save-dir run --json")));
    let kinds: Vec<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    events.iter().zip(&kinds).for_each(|(event, kind)| schemas.check(kind, event));
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("start", "result"));
    let count = |kind: &str| kinds.iter().filter(|other| **other == kind).count();
    assert_eq!((count("start"), count("train"), count("result")), (1, 4, 1), "{kinds:?}");
    assert!(count("sample") == 6 && count("eval") >= 3, "{kinds:?}");
    // The same figures as in the folder of the run.
    let read = |name: &str| std::fs::read_to_string(place.path("run").join(name)).unwrap();
    let logged = lines(&read("metrics.jsonl"));
    let rows = |all: &[Value], kind: &str| all.iter().filter(|row| row["kind"] == kind).cloned().collect::<Vec<_>>();
    for kind in ["train", "eval"] {
        assert_eq!(rows(&events, kind), rows(&logged, kind), "{kind}");
    }
    let result: Value = serde_json::from_str(&read("result.json")).unwrap();
    let last = events.last().unwrap();
    for (key, value) in result.as_object().unwrap() {
        assert_eq!(&last[key], value, "{key}");
    }
    assert_eq!(events[0]["settings"]["train"]["steps"], 20);

    let again = lines(&place.ok("train --resume run --json"));
    assert_eq!((again.len(), again[0]["outcome"].as_str()), (1, Some("unchanged")));
    schemas.check("result", &again[0]);
    let failed = place.run("train --preset flash-tiny --data nowhere.txt --save-dir other --json");
    assert!(!failed.status.success());
    let failed = lines(&text(&failed.stdout));
    schemas.check("result", &failed[0]);
    assert!(failed[0]["text"].as_str().unwrap().contains("nowhere.txt"), "{failed:?}");
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_does_not_end_a_run() {
    let place = Place::new();
    let program = env!("CARGO_BIN_EXE_flashlm");
    let script = format!("{program} train {TINY} --steps 8 --save-dir run --json 2>err | head -1");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]).current_dir(place.path("")).env("FLASHLM_CACHE", place.path("cache"));
    let first = shell.env("FLASHLM_THREADS", "1").output().unwrap();
    assert_eq!(lines(&text(&first.stdout))[0]["kind"], "start");
    // `head` is gone long before the run has ended.
    for _ in 0..600 {
        if place.path("run/result.json").exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{}", std::fs::read_to_string(place.path("err")).unwrap());
}

#[test]
fn texts_come_with_tokens_and_scores() {
    let (place, schemas) = (Place::new(), Schemas::documented());
    place.ok(&format!("train {TINY} --steps 30 --lr 0.01 --save-dir checkpoints"));
    let texts = lines(&place.ok("generate -p Once -n 12 --samples 3 --json --seed 7"));
    assert_eq!(texts.len(), 3);
    for (i, text) in texts.iter().enumerate() {
        schemas.check("text", text);
        assert_eq!((&text["sample"], &text["seed"]), (&i.into(), &(7 + i).into()));
        // What a single text is with its seed, and what `score` makes of the same tokens.
        let seed = format!("--seed {}", 7 + i);
        let alone = place.ok(&format!("generate checkpoints -p Once -n 12 {seed}"));
        assert_eq!(alone.trim_end_matches('\n'), format!("Once{}", text["text"].as_str().unwrap()));
        let tokens = text["tokens"].as_array().unwrap();
        assert!(tokens.len() <= 12 && tokens.iter().all(|token| number(token, "logprob") < 0.0));
        let sum: f64 = tokens.iter().map(|token| number(token, "logprob")).sum();
        assert_eq!(sum, number(text, "logprob"));
        let finish = text["finish"].as_str().unwrap();
        assert!(finish == "length" && tokens.len() == 12 || finish == "eos", "{text}");
    }
    assert_ne!(texts[0]["text"], texts[1]["text"]);

    // A text that ends with the limit is all that its tokens say: split again, they are mostly the same tokens.
    let greedy = &lines(&place.ok("generate -p Once -n 1 -t 0 --json"))[0];
    let token = greedy["tokens"][0]["text"].as_str().unwrap().to_string();
    let mut score = place.command("score -p Once --json");
    let scored = lines(&text(&score.args(["-c", &token, "-c", "zq"]).output().unwrap().stdout));
    scored.iter().for_each(|object| schemas.check("score", object));
    assert_eq!(scored[0]["logprob"], greedy["logprob"]);
    assert!(number(&scored[1], "logprob") < number(&scored[0], "logprob"));
    let printed = place.ok("score -p Once -c zq");
    assert!(printed.contains(&format!("{:.4}", number(&scored[1], "logprob"))), "{printed}");

    let stopped = &lines(&place.ok("generate -p Once -n 200 --json --stop e"))[0];
    assert_eq!(stopped["finish"], "stop");
    assert!(!stopped["text"].as_str().unwrap().contains('e'), "{stopped}");
}

#[test]
fn prompts_come_from_files_and_pipes() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --steps 5 --save-dir checkpoints"));
    let flag = place.ok("generate -p Once -n 8");
    place.write("prompt.txt", "Once\n");
    assert_eq!(place.ok("generate --prompt-file prompt.txt -n 8"), flag);
    assert_eq!(text(&with_stdin(&place, "generate -p - -n 8", "Once\n").stdout), flag);
    place.write("many.jsonl", "{\"prompt\": \"One\"}\n\n\"Once\"\n");
    let many = lines(&place.ok("generate --prompts many.jsonl -n 8 --samples 2 --json"));
    let places: Vec<_> = many.iter().map(|t| (t["prompt_index"].as_u64(), t["sample"].as_u64())).collect();
    assert_eq!(places, [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(a, b)| (Some(a), Some(b))));
    assert_eq!(format!("Once{}\n", many[2]["text"].as_str().unwrap()), flag);
    // Without JSON, texts are documents.
    let plain = place.ok("generate --prompts many.jsonl -n 8");
    assert!(plain.ends_with(&format!("\n<|endoftext|>\n{flag}")), "{plain}");
    place.write("bad.jsonl", "{\"prompt\": 3}\n");
    place.fails("generate --prompts bad.jsonl", &["bad.jsonl, line 1", "{\"prompt\": \"...\"}"]);
    place.fails("generate --prompts bad.jsonl -p Once", &["--prompts", "--prompt"]);

    let asked = "{\"prompt\":\"Once\",\"continuations\":[\" upon\",\" a\"]}\n{\"continuation\":\"Once\"}\n";
    let answers = with_stdin(&place, "score --input -", asked);
    let answers = lines(&text(&answers.stdout));
    let places: Vec<_> = answers.iter().map(|a| (a["index"].as_u64(), a["choice"].as_u64())).collect();
    assert_eq!(places, [(0, 0), (0, 1), (1, 0)].map(|(a, b)| (Some(a), Some(b))));
    place.write("bad.jsonl", "{\"prompt\": \"Once\"}\n");
    place.fails("score --input bad.jsonl", &["bad.jsonl, line 1", "continuation"]);
    place.fails("score -p Once", &["--continuation"]);
}

#[test]
fn documents_add_up_to_the_whole() {
    let (place, schemas) = (Place::new(), Schemas::documented());
    place.ok(&format!("train {TINY} --steps 5 --save-dir checkpoints"));
    let whole: Value =
        serde_json::from_str(&place.ok("eval -d synthetic:500 --json --per-document each.jsonl")).unwrap();
    let each = lines(&std::fs::read_to_string(place.path("each.jsonl")).unwrap());
    assert_eq!(each.len(), 500);
    each.iter().for_each(|document| schemas.check("document", document));
    schemas.check(
        "evaluation",
        &serde_json::from_str(&place.ok("eval builtin -d synthetic:2 --consistency 1 --json")).unwrap(),
    );
    let sum = |key: &str| each.iter().map(|document| number(document, key)).sum::<f64>();
    for key in ["bytes", "tokens", "unk"] {
        assert_eq!(sum(key), number(&whole, key), "{key}");
    }
    assert_eq!(sum("nats") / (std::f64::consts::LN_2 * sum("bytes")), number(&whole, "bpb"));
    assert!((sum("bits") / sum("bytes") / number(&whole, "bpb") - 1.0).abs() < 1e-12);
    let story = |i: u64| flashlm_train::data::synthetic::story(0, i).len() as f64;
    assert!((0..500).all(|i| number(&each[i as usize], "bytes") == story(i)));
    place.fails("eval -d synthetic:5 --per-document each.jsonl", &["each.jsonl", "--force"]);
    place.ok("eval -d synthetic:5 --per-document each.jsonl --force");
    place.fails("eval -d synthetic:5 --protocol published --per-document other.jsonl", &["--protocol full"]);
}

#[test]
fn a_story_is_written_in_turns() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --steps 5 --save-dir checkpoints"));
    let run = |input: &str| {
        let output = with_stdin(&place, "generate -i -n 6 -p Once", input);
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let (first, _) = run("");
    assert_eq!(first, place.ok("generate -n 6 -p Once"));
    let (again, _) = run("/retry\n");
    assert!(again.starts_with(&first) && again.len() > first.len(), "{again}");
    assert_ne!(again[first.len()..].trim_end(), first.trim_end(), "another seed");
    // After a turn is taken back, the end of the text before it is shown; nothing after /quit is read.
    let (undone, _) = run("upon\n/undo\n/quit\nnever\n");
    let word = first.split_whitespace().last().unwrap();
    let last = undone.trim_end().rsplit("... ").next().unwrap();
    assert!(last.ends_with(word) && first.ends_with(&format!("{last}\n")), "{undone}");
    let (set, told) = run("/set temperature 0\n/set\n/set top_p 9\n/set colour 1\n/nonsense\n");
    assert!(set.contains("temperature 0, "), "{set}");
    for word in ["top_p", "colour", "/nonsense"] {
        assert!(told.contains(word), "{word} is not in {told}");
    }
    let (lines, _) = run("/set lines on\n  indented\n/help\n");
    assert!(lines.contains("/retry"), "{lines}");
}
