// node page.mjs PAGE.html FLASHLM MODEL [FOLDER]
// Opens a page of `flashlm export web` in a headless Chromium ($CHROMIUM, else chromium) from file:// with the network off, and compares what
// it writes with `flashlm generate`, seed by seed. Screenshots of a wide and a narrow window go to FOLDER. Skips with a word without Chromium.
import { execFileSync } from "node:child_process";
import { resolve } from "node:path";
import { inBrowser } from "./browser.mjs";

const [page, flashlm, model, folder] = process.argv.slice(2);
await inBrowser(folder, async ({ call, run, until, shot }) => {
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
    await run(`document.querySelectorAll("#text .token")[4].click()`);
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
});
