// node tests/exports/onnx.cjs MODEL.onnx EOS N: the N likeliest tokens after EOS, one after the other, by the npm package onnxruntime-node, as JSON.
const ort = require("onnxruntime-node");

async function main([path, eos, n]) {
  const model = await ort.InferenceSession.create(path);
  const states = {};
  for (const { name, type, shape } of model.inputMetadata.filter((input) => input.name !== "ids")) {
    const size = shape.reduce((all, axis) => all * axis, 1);
    const zeros = type === "int64" ? new BigInt64Array(size) : new Float32Array(size);
    states[name] = new ort.Tensor(type, zeros, shape);
  }
  const tokens = [Number(eos)];
  while (tokens.length <= Number(n)) {
    const ids = new ort.Tensor("int64", BigInt64Array.from([BigInt(tokens.at(-1))]), [1, 1]);
    const { logits, ...next } = await model.run({ ids, ...states });
    for (const name in states) states[name] = next[`next.${name}`];
    let best = 0;
    logits.data.forEach((z, token) => { if (z > logits.data[best]) best = token; });
    tokens.push(best);
  }
  console.log(JSON.stringify(tokens.slice(1)));
}

main(process.argv.slice(2));
