//! One HTML file that works without a network: the engine of `c/` as WebAssembly (`web/build.sh` makes it), the model as base64, and a
//! page to write with. Of the two modules the browser gets that of relaxed SIMD where it knows it.

use super::source::{Exported, Refused, Source};
use super::story;

const PAGE: &str = include_str!("web/page.html");
const WORKER: &str = include_str!("web/worker.js");
const RELAXED: &[u8] = include_bytes!("web/story-relaxed.wasm");
const SIMD: &[u8] = include_bytes!("web/story.wasm");

pub use super::c::WEIGHTS;

/// The bytes of the file.
pub fn write(source: &Source, _: &str) -> Result<Exported, Refused> {
    let parts = [
        ("PROMPT", "Once upon a time".to_owned()),
        ("MODEL", base64(&story::bytes(source)?)),
        ("RELAXED", base64(RELAXED)),
        ("SIMD", base64(SIMD)),
        ("WORKER", WORKER.to_owned()),
    ];
    let mut page = PAGE.to_owned();
    for (name, text) in parts {
        page = page.replacen(&format!("{{{{{name}}}}}"), &text, 1);
    }
    Ok(Exported::File(page.into_bytes()))
}

/// RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | u32::from(three.get(i).copied().unwrap_or_default()));
        for i in 0..4 {
            text.push(if i > three.len() { '=' } else { DIGITS[(bits >> (18 - 6 * i) & 63) as usize].into() });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of RFC 4648.
    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
