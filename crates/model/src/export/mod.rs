//! Models as files for other programs: one format is one file here and one line in `exports!`.
//!
//! A format is a module with `write(&Source) -> Result<Vec<u8>, Refused>`, the bytes of the file. It starts from what the packed
//! model holds, so what runs elsewhere is what `flashlm generate` runs. A model that a format cannot express is refused with every
//! reason, never approximated.

pub mod c;
pub mod safetensors;
mod source;
mod story;
pub mod web;

pub use source::{Refused, Source};

macro_rules! exports {
    ($($module:ident: $about:literal;)*) => {
        /// Name and description of every format.
        pub const FORMATS: &[(&str, &str)] = &[$((stringify!($module), $about)),*];

        /// The file of that format; `None` where there is no such format.
        pub fn write(format: &str, source: &Source) -> Option<Result<Vec<u8>, Refused>> {
            match format {
                $(stringify!($module) => Some($module::write(source)),)*
                _ => None,
            }
        }
    };
}

exports! {
    c: "one C11 file: engine, tokenizer, sampler and weights, without a library";
    web: "one HTML file that writes in a browser, without a network";
    safetensors: "weights as F32 tensors, for PyTorch and NumPy";
}
