//! A model's weights as numbers of few bits with their scales, whatever the file packed them into.

/// One parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Its name, that of the PyTorch original.
    pub name: String,
    /// Shape, row-major; of two axes where the values are codes.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Values,
}

/// What a weight is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// `w = code * scale`, element by element: codes -1, 0, 1 of a ternary matrix.
    Ternary(Codes),
    /// The same with codes of -127 to 127: the embedding matrix and other tables, and matrices that stay float in training.
    Bytes(Codes),
    /// Norms, taps, gates.
    Floats(Vec<f32>),
}

/// Codes and their scales.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// `[outputs, inputs]`.
    pub codes: Vec<i8>,
    /// `[outputs, ceil(inputs / segment)]`.
    pub scales: Vec<f32>,
    /// Width of a row.
    pub inputs: usize,
    /// Columns of a row that share a scale.
    pub segment: usize,
}

impl Codes {
    /// `[outputs, inputs]` as floats.
    pub fn floats(&self) -> Vec<f32> {
        let segments = self.inputs.div_ceil(self.segment);
        let scale = |i: usize| self.scales[i / self.inputs * segments + i % self.inputs / self.segment];
        self.codes.iter().enumerate().map(|(i, &code)| f32::from(code) * scale(i)).collect()
    }
}

impl Weight {
    /// All elements as floats.
    pub fn floats(&self) -> Vec<f32> {
        match &self.values {
            Values::Ternary(codes) | Values::Bytes(codes) => codes.floats(),
            Values::Floats(values) => values.clone(),
        }
    }
}
