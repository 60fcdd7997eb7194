//! How small a packed model is made.

/// How many ternary weights a byte holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Density {
    /// Four, of 2 bits each.
    #[default]
    Four,
    /// Five, as digits of base 3: 1.6 bits each.
    Five,
}

impl Density {
    pub(crate) fn per_byte(self) -> usize {
        match self {
            Density::Four => 4,
            Density::Five => 5,
        }
    }
}

/// Bits of a number of the embedding matrix, which is also the head's, and of other tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableBits {
    /// One scale per row.
    #[default]
    Eight,
    /// A scale for 16 columns of a row.
    Four,
}

impl TableBits {
    pub(crate) fn name(self) -> &'static str {
        match self {
            TableBits::Eight => "8",
            TableBits::Four => "4",
        }
    }
}

/// How small a packed model is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Of ternary matrices.
    pub density: Density,
    /// Of embedding and head, and of other tables.
    pub table: TableBits,
}
