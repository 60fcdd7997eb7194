//! `flashlm serve` over plain sockets: the built-in model answers as `flashlm generate` and `flashlm score` do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[path = "cli/neo.rs"]
mod neo;

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(flags: &[&str]) -> Server {
        Server::of(&[&["builtin", "--threads", "2"], flags].concat())
    }

    fn of(flags: &[&str]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flashlm"));
        command.args(["serve", "--port", "0"]).args(flags);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit("http://").next().unwrap().to_string();
        Server { child, address }
    }

    fn open(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let host = if headers.contains("Host:") { String::new() } else { "Host: localhost\r\n".into() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).unwrap();
        let _ = socket.write_all(body);
        socket
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut all = Vec::new();
        self.open(method, path, headers, body).read_to_end(&mut all).unwrap();
        let at = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(all[..at].to_vec()).unwrap().to_lowercase();
        let status = head[9..12].parse().unwrap();
        let mut rest = &all[at + 4..];
        if !head.contains("transfer-encoding: chunked") {
            return (status, head, rest.to_vec());
        }
        let mut body = Vec::new();
        loop {
            let end = rest.windows(2).position(|w| w == b"\r\n").unwrap();
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
            body.extend_from_slice(&rest[end + 2..end + 2 + size]);
            rest = &rest[end + 4 + size..];
            if size == 0 {
                return (status, head, body);
            }
        }
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, _, body) = self.ask("POST", path, JSON, body.to_string().as_bytes());
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, 200, "{body}");
        body
    }

    /// The objects of a stream.
    fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, _, body) = self.ask("POST", path, JSON, body.to_string().as_bytes());
        let text = String::from_utf8(body).unwrap();
        assert_eq!(status, 200, "{text}");
        let mut pieces: Vec<&str> =
            text.split("\n\n").map(|piece| piece.strip_prefix("data: ").unwrap_or(piece)).collect();
        assert_eq!((pieces.pop(), pieces.pop()), (Some(""), Some("[DONE]")));
        pieces.iter().map(|piece| serde_json::from_str(piece).unwrap()).collect()
    }

    fn metric(&self, name: &str) -> u64 {
        let text = String::from_utf8(self.ask("GET", "/metrics", "", b"").2).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("flashlm_{name} "))).unwrap().to_string();
        line.parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

