//! Integers as Parquet packs them, read one by one out of a page: positions are kept, never slices, and every read is
//! checked against the page.
//!
//! ```text
//! Hybrid: runs of either  varint(count << 1), value      in ceil(width / 8) bytes
//!                     or  varint(groups << 1 | 1), groups x 8 values of `width` bits, lowest bit first
//! Delta:  varint block, varint miniblocks, varint count, zigzag first value; then blocks of
//!         zigzag smallest delta, a byte of width for each miniblock, the miniblocks' deltas less the smallest, packed
//! ``` Source: Encodings.md of apache/parquet-format.

use super::fault::Fault;

fn varint(page: &[u8], at: &mut usize) -> Result<u64, Fault> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let byte = *page.get(*at).ok_or_else(Fault::short)?;
        *at += 1;
        n |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Ok(n);
        }
    }
    Err(Fault::damaged("a number in a page does not end"))
}

fn zigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

/// `width` bits, at most 64, from bit `bit` after byte `at`.
fn bits(page: &[u8], at: usize, bit: usize, width: u32) -> Result<u64, Fault> {
    let first = at + bit / 8;
    let shift = (bit % 8) as u32;
    let bytes = page.get(first..first + (shift + width).div_ceil(8) as usize).ok_or_else(Fault::short)?;
    let all = bytes.iter().rev().fold(0u128, |all, byte| all << 8 | u128::from(*byte));
    Ok((all >> shift) as u64 & 1u64.checked_shl(width).map_or(u64::MAX, |above| above - 1))
}

/// Levels and places in a dictionary.
#[derive(Default)]
pub(super) struct Hybrid {
    at: usize,
    end: usize,
    width: u32,
    /// Values left in the run, which all are `value` or are packed from bit `bit` on.
    left: u64,
    value: u32,
    packed: bool,
    bit: usize,
}

impl Hybrid {
    /// Of the bytes `at..end` of the page.
    pub fn new(at: usize, end: usize, width: u32) -> Result<Hybrid, Fault> {
        if width > 32 {
            return Err(Fault::damaged(format!("a page packs numbers of {width} bits")));
        }
        Ok(Hybrid { at, end, width, ..Hybrid::default() })
    }

    pub fn next(&mut self, page: &[u8]) -> Result<u32, Fault> {
        let page = page.get(..self.end).ok_or_else(Fault::short)?;
        while self.left == 0 {
            if self.packed {
                self.at = self.at.saturating_add(self.bit / 8);
            }
            let head = varint(page, &mut self.at)?;
            self.packed = head & 1 == 1;
            self.bit = 0;
            if self.packed {
                self.left = (head >> 1).saturating_mul(8);
            } else {
                self.left = head >> 1;
                self.value = bits(page, self.at, 0, self.width.next_multiple_of(8))? as u32;
                self.at += self.width.div_ceil(8) as usize;
            }
        }
        self.left -= 1;
        if self.packed {
            self.value = bits(page, self.at, self.bit, self.width)? as u32;
            self.bit += self.width as usize;
        }
        Ok(self.value)
    }
}

/// Integers that change little: lengths, times.
#[derive(Clone, Default)]
pub(super) struct Delta {
    at: usize,
    /// Values to come.
    left: u64,
    value: i64,
    first: bool,
    /// Miniblocks of a block, and values of a miniblock.
    miniblocks: usize,
    per: usize,
    /// The miniblock being read: its number, where the widths stand, the values given, its smallest delta.
    miniblock: usize,
    widths: usize,
    given: usize,
    smallest: i64,
}

impl Delta {
    pub fn new(page: &[u8], at: usize) -> Result<Delta, Fault> {
        let mut d = Delta { at, first: true, ..Delta::default() };
        let block = varint(page, &mut d.at)?;
        let miniblocks = varint(page, &mut d.at)?;
        d.left = varint(page, &mut d.at)?;
        d.value = zigzag(varint(page, &mut d.at)?);
        let per = block.checked_div(miniblocks).filter(|per| *per > 0 && per % 8 == 0 && per * miniblocks == block);
        let Some(per) = per.filter(|_| block <= 1 << 20) else {
            return Err(Fault::damaged(format!("a page has blocks of {block} numbers in {miniblocks} parts")));
        };
        (d.miniblocks, d.per) = (miniblocks as usize, per as usize);
        // As if a block had ended.
        (d.miniblock, d.given) = (d.miniblocks, d.per);
        Ok(d)
    }

