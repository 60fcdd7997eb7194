//! Parameters: one flat allocation, and a layout of named, shaped ranges in it. Names are those of the PyTorch originals,
//! the same in memory, checkpoint, export and log. Ranges start at multiples of 16 elements; the gaps stay zero.

use std::ops::Range;

use flashlm_kernels::{Buf, Elem};

use crate::rng::Rng;

/// Most parameters of a model, and most numbers in the state of one sequence. Files of a model, of its optimizer state
/// and of its packed form are then short enough to be read again.
pub const MAX_NUMBERS: usize = 1_000_000_000;

/// How a parameter is initialised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// The number of each element, from 0.
    Numbers,
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Logarithm of a value uniform between these.
    LnUniform(f64, f64),
    /// Inverse softplus of a value whose logarithm is uniform between the logarithms of these.
    InverseSoftplus(f64, f64),
}

/// How an optimizer treats a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The master matrix of a BitLinear.
    Matrix,
    /// The embedding, tied with the head.
    Embedding,
    /// A table whose rows are looked up and never multiplied.
    Table,
    /// The scale of an RMSNorm.
    Norm,
    /// Taps of a convolution.
    Conv,
    /// A small float matrix that computes gates.
    Gate,
    /// One number per head or block, and scales of norms that are not subject to weight decay.
    Scalar,
    /// Kept with the model and never read; no optimizer gets it.
    Unused,
    /// Read, but set when a run begins and never trained.
    Constant,
}

impl Group {
    /// Whether there is a gradient, and an optimizer gets it.
    pub fn is_trained(self) -> bool {
        !matches!(self, Group::Unused | Group::Constant)
    }
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Dotted path.
    pub name: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Place in the flat allocation.
    pub range: Range<usize>,
    /// How it is initialised.
    pub init: Init,
    /// How an optimizer treats it.
    pub group: Group,
}

/// All parameters in order.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    specs: Vec<Spec>,
    len: usize,
}

impl Layout {
    /// Appends a parameter and returns its place.
    pub fn add(&mut self, name: String, shape: &[usize], init: Init, group: Group) -> Range<usize> {
        let start = self.len.next_multiple_of(16);
        let range = start..start + shape.iter().product::<usize>();
        self.len = range.end;
        self.specs.push(Spec { name, shape: shape.to_vec(), range: range.clone(), init, group });
        range
    }

    /// The parameters in order.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Elements of the flat allocation, including gaps.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of parameters, without gaps and constants.
    pub fn parameters(&self) -> usize {
        let counted = self.specs.iter().filter(|spec| spec.group != Group::Constant);
        counted.map(|spec| spec.range.len()).sum()
    }

    /// The parameter of that name.
    pub fn find(&self, name: &str) -> Option<&Spec> {
        self.specs.iter().find(|spec| spec.name == name)
    }

    /// The parameter at a place that [`Layout::add`] returned.
    ///
    /// # Panics
    /// If the place belongs to another layout.
    pub fn at(&self, range: &Range<usize>) -> &Spec {
        let found = self.specs.binary_search_by_key(&range.start, |spec| spec.range.start);
        &self.specs[found.expect("a place in this layout")]
    }

    /// A fresh start from `seed`: parameters in order draw from one generator.
    pub fn init<E: Elem>(&self, seed: u64) -> Buf<E> {
        let mut params = Buf::zeros(self.len);
        let mut rng = Rng::new(seed);
        for spec in &self.specs {
            for (i, p) in params[spec.range.clone()].iter_mut().enumerate() {
                *p = match spec.init {
                    Init::Zeros => E::ZERO,
                    Init::Ones => E::ONE,
                    Init::Numbers => E::from_f64(i as f64),
                    Init::Normal(std) => E::from_f64(rng.normal() * std),
                    Init::LnUniform(low, high) => E::from_f64((low + (high - low) * rng.uniform()).ln()),
                    Init::InverseSoftplus(low, high) => {
                        let x = (low.ln() + (high.ln() - low.ln()) * rng.uniform()).exp();
                        E::from_f64(x + (-(-x).exp_m1()).ln())
                    }
                };
            }
        }
        params
    }
}
