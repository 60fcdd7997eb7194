//! A step allocates nothing: a counting allocator sees none once every thread has its working memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use flashlm_kernels::{Exec, Isa, Token};
use flashlm_model::{ModelConfig, Precision, Shape};
use flashlm_train::config::{preset, preset_names};
use flashlm_train::optim::{ADAMW, NAMES};
use flashlm_train::stepper::{Step, Stepper};

/// Steps, of which one allocates nothing.
const STEPS: u64 = 20;

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn an_update_allocates_nothing() {
    let cx = Exec::new(Isa::detect().unwrap(), 2);
    let all = ["v4-small", "v4-blockwise-small", "flash-small", "hybrid-small"].map(|name| (name, ADAMW, 0));
    let optimizers = NAMES.iter().map(|&optimizer| ("flash-small", optimizer, 0));
    let rounded = preset_names().into_iter().map(|name| (name, ADAMW, 8));
    for (name, optimizer, bits) in all.into_iter().chain(optimizers).chain(rounded) {
        let mut settings = preset(name).unwrap();
        settings.train.optimizer = optimizer.into();
        settings.train.row_normalise = true;
        settings.model = ModelConfig { vocab_size: 300, dim: 32, blocks: 3, ffn_hidden: 48, ..settings.model };
        settings.model.activation_bits = bits;
        settings.model.mixers.attention.heads = 4;
        settings.model.mixers.delta.heads = 4;
        let shape = Shape { batch: 40, seq_len: 64 };
        let data: Vec<Token> = (0..shape.seq_len as Token + 1).map(|i| i * 7 % 300).collect();
        for precision in [Precision::F32, Precision::Bf16] {
            let mut stepper = Stepper::new(&settings.model, precision, shape, &settings.train).unwrap();
            let (settings, lr, momentum) = (&settings.train, 1e-3, 0.9);
            let mut step =
                |number| stepper.step(&cx, Step { shape, settings, lr, momentum, number, frozen: 0 }, |_| &data);
            // A thread gets its memory with its first piece of work, which may be in any step: threads take what others leave.
            let still = (1..=STEPS).any(|number| {
                let before = COUNT.load(SeqCst);
                assert!(step(number).is_finite());
                COUNT.load(SeqCst) == before
            });
            assert!(still, "{name} with {optimizer}, activations of {bits} bits: every one of {STEPS} steps allocates");
        }
    }
}
