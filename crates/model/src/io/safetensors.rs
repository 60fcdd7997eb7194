//! The safetensors format: named tensors of a model or a checkpoint, readable by Python's `safetensors`.
//!
//! ```text
//! n: u64 little endian | n bytes of JSON | data, row-major, little endian
//! JSON: {"__metadata__": {key: text}, name: {"dtype": "F32", "shape": [..], "data_offsets": [start, end]}, ..}
//! ```
//!
//! Offsets count from the end of the header, tensors follow each other without a gap, and `n` is a multiple of 8.
//! Written here: f32 only, sorted by name, the same bytes that Python writes for the same tensors.
//! Read here: F32, F64, I32, U8, I8 and BF16, of other programs also F16 and I64. Source: github.com/huggingface/safetensors, whose `Metadata`
//! does the checked arithmetic on shapes and offsets.

use super::{IoError, read_limited};
use crate::params::MAX_NUMBERS;
use ::safetensors::tensor::{Dtype, Metadata, TensorInfo};
use flashlm_kernels::map::Map;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::path::Path;

/// Length of the field `n`.
const PREFIX: usize = 8;
/// Longest header accepted: a hundred thousand tensors, or a tokenizer in the metadata, and a bound on the parser's memory.
const MAX_HEADER: usize = 16 << 20;
/// Longest file accepted, far above any model meant for a CPU.
const MAX_FILE: u64 = 8 << 30;
/// The longest written: two moments for each parameter.
const _: () = assert!(8 * MAX_NUMBERS as u64 + MAX_HEADER as u64 <= MAX_FILE);
/// The key of the JSON object that is not a tensor.
const METADATA_KEY: &str = "__metadata__";

/// A whole safetensors file in memory or mapped, checked.
#[derive(Debug)]
pub struct TensorFile {
    label: String,
    bytes: Bytes,
    data_start: usize,
    header: Metadata,
}

#[derive(Debug)]
enum Bytes {
    Read(Vec<u8>),
    Mapped(Map),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Read(bytes) => bytes,
            Bytes::Mapped(map) => map,
        }
    }
}

impl TensorFile {
    /// Reads and checks a file.
    pub fn open(path: &Path) -> Result<Self, IoError> {
        Self::from_bytes(read_limited(path, MAX_FILE)?, &path.display().to_string())
    }

    /// The same from memory; `label` names it in errors.
    pub fn from_bytes(bytes: Vec<u8>, label: &str) -> Result<Self, IoError> {
        Self::new(Bytes::Read(bytes), label)
    }

    /// The same of a file that is mapped.
    pub fn from_map(map: Map, label: &str) -> Result<Self, IoError> {
        Self::new(Bytes::Mapped(map), label)
    }

    fn new(bytes: Bytes, label: &str) -> Result<Self, IoError> {
        let (header, data_start) = parse(&bytes, bytes.len() as u64, label)?;
        let (expected, found) = ((data_start as u64).saturating_add(header.data_len() as u64), bytes.len() as u64);
        if expected != found {
            return Err(IoError::Length { file: label.to_owned(), expected, found });
        }
        Ok(Self { label: label.to_owned(), data_start, header, bytes })
    }

