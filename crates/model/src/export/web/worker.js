// Writes in a thread of its own. Messages in: {init}, {write: {prompt, ids, settings}}, {stop}; out: {ready}, {tokens}, {done}, {error}.
// A token is {id, text, p, others: [[id, text, p]]}.
"use strict";

const OTHERS = 6;

function bytesOf(base64) {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
}

/** The engine with a model: `modules` are WebAssembly in the order in which they are tried. */
function open(modules, model) {
    const code = modules.find(code => WebAssembly.validate(code));
    if (!code) throw new Error("this browser has no WebAssembly SIMD: use one of 2021 or later");
    const e = new WebAssembly.Instance(new WebAssembly.Module(code)).exports;
    const whole = n => (n + 63) & ~63;
    const grow = end => {
        const more = Math.ceil((end - e.memory.buffer.byteLength) / 65536);
        if (more > 0) e.memory.grow(more);
    };
    const at = whole(e.heap()), scratch = at + whole(model.length), memory = scratch + 16384;
    grow(memory);
    new Uint8Array(e.memory.buffer, at, model.length).set(model);
    const size = e.size(at, model.length);
    if (!size) throw new Error("the model in this page is damaged");
    grow(memory + size);
    if (!e.init(memory, at, model.length)) throw new Error("the model in this page is damaged");
    const coder = new TextEncoder(), decoder = new TextDecoder();
    const read = n => decoder.decode(new Uint8Array(e.memory.buffer, scratch, n));
    let given = 0, room = 0;
    const feed = text => {
        const bytes = coder.encode(text);
        if (bytes.length > room) {
            given = e.memory.buffer.byteLength;
            room = bytes.length;
            grow(given + room);
        }
        new Uint8Array(e.memory.buffer, given, bytes.length).set(bytes);
        if (e.feed_text(given, bytes.length) < 0) throw new Error("the text has a word longer than 4096 bytes");
    };
    /** What stands for token `id`, chosen from the last logits. */
    const told = id => {
        e.likely(id, scratch, scratch + 64, OTHERS);
        const p = Array.from(new Float32Array(e.memory.buffer, scratch, 1 + OTHERS));
        const ids = Array.from(new Uint32Array(e.memory.buffer, scratch + 64, OTHERS));
        const others = ids.map((id, i) => [id, read(e.alone(id, scratch)), p[1 + i]]).filter(other => other[2] > 0);
        return { id, text: read(e.text(id, scratch)), p: p[0], others };
    };
    return {
        eos: e.eos(),
        relaxed: code === modules[0],
        start(prompt, ids, seed) {
            e.reset(Number(BigInt.asUintN(32, seed)) | 0, Number(BigInt.asUintN(32, seed >> 32n)) | 0);
            feed(prompt);
            for (const id of ids) {
                e.text(id, scratch);
                e.feed_token(id);
            }
        },
        next(s) {
            const id = e.sample(s.temperature, s.topK, s.topP, s.minP);
            if (id < 0) throw new Error("the logits are no numbers: the weights are damaged");
            return told(id);
        },
        rest: () => read(e.text(e.eos(), scratch)),
    };
}

if (typeof self !== "undefined" && typeof postMessage === "function" && typeof window === "undefined") {
    let engine, turn = 0;
    const next = new MessageChannel();
    const write = ({ prompt, ids, settings, limit }) => {
        const own = ++turn, started = performance.now();
        let n = 0;
        engine.start(prompt, ids, BigInt(settings.seed));
        const done = (why, rest) => postMessage({ done: why, rest, tokens: n, seconds: (performance.now() - started) / 1000 });
        next.port2.onmessage = () => {
            if (own !== turn) return;
            try {
                const tokens = [], until = performance.now() + 24;
                while (n < limit && performance.now() < until) {
                    const token = engine.next(settings);
                    n++;
                    tokens.push(token);
                    if (token.id === engine.eos) {
                        postMessage({ tokens });
                        return done("the model ended the text", "");
                    }
                }
                postMessage({ tokens });
                if (n >= limit) return done("reached the limit", engine.rest());
                next.port1.postMessage(0);
            } catch (error) {
                postMessage({ error: error.message });
            }
        };
        next.port1.postMessage(0);
    };
    self.onmessage = ({ data }) => {
        try {
            if (data.init) {
                engine = open(data.init.modules.map(bytesOf), bytesOf(data.init.model));
                postMessage({ ready: true, relaxed: engine.relaxed });
            } else if (data.write) write(data.write);
            else if (data.stop) {
                turn++;
                postMessage({ done: "stopped", rest: "" });
            }
        } catch (error) {
            postMessage({ error: error.message });
        }
    };
}
