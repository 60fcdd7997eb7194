//! One rank alone.

use super::{Comm, CommError};

/// One rank alone: there is nothing to do.
pub struct Solo;

impl Comm for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&self, _: &mut [f32]) -> Result<(), CommError> {
        Ok(())
    }

    fn broadcast(&self, _: &mut Vec<u8>) -> Result<(), CommError> {
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        Ok(())
    }
}