    /// What errors call the file.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The data of all tensors, in the order of the file.
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.data_start..]
    }

    /// Lets go of the memory of what was looked at, of a mapped file; the next look brings it back.
    pub fn release(&self) {
        if let Bytes::Mapped(map) = &self.bytes {
            map.release(0..map.len());
        }
    }

    /// The names of all tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// The shape of a tensor; a scalar has none.
    pub fn shape(&self, name: &str) -> Result<&[usize], IoError> {
        Ok(&self.info(name)?.shape)
    }

    /// A text of the metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        Some(self.header.metadata().as_ref()?.get(key)?)
    }

    /// The elements of an F32 tensor, row-major.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>, IoError> {
        self.elements(name, Dtype::F32, f32::from_le_bytes)
    }

    /// The elements of an F64 tensor, row-major.
    pub fn f64(&self, name: &str) -> Result<Vec<f64>, IoError> {
        self.elements(name, Dtype::F64, f64::from_le_bytes)
    }

    /// The elements of an I32 tensor, row-major.
    pub fn i32(&self, name: &str) -> Result<Vec<i32>, IoError> {
        self.elements(name, Dtype::I32, i32::from_le_bytes)
    }

    /// The elements of a U8 tensor, row-major.
    pub fn u8(&self, name: &str) -> Result<&[u8], IoError> {
        self.raw(name, Dtype::U8)
    }

    /// The elements of an I8 tensor, row-major.
    pub fn i8(&self, name: &str) -> Result<impl Iterator<Item = i8> + Clone, IoError> {
        Ok(self.raw(name, Dtype::I8)?.iter().map(|&byte| byte as i8))
    }

    /// The elements of a BF16 tensor, row-major, as the same numbers in f32.
    pub fn bf16(&self, name: &str) -> Result<Vec<f32>, IoError> {
        self.elements(name, Dtype::BF16, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16))
    }

    /// The elements of a tensor of floating-point numbers, row-major, as f32.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>, IoError> {
        match self.info(name)?.dtype {
            Dtype::BF16 => self.bf16(name),
            Dtype::F16 => self.elements(name, Dtype::F16, |bytes| super::half(u16::from_le_bytes(bytes))),
            _ => self.f32(name),
        }
    }

    /// The elements of a tensor of integers, row-major.
    pub fn ints(&self, name: &str) -> Result<Vec<i64>, IoError> {
        match self.info(name)?.dtype {
            Dtype::I64 => self.elements(name, Dtype::I64, i64::from_le_bytes),
            _ => Ok(self.i32(name)?.into_iter().map(i64::from).collect()),
        }
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, IoError> {
        self.header.info(name).ok_or_else(|| {
            let names = self.names();
            let some = names.iter().take(3).map(|n| format!(", `{n}`"));
            IoError::NoTensor {
                file: self.label.clone(),
                name: name.to_owned(),
                found: format!("{} others{}", names.len(), some.collect::<String>()),
            }
        })
    }

    fn elements<const N: usize, T>(&self, name: &str, dtype: Dtype, from: fn([u8; N]) -> T) -> Result<Vec<T>, IoError> {
        Ok(self.raw(name, dtype)?.as_chunks().0.iter().map(|e| from(*e)).collect())
    }

    /// The bytes of a tensor of this type.
    fn raw(&self, name: &str, dtype: Dtype) -> Result<&[u8], IoError> {
        let info = self.info(name)?;
        if info.dtype != dtype {
            return Err(IoError::ElementType {
                file: self.label.clone(),
                name: name.to_owned(),
                expected: format!("{dtype:?}"),
                found: format!("{:?}", info.dtype),
            });
        }
        // In range: `from_bytes` compared the end of the last tensor with the length of the data.
        let (start, end) = info.data_offsets;
        Ok(&self.data()[start..end])
    }
}

/// What a file says of itself before its data, which may be damaged still.
#[derive(Debug)]
pub struct Header(Metadata);

impl Header {
    /// Reads the start of a file.
    pub fn open(path: &Path) -> Result<Self, IoError> {
        let label = path.display().to_string();
        let failed = |source| IoError::Read { file: label.clone(), source };
        let (file, about) = super::open(path)?;
        let mut bytes = Vec::new();
        (&file).take(PREFIX as u64).read_to_end(&mut bytes).map_err(failed)?;
        if let Some(declared) = bytes.first_chunk() {
            let declared = u64::from_le_bytes(*declared).min(MAX_HEADER as u64);
            file.take(declared).read_to_end(&mut bytes).map_err(failed)?;
        }
        Ok(Self(parse(&bytes, about.len(), &label)?.0))
    }

    /// A text of the metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        Some(self.0.metadata().as_ref()?.get(key)?)
    }

    /// The number of tensors.
    pub fn tensors(&self) -> usize {
        self.0.tensors().len()
    }
}

