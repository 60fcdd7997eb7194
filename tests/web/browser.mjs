// A page in a headless Chromium ($CHROMIUM, else chromium), driven over its debugging protocol. Needs Node with `WebSocket`:
// `node --experimental-websocket` before 22. Without Chromium the script ends with a word, and with code 1 where CI is set.
import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const browser = process.env.CHROMIUM ?? "chromium";

/// Calls `work` with a page; then the process ends, with code 1 if it threw or a script of the page did.
export async function inBrowser(folder, work) {
    try {
        execFileSync(browser, ["--version"]);
    } catch {
        console.log(`skipped: no ${browser} here`);
        process.exit(process.env.CI ? 1 : 0);
    }
    const profile = mkdtempSync(join(tmpdir(), "page-"));
    const flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", `--user-data-dir=${profile}`, "about:blank"];
    const chromium = spawn(browser, flags, { stdio: ["ignore", "ignore", "pipe"] });
    let failed = false;
    try {
        const page = await open(chromium, folder);
        await work(page);
        if (page.problems.length) throw new Error(page.problems.join("\n"));
    } catch (error) {
        failed = true;
        console.error(error.message);
    } finally {
        chromium.kill();
        await new Promise(ended => (chromium.exitCode === null && chromium.signalCode === null ? chromium.on("exit", ended) : ended()));
        rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    }
    process.exit(failed ? 1 : 0);
}

async function open(chromium, folder) {
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
    /// The value of an expression.
    const run = async expression => {
        const { result, exceptionDetails } = await call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
        if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
        return result.value;
    };
    /// Waits until a condition holds, a minute at most.
    const until = condition => run(`new Promise((done, fail) => { const end = Date.now() + 60000; const look = () => (${condition}) ? done(true) : Date.now() > end ? fail(new Error(${JSON.stringify(condition)} + " does not come true: " + document.body.innerText.slice(0, 2000))) : setTimeout(look, 5); look(); })`);
    /// Sets the size of the window and checks that nothing is wider; the picture goes to the folder, if there is one.
    const shot = async (name, width, height) => {
        await call("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: width < 500 });
        await run("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))");
        const over = await run("document.documentElement.scrollWidth - document.documentElement.clientWidth");
        if (folder) {
            const { data } = await call("Page.captureScreenshot", { format: "png" });
            writeFileSync(join(folder, name), Buffer.from(data, "base64"));
        }
        if (over > 0) throw new Error(`${name}: ${over} pixels wider than the window`);
    };
    await call("Runtime.enable");
    await call("Page.enable");
    await call("Network.enable");
    return { call, run, until, shot, problems };
}
