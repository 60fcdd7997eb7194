//! At a terminal: writing in turns, and the lines of training. `script` makes the terminal, an emulator reads what is drawn on it.

use std::fs;
use std::io::{Read, Write};
use std::num::NonZero;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Place, TINY, text};

/// High enough that nothing leaves the screen.
const ROWS: u16 = 150;
const WRITE: &str = "generate builtin --interactive -n 8";
const UP: &str = "\x1b[A";
const LEFT: &str = "\x1b[D";
const CTRL_A: &str = "\x01";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_E: &str = "\x05";
const CTRL_U: &str = "\x15";

fn cells(n: u16) -> NonZero<u16> {
    NonZero::new(n).expect("a size")
}

/// The program at a terminal.
struct Terminal<'a> {
    place: &'a Place,
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl<'a> Terminal<'a> {
    fn open(place: &'a Place, args: &str, columns: u16) -> Terminal<'a> {
        let program = place.command("");
        let program = program.get_program().to_str().expect("a path in UTF-8");
        let line = format!("tty >tty; echo $$ >pid; stty rows {ROWS} cols {columns}; exec '{program}' {args}");
        let mut command = Command::new("script");
        command.args(["-qefc", &line, "/dev/null"]).current_dir(place.path(""));
        command.env("SHELL", "/bin/sh").env("TERM", "xterm").env("FLASHLM_THREADS", "1");
        command.env("FLASHLM_CACHE", place.path("cache")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("`script`, of the package bsdutils, starts");
        let (keys, mut drawn) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let screen = Arc::new(Mutex::new(vt100::Parser::new(cells(ROWS), cells(columns), 0)));
        let to = screen.clone();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = drawn.read(&mut bytes) {
                to.lock().unwrap().process(&bytes[..n]);
            }
        });
        Terminal { place, child, keys, screen }
    }

    /// Its rows, without blank ones at the end.
    fn rows(&self) -> String {
        let screen = self.screen.lock().unwrap();
        let width = screen.screen().size().1.get();
        let rows = screen.screen().rows(0, width).map(|row| row.trim_end().to_string());
        rows.collect::<Vec<_>>().join("\n").trim_end().to_string()
    }

    fn wait(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let rows = self.rows();
            if holds(&rows) {
                return rows;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{what}:\n{rows}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("a terminal that listens");
    }

    /// Waits for the sign, presses keys and Return, and returns what is on the screen from them on when the sign is there again.
    fn say(&mut self, keys: &str) -> String {
        let signs = self.ready();
        self.press(&format!("{keys}\r"));
        let rows = self.wait(keys, |rows| rows.ends_with("\n>") && rows.matches("\n>").count() > signs);
        let from = rows.match_indices("\n>").nth(signs - 1).unwrap().0;
        rows[from + 1..].trim_end_matches("\n>").to_string()
    }

    /// Waits for the sign; how many there are.
    fn ready(&self) -> usize {
        let rows = self.wait("the sign", |rows| rows.ends_with("\n>"));
        rows.matches("\n>").count()
    }

    /// Resizes the terminal and waits until the program has seen it: keys that come with the signal are read first.
    fn resize(&self, columns: u16) {
        let tty = fs::read_to_string(self.place.path("tty")).unwrap();
        let size = ["-F", tty.trim(), "cols", &columns.to_string()];
        let before = self.sleeps(0);
        assert!(Command::new("stty").args(size).status().unwrap().success());
        self.sleeps(before);
        self.screen.lock().unwrap().screen_mut().set_size(cells(ROWS), cells(columns));
    }

    /// Waits until the program has gone to sleep more than `before` times and sleeps; how many times it has.
    fn sleeps(&self, before: u64) -> u64 {
        let pid = fs::read_to_string(self.place.path("pid")).unwrap();
        let start = Instant::now();
        loop {
            let status = fs::read_to_string(format!("/proc/{}/status", pid.trim())).expect("a program that runs");
            let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).expect("a field").trim();
            let times = field("voluntary_ctxt_switches:").parse().expect("a number");
            if times > before && field("State:").starts_with('S') {
                return times;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "it does not wait for keys:\n{status}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The exit code of the program when it ends, and its last picture.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        thread::sleep(Duration::from_millis(50));
        (status.code(), self.rows())
    }
}

/// What `flashlm generate` writes after the prompt.
fn written(place: &Place, flags: &str, prompt: &str) -> String {
    let output = place.command(&format!("generate builtin -n 8 {flags}")).args(["-p", prompt]).output().unwrap();
    let all = text(&output.stdout);
    all.strip_prefix(prompt).unwrap_or_else(|| panic!("{all}")).trim_end().to_string()
}

/// Rows as they look: no blank at the end of any.
fn looks(text: &str) -> String {
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[test]
fn turns_are_retried_taken_back_and_set() {
    let place = Place::new();
    let mut terminal = Terminal::open(&place, WRITE, 80);
    let prompt = "Once upon a time";
    let (first, second) = (written(&place, "", prompt), written(&place, "--seed 43", prompt));
    assert_ne!(first, second);
    assert_eq!(terminal.say(prompt), format!("> {prompt}\n{}", looks(&first)));
    assert_eq!(terminal.say("/retry"), format!("> /retry\n{prompt}{}", looks(&second)));
    assert_eq!(terminal.say("/undo"), "> /undo\nthe text is empty again");
    assert_eq!(terminal.say("/undo"), "> /undo\nthere is no turn to take back");
    assert_eq!(terminal.say("/retry"), "> /retry\nthere is no turn to write again");
    terminal.say("/set temperature 0");
    let greedy = format!("> {prompt}\n{}", looks(&written(&place, "--greedy", prompt)));
    assert_eq!(terminal.say(prompt), greedy);
    terminal.say("/undo");
    for (line, told) in [
        ("/set", "temperature 0,"),
        ("/set temperature hot", "expected a number"),
        ("/set temperature -1", "temperature: expected"),
        ("/set tokens 1e99", "expected a whole number"),
        ("/set xyzzy 1", "no such setting"),
        ("/set seed", "not a command"),
        ("/frobnicate", "not a command"),
        ("/help", "/undo "),
    ] {
        assert!(terminal.say(line).contains(told), "{line}:\n{}", terminal.rows());
    }
    // What was refused has changed nothing.
    assert_eq!(terminal.say(prompt), greedy);
    terminal.press("/quit\r");
    assert_eq!(terminal.end().0, Some(0));
}

#[test]
fn lines_are_edited_recalled_and_kept_as_typed() {
    let place = Place::new();
    let mut terminal = Terminal::open(&place, WRITE, 80);
    let after = |prompt: &str| format!("> {prompt}\n{}", looks(&written(&place, "", prompt)));
    // Backspace over letters of two bytes, the cursor to both ends, a letter in between.
    let typed = format!("ie Größe\x7f\x7f\x7füßen{LEFT}{LEFT}t{CTRL_A}D{CTRL_E}!");
    assert_eq!(terminal.say(&typed), after("Die Grüßten!"));
    terminal.say("/undo");
    // The line before the last, and that with an end of its own.
    assert_eq!(terminal.say(&format!("{UP}{UP}{CTRL_U}Hello")), after("Hello"));
    terminal.say("/undo");
    assert_eq!(terminal.say(&format!("{UP}{UP}, you")), after("Hello, you"));
    terminal.say("/undo");
    // Spaces at the start, and lines: code, verse, chat.
    assert_eq!(terminal.say("    y = 2"), after("    y = 2"));
    terminal.say("/undo");
    terminal.say("/set lines on");
    let lines = |prompt: &str| looks(&written(&place, "", prompt));
    let chat = terminal.say("User: what");
    assert_eq!(chat, format!("> User: what\n{}", lines("User: what\n")));
    terminal.say("/undo");
    assert_eq!(terminal.say("    if x:"), format!(">     if x:\n{}", lines("    if x:\n")));
    terminal.say("/undo");
    // Several lines at once, as a terminal pastes them, are one turn.
    let pasted = terminal.say("\x1b[200~rain\n  snow\x1b[201~");
    assert!(pasted.ends_with(&lines("rain\n  snow\n")), "{pasted}");
    terminal.press(CTRL_D);
    assert_eq!(terminal.end().0, Some(0));
}

#[test]
fn control_c_stops_a_turn_and_leaves_the_program() {
    let place = Place::new();
    let eos = serde_json::from_str::<serde_json::Value>(&place.ok("info builtin --json")).unwrap()["tokenizer"]["eos"]
        .clone();
    let flags = format!("generate builtin --interactive -n 100000000 --logit-bias {eos}=-100");
    let mut terminal = Terminal::open(&place, &flags, 80);
    terminal.ready();
    terminal.press(&format!("half a line{CTRL_C}"));
    terminal.wait("Ctrl-C at the sign", |rows| rows.ends_with("Ctrl-D or /quit leaves\n>"));
    terminal.press("Once\r");
    terminal.wait("a long turn", |rows| rows.lines().count() > 12);
    terminal.press(CTRL_C);
    terminal.wait("the end of the turn", |rows| rows.ends_with("[interrupted]\n>"));
    terminal.say("/undo");
    assert!(terminal.rows().contains("the text is empty again"), "{}", terminal.rows());
    terminal.press(CTRL_D);
    assert_eq!(terminal.end().0, Some(0));
}

#[test]
fn a_terminal_that_goes_away_or_changes_its_width() {
    let place = Place::new();
    let mut terminal = Terminal::open(&place, WRITE, 80);
    terminal.ready();
    terminal.resize(40);
    let long = "A line that is longer than forty columns is edited over two rows.";
    let prompt = long.replace("edited", "read");
    let typed = format!("{long}{}{}", LEFT.repeat(" over two rows.".len()), "\x7f".repeat("edited".len()));
    let said = terminal.say(&format!("{typed}read"));
    let (first, rest) = said.split_once('\n').unwrap();
    assert_eq!(first.chars().count(), 40, "{said}");
    let flat = |text: &str| text.replace(['\n', ' '], "");
    let all = format!("{first}{rest}");
    assert_eq!(flat(&all), flat(&format!(">{prompt}{}", written(&place, "", &prompt))));
    let pid = fs::read_to_string(place.path("pid")).unwrap();
    terminal.child.kill().unwrap();
    terminal.child.wait().unwrap();
    let proc = std::path::Path::new("/proc").join(pid.trim()).join("cmdline");
    let start = Instant::now();
    while fs::read(&proc).is_ok_and(|line| !line.is_empty()) {
        assert!(start.elapsed() < Duration::from_secs(20), "it goes on without a terminal");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn without_a_terminal_lines_come_from_a_pipe() {
    let place = Place::new();
    let session = |input: &str| {
        let mut command = place.command(WRITE);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim_end().to_string()
    };
    let story = written(&place, "", "Once upon a time");
    // With either line end, without one, and with more after the end.
    for input in ["Once upon a time\n", "Once upon a time\r\n", "Once upon a time", "Once upon a time\n/quit\nmore\n"] {
        assert_eq!(session(input), story);
    }
    assert_eq!(session(""), "");
}

#[test]
fn lines_of_training_fit_the_terminal() {
    let place = Place::new();
    for (columns, words) in [(40, ["step ", "loss "]), (80, ["loss ", "(best)  entropy bound 0."])] {
        let args = format!("train {TINY} --steps 40 --set train.eval_every=10 -o run{columns}").replace("[]", "'[]'");
        let terminal = Terminal::open(&place, &args, columns);
        let drawn = terminal.screen.clone();
        let (code, rows) = terminal.end();
        assert_eq!(code, Some(0), "{rows}");
        let parser = drawn.lock().unwrap();
        let wrapped = |row: &usize| parser.screen().row_wrapped(*row as u16);
        // Only the line that is to be copied goes over the edge.
        for (i, row) in rows.lines().enumerate() {
            assert!(!wrapped(&i) || row.starts_with("next "), "{row} is wrapped:\n{rows}");
        }
        assert!(rows.lines().filter(|row| row.starts_with("valid  loss ")).count() >= 4, "{rows}");
        for word in words {
            assert!(rows.contains(word), "{word} is not in:\n{rows}");
        }
        drop(parser);
        let eval = format!("eval run{columns} -d synthetic:3");
        let (run, info) = (format!("run{columns}"), format!("info run{columns}"));
        let both = format!("eval builtin {run} -d synthetic:3");
        for (args, words) in [
            (eval.as_str(), &["bits per byte", "as `generate` runs it"][..]),
            (both.as_str(), &["perplexity", "tokens scored per second"]),
            (info.as_str(), &["(best)"]),
            ("runs", &[run.as_str()]),
            ("score builtin -c one", &["one"]),
        ] {
            let terminal = Terminal::open(&place, args, columns);
            let drawn = terminal.screen.clone();
            let (code, rows) = terminal.end();
            assert_eq!(code, Some(0), "{rows}");
            let parser = drawn.lock().unwrap();
            for (i, row) in rows.lines().enumerate() {
                // But for paths, which no space cuts.
                let wrapped = parser.screen().row_wrapped(i as u16) && !row.contains("/step-");
                assert!(!wrapped, "{args}: {row} is wrapped:\n{rows}");
            }
            let flat = rows.split_whitespace().collect::<Vec<_>>().join(" ");
            words.iter().for_each(|word| assert!(flat.contains(word), "{args}: {word} is not in:\n{rows}"));
        }
    }
}
