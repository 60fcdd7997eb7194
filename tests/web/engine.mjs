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
    let text = request.prompt, ended = false;
    engine.start(request.prompt, [], BigInt(request.seed));
    const started = performance.now();
    let n = 0;
    for (; n < request.tokens && !ended; n++) {
        const token = engine.next(request);
        const others = token.others.map(other => other[2]);
        if (!(token.p >= 0 && token.p <= 1) || others.some((p, i) => p > others[Math.max(0, i - 1)])) throw new Error("no probabilities");
        ended = token.id === engine.eos;
        text += token.text;
    }
    const seconds = (performance.now() - started) / 1000;
    console.error(`${n} tokens, ${Math.round(n / seconds)} tokens per second`);
    return ended ? text : text + engine.rest();
});
if (texts.length === 0 || texts.some(text => text !== texts[0])) throw new Error("the modules write different texts");
console.log(texts[0]);