/// The header at the start of a file of `length` bytes, and where its data begins.
fn parse(bytes: &[u8], length: u64, label: &str) -> Result<(Metadata, usize), IoError> {
    let file = || label.to_owned();
    if bytes.starts_with(super::LFS_POINTER) {
        let found = "a git LFS pointer (fetch the file with `git lfs pull`)".to_owned();
        return Err(IoError::Malformed { file: file(), format: "safetensors", found });
    }
    let short = |expected: u64| IoError::Length { file: file(), expected, found: length };
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX>().ok_or_else(|| short(PREFIX as u64))?;
    let declared = u64::from_le_bytes(*prefix);
    if declared > MAX_HEADER as u64 {
        return Err(IoError::TooLarge { file: file(), what: "a header", limit: MAX_HEADER as u64, found: declared });
    }
    let header = rest.get(..declared as usize).ok_or_else(|| short(PREFIX as u64 + declared))?;
    let header = serde_json::from_slice(header).map_err(|e| IoError::Malformed {
        file: file(),
        format: "safetensors",
        found: format!("a bad header ({e})"),
    })?;
    Ok((header, PREFIX + declared as usize))
}

/// One tensor to be written.
#[derive(Debug, Clone, Copy)]
pub struct TensorRef<'a> {
    /// Dotted parameter path.
    pub name: &'a str,
    /// Sizes of the axes; their product is the length of `data`.
    pub shape: &'a [usize],
    /// The elements, row-major.
    pub data: &'a [f32],
}

/// Writes a safetensors file, tensors sorted by name, in pieces of 16 KiB. `InvalidInput` for names given twice
/// and shapes that do not fit their data.
pub fn write_tensors(w: &mut dyn Write, tensors: &[TensorRef], metadata: &BTreeMap<String, String>) -> io::Result<()> {
    let mut sorted: Vec<&TensorRef> = tensors.iter().collect();
    sorted.sort_by_key(|t| t.name);
    let header = header(&sorted, metadata)?;
    w.write_all(&(header.len() as u64).to_le_bytes())?;
    w.write_all(header.as_bytes())?;
    let mut piece = [0; 1 << 14];
    for tensor in sorted {
        for values in tensor.data.chunks(piece.len() / 4) {
            for (bytes, value) in piece.as_chunks_mut().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
            w.write_all(&piece[..4 * values.len()])?;
        }
    }
    Ok(())
}

