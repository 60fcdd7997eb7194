//! The content of a page, decompressed.

use super::fault::Fault;
use std::io::{self, Read};

/// Largest page in bytes, before and after decompression: most writers make pages of 1 MB, DuckDB of 100, others one of a row
/// group; their dictionaries may be as large.
pub(super) const MAX_PAGE: u64 = 1 << 30;
/// What is set aside for a page before its bytes are there.
const STEP: usize = 1 << 20;
/// No block of Snappy or LZ4 becomes longer than so many times its length.
const MAX_RATIO: u64 = 255;

/// Appends what `input` holds, which must be `size` bytes.
pub(super) fn decompress<R: io::BufRead>(codec: i64, mut input: R, size: u64, out: &mut Vec<u8>) -> Result<(), Fault> {
    match codec {
        0 => fill(&mut input, size, out)?,
        2 => fill(flate2::bufread::MultiGzDecoder::new(&mut input), size, out)?,
        4 => fill(brotli_decompressor::Decompressor::new(&mut input, 4096), size, out)?,
        6 => {
            let mut decoder = zstd::Decoder::with_buffer(&mut input)?;
            // The window of a page is at most the page; 128 MB is what zstd takes by itself.
            decoder.window_log_max(size.max(1 << 27).next_power_of_two().ilog2())?;
            fill(decoder, size, out)?
        }
        1 | 5 | 7 => {
            let mut bytes = Vec::new();
            input.read_to_end(&mut bytes)?;
            if size > MAX_RATIO * bytes.len() as u64 {
                return Err(wrong_size(size));
            }
            let before = out.len();
            out.resize(before + size as usize, 0);
            let out = &mut out[before..];
            let done = match codec {
                1 => snap::raw::Decoder::new().decompress(&bytes, out).ok(),
                5 => hadoop(&bytes, out).or_else(|| lz4_flex::block::decompress_into(&bytes, out).ok()),
                _ => lz4_flex::block::decompress_into(&bytes, out).ok(),
            };
            if done != Some(out.len()) {
                return Err(wrong_size(size));
            }
        }
        other => {
            let name = if other == 3 { "LZO" } else { "an unknown codec" };
            return Err(Fault::Unsupported(format!(
                "its column is compressed with {name}; write it with zstd or Snappy"
            )));
        }
    }
    // What a decoder did not need.
    io::copy(&mut input, &mut io::sink())?;
    Ok(())
}

fn wrong_size(size: u64) -> Fault {
    Fault::damaged(format!("a page does not hold the {size} bytes that it claims"))
}

/// Appends all of `input`, which must be `size` bytes; room is made as they come.
fn fill<R: Read>(mut input: R, size: u64, out: &mut Vec<u8>) -> Result<(), Fault> {
    let end = out.len() + size as usize;
    while out.len() < end {
        let step = out.len().max(STEP).min(end - out.len());
        out.reserve_exact(step);
        if input.by_ref().take(step as u64).read_to_end(out)? < step {
            return Err(wrong_size(size));
        }
    }
    if input.read(&mut [0])? > 0 { Err(wrong_size(size)) } else { Ok(()) }
}

/// LZ4 as Hadoop frames it: a length, then blocks behind their own lengths until it is reached, and so on (u32, highest byte
/// first). None if it is not that: other writers of this codec left the frames out.
fn hadoop(bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    let (mut from, mut at) = (0, 0);
    let length = |from: &mut usize| {
        let length = bytes.get(*from..)?.first_chunk().copied().map(u32::from_be_bytes)?;
        *from += 4;
        Some(length as usize)
    };
    while from < bytes.len() {
        let end = length(&mut from)?.checked_add(at)?;
        while at < end {
            let packed = length(&mut from)?;
            let block = bytes.get(from..from.checked_add(packed)?)?;
            at += lz4_flex::block::decompress_into(block, out.get_mut(at..end)?).ok()?;
            from += packed;
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"Once upon a time, once upon a time, there was a kite. ";

    fn unpacked(codec: i64, bytes: &[u8], size: usize) -> Option<Vec<u8>> {
        let mut out = b"before".to_vec();
        decompress(codec, bytes, size as u64, &mut out).ok()?;
        Some(out.split_off(6))
    }

    /// The text four times by Python's `brotli.compress`, and LZ4 as literals alone: 15 and 39 more of them behind their count.
    #[test]
    fn brotli_and_lz4_in_all_its_frames() {
        let brotli =
            b"\x1b\xd7\x00\x00\x9c\x07\x76\x83\x75\x33\x71\x47\x49\x9e\x3d\x46\x09\xf2\x54\xd6\x63\x69\x6e\x6f\x2a\
            \x6c\xad\x41\x58\x5c\xe8\xc0\x06\x9c\x88\x07\x98\x50\xc2\x93\xe0\x49\x5d\x9b\xc5\x74\x00\
            \xb6\xd6\xde\x3e\xa7\x9f\x12";
        assert_eq!(unpacked(4, brotli, 4 * TEXT.len()), Some(TEXT.repeat(4)));
        assert_eq!(unpacked(4, &brotli[..40], 4 * TEXT.len()), None);
        let raw = [&[0xf0, 39][..], TEXT].concat();
        let n = TEXT.len() as u8;
        let block = [&[0, 0, 0, raw.len() as u8][..], &raw].concat();
        let framed = [&[0, 0, 0, n][..], &block].concat();
        // Two frames; one frame of two blocks.
        let two = [&framed[..], &framed].concat();
        let parts = [&[0, 0, 0, 2 * n][..], &block, &block].concat();
        assert_eq!(unpacked(7, &raw, TEXT.len()).as_deref(), Some(TEXT));
        assert_eq!(unpacked(5, &raw, TEXT.len()).as_deref(), Some(TEXT));
        assert_eq!(unpacked(5, &framed, TEXT.len()).as_deref(), Some(TEXT));
        assert_eq!(unpacked(5, &two, 2 * TEXT.len()), Some(TEXT.repeat(2)));
        assert_eq!(unpacked(5, &parts, 2 * TEXT.len()), Some(TEXT.repeat(2)));
        for end in 0..two.len() {
            assert_eq!(unpacked(5, &two[..end], 2 * TEXT.len()), None, "{end}");
        }
        for codec in 0..9 {
            assert_eq!(unpacked(codec, &raw, TEXT.len() + 1), None, "{codec}");
            assert_eq!(unpacked(codec, &raw, MAX_PAGE as usize), None, "{codec}");
        }
    }
}
