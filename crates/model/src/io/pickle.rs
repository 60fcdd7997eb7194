//! The pickles of `torch.save`, protocol 2: a stack machine that builds values and can call nothing.
//!
//! ```text
//! value = none, bool, int, float, text, list, tuple, dict, a storage, a tensor over a storage, or a name of `NAMES`
//! ```
//!
//! A pickle is a program; Python's runs any function that it names. Here a name outside of [`NAMES`] is an error, and "calling"
//! one of them makes a dict, a tuple or a tensor. Values lie in one list and refer to each other by number: nothing recurses,
//! whatever refers to itself. Source: Lib/pickletools.py of CPython.

/// Longest pickle; the data of tensors is not in it.
const MAX_PICKLE: usize = 64 << 20;
/// Most values that are kept, and the most that wait on the stack.
const MAX_VALUES: usize = 1 << 17;
/// Memo entries are numbered; the largest number.
const MAX_MEMO: usize = 1 << 18;

/// The number of a value.
pub(super) type Id = u32;

/// The type of a storage's elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    F32,
    F64,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Kind {
    /// Bytes of an element.
    pub(super) fn size(self) -> usize {
        match self {
            Kind::F64 | Kind::I64 => 8,
            Kind::F32 | Kind::I32 => 4,
            Kind::F16 | Kind::Bf16 | Kind::I16 => 2,
            Kind::I8 | Kind::U8 | Kind::Bool => 1,
        }
    }
}

/// What a name of [`NAMES`] stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Name {
    Dict,
    Tensor,
    Parameter,
    Size,
    Storage(Kind),
}

/// All that a pickle may name.
const NAMES: [(&str, Name); 14] = [
    ("collections.OrderedDict", Name::Dict),
    ("torch._utils._rebuild_tensor_v2", Name::Tensor),
    ("torch._utils._rebuild_parameter", Name::Parameter),
    ("torch.Size", Name::Size),
    ("torch.FloatStorage", Name::Storage(Kind::F32)),
    ("torch.DoubleStorage", Name::Storage(Kind::F64)),
    ("torch.HalfStorage", Name::Storage(Kind::F16)),
    ("torch.BFloat16Storage", Name::Storage(Kind::Bf16)),
    ("torch.LongStorage", Name::Storage(Kind::I64)),
    ("torch.IntStorage", Name::Storage(Kind::I32)),
    ("torch.ShortStorage", Name::Storage(Kind::I16)),
    ("torch.CharStorage", Name::Storage(Kind::I8)),
    ("torch.ByteStorage", Name::Storage(Kind::U8)),
    ("torch.BoolStorage", Name::Storage(Kind::Bool)),
];

/// A view of a storage: element `[i, j, ..]` is `storage[offset + i * stride[0] + j * stride[1] + ..]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    pub(super) storage: Id,
    pub(super) offset: u64,
    pub(super) size: Vec<u64>,
    pub(super) stride: Vec<u64>,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// A list, or a tuple.
    List(Vec<Id>),
    /// Keys and values in order.
    Dict(Vec<(Id, Id)>),
    Tensor(Box<View>),
    /// The file in `data/`, type and number of elements.
    Storage(Box<(String, Kind, u64)>),
    Name(Named),
}

/// A name that was read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Named(Name);

/// All values of a pickle, and which of them it is of.
#[derive(Debug)]
pub(super) struct Values {
    all: Vec<Value>,
    pub(super) root: Id,
}

impl Values {
    /// A value by its number.
    pub(super) fn get(&self, id: Id) -> &Value {
        &self.all[id as usize]
    }

    /// The text, if it is one.
    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What a dict holds under a text.
    pub(super) fn find(&self, dict: Id, key: &str) -> Option<Id> {
        match self.get(dict) {
            Value::Dict(pairs) => pairs.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, value)| *value),
            _ => None,
        }
    }
}

/// The first values are always these.
const NONE: Id = 0;
const FALSE: Id = 1;
const TRUE: Id = 2;
const EMPTY_TUPLE: Id = 3;

struct Machine<'a> {
    rest: &'a [u8],
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
}

/// Runs a pickle.
pub(super) fn read(bytes: &[u8]) -> Result<Values, String> {
    if bytes.len() > MAX_PICKLE {
        return Err(format!("a pickle of {} bytes, expected at most {MAX_PICKLE}", bytes.len()));
    }
    let values = vec![Value::None, Value::Bool(false), Value::Bool(true), Value::List(Vec::new())];
    let mut machine = Machine { rest: bytes, values, stack: Vec::new(), marks: Vec::new(), memo: Vec::new() };
    loop {
        let [op] = *machine.take()?;
        if op == b'.' {
            let root = machine.pop()?;
            return Ok(Values { all: machine.values, root });
        }
        machine.step(op)?;
    }
}

