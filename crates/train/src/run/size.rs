//! Sizes of a step that fit a machine, where none are asked for.

use flashlm_kernels::tile::TILE_ROWS;

use crate::stepper::ROWS;

/// Tiles of a pass for each thread, or more.
const TILES: usize = 3;

/// Sequences of a step of a model of this width.
pub(super) fn batch_for(dim: usize, cores: usize) -> usize {
    if dim >= 384 { (2 * cores).clamp(4, 64) } else { cores.clamp(2, 8) }
}

/// Rows of a pass for so many threads and batches of `rows` rows: some tiles for each thread, so that none waits long for the
/// last, but not more than the batch has.
pub fn pass_rows_for(rows: usize, threads: usize) -> usize {
    let wanted = TILES * TILE_ROWS.end() * threads;
    wanted.next_power_of_two().min(rows.next_power_of_two()).max(ROWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_has_three_tiles_for_each_thread_but_no_more_than_the_batch() {
        let batch = 64 * 256;
        let chosen = [1, 2, 10, 11, 16, 32, 64, 1024].map(|threads| pass_rows_for(batch, threads));
        assert_eq!(chosen, [2048, 2048, 2048, 4096, 4096, 8192, 16_384, 16_384]);
        assert_eq!([100, 2500, 5000].map(|rows| pass_rows_for(rows, 32)), [2048, 4096, 8192]);
    }
}