/// The JSON text, padded with spaces to a multiple of 8.
fn header(sorted: &[&TensorRef], metadata: &BTreeMap<String, String>) -> io::Result<String> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    let mut entries = Vec::with_capacity(sorted.len() + 1);
    if !metadata.is_empty() {
        entries.push(format!("\"{METADATA_KEY}\":{}", serde_json::to_string(metadata)?));
    }
    let mut start = 0usize;
    let mut previous = None;
    for tensor in sorted {
        let name = tensor.name;
        if name == METADATA_KEY || previous == Some(name) {
            return Err(invalid(format!("tensor name `{name}` is given twice or reserved")));
        }
        previous = Some(name);
        let count = tensor.shape.iter().try_fold(1usize, |n, &axis| n.checked_mul(axis));
        if count != Some(tensor.data.len()) {
            return Err(invalid(format!(
                "tensor `{name}`: shape {:?} does not fit {} elements",
                tensor.shape,
                tensor.data.len()
            )));
        }
        let end = start + size_of_val(tensor.data);
        entries.push(format!(
            "{}:{{\"dtype\":\"F32\",\"shape\":{},\"data_offsets\":[{start},{end}]}}",
            serde_json::to_string(name)?,
            serde_json::to_string(tensor.shape)?,
        ));
        start = end;
    }
    let mut text = format!("{{{}}}", entries.join(","));
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    if text.len() > MAX_HEADER {
        return Err(invalid(format!("a header of {} bytes, expected at most {MAX_HEADER}", text.len())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `safetensors.numpy.save` (0.8.0) of the tensors of [`ours`], given in the order w.b, a, empty, scalar.
    const PYTHON: &[u8] = b" \x01\0\0\0\0\0\0{\"__metadata__\":{\"config\":\"{\\\"dim\\\": 3, \\\"\xc3\xa9\\\": \\\"\\\\n\\\"}\"},\
\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"empty\":{\"dtype\":\"F32\",\"shape\":[0,4],\"data_offsets\":[4,4]},\
\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[4,8]},\"w.b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[8,32]}}  \
\0\0\xe0@\0\0\xa0\xbf\0\0\xc0?\0\0\0\xc0\0\0\x80>\0\0@@\x01\0\0\0\0\0\0\x80";

    /// The same with one tensor of each of four types.
    const PYTHON_TYPES: &[u8] = b"\xe0\0\0\0\0\0\0\0{\"l\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]},\
\"d\":{\"dtype\":\"F64\",\"shape\":[2],\"data_offsets\":[8,24]},\"f\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[24,28]},\
\"i\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[28,36]}}      \
\x05\0\0\0\0\0\0\0\x9a\x99\x99\x99\x99\x99\xb9?\0\0\0\0\0\0\x04\xc0\0\0\xc0?\xf9\xff\xff\xff\xff\xff\xff\x7f";

    const W: [f32; 6] = [1.5, -2.0, 0.25, 3.0, 1e-45, -0.0];

    fn tensor<'a>(name: &'a str, shape: &'a [usize], data: &'a [f32]) -> TensorRef<'a> {
        TensorRef { name, shape, data }
    }

    fn ours() -> Vec<u8> {
        let tensors = [
            tensor("w.b", &[2, 3], &W),
            tensor("a", &[1], &[7.0]),
            tensor("empty", &[0, 4], &[]),
            tensor("scalar", &[], &[-1.25]),
        ];
        let config = "{\"dim\": 3, \"é\": \"\\n\"}".to_owned();
        let mut bytes = Vec::new();
        write_tensors(&mut bytes, &tensors, &[("config".to_owned(), config)].into()).unwrap();
        bytes
    }

    fn error(bytes: &[u8]) -> String {
        let text = TensorFile::from_bytes(bytes.to_vec(), "x.bin").unwrap_err().to_string();
        assert!(text.starts_with("x.bin: "), "{text}");
        text
    }

    /// A file with this header and this many bytes of data.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn writes_the_bytes_that_python_writes() {
        assert_eq!(ours(), PYTHON);
    }

    #[test]
    fn reads_what_python_wrote() {
        let file = TensorFile::from_bytes(PYTHON.to_vec(), "p").unwrap();
        assert_eq!(file.names(), ["a", "empty", "scalar", "w.b"]);
        assert_eq!(file.shape("w.b").unwrap(), [2, 3]);
        assert_eq!(file.shape("scalar").unwrap(), [0usize; 0]);
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&file.f32("w.b").unwrap()), bits(&W));
        assert!(file.f32("empty").unwrap().is_empty());
        assert_eq!(file.metadata("config"), Some("{\"dim\": 3, \"é\": \"\\n\"}"));
        assert_eq!(file.metadata("other"), None);
        let file = TensorFile::from_bytes(PYTHON_TYPES.to_vec(), "p").unwrap();
        assert_eq!(file.f64("d").unwrap(), [0.1, -2.5]);
        assert_eq!(file.i32("i").unwrap(), [-7, i32::MAX]);
        assert_eq!(file.f32("f").unwrap(), [1.5]);
        assert_eq!(file.metadata("config"), None);
        let text = file.f32("d").unwrap_err().to_string();
        assert!(text.contains("`d`: expected elements of type F32, found F64"), "{text}");
        let text = file.i32("l").unwrap_err().to_string();
        assert!(text.contains("type I32, found I64"), "{text}");
        let text = file.shape("x").unwrap_err().to_string();
        assert!(text.contains("tensor `x`, found 4 others, `l`, `d`, `f`;"), "{text}");
    }

    #[test]
    fn every_truncation_is_named_with_both_lengths() {
        let whole = ours();
        for cut in 0..whole.len() {
            let text = error(&whole[..cut]);
            assert!(text.contains(&format!("found {cut};")), "{text}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        let text = error(&longer);
        assert!(text.contains("expected 328 bytes, found 329"), "{text}");
    }

    #[test]
    fn no_flipped_bit_in_the_header_panics_or_changes_a_shape_unnoticed() {
        let whole = ours();
        for at in 0..whole.len() - 32 {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                if let Ok(file) = TensorFile::from_bytes(bytes, "x") {
                    for name in file.names() {
                        let count: usize = file.shape(&name).unwrap().iter().product();
                        let read = file.f32(&name).map_or(count, |v| v.len());
                        assert_eq!(read, count, "byte {at} bit {bit}");
                    }
                }
            }
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        assert!(error(b"GIF89a, a picture and no tensors").contains("a header of"));
        assert!(error(&u64::MAX.to_le_bytes()).contains("expected at most 16777216"));
        let entry = |shape: &str, offsets: &str| {
            format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}")
        };
        for (header, data) in [
            ("{".to_owned(), 0),
            ("[]".to_owned(), 0),
            ("[".repeat(100_000), 0),
            (entry("[2]", "[4,8]"), 8),
            (entry("[2]", "[8,0]"), 8),
            (entry("[-2]", "[0,8]"), 8),
            (entry("[3]", "[0,8]"), 8),
            (entry("[4611686018427387904,4]", "[0,0]"), 0),
            (entry("[4294967296,4294967297]", "[0,16]"), 16),
            (entry("[2]", "[0,8]").replace("F32", "F33"), 8),
        ] {
            let text = error(&file(&header, data));
            assert!(text.contains("a bad header ("), "{text}");
        }
        // 2^60 bytes promised, none there: nothing may be allocated for them.
        let huge = entry("[288230376151711744]", "[0,1152921504606846976]");
        let text = error(&file(&huge, 0));
        assert!(text.contains("expected 1152921504606847"), "{text}");
    }

    #[test]
    fn a_file_on_disk_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        std::fs::write(&path, ours()).unwrap();
        assert_eq!(TensorFile::open(&path).unwrap().f32("a").unwrap(), [7.0]);
        std::fs::write(&path, &ours()[..100]).unwrap();
        let text = TensorFile::open(&path).unwrap_err().to_string();
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        let text = Header::open(&path).unwrap_err().to_string();
        assert!(text.starts_with(&path.display().to_string()) && text.contains("found 100"), "{text}");
        // A header is whole where the data is not.
        std::fs::write(&path, &ours()[..ours().len() - 1]).unwrap();
        let header = Header::open(&path).unwrap();
        assert_eq!((header.tensors(), header.metadata("other")), (4, None));
        assert_eq!(header.metadata("config"), Some("{\"dim\": 3, \"é\": \"\\n\"}"));
        assert!(TensorFile::open(&path).is_err());
    }

    #[test]
    fn long_tensors_cross_the_pieces_unharmed() {
        let data: Vec<f32> = (0..10_001).map(|i| i as f32 * 0.5).collect();
        let mut bytes = Vec::new();
        write_tensors(&mut bytes, &[tensor("x", &[10_001], &data)], &BTreeMap::new()).unwrap();
        assert_eq!(TensorFile::from_bytes(bytes, "x").unwrap().f32("x").unwrap(), data);
    }

    #[test]
    fn what_cannot_be_read_back_is_not_written() {
        let refused = |tensors: &[TensorRef]| {
            let mut bytes = Vec::new();
            let error = write_tensors(&mut bytes, tensors, &BTreeMap::new()).unwrap_err();
            assert_eq!((error.kind(), bytes.len()), (io::ErrorKind::InvalidInput, 0));
        };
        let one = tensor("a", &[1], &[0.0]);
        refused(&[one, one]);
        refused(&[tensor("a", &[2], &[0.0])]);
        refused(&[tensor(METADATA_KEY, &[1], &[0.0])]);
        refused(&[tensor("a", &[usize::MAX, 2], &[0.0])]);
    }
}