/// Lines of JSON of another command.
fn lines(args: &[&str]) -> Vec<Value> {
    let done = Command::new(env!("CARGO_BIN_EXE_flashlm")).args(args).output().unwrap();
    assert!(done.status.success());
    String::from_utf8(done.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn generated(prompt: &str, seed: usize, tokens: usize) -> Value {
    let (seed, tokens) = (seed.to_string(), tokens.to_string());
    lines(&["generate", "builtin", "-p", prompt, "--seed", &seed, "-n", &tokens, "-t", "1", "--top-p", "1", "--json"])
        .remove(0)
}

#[test]
fn errors_are_json_and_say_what_is_wrong() {
    let server = Server::start(&["--api-key", "a key"]);
    let auth = "Authorization: Bearer a key\r\n";
    let json = &format!("{JSON}{auth}");
    let large = vec![b' '; (16 << 20) + 1];
    let deep = [vec![b'['; 100_000], b"1".to_vec()].concat();
    let body = |text: &str| text.as_bytes().to_vec();
    let many =
        body(&json!({"prompt": [vec![65; 8000]], "echo": true, "logprobs": 20, "max_tokens": 0, "n": 128}).to_string());
    let (done, chat) = ("/v1/completions", "/v1/chat/completions");
    /// Method, path, headers, body; status and a word of the error.
    type Case<'a> = (&'a str, &'a str, &'a str, Vec<u8>, u16, &'a str);
    let cases: &[Case] = &[
        ("GET", "/nothing", auth, body(""), 404, "/nothing"),
        ("GET", done, auth, body(""), 405, "GET"),
        ("DELETE", "/health", auth, body(""), 405, "DELETE"),
        ("GET", "/v1/models", "", body(""), 401, "Authorization"),
        ("GET", "/v1/models", "Authorization: Bearer a kez\r\n", body(""), 401, "Authorization"),
        ("GET", "/v1/models/other", auth, body(""), 404, "builtin"),
        ("GET", "/health", "Host: evil.example\r\n", body(""), 403, "localhost"),
        ("POST", done, auth, body("{}"), 415, "application/json"),
        ("POST", done, json, body("{"), 400, "JSON"),
        ("POST", done, json, body("[]"), 400, "a list"),
        ("POST", done, json, body("{\"prompt\": \"\\ud800\"}"), 400, "JSON"),
        ("POST", done, json, body("{\"temperature\": NaN}"), 400, "JSON"),
        ("POST", done, json, body("{\"temperature\": 1e999}"), 400, "JSON"),
        ("POST", done, json, deep, 400, "recursion"),
        ("POST", done, json, large, 413, "16777216"),
        ("POST", done, json, body("{\"model\": \"gpt-4\"}"), 404, "builtin"),
        ("GET", "/v1/models/%ff", auth, body(""), 400, "UTF-8"),
        ("POST", done, json, body("{\"logit_bias\": {\"+5\": 1}}"), 400, "logit_bias"),
        ("POST", done, json, many, 400, "too many for one answer"),
        (
            "POST",
            done,
            json,
            body("{\"max_tokens\": 1000000, \"n\": 128, \"logprobs\": 20}"),
            400,
            "too many for one answer",
        ),
        ("POST", done, json, body("{\"max_tokens\": 1000000, \"n\": 128}"), 400, "too many for one answer"),
        ("POST", done, json, body("{\"temperature\": -1}"), 400, "temperature"),
        ("POST", done, json, body("{\"max_tokens\": -1}"), 400, "max_tokens"),
        ("POST", done, json, body("{\"prompt\": [70000]}"), 400, "token ids"),
        ("POST", done, json, body("{\"prompt\": []}"), 400, "empty"),
        ("POST", done, json, body("{\"prompt\": {}}"), 400, "prompt"),
        ("POST", done, json, body("{\"n\": 200}"), 400, "n"),
        ("POST", done, json, body("{\"n\": 3, \"best_of\": 2}"), 400, "best_of"),
        ("POST", done, json, body("{\"suffix\": \"x\"}"), 400, "suffix"),
        ("POST", done, json, body("{\"logprobs\": 21}"), 400, "logprobs"),
        ("POST", done, json, body("{\"logit_bias\": {\"65535\": 1}}"), 400, "logit_bias"),
        ("POST", done, json, body("{\"logit_bias\": {\"1\": 101}}"), 400, "logit_bias"),
        ("POST", done, json, body("{\"stop\": [\"\"]}"), 400, "stop"),
        ("POST", chat, json, body("{}"), 400, "messages"),
        ("POST", chat, json, body("{\"messages\": [{\"content\": 1}]}"), 400, "messages"),
        ("POST", "/tokenize", json, body("{}"), 400, "prompt"),
        ("POST", "/detokenize", json, body("{\"tokens\": [-1]}"), 400, "tokens"),
    ];
    for (method, path, headers, body, status, word) in cases {
        let (found, _, answer) = server.ask(method, path, headers, body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]);
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let error = &answer["error"];
        assert_eq!(found, *status, "{method} {path} {shown}: {answer}");
        assert!(error["message"].as_str().unwrap().contains(word), "{method} {path} {shown}: {answer}");
        assert!(error["type"].is_string() && error.get("param").is_some() && error.get("code").is_some(), "{answer}");
    }
    let (status, head, _) = server.ask("POST", done, json, b"{\"max_tokens\": 1, \"typo\": 1}");
    assert!(status == 200 && head.contains("x-flashlm-ignored: typo"), "{head}");
}

#[test]
fn scores_are_those_of_the_command_and_a_stream_says_what_the_whole_says() {
    let server = Server::start(&[]);
    let (prompt, more) = ("Once upon a time", " there was a little girl");
    let scored = &lines(&["score", "builtin", "-p", prompt, "-c", more, "--json"])[0];
    let ids = |text: &str| server.post("/tokenize", &json!({"content": text}))["tokens"].as_array().unwrap().clone();
    let all = [ids(prompt), ids(more)].concat();
    let ask = json!({"prompt": [all], "max_tokens": 1, "logprobs": 2, "echo": true, "temperature": 0, "seed": 1});
    let log_probs = server.post("/v1/completions", &ask)["choices"][0]["logprobs"].clone();
    let told = log_probs["token_logprobs"].as_array().unwrap();
    assert_eq!((told.len(), &told[0]), (all.len() + 1, &Value::Null));
    let wanted: Vec<Value> =
        scored["tokens"].as_array().unwrap().iter().map(|token| token["logprob"].clone()).collect();
    assert_eq!(told[told.len() - 1 - wanted.len()..told.len() - 1], wanted);
    let last = log_probs["top_logprobs"].as_array().unwrap().last().unwrap().as_object().unwrap();
    let best = last.values().map(|p| p.as_f64().unwrap()).fold(f64::MIN, f64::max);
    assert_eq!(best, told.last().unwrap().as_f64().unwrap(), "a greedy token is the likeliest, to the bit");
    assert_eq!(server.post("/detokenize", &json!({"tokens": all}))["prompt"], format!("{prompt}{more}"));

    for stop in [json!(null), json!([" the", "."])] {
        let mut ask = json!({"prompt": [prompt, "The dog"], "n": 2, "max_tokens": 40, "logprobs": 3, "seed": 5, "echo": true, "stop": stop});
        let whole = server.post("/v1/completions", &ask);
        ask["stream"] = true.into();
        ask["stream_options"] = json!({"include_usage": true});
        let chunks = server.stream("/v1/completions", &ask);
        let (usage, chunks) = chunks.split_last().unwrap();
        assert_eq!((&usage["usage"], &usage["choices"]), (&whole["usage"], &json!([])));
        for choice in whole["choices"].as_array().unwrap() {
            let own: Vec<&Value> =
                chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|c| c["index"] == choice["index"]).collect();
            let text: String = own.iter().map(|c| c["text"].as_str().unwrap()).collect();
            assert_eq!(choice["text"], text);
            assert_eq!(own.last().unwrap()["finish_reason"], choice["finish_reason"]);
            for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let joined: Vec<Value> =
                    own.iter().flat_map(|c| c["logprobs"][list].as_array().unwrap().clone()).collect();
                assert_eq!(choice["logprobs"][list], Value::from(joined));
            }
        }
    }
    let ask = json!({"messages": [{"role": "user", "content": prompt}], "max_tokens": 20, "seed": 3, "logprobs": true, "top_logprobs": 1});
    let chat = server.post("/v1/chat/completions", &ask)["choices"][0].clone();
    let wanted = generated(prompt, 3, 20);
    assert_eq!(chat["message"]["content"], wanted["text"]);
    let told = chat["logprobs"]["content"].as_array().unwrap().iter().map(|token| token["logprob"].clone());
    let own = wanted["tokens"].as_array().unwrap().iter().map(|token| token["logprob"].clone());
    assert!(told.eq(own), "log-probabilities are those of `generate --json`, to the bit");
}

