//! What every form of the delta rule is told: which of the two it is, and its sizes.

/// What the new value is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The decayed state, as published.
    Canonical,
    /// The state before it decays.
    Undecayed,
}

/// `(n, dk, dv)`: tokens, width of a key, width of a value.
pub type Sizes = (usize, usize, usize);
