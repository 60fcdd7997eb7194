// node engine.mjs PAGE.html '{"prompt": "Once", "tokens": 200, "seed": "42", "temperature": 0.8, "topK": 0, "topP": 0.95, "minP": 0}'
// Prints the text that the engine inside a page of `flashlm export web` writes; each module that this Node knows must write the same.
import { readFileSync } from "node:fs";
import vm from "node:vm";

const [page, request] = [readFileSync(process.argv[2], "utf8"), JSON.parse(process.argv[3])];
const part = id => page.split(`<script type="text/plain" id="${id}">`)[1].split("</script>")[0];
const scope = { atob, WebAssembly, TextEncoder, TextDecoder, BigInt };
vm.runInNewContext(part("worker") + "\nthis.open = open; this.bytesOf = bytesOf;", scope);
const model = scope.bytesOf(part("model"));
const texts = ["relaxed", "simd"].map(scope_id => scope.bytesOf(part(scope_id))).filter(code => WebAssembly.validate(code)).map(code => {
    const engine = scope.open([code], model);
    const write = seed => {
        let text = request.prompt, n = 0;
        engine.start(request.prompt, [], seed);
        for (; n < request.tokens; n++) {
            const token = engine.next(request);
            const others = token.others.map(other => other[2]);
            if (!(token.p >= 0 && token.p <= 1) || others.some((p, i) => p > others[Math.max(0, i - 1)])) throw new Error("no probabilities");
            text += token.text;
            if (token.id === engine.eos) return [text, n + 1];
        }
        return [text + engine.rest(), n];
    };
    const [text] = write(BigInt(request.seed));
    // More texts for the speed alone, once the compiler of this program has done its work.
    const started = process.cpuUsage();
    let n = 0;
    for (let more = 0; more < (request.more ?? 0); more++) n += write(BigInt(more))[1];
    const { user, system } = process.cpuUsage(started);
    if (n > 0) console.error(`${n} tokens, ${Math.round((1e6 * n) / (user + system))} tokens per second of processor time`);
    return text;
});
if (texts.length === 0 || texts.some(text => text !== texts[0])) throw new Error("the modules write different texts");
console.log(texts[0]);