#[test]
fn sixty_four_clients_at_once_each_get_the_text_of_generate() {
    // Fewer seats than clients and short turns of reading: texts join and leave all the time.
    let server = Server::start(&["--parallel", "24", "--prompt-tokens-per-tick", "16"]);
    let prompts = [
        "",
        "Once upon a time",
        "The big dog ran to the park and saw a cat in a tree. The cat said",
        "\"Hello,\" said Tom.",
    ];
    let ask = |i: usize| json!({"prompt": prompts[i % 4], "max_tokens": 5 + 7 * (i % 9), "seed": i, "stream": i.is_multiple_of(2)});
    let texts: Vec<String> = thread::scope(|scope| {
        let one = |i: usize| match i % 2 {
            0 => server
                .stream("/v1/completions", &ask(i))
                .iter()
                .map(|c| c["choices"][0]["text"].as_str().unwrap())
                .collect(),
            _ => server.post("/v1/completions", &ask(i))["choices"][0]["text"].as_str().unwrap().to_string(),
        };
        let all: Vec<_> = (0..64).map(|i| scope.spawn(move || one(i))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (i, text) in texts.iter().enumerate() {
        assert_eq!(generated(prompts[i % 4], i, 5 + 7 * (i % 9))["text"], **text, "client {i}");
    }
    assert!(server.metric("prefix_hits_total") > 0);
}

#[test]
fn a_client_that_leaves_takes_its_text_along() {
    let server = Server::start(&["--parallel", "2"]);
    let long = "word ".repeat(200_000);
    let free = json!({"max_tokens": 1_000_000, "logit_bias": {"0": -100}, "stream": true}).to_string();
    let whole = json!({"max_tokens": 1_000_000, "logit_bias": {"0": -100}}).to_string();
    let reading = json!({"prompt": long, "max_tokens": 1, "logprobs": 1, "echo": true}).to_string();
    // Two fill the seats, so that the third waits.
    for bodies in [vec![&free], vec![&whole], vec![&reading], vec![&free, &whole, &free]] {
        let before = server.metric("cancelled_total");
        let count = bodies.len() as u64;
        let sockets: Vec<_> =
            bodies.iter().map(|body| server.open("POST", "/v1/completions", JSON, body.as_bytes())).collect();
        let there = || server.metric("streams") + server.metric("reading") + server.metric("waiting");
        let until = |what: &dyn Fn() -> bool| {
            let start = Instant::now();
            while !what() {
                assert!(start.elapsed() < Duration::from_secs(60), "it does not happen");
                thread::sleep(Duration::from_millis(2));
            }
        };
        until(&|| there() == count);
        drop(sockets);
        until(&|| server.metric("cancelled_total") == before + count);
        until(&|| there() == 0);
    }
    // Within a turn of the engine from where the client was seen to be gone, all of them.
    let text = String::from_utf8(server.ask("GET", "/metrics", "", b"").2).unwrap();
    let count =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(&format!("flashlm_cancelled_turns_{name} ")));
    assert_eq!((count("bucket{le=\"1\"}"), count("count")), (Some("6"), Some("6")));
}

#[cfg(unix)]
#[test]
fn sigterm_finishes_what_runs_and_refuses_what_is_new() {
    let mut server = Server::start(&[]);
    let ask = json!({"prompt": "Once", "max_tokens": 20_000, "seed": 1, "logit_bias": {"0": -100}});
    thread::scope(|scope| {
        let running = scope.spawn(|| server.post("/v1/completions", &ask));
        while server.metric("streams") == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let pid = server.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        thread::sleep(Duration::from_millis(100));
        if !running.is_finished() {
            assert_eq!(server.ask("GET", "/health", "", b"").0, 503);
        }
        assert_eq!(running.join().unwrap()["usage"]["completion_tokens"], 20_000);
    });
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

/// Without Node or Chromium it is skipped; where CI is set, Node must be there.
#[test]
fn the_page_writes_compares_and_watches_a_run_that_trains() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("node");
    command.args(["tests/web/serve.mjs", env!("CARGO_BIN_EXE_flashlm")]).arg(folder.path());
    let output = match command.arg("6").current_dir(root).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && std::env::var_os("CI").is_none() => {
            eprintln!("skipped: no node here");
            return;
        }
        output => output.expect("Node (Debian: nodejs) drives the browser"),
    };
    let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{told:?}");
    eprint!("{}", told[0]);
}

#[test]
fn runs_are_watched_without_a_model_and_their_names_are_no_paths() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join("run").join(name);
    std::fs::create_dir_all(place("")).unwrap();
    std::fs::write(place("run.json"), r#"{"name":"tiny","entropy_bound":0.5}"#).unwrap();
    let row = r#"{"kind":"eval","step":2,"tokens":20,"elapsed":1.5,"loss":null,"bpb":1.25,"best":true}"#;
    // The last row is on its way.
    std::fs::write(place("metrics.jsonl"), format!("{row}\n{}", &row[..40])).unwrap();
    let server = Server::of(&["--run", folder.path().to_str().unwrap()]);
    let get = |path: &str| {
        let (status, _, body) = server.ask("GET", path, "", b"");
        (status, serde_json::from_slice::<Value>(&body).unwrap())
    };
    let (_, runs) = get("/runs");
    let run = &runs["data"][0];
    assert_eq!((&run["name"], &run["preset"], &run["entropy_bound"]), (&json!("run"), &json!("tiny"), &json!(0.5)));
    let (_, first) = get("/runs/run");
    assert_eq!(first["rows"], json!([serde_json::from_str::<Value>(row).unwrap()]));
    std::fs::write(place("metrics.jsonl"), format!("{row}\n{row}\n")).unwrap();
    let next = first["next"].as_str().unwrap();
    let (_, second) = get(&format!("/runs/run?after={next}"));
    assert_eq!((second["rows"].as_array().unwrap().len(), &second["anew"]), (1, &json!(false)));
    for path in [
        "/runs/..",
        "/runs/%2e%2e",
        "/runs/run%2f..%2frun",
        "/runs/run%2Fmetrics.jsonl",
        "/runs/%2Fetc",
        "/runs/other",
        "/runs/%ff",
    ] {
        let (status, error) = get(path);
        assert!(matches!(status, 400 | 404) && error["error"]["message"].is_string(), "{path}: {status} {error}");
    }
    assert_eq!(get("/v1/models").1["data"], json!([]));
    assert_eq!(get("/tokenizer_info").0, 404);
    for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
        let (status, _, body) =
            server.ask("POST", path, JSON, br#"{"prompt": "a", "tokens": [], "messages": [{"content": ""}]}"#);
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert!(status == 404 && body["error"]["message"].as_str().unwrap().contains("no model"), "{path}: {body}");
    }
}

#[test]
fn a_model_is_named_in_the_body_in_the_query_or_in_the_path() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/conv.safetensors");
    let server = Server::of(&[&format!("a&b+c={}", golden.display()), "builtin", "--threads", "1"]);
    let info = |path: &str| {
        let (status, _, body) = server.ask("GET", path, "", b"");
        assert_eq!(status, 200, "{path}");
        serde_json::from_slice::<Value>(&body).unwrap()["vocab_size"].clone()
    };
    let first = info("/tokenizer_info");
    assert_ne!(first, 2048);
    for path in ["/tokenizer_info?model=a%26b%2Bc", "/models/a%26b+c/tokenizer_info", "/models/a&b%2Bc/tokenizer_info/"]
    {
        assert_eq!(info(path), first, "{path}");
    }
    for path in ["/tokenizer_info?model=builtin", "/models/builtin/tokenizer_info?model=other"] {
        assert_eq!(info(path), 2048, "{path}");
    }
    let ask = json!({"prompt": "Once upon a time", "tokens": [260, 270], "messages": [{"content": "Once"}], "seed": 1, "max_tokens": 4});
    let mut named = ask.clone();
    named["model"] = "builtin".into();
    for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
        let told = |path: &str, body: &Value| {
            let mut told = server.post(path, body);
            ["id", "created"].iter().for_each(|key| drop(told.as_object_mut().unwrap().remove(*key)));
            told
        };
        let wanted = told(path, &named);
        assert_ne!(told(path, &ask), wanted, "{path}");
        assert_eq!(told(&format!("{path}?model=builtin"), &ask), wanted);
        assert_eq!(told(&format!("/models/builtin{path}"), &ask), wanted);
        assert_eq!(told(&format!("/models/builtin{path}"), &named), wanted);
        for (start, end, status, word) in [
            ("/models/x", "", 404, "builtin"),
            ("", "?model=a%26b%2Bc", 400, "leave one out"),
            ("", "?model=%ff", 400, "UTF-8"),
        ] {
            let path = format!("{start}{path}{end}");
            let body = if status == 404 { &ask } else { &named }.to_string();
            let (found, _, answer) = server.ask("POST", &path, JSON, body.as_bytes());
            let answer = String::from_utf8(answer).unwrap();
            assert!(found == status && answer.contains(word), "{path}: {found} {answer}");
        }
    }
}

