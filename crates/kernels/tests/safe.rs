//! Safe code must be safe: each test is a program without `unsafe` that asks for memory which is not its own, mostly by sizes
//! whose product wraps to a small number, and must be stopped by a panic. What cannot even be compiled, an `Isa` that the machine
//! lacks, is in the documentation of [`flashlm_kernels::Isa`].
#![forbid(unsafe_code)]

use flashlm_kernels::ops::*;
use flashlm_kernels::span::{Span, whole};
use flashlm_kernels::tile::{Heads, Parts, Rows};
use flashlm_kernels::{Bf16, Exec, Isa};

/// Rows that are so far apart that the last of [`FIVE`] seems to be the first again.
const APART: usize = 1 << 62;
const FIVE: usize = 5;
/// Twice it is nothing.
const HALF: usize = 1 << 63;

fn scalar() -> Exec {
    Exec::new(Isa::SCALAR, 1)
}

fn tiles(f: impl Fn(&Exec, &flashlm_kernels::tile::Local) + Sync) {
    scalar().tiles(1, (Rows(&mut [0u8], 1),), |cx, _, _, local| f(cx, local));
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn working_memory_of_more_bytes_than_there_are() {
    tiles(|_, local| local.take::<f64>(1 << 61)[1 << 60] = 1.0);
}

#[test]
#[should_panic(expected = "index out of bounds")]
fn more_pieces_of_working_memory_than_there_are() {
    tiles(|_, local| (0..17).for_each(|_| local.take::<f32>(1).fill(1.0)));
}

#[test]
#[should_panic(expected = "index out of bounds")]
fn working_memory_that_is_lent_out() {
    tiles(|_, local| local.within(|_| local.take::<f32>(1).fill(1.0)));
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn keys_of_pointers() {
    let mut z = [0f32; 4];
    let work = (&mut [0f32; FIVE][..], &mut [0f32; 4][..]);
    exact_pointer(&scalar(), &mut z, &[], (&[0f32; 4], &[]), work, (1, usize::MAX - 20, 0.0));
}

#[test]
#[should_panic(expected = "assertion failed")]
fn queries_of_pointers() {
    let seen = Seen { queries: &[0f32; 4], keys: &[0f32; 4], next: &[1, 2], before: 2, window: 1, d: HALF };
    pointer_forward::<f32, f32>(&scalar(), (&mut [0.0], &mut [0.0]), seen, &[1], &mut [0.0; 99], &mut [0.0; 99]);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn rows_of_tiles() {
    scalar().tiles_by(1, 2, (Rows(&mut [0f32; 4], HALF),), |_, _, _, _| ());
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn parts_of_tiles() {
    scalar().tiles_by(1, 2, (Parts(&mut [0f32; 4], HALF),), |_, _, _, _| ());
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn heads_of_tiles() {
    scalar().tiles_by(1, 2, (Heads(&mut [0f32; 4], 1, 2, HALF),), |_, _, (mut block,), _| block.row(0)[0] = 1.0);
}

#[test]
#[should_panic(expected = "do not nest")]
fn the_outer_executor_on_one_thread() {
    let cx = Exec::new(Isa::SCALAR, 1);
    cx.tiles(1, (Rows(&mut [0u8], 1),), |_, _, _, _| zero(&cx, &mut [1f32; 5000]));
}

#[test]
#[should_panic(expected = "do not nest")]
fn the_outer_executor_on_two_threads() {
    let cx = Exec::new(Isa::SCALAR, 2);
    cx.tiles(1000, (Rows(&mut [0u8; 1000], 1),), |_, _, _, _| zero(&cx, &mut [1f32; 5000]));
}

fn packed() -> Packed<f32> {
    let mut packed = Packed::new(4, 4);
    packed.pack(&scalar(), &[1.0; 16], 4, 4, 4);
    packed
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn rows_of_a_product() {
    matmul(&scalar(), &mut [0.0; 20], &[1.0; 4], APART, &packed(), FIVE, false);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn a_product_of_more_rows_than_its_result() {
    matmul(&scalar(), &mut [0.0; 0], &[1.0; 4], 0, &packed(), 1 << 62, false);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn rows_of_a_transposed_product() {
    let mut five = Packed::new(5, 4);
    five.pack(&scalar(), &[1.0; 20], 4, 5, 4);
    matmul_transposed(&scalar(), &mut [0.0; 4], &[1.0; 1], APART, &five, 1, false);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn room_for_a_packed_matrix() {
    let mut packed = Packed::<Bf16>::new(1 << 60, 16);
    packed.pack(&scalar(), &[Bf16(0); 16], 0, 1 << 60, 16);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn a_matrix_to_pack() {
    packed().pack(&scalar(), &[1.0; 4], 0, 1 << 62, 4);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn the_result_of_a_small_product() {
    let (a, b) = ([1f32; 5], [1f32; 1]);
    small_matmul(&scalar(), (&mut [0.0; 1], APART), Strided::rows(&a, 1), (&b, 1), (FIVE, 1, 1), Triangle::None, false);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn the_left_of_a_small_product() {
    let (a, b) = ([1f32; 1], [1f32; 1]);
    small_matmul(&scalar(), (&mut [0.0; 5], 1), Strided::rows(&a, APART), (&b, 1), (FIVE, 1, 1), Triangle::None, false);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn the_right_of_a_small_product() {
    let (a, b) = ([1f32; 5], [1f32; 1]);
    small_matmul(&scalar(), (&mut [0.0; 1], 1), Strided::rows(&a, 5), (&b, APART), (1, 1, FIVE), Triangle::None, false);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn a_solution_from_the_first_row() {
    solve_unit_lower(&scalar(), &mut [0f32; 0], &[], (1 << 32, 1 << 32));
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn a_solution_from_the_last_row() {
    solve_unit_upper(&scalar(), &mut [0f32; 0], &[], (1 << 32, 1 << 32));
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn steps_of_the_delta_rule() {
    delta_steps(&scalar(), &mut [], &mut [], &[1f32; 8], &[], (&[0.0; 2], &[0.0; 2]), Rule::Canonical, (2, 2, HALF));
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn a_chunk_of_the_delta_rule() {
    let gates = (&[0f32; 2][..], &[0f32; 2][..]);
    let mut work = vec![0.0; 1000];
    delta_forward(&scalar(), &mut [], &mut [], &[1.0; 8], &[], gates, Rule::Canonical, &mut work, (2, 2, HALF));
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn values_of_a_convolution() {
    let past = whole(1, FIVE);
    let place = (0..FIVE, &Span { batch: 1, len: FIVE, past: &past }, (1, 1));
    conv_forward(&scalar(), &mut [0.0; 5], (&[1f32], APART, 0), None, (&[1.0], 1, 0), place);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn columns_of_a_convolution() {
    let place = (0..2, &Span { batch: 1, len: 2, past: &[0, 1] }, (HALF, 1));
    conv_forward(&scalar(), &mut [], (&[1f32; 2], 1, HALF), None, (&[1.0], 1, HALF), place);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn taps_of_a_convolution() {
    let place = (0..1, &Span { batch: 1, len: 1, past: &[0] }, (1, FIVE));
    conv_forward(&scalar(), &mut [0.0], (&[1f32], 1, 0), None, (&[1.0], APART, 0), place);
}

#[test]
#[should_panic(expected = "k > 0")]
fn a_convolution_without_taps() {
    let place = (0..1, &Span { batch: 1, len: 1, past: &[0] }, (1, 0));
    conv_forward(&scalar(), &mut [0.0], (&[1f32], 1, 0), None, (&[], 1, 0), place);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn taps_of_a_gated_convolution() {
    let place = (0..1, &Span { batch: 1, len: 1, past: &[3] }, (2, 1 + HALF));
    conv_gate_forward(&scalar(), &mut [0.0; 2], &[1f32; 4], None, &[1.0; 2], place);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn the_gradient_of_a_gated_convolution() {
    conv_gate_backward(&scalar(), &mut [1f32; 0], &mut [], &[], &[], &[], (0..2, HALF));
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn the_gradient_of_taps() {
    let place = (0..2, &Span { batch: 1, len: 2, past: &[0, 1] }, (1, 1));
    conv_taps_backward(&scalar(), (&mut [], HALF, 0), &mut [1.0], &[1f32; 2], (&[], HALF, 0), &[1.0], place);
}

#[test]
#[should_panic(expected = "are no rows of 0 columns")]
fn products_of_rows_without_columns() {
    shortconv_out_forward(&scalar(), &mut [0f32; 0], &[0f32; 0], &[1.0; 3], 0);
}

#[test]
#[should_panic(expected = "z.len() == u.len()")]
fn products_before_a_convolution_of_less_than_there_is() {
    shortconv_in_forward(&scalar(), &mut [0f32; 2], &mut [0.0; 6], &[1.0; 3], 2);
}

#[test]
#[should_panic(expected = "u.len() == area")]
fn products_behind_a_convolution_of_less_than_there_is() {
    shortconv_out_forward(&scalar(), &mut [0f32; 2], &[1f32; 2], &[1.0; 3], 2);
}

#[test]
#[should_panic(expected = "s.len() == ds.len()")]
fn the_gradient_of_products_behind_a_convolution() {
    shortconv_out_backward(&scalar(), &mut [0f32; 6], &mut [0.0; 2], &[1.0; 2], &[1.0; 1], &[1.0; 6], 2);
}

#[test]
#[should_panic(expected = "du.len() == area")]
fn the_gradient_of_products_before_a_convolution() {
    shortconv_in_backward(&scalar(), &mut [0f32; 5], &[1.0; 2], &[1.0; 5], 2);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn sequences_of_a_span() {
    let past = whole(1, 100);
    let place = (0..4, &Span { batch: 2, len: HALF + 2, past: &past }, (1, 50));
    let mut dw = [0.0; 50];
    conv_taps_backward(&scalar(), (&mut [0.0; 4], 1, 0), &mut dw, &[1f32; 4], (&[1.0; 4], 1, 0), &[1.0; 50], place);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn heads_that_turn() {
    rope(&scalar(), &mut [0f32; 2], &[1f32; 2], &[1.0; 2], (HALF + 1, 2), 1.0, false);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn rows_to_normalise() {
    rmsnorm_forward(&scalar(), &mut [0f32; 0], &[0f32; 0], &[1.0; 4], 1e-6, (1 << 62, 4));
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn rows_of_kept_exponentials() {
    let (mut max, mut sum, mut own, mut at) = ([0.0; 5], [0.0; 5], [0.0; 5], [0.0; 5]);
    let mut softmax = SoftmaxRows {
        max: &mut max,
        sum: &mut sum,
        own: &mut own,
        targets: &[0; FIVE],
        cap: None,
        total: None,
        pointed: None,
    };
    softmax.start();
    softmax.chunk(&scalar(), Some((&mut [0f32; 1], APART, &mut at)), &[1.0; 5], 1, 0);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn rows_that_are_looked_up() {
    embed_add(&scalar(), &mut [0f32; 4], &[0u32, 1], &[1.0; 4], HALF);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn rows_that_are_added() {
    add_rows(&scalar(), &mut [0f32; 4], &[1.0; 4], &[1u32], HALF);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn rows_that_become_zero() {
    zero_rows(&scalar(), &mut [0f32; 4], &[1u32], HALF);
}

#[test]
#[should_panic(expected = "assertion failed")]
fn streams_of_different_lengths() {
    blend_forward(&scalar(), &mut [0f32; 4], &[1.0; 4], &[1.0; 3], [1.0, 1.0]);
}

#[test]
#[should_panic(expected = "assertion failed")]
fn rows_that_do_not_fill_their_width() {
    dropout_forward(&scalar(), &mut [0f32; 4], &[1.0; 4], 3, DropMask { share: 0.5, key: 0, first: 0 });
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn rows_of_an_exact_convolution() {
    let rows = ConvRows { u: &[1.0; 1], ld: APART, at: 0, past: &[0, 1, 2, 3, 4] };
    exact_conv(&scalar(), &mut [0.0; 1], &[0.0; 4], rows, 4..5, &[1.0; 5]);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn rows_of_an_exact_delta_rule() {
    let rows = DeltaRows { x: &[1.0; 3], ld: APART, at: [0, 1, 2], dk: 1, past: &[0, 1, 2, 3, 4] };
    let gates = (&[1.0; FIVE][..], &[1.0; FIVE][..]);
    exact_delta(&scalar(), &mut [0.0; FIVE], &mut [0.0; 16], rows, gates, Rule::Canonical);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn slots_of_an_exact_attention() {
    let window = usize::MAX;
    exact_attention(&scalar(), &mut [0.0; 1], &[1.0; 1], (&[], &[]), &mut [], (0, window, 1));
}

/// Rows of one matrix of bytes, and room for five of them.
fn bytes(inputs: usize) -> (PackedMatrix, Int8Rows) {
    let w = PackedMatrix::bytes((0..16 * inputs).map(|_| 1), &[1.0; 16], 16, inputs);
    let rows = Int8Rows::new([w.columns()].into_iter(), FIVE);
    (w, rows)
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn columns_of_a_packed_product() {
    let (w, mut x) = bytes(8);
    x.quantise(&scalar(), &[1.0; 8], w.columns());
    packed_matmul(&scalar(), (&mut [0.0; 16], 16, usize::MAX), &mut x, &w, false);
}

#[test]
#[should_panic(expected = "more elements than memory can hold")]
fn rows_of_a_packed_product() {
    let (w, mut x) = bytes(8);
    x.quantise(&scalar(), &[1.0; 16], w.columns());
    packed_matmul(&scalar(), (&mut [], HALF, 0), &mut x, &w, false);
}

/// With tiles, rows are read 32 at a time: more than there is room for, of columns so large.
#[test]
#[should_panic(expected = "columns larger than those that the rows were made for")]
fn packed_rows_of_more_columns_than_they_were_made_for() {
    let (mut x, w) = (bytes(64).1, bytes(192).0);
    let cx = Exec::new(Isa::detect().unwrap(), 1);
    x.quantise(&cx, &[1.0; FIVE * 192], w.columns());
    packed_matmul(&cx, (&mut [0.0; FIVE * 16], 16, 0), &mut x, &w, false);
}
