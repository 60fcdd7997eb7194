//! A GGUF file, version 3, little-endian: `GGUF`, u32 version, u64 tensors, u64 keys; each key a string, u32 type, value; each tensor a string,
//! u32 axes, u64 sizes from the innermost, u32 type, u64 offset; then the data, each tensor at a multiple of 32 bytes. A string is u64
//! length and bytes. Source: `docs/gguf.md` of ggml.

use super::blocks::Type;

/// A multiple of this many bytes is where a tensor begins.
const ALIGNMENT: usize = 32;

/// The value of a key.
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

/// One tensor, its shape from the outermost axis.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) kind: Type,
    pub(super) data: Vec<u8>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn list<T>(out: &mut Vec<u8>, kind: u32, values: &[T], each: impl Fn(&mut Vec<u8>, &T)) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| each(out, value));
}

fn value(out: &mut Vec<u8>, value: &Value) {
    let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
    match value {
        Value::U32(x) => {
            kind(out, 4);
            out.extend(x.to_le_bytes());
        }
        Value::F32(x) => {
            kind(out, 6);
            out.extend(x.to_le_bytes());
        }
        Value::Bool(x) => {
            kind(out, 7);
            out.push((*x).into());
        }
        Value::Text(x) => {
            kind(out, 8);
            text(out, x);
        }
        Value::U32s(all) => list(out, 4, all, |out, x| out.extend(x.to_le_bytes())),
        Value::I32s(all) => list(out, 5, all, |out, x| out.extend(x.to_le_bytes())),
        Value::Bools(all) => list(out, 7, all, |out, x| out.push((*x).into())),
        Value::Texts(all) => list(out, 8, all, |out, x| text(out, x)),
    }
}

/// The bytes of the file.
pub(super) fn write(keys: &[(String, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, of) in keys {
        text(&mut out, key);
        value(&mut out, of);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&n| out.extend((n as u64).to_le_bytes()));
        out.extend((tensor.kind as u32).to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.data.len().next_multiple_of(ALIGNMENT);
    }
    for tensor in tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(&tensor.data);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}