    /// The byte after the last value. Parts are skipped without reading them: a few bytes can claim any number of values.
    pub fn end(&self, page: &[u8]) -> Result<usize, Fault> {
        let mut all = self.clone();
        while all.left > 0 {
            // Enters the next part, if there is one.
            all.next(page)?;
            let rest = all.left.min((all.per - all.given) as u64);
            all.left -= rest;
            all.given += rest as usize;
        }
        let open = all.miniblock < all.miniblocks;
        let width = if open { usize::from(*page.get(all.widths + all.miniblock).ok_or_else(Fault::short)?) } else { 0 };
        let end = all.at + width * all.per / 8;
        if end > page.len() { Err(Fault::short()) } else { Ok(end) }
    }

    pub fn next(&mut self, page: &[u8]) -> Result<i64, Fault> {
        self.left = self.left.checked_sub(1).ok_or_else(Fault::short)?;
        if std::mem::take(&mut self.first) {
            return Ok(self.value);
        }
        if self.given == self.per {
            if self.miniblock < self.miniblocks {
                self.at +=
                    usize::from(*page.get(self.widths + self.miniblock).ok_or_else(Fault::short)?) * self.per / 8;
                self.miniblock += 1;
            }
            if self.miniblock == self.miniblocks {
                self.smallest = zigzag(varint(page, &mut self.at)?);
                self.widths = self.at;
                self.at += self.miniblocks;
                self.miniblock = 0;
            }
            self.given = 0;
        }
        let width = u32::from(*page.get(self.widths + self.miniblock).ok_or_else(Fault::short)?);
        if width > 64 {
            return Err(Fault::damaged(format!("a page packs numbers of {width} bits")));
        }
        let delta = bits(page, self.at, self.given * width as usize, width)? as i64;
        self.given += 1;
        self.value = self.value.wrapping_add(self.smallest).wrapping_add(delta);
        Ok(self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(page: &[u8], width: u32, n: usize) -> Vec<u32> {
        let mut h = Hybrid::new(0, page.len(), width).unwrap_or_else(|_| panic!());
        (0..n).map_while(|_| h.next(page).ok()).collect()
    }

    /// The example of Encodings.md: 0..8 in 3 bits is 88 C6 FA; then three times 5.
    #[test]
    fn hybrid_runs() {
        let page = [0b11, 0x88, 0xc6, 0xfa, 3 << 1, 5];
        assert_eq!(all(&page, 3, 100), [0, 1, 2, 3, 4, 5, 6, 7, 5, 5, 5]);
        assert_eq!(all(&[4 << 1], 0, 100), [0; 4]);
        assert_eq!(all(&[2 << 1, 0x34, 0x12], 12, 100), [0x1234 & 0xffff; 2]);
        assert_eq!(all(&[0b11, 0x88], 3, 100), [0, 1], "cut");
        assert_eq!(all(&[0xff; 20], 1, 100), [0; 0]);
        assert!(Hybrid::new(0, 1, 33).is_err());
    }

    /// The two examples of Encodings.md: 1..=5, and 7 5 3 1 2 3 4 5; blocks of 8 in one part.
    #[test]
    fn deltas() {
        let read = |page: &[u8]| -> Option<(Vec<i64>, usize)> {
            let mut d = Delta::new(page, 0).ok()?;
            let end = d.end(page).ok()?;
            let n = d.left;
            Some(((0..n).map_while(|_| d.next(page).ok()).collect(), end))
        };
        assert_eq!(read(&[8, 1, 5, 2, 2, 0]), Some((vec![1, 2, 3, 4, 5], 6)));
        // Deltas -2 -2 -2 1 1 1 1: smallest -2, the rest in two bits 0 0 0 3 3 3 3.
        let page = [8, 1, 8, 14, 3, 2, 0b1100_0000, 0b0011_1111, 99];
        assert_eq!(read(&page), Some((vec![7, 5, 3, 1, 2, 3, 4, 5], 8)));
        for end in 0..8 {
            assert_eq!(read(&page[..end]), None, "{end}");
        }
        for bad in [[8, 0, 5, 2, 2, 0], [8, 3, 5, 2, 2, 0], [0, 1, 5, 2, 2, 0], [8, 1, 5, 2, 2, 65]] {
            assert_eq!(read(&bad), None);
        }
        // A million equal numbers in each of 16,000 blocks of two bytes: skipped, not counted out.
        let head = [0x80, 0x80, 0x40, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0];
        let page = [&head[..], &[0; 1 << 15]].concat();
        let started = std::time::Instant::now();
        assert!(Delta::new(&page, 0).is_ok_and(|d| d.end(&page).is_err()));
        assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    }
}
