// A page in a headless Chromium ($CHROMIUM, else chromium), driven over its debugging protocol by a pair of pipes. Needs Node 18 or newer.
// Without Chromium the script ends with a word, and with code 1 where CI is set.
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
    const flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", `--user-data-dir=${profile}`, "about:blank"];
    // It reads commands from 3 and writes answers to 4, each ended by a zero.
    const chromium = spawn(browser, flags, { stdio: ["ignore", "ignore", "pipe", "pipe", "pipe"] });
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
    let log = "";
    chromium.stderr.on("data", data => (log += data));
    const [commands, answers] = [chromium.stdio[3], chromium.stdio[4]];
    const waiting = new Map(), problems = [];
    let last = 0, session, rest = Buffer.alloc(0);
    // What was asked before it ended is never answered.
    const ended = () => waiting.forEach(done => done({ error: { message: `${browser} ended: ${log}` } }));
    chromium.on("exit", ended);
    commands.on("error", ended);
    answers.on("data", data => {
        rest = Buffer.concat([rest, data]);
        for (let end; (end = rest.indexOf(0)) >= 0; rest = rest.subarray(end + 1)) {
            const message = JSON.parse(rest.subarray(0, end).toString());
            if (message.method === "Runtime.exceptionThrown") problems.push(JSON.stringify(message.params));
            waiting.get(message.id)?.(message);
            waiting.delete(message.id);
        }
    });
    const call = (method, params = {}) => new Promise((done, fail) => {
        waiting.set(++last, message => (message.error ? fail(new Error(message.error.message)) : done(message.result)));
        commands.write(JSON.stringify({ id: last, method, params, sessionId: session }) + "\0");
    });
    const { targetInfos } = await call("Target.getTargets");
    const { targetId } = targetInfos.find(target => target.type === "page");
    session = (await call("Target.attachToTarget", { targetId, flatten: true })).sessionId;
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
