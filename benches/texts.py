#!/usr/bin/env python3
"""Trains a small model on texts as people have them, each with the one command that a person would type, and prints what
`flashlm train` says of it. The texts are made on the spot, from the stories of the built-in grammar; nothing is downloaded.

    benches/texts.py [--flashlm PATH] [--seconds S]
"""

import argparse
import csv
import json
import pathlib
import random
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
GERMAN = (
    "Der Hund,Die Katze,Das Mädchen,Der König,Ein Bär,Die Großmutter,Der Müller",
    "läuft,schläft,singt,träumt,hört zu,öffnet die Tür,ißt Brot,grüßt freundlich",
    "am frühen Morgen,im Wald,über die Brücke,ohne Furcht,während es regnet,mit großer Freude",
)
CHINESE = ("小猫,老人,公主,狗,国王,孩子,树,月亮", "在睡觉,唱歌,看见了光,走进森林,吃苹果,笑了,很高兴", "。,！,，")


def stories(flashlm, n):
    sample = subprocess.run(
        [flashlm, "data", "sample", f"synthetic:{n}", "-n", str(n), "--json"], capture_output=True, check=True
    )
    return [story["text"] for story in json.loads(sample.stdout)["stories"]]


def lines(parts, n, draw):
    """n sentences, each of one word of every part."""
    words = [part.split(",") for part in parts]
    return [" ".join(draw.choice(part) for part in words) for _ in range(n)]


def make(folder, told, draw):
    """Writes every text into the folder; yields (what it is, flags of train)."""
    at = lambda name: str(folder / name)
    sentences = [s.strip() for story in told for s in story.replace("\n", " ").split(".") if len(s) > 10]
    with open(at("play.txt"), "w") as f:
        while f.tell() < 1_115_000:
            speech = "\n".join(draw.choice(sentences) + "," for _ in range(draw.randint(1, 4)))
            f.write(f"{draw.choice(['ORLAND', 'MIRA', 'First Guard', 'Nurse'])}:\n{speech}\n\n")
    yield "a play of 1.1 MB, no separators", ["--data", at("play.txt")]
    (folder / "notes" / "old").mkdir(parents=True)
    for i, story in enumerate(told[:500]):
        where = "notes/old" if i % 5 == 0 else "notes"
        (folder / where / f"note {i}.md").write_text(f"# Note {i}\n\n- tags: a, b\n\n{story}\n")
    (folder / "notes/empty.md").write_text("")
    (folder / "notes/picture.png").write_bytes(b"\x89PNG\r\n")
    yield "500 notes in Markdown", ["--data", at("notes")]
    yield "the same by a pattern", ["--data", at("notes/**/*.md")]
    roles = ("user", "assistant")
    chat = [{"messages": [{"role": roles[i % 2], "content": story} for i, story in enumerate(told[n : n + 4])]} for n in range(1000)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(one) + "\n" for one in chat))
    yield "a chat log, a conversation a line", ["--data", at("chat.jsonl"), "--column", "messages.content"]
    log = [{"id": i, "from": draw.choice(roles), "text": story} for i, story in enumerate(told)]
    (folder / "log.json").write_text(json.dumps(log, ensure_ascii=False, indent=1))
    yield "a chat log, one array", ["--data", at("log.json")]
    with open(at("reviews.csv"), "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["id", "stars", "review"])
        table.writerows([i, draw.randint(1, 5), f'"{story}"\nSo it is.'] for i, story in enumerate(told))
    yield "reviews in a CSV", ["--data", at("reviews.csv"), "--column", "review"]
    for name, parts in (("deutsch.txt", GERMAN), ("zhongwen.txt", CHINESE)):
        text = lines(parts, 20_000, draw)
        glue = "" if parts is CHINESE else " "
        text = [line.replace(" ", glue) for line in text] if parts is CHINESE else [line + "." for line in text]
        (folder / name).write_text("\n\n".join(glue.join(text[i : i + 9]) for i in range(0, len(text), 9)))
    yield "a German text", ["--data", at("deutsch.txt")]
    yield "a Chinese text", ["--data", at("zhongwen.txt")]
    yield "two texts as one", ["--data", at("play.txt"), "--data", at("deutsch.txt")]
    yield "two texts by weights", ["--data", at("play.txt") + "@3", "--data", at("deutsch.txt") + "@1"]
    yield "source code", ["--data", str(ROOT / "crates")]
    with open(at("wiki.xml"), "wb") as f:
        for i in range(10**9):
            text = f"{told[i % len(told)]} [[Link {i % 97}]] &amp; {{{{cite|{i}}}}}\n{told[i * 7 % len(told)]}"
            page = f'  <page>\n    <title>Topic {i}</title>\n    <text xml:space="preserve">{text}</text>\n  </page>\n'
            f.write(page.encode())
            if f.tell() > 100_000_000:
                break
    yield "100 MB of XML, no separators", ["--data", at("wiki.xml")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flashlm", default=str(ROOT / "target/release/flashlm"), help="the program")
    parser.add_argument("--seconds", type=float, default=5, help="of training for each text")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder, draw = pathlib.Path(folder), random.Random(1)
        told = stories(args.flashlm, 3000)
        for i, (what, flags) in enumerate(make(folder, told, draw)):
            limit = ["--preset", "flash-tiny", "--minutes", str(args.seconds / 60), "--save-dir", str(folder / f"run-{i}")]
            run = subprocess.run([args.flashlm, "train", *flags, *limit], capture_output=True, text=True)
            print(f"\n== {what}: flashlm train {' '.join(flags)}".replace(f"{folder}/", ""))
            keep = ("text", "validation:", "error", str(folder), "flash-tiny:")
            for line in run.stderr.splitlines():
                if line.startswith(keep):
                    print(line.replace(f"{folder}/", ""))
            print(*(line for line in run.stdout.splitlines() if line.startswith("bpb  ")), sep="\n")
            failed += run.returncode != 0
    print(f"\n{failed} failed")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