impl Machine<'_> {
    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            0x80 => match *self.take()? {
                [2..=5] => Ok(()),
                [found] => Err(format!("pickle protocol {found}, expected 2")),
            },
            b'N' => self.push_id(NONE),
            0x88 => self.push_id(TRUE),
            0x89 => self.push_id(FALSE),
            b')' => self.push_id(EMPTY_TUPLE),
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b'K' => self.take::<1>().map(|[x]| i64::from(*x)).and_then(|x| self.push(Value::Int(x))),
            b'M' => self.take().map(|x| i64::from(u16::from_le_bytes(*x))).and_then(|x| self.push(Value::Int(x))),
            b'J' => self.take().map(|x| i64::from(i32::from_le_bytes(*x))).and_then(|x| self.push(Value::Int(x))),
            0x8a => {
                let [n] = *self.take()?;
                let bytes = self.bytes(usize::from(n))?;
                let negative = bytes.last().is_some_and(|top| top & 0x80 != 0);
                let mut wide = [if negative { 0xff } else { 0 }; 8];
                wide.get_mut(..bytes.len()).ok_or("an integer of more than 64 bits")?.copy_from_slice(bytes);
                self.push(Value::Int(i64::from_le_bytes(wide)))
            }
            b'G' => self.take().map(|x| f64::from_be_bytes(*x)).and_then(|x| self.push(Value::Float(x))),
            b'X' => {
                let n = u32::from_le_bytes(*self.take()?) as usize;
                self.text(n)
            }
            0x8c => {
                let [n] = *self.take()?;
                self.text(usize::from(n))
            }
            b'(' => {
                self.room(self.marks.len())?;
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'q' => {
                let [at] = *self.take()?;
                self.remember(usize::from(at))
            }
            b'r' => {
                let at = u32::from_le_bytes(*self.take()?) as usize;
                self.remember(at)
            }
            b'h' => {
                let [at] = *self.take()?;
                self.recall(usize::from(at))
            }
            b'j' => {
                let at = u32::from_le_bytes(*self.take()?) as usize;
                self.recall(at)
            }
            b't' => {
                let items = self.above_mark()?;
                self.push(Value::List(items))
            }
            0x85..=0x87 => {
                let n = usize::from(op - 0x84);
                let at = self.stack.len().checked_sub(n).filter(|&at| at >= self.bottom()).ok_or(EMPTY)?;
                let items = self.stack.split_off(at);
                self.push(Value::List(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])
            }
            b'e' => {
                let items = self.above_mark()?;
                self.extend(items)
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])
            }
            b'u' => {
                let items = self.above_mark()?;
                self.set(&items)
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let full = format!("{module}.{name}");
                match NAMES.iter().find(|(known, _)| *known == full) {
                    Some((_, name)) => self.push(Value::Name(Named(*name))),
                    None => Err(format!(
                        "a pickle that names {full:?}, which no file of weights needs and this program never runs"
                    )),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.storage(id)
            }
            b'R' => {
                let (arguments, name) = (self.pop()?, self.pop()?);
                self.call(name, arguments)
            }
            b'b' => {
                // Attributes of a dict, such as `_metadata`, say nothing of its entries.
                self.pop()?;
                let target = self.pop()?;
                match self.value(target) {
                    Value::Dict(_) => self.push_id(target),
                    _ => Err("a pickle that sets attributes of something else than a dict".into()),
                }
            }
            _ => Err(format!("a pickle with the instruction {op:#04x}, which `torch.save` does not write")),
        }
    }

    fn value(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    fn take<const N: usize>(&mut self) -> Result<&[u8; N], String> {
        let (first, rest) = self.rest.split_first_chunk().ok_or(CUT)?;
        self.rest = rest;
        Ok(first)
    }

    fn bytes(&mut self, n: usize) -> Result<&[u8], String> {
        let (first, rest) = self.rest.split_at_checked(n).ok_or(CUT)?;
        self.rest = rest;
        Ok(first)
    }

    fn text(&mut self, n: usize) -> Result<(), String> {
        let text = std::str::from_utf8(self.bytes(n)?).map_err(|_| "a text that is not UTF-8")?.to_string();
        self.push(Value::Text(text))
    }

    fn line(&mut self) -> Result<String, String> {
        let n = self.rest.iter().take(256).position(|&b| b == b'\n').ok_or("a name without an end")?;
        let line = String::from_utf8_lossy(&self.rest[..n]).into_owned();
        self.rest = &self.rest[n + 1..];
        Ok(line)
    }

    fn room(&self, used: usize) -> Result<(), String> {
        if used < MAX_VALUES { Ok(()) } else { Err(format!("a pickle of more than {MAX_VALUES} values")) }
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        self.room(self.values.len())?;
        self.values.push(value);
        self.push_id(self.values.len() as Id - 1)
    }

    fn push_id(&mut self, id: Id) -> Result<(), String> {
        self.room(self.stack.len())?;
        self.stack.push(id);
        Ok(())
    }

    /// Where the last mark is: what lies below it is not to be taken.
    fn bottom(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, String> {
        if self.stack.len() <= self.bottom() {
            return Err(EMPTY.into());
        }
        self.stack.pop().ok_or_else(|| EMPTY.into())
    }

    fn above_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or(EMPTY)?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, at: usize) -> Result<(), String> {
        if at >= MAX_MEMO {
            return Err(format!("a pickle that remembers value {at}, expected less than {MAX_MEMO}"));
        }
        let last = *self.stack.last().ok_or(EMPTY)?;
        if self.memo.len() <= at {
            // Numbers are given in turn, so that memory follows the pickle.
            if at > self.memo.len() + 1 {
                return Err("a pickle that leaves numbers of remembered values out".into());
            }
            self.memo.resize(at + 1, None);
        }
        self.memo[at] = Some(last);
        Ok(())
    }

    fn recall(&mut self, at: usize) -> Result<(), String> {
        let id = self.memo.get(at).copied().flatten().ok_or("a pickle that recalls what it has not remembered")?;
        self.push_id(id)
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<(), String> {
        let target = *self.stack.last().ok_or(EMPTY)?;
        match &mut self.values[target as usize] {
            Value::List(list) if target != EMPTY_TUPLE => list.extend(items),
            _ => return Err("a pickle that appends to something else than a list".into()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<(), String> {
        let target = *self.stack.last().ok_or(EMPTY)?;
        let (pairs, []) = items.as_chunks::<2>() else { return Err("a dict with a key that has no value".into()) };
        match &mut self.values[target as usize] {
            Value::Dict(dict) if dict.len() + pairs.len() > MAX_VALUES => {
                return Err(format!("a dict of more than {MAX_VALUES} keys"));
            }
            Value::Dict(dict) => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            _ => return Err("a pickle that sets keys of something else than a dict".into()),
        }
        Ok(())
    }

    fn items(&self, id: Id) -> Result<&[Id], String> {
        match self.value(id) {
            Value::List(items) => Ok(items),
            _ => Err("a pickle whose arguments are no tuple".into()),
        }
    }

    fn whole(&self, id: Id) -> Result<u64, String> {
        match *self.value(id) {
            Value::Int(x) => u64::try_from(x).map_err(|_| format!("a size, stride or offset of {x}")),
            _ => Err("a size, stride or offset that is no integer".into()),
        }
    }

    /// `('storage', type, file, device, elements)`.
    fn storage(&mut self, id: Id) -> Result<(), String> {
        let wrong = || "a reference to something else than a storage".to_string();
        let [what, kind, file, _, elements] = *self.items(id)? else { return Err(wrong()) };
        match (self.value(what), self.value(kind), self.value(file)) {
            (Value::Text(what), Value::Name(Named(Name::Storage(kind))), Value::Text(file))
                if what == "storage" && file.len() <= 256 =>
            {
                let storage = Value::Storage(Box::new((file.clone(), *kind, self.whole(elements)?)));
                self.push(storage)
            }
            _ => Err(wrong()),
        }
    }

    fn call(&mut self, name: Id, arguments: Id) -> Result<(), String> {
        let Value::Name(Named(name)) = *self.value(name) else {
            return Err("a pickle that calls something that is no function".into());
        };
        let wrong = || "a tensor with other arguments than `torch.save` writes".to_string();
        let items = self.items(arguments)?;
        match (name, items) {
            (Name::Dict, []) => self.push(Value::Dict(Vec::new())),
            (Name::Size, &[sizes]) | (Name::Parameter, &[sizes, ..]) => self.push_id(sizes),
            (Name::Tensor, &[storage, offset, size, stride, ..]) => {
                if !matches!(self.value(storage), Value::Storage(_)) {
                    return Err(wrong());
                }
                let all = |id: Id| self.items(id)?.iter().map(|&x| self.whole(x)).collect::<Result<Vec<_>, String>>();
                let (size, stride) = (all(size)?, all(stride)?);
                if size.len() != stride.len() || size.len() > 8 {
                    return Err(wrong());
                }
                let view = View { storage, offset: self.whole(offset)?, size, stride };
                self.push(Value::Tensor(Box::new(view)))
            }
            _ => Err(wrong()),
        }
    }
}

const CUT: &str = "a pickle that is cut off";
const EMPTY: &str = "a pickle that takes from an empty stack";
