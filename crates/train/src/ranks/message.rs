//! What rank 0 sends to the others: the length of a header `u32`, the header as JSON, then tokens `u16`; little-endian.

use flashlm_kernels::Token;
use serde::{Deserialize, Serialize};

use crate::comm::{Comm, CommError};
use crate::config::Settings;
use crate::stepper::Stepper;

/// What the others are to do.
#[derive(Serialize, Deserialize)]
pub(super) enum Order {
    /// Make a model with these settings, and take its parameters and the state of its optimizers.
    Begin(Box<Settings>),
    /// A step; its windows have so many tokens each.
    Step {
        batch: usize,
        seq_len: usize,
        lr: f64,
        momentum: f64,
        number: u64,
        frozen: u64,
        activation_bits: u32,
        windows: Vec<usize>,
    },
    /// Score what follows with the parameters as they are after `step`; where they are stale, new ones come first.
    Score { activation_bits: u32, stale: bool, step: u64 },
    /// Documents of so many tokens.
    Documents(Vec<usize>),
    /// No more documents.
    Scored,
    /// Leave.
    End,
}

pub(super) fn send(comm: &dyn Comm, order: &Order, tokens: &[Token]) -> Result<(), CommError> {
    let header = serde_json::to_vec(order).map_err(|e| CommError::Message(e.to_string()))?;
    let mut bytes = (header.len() as u32).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    comm.broadcast(&mut bytes)
}

pub(super) fn receive(comm: &dyn Comm) -> Result<(Order, Vec<Token>), CommError> {
    let mut bytes = Vec::new();
    comm.broadcast(&mut bytes)?;
    let bad = |what: &str| CommError::Message(what.into());
    let (len, rest) = bytes.split_first_chunk().ok_or_else(|| bad("an empty message"))?;
    let (header, tokens) =
        rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(|| bad("a message cut short"))?;
    let order = serde_json::from_slice(header).map_err(|e| bad(&e.to_string()))?;
    Ok((order, tokens.as_chunks().0.iter().map(|&token| Token::from_le_bytes(token)).collect()))
}

/// The tokens of each piece.
pub(super) fn cut<'a>(mut tokens: &'a [Token], lens: &[usize]) -> Result<Vec<&'a [Token]>, CommError> {
    let piece = |&len: &usize| {
        let (piece, rest) = tokens.split_at_checked(len).ok_or_else(|| CommError::Message("too few tokens".into()))?;
        tokens = rest;
        Ok(piece)
    };
    lens.iter().map(piece).collect()
}

/// Makes the values of all ranks those of rank 0.
pub(super) fn spread(comm: &dyn Comm, values: &mut [f32]) -> Result<(), CommError> {
    let mut bytes: Vec<u8> =
        if comm.rank() == 0 { values.iter().flat_map(|x| x.to_le_bytes()).collect() } else { Vec::new() };
    comm.broadcast(&mut bytes)?;
    if bytes.len() != 4 * values.len() {
        return Err(CommError::Message("parameters of another model".into()));
    }
    values.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, &from)| *to = f32::from_le_bytes(from));
    Ok(())
}

/// The same for all that a step changes.
pub(super) fn spread_state(comm: &dyn Comm, stepper: &mut Stepper) -> Result<(), CommError> {
    spread(comm, &mut stepper.params)?;
    stepper.optimizers.state().into_iter().try_for_each(|tensor| spread(comm, tensor.data))
}
