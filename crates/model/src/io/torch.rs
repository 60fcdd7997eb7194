//! Files of `torch.save`: a zip archive (`zip`) with a pickle (`pickle`) and the numbers of each storage.
//!
//! ```text
//! NAME/data.pkl     values; tensors are views of storages
//! NAME/byteorder    "little"
//! NAME/data/N       storage N, its elements one after another
//! ```
//!
//! A tensor's last element must lie in its storage, and no tensor has more elements than its storage: sizes, strides and offsets
//! are multiplied in 128 bits before anything is allocated. Together, tensors copied may hold, as f32, at most four times the bytes of the file.

use super::pickle::{self, Id, Kind, Value, Values, View};
use super::safetensors::{TensorFile, TensorRef, write_tensors};
use super::{IoError, map_limited, zip};
use flashlm_kernels::map::Map;
use std::collections::BTreeMap;
use std::ops::{Deref, Range};
use std::path::Path;

/// Longest file accepted.
const MAX_FILE: u64 = 8 << 30;

/// How a zip archive begins.
pub const MAGIC: &[u8] = b"PK\x03\x04";

/// A file of `torch.save`.
pub struct TorchFile {
    label: String,
    bytes: Bytes,
    files: BTreeMap<String, Range<usize>>,
    values: Values,
}

enum Bytes {
    Mapped(Map),
    Read(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Read(bytes) => bytes,
        }
    }
}

/// A dict of such a file, or what is under a key of one.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    file: &'a TorchFile,
    id: Id,
}

impl TorchFile {
    /// Reads all but the numbers.
    pub fn open(path: &Path) -> Result<TorchFile, IoError> {
        let map = map_limited(path, MAX_FILE)?;
        Self::new(Bytes::Mapped(map), &path.display().to_string())
    }

    /// The same from memory; `label` names it in errors.
    pub fn from_bytes(bytes: Vec<u8>, label: &str) -> Result<TorchFile, IoError> {
        Self::new(Bytes::Read(bytes), label)
    }

    fn new(bytes: Bytes, label: &str) -> Result<TorchFile, IoError> {
        let (files, values) = contents(&bytes).map_err(|found| malformed(label, found))?;
        Ok(TorchFile { label: label.to_owned(), bytes, files, values })
    }

    /// What was saved.
    pub fn root(&self) -> Item<'_> {
        Item { file: self, id: self.values.root }
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes of a tensor's storage from its first element on, and its elements' type; checked as the header says.
    fn storage(&self, view: &View) -> Result<(&[u8], Kind), String> {
        let Value::Storage(storage) = self.values.get(view.storage) else {
            return Err("a tensor of no storage".into());
        };
        let (file, kind, elements) = &**storage;
        let name = format!("data/{file}");
        let range = self.files.get(&name).ok_or_else(|| format!("a tensor whose data, {name:?}, is not there"))?;
        let bytes = &self.bytes[range.clone()];
        if u128::from(*elements) * kind.size() as u128 != bytes.len() as u128 {
            return Err(format!("a storage {name:?} of {elements} elements in {} bytes", bytes.len()));
        }
        let count = count(view);
        let last = view.size.iter().zip(&view.stride);
        let last = last.map(|(&n, &stride)| u128::from(n.saturating_sub(1)) * u128::from(stride)).sum::<u128>();
        let end = u128::from(view.offset) + last + 1;
        if count > 0 && (end > u128::from(*elements) || count > u128::from(*elements)) {
            return Err(format!("a tensor {:?} that reaches past its storage of {elements} elements", view.size));
        }
        Ok((bytes, *kind))
    }

    /// The elements of a tensor, row-major, as f32.
    fn numbers(&self, view: &View) -> Result<Vec<f32>, String> {
        let (bytes, kind) = self.storage(view)?;
        let size = kind.size();
        let at = |i: usize| &bytes[i * size..][..size];
        let read = |i: usize| match (kind, at(i)) {
            (Kind::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Kind::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
            (Kind::Bf16, &[a, b]) => f32::from_le_bytes([0, 0, a, b]),
            (Kind::F16, &[a, b]) => super::half(u16::from_le_bytes([a, b])),
            (Kind::I64, &[a, b, c, d, e, f, g, h]) => i64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
            (Kind::I32, &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]) as f32,
            (Kind::I16, &[a, b]) => f32::from(i16::from_le_bytes([a, b])),
            (Kind::I8, &[a]) => f32::from(a as i8),
            (_, bytes) => f32::from(bytes[0]),
        };
        // All below the length of the storage, which is in memory.
        let n = count(view) as usize;
        let (sizes, strides): (Vec<usize>, Vec<usize>) =
            (view.size.iter().map(|&n| n as usize).collect(), view.stride.iter().map(|&n| n as usize).collect());
        let (mut index, mut place) = (vec![0; sizes.len()], view.offset as usize);
        let mut all = Vec::with_capacity(n);
        for _ in 0..n {
            all.push(read(place));
            for axis in (0..sizes.len()).rev() {
                index[axis] += 1;
                place += strides[axis];
                if index[axis] < sizes[axis] {
                    break;
                }
                place -= strides[axis] * sizes[axis];
                index[axis] = 0;
            }
        }
        Ok(all)
    }
}

fn count(view: &View) -> u128 {
    // Saturating: eight sizes of 64 bits are more than 128 hold.
    view.size.iter().fold(1, |all: u128, &n| all.saturating_mul(u128::from(n)))
}

