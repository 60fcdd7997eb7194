// node serve.mjs FLASHLM FOLDER [SECONDS [PICTURES]]
// The page of `flashlm serve` in a headless Chromium: it writes what `flashlm generate` writes, goes on from an alternative, compares two
// models, and watches a run that trains for SECONDS (10) in FOLDER. Pictures of all views, wide and narrow, light and dark, go to PICTURES.
import { execFileSync, spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { inBrowser } from "./browser.mjs";

const [flashlm, folder, seconds = "10", pictures] = process.argv.slice(2);
const other = join(dirname(fileURLToPath(import.meta.url)), "../golden/hybrid.safetensors");
const same = (found, expected, what) => {
    if (found !== expected) throw new Error(`${what}: expected ${JSON.stringify(expected)}, found ${JSON.stringify(found)}`);
};

await inBrowser(pictures, async ({ call, run, until, shot }) => {
    const tiny = "--preset hybrid-small --set model.pattern=[] --set model.kernel_size=64 --data synthetic:300 --vocab 300 --set model.dim=24 --set model.blocks=2 --set model.ffn_hidden=40 --set train.steps=0 --set train.seq_len=32 --batch 16 --set data.holdout=0.05 --set train.eval_tokens=2000 --set train.eval_every=100 --set train.sample_every=200 --set train.sample_tokens=40 --set train.log_every=10 --threads 1";
    const flags = ["train", ...tiny.split(" "), "--minutes", String(seconds / 60), "--save-dir", join(folder, "first")];
    let training;
    const server = spawn(flashlm, ["serve", "builtin", `other=${other}`, "--port", "0", "--run", folder], { stdio: ["ignore", "pipe", "inherit"] });
    try {
        const base = await new Promise((told, lost) => {
            server.stdout.on("data", data => told("http://" + String(data).trim().split("http://")[1]));
            server.on("exit", () => lost(new Error("the server has ended")));
        });
        const all = async name => {
            for (const scheme of pictures ? ["light", "dark"] : ["light"]) {
                await call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
                for (const [size, width, height] of [["wide", 1280, 860], ["narrow", 360, 780]]) await shot(`${name}-${size}-${scheme}.png`, width, height);
            }
            await call("Emulation.setDeviceMetricsOverride", { width: 1280, height: 860, deviceScaleFactor: 1, mobile: false });
        };
        const type = async (id, text) => {
            await run(`$("${id}").focus(); $("${id}").select()`);
            await call("Input.insertText", { text });
        };
        const press = async (key, modifiers = 0) => {
            for (const kind of ["keyDown", "keyUp"]) await call("Input.dispatchKeyEvent", { type: kind, key, code: key, windowsVirtualKeyCode: { Enter: 13, Escape: 27, ArrowRight: 39 }[key], modifiers });
        };
        const generated = (model, prompt, seed, t) => execFileSync(flashlm, ["generate", model, "-p", prompt, "--seed", seed, "-t", t, "-n", "150"], { stdio: ["ignore", "pipe", "ignore"] }).toString();

        // Write: typed, and started by the keyboard.
        await call("Page.navigate", { url: base });
        await until(`document.readyState === "complete" && typeof pane === "object" && $("model").options.length === 2`);
        await type("prompt", "One day a");
        await press("Enter", 2);
        await until("pane.running");
        await until("!pane.running");
        const first = await run(`$("prompt").value + pane.text`);
        same(first + "\n", generated("builtin", "One day a", "42", "0.8"), "the text of Write");
        await all("write");
        // The fourth word by the arrow keys, and the alternative that is not there yet.
        await run(`pane.box.children[0].focus()`);
        for (let i = 0; i < 3; i++) await press("ArrowRight");
        const before = await run(`$("prompt").value + pane.tokens.slice(0, 3).map(token => token.text).join("")`);
        const chosen = await run(`document.activeElement.click(), [...document.querySelectorAll("#choices li button span")].map(e => e.textContent).find(text => text !== pane.tokens[3].text)`);
        await all("alternatives");
        await run(`[...document.querySelectorAll("#choices li button")].find(e => e.firstChild.textContent === ${JSON.stringify(chosen)}).click()`);
        await until("pane.running");
        await until("!pane.running");
        same(await run(`($("prompt").value + pane.text).startsWith(${JSON.stringify(before + chosen)})`), true, "goes on from the alternative");
        // Escape ends a text at once.
        await run(`$("max_tokens").value = 100000; $("temperature").value = 4; $("go").click()`);
        await until("pane.tokens.length > 5");
        await press("Escape");
        await until(`!pane.running && pane.state.textContent.startsWith("stopped")`);
        // A link has the text and the settings.
        await run(`$("write").querySelector(".link").click()`);
        const [url, text] = await run(`[location.href, $("prompt").value + pane.text]`);
        await call("Page.navigate", { url: "about:blank" });
        await call("Page.navigate", { url });
        await until(`typeof pane === "object" && pane.text`);
        same(await run(`$("prompt").value + pane.text`), text, "the text of a link");
        same(await run(`$("temperature").value`), "4", "the temperature of a link");

        // Compare.
        await run(`location.hash = "#compare"; $("max_tokens").value = 150`);
        await until(`!$("compare").hidden`);
        await type("both", "The cat");
        await press("Enter", 2);
        await until("sides.every(side => side.tokens.length)");
        await until("sides.every(side => !side.running)");
        const texts = await run(`sides.map(side => $("both").value + side.text)`);
        ["builtin", other].forEach((model, i) => same(texts[i] + "\n", generated(model, "The cat", "42", "0.8"), `text ${i + 1} of Compare`));
        await all("compare");

        // Watch: a run that has just begun, as it goes on, and when it is done.
        await run(`location.hash = "#watch"`);
        training = spawn(flashlm, flags, { stdio: ["ignore", "ignore", "pipe"] });
        let log = "";
        training.stderr.on("data", data => (log += data));
        const trained = new Promise(ended => training.on("exit", ended));
        await until(`runs.get("first")?.train.length > 1 && document.querySelectorAll(".charts path").length > 10`);
        const rows = await run(`runs.get("first").train.length`);
        await until(`runs.get("first").train.length > ${rows + 3}`);
        same(await run(`document.querySelector(".runs small").textContent.includes("training")`), true, "the state of a run that trains");
        await until(`/to go/.test(document.querySelector(".runs p").textContent)`);
        if (pictures) await all("watch-training");
        same(await trained, 0, `training: ${log}`);
        await until(`runs.get("first").about.outcome === "finished" && runs.get("first").samples.length > 0 && document.querySelector(".samples article")`);
        const told = readFileSync(join(folder, "first/metrics.jsonl"), "utf8").trim().split("\n").map(line => JSON.parse(line));
        const kind = name => told.filter(row => row.kind === name);
        await until(`runs.get("first").train.length >= ${kind("train").length} && runs.get("first").evals.length >= ${kind("eval").length}`);
        const lines = await run(`JSON.stringify([...runs.get("first").train.map(row => row.loss), ...runs.get("first").evals.map(row => row.bpb)])`);
        same(lines, JSON.stringify([...kind("train").map(row => row.loss), ...kind("eval").map(row => row.bpb)]), "the rows of the run");
        // Several runs over each other: two that exist only as logs.
        if (pictures && existsSync(join(folder, "more"))) await until("runs.size > 2");
        await run(`[...document.querySelectorAll(".runs input")].forEach(box => box.checked || box.click())`);
        await until("shown().length === runs.size && shown().every(run => run.train.length)");
        await all("watch");
        console.log(`writes, compares and watches; ${kind("train").length} rows of a run were seen as they came`);
    } finally {
        training?.kill();
        server.kill();
        await new Promise(ended => (server.exitCode === null ? server.on("exit", ended) : ended()));
    }
});
