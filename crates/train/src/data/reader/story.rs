//! What is read from a file, and what of it.

/// Which fields of a record, or columns of a table, to read.
pub(in crate::data) struct Fields<'a> {
    /// The text.
    pub text: &'a str,
    /// A number that says how good the text is, if it is wanted; text files have none.
    pub score: Option<&'a str>,
}

/// A document as it stands in its file.
pub(in crate::data) struct Story<'a> {
    pub text: &'a str,
    pub score: Option<f64>,
}