/// A file of `../shared`, or what `FLASHLM_SHARED` names.
fn shared(name: &str) -> Option<std::path::PathBuf> {
    let named = std::env::var_os("FLASHLM_SHARED").map(std::path::PathBuf::from);
    let above = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("shared"));
    let found = named.into_iter().chain(above).map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "../shared is missing in CI");
        eprintln!("skipped: ../shared is not there");
    }
    found
}

#[test]
fn models_of_other_programs_write_and_score_as_the_commands_do() {
    let Some(llama) = shared("data/weights/stories260K.bin") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (config, weights, _) = neo::gpt_neo((50_257, 16, 2, 2), 64);
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    let paths = [folder.path().to_str().unwrap(), llama.to_str().unwrap()];
    let server = Server::of(&[&format!("neo={}", paths[0]), &format!("llama={}", paths[1]), "builtin"]);
    // As long as the context of the first, and longer.
    let long = "One day a little dog ran to the park. ".repeat(9);
    let asks: Vec<(usize, &str, usize)> = [0, 1]
        .into_iter()
        .flat_map(|model| [("", 7), ("Once upon a time", 1), (&long, 5)].map(|(prompt, seed)| (model, prompt, seed)))
        .collect();
    let seen: Vec<Value> = thread::scope(|scope| {
        let one = |&(model, prompt, seed): &(usize, &str, usize)| {
            let name = ["neo", "llama"][model];
            let ask = json!({"model": name, "prompt": prompt, "seed": seed, "max_tokens": 24, "logprobs": 2});
            server.post("/v1/completions", &ask)["choices"][0].clone()
        };
        let all: Vec<_> = asks.iter().map(|ask| scope.spawn(move || one(ask))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for ((model, prompt, seed), seen) in asks.iter().zip(seen) {
        let (path, seed) = (paths[*model], seed.to_string());
        let flags = ["-p", prompt, "--seed", &seed, "-n", "24", "-t", "1", "--top-p", "1", "--json"];
        let wanted = lines(&[&["generate", path], &flags[..]].concat()).remove(0);
        assert_eq!(seen["text"], wanted["text"], "{path} {prompt:?}");
        let own = wanted["tokens"].as_array().unwrap().iter().map(|token| token["logprob"].clone());
        let told = seen["logprobs"]["token_logprobs"].as_array().unwrap();
        assert!(
            told.iter().cloned().eq(own),
            "{path} {prompt:?}: log-probabilities are those of `generate`, to the bit"
        );
        // What comes after it, scored twice: read, and known.
        let (name, more) = (["neo", "llama"][*model], " and then");
        let scored = &lines(&["score", path, "-p", prompt, "-c", more, "--json"])[0];
        let ids = |text: &str| {
            let told = server.post("/tokenize", &json!({"model": name, "prompt": text}));
            told["tokens"].as_array().unwrap().clone()
        };
        let all = [ids(prompt), ids(more)].concat();
        let ask =
            json!({"model": name, "prompt": [all], "max_tokens": 1, "logprobs": 1, "echo": true, "temperature": 0});
        let hits = server.metric("prefix_hits_total");
        let echoed = [0, 1].map(|_| server.post("/v1/completions", &ask)["choices"][0].clone());
        assert!(server.metric("prefix_hits_total") > hits && echoed[0] == echoed[1], "{echoed:?}");
        let told = echoed[0]["logprobs"]["token_logprobs"].as_array().unwrap();
        let wanted: Vec<Value> =
            scored["tokens"].as_array().unwrap().iter().map(|token| token["logprob"].clone()).collect();
        assert!(!wanted.is_empty() && wanted.len() < told.len(), "{scored}");
        // The last is the token that was written; the first of all has none before it that was asked for.
        let from = told.len() - 1 - wanted.len();
        for (i, wanted) in wanted.iter().enumerate() {
            let wanted = if from + i == 0 { &Value::Null } else { wanted };
            assert_eq!(told[from + i], *wanted, "{path} {prompt:?}: token {i}");
        }
        // Offsets count the characters of the text as it stands there.
        let text: Vec<char> = echoed[0]["text"].as_str().unwrap().chars().collect();
        let log_probs = &echoed[0]["logprobs"];
        let named = log_probs["tokens"].as_array().unwrap().iter().zip(log_probs["text_offset"].as_array().unwrap());
        for (i, (token, at)) in named.enumerate().filter(|(i, _)| *i + 1 < told.len()) {
            let (token, at) = (token.as_str().unwrap(), at.as_u64().unwrap() as usize);
            // llama2.c's tokenizer puts a space in front of a text, which is no part of it.
            let token = token.strip_prefix(' ').filter(|_| i == 0 && *model == 1).unwrap_or(token);
            let there: String = text[at..].iter().take(token.chars().count()).collect();
            assert!(
                token == there || token.starts_with("bytes:") || token.contains('#'),
                "token {i}: {token:?} at {at}, found {there:?}"
            );
        }
        assert_eq!(server.post("/detokenize", &json!({"model": name, "tokens": ids(prompt)}))["prompt"], *prompt);
        // Bytes of tokens, joined, are the text.
        let said = [json!({"content": prompt})];
        let ask =
            json!({"model": name, "messages": said, "max_tokens": 9, "seed": 2, "logprobs": true, "top_logprobs": 1});
        let chat = server.post("/v1/chat/completions", &ask)["choices"][0].clone();
        let tokens = chat["logprobs"]["content"].as_array().unwrap();
        let bytes = tokens.iter().filter(|token| token["token"] != "<|endoftext|>");
        let bytes = bytes.flat_map(|token| token["bytes"].as_array().unwrap());
        let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
        assert_eq!(chat["message"]["content"], *String::from_utf8_lossy(&bytes), "{path} {prompt:?}");
        let mut ask = json!({"model": name, "prompt": [prompt], "n": 2, "max_tokens": 9, "seed": 1});
        let whole = server.post("/v1/completions", &ask);
        ask["stream"] = true.into();
        let chunks = server.stream("/v1/completions", &ask);
        for choice in whole["choices"].as_array().unwrap() {
            let own = chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == choice["index"]);
            assert_eq!(choice["text"], own.map(|c| c["text"].as_str().unwrap()).collect::<String>());
        }
    }
    let prints = ["neo", "llama", "builtin"].map(|name| {
        server.post("/v1/completions", &json!({"model": name, "max_tokens": 1}))["system_fingerprint"].clone()
    });
    assert!(prints[0] != prints[1] && prints[1] != prints[2], "{prints:?}");
    // They have no master weights, which these commands take.
    let made = folder.path().join("made");
    for command in [&["pack"][..], &["export", "gguf"]] {
        for path in paths {
            let mut refused = Command::new(env!("CARGO_BIN_EXE_flashlm"));
            let refused = refused.args(command).args([path, "-o", made.to_str().unwrap()]).output().unwrap();
            let told = String::from_utf8(refused.stderr).unwrap();
            assert!(refused.status.code() == Some(1) && told.contains("it can be run, not trained"), "{told}");
            assert!(!made.exists());
        }
    }
}

#[test]
fn choices_after_one_context_read_it_once_and_score_the_same_bits() {
    let context =
        "Once upon a time there was a little girl who liked to play with her big red ball in the park. ".repeat(3);
    let choices = ["She was happy.", "The ball was lost.", "She ran home.", "It was late, so"];
    let ask = |choice: &str, top: usize| json!({"prompt": format!("{context}{choice}"), "max_tokens": 1, "logprobs": top, "echo": true, "temperature": 0});
    let fresh: Vec<Value> = choices
        .iter()
        .map(|choice| Server::start(&[]).post("/v1/completions", &ask(choice, 3))["choices"].clone())
        .collect();
    let server = Server::start(&[]);
    let mut read = Vec::new();
    for (choice, fresh) in choices.iter().zip(&fresh) {
        let before = server.metric("prompt_tokens_total");
        assert_eq!(server.post("/v1/completions", &ask(choice, 3))["choices"], *fresh);
        read.push(server.metric("prompt_tokens_total") - before);
    }
    assert_eq!(server.metric("prefix_hits_total"), 3);
    // The second finds a part of it, those after it all.
    assert!(read[1] < read[0] && read[2] < 16 && read[3] < 16, "{read:?}");
    // Fewer alternatives than were told are known, more are not.
    let hits = || server.metric("prefix_hits_total");
    server.post("/v1/completions", &ask(choices[0], 1));
    assert_eq!(hits(), 4);
    server.post("/v1/completions", &ask(choices[0], 5));
    assert_eq!(hits(), 4);
    // Together, and as a stream.
    let all: Vec<String> = choices.iter().map(|choice| format!("{context}{choice}")).collect();
    let mut together = ask("", 3);
    together["prompt"] = json!(all);
    let whole = Server::start(&[]).post("/v1/completions", &together);
    for (found, fresh) in whole["choices"].as_array().unwrap().iter().zip(&fresh) {
        assert_eq!((&found["text"], &found["logprobs"]), (&fresh[0]["text"], &fresh[0]["logprobs"]));
    }
}

#[test]
fn what_other_clients_send_is_read_or_refused_with_a_word() {
    let server = Server::start(&["--api-key", "key"]);
    let talk = |text: &[u8]| {
        let mut socket = TcpStream::connect(&server.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.write_all(text).unwrap();
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        String::from_utf8_lossy(&all).into_owned()
    };
    let body = r#"{"prompt": "Once", "max_tokens": 2, "temperature": 0}"#;
    let post = |path: &str, headers: &str, body: &str| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: bearer key\r\n{JSON}"
        );
        talk(format!("{head}{headers}\r\n{body}").as_bytes())
    };
    let length = |body: &str| format!("Content-Length: {}\r\n", body.len());
    let (ok, chunked) = ("HTTP/1.1 200 ", "Transfer-Encoding: chunked\r\n");
    for path in ["/v1/completions", "/v1/completions/", "//v1//completions"] {
        assert!(post(path, &length(body), body).starts_with(ok), "{path}");
    }
    assert!(post("/v1/completions", chunked, &format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())).starts_with(ok));
    let marked = format!("\u{feff}{body}");
    assert!(post("/v1/completions", &length(&marked), &marked).starts_with(ok));
    let expecting = post("/v1/completions", &format!("{}Expect: 100-continue\r\n", length(body)), body);
    assert!(expecting.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 "), "{expecting}");
    let early = post("/v1/completions", "Content-Length: 99999999\r\nExpect: 100-continue\r\n", "");
    assert!(early.starts_with("HTTP/1.1 413 ") && early.contains("16777216"), "{early}");
    let packed = post("/v1/completions", &format!("{}Content-Encoding: gzip\r\n", length(body)), body);
    assert!(packed.starts_with("HTTP/1.1 415 ") && packed.contains("encoded as gzip"), "{packed}");
    assert!(talk(b"GET /health HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200 "));
    assert!(talk(b"GET /health HTTP/1.0\r\nHost: evil.example\r\n\r\n").starts_with("HTTP/1.0 403 "));
    let head = talk(b"HEAD /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with(ok) && head.ends_with("\r\n\r\n"), "{head}");
    let key = "Host: localhost\r\nAuthorization: Bearer key\r\n";
    let options = talk(format!("OPTIONS /v1/completions HTTP/1.1\r\n{key}Connection: close\r\n\r\n").as_bytes());
    assert!(options.starts_with("HTTP/1.1 405 ") && options.contains("--cors"), "{options}");
    let base = talk(format!("GET /v1 HTTP/1.1\r\n{key}Connection: close\r\n\r\n").as_bytes());
    assert!(base.starts_with("HTTP/1.1 404 ") && base.contains("/openapi.json"), "{base}");
    // One after another without waiting.
    let one = format!("POST /v1/completions HTTP/1.1\r\n{key}{JSON}{}", length(body));
    let both = talk(format!("{one}\r\n{body}{one}Connection: close\r\n\r\n{body}").as_bytes());
    assert_eq!(both.matches(ok).count(), 2, "{both}");
}
