//! One C11 file with engine, tokenizer, sampler and weights (`c/`, of which `story.h` says how it is used). Its weights are string
//! literals, which compilers read a hundred times faster than lists of numbers.

use super::source::{Refused, Source};
use super::story;

const PARTS: [&str; 6] = [
    include_str!("c/story.h"),
    include_str!("c/exact.c"),
    include_str!("c/matrix.c"),
    include_str!("c/model.c"),
    include_str!("c/text.c"),
    include_str!("c/sample.c"),
];
const MAIN: &str = include_str!("c/main.c");

/// The bytes of the file.
pub fn write(source: &Source) -> Result<Vec<u8>, Refused> {
    let mut file = "/* cc -std=c11 -O3 -march=native -ffp-contract=off story.c -o story && ./story -p \"Once upon a time\"\n * A \
                    language model written by flashlm export c: see the API below; -DSTORY_NO_MAIN leaves out the program. */\n"
        .to_owned();
    file += &PARTS.join("\n");
    file += "\n/* The model, little-endian. */\n#if defined(__GNUC__)\n#pragma GCC diagnostic ignored \"-Woverlength-strings\"\n\
             #endif\nstatic const unsigned char own_model[] =\n";
    literal(&mut file, &story::bytes(source));
    file += ";\n\nSTORY_API const unsigned char *story_model(size_t *bytes) {\n    *bytes = sizeof own_model - 1;\n    return \
             own_model;\n}\n\n";
    file += MAIN;
    Ok(file.into_bytes())
}

/// Appends bytes as string literals of some hundred characters.
fn literal(file: &mut String, bytes: &[u8]) {
    for line in bytes.chunks(64) {
        *file += "\"";
        for (i, &byte) in line.iter().enumerate() {
            match byte {
                b'"' | b'\\' | b'?' => file.extend(['\\', byte.into()]),
                b' '..=b'~' => file.push(byte.into()),
                // A digit behind it would be read as one of its own.
                _ if line.get(i + 1).is_some_and(|next| next.is_ascii_digit()) => *file += &format!("\\{byte:03o}"),
                _ => *file += &format!("\\{byte:o}"),
            }
        }
        *file += "\"\n";
    }
    file.truncate(file.trim_end().len());
}