fn malformed(label: &str, found: String) -> IoError {
    IoError::Malformed { file: label.to_owned(), format: "PyTorch", found }
}

fn contents(bytes: &[u8]) -> Result<(BTreeMap<String, Range<usize>>, Values), String> {
    if !bytes.starts_with(MAGIC) {
        return Err("one of a PyTorch before 1.6, or none (load it there and `torch.save` it again)".into());
    }
    let files = zip::files(bytes).map_err(|found| format!("a zip archive with {found}"))?;
    if let Some(order) = files.get("byteorder")
        && bytes[order.clone()] != *b"little"
    {
        return Err("numbers in big-endian order".into());
    }
    let pickle = files.get("data.pkl").ok_or("a zip archive without data.pkl")?;
    Ok((files.clone(), pickle::read(&bytes[pickle.clone()])?))
}

impl<'a> Item<'a> {
    /// What a dict holds under a key.
    pub fn get(self, key: &str) -> Option<Item<'a>> {
        let id = self.file.values.find(self.id, key)?;
        Some(Item { id, ..self })
    }

    /// What a dict holds under an integer.
    pub fn at(self, key: i64) -> Option<Item<'a>> {
        let values = &self.file.values;
        let Value::Dict(pairs) = values.get(self.id) else { return None };
        let (_, id) = pairs.iter().rev().find(|(k, _)| *values.get(*k) == Value::Int(key))?;
        Some(Item { id: *id, ..self })
    }

    /// An entry of a list or tuple.
    pub fn nth(self, i: usize) -> Option<Item<'a>> {
        let Value::List(items) = self.file.values.get(self.id) else { return None };
        items.get(i).map(|&id| Item { id, ..self })
    }

    /// An integer.
    pub fn int(self) -> Option<i64> {
        match *self.file.values.get(self.id) {
            Value::Int(x) => Some(x),
            _ => None,
        }
    }

    /// A number.
    pub fn float(self) -> Option<f64> {
        match *self.file.values.get(self.id) {
            Value::Int(x) => Some(x as f64),
            Value::Float(x) => Some(x),
            Value::Bool(x) => Some(f64::from(u8::from(x))),
            _ => None,
        }
    }

    /// How many entries a list or dict has.
    pub fn len(self) -> usize {
        match self.file.values.get(self.id) {
            Value::List(items) => items.len(),
            Value::Dict(pairs) => pairs.len(),
            _ => 0,
        }
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The names of the tensors in a dict, in order.
    pub fn tensors(self) -> Vec<&'a str> {
        let values = &self.file.values;
        let Value::Dict(pairs) = values.get(self.id) else { return Vec::new() };
        let tensor =
            |&(key, value): &(Id, Id)| values.text(key).filter(|_| matches!(values.get(value), Value::Tensor(_)));
        pairs.iter().filter_map(tensor).collect()
    }

    /// Whether both are the same view of the same storage.
    pub fn is_of(self, other: Option<Item>) -> bool {
        let values = &self.file.values;
        let view = |id| match values.get(id) {
            Value::Tensor(view) => Some((values.get(view.storage), view.offset, &view.size, &view.stride)),
            _ => None,
        };
        other.is_some_and(|other| view(self.id).is_some() && view(self.id) == view(other.id))
    }

    /// The shape of a tensor.
    pub fn shape(self) -> Option<Vec<usize>> {
        match self.file.values.get(self.id) {
            Value::Tensor(view) => view.size.iter().map(|&n| usize::try_from(n).ok()).collect(),
            _ => None,
        }
    }

    /// The elements of a tensor, row-major.
    pub fn numbers(self) -> Result<Vec<f32>, IoError> {
        let failed = |found| malformed(&self.file.label, found);
        match self.file.values.get(self.id) {
            Value::Tensor(view) => self.file.numbers(view).map_err(failed),
            _ => Err(failed("no tensor where one should be".into())),
        }
    }

    /// Those tensors of a dict whose names `wanted` takes, as a file of tensors in f32, with this metadata.
    pub fn to_tensors(
        self,
        wanted: impl Fn(&str) -> bool,
        metadata: &BTreeMap<String, String>,
    ) -> Result<TensorFile, IoError> {
        let (values, failed) = (&self.file.values, |found| malformed(&self.file.label, found));
        let (mut all, mut seen, mut total) = (Vec::new(), BTreeMap::new(), 0);
        for name in self.tensors().into_iter().filter(|name| wanted(name)) {
            let Some(Value::Tensor(view)) = values.find(self.id, name).map(|id| values.get(id)) else { continue };
            if seen.insert(name, ()).is_some() {
                return Err(failed(format!("the tensor `{}` twice", name.escape_debug())));
            }
            let within = |found| failed(format!("{found} (`{}`)", name.escape_debug()));
            self.file.storage(view).map_err(within)?;
            total += count(view) * 4;
            if total > 4 * self.file.bytes.len() as u128 {
                return Err(failed("tensors that are, as f32, more than four times the bytes of the file".into()));
            }
            all.push((
                name,
                self.file.numbers(view).map_err(within)?,
                view.size.iter().map(|&n| n as usize).collect::<Vec<_>>(),
            ));
        }
        let tensors: Vec<TensorRef> = all.iter().map(|(name, data, shape)| TensorRef { name, shape, data }).collect();
        let mut bytes = Vec::new();
        write_tensors(&mut bytes, &tensors, metadata).map_err(|e| failed(e.to_string()))?;
        drop(all);
        TensorFile::from_bytes(bytes, &self.file.label)
    }
}
