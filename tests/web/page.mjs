// node --experimental-websocket page.mjs PAGE.html FLASHLM MODEL [FOLDER]
// Opens a page of `flashlm export web` in a headless Chromium ($CHROMIUM, else chromium) from file:// with the network off, and compares what
// it writes with `flashlm generate`, seed by seed. Screenshots of a wide and a narrow window go to FOLDER. Skips with a word without Chromium.
import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const [page, flashlm, model, folder] = process.argv.slice(2);
const browser = process.env.CHROMIUM ?? "chromium";
try {
    execFileSync(browser, ["--version"]);
} catch {
    console.log(`skipped: no ${browser} here`);
    process.exit(0);
}
const profile = mkdtempSync(join(tmpdir(), "page-"));
const flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", `--user-data-dir=${profile}`, "about:blank"];
const chromium = spawn(browser, flags, { stdio: ["ignore", "ignore", "pipe"] });
let failed = false;
try {
    const address = await new Promise((found, lost) => {
        let log = "";
        chromium.stderr.on("data", data => {
            log += data;
            const at = log.match(/ws:\/\/\S+/);
            if (at) found(at[0]);
        });
        chromium.on("exit", () => lost(new Error(`${browser} ended: ${log}`)));
    });
    const targets = await (await fetch(`http://${new URL(address).host}/json/list`)).json();
    const socket = new WebSocket(targets.find(target => target.type === "page").webSocketDebuggerUrl);
    await new Promise(opened => (socket.onopen = opened));
    const waiting = new Map(), problems = [];
    let last = 0;
    socket.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        if (message.method === "Runtime.exceptionThrown") problems.push(JSON.stringify(message.params));
        waiting.get(message.id)?.(message);
    };
    const call = (method, params = {}) => new Promise((done, fail) => {
        waiting.set(++last, message => (message.error ? fail(new Error(message.error.message)) : done(message.result)));
        socket.send(JSON.stringify({ id: last, method, params }));
    });
    const run = async expression => {
        const { result, exceptionDetails } = await call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
        if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
        return result.value;
    };
    const until = condition => run(`new Promise((done, fail) => { const end = Date.now() + 60000; const look = () => (${condition}) ? done(true) : Date.now() > end ? fail(new Error(get("status").textContent)) : setTimeout(look, 5); look(); })`);
    const shot = async (name, width, height) => {
        await call("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: width < 500 });
        if (name === "narrow.png") await run(`document.querySelectorAll("#text .token")[4].click()`);
        const { data } = await call("Page.captureScreenshot", { format: "png" });
        if (folder) writeFileSync(join(folder, name), Buffer.from(data, "base64"));
        const over = await run("document.documentElement.scrollWidth - document.documentElement.clientWidth");
        if (over > 0) throw new Error(`${name}: ${over} pixels wider than the window`);
    };
    await call("Runtime.enable");
    await call("Page.enable");
    await call("Network.enable");
    await call("Network.emulateNetworkConditions", { offline: true, latency: 0, downloadThroughput: 0, uploadThroughput: 0 });
    await call("Page.navigate", { url: `file://${resolve(page)}` });
    await until(`document.readyState === "complete" && typeof get === "function"`);
    await until(`!get("write").disabled`);
    const ready = await run("performance.now()");
    const set = (id, value) => run(`get("${id}").value = ${JSON.stringify(String(value))}`);
    const written = `[...get("text").childNodes].map(node => node.textContent).join("")`;
    for (const [seed, temperature, topP, topK] of [[42, 0.8, 0.95, 0], [7, 1, 1, 0], [3, 0, 0.95, 0], [18446744073709551615n, 1.3, 0.9, 30]]) {
        for (const [id, value] of Object.entries({ seed, temperature, topP, topK, prompt: "One day" })) await set(id, value);
        await run(`get("write").click()`);
        await until(`tokens.length > 0`);
        await until(`!get("write").disabled`);
        const sampling = ["-t", String(temperature), "--top-p", String(topP), "--top-k", String(topK), "--seed", String(seed)];
        const expected = execFileSync(flashlm, ["generate", model, "-p", "One day", ...sampling], { stdio: ["ignore", "pipe", "ignore"] }).toString();
        const text = await run(written);
        if (text + "\n" !== expected) throw new Error(`seed ${seed}: expected ${JSON.stringify(expected)}, found ${JSON.stringify(text)}`);
        console.log(`seed ${seed}: equal, ${text.length} characters; ${await run(`get("status").textContent`)}`);
    }
    await shot("wide.png", 1100, 760);
    // An alternative, and the text from there on.
    const before = await run(written);
    await shot("narrow.png", 360, 740);
    if (await run(`get("others").hidden`)) throw new Error("no alternatives");
    await run(`[...document.querySelectorAll("#others button:not(.chosen)")][0].click()`);
    await until(`!get("write").disabled`);
    if ((await run(written)) === before) throw new Error("an alternative changed nothing");
    await run(`const start = performance.now(); globalThis.first = 0; get("limit").value = 100000; get("temperature").value = 2; get("topP").value = 1; get("write").click(); const look = () => tokens.length ? (globalThis.first = performance.now() - start) : setTimeout(look, 1); look();`);
    await until(`globalThis.first > 0`);
    await run(`get("stop").click()`);
    await until(`!get("write").disabled`);
    console.log(`ready after ${Math.round(ready)} ms, first tokens ${Math.round(await run("globalThis.first"))} ms after Write; stopped: ${await run(`get("status").textContent`)}`);
    if (problems.length) throw new Error(problems.join("\n"));
} catch (error) {
    failed = true;
    console.error(error.message);
} finally {
    chromium.kill();
    await new Promise(ended => (chromium.exitCode === null && chromium.signalCode === null ? chromium.on("exit", ended) : ended()));
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
}
process.exit(failed ? 1 : 0);
